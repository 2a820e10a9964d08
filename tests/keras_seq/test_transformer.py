"""keras_seq.models.transformer against KerasHub's blocks in the same order, and what is particular to it."""

import numpy as np
import pytest
from keras import ops

from keras_seq import Transformer

SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7, "max_sequence_length": 17}


@pytest.mark.parametrize("normalize_first", [False, True])
def test_logits_equal_keras_hubs_blocks_with_the_same_weights(
    normalize_first, make_inputs, randomized, copy_block, keras_nlp
):
    model, inputs = (
        randomized(Transformer(13, 11, **SIZES, normalize_first=normalize_first)),
        make_inputs("Transformer"),
    )
    source_mask, target_mask = inputs["encoder_padding_mask"], inputs["decoder_padding_mask"]

    def norm(x, which):
        return model.final_norms[which](x) if normalize_first else x

    def embed(embedding, ids):
        x = ops.convert_to_tensor(embedding.get_weights()[0][ids] * 6**0.5)
        return x + keras_nlp.layers.SinePositionEncoding()(x)

    x = embed(model.source_embedding, inputs["encoder_token_ids"])
    for block in model.encoder_blocks:
        theirs = keras_nlp.layers.TransformerEncoder(7, 3, normalize_first=normalize_first)
        theirs(x)
        copy_block(block, theirs)
        x = theirs(x, padding_mask=source_mask)
    encoded, x = norm(x, 0), embed(model.target_embedding, inputs["decoder_token_ids"])
    for block in model.decoder_blocks:
        theirs = keras_nlp.layers.TransformerDecoder(7, 3, normalize_first=normalize_first)
        theirs(x, encoded)
        copy_block(block, theirs)
        x = theirs(x, encoded, decoder_padding_mask=target_mask, encoder_padding_mask=source_mask)
    logits = np.asarray(norm(x, 1)) @ model.target_embedding.get_weights()[0].T
    np.testing.assert_allclose(np.asarray(model(inputs))[target_mask], logits[target_mask], atol=1e-3)


def test_shared_embeddings_are_one_table(make_inputs):
    model, apart = Transformer(13, 13, **SIZES, share_embeddings=True), Transformer(13, 13, **SIZES)
    assert model.source_embedding is model.target_embedding
    assert apart.count_params() - model.count_params() == 13 * 6
    assert model(make_inputs("Transformer")).shape == (3, 7, 13)


def test_logits_start_at_a_spread_of_about_one(make_inputs, forward):
    model = Transformer(13, 101, num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=64)
    assert 0.5 < np.std(forward(model)(make_inputs("Transformer"))) < 2


def test_errors_name_the_rule_and_the_value(shared, make_inputs):
    with pytest.raises(ValueError, match=r"share_embeddings needs equal vocabulary sizes, got 13 and 11\."):
        Transformer(13, 11, **SIZES, share_embeddings=True)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=8\."):
        Transformer(13, 11, **{**SIZES, "hidden_dim": 8})
    with pytest.raises(ValueError, match=r"SinePositionEncoding needs an even hidden_dim, got hidden_dim=9\."):
        Transformer(13, 11, **{**SIZES, "hidden_dim": 9})
    inputs = {name: one for name, one in make_inputs("Transformer").items() if name.startswith("encoder_")}
    with pytest.raises(ValueError, match=r"Transformer has max_sequence_length=17 positions, .* for length=18\."):
        shared("Transformer").start(inputs, 18)
