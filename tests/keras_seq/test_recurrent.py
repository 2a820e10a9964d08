"""keras_seq.recurrent against Keras' own recurrent layers, and torch's, with the same weights."""

import pathlib

import keras
import numpy as np
import pytest
from keras import ops
from parity import ours

from keras_seq.attention import AdditiveScore, DotScore, GeneralScore
from keras_seq.cells import CELLS
from keras_seq.recurrent import RecurrentDecoder, RecurrentEncoder

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "checkpoints"
RANDOM = np.random.default_rng(0)
SOURCE = RANDOM.normal(size=(3, 5, 2)).astype("float32")
MASK = np.arange(5) < np.array([[5], [2], [3]])
TARGET = RANDOM.normal(size=(3, 7, 2)).astype("float32")
KERAS_LAYERS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
KERAS_CELLS = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}


def close(ours, theirs):
    np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), atol=1e-5)


def encoder(randomized, **options):
    layer = RecurrentEncoder(11, **options)
    layer.build(SOURCE.shape)  # not called for it: JAX compiles a layer's loop at every call
    return randomized(layer)


@pytest.mark.parametrize("cell", CELLS)
def test_the_encoder_equals_keras_layer_with_the_same_weights_and_mask(cell, randomized):
    ours = encoder(randomized, cell=cell)
    theirs = KERAS_LAYERS[cell](11, return_sequences=True, return_state=True)
    theirs.build(SOURCE.shape)
    theirs.set_weights(ours.get_weights())
    outputs, (states,) = ours(SOURCE, MASK)
    their_outputs, *their_states = theirs(SOURCE, mask=MASK)
    close(outputs, their_outputs)
    for one, other in zip(states, their_states):
        close(one, other)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_the_encoder_equals_torchs_two_layers_on_packed_rows(cell, directions):
    """The numbers are torch's own, written by tests/parity/write_fixtures.py."""
    ours.check_recurrent(cell, directions == 2, dict(np.load(FIXTURES / f"torch_{cell}_{directions}.npz")))


@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_in_two_layers_equal_keras_bidirectional(cell, randomized):
    ours = encoder(randomized, cell=cell, bidirectional=True, num_layers=2)
    their_outputs = SOURCE
    for cells in ours.cells:
        layer = KERAS_LAYERS[cell](11, return_sequences=True, return_state=True)
        theirs = keras.layers.Bidirectional(layer)
        theirs.build(their_outputs.shape)
        theirs.set_weights([weight for one in cells for weight in one.get_weights()])
        their_outputs, *their_states = theirs(their_outputs, mask=MASK)
    outputs, states = ours(SOURCE, MASK)
    # Keras gives zeros at padding when it reads both ways; what stands there is not looked at.
    close(np.asarray(outputs)[MASK], np.asarray(their_outputs)[MASK])
    half = len(their_states) // 2
    for one, forward, backward in zip(states[-1], their_states[:half], their_states[half:]):
        close(one, np.concatenate([forward, backward], -1))


@pytest.mark.parametrize("cell", CELLS)
def test_backwards_a_sentence_is_read_as_its_words_in_reverse(cell, randomized):
    layer = encoder(randomized, cell=cell, num_layers=2, go_backwards=True)
    outputs, states = layer(SOURCE, MASK)
    ahead = encoder(randomized, cell=cell, num_layers=2)
    ahead.set_weights(layer.get_weights())
    for row, real in enumerate(MASK):
        words = SOURCE[row : row + 1, real]
        told, last = ahead(words[:, ::-1], np.ones(words.shape[:2], bool))
        close(np.asarray(outputs)[row, real], np.asarray(told)[0, ::-1])
        for one, other in zip(states, last):
            close([part[row] for part in one], [part[0] for part in other])


@pytest.mark.parametrize("cell", CELLS)
def test_padding_keeps_the_state_and_its_content_changes_nothing(cell, randomized):
    layer = encoder(randomized, cell=cell, bidirectional=True)
    outputs, (states,) = layer(SOURCE, MASK)
    changed = np.where(MASK[..., None], SOURCE, 9).astype("float32")
    padded = np.pad(changed, ((0, 0), (0, 2), (0, 0)))
    longer, (longer_states,) = layer(padded, np.pad(MASK, ((0, 0), (0, 2))).astype("int32"))
    close(np.asarray(longer)[:, :5][MASK], np.asarray(outputs)[MASK])
    for one, other in zip(longer_states, states):
        close(one, other)
    # The first half reads forward, and stays at its last real output.
    close(np.asarray(outputs)[1, 2:, :11], np.tile(np.asarray(states[0])[1, :11], (3, 1)))


def test_a_row_without_text_keeps_the_first_state(randomized):
    _, ((h, c),) = encoder(randomized)(SOURCE, np.zeros_like(MASK))
    assert not np.any(h) and not np.any(c)


# === Decoder ===


def decoder(randomized, encoded, **options):
    layer = RecurrentDecoder(11, **options)
    layer.build(TARGET.shape, encoded[0].shape)
    return randomized(layer)


def one_by_one(layer, encoded):
    memory, states = layer.remember(encoded[0], MASK, encoded[1])
    collected = []
    for t in range(TARGET.shape[1]):
        states, outputs = layer.step(layer.project(TARGET[:, t]), states, memory)
        collected.append(outputs)
    return [np.stack([np.asarray(one) for one in part], 1) for part in zip(*collected)]


SCORES = {
    "dot": lambda: DotScore(),
    "general": lambda: GeneralScore(),
    "additive": lambda: AdditiveScore(7),
    "last": lambda: None,
}


# A score asks with one vector of the state, whichever cell made it: not every pair of the two.
@pytest.mark.parametrize(
    ("cell", "score"),
    [("lstm", "dot"), ("gru", "general"), ("lstm", "additive"), ("gru", "additive"), ("lstm", "last"), ("gru", "last")],
)
def test_the_decoder_step_by_step_equals_the_scan(cell, score, randomized):
    both_ways = score in ("general", "additive")
    encoded = encoder(randomized, cell=cell, num_layers=2, bidirectional=both_ways)(SOURCE, MASK)
    layer = decoder(randomized, encoded, cell=cell, num_layers=2, score=SCORES[score]())
    for all_at_once, steps in zip(layer(TARGET, encoded[0], MASK, encoded[1]), one_by_one(layer, encoded)):
        close(all_at_once, steps)


@pytest.mark.parametrize("cell", CELLS)
def test_without_fed_context_it_is_keras_layer_from_the_encoders_state(cell, randomized):
    encoded = encoder(randomized, cell=cell)(SOURCE, MASK)
    layer = decoder(randomized, encoded, cell=cell, feed_context=False)
    theirs = KERAS_LAYERS[cell](11, return_sequences=True)
    theirs.build(TARGET.shape)
    theirs.set_weights(layer.get_weights())
    outputs, _, _ = layer(TARGET, encoded[0], MASK, encoded[1])
    states = list(encoded[1][0])
    close(outputs, theirs(TARGET, initial_state=states if len(states) > 1 else states[0]))


@pytest.mark.parametrize("cell", CELLS)
def test_context_at_every_step_equals_keras_layer_fed_the_last_output_beside_each_token(cell, randomized):
    encoded = encoder(randomized, cell=cell)(SOURCE, MASK)
    layer = decoder(randomized, encoded, cell=cell)
    outputs, contexts, weights = layer(TARGET, encoded[0], MASK, encoded[1])

    last = np.asarray(encoded[0])[np.arange(3), MASK.sum(1) - 1]
    fed = np.concatenate([TARGET, np.repeat(last[:, None], 7, 1)], -1)
    theirs = KERAS_LAYERS[cell](11, return_sequences=True)
    theirs.build(fed.shape)
    kernel, recurrent, bias = layer.cells[0].get_weights()
    theirs.set_weights([np.concatenate([kernel, layer.context_kernel]), recurrent, bias])
    states = list(encoded[1][0])
    close(outputs, theirs(fed, initial_state=states if len(states) > 1 else states[0]))
    close(contexts, np.repeat(last[:, None], 7, 1))
    close(weights, np.repeat(np.eye(5)[MASK.sum(1) - 1][:, None], 7, 1))


@pytest.mark.parametrize("cell", CELLS)
def test_attention_asks_with_the_state_before_the_step(cell, randomized):
    encoded = encoder(randomized, cell=cell)(SOURCE, MASK)
    layer = decoder(randomized, encoded, cell=cell, score=DotScore())
    kernel, recurrent, bias = layer.cells[0].get_weights()
    theirs = KERAS_CELLS[cell](11)
    theirs.build((3, 2 + 11))
    theirs.set_weights([np.concatenate([kernel, layer.context_kernel]), recurrent, bias])
    outputs, contexts, weights = (np.asarray(one) for one in layer(TARGET, encoded[0], MASK, encoded[1]))
    memory, states = np.asarray(encoded[0]), list(encoded[1][0])
    for t in range(7):
        scores = np.einsum("bd,bsd->bs", states[0], memory)
        mix = np.where(MASK, np.exp(scores - scores.max(1, keepdims=True)), 0)
        mix /= mix.sum(1, keepdims=True)
        context = np.einsum("bs,bsd->bd", mix, memory)
        output, states = theirs(np.concatenate([TARGET[:, t], context], -1), states)
        close(weights[:, t], mix)
        close(contexts[:, t], context)
        close(outputs[:, t], output)


@pytest.mark.parametrize("cell", CELLS)
def test_input_feeding_asks_after_the_step_and_feeds_the_answer_to_the_next(cell, randomized):
    encoded = encoder(randomized, cell=cell)(SOURCE, MASK)
    layer = decoder(randomized, encoded, cell=cell, score=DotScore(), feed_context=False, input_feeding=True)
    kernel, recurrent, bias = layer.cells[0].get_weights()
    theirs = KERAS_CELLS[cell](11)
    theirs.build((3, 2 + 11))
    theirs.set_weights([np.concatenate([kernel, layer.feeding_kernel]), recurrent, bias])
    outputs, contexts, weights = (np.asarray(one) for one in layer(TARGET, encoded[0], MASK, encoded[1]))
    memory, states, fed = np.asarray(encoded[0]), list(encoded[1][0]), np.zeros((3, 11), "float32")
    for t in range(7):
        state, states = theirs(np.concatenate([TARGET[:, t], fed], -1), states)
        scores = np.einsum("bd,bsd->bs", state, memory)
        mix = np.where(MASK, np.exp(scores - scores.max(1, keepdims=True)), 0)
        mix /= mix.sum(1, keepdims=True)
        context = np.einsum("bs,bsd->bd", mix, memory)
        fed = np.tanh(np.concatenate([context, state], -1) @ np.asarray(layer.output_kernel))
        close(weights[:, t], mix)
        close(contexts[:, t], context)
        close(outputs[:, t], fed)


def test_input_feeding_step_by_step_equals_the_scan(randomized):
    encoded = encoder(randomized, num_layers=2, bidirectional=True)(SOURCE, MASK)
    options = {"score": AdditiveScore(7), "feed_context": False, "input_feeding": True}
    layer = decoder(randomized, encoded, num_layers=2, **options)
    for all_at_once, steps in zip(layer(TARGET, encoded[0], MASK, encoded[1]), one_by_one(layer, encoded)):
        close(all_at_once, steps)


def test_dropout_between_the_layers_acts_in_training_only(randomized):
    encoded = encoder(randomized, num_layers=2)(SOURCE, MASK)
    layer = decoder(randomized, encoded, num_layers=2, score=DotScore(), dropout=0.5)
    first, again = (layer(TARGET, encoded[0], MASK, encoded[1])[0] for _ in range(2))
    close(first, again)
    assert not np.allclose(first, layer(TARGET, encoded[0], MASK, encoded[1], training=True)[0])


@pytest.mark.parametrize("score", ["additive", "last"])
def test_a_decoder_in_a_model_of_ones_own_is_saved_and_cloned(score, randomized, forward, tmp_path):
    inputs = {name: keras.Input((None, 2), name=name) for name in ("source", "target")}
    inputs["mask"] = keras.Input((None,), dtype="bool", name="mask")
    encoded, states = RecurrentEncoder(3)(inputs["source"], inputs["mask"])
    decoder = RecurrentDecoder(3, score=SCORES[score]())
    outputs, _, _ = decoder(inputs["target"], encoded, inputs["mask"], states)
    model = randomized(keras.Model(inputs, outputs))
    model.save(tmp_path / "model.keras")
    given = {"source": SOURCE, "mask": MASK, "target": TARGET}
    close(forward(keras.saving.load_model(tmp_path / "model.keras"))(given), forward(model)(given))
    assert [one.shape for one in keras.models.clone_model(model).weights] == [one.shape for one in model.weights]


@pytest.mark.parametrize("layer", [RecurrentEncoder(3, cell="gru"), RecurrentDecoder(3, score=AdditiveScore(2))])
def test_config_round_trip(layer):
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("layer", [RecurrentEncoder, RecurrentDecoder])
def test_errors_name_the_rule_and_the_value(layer):
    name = layer.__name__
    with pytest.raises(ValueError, match=rf"{name} needs cell in \('lstm', 'gru'\), got cell='rnn'."):
        layer(3, cell="rnn")
    with pytest.raises(ValueError, match=f"{name} needs hidden_dim >= 1 and num_layers >= 1, got hidden_dim=0, num"):
        layer(0)
    with pytest.raises(ValueError, match=r"got hidden_dim=3, num_layers=0\."):
        layer(3, num_layers=0)
    with pytest.raises(ValueError, match=r"input_feeding needs a score and feed_context=False, got score=None, feed_c"):
        RecurrentDecoder(3, input_feeding=True)
