"""Tiny runs, each fit once a session: of the six architectures on the built-in corpus, and of recipes on real data."""

import os
from types import SimpleNamespace

import pytest

from training.corpora import DATA


def pytest_configure(config):
    # h5py reads a Keras variable through NumPy 2's new argument, which Keras' variables do not have yet.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )


BLOCKS = {"num_layers": 1, "num_heads": 2, "hidden_dim": 26, "intermediate_dim": 29, "dropout": 0.1}
RECURRENT = {"hidden_dim": 23, "embedding_dim": 19, "cell": "gru", "dropout": 0.1}

# architecture -> corpus, tokenizer, model, further keys. All have dropout: a resumed run goes on with the same random
# numbers.
MEANS = {"gradient_accumulation": 2, "ema_momentum": 0.7, "checkpoint_steps": 4}
TINY = {
    "seq2seq": ("grammar-pairs", "word", RECURRENT, {**MEANS, "early_stopping": 2}),
    "attention": ("grammar-pairs", "word", RECURRENT, {"average_checkpoints": 2, "checkpoint_steps": 20}),
    "transformer": ("grammar-pairs", "word", BLOCKS, {"early_stopping": 2, "label_smoothing": 0.1}),
    "bert": ("grammar-documents", "wordpiece", BLOCKS, {}),
    "bert-classify": ("grammar-labelled", "wordpiece", {}, {}),
    "gpt": ("grammar-lines", "bpe", BLOCKS, {}),
}

BLOCKS_OF_REAL = {f"model.{name}": value for name, value in BLOCKS.items()}
REAL = {
    # Rotary positions need an even number of channels a head.
    "multi30k-transformer": {
        "train_examples": 1511,
        "evaluate_examples": 31,
        "steps": 41,
        "ema_momentum": None,
        "model.hidden_dim": 28,
    },
    "shakespeare-gpt": {"train_examples": 100_003, "steps": 41},
    "nsmc-bert": {"train_examples": 23, "evaluate_examples": 2, "steps": 41, "max_sequence_length": 53},
}
SHORT = {"vocabulary_size": 1009, "steps_per_epoch": 20, "tokens_per_batch": 499, "learning_rate": 0.01}


def tiny_recipe(architecture, **changes):
    """22 steps in two epochs, the second shorter, a second or two."""
    from training.recipes import Recipe

    corpus, tokenizer, model, means = TINY[architecture]
    values = {
        "corpus": corpus,
        "model": dict(model),
        "tokenizer": tokenizer,
        "vocabulary_size": 701,
        "max_sequence_length": 47,
        "train_examples": 211,
        "evaluate_examples": 23,
        "steps": 22,
        "steps_per_epoch": 13,
        "tokens_per_batch": 331,
        "learning_rate": 0.01,
        "warmup_steps": 3,
        "max_new_tokens": 7,
        **means,
    }
    return Recipe(architecture, **{**values, **changes})


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A function: architecture -> its tiny Run, fit once a session. Do not write into its folder."""
    from training import run

    kept = {}

    def fit(architecture):
        if architecture not in kept:
            start = str(fit("bert").folder) if architecture == "bert-classify" else None
            folder = tmp_path_factory.mktemp("runs") / f"tiny-{architecture}"
            kept[architecture] = run.fit(tiny_recipe(architecture, start_from=start), folder, progress=False)
        return kept[architecture]

    return fit


@pytest.fixture(scope="session")
def needs_data():
    """Skips, with the reason, where a file of the real data is absent."""

    def check(name):
        from training.corpora import data_file

        try:
            data_file(name)
        except FileNotFoundError as error:
            pytest.skip(f"{error} ({DATA}={os.environ.get(DATA)!r})")

    return check


@pytest.fixture(scope="session")
def real_run(tmp_path_factory, needs_data):
    """A function: name of one of REAL -> its Run, a small model fit for 41 steps, once a session."""
    files = {
        "multi30k-transformer": "multi30k/train.de.gz",
        "shakespeare-gpt": "tinyshakespeare/input.txt",
        "nsmc-bert": "nsmc/unlabelled.txt.gz",
    }
    kept = {}

    def fit(name):
        needs_data(files[name])
        if name not in kept:
            from training import run
            from training.recipes import RECIPES

            recipe = RECIPES[name].replace(warmup_steps=5, **{**SHORT, **BLOCKS_OF_REAL, **REAL[name]})
            kept[name] = run.fit(recipe, tmp_path_factory.mktemp("runs") / name, progress=False)
        return kept[name]

    return fit


@pytest.fixture(scope="session")
def conftest():
    """This file's `tiny_recipe`, for tests that need a recipe of their own: with no packages under tests, a file of
    tests cannot import another."""
    return SimpleNamespace(tiny_recipe=tiny_recipe, BLOCKS=BLOCKS)
