"""keras_seq.cells against Keras' own cells, with the same weights."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_seq.cells import CELLS, GRUCell, LSTMCell

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 2)).astype("float32")
KERAS_CELLS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_equals_keras_cell(cell, randomized):
    ours, theirs = CELLS[cell](11), KERAS_CELLS[cell](11)
    state = [RANDOM.normal(size=(3, 11)).astype("float32") for _ in range(ours.num_states)]
    ours(X, state)
    theirs.build((3, 2))
    theirs.set_weights(randomized(ours).get_weights())
    for one, other in zip(ours(X, state), theirs(X, state)[1]):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_made_in_bfloat16_too(cell):
    ours = CELLS[cell](5, dtype="bfloat16")
    new = ours(ops.cast(X, "bfloat16"), [ops.zeros((3, 5), "bfloat16")] * ours.num_states)
    assert keras.backend.standardize_dtype(new[0].dtype) == "bfloat16"
    kernel = ops.convert_to_numpy(ops.cast(ours.recurrent_kernel, "float32"))
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(5), atol=0.03)


def test_the_forget_gate_starts_open():
    cell = LSTMCell(3)
    cell.build((None, 2))
    np.testing.assert_array_equal(cell.bias, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("cell", [LSTMCell(3), GRUCell(2)])
def test_config_round_trip(cell):
    assert type(cell).from_config(cell.get_config()).get_config() == cell.get_config()


@pytest.mark.parametrize("cell", [LSTMCell, GRUCell])
def test_a_cell_without_units_is_refused(cell):
    with pytest.raises(ValueError, match=f"{cell.__name__} needs units >= 1, got units=0."):
        cell(0)
