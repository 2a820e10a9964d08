"""keras_seq.sequence_model: the claims that hold for all models alike, each tested on each."""

import inspect
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_seq
from keras_seq import backend
from keras_seq.losses import TokenCrossentropy
from keras_seq.sequence_model import mean_over_heads

GENERATIVE = ["Seq2Seq", "AttentionSeq2Seq", "Transformer", "GPT"]
MODELS = [*GENERATIVE, "BERT", "BERTForPreTraining", "BERTClassifier"]
FIVE = [*GENERATIVE, "BERT"]
FINE_TUNED = [
    "BERTTokenClassifier", "BERTSpanClassifier", "BERTMultipleChoice",
    "GPTClassifier", "GPTSimilarityClassifier", "GPTMultipleChoice",
]  # fmt: skip


def tensors(inputs):
    return {name: ops.convert_to_tensor(one) for name, one in inputs.items()}


def outputs_of(model, inputs, forward):
    """As a dict of NumPy arrays."""
    given = forward(model)(inputs)
    return {key: np.asarray(one) for key, one in (given if isinstance(given, dict) else {"logits": given}).items()}


def assert_same(ones, others, atol=1e-5):
    for key in ones:
        np.testing.assert_allclose(ones[key], others[key], atol=atol)


SHAPES = {
    **{name: {"logits": (3, 7, 11)} for name in GENERATIVE},
    "BERT": {"sequence_output": (3, 7, 6), "pooled_output": (3, 6)},
    "BERTForPreTraining": {"masked_lm": (3, 2, 11), "next_sentence": (3, 2)},
    "BERTClassifier": {"logits": (3, 5)},
    "BERTTokenClassifier": {"logits": (3, 7, 5)},
    "BERTSpanClassifier": {"start_logits": (3, 7), "end_logits": (3, 7)},
    "BERTMultipleChoice": {"logits": (3, 5)},
    "GPTClassifier": {"logits": (3, 5), "language_model": (3, 7, 11)},
    "GPTSimilarityClassifier": {"logits": (3, 5), "language_model": (3, 2, 7, 11)},
    "GPTMultipleChoice": {"logits": (3, 5), "language_model": (3, 5, 7, 11)},
}


@pytest.mark.parametrize("name", [*MODELS, *FINE_TUNED])
def test_outputs_have_the_contracts_shapes_and_are_float32(name, shared, make_inputs, forward):
    outputs = outputs_of(shared(name), make_inputs(name), forward)
    assert {key: one.shape for key, one in outputs.items()} == SHAPES[name]
    assert all(one.dtype == "float32" for one in outputs.values())


@pytest.mark.parametrize("name", FIVE)
def test_masks_may_be_bool_or_int_and_numpy_may_stand_beside_tensors(name, shared, make_inputs, forward):
    model, inputs = shared(name), make_inputs(name)
    as_int = {key: one.astype("int32") for key, one in inputs.items()}
    mixed = {key: ops.convert_to_tensor(one) if "mask" in key else one for key, one in as_int.items()}
    plain = keras.tree.flatten(forward(model)(inputs))
    others = [backend.compiled(lambda inputs: model(inputs), model)(tensors(as_int))]
    # Only outside of a compiled function can NumPy arrays arrive: on JAX each operation is then compiled by itself.
    if name == "GPT" or keras.backend.backend() == "tensorflow":
        others.append(model(mixed))
    for other in others:
        for one, same in zip(plain, keras.tree.flatten(other)):
            np.testing.assert_allclose(one, same, atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, "BERTSpanClassifier", "BERTMultipleChoice", "GPTSimilarityClassifier"])
def test_longer_padding_and_text_after_the_end_change_no_output(name, shared, make_inputs, pad, forward):
    model, inputs = shared(name), make_inputs(name)
    outputs, padded = (outputs_of(model, given, forward) for given in (inputs, pad(inputs)))
    mask = inputs.get("decoder_padding_mask", inputs.get("padding_mask"))
    for key, one in outputs.items():
        other = padded[key]
        if other.shape != one.shape:  # a value a position: compared where it is real
            positions = mask.ndim - 1
            other = np.take(other, np.arange(7), axis=positions)
            one, other = one[mask], other[mask]
        np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_a_row_does_not_depend_on_its_companions(name, shared, make_inputs, forward):
    model, inputs = shared(name), make_inputs(name)
    others = {key: np.concatenate([make_inputs(name, seed=5)[key][:2], one[1:2]]) for key, one in inputs.items()}
    ones, same = (outputs_of(model, given, forward) for given in (inputs, others))
    assert_same({key: one[1] for key, one in ones.items()}, {key: one[2] for key, one in same.items()})
    assert all(np.abs(one[0] - same[key][0]).max() > 1e-3 for key, one in ones.items())


@pytest.mark.parametrize(
    "name, dtype",
    # float16 has the narrowest range; the two others differ in nothing that depends on the model.
    [*((name, "mixed_float16") for name in FIVE), ("GPT", "mixed_bfloat16"), ("GPT", "float32")],
)
def test_a_row_without_a_real_token_gives_finite_outputs_and_gradients(
    name, dtype, build, make_inputs, weight_gradients
):
    model, inputs = build(name, dtype=dtype, num_layers=1, dropout=0.0), make_inputs(name)
    for key, one in inputs.items():
        inputs[key] = one * (np.arange(3)[:, None] != 1).astype(one.dtype)

    def loss(outputs):
        return sum(ops.sum(ops.square(ops.cast(one, "float32"))) for one in keras.tree.flatten(outputs))

    value, gradients = weight_gradients(model, inputs, loss)
    assert np.isfinite(value) and len(gradients) == len(model.trainable_variables)
    assert all(np.all(np.isfinite(one)) for one in gradients) and any(np.any(one) for one in gradients)


@pytest.mark.parametrize("name", GENERATIVE)
def test_step_by_step_equals_all_at_once(name, shared, make_inputs, compiled, forward):
    assert_steps_equal_the_whole(shared(name), name, make_inputs(name), compiled, forward)


@pytest.mark.parametrize("name, encoding", [("GPT", "sine"), ("GPT", "rotary"), ("Transformer", "learned")])
def test_every_position_encoding_decodes_step_by_step_and_is_saved(
    name, encoding, build, randomized, make_inputs, compiled, forward, tmp_path
):
    model = randomized(build(name, position_encoding=encoding, num_heads=1, num_layers=1))
    inputs = make_inputs(name)
    assert_steps_equal_the_whole(model, name, inputs, compiled, forward)
    # Learned positions, and they alone, are weights: a table for the source, one for the target.
    assert [weight.shape for weight in model.weights].count((17, 6)) == (2 if encoding == "learned" else 0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(outputs_of(model, inputs, forward), outputs_of(loaded, inputs, forward), atol=1e-6)
    # Without positions the rows of a text could change places.
    key = "token_ids" if name == "GPT" else "decoder_token_ids"
    turned = {**inputs, key: inputs[key][:, [1, 0, 2, 3, 4, 5, 6]]}
    difference = outputs_of(model, inputs, forward)["logits"] - outputs_of(model, turned, forward)["logits"]
    assert np.abs(difference[0, 2:]).max() > 1e-4


def test_input_feeding_decodes_step_by_step_and_is_saved(build, randomized, make_inputs, compiled, forward, tmp_path):
    model, inputs = randomized(build("AttentionSeq2Seq", input_feeding=True)), make_inputs("AttentionSeq2Seq")
    assert_steps_equal_the_whole(model, "AttentionSeq2Seq", inputs, compiled, forward)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.input_feeding
    assert_same(outputs_of(model, inputs, forward), outputs_of(loaded, inputs, forward), atol=1e-6)
    prompt = {key: one for key, one in inputs.items() if not key.startswith("decoder_")}
    written = model.generate(prompt, 5, -1, 1)["token_ids"]
    fed = np.concatenate([np.ones((3, 1), "int32"), written], axis=1)
    decoder = {"decoder_token_ids": fed[:, :-1], "decoder_padding_mask": np.ones((3, 5), bool)}
    logits = outputs_of(model, {**prompt, **decoder}, forward)["logits"]
    np.testing.assert_array_equal(np.argmax(logits, -1), written)


@pytest.mark.parametrize("name", ["GPT", "Transformer"])
def test_an_unknown_position_encoding_is_named(name, build):
    with pytest.raises(ValueError, match=rf"{name} needs position_encoding in \(.*\), got position_encoding='none'"):
        build(name, position_encoding="none")


@pytest.mark.parametrize("name", ["GPT", "Transformer"])
def test_rotary_positions_without_pairs_of_channels_in_a_head_are_named(name, build):
    with pytest.raises(
        ValueError, match=rf"^{name} with rotary .* multiple of 2 \* num_heads, .*=10 and num_heads=2\.$"
    ):
        build(name, position_encoding="rotary", num_heads=2, hidden_dim=10)


def assert_steps_equal_the_whole(model, name, inputs, compiled, forward):
    whole = outputs_of(model, inputs, forward)["logits"]
    attention = np.asarray(forward(model.attention_model)(inputs))
    step = compiled(model.step, model)
    key = "token_ids" if name == "GPT" else "decoder_token_ids"
    mask = inputs[key.replace("token_ids", "padding_mask")]
    if name == "GPT":  # a prompt of one token, which the first step feeds again
        prompt = {one: inputs[one][:, :1] for one in inputs}
    else:
        prompt = {one: given for one, given in inputs.items() if not one.startswith("decoder_")}
    state = compiled(lambda prompt: model.start(prompt, 7), model)(tensors(prompt))
    assert all(leaf.shape[0] == 3 for leaf in keras.tree.flatten(state))
    for t in range(7):
        logits, state, weights = step(ops.convert_to_tensor(inputs[key][:, t]), state)
        here = mask[:, t]
        np.testing.assert_allclose(np.asarray(logits)[here], whole[here, t], atol=1e-4)
        np.testing.assert_allclose(np.asarray(weights)[here], attention[here, t], atol=1e-5)


@pytest.mark.parametrize("name", GENERATIVE)
def test_no_output_depends_on_later_tokens(name, shared, make_inputs, forward):
    model, inputs = shared(name), make_inputs(name)
    key = "token_ids" if name == "GPT" else "decoder_token_ids"
    whole = outputs_of(model, inputs, forward)["logits"]
    changed = inputs[key].copy()
    changed[:, 3:] = (changed[:, 3:] + 5) % 11
    assert_same(
        {"logits": outputs_of(model, {**inputs, key: changed}, forward)["logits"][:, :3]}, {"logits": whole[:, :3]}
    )


@pytest.mark.parametrize("name", MODELS)
def test_attention_rows_sum_to_one_over_real_positions(name, shared, make_inputs, forward):
    model, inputs = shared(name), make_inputs(name)
    inputs.pop("mask_positions", None)
    weights = np.asarray(forward(model.attention_model)(inputs))
    asked = inputs.get("encoder_padding_mask", inputs.get("padding_mask"))
    assert weights.shape == (3, 7, asked.shape[1]) and weights.dtype == "float32"
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.any(weights * ~asked[:, None])


@pytest.mark.parametrize("name", ["GPT", "Transformer"])
def test_logits_are_the_backbones_hidden_states_under_the_tied_table(name, shared, make_inputs):
    model, inputs = shared(name), make_inputs(name)
    hidden = model.backbone(inputs)
    assert hidden.shape == (3, 7, 6)
    table = model.token_embedding if name == "GPT" else model.target_embedding
    np.testing.assert_allclose(model(inputs), table(hidden, reverse=True), atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, *FINE_TUNED])
def test_saved_equals_loaded(name, shared, make_inputs, forward, tmp_path):
    model, inputs = shared(name), make_inputs(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and loaded.get_config() == model.get_config()
    assert_same(outputs_of(model, inputs, forward), outputs_of(loaded, inputs, forward), atol=1e-6)
    if name in FINE_TUNED:  # also what the head does not read, such as a pooler
        for one, same in zip(model.backbone.get_weights(), loaded.backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(one, same)


def test_what_is_frozen_is_saved_so_that_the_optimizers_state_fits(build, tmp_path):
    model = build("BERTForPreTraining", num_layers=1)
    # Within what is frozen something trains: a part of a block, and the table that the head shares with the backbone.
    for holder, held in (
        (model.backbone.blocks[0], model.backbone.blocks[0].feed_forward),
        (model.masked_lm_head, model.backbone.token_embedding),
    ):
        holder.trainable, held.trainable = False, True
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(7)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    flags = [weight.trainable for weight in model.weights]
    assert [weight.trainable for weight in loaded.weights] == flags and len(set(flags)) == 2
    assert loaded.get_config() == model.get_config() and int(loaded.optimizer.iterations) == 7


@pytest.mark.parametrize("name", MODELS)
def test_the_constructor_is_the_configuration(name, shared):
    model = shared(name)
    config = model.get_config()
    arguments = [one for one in inspect.signature(type(model)).parameters if one != "kwargs"]
    assert set(config) == {*arguments, "name", "trainable", "dtype"}
    assert all(hasattr(model, one) for one in arguments)
    again = type(model).from_config(config)
    assert again.get_config() == config
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in model.weights]


@pytest.mark.parametrize("name", ["GPTSimilarityClassifier", "GPTMultipleChoice"])
def test_logits_are_float32_also_where_mixed_precision_is_everyones_policy(name, build):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        outputs = build(name, num_layers=1).output
    finally:
        keras.config.set_dtype_policy(before)
    assert {key: one.dtype for key, one in outputs.items()} == {"logits": "float32", "language_model": "float32"}


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_computes_in_bfloat16_and_gives_float32_logits(name, build, shared, make_inputs, forward):
    model, inputs = build(name, dtype="mixed_bfloat16"), make_inputs(name)
    model.set_weights(shared(name).get_weights())
    assert model.compute_dtype == "bfloat16" and all(weight.dtype == "float32" for weight in model.weights)
    given = forward(model)(inputs)
    given = given if isinstance(given, dict) else {"logits": given}
    for key, exact in outputs_of(shared(name), inputs, forward).items():
        dtype = keras.backend.standardize_dtype(given[key].dtype)
        assert dtype == ("bfloat16" if name == "BERT" else "float32")
        one = np.asarray(ops.cast(given[key], "float32"))
        assert 0 < np.abs(one - exact).mean() < 0.1 * exact.std()


def learnable(name, make_inputs):
    """Inputs, targets and a loss: the next token of an endless count, or which class the text's first token is."""
    inputs = make_inputs(name, batch=22, seed=3)
    if name == "BERT":
        inputs = make_inputs(name, batch=22, seed=3)
        return inputs, inputs["token_ids"][:, 0] % 5, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prefix = "" if name == "GPT" else "decoder_"
    ids = (np.arange(22)[:, None] + np.arange(7)) % 11
    inputs[f"{prefix}token_ids"] = ids.astype("int32")
    return inputs, (ids + 1) % 11, TokenCrossentropy(0.1)


@pytest.mark.parametrize("name", FIVE)
def test_compile_and_fit_lower_the_loss(name, build, make_inputs):
    keras.utils.set_random_seed(7)
    model = build("BERTClassifier" if name == "BERT" else name, num_layers=1)
    inputs, targets, loss = learnable(name, make_inputs)
    # Left alone, Keras takes XLA, which compiles longer than TensorFlow trains here: one without a loop is enough.
    xla = name in ("GPT", "Seq2Seq", "AttentionSeq2Seq") or keras.backend.backend() == "jax"
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=xla)
    mask = inputs.get("decoder_padding_mask", inputs.get("padding_mask")).astype("float32")
    weights = {} if name == "BERT" else {"sample_weight": mask}
    history = model.fit(inputs, targets, batch_size=11, epochs=10, verbose=0, **weights).history["loss"]
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("name", FIVE)
def test_a_model_without_layers_is_refused(name, build):
    with pytest.raises(ValueError, match=r"needs .*num_layers >= 1, got .*num_layers=0\."):
        build(name, num_layers=0)


def test_all_five_models_are_public():
    assert all(issubclass(getattr(keras_seq, name), keras.Model) for name in [*MODELS, *FINE_TUNED])


def test_mean_over_heads_is_float32():
    weights = ops.cast(np.random.default_rng(0).random((2, 3, 5, 7)).astype("float32"), "bfloat16")
    mean = mean_over_heads(weights)
    assert mean.shape == (2, 5, 7) and keras.backend.standardize_dtype(mean.dtype) == "float32"


@pytest.mark.parametrize("name", ["GPT", "BERT", "Transformer", *FINE_TUNED])
def test_text_of_more_positions_than_the_model_has_is_named(name, shared, make_inputs):
    with pytest.raises(ValueError, match=rf"{name} has max_sequence_length=17 positions, .* length=19"):
        shared(name)(make_inputs(name, target=19))


def test_a_part_of_the_graph_has_as_many_positions_as_the_model_and_is_saved(shared, make_inputs, forward, tmp_path):
    views = [shared(name).attention_model for name in ("BERT", "BERTClassifier")]
    for view in [*views, shared("GPT").backbone, shared("Transformer").backbone]:
        inputs = make_inputs("Transformer" if "decoder_token_ids" in view.input else "BERT", target=19)
        with pytest.raises(ValueError, match=r"GraphView has max_sequence_length=17 positions, .* length=19"):
            view({name: inputs[name] for name in view.input})
    views[0].save(tmp_path / "view.keras")
    loaded, inputs = keras.saving.load_model(tmp_path / "view.keras"), make_inputs("BERT")
    np.testing.assert_allclose(forward(loaded)(inputs), forward(views[0])(inputs), atol=1e-6)


OTHER = """
import sys
sys.modules["tensorflow"] = None  # Keras imports it where it finds it, for seconds
import numpy as np, keras, keras_seq
from keras_seq import backend

folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    stored = np.load(f"{folder}/{name}.npz")
    inputs = {key: keras.ops.convert_to_tensor(stored[key]) for key in model.input}
    outputs = backend.compiled(lambda inputs: model(inputs), model)(inputs)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    difference = max(np.abs(np.asarray(outputs[key]) - stored["output_" + key]).max() for key in outputs)
    model.save_weights(f"{folder}/{name}.weights.h5")
    print(name, keras.backend.backend(), difference)
"""


if keras.backend.backend() == "tensorflow":  # There and back: whole models one way, weights the other.

    @pytest.mark.slow
    def test_what_tensorflow_saves_jax_loads_with_equal_outputs_and_back(shared, make_inputs, forward, build, tmp_path):
        for name in FIVE:
            inputs = make_inputs(name)
            outputs = outputs_of(shared(name), inputs, forward)
            shared(name).save(tmp_path / f"{name}.keras")
            np.savez(tmp_path / f"{name}.npz", **inputs, **{f"output_{key}": one for key, one in outputs.items()})
        done = subprocess.run(
            [sys.executable, "-c", OTHER, tmp_path, *FIVE],
            env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        assert [row[:2] for row in rows] == [[name, "jax"] for name in FIVE], done.stderr
        assert max(float(row[2]) for row in rows) < 1e-4, rows
        # And the weights alone, on their way back.
        for name in FIVE:
            model = build(name)
            model.load_weights(tmp_path / f"{name}.weights.h5")
            for one, same in zip(model.get_weights(), shared(name).get_weights(), strict=True):
                np.testing.assert_array_equal(one, same)
