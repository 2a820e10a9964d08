"""A training step (forward, backward, Adam): ours against KerasHub, keras.layers, transformers and torch, same sizes.

    python -m benchmarks.training [--model gpt bert transformer seq2seq] [--rounds 7] [--best]

Every batch is full: no padding, which ours would be faster at by the buckets of its pipelines.
"""

import argparse
import sys

import numpy as np

from benchmarks.turns import FLOOR, measure, report

STEPS = 3
BLOCKS = {"num_layers": 4, "num_heads": 8, "hidden_dim": 256, "intermediate_dim": 1024, "vocabulary_size": 8000}
LADDER = {"num_layers": 3, "num_heads": 8, "hidden_dim": 256, "intermediate_dim": 512, "vocabulary_size": 8000}
RECURRENT = {"vocabulary": 8000, "embedding": 256, "hidden": 512, "layers": 2}
ROWS = {"gpt": (16, 128), "bert": (16, 128), "transformer": (64, 24), "seq2seq": (128, 16)}
MASKED = 20


def ids(model, seed=0):
    return np.random.default_rng(seed).integers(1, 8000, ROWS[model]).astype("int32")


def ones(model):
    return np.ones(ROWS[model], "int32")


def places(model):
    random = np.random.default_rng(1)
    rows, length = ROWS[model]
    return np.stack([random.permutation(length)[:MASKED] for _ in range(rows)]).astype("int32")


def keras_steps(model, loss, inputs, targets, jit_compile, weights=None):
    """The work of a Keras model: a few steps by train_on_batch."""
    import keras

    model.compile(keras.optimizers.Adam(1e-3), loss=loss, jit_compile=jit_compile)

    def work():
        for _ in range(STEPS):
            loss = model.train_on_batch(inputs, targets, sample_weight=weights)
        return float(np.ravel(loss)[0])

    return work


def torch_steps(model, loss_of, autocast=False):
    import torch

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def work():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of()
            loss.backward()
            optimizer.step()
        return loss.item()

    return work


# === The contestants ===


def ours(model, dtype="float32", jit_compile=False):
    import keras

    import keras_seq

    yield
    keras.config.set_dtype_policy(dtype)
    loss = keras_seq.TokenCrossentropy()
    text = {"token_ids": ids(model), "padding_mask": ones(model)}
    pair = {
        "encoder_token_ids": ids(model), "encoder_padding_mask": ones(model),
        "decoder_token_ids": ids(model, 1), "decoder_padding_mask": ones(model),
    }  # fmt: skip
    if model == "gpt":
        yield keras_steps(keras_seq.GPT(**BLOCKS, max_sequence_length=128), loss, text, ids(model, 1), jit_compile)
    elif model == "bert":
        built = keras_seq.BERTForPreTraining(keras_seq.BERT(**BLOCKS, max_sequence_length=128))
        inputs = {**text, "segment_ids": 0 * ids(model), "mask_positions": places(model)}
        targets = {
            "masked_lm": np.take_along_axis(ids(model, 1), places(model), 1),
            "next_sentence": ids(model)[:, 0] % 2,
        }
        losses = {"masked_lm": loss, "next_sentence": keras_seq.TokenCrossentropy()}
        yield keras_steps(built, losses, inputs, targets, jit_compile)
    elif model == "transformer":
        size = dict(LADDER)
        vocabulary = size.pop("vocabulary_size")
        built = keras_seq.Transformer(vocabulary, vocabulary, **size, share_embeddings=True, max_sequence_length=64)
        yield keras_steps(built, loss, pair, ids(model, 2), jit_compile)
    else:
        size = RECURRENT
        built = keras_seq.Seq2Seq(size["vocabulary"], size["vocabulary"], size["hidden"], size["embedding"], 2)
        yield keras_steps(built, loss, pair, ids(model, 2), jit_compile)


def keras_hub(model, dtype="float32", jit_compile=False):
    import keras
    import keras_hub

    yield
    keras.config.set_dtype_policy(dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    text = {"token_ids": ids(model), "padding_mask": ones(model)}
    if model == "gpt":
        backbone = keras_hub.models.GPT2Backbone(**BLOCKS, max_sequence_length=128)
        built = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
        yield keras_steps(built, loss, text, ids(model, 1), jit_compile)
    elif model == "bert":
        backbone = keras_hub.models.BertBackbone(**BLOCKS, max_sequence_length=128)
        built = keras_hub.models.BertMaskedLM(backbone, preprocessor=None)
        inputs = {**text, "segment_ids": 0 * ids(model), "mask_positions": places(model)}
        yield keras_steps(built, loss, inputs, np.take_along_axis(ids(model, 1), places(model), 1), jit_compile)
    else:
        backbone = keras_hub.models.BartBackbone(**LADDER, max_sequence_length=64)
        built = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None)
        inputs = {
            "encoder_token_ids": ids(model), "encoder_padding_mask": ones(model),
            "decoder_token_ids": ids(model, 1), "decoder_padding_mask": ones(model),
        }  # fmt: skip
        yield keras_steps(built, loss, inputs, ids(model, 2), jit_compile)


def keras_layers(model, dtype="float32", jit_compile=False, unroll=False, mask_zero=True):
    """The recurrent model as a Keras user writes it: Embedding, stacked LSTMs, Dense.

    With `mask_zero` padding of the source changes nothing, as in ours; without, it is read like text.
    """
    import keras

    yield
    keras.config.set_dtype_policy(dtype)
    size = RECURRENT

    def lstm(**options):
        return keras.layers.LSTM(size["hidden"], return_sequences=True, unroll=unroll, **options)

    source, target = (keras.Input((ROWS[model][1],), dtype="int32") for _ in range(2))
    x = keras.layers.Embedding(size["vocabulary"], size["embedding"], mask_zero=mask_zero)(source)
    states = []
    for _ in range(size["layers"]):
        x, *state = lstm(return_state=True)(x)
        states.append(state)
    y = keras.layers.Embedding(size["vocabulary"], size["embedding"])(target)
    for state in states:
        y = lstm()(y, initial_state=state)
    built = keras.Model([source, target], keras.layers.Dense(size["vocabulary"], dtype="float32")(y))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    yield keras_steps(built, loss, [ids(model), ids(model, 1)], ids(model, 2), jit_compile)


def matrix_products(model):
    """A step's matrix products alone, forward and backward: below their time no float32 step of this model can come."""
    import tensorflow as tf

    yield
    rows, steps = ROWS[model]
    size, tokens = RECURRENT, rows * steps
    units = size["hidden"]
    widths = [size["embedding"], *[units] * (size["layers"] - 1)] * 2  # of both stacks' inputs
    x = {width: tf.random.normal((tokens, width)) for width in {*widths, units}}
    h = tf.random.normal((rows, units))
    kernels = [tf.random.normal((width, 4 * units)) for width in (*widths, units)]
    table = tf.random.normal((units, size["vocabulary"]))
    gradients = [tf.random.normal((tokens, 4 * units)) for _ in widths]

    def three(x, w):
        """Forward, and the gradients to both."""
        y = tf.matmul(x, w)
        return y[0, 0] + tf.matmul(y, w, transpose_b=True)[0, 0] + tf.matmul(x, y, transpose_a=True)[0, 0]

    @tf.function
    def step(h):
        total = three(x[units], table) + sum(three(x[width], w) for width, w in zip(widths, kernels))
        for gradient in gradients:
            for _ in range(steps):
                gates = tf.matmul(h, kernels[-1])
                h = 0.01 * tf.matmul(gates, kernels[-1], transpose_b=True)
            # The recurrent kernel's gradient, of all steps at once.
            total += tf.matmul(x[units], gradient, transpose_a=True)[0, 0]
        return total + h[0, 0]

    def work():
        for _ in range(STEPS):
            total = step(h)
        return float(total)

    yield work


def transformers(model, autocast=False):
    import torch
    import transformers as hf

    yield
    source, target, told = (torch.tensor(ids(model, seed)).long() for seed in range(3))
    size = LADDER if model == "transformer" else BLOCKS
    width, layers, heads, inner = (size[k] for k in ("hidden_dim", "num_layers", "num_heads", "intermediate_dim"))
    if model == "gpt":
        config = hf.GPT2Config(
            vocab_size=8000, n_positions=128, n_embd=width, n_layer=layers, n_head=heads, n_inner=inner,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        built = hf.GPT2LMHeadModel(config).train()
        yield torch_steps(built, lambda: built(source, labels=target).loss, autocast)
    elif model == "bert":
        built = hf.BertForPreTraining(hf.BertConfig(
            vocab_size=8000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=inner, max_position_embeddings=128,
        )).train()  # fmt: skip
        # It makes logits of every position; only the masked ones count.
        labels = torch.full_like(source, -100).scatter(1, torch.tensor(places(model)).long(), target)
        following = source[:, 0] % 2
        yield torch_steps(built, lambda: built(source, labels=labels, next_sentence_label=following).loss, autocast)
    else:
        built = hf.MarianMTModel(hf.MarianConfig(
            vocab_size=8000, d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
            decoder_attention_heads=heads, encoder_ffn_dim=inner, decoder_ffn_dim=inner, max_position_embeddings=64,
            pad_token_id=0, decoder_start_token_id=0, activation_function="relu",
        )).train()  # fmt: skip
        yield torch_steps(built, lambda: built(source, decoder_input_ids=target, labels=told).loss, autocast)


def torch_layers(model, autocast=False):
    import torch

    yield
    size = RECURRENT

    class Translator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = (torch.nn.Embedding(size["vocabulary"], size["embedding"]) for _ in range(2))
            self.encoder, self.decoder = (
                torch.nn.LSTM(size["embedding"], size["hidden"], size["layers"], batch_first=True) for _ in range(2)
            )
            self.logits = torch.nn.Linear(size["hidden"], size["vocabulary"])

        def forward(self, source, target):
            _, state = self.encoder(self.source(source))
            return self.logits(self.decoder(self.target(target), state)[0])

    built = Translator()
    source, target, told = (torch.tensor(ids(model, seed)).long() for seed in range(3))

    def loss():
        return torch.nn.functional.cross_entropy(built(source, target).flatten(0, 1), told.flatten())

    yield torch_steps(built, loss, autocast)


BLOCK_PLAIN = {
    "ours, plain graph": (ours, {}),
    "KerasHub, plain graph": (keras_hub, {}),
    "transformers": (transformers, {}),
}
BLOCK_BEST = {
    "ours, mixed bfloat16": (ours, {"dtype": "mixed_bfloat16"}),
    "ours, XLA": (ours, {"jit_compile": True}),
    "ours, XLA, mixed bfloat16": (ours, {"dtype": "mixed_bfloat16", "jit_compile": True}),
    "KerasHub, mixed bfloat16": (keras_hub, {"dtype": "mixed_bfloat16"}),
    "KerasHub, XLA": (keras_hub, {"jit_compile": True}),
    "KerasHub, XLA, mixed bfloat16": (keras_hub, {"dtype": "mixed_bfloat16", "jit_compile": True}),
    "transformers, autocast to bfloat16": (transformers, {"autocast": True}),
}
RECURRENT_PLAIN = {
    "ours, plain graph": (ours, {}),
    "keras.layers.LSTM, plain graph": (keras_layers, {}),
    "keras.layers.LSTM without a mask, plain graph": (keras_layers, {"mask_zero": False}),
    "torch.nn.LSTM, not packed": (torch_layers, {}),
    FLOOR: (matrix_products, {}),
}
RECURRENT_BEST = {
    "ours, mixed bfloat16": (ours, {"dtype": "mixed_bfloat16"}),
    "ours, XLA": (ours, {"jit_compile": True}),
    "keras.layers.LSTM, mixed bfloat16": (keras_layers, {"dtype": "mixed_bfloat16"}),
    "keras.layers.LSTM, XLA": (keras_layers, {"jit_compile": True}),
    "keras.layers.LSTM, unrolled": (keras_layers, {"unroll": True}),
    "keras.layers.LSTM without a mask, mixed bfloat16": (keras_layers, {"dtype": "mixed_bfloat16", "mask_zero": False}),
    "torch.nn.LSTM, not packed, autocast to bfloat16": (torch_layers, {"autocast": True}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--best", action="store_true", help="each at its best instead of plain float32")
    options = parser.parse_args()
    for model in options.model:
        if model == "seq2seq":
            chosen = RECURRENT_BEST if options.best else RECURRENT_PLAIN
        else:
            chosen = BLOCK_BEST if options.best else BLOCK_PLAIN
        contestants = {name: (function, {"model": model, **more}) for name, (function, more) in chosen.items()}
        readings = measure(contestants, options.rounds)
        rows, length = ROWS[model]
        title = f"training {model}, batch {rows} x {length}" + (", best" if options.best else "")
        report(title, readings, "ms/step", STEPS)


if __name__ == "__main__":
    sys.exit(main())
