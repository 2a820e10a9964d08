"""keras_seq.tuning: low-rank updates, frozen backbones, recomputed blocks and 8-bit weights, on all five models."""

import gc
import json
import re

import keras
import numpy as np
import pytest

import keras_seq
from keras_seq import backend

JIT = backend.BACKEND == "jax"  # with TensorFlow it would be XLA, which takes longer to compile than to train here
FIVE = ["Seq2Seq", "AttentionSeq2Seq", "Transformer", "GPT", "BERT"]
# Of one layer: two matrices an attention, of which a decoder has two; without attention blocks, every dense layer.
UPDATED = {"Seq2Seq": 1, "AttentionSeq2Seq": 4, "Transformer": 6, "GPT": 2, "BERT": 2}


def outputs_of(model, inputs):
    """In a graph of its own: the models here are changed between calls."""
    function = backend.compiled(lambda inputs: model(inputs), model)
    given = function({key: keras.ops.convert_to_tensor(one) for key, one in inputs.items()})
    return {key: np.asarray(one) for key, one in (given if isinstance(given, dict) else {"logits": given}).items()}


def assert_near(ones, others, share):
    for key, one in ones.items():
        assert np.abs(one - others[key]).max() <= share * one.std(), key


def train(model, inputs, steps=1):
    targets = np.ones((3, 7), "int32")
    model.compile(keras.optimizers.SGD(0.1), keras_seq.TokenCrossentropy(), jit_compile=JIT)
    for _ in range(steps):
        model.train_on_batch(inputs, targets)


@pytest.mark.parametrize("name", FIVE)
def test_low_rank_updates_are_all_that_trains(name, build):
    model = build(name, num_layers=1)
    layers = keras_seq.enable_lora(model, 2)
    assert len(layers) == UPDATED[name] and len(model.trainable_variables) == 2 * len(layers)
    assert sum(weight.shape[-1] == 2 or weight.shape[0] == 2 for weight in model.trainable_variables) == 2 * len(layers)


@pytest.mark.parametrize("name", ["AttentionSeq2Seq", "Transformer"])
def test_low_rank_updates_start_at_nothing_and_are_saved_within_the_matrices(
    name, build, make_inputs, randomized, tmp_path
):
    model, inputs = randomized(build(name, dropout=0.0, num_layers=1)), make_inputs(name)
    before = outputs_of(model, inputs)
    frozen = {id(weight): weight.numpy() for weight in model.weights}
    keras_seq.enable_lora(model, 2)
    assert_near(before, outputs_of(model, inputs), 1e-6)
    train(model, inputs, steps=2)  # the first moves B alone, for A's gradient goes through it
    for weight in model.non_trainable_variables:
        if id(weight) in frozen:
            np.testing.assert_array_equal(weight, frozen[id(weight)])
    after = outputs_of(model, inputs)
    assert np.abs(after["logits"] - before["logits"]).max() > 1e-4
    model.save(tmp_path / "merged.keras")
    merged = keras.saving.load_model(tmp_path / "merged.keras", compile=False)
    assert merged.count_params() == sum(one.size for one in frozen.values())
    assert_near(after, outputs_of(merged, inputs), 1e-4)


def test_a_compiled_model_is_to_be_compiled_again_with_low_rank_updates(build, make_inputs):
    model, inputs = build("GPT", num_layers=1), make_inputs("GPT")
    train(model, inputs)
    layers = keras_seq.enable_lora(model, 2)
    before = {id(weight): weight.numpy() for weight in model.non_trainable_variables}
    with pytest.raises(ValueError, match=r"compile\(\)"):
        model.train_on_batch(inputs, np.ones((3, 7), "int32"))
    train(model, inputs)
    for weight in model.non_trainable_variables:
        if "seed" not in weight.path:
            np.testing.assert_array_equal(weight, before[id(weight)])
    assert all(np.any(layer.lora_kernel_b.numpy()) for layer in layers)


def test_generation_sees_an_update_that_came_after_its_trace(build, make_inputs, randomized):
    model, inputs = randomized(build("GPT")), make_inputs("GPT")
    before = model.generate(inputs, 3, -1)["scores"]
    for layer in keras_seq.enable_lora(model, 2):
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert np.abs(model.generate(inputs, 3, -1)["scores"] - before).max() > 1e-3


def test_updates_of_a_backbone_train_beside_the_head(build):
    model = build("GPTClassifier", num_layers=1)
    keras_seq.enable_lora(model.backbone, 2)
    assert len(model.trainable_variables) == 2 * UPDATED["GPT"] + len(model.classification_head.weights)


def test_a_target_or_rank_that_cannot_be_is_named_and_freezes_nothing(build):
    model = build("Seq2Seq")
    for targets in (["query"], ["logits", "query"], "the logits", []):
        with pytest.raises(
            ValueError, match=rf"among the dense layers \['logits'\], got targets={re.escape(repr(targets))}"
        ):
            keras_seq.enable_lora(model, 2, targets=targets)
    with pytest.raises(ValueError, match=r"enable_lora needs rank >= 1, got rank=0\."):
        keras_seq.enable_lora(model, 0)
    assert not model.non_trainable_weights


@pytest.mark.parametrize("name", ["BERTTokenClassifier", "GPTClassifier"])
def test_a_frozen_backbone_leaves_the_head_to_train(name, build, make_inputs):
    model, inputs = build(name), make_inputs(name)
    model.backbone.trainable = False
    head = model.classification_head
    assert len(model.trainable_variables) == 2
    before, head_before = model.backbone.get_weights(), head.get_weights()
    targets = np.ones((3, 7) if name == "BERTTokenClassifier" else 3, "int32")
    targets = {"logits": targets} if name == "GPTClassifier" else targets
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"logits": loss, "language_model": None} if name == "GPTClassifier" else loss
    model.compile("adam", losses, jit_compile=JIT)
    model.train_on_batch(inputs, targets)
    for one, same in zip(before, model.backbone.get_weights()):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(head_before[0], head.get_weights()[0])


def test_recomputed_blocks_train_to_the_same_weights_dropout_included(build, make_inputs, monkeypatch):
    # A Transformer has both blocks that there are.
    inputs, trained, calls, remat = make_inputs("Transformer"), [], [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(function) or remat(function))
    for recomputed in (False, True):
        keras.utils.set_random_seed(7)
        model = build("Transformer", dropout=0.3, num_layers=1)
        before = model.get_weights()
        if recomputed:
            keras_seq.enable_gradient_checkpointing(model)
        train(model, inputs, steps=2)
        trained.append(model.get_weights())
        assert len(calls) % 2 == 0 and bool(calls) == recomputed
    assert max(np.abs(one - other).max() for one, other in zip(before, trained[0])) > 1e-3
    for one, other in zip(*trained):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_model_without_blocks_is_named(build):
    with pytest.raises(ValueError, match=r"enable_gradient_checkpointing needs a model with blocks, got Seq2Seq\."):
        keras_seq.enable_gradient_checkpointing(build("Seq2Seq"))


@pytest.fixture
def quick_collection(monkeypatch):
    """Keras collects garbage once a layer, which takes most of a minute in a process that has run other tests."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.parametrize("name", FIVE)
def test_8_bit_weights_are_all_dense_layers_and_stay_in_the_configuration(name, build, quick_collection):
    model = build(name, num_layers=1)
    model.quantize("int8")
    for one in (model, type(model).from_config(model.get_config())):
        kernels = [layer._kernel for layer in keras_seq.tuning.dense_layers(one)]
        assert kernels and {keras.backend.standardize_dtype(kernel.dtype) for kernel in kernels} == {"int8"}


WEIGHTS_ALONE = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)


@pytest.mark.parametrize("name, how", [("AttentionSeq2Seq", {"mode": "int8"}), ("GPT", {"config": WEIGHTS_ALONE})])
def test_8_bit_weights_answer_alike_and_are_saved(
    name, how, build, randomized, make_inputs, tmp_path, quick_collection
):
    model, inputs = randomized(build(name, num_layers=1)), make_inputs(name)
    before = outputs_of(model, inputs)
    model.quantize(**how)
    after = outputs_of(model, inputs)
    assert np.abs(after["logits"] - before["logits"]).max() > 0
    assert_near(before, after, 0.1)
    model.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    assert loaded.get_config() == model.get_config()
    assert_near(after, outputs_of(loaded, inputs), 1e-6)


@pytest.mark.parametrize(
    "options",
    [{"block_size": 2}, {"block_size": None, "weight_quantizer": keras.quantizers.AbsMaxQuantizer(0, (-8, 7))}],
)
def test_4_bit_weights_keep_groups_and_quantizer_in_the_configuration(options, build, quick_collection):
    model = build("GPT", num_layers=1)
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(**options))
    again = keras_seq.GPT.from_config(json.loads(json.dumps(model.get_config())))
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in model.weights]
    assert again.get_config() == model.get_config()
