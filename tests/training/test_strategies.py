"""Training on two devices ends in the weights of one device with the joint batch."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from training import grammar, run, strategies
from training.recipes import Recipe, RecipeError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Seven windows a batch: of two devices one has four, the other three and a row without weight.
RECIPE = {
    "architecture": "gpt",
    "corpus": "tinyshakespeare",
    "tokenizer": "char",
    "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 10, "intermediate_dim": 7, "dropout": 0.0},
    "max_sequence_length": 13,
    "tokens_per_batch": 91,
    "steps": 5,
    "steps_per_epoch": 3,
    "warmup_steps": 1,
    "learning_rate": 0.01,
    # Most gradients are clipped: the norm must be that of the sum.
    "clip_norm": 0.1,
    "checkpoint_steps": 4,
}
TWO_CPUS = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
# The first fit ends after its fifth step, behind the checkpoint of the fourth, which lies amid an epoch.
KILLED = """
import contextlib, json, os, sys
from training import run
from training.recipes import Recipe
class Killed(run.Progress):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.done == 5:
            raise KeyboardInterrupt
whole, run.Progress = run.Progress, Killed
out, strategy = json.loads(sys.argv[2])[0]
with contextlib.suppress(KeyboardInterrupt):
    run.fit(Recipe.from_dict(json.loads(sys.argv[1])), out, progress=False, strategy=strategy)
assert os.listdir(os.path.join(out, "checkpoints")) == ["step-4"]
run.Progress = whole
"""
KILLED_AT_ONCE = """
import os, signal
from training import run
class Killed(run.Progress):
    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.done == 5:
            os.kill(os.getpid(), signal.SIGKILL)
run.Progress = Killed
"""
FIT = """
import json, os, sys
from training import run
from training.recipes import Recipe
recipe = Recipe.from_dict(json.loads(sys.argv[1]))
for out, strategy in json.loads(sys.argv[2]):
    run.fit(recipe, out, os.path.exists(out), progress=False, strategy=strategy)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "tinyshakespeare").mkdir()
    # A tenth validates: 92 to 182 characters are seven whole windows, one batch.
    text = "\n".join(english for english, _ in grammar.sentence_pairs("train", 37, 2))[:1100]
    (folder / "tinyshakespeare" / "input.txt").write_text(text)
    return folder


def start(data, code, fits, **environment):
    environment = {"KERAS_SEQ_DATA": str(data), "TF_NUM_INTRAOP_THREADS": "1", **environment}
    arguments = [json.dumps(RECIPE), json.dumps([[str(out), strategy] for out, strategy in fits])]
    return subprocess.Popen(
        [sys.executable, "-c", code + FIT, *arguments],
        cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(*processes, code=0):
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), outputs


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The run on one device."""
    os.environ["KERAS_SEQ_DATA"], old = str(data), os.environ.get("KERAS_SEQ_DATA")
    try:
        return run.fit(Recipe.from_dict(RECIPE), tmp_path_factory.mktemp("runs") / "one", progress=False)
    finally:
        os.environ.pop("KERAS_SEQ_DATA")
        if old is not None:
            os.environ["KERAS_SEQ_DATA"] = old


def assert_the_same_run(folder, one):
    found = run.load_run(folder)
    for ours, theirs in zip(found.model.get_weights(), one.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    rows = [np.loadtxt(one / "history.csv", delimiter=",", skiprows=1) for one in (folder, one.folder)]
    np.testing.assert_allclose(*rows, rtol=1e-4)
    assert {path.name for path in folder.iterdir()} == {path.name for path in one.folder.iterdir()}


@pytest.mark.slow
def test_mirrored_on_two_cpus_interrupted_and_resumed_equals_one_without_a_stop(data, one, tmp_path):
    finish(start(data, TWO_CPUS + KILLED, [(tmp_path / "two", "mirrored")]))
    assert_the_same_run(tmp_path / "two", one)


@pytest.fixture(scope="module")
def start_two(data, free_port):
    """start_two(code, *folders): two workers of one cluster, begun."""

    def begin(code, *folders):
        cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
        configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
        return [start(data, code, [(folder, "multiworker")], TF_CONFIG=text) for folder, text in zip(folders, configs)]

    return begin


@pytest.mark.slow
def test_two_processes_equal_one_and_only_the_first_writes(start_two, one, tmp_path):
    finish(*start_two("", tmp_path / "first", tmp_path / "second"))
    assert_the_same_run(tmp_path / "first", one)
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
def test_two_processes_killed_amid_an_epoch_and_resumed_equal_one_without_a_stop(start_two, one, tmp_path):
    folder = tmp_path / "run"
    first, second = start_two(KILLED_AT_ONCE, folder, folder)
    finish(first, code=-signal.SIGKILL)
    second.kill()  # where the end of its sums came too late for it, it waits for the first
    second.communicate()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-4"]
    finish(*start_two("", folder, folder))
    assert_the_same_run(folder, one)


@pytest.mark.slow
def test_two_devices_of_jax_equal_one(data, tmp_path):
    fits = [(tmp_path / "one", None), (tmp_path / "two", "mirrored")]
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    # Two devices on fewer cores wait for one another, and XLA gives up: one step at a time.
    finish(start(data, "", fits, KERAS_BACKEND="jax", XLA_FLAGS=flags, JAX_CPU_ENABLE_ASYNC_DISPATCH="0"))
    assert_the_same_run(tmp_path / "two", run.load_run(tmp_path / "one"))


# ---- Without a process -----------------------------------------------------------------------------------------------


def test_rows_are_filled_to_a_multiple_with_rows_of_no_weight():
    ids = np.arange(6, dtype="int32").reshape(3, 2)
    inputs, labels, weights = strategies.filled(({"token_ids": ids}, ids + 1, np.ones((3, 2), "float32")), 5)
    assert inputs["token_ids"].numpy().tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert labels.numpy().tolist() == (inputs["token_ids"].numpy() + 1).tolist()
    assert weights.numpy().tolist() == [[1, 1]] * 3 + [[0, 0]] * 2


def test_a_full_batch_stays_as_it_is():
    batch = ({"token_ids": np.ones((4, 3), "int32")}, {"label": np.arange(4)}, {"label": np.ones(4, "float32")})
    for ours, theirs in zip(tf.nest.flatten(strategies.filled(batch, 2)), tf.nest.flatten(batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)


WORKERS = {"worker": ["a:1", "b:2"]}
BAD = [
    "",
    "{",
    "[]",
    json.dumps({"cluster": WORKERS}),
    json.dumps({"cluster": WORKERS, "task": {"type": "worker", "index": 2}}),
    json.dumps({"cluster": WORKERS, "task": {"type": "chief", "index": 0}}),
]


@pytest.mark.parametrize("text", BAD)
def test_multiworker_without_a_place_in_tf_config_says_what_it_needs(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"multiworker needs TF_CONFIG=.*, got TF_CONFIG="):
        strategies.find("multiworker")


def test_the_chief_comes_before_the_workers(monkeypatch):
    def rank(kind, index):
        cluster = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        return strategies._rank()

    assert [rank("chief", 0), rank("worker", 0), rank("worker", 1)] == [0, 1, 2]


def test_an_unknown_strategy_names_those_there_are():
    with pytest.raises(ValueError, match=r"--strategy needs one of .*mirrored.*, got 'tpu'"):
        strategies.find("tpu")


def test_a_process_has_one_mirrored_strategy_however_often_it_fits():
    """With a second one TensorFlow takes its sums for those of the first: "Shape mismatch in the collective"."""
    assert strategies.find("mirrored").strategy is strategies.find("mirrored").strategy


@pytest.mark.parametrize("change", [{"gradient_accumulation": 2}, {"dtype": "mixed_float16"}])
def test_what_replicas_cannot_train_is_refused_before_anything_is_written(tmp_path, change):
    recipe = Recipe.from_dict({**RECIPE, **change})
    with pytest.raises(RecipeError, match="--strategy needs gradient_accumulation=1"):
        run.fit(recipe, tmp_path / "run", strategy="mirrored")
    assert not (tmp_path / "run").exists()


def test_later_workers_write_into_a_folder_that_goes_away_and_resume_from_the_runs(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    with strategies.writable(tmp_path / "run", 0, True) as folder:
        assert folder == tmp_path / "run"
    with strategies.writable(tmp_path / "run", 1, True) as folder:
        assert folder != tmp_path / "run" and (folder / "recipe.json").read_text() == "{}"
        (folder / "history.csv").write_text("")
    with strategies.writable(tmp_path / "run", 1, False) as fresh:
        assert not fresh.exists()
    assert not folder.exists() and [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]
