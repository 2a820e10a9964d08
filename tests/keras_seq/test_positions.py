"""keras_seq.positions against the formula and against KerasHub."""

import keras_nlp
import numpy as np
import pytest

from keras_seq.positions import PositionEmbedding, SinePositionEncoding

PLACES = np.arange(7, dtype="int32")[None]


def test_sines_and_cosines_equal_the_formula_at_any_positions():
    positions = np.array([[0, 1, 501], [7, 3, 2]], "int32")
    encoded = np.asarray(SinePositionEncoding(10)(positions))
    for i in range(5):
        angles = positions / 10000 ** (2 * i / 10)
        np.testing.assert_allclose(encoded[..., 2 * i], np.sin(angles), atol=1e-4)
        np.testing.assert_allclose(encoded[..., 2 * i + 1], np.cos(angles), atol=1e-4)


def test_sines_and_cosines_equal_keras_hub():
    theirs = keras_nlp.layers.SinePositionEncoding(max_wavelength=1000)(np.zeros((1, 7, 10), "float32"))
    np.testing.assert_allclose(SinePositionEncoding(10, max_wavelength=1000)(PLACES), theirs, atol=1e-5)


def test_learned_positions_are_rows_of_their_table():
    layer = PositionEmbedding(11, 5)
    vectors = layer(np.array([[2, 10, 0]], "int32"))
    np.testing.assert_array_equal(vectors[0], layer.get_weights()[0][[2, 10, 0]])


@pytest.mark.parametrize("layer", [SinePositionEncoding(10), PositionEmbedding(11, 10)])
def test_one_step_equals_its_place_in_the_whole_sequence(layer):
    whole = np.asarray(layer(PLACES))
    for t in (0, 3, 6):
        np.testing.assert_allclose(layer(np.array([[t], [2]], "int32"))[:, 0], whole[0, [t, 2]], atol=1e-6)


@pytest.mark.parametrize("layer", [SinePositionEncoding(10, 100.0), PositionEmbedding(11, 10)])
def test_config_round_trip(layer):
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_errors_show_the_size():
    with pytest.raises(ValueError, match=r"SinePositionEncoding needs an even hidden_dim, got hidden_dim=7\."):
        SinePositionEncoding(7)
    with pytest.raises(ValueError, match=r"needs max_sequence_length >= 1, got max_sequence_length=0\."):
        PositionEmbedding(0, 5)
