"""keras_seq.models.bert against KerasHub's backbone with the same weights, and the two models on top of it."""

import keras
import numpy as np
import pytest

import keras_seq
from keras_seq import BERT, BERTClassifier, BERTForPreTraining

JIT = keras.backend.backend() == "jax"  # with TensorFlow it would be XLA, which takes longer to compile than to train
SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7}


def test_it_equals_keras_hubs_backbone(shared, make_inputs, copy_block, forward, keras_nlp):
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
    model.compile("adam", "mse", jit_compile=JIT)
    model.train_on_batch({**inputs, "segment_ids": inputs["segment_ids"] % 2}, np.ones((3, 5), "float32"))
    assert not np.array_equal(before, backbone.token_embedding.get_weights()[0])


def test_pre_trained_and_fine_tuned_models_see_what_the_backbone_sees(shared, make_inputs):
    model, inputs = shared("BERTClassifier"), make_inputs("BERTClassifier")
    pooled = model.backbone(inputs)["pooled_output"]
    np.testing.assert_allclose(model(inputs), model.classification_head(pooled), atol=1e-5)
    np.testing.assert_allclose(model.attention_model(inputs), model.backbone.attention_model(inputs), atol=1e-6)


def toy_texts(rows, seed):
    """Classification token 1, then tokens 3 to 10 of which at most one is the 7, rows padded to 7."""
    random = np.random.default_rng(seed)
    ids = random.choice([3, 4, 5, 6, 8, 9, 10], size=(rows, 7))
    ids[:, 0] = 1
    mask = np.arange(7) < random.integers(4, 8, size=(rows, 1))
    place = random.integers(1, 4, size=rows) * (random.random(rows) < 0.7)
    ids[np.arange(rows)[place > 0], place[place > 0]] = 7
    ids = (ids * mask).astype("int32")
    inputs = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}
    return inputs, place


def fitted(model, inputs, targets, sample_weight=None, steps=120):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = dict.fromkeys(targets, loss) if isinstance(targets, dict) else loss
    model.compile(keras.optimizers.Adam(0.01), losses, jit_compile=JIT)
    model.fit(inputs, targets, batch_size=24, epochs=steps // 10, sample_weight=sample_weight, verbose=0)
    return model


TOY = {"num_layers": 1, "num_heads": 2, "hidden_dim": 12, "intermediate_dim": 13, "dropout": 0.0}


def test_a_token_classifier_learns_a_tag_a_token(forward):
    inputs, _ = toy_texts(240, 0)
    real = inputs["padding_mask"].astype("float32")
    keras.utils.set_random_seed(7)
    model = keras_seq.BERTTokenClassifier(BERT(11, **TOY), 3, dropout=0.0)
    fitted(model, inputs, inputs["token_ids"] % 3, real)
    unseen, _ = toy_texts(11, 1)
    right = np.argmax(forward(model)(unseen), -1) == unseen["token_ids"] % 3
    assert right[unseen["padding_mask"]].all()


def test_a_span_classifier_learns_answers_and_questions_without_one(forward):
    inputs, place = toy_texts(240, 0)
    inputs["answer_mask"] = inputs["padding_mask"]
    keras.utils.set_random_seed(7)
    model = keras_seq.BERTSpanClassifier(BERT(11, **TOY))
    # The answer is the 7 and the token after it, or nothing.
    fitted(model, inputs, {"start_logits": place, "end_logits": place + (place > 0)})
    unseen, place = toy_texts(11, 1)
    spans = keras_seq.best_spans(
        **forward(model)({**unseen, "answer_mask": unseen["padding_mask"]}), max_answer_length=3
    )
    answered = place > 0
    assert 0 < answered.sum() < 11
    np.testing.assert_array_equal(np.asarray(spans["null_difference"]) < 0, answered)
    np.testing.assert_array_equal(np.asarray(spans["starts"])[answered, 0], place[answered])
    np.testing.assert_array_equal(np.asarray(spans["ends"])[answered, 0], place[answered] + 1)


def toy_choices(rows, seed):
    """Three texts a row, of which one has a 7."""
    inputs, place = toy_texts(rows * 10, seed)
    without, having = np.flatnonzero(place == 0), np.flatnonzero(place > 0)
    index = np.stack([without[:rows], without[rows : 2 * rows], having[:rows]], axis=1)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(3), (rows, 1)), axis=1)
    index = np.take_along_axis(index, order, axis=1)
    return {name: one[index] for name, one in inputs.items()}, np.argmax(order, axis=1)


def test_a_multiple_choice_model_learns_which_text_is_right(forward):
    inputs, right = toy_choices(96, 0)
    keras.utils.set_random_seed(7)
    model = keras_seq.BERTMultipleChoice(BERT(11, **TOY), dropout=0.0)
    fitted(model, inputs, right)
    unseen, right = toy_choices(7, 1)
    np.testing.assert_array_equal(np.argmax(forward(model)(unseen), -1), right)


def test_a_choices_score_does_not_depend_on_the_other_choices(shared, make_inputs, forward):
    model, inputs = shared("BERTMultipleChoice"), make_inputs("BERTMultipleChoice")
    turned = {name: one[:, ::-1] for name, one in inputs.items()}
    np.testing.assert_allclose(np.asarray(forward(model)(inputs))[:, ::-1], forward(model)(turned), atol=1e-5)


def test_errors_name_the_rule_and_the_value(shared):
    with pytest.raises(ValueError, match=r"BERTForPreTraining needs a BERT as backbone, got GPT\."):
        BERTForPreTraining(shared("GPT"))
    with pytest.raises(ValueError, match=r"BERTClassifier needs a BERT as backbone, got NoneType\."):
        BERTClassifier(None, 5)
    with pytest.raises(ValueError, match=r"ClassificationHead needs num_classes >= 2, got num_classes=1\."):
        BERTClassifier(shared("BERT"), 1)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=7\."):
        BERT(11, **{**SIZES, "hidden_dim": 7})
