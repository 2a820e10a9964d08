"""keras_seq.models.gpt against KerasHub's backbone with the same weights."""

import keras
import numpy as np
import pytest

import keras_seq
from keras_seq import GPT

SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7, "max_sequence_length": 17}


def test_it_equals_keras_hubs_gpt2_backbone(shared, make_inputs, copy_block, forward, keras_nlp):
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


@pytest.mark.parametrize("changes", [{}, {"normalize_first": False}, {"position_encoding": "rotary", "num_heads": 1}])
def test_a_prompt_read_at_once_equals_one_fed_token_by_token(changes, make_inputs, randomized):
    model, inputs = randomized(GPT(11, **{**SIZES, **changes})), make_inputs("GPT")
    whole, real = np.asarray(model(inputs)), inputs["padding_mask"].sum(1)
    logits, state, weights = model.step(inputs["token_ids"][np.arange(3), real - 1], model.start(inputs, 17))
    np.testing.assert_allclose(logits, whole[np.arange(3), real - 1], atol=1e-4)
    np.testing.assert_array_equal(state["position"], real)
    np.testing.assert_allclose(np.sum(np.asarray(weights) * (np.arange(17) < real[:, None]), 1), 1, atol=1e-5)


@pytest.mark.parametrize("position_encoding", ["learned", "rotary"])
def test_documents_packed_in_a_row_give_what_each_gives_alone(position_encoding, forward):
    model = GPT(11, 2, 2, 12, 13, max_sequence_length=17, position_encoding=position_encoding)
    rng = np.random.default_rng(3)
    documents = [rng.integers(1, 11, size=(1, length)).astype("int32") for length in (5, 2, 5)]
    row = {
        "token_ids": np.concatenate([*documents, np.zeros((1, 3), "int32")], axis=1),
        "segment_ids": np.array([[1] * 5 + [2] * 2 + [3] * 5 + [0] * 3], "int32"),
        "padding_mask": np.array([[True] * 12 + [False] * 3]),
    }
    packed = np.array(forward(model.packed_model)(row))
    alone = [forward(model)({"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}) for ids in documents]
    np.testing.assert_allclose(packed[:, :12], np.concatenate([np.array(one) for one in alone], axis=1), atol=1e-5)
    # And as one text they give something else.
    together = forward(model)({name: row[name] for name in ("token_ids", "padding_mask")})
    assert np.abs(np.array(together)[:, 5:12] - packed[:, 5:12]).max() > 1e-3
    assert len(model.weights) == len(model.packed_model.weights)


def test_only_norm_first_ends_with_a_norm():
    first, last = GPT(11, **SIZES), GPT(11, **SIZES, normalize_first=False)
    assert first.count_params() - last.count_params() == 2 * 6


def test_room_for_new_tokens_leaves_the_others_as_they_were(shared, make_inputs, forward):
    model, inputs = shared("GPT"), make_inputs("GPT")
    wider = model.with_vocabulary_size(13)
    assert wider.vocabulary_size == 13 and wider.count_params() - model.count_params() == 2 * 6
    np.testing.assert_allclose(np.asarray(forward(wider)(inputs))[..., :11], forward(model)(inputs), atol=1e-5)
    narrower = wider.with_vocabulary_size(11)
    np.testing.assert_allclose(forward(narrower)(inputs), forward(model)(inputs), atol=1e-6)


def test_room_for_new_tokens_takes_low_rank_updates_into_the_matrices(shared, make_inputs, forward):
    model = shared("GPT").with_vocabulary_size(11)
    for layer in keras_seq.enable_lora(model, 2):
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    wider, inputs = model.with_vocabulary_size(13), make_inputs("GPT")
    np.testing.assert_allclose(np.asarray(forward(wider)(inputs))[..., :11], forward(model)(inputs), atol=1e-4)
    assert wider.count_params() - shared("GPT").count_params() == 2 * 6


START, DELIMITER, EXTRACT = 11, 12, 13  # after the 11 tokens of the text


def toy_texts(rows, seed, having=None):
    """Lists of 2 to 5 tokens of 2 to 10, with a 7 in every other one."""
    random = np.random.default_rng(seed)
    texts = [random.choice([2, 3, 4, 5, 6, 8, 9, 10], size=random.integers(2, 6)).tolist() for _ in range(rows)]
    having = np.arange(rows) % 2 if having is None else having
    for text, has in zip(texts, having):
        if has:
            text[random.integers(len(text))] = 7
    return texts, having


def fitted(model, inputs, labels):
    targets, weights = keras_seq.language_model_targets(inputs)
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={
            "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "language_model": keras_seq.TokenCrossentropy(),
        },
        loss_weights={"logits": 1.0, "language_model": 0.5},
        # With TensorFlow it would be XLA, which takes longer to compile than to train here.
        jit_compile=keras.backend.backend() == "jax",
    )
    return model.fit(
        inputs,
        {"logits": labels, "language_model": targets},
        sample_weight={"logits": np.ones(len(labels), "float32"), "language_model": weights},
        batch_size=24,
        epochs=12,
        verbose=0,
    ).history


def toy_gpt():
    keras.utils.set_random_seed(7)
    return GPT(11, 1, 2, 12, 13, dropout=0.0, max_sequence_length=17).with_vocabulary_size(14)


def test_a_classifier_learns_from_the_extract_token_and_goes_on_modelling_language(forward):
    texts, labels = toy_texts(240, 0)
    model = keras_seq.GPTClassifier(toy_gpt(), 2, dropout=0.0)
    history = fitted(model, keras_seq.classification_inputs(texts, START, EXTRACT), labels)
    assert history["language_model_loss"][-1] < 0.9 * history["language_model_loss"][0]
    np.testing.assert_allclose(
        history["loss"][-1], history["logits_loss"][-1] + 0.5 * history["language_model_loss"][-1], rtol=1e-3
    )
    texts, labels = toy_texts(13, 1)
    outputs = forward(model)(keras_seq.classification_inputs(texts, START, EXTRACT))
    np.testing.assert_array_equal(np.argmax(outputs["logits"], -1), labels)


def test_a_similarity_model_learns_and_sees_no_order(forward):
    firsts, labels = toy_texts(240, 0)
    seconds, _ = toy_texts(240, 1, labels)
    special = (START, DELIMITER, EXTRACT)
    model = keras_seq.GPTSimilarityClassifier(toy_gpt(), 2, dropout=0.0)
    fitted(model, keras_seq.similarity_inputs(firsts, seconds, *special), labels)
    firsts, labels = toy_texts(13, 2)
    seconds, _ = toy_texts(13, 3, labels)
    logits = forward(model)(keras_seq.similarity_inputs(firsts, seconds, *special))["logits"]
    np.testing.assert_array_equal(np.argmax(logits, -1), labels)
    turned = forward(model)(keras_seq.similarity_inputs(seconds, firsts, *special))["logits"]
    np.testing.assert_allclose(turned, logits, atol=1e-4)


def toy_choices(rows, seed):
    contexts, _ = toy_texts(rows, seed, np.zeros(rows))
    right = np.random.default_rng(seed).integers(0, 3, size=rows)
    answers, _ = toy_texts(3 * rows, seed + 1, (np.arange(3) == right[:, None]).ravel())
    choices = [answers[3 * row : 3 * row + 3] for row in range(rows)]
    return keras_seq.multiple_choice_inputs(contexts, choices, START, DELIMITER, EXTRACT), right


def test_a_multiple_choice_model_learns_which_answer_is_right(forward):
    model = keras_seq.GPTMultipleChoice(toy_gpt(), dropout=0.0)
    fitted(model, *toy_choices(120, 0))
    unseen, right = toy_choices(11, 2)
    np.testing.assert_array_equal(np.argmax(forward(model)(unseen)["logits"], -1), right)


def test_the_heads_read_the_last_real_token(shared, make_inputs, forward):
    model, inputs = shared("GPTClassifier"), make_inputs("GPTClassifier")
    hidden, last = np.asarray(forward(model.backbone.backbone)(inputs)), inputs["padding_mask"].sum(1) - 1
    outputs = forward(model)(inputs)
    expected = model.classification_head(hidden[np.arange(3), last])
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)
    np.testing.assert_allclose(outputs["language_model"], forward(model.backbone)(inputs), atol=1e-4)
    both, inputs = shared("GPTSimilarityClassifier"), make_inputs("GPTSimilarityClassifier")
    flat = {name: one.reshape(6, 7) for name, one in inputs.items()}
    hidden, last = np.asarray(forward(both.backbone.backbone)(flat)), flat["padding_mask"].sum(1) - 1
    summed = hidden[np.arange(6), last].reshape(3, 2, 6).sum(1)
    np.testing.assert_allclose(forward(both)(inputs)["logits"], both.classification_head(summed), atol=1e-4)


def test_errors_name_the_rule_and_the_value(shared, make_inputs):
    with pytest.raises(
        ValueError, match=r"GPT has max_sequence_length=17 positions, prompt included, got .* length=18"
    ):
        shared("GPT").start(make_inputs("GPT"), 18)
    with pytest.raises(ValueError, match=r"GPTClassifier needs a GPT as backbone, got BERT\."):
        keras_seq.GPTClassifier(shared("BERT"), 3)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=7\."):
        GPT(11, **{**SIZES, "hidden_dim": 7})
    with pytest.raises(
        ValueError, match=r"PositionEmbedding needs max_sequence_length >= 1, got max_sequence_length=0"
    ):
        GPT(11, **{**SIZES, "max_sequence_length": 0})
