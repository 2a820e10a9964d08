"""Weights of 16 bits in an export: the answers, the size, and what is told of the loss."""

import json
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_models import build

from serving import reload
from serving.__main__ import main
from serving.answers import answers_for
from serving.check import check
from serving.export import _function
from serving.signatures import SIGNATURES
from serving.weights import StoredWeights, loss, report

TEXTS = ["the old cook", "", "the cats are not good ?"]
ASKED = {"seq2seq": "explain", "gpt": "complete"}


def round_weights(model, dtype):
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(tf.cast(tf.cast(variable.value, dtype), "float32"))


def operations(graph):
    """All operations of a graph and of the loops and branches in it."""
    yield from graph.get_operations()
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            yield from operations(inner)


@pytest.mark.parametrize(("name", "dtype"), [("seq2seq", "float16"), ("gpt", "bfloat16")])
def test_answers_of_stored_weights_are_those_of_the_model_with_rounded_weights(name, dtype):
    given = build(name)
    answers = answers_for(**given, max_new_tokens=5)
    signature = SIGNATURES[answers.kind][ASKED[name]]
    before = [one.numpy() for one in given["model"].variables]
    with StoredWeights(given["model"], dtype):
        function = _function(answers, signature)
    told = function(text=tf.constant(TEXTS))
    for variable, value in zip(given["model"].variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)
    round_weights(given["model"], dtype)
    expected = getattr(answers, signature.function)(tf.constant(TEXTS))
    for output, value in zip(signature.outputs, expected):
        if value.dtype == tf.string:
            assert told[output].numpy().tolist() == value.numpy().tolist()
        else:
            np.testing.assert_allclose(told[output], value, atol=1e-5)
    reads = [one for one in operations(function.graph) if one.type == "ReadVariableOp"]
    assert {one.outputs[0].dtype.name for one in reads} == {dtype}
    assert len(reads) > 20
    # Where nothing was computed yet there is nothing to wait for: at the start of the graph and of its loop.
    assert len([one for one in reads if not one.control_inputs]) <= 2


def save_run(folder, given):
    """As `python -m training fit` leaves it."""
    folder.mkdir()
    given["model"].save(folder / "model.keras")
    given["tokenizer"].save(folder / "tokenizer")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in given["labels"]))
    (folder / "recipe.json").write_text(json.dumps({"architecture": "bert-classify", "max_new_tokens": 5}))
    return str(folder)


# Keras' own, when it saves a model.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_the_command_exports_in_16_bits_half_as_large_and_prints_what_that_costs(tmp_path, monkeypatch, capsys):
    given, place = build("classifier"), tmp_path / "exports" / "x" / "1"

    def in_this_process(command, **_):
        assert command[1:3] == ["-m", "serving.reload"]
        reload.main(*command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("serving.export.subprocess.run", in_this_process)
    run = save_run(tmp_path / "run", given)
    assert main(["export", run, str(place.parent), "--weights_dtype", "bfloat16"]) == 0
    assert check(place).problems == []
    stored = tf.train.list_variables(str(place / "variables" / "variables"))
    reader = tf.train.load_checkpoint(str(place / "variables" / "variables"))
    kept = [reader.get_tensor(name) for name, _ in stored if "OBJECT_GRAPH" not in name]
    floats = [one for one in kept if one.dtype.name != "int64"]
    assert {one.dtype.name for one in floats} == {"bfloat16"}
    parameters = given["model"].count_params()
    assert sum(one.size for one in floats) == parameters
    weights = json.loads((place / "assets.extra" / "keras_seq.json").read_text("utf-8"))["weights"]
    assert weights["bytes_saved"] == sum(one.nbytes for one in floats) == 2 * parameters
    assert sorted(weights["loss"]) == ["examples", "explain", "probabilities", "serving_default"]
    told = weights["loss"]["probabilities"]
    assert told["rows"] == 18
    assert 0 < told["largest_difference"]["probabilities"] < 0.1
    assert capsys.readouterr().out == f"{place}\n{report(weights)}\n"
    assert "  probabilities: 0 of 18 answers changed\n    probabilities: differs by up to " in report(weights)


def test_a_weight_that_is_not_finite_in_the_dtype_is_named():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="wide")])
    model.layers[0].bias.assign([1.0, -7e4, 2.0])
    StoredWeights(model, "bfloat16")
    with pytest.raises(ValueError, match=r"wide/bias is not finite as float16: it has values up to 7e\+04"):
        StoredWeights(model, "float16")
    with pytest.raises(ValueError, match=r"weights_dtype float32, bfloat16, float16, got 'int3'"):
        StoredWeights(model, "int3")


def test_the_loss_counts_changed_answers_and_measures_the_numbers_of_the_others():
    plain = {
        "tokens": tf.constant([["a", "b"], ["a", ""], ["a", "c"]]),
        "num_tokens": tf.constant([2, 1, 2]),
        "attention": tf.constant([[2.0, 3.0], [5.0, 0.0], [7.0, 11.0]]),
    }
    stored = {
        "tokens": tf.constant([["a", "b", ""], ["a", "b", "c"], ["a", "c", ""]]),
        "num_tokens": tf.constant([2, 3, 2]),
        "attention": tf.constant([[2.0, 3.5, 0.0], [9.0, 9.0, 9.0], [6.75, 11.0, 0.0]]),
    }
    assert loss(plain, stored) == {"rows": 3, "changed": 1, "largest_difference": {"attention": 0.5}}
    assert loss({"x": plain["num_tokens"]}, {"x": plain["num_tokens"] + [0, 0, 7]})["changed"] == 1
