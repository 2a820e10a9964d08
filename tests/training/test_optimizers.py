"""The optimizer of a recipe, by hand."""

import keras
import numpy as np
import pytest

from training import optimizers

NAMES = ["kernel", "bias", "gamma", "beta", "embeddings"]
STILL = {"learning_rate": 0.5, "warmup_steps": 1, "decay": "constant", "weight_decay": 0.0}


def variables():
    return [keras.Variable(np.full((2, 3), i + 1.0, "float32"), name=name) for i, name in enumerate(NAMES)]


def gradients(seed):
    return [keras.ops.convert_to_tensor(one) for one in np.random.default_rng(seed).normal(size=(5, 2, 3)).astype("f")]


def made(conftest, model, **changes):
    one = optimizers.optimizer(conftest.tiny_recipe("gpt", **{**STILL, **changes}))
    one.build(model)
    return one


def values(model):
    return [np.array(variable) for variable in model]


def test_norms_and_biases_do_not_decay_and_the_rest_does(conftest):
    model = variables()
    before = values(model)
    made(conftest, model, weight_decay=0.5).apply([keras.ops.zeros_like(one) for one in model])
    for name, old, new in zip(NAMES, before, values(model)):
        np.testing.assert_allclose(new, old if name in ("bias", "gamma", "beta") else 0.75 * old, atol=1e-6)


def test_gradients_of_several_batches_are_one_update_by_their_mean(conftest):
    one, other = variables(), variables()
    start, accumulated = values(one), made(conftest, one, gradient_accumulation=2)
    accumulated.apply(gradients(3))
    np.testing.assert_array_equal(values(one), start)
    accumulated.apply(gradients(5))
    made(conftest, other).apply([(a + b) / 2 for a, b in zip(gradients(3), gradients(5))])
    np.testing.assert_allclose(values(one), values(other), atol=1e-6)
    assert np.abs(np.array(values(one)) - start).min() > 0.1


@pytest.mark.parametrize("batches", [1, 3])
def test_an_update_has_the_rate_of_its_batch_to_the_end_of_the_run(batches, conftest):
    changes = {"steps": 12, "warmup_steps": 4, "learning_rate": 0.5, "decay": "linear"}
    model = variables()
    one = made(conftest, model, gradient_accumulation=batches, **changes)
    for step in range(12):
        # Adam's update is the rate times a factor, the same for one gradient again and again.
        before = values(model)
        one.apply(gradients(3))
        done = np.abs(np.array(values(model)) - before).max()
        rate = float(optimizers.schedule(conftest.tiny_recipe("gpt", **changes))(step))
        assert done == pytest.approx(rate if (step + 1) % batches == 0 else 0, abs=1e-4)


def test_gradients_are_cut_to_the_greatest_norm(conftest):
    # Adam forgets the size of a gradient: two batches of very different size tell whether each was cut.
    model = variables()
    one = made(conftest, model, clip_norm=0.1, gradient_accumulation=2)
    one.apply([1000 * gradient for gradient in gradients(3)])
    one.apply(gradients(3))
    other = variables()
    made(conftest, other, clip_norm=None).apply(gradients(3))
    np.testing.assert_allclose(values(model), values(other), atol=1e-4)


def test_the_moving_average_takes_the_place_of_the_weights_at_the_end(conftest):
    model = variables()
    one, seen = made(conftest, model, ema_momentum=0.75), []
    for seed in (3, 5):
        one.apply(gradients(seed))
        seen.append(values(model))
    one.finalize_variable_values(model)
    # Keras' average starts from the weights after the first update.
    expected = [0.75 * first + 0.25 * second for first, second in zip(*seen)]
    np.testing.assert_allclose(values(model), expected, atol=1e-6)


def test_in_float16_an_overflow_is_left_out_and_the_scale_is_halved(conftest):
    model = variables()
    one = made(conftest, model, dtype="mixed_float16")
    before, scale = values(model), float(np.array(one.dynamic_scale))
    one.apply([gradients(3)[0] * np.inf, *gradients(3)[1:]])
    np.testing.assert_array_equal(values(model), before)
    assert float(np.array(one.dynamic_scale)) == scale / 2
    one.apply([gradient * scale / 2 for gradient in gradients(3)])
    other = variables()
    made(conftest, other).apply(gradients(3))
    np.testing.assert_allclose(values(model), values(other), atol=1e-5)
    assert not isinstance(made(conftest, variables(), dtype="mixed_bfloat16"), keras.optimizers.LossScaleOptimizer)
