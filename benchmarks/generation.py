"""Greedy generation, tokens per second: ours against KerasHub, transformers and CTranslate2, with the same sizes.

    python -m benchmarks.generation [--model gpt|transformer] [--batch 1 8] [--rounds 7]

Ours, transformers and CTranslate2 hold the same weights, and their tokens are compared.
"""

import argparse
import os
import sys
import tempfile

import numpy as np

from benchmarks.turns import FLOOR, measure, report

PROMPT, NEW = 32, 64
HUB_WEIGHTS = "keras_hub.weights.h5"
SIZES = {
    # GPT-2 small.
    "gpt": {
        "vocabulary_size": 50257, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072,
        "max_sequence_length": 1024,
    },
    # Vaswani base, with a vocabulary of the usual size.
    "transformer": {
        "vocabulary_size": 32000, "num_layers": 6, "num_heads": 8, "hidden_dim": 512, "intermediate_dim": 2048,
        "max_sequence_length": 512,
    },
}  # fmt: skip


def texts(model, batch):
    return np.random.default_rng(0).integers(10, SIZES[model]["vocabulary_size"] - 1, (batch, PROMPT)).astype("int32")


def write_checkpoint(model, folder):
    """One random model in Hugging Face's form, so that all have the same weights; one of KerasHub's in its own form."""
    import keras_seq

    size = dict(SIZES[model])
    if model == "gpt":
        built = keras_seq.GPT(**size, dropout=0.0)
    else:
        vocabulary = size.pop("vocabulary_size")
        built = keras_seq.Transformer(vocabulary, vocabulary, **size, dropout=0.0, share_embeddings=True)
    keras_seq.save_checkpoint(built, folder)
    # It too is to read a file: drawing weights in place takes less memory.
    _keras_hub(model).save_weights(os.path.join(folder, HUB_WEIGHTS))


def _keras_hub(model):
    import keras_hub

    if model == "gpt":
        backbone = keras_hub.models.GPT2Backbone(**SIZES[model], dropout=0.0)
        return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    backbone = keras_hub.models.BartBackbone(**SIZES[model], dropout=0.0)
    return keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None)


# === The contestants ===


def ours(model, batch, folder, dtype="float32"):
    import keras

    import keras_seq

    yield
    keras.config.set_dtype_policy(dtype)
    built = keras_seq.load_checkpoint(folder)
    ids = texts(model, batch)
    if model == "gpt":
        arguments = ({"token_ids": ids, "padding_mask": np.ones_like(ids)}, NEW, -1)
    else:
        arguments = ({"encoder_token_ids": ids, "encoder_padding_mask": np.ones_like(ids)}, NEW, -1, 0)
    yield lambda: built.generate(*arguments)["token_ids"]


def keras_hub(model, batch, folder, dtype="float32", jit_compile=False):
    import keras
    import keras_hub  # noqa: F401 - before the yield: an import is no part of the memory

    yield
    keras.config.set_dtype_policy(dtype)
    built = _keras_hub(model)
    built.load_weights(os.path.join(folder, HUB_WEIGHTS))
    ids = np.pad(texts(model, batch), ((0, 0), (0, NEW)))
    mask = np.pad(np.ones((batch, PROMPT), "int32"), ((0, 0), (0, NEW)))
    if model == "gpt":
        inputs = {"token_ids": ids, "padding_mask": mask}
    else:
        first = np.eye(1, NEW + 1, dtype="int32").repeat(batch, axis=0)
        inputs = {
            "encoder_token_ids": ids[:, :PROMPT], "encoder_padding_mask": mask[:, :PROMPT],
            "decoder_token_ids": first, "decoder_padding_mask": first,
        }  # fmt: skip
    built.compile(sampler="greedy", jit_compile=jit_compile)
    # Its answer holds the prompt, and its weights are others: nothing to compare.
    yield lambda: built.generate(inputs, stop_token_ids=None) and None


def transformers(model, batch, folder, dtype="float32"):
    import torch
    import transformers as hf

    yield
    kind = hf.GPT2LMHeadModel if model == "gpt" else hf.MarianMTModel
    built = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor(texts(model, batch)).long()
    skip = PROMPT if model == "gpt" else 1
    built.generation_config.eos_token_id = None
    built.generation_config.forced_eos_token_id = None

    def work():
        with torch.inference_mode():
            written = built.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, num_beams=1,
                pad_token_id=0,
            )  # fmt: skip
        return written[:, skip:].numpy()

    yield work


def ctranslate2(model, batch, folder, compute_type="float32"):
    import ctranslate2 as ct2
    import transformers as hf
    from ctranslate2.converters import transformers as converters

    yield
    vocabulary = [f"t{i}" for i in range(SIZES[model]["vocabulary_size"])]
    kind, loader = (
        (hf.GPT2LMHeadModel, converters.GPT2Loader) if model == "gpt" else (hf.MarianMTModel, converters.MarianMTLoader)
    )
    with tempfile.TemporaryDirectory() as converted:
        spec = loader().get_model_spec(kind.from_pretrained(folder))
        if model == "gpt":
            spec.register_vocabulary(vocabulary)
            spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = "t0"
        else:
            # The converter takes the last row for Marian's padding token, and away: the work is the same without it.
            spec.register_source_vocabulary(vocabulary[:-1])
            spec.register_target_vocabulary(vocabulary[:-1])
            spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = "t0"
            spec.config.decoder_start_token = "t0"
        spec.validate()
        spec.optimize(quantization=None if compute_type == "float32" else compute_type)
        spec.save(converted)
        del spec
        threads = {"inter_threads": 1, "intra_threads": os.cpu_count()}
        run = (ct2.Generator if model == "gpt" else ct2.Translator)(converted, compute_type=compute_type, **threads)
    prompts = [[vocabulary[i] for i in row] for row in texts(model, batch)]

    def work():
        if model == "gpt":
            answers = run.generate_batch(
                prompts, max_length=NEW, min_length=NEW, sampling_topk=1, include_prompt_in_result=False, end_token=[]
            )
            return np.array([answer.sequences_ids[0] for answer in answers])
        answers = run.translate_batch(
            prompts, beam_size=1, max_decoding_length=NEW, min_decoding_length=NEW, max_input_length=0, end_token=[]
        )
        return np.array([[int(token[1:]) for token in answer.hypotheses[0]] for answer in answers])

    yield work


def matrix_products(model, batch, folder):
    """A step's matrix products alone, as TensorFlow does them: below their time no float32 step of ours can come."""
    import tensorflow as tf

    yield
    size = SIZES[model]
    d, inner = size["hidden_dim"], size["intermediate_dim"]
    # Queries, keys, values and outputs of self-attention; queries and outputs of cross-attention.
    squares = [(d, d)] * (4 if model == "gpt" else 6)
    layers = [
        [tf.random.normal(shape, stddev=shape[0] ** -0.5) for shape in (*squares, (d, inner), (inner, d))]
        for _ in range(size["num_layers"])
    ]
    table = tf.random.normal((size["vocabulary_size"], d), stddev=d**-0.5)

    @tf.function
    def run(x):
        def step(i, x):
            for layer in layers:
                for kernel in layer:
                    x = tf.matmul(x, kernel)
            return i + 1, x + 1e-9 * tf.reduce_max(tf.matmul(table, x, transpose_b=True))

        return tf.while_loop(lambda i, x: i < NEW, step, (0, x))[1]

    x = tf.random.normal((batch, d))

    def work():
        run(x).numpy()

    yield work


def agreement(readings, float32):
    """How many of the tokens of each are those of ours in float32, where the weights are the same."""
    expected = readings[float32].answer
    lines = []
    for name, reading in readings.items():
        if name != float32 and reading.answer is not None:
            same = np.mean([row_a == row_b for a, b in zip(reading.answer, expected) for row_a, row_b in zip(a, b)])
            lines.append(f"tokens of {name} that ours in float32 writes: {same:.1%}")
    return "\n".join(lines)


PLAIN = {
    "ours, plain graph": (ours, {}),
    "KerasHub, plain graph": (keras_hub, {}),
    "transformers": (transformers, {}),
    "CTranslate2": (ctranslate2, {}),
    FLOOR: (matrix_products, {}),
}
BEST = {
    "ours, bfloat16": (ours, {"dtype": "bfloat16"}),
    "ours, float32": (ours, {}),
    "KerasHub, bfloat16": (keras_hub, {"dtype": "bfloat16"}),
    "KerasHub, XLA": (keras_hub, {"jit_compile": True}),
    "transformers, bfloat16": (transformers, {"dtype": "bfloat16"}),
    "CTranslate2, int8": (ctranslate2, {"compute_type": "int8"}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--best", action="store_true", help="each at its best instead of plain float32")
    options = parser.parse_args()
    for model in options.model:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(model, folder)
            for batch in options.batch:
                common = {"model": model, "batch": batch, "folder": folder}
                chosen = BEST if options.best else PLAIN
                contestants = {name: (function, {**common, **more}) for name, (function, more) in chosen.items()}
                readings = measure(contestants, options.rounds)
                title = f"generation {model}, batch {batch}, {PROMPT} tokens read, {NEW} written" + (
                    ", best" if options.best else ""
                )
                report(title, readings, "ms/step", NEW)
                print(agreement(readings, "ours, float32" if options.best else "ours, plain graph"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
