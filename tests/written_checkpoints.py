"""The checkpoints that transformers wrote (tests/parity/write_fixtures.py): kinds, and what it answered with each."""

import functools
import pathlib
import shutil
import tempfile

import numpy as np

import keras_seq
from keras_seq import load_checkpoint

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "checkpoints"
KINDS = {
    "bert": keras_seq.BERT,
    "bert_bfloat16": keras_seq.BERT,
    "bert_pre_training": keras_seq.BERTForPreTraining,
    "bert_masked_lm": keras_seq.BERTForPreTraining,
    "bert_next_sentence": keras_seq.BERTForPreTraining,
    "bert_classifier": keras_seq.BERTClassifier,
    "bert_tokens": keras_seq.BERTTokenClassifier,
    "bert_spans": keras_seq.BERTSpanClassifier,
    "bert_choice": keras_seq.BERTMultipleChoice,
    "gpt2": keras_seq.GPT,
    "gpt2_body": keras_seq.GPT,
    "gpt2_sharded": keras_seq.GPT,
    "gpt1": keras_seq.GPT,
    "marian": keras_seq.Transformer,
    "marian_separate": keras_seq.Transformer,
}


@functools.cache
def loaded(kind):
    """The model of a fixture, once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return load_checkpoint(shutil.copytree(FOLDER / kind, pathlib.Path(folder) / kind))


def expected(kind, part):
    arrays = np.load(FOLDER / kind / "expected.npz")
    return {name.split("/")[1]: arrays[name] for name in arrays if name.startswith(part + "/")}


def copied(kind, folder):
    """A fixture's folder that may be written to, below another."""
    return pathlib.Path(shutil.copytree(FOLDER / kind, folder / kind))
