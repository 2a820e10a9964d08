"""keras_seq.backend: what keras.ops lacks."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_seq import backend


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_a_python_loop(reverse):
    inputs = np.arange(1, 11, dtype="float32").reshape(5, 2)

    def step(state, x):
        state = (state[0] * 2 + x,)
        return state, (state[0], x[:1] - state[0][:1])

    state, outputs = backend.scan(step, (ops.zeros(2),), ops.convert_to_tensor(inputs), 2, reverse)
    expected, at = (np.zeros(2, "float32"),), {}
    for t in reversed(range(5)) if reverse else range(5):
        expected, at[t] = step(expected, inputs[t])
    np.testing.assert_allclose(state[0], expected[0])
    for i in range(2):
        np.testing.assert_allclose(outputs[i], np.stack([at[t][i] for t in range(5)]))


def test_write_at_replaces_one_place_a_row():
    cache = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype("float32")
    new = np.ones((3, 2, 1, 7), "float32")
    written = backend.write_at(ops.convert_to_tensor(cache), ops.convert_to_tensor(np.array([4, 0, 2], "int32")), new)
    for row, place in enumerate((4, 0, 2)):
        cache[row, :, place] = 1
    np.testing.assert_array_equal(written, cache)


def test_equal_empty_caches_overwritten_in_a_loop_stay_apart():
    def run(position):
        caches = tuple(backend.empty_cache((3, 2, 5, 7), "float32") for _ in range(2))

        def body(i, caches):
            with backend.overwriting():
                new = [ops.ones((3, 2, 1, 7)) * ops.cast(i + 10 * which, "float32") for which in range(2)]
                return i + 1, tuple(backend.write_at(*each) for each in zip(caches, (position + i,) * 2, new))

        return ops.while_loop(lambda i, _: i < 3, body, (ops.convert_to_tensor(0, "int32"), caches))[1]

    model = keras.Sequential([keras.Input((2,))])
    written = backend.compiled(run, model)(ops.convert_to_tensor(np.array([0, 2, 1], "int32")))
    for which, cache in enumerate(written):
        expected = np.zeros((3, 2, 5, 7), "float32")
        for row, place in enumerate((0, 2, 1)):
            for i in range(3):
                expected[row, :, place + i] = i + 10 * which
        np.testing.assert_array_equal(cache, expected)


@pytest.mark.parametrize("length", [2, 5, 11])
def test_fit_length_cuts_or_pads(length):
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype("float32")
    fitted = np.asarray(backend.fit_length(ops.convert_to_tensor(x), length))
    assert fitted.shape == (3, 2, length, 7)
    assert np.all(np.isfinite(fitted))
    np.testing.assert_array_equal(fitted[:, :, :5], x[:, :, :length])


def test_a_rows_random_numbers_are_its_seeds_alone():
    seeds = np.array([5, 0, 2**31 - 2, 5, 7], "int32")
    rows = np.asarray(backend.uniform_rows(ops.convert_to_tensor(seeds), 11))
    alone = [np.asarray(backend.uniform_rows(ops.convert_to_tensor(seeds[i : i + 1]), 11))[0] for i in range(5)]
    np.testing.assert_array_equal(rows, alone)
    np.testing.assert_array_equal(rows[0], rows[3])
    assert len(np.unique(rows)) == 4 * 11
    assert rows.dtype == np.float32 and rows.min() >= 0 and rows.max() < 1


def test_of_equal_logits_the_first_is_the_greatest():
    logits = np.array([[1, 5, 5, 0, 5], [-2, -2, -7, -2, -3], [-1, -1, -1, -1, 3]], "float32")
    greatest = np.asarray(backend.argmax(ops.convert_to_tensor(logits)))
    np.testing.assert_array_equal(greatest, logits.argmax(-1))
    assert greatest.dtype == np.int32


def test_random_numbers_are_uniform():
    numbers = np.asarray(backend.uniform_rows(ops.arange(503), 101)).ravel()
    counts, _ = np.histogram(numbers, 10, (0, 1))
    expected = numbers.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_a_compiled_function_reads_the_weights_anew():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    function = backend.compiled(lambda x: model(x) + 1, model)
    x = ops.convert_to_tensor(np.ones((5, 2), "float32"))
    for _ in range(2):
        np.testing.assert_allclose(function(x), model(x) + 1, atol=1e-6)
        model.set_weights([weight + 1 for weight in model.get_weights()])


def test_another_backend_is_refused_by_name():
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, "-c", "import keras_seq"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: keras_seq needs KERAS_BACKEND in ('tensorflow', 'jax'), got 'numpy'." in done.stderr
