"""keras_seq.positions against the formula and against KerasHub."""

import numpy as np
import pytest

from keras_seq.positions import PositionEmbedding, RotaryEmbedding, SinePositionEncoding

PLACES = np.arange(7, dtype="int32")[None]


def test_sines_and_cosines_equal_the_formula_at_any_positions():
    positions = np.array([[0, 1, 501], [7, 3, 2]], "int32")
    encoded = np.asarray(SinePositionEncoding(10)(positions))
    for i in range(5):
        angles = positions / 10000 ** (2 * i / 10)
        np.testing.assert_allclose(encoded[..., 2 * i], np.sin(angles), atol=1e-4)
        np.testing.assert_allclose(encoded[..., 2 * i + 1], np.cos(angles), atol=1e-4)


def test_sines_and_cosines_equal_keras_hub(keras_nlp):
    theirs = keras_nlp.layers.SinePositionEncoding(max_wavelength=1000)(np.zeros((1, 7, 10), "float32"))
    np.testing.assert_allclose(SinePositionEncoding(10, max_wavelength=1000)(PLACES), theirs, atol=1e-5)


def test_without_interleaving_all_sines_come_before_all_cosines():
    encoded, apart = np.asarray(SinePositionEncoding(10)(PLACES)), SinePositionEncoding(10, interleave=False)(PLACES)
    np.testing.assert_array_equal(apart, np.concatenate([encoded[..., 0::2], encoded[..., 1::2]], axis=-1))


def test_learned_positions_are_rows_of_their_table():
    layer = PositionEmbedding(11, 5)
    vectors = layer(np.array([[2, 10, 0]], "int32"))
    np.testing.assert_array_equal(vectors[0], layer.get_weights()[0][[2, 10, 0]])


@pytest.mark.parametrize("layer", [SinePositionEncoding(10), PositionEmbedding(11, 10)])
def test_one_step_equals_its_place_in_the_whole_sequence(layer):
    whole = np.asarray(layer(PLACES))
    for t in (0, 3, 6):
        np.testing.assert_allclose(layer(np.array([[t], [2]], "int32"))[:, 0], whole[0, [t, 2]], atol=1e-6)


@pytest.mark.parametrize(
    "layer", [SinePositionEncoding(10, 100.0, False), PositionEmbedding(11, 10), RotaryEmbedding(7.0, 2.0)]
)
def test_config_round_trip(layer):
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_errors_show_the_size():
    with pytest.raises(ValueError, match=r"SinePositionEncoding needs an even hidden_dim, got hidden_dim=7\."):
        SinePositionEncoding(7)
    with pytest.raises(ValueError, match=r"needs max_sequence_length >= 1, got max_sequence_length=0\."):
        PositionEmbedding(0, 5)


X = np.random.default_rng(0).normal(size=(2, 3, 7, 10)).astype("float32")


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_rotation_equals_keras_hubs(factor, keras_nlp):
    places = np.array([[0, 1, 2, 3, 4, 5, 6], [5, 0, 501, 2, 2, 1, 7]], "int32")
    theirs = keras_nlp.layers.RotaryEmbedding(max_wavelength=1000, scaling_factor=factor, sequence_axis=2)
    ours = RotaryEmbedding(1000.0, factor)
    for row in range(2):  # KerasHub takes positions of one row at a time beside heads
        expected = theirs(X[row : row + 1], positions=places[row])
        np.testing.assert_allclose(ours(X[row : row + 1], places[row : row + 1]), expected, atol=1e-4)
    np.testing.assert_allclose(ours(X, places)[1:], ours(X[1:], places[1:]), atol=1e-6)


def test_rotation_equals_the_papers_matrix():
    ours = np.asarray(RotaryEmbedding()(X, PLACES))
    for p in range(7):
        for i in range(5):
            angle = p / 10000 ** (2 * i / 10)
            matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            np.testing.assert_allclose(ours[:, :, p, [i, i + 5]], X[:, :, p, [i, i + 5]] @ matrix.T, atol=1e-5)


def test_a_score_of_rotated_vectors_knows_of_the_distance_alone():
    layer = RotaryEmbedding()
    scores = [
        np.asarray(layer(X, PLACES + shift)) @ np.swapaxes(np.asarray(layer(X, PLACES + shift)), -1, -2)
        for shift in (0, 13)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_an_odd_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"RotaryEmbedding needs an even number of channels, got 5\."):
        RotaryEmbedding()(X[..., :5], PLACES)
