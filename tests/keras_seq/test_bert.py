"""keras_seq.models.bert against KerasHub's backbone with the same weights, and the two models on top of it."""

import keras_nlp
import numpy as np
import pytest

from keras_seq import BERT, BERTClassifier, BERTForPreTraining

SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7}


def test_it_equals_keras_hubs_backbone(shared, make_inputs, copy_block, forward):
    ours, inputs = shared("BERT"), make_inputs("BERT")
    theirs = keras_nlp.models.BertBackbone(11, 2, 3, 6, 7, max_sequence_length=17, num_segments=3)
    for name, layer in (
        ("token_embedding", ours.token_embedding),
        ("position_embedding", ours.position_embedding),
        ("segment_embedding", ours.segment_embedding),
        ("embeddings_layer_norm", ours.embedding_norm),
        ("pooled_dense", ours.pooler),
    ):
        theirs.get_layer(name).set_weights(layer.get_weights())
    for i, block in enumerate(ours.blocks):
        copy_block(block, theirs.get_layer(f"transformer_layer_{i}"))
    mask, expected = (
        inputs["padding_mask"],
        forward(theirs)({**inputs, "padding_mask": inputs["padding_mask"].astype("int32")}),
    )
    outputs = forward(ours)(inputs)
    np.testing.assert_allclose(
        np.asarray(outputs["sequence_output"])[mask], np.asarray(expected["sequence_output"])[mask], atol=1e-4
    )
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled_output"], atol=1e-4)


def test_pre_training_shares_the_token_table_and_the_backbone():
    backbone = BERT(11, **SIZES)
    model = BERTForPreTraining(backbone)
    assert model.backbone is backbone and model.masked_lm_head.token_embedding is backbone.token_embedding
    # A dense layer, a norm and a bias for the masked tokens; a dense layer for the next sentence.
    assert model.count_params() - backbone.count_params() == (6 * 6 + 6) + 2 * 6 + 11 + (6 * 2 + 2)
    assert len({weight.path for weight in model.weights}) == len(model.weights)


def test_fine_tuning_moves_the_backbone_it_was_given(make_inputs):
    backbone, inputs = BERT(11, **SIZES), make_inputs("BERTClassifier")
    model = BERTClassifier(backbone, 5)
    before = backbone.token_embedding.get_weights()[0].copy()
    model.compile("adam", "mse")
    model.train_on_batch({**inputs, "segment_ids": inputs["segment_ids"] % 2}, np.ones((3, 5), "float32"))
    assert not np.array_equal(before, backbone.token_embedding.get_weights()[0])


def test_pre_trained_and_fine_tuned_models_see_what_the_backbone_sees(shared, make_inputs):
    model, inputs = shared("BERTClassifier"), make_inputs("BERTClassifier")
    pooled = model.backbone(inputs)["pooled_output"]
    np.testing.assert_allclose(model(inputs), model.classification_head(pooled), atol=1e-5)
    np.testing.assert_allclose(model.attention_model(inputs), model.backbone.attention_model(inputs), atol=1e-6)


def test_errors_name_the_rule_and_the_value(shared):
    with pytest.raises(ValueError, match=r"BERTForPreTraining needs a BERT as backbone, got GPT\."):
        BERTForPreTraining(shared("GPT"))
    with pytest.raises(ValueError, match=r"BERTClassifier needs a BERT as backbone, got NoneType\."):
        BERTClassifier(None, 5)
    with pytest.raises(ValueError, match=r"ClassificationHead needs num_classes >= 2, got num_classes=1\."):
        BERTClassifier(shared("BERT"), 1)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=7\."):
        BERT(11, **{**SIZES, "hidden_dim": 7})
