"""keras_seq.models.gpt against KerasHub's backbone with the same weights."""

import keras_nlp
import numpy as np
import pytest

from keras_seq import GPT

SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7, "max_sequence_length": 17}


def test_it_equals_keras_hubs_gpt2_backbone(shared, make_inputs, copy_block, forward):
    ours, inputs = shared("GPT"), make_inputs("GPT")
    theirs = keras_nlp.models.GPT2Backbone(11, 2, 3, 6, 7, max_sequence_length=17)
    for name, layer in (
        ("token_embedding", ours.token_embedding),
        ("position_embedding", ours.position_embedding),
        ("layer_norm", ours.final_norm),
    ):
        theirs.get_layer(name).set_weights(layer.get_weights())
    for i, block in enumerate(ours.blocks):
        copy_block(block, theirs.get_layer(f"transformer_layer_{i}"))
    mask, expected = (
        inputs["padding_mask"],
        forward(theirs)({**inputs, "padding_mask": inputs["padding_mask"].astype("int32")}),
    )
    np.testing.assert_allclose(np.asarray(forward(ours.backbone)(inputs))[mask], np.asarray(expected)[mask], atol=1e-4)


@pytest.mark.parametrize("normalize_first", [True, False])
def test_a_prompt_read_at_once_equals_one_fed_token_by_token(normalize_first, make_inputs, randomized):
    model, inputs = randomized(GPT(11, **SIZES, normalize_first=normalize_first)), make_inputs("GPT")
    whole, real = np.asarray(model(inputs)), inputs["padding_mask"].sum(1)
    logits, state, weights = model.step(inputs["token_ids"][np.arange(3), real - 1], model.start(inputs, 17))
    np.testing.assert_allclose(logits, whole[np.arange(3), real - 1], atol=1e-4)
    np.testing.assert_array_equal(state["position"], real)
    np.testing.assert_allclose(np.sum(np.asarray(weights) * (np.arange(17) < real[:, None]), 1), 1, atol=1e-5)


def test_only_norm_first_ends_with_a_norm():
    first, last = GPT(11, **SIZES), GPT(11, **SIZES, normalize_first=False)
    assert first.count_params() - last.count_params() == 2 * 6


def test_errors_name_the_rule_and_the_value(shared, make_inputs):
    with pytest.raises(
        ValueError, match=r"GPT has max_sequence_length=17 positions, prompt included, got .* length=18"
    ):
        shared("GPT").start(make_inputs("GPT"), 18)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=7\."):
        GPT(11, **{**SIZES, "hidden_dim": 7})
    with pytest.raises(
        ValueError, match=r"PositionEmbedding needs max_sequence_length >= 1, got max_sequence_length=0"
    ):
        GPT(11, **{**SIZES, "max_sequence_length": 0})
