"""Real tokens a second in training: our batches and model against padded batches through ours and through KerasHub's.

    KERAS_SEQ_DATA=... python -m benchmarks.pipelines [--rounds 3] [--pairs 1024]

Every contestant trains a Transformer of the same sizes on the same pairs of Multi30k, as the same ids, one pass a turn;
so the ratio of the times is that of the real tokens a second, however many places each pads.
"""

import argparse

import numpy as np

from benchmarks.training import LADDER
from benchmarks.turns import measure, report

LIMIT = 64
ROWS = 128  # of a padded batch
PLACES = 2048  # of one of ours: as many rows of the mean length


def token_ids(count):
    """Pairs of Multi30k and their tokenizers."""
    from keras_seq.text import train_tokenizer
    from training.corpora import CORPORA

    pairs = CORPORA["multi30k-words"].read("train", None, 0)
    size = LADDER["vocabulary_size"]
    tokenizers = [train_tokenizer([pair[side] for pair in pairs], "word", size, 2) for side in (0, 1)]
    return pairs[:count], tokenizers


def passes(model, dataset, loss):
    """The work of a model: one pass of training."""
    import keras

    from training.batches import without_tuner

    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    dataset = without_tuner(dataset)  # or some passes would wait for it at their end, whoever's
    batches = sum(1 for _ in dataset)

    def work():
        return float(model.fit(dataset.repeat(), steps_per_epoch=batches, verbose=0).history["loss"][0])

    return work


def padded(count, length):
    """Shuffled rows as most programs batch them: to the longest row of a batch, or all to one `length`."""
    import tensorflow as tf

    from keras_seq.packing import pack_start_end
    from training.pipelines import token_rows

    pairs, (source, target) = token_ids(count)
    asked = pack_start_end(token_rows(source, [a for a, _ in pairs], LIMIT - 1), None, source.end_token_id)
    told = token_rows(target, [b for _, b in pairs], LIMIT - 1)
    told = pack_start_end(told, target.start_token_id, target.end_token_id)

    def batch(asked, told):
        inputs = {
            "encoder_token_ids": asked,
            "encoder_padding_mask": tf.cast(asked > 0, tf.int32),
            "decoder_token_ids": told[:, :-1],
            "decoder_padding_mask": tf.cast(told[:, 1:] > 0, tf.int32),
        }
        return inputs, told[:, 1:], tf.cast(told[:, 1:] > 0, tf.float32)

    rows = tf.data.Dataset.from_tensor_slices((asked, told))
    shapes = ([length], [None if length is None else length + 1])
    rows = rows.map(lambda a, b: (tf.convert_to_tensor(a), tf.convert_to_tensor(b)))
    return rows.cache().shuffle(len(pairs), seed=0).padded_batch(ROWS, shapes).map(batch).prefetch(2)


# === The contestants ===


def ours(count):
    import keras_seq
    from training.pipelines import translation_pairs

    yield
    pairs, tokenizers = token_ids(count)
    batches = translation_pairs(pairs, *tokenizers, LIMIT, PLACES).prefetch(2)
    yield passes(our_model(), batches, keras_seq.TokenCrossentropy())


def our_model():
    import keras_seq

    size = dict(LADDER)
    vocabulary = size.pop("vocabulary_size")
    return keras_seq.Transformer(vocabulary, vocabulary, **size, share_embeddings=True, max_sequence_length=LIMIT)


def ours_padded(count, length=None):
    import keras_seq

    yield
    yield passes(our_model(), padded(count, length), keras_seq.TokenCrossentropy())


def keras_hub(count, length=None):
    import keras
    import keras_hub

    yield
    backbone = keras_hub.models.BartBackbone(**LADDER, max_sequence_length=LIMIT)
    model = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    yield passes(model, padded(count, length), loss)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1024)
    options = parser.parse_args()
    count = {"count": options.pairs}
    contestants = {
        "ours": (ours, count),
        "our model, padded_batch": (ours_padded, count),
        "KerasHub's BART, padded_batch": (keras_hub, count),
        "KerasHub's BART, one length": (keras_hub, {**count, "length": LIMIT - 1}),
    }
    pairs, _ = token_ids(options.pairs)
    sizes = [(len(a.split()) + 1, len(b.split()) + 1) for a, b in pairs]  # words are tokens, and an end each
    tokens = int(np.sum(sizes))
    readings = measure(contestants, options.rounds)
    for name, reading in readings.items():
        print(f"{name}: {tokens / reading.median:,.0f} real tokens/s")
    report("real tokens of Multi30k", readings, "ms/1,000 real tokens", tokens / 1000)


if __name__ == "__main__":
    main()
