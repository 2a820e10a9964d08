"""keras_seq.attention against its formulas written out in NumPy, and against Keras' own layer."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_seq.attention import AdditiveScore, DotScore, GeneralScore, MultiHeadAttention, attend, masked_softmax
from keras_seq.positions import RotaryEmbedding

DTYPES = ["float32", "bfloat16", "float16"]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def some_allowed(*shape):
    allowed = np.random.default_rng(5).random(shape) < 0.6
    allowed[..., 0] = True
    return allowed


def softmax(scores, allowed):
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return weights / weights.sum(-1, keepdims=True)


def formula_dot(score, query, memory):
    return np.einsum("btd,bsd->bts", query, memory)


def formula_scaled(score, query, memory):
    return np.einsum("btd,bsd->bts", query, memory) / np.sqrt(query.shape[-1])


def formula_general(score, query, memory):
    (kernel,) = score.get_weights()
    return np.einsum("btd,ed,bse->bts", query, kernel, memory)


def formula_additive(score, query, memory):
    w, u, v = score.get_weights()
    return (np.tanh((query @ w)[:, :, None] + (memory @ u)[:, None]) @ v)[..., 0]


SCORES = {
    "dot": (lambda: DotScore(), formula_dot, 7),
    "scaled dot": (lambda: DotScore(scaled=True), formula_scaled, 7),
    "general": (lambda: GeneralScore(), formula_general, 11),
    "additive": (lambda: AdditiveScore(13), formula_additive, 11),
}


@pytest.mark.parametrize("name", SCORES)
def test_each_score_and_attend_with_it_equal_the_formula(name):
    make, formula, memory_width = SCORES[name]
    score, query, memory = make(), normal(2, 3, 7), normal(2, 5, memory_width)
    scores = score(query, memory)
    expected = formula(score, query, memory)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)

    values, allowed = normal(2, 5, 13), some_allowed(2, 3, 5)
    context, weights = attend(
        ops.convert_to_tensor(query), score.project(ops.convert_to_tensor(memory)), values, score, allowed
    )
    np.testing.assert_allclose(weights, softmax(expected, allowed), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(context, softmax(expected, allowed) @ values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_made_from_its_config_has_the_same_config(name):
    score = SCORES[name][0]()
    assert type(score).from_config(score.get_config()).get_config() == score.get_config()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_sum_to_one_over_what_is_allowed_and_are_zero_elsewhere(dtype):
    allowed = some_allowed(2, 3, 5)
    weights = ops.cast(masked_softmax(ops.cast(normal(2, 3, 5), dtype), allowed), "float32")
    np.testing.assert_allclose(ops.sum(weights, -1), 1, atol=1e-6 if dtype == "float32" else 1e-2)
    assert not np.any(ops.convert_to_numpy(weights)[~allowed])


def test_without_a_mask_everything_may_be_seen():
    scores = normal(2, 3, 5)
    everything = masked_softmax(scores, np.ones((2, 3, 5), bool))
    np.testing.assert_allclose(masked_softmax(scores, None), everything, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_with_nothing_to_see_gives_zeros_and_finite_gradients(dtype, length, gradient):
    allowed = np.ones((2, 3, length), bool)
    allowed[1] = False
    scores = ops.cast(1e4 * normal(2, 3, length), dtype)
    weights = masked_softmax(scores, allowed)
    assert keras.backend.standardize_dtype(weights.dtype) == dtype
    assert not np.any(ops.convert_to_numpy(ops.cast(weights, "float32"))[1])

    factors = normal(2, 3, length, seed=1)
    slope = gradient(lambda x: ops.sum(ops.cast(masked_softmax(x, allowed), "float32") * factors), scores)
    assert np.all(np.isfinite(slope))
    assert not np.any(slope[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCORES)
def test_attend_over_nothing_is_zero_with_every_score(name, dtype, gradient):
    make, _, memory_width = SCORES[name]
    score = make()
    score(normal(2, 3, 7), normal(2, 5, memory_width))
    query, memory = ops.cast(normal(2, 3, 7), dtype), ops.cast(normal(2, 5, memory_width), dtype)
    allowed = np.array([True, False])[:, None, None]

    def context(query):
        return attend(query, score.project(memory), memory, score, allowed)[0]

    assert not np.any(ops.convert_to_numpy(ops.cast(context(query), "float32"))[1])
    assert np.all(np.isfinite(gradient(lambda query: ops.sum(ops.cast(context(query), "float32")), query)))


def test_dropout_thins_the_weights_that_mix_and_not_those_returned():
    query, dropout = ops.convert_to_tensor(normal(2, 3, 7)), keras.layers.Dropout(0.5, seed=2)
    plain, weights = attend(query, query, query, DotScore())
    thinned, same = attend(query, query, query, DotScore(), dropout=dropout, training=True)
    np.testing.assert_array_equal(weights, same)
    assert not np.allclose(plain, thinned)


def test_dot_score_names_the_widths_that_differ():
    with pytest.raises(ValueError, match="DotScore needs query and memory of one width, got 7 and 11; GeneralScore"):
        DotScore()(normal(2, 3, 7), normal(2, 5, 11))


def test_general_score_needs_known_widths():
    with pytest.raises(ValueError, match=r"GeneralScore needs known widths, got query \(2, 3, None\) and memory"):
        GeneralScore().build((2, 3, None), (2, 5, 7))


def test_additive_score_needs_a_width():
    with pytest.raises(ValueError, match=r"AdditiveScore needs width >= 1, got width=0\."):
        AdditiveScore(0)


# === MultiHeadAttention ===


def heads(num_heads, randomized, width=6, memory_width=None):
    layer = MultiHeadAttention(num_heads)
    layer.build((None, None, width), None if memory_width is None else (None, None, memory_width))
    layer.built = True
    return randomized(layer)


def test_one_head_equals_plain_attention(randomized):
    layer, x, allowed = heads(1, randomized), normal(2, 5, 6), some_allowed(2, 5, 5)
    (wq, bq), (wk, bk), (wv, bv), (wo, bo) = (
        getattr(layer, f"{name}_dense").get_weights() for name in ("query", "key", "value", "output")
    )
    weights = softmax(formula_scaled(None, x @ wq + bq, x @ wk + bk), allowed)
    output, weights_b1ts, _ = layer(x, allowed=allowed)
    np.testing.assert_allclose(weights_b1ts[:, 0], weights, atol=1e-5)
    np.testing.assert_allclose(output, weights @ (x @ wv + bv) @ wo + bo, atol=1e-4)


@pytest.mark.parametrize("memory_width", [None, 11])
def test_several_heads_equal_keras_layer_with_the_same_weights(memory_width, randomized, copy_attention):
    ours, x = heads(3, randomized, memory_width=memory_width), normal(2, 5, 6)
    memory = x if memory_width is None else normal(2, 7, memory_width)
    allowed = some_allowed(2, 5, memory.shape[1])
    theirs = keras.layers.MultiHeadAttention(3, 2)
    theirs.build(x.shape, memory.shape)
    copy_attention(ours, theirs)
    output, weights, _ = ours(x, memory=None if memory_width is None else memory, allowed=allowed)
    their_output, their_weights = theirs(x, memory, attention_mask=allowed, return_attention_scores=True)
    np.testing.assert_allclose(weights, their_weights, atol=1e-5)
    np.testing.assert_allclose(output, their_output, atol=1e-4)


def test_step_by_step_with_a_cache_equals_all_at_once(randomized):
    layer, x = heads(3, randomized), normal(2, 5, 6)
    causal = np.tri(5, dtype=bool)[None]
    whole, whole_weights, whole_cache = layer(x, allowed=causal)
    cache = (ops.zeros((2, 3, 5, 2)), ops.zeros((2, 3, 5, 2)))
    for t in range(5):
        position = ops.full((2,), t, "int32")
        output, weights, cache = layer(x[:, t : t + 1], allowed=causal[:, t : t + 1], cache=cache, position=position)
        np.testing.assert_allclose(output[:, 0], whole[:, t], atol=1e-4)
        np.testing.assert_allclose(weights[:, :, 0], whole_weights[:, :, t], atol=1e-5)
    for ours, all_at_once in zip(cache, whole_cache):
        np.testing.assert_allclose(ours, all_at_once, atol=1e-5)


def test_a_memory_projected_once_equals_one_projected_each_time(randomized):
    layer, x, memory = heads(3, randomized, memory_width=11), normal(2, 5, 6), normal(2, 7, 11)
    allowed = some_allowed(2, 1, 7)
    each_time, _, _ = layer(x, memory=memory, allowed=allowed)
    once, _, _ = layer(x, allowed=allowed, cache=layer.project(ops.convert_to_tensor(memory)))
    np.testing.assert_allclose(once, each_time, atol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_a_row_with_nothing_to_see_gets_the_output_bias_alone(dtype):
    layer = MultiHeadAttention(3, dtype=dtype)
    output, weights, _ = layer(normal(2, 5, 6), allowed=np.array([True, False])[:, None, None])
    assert not np.any(ops.convert_to_numpy(ops.cast(weights, "float32"))[1])
    assert not np.any(ops.convert_to_numpy(ops.cast(output, "float32"))[1])


def test_errors_name_the_heads_and_the_width():
    with pytest.raises(ValueError, match=r"MultiHeadAttention needs num_heads >= 1, got num_heads=0\."):
        MultiHeadAttention(0)
    with pytest.raises(ValueError, match=r"needs a width that 3 heads divide, got width=7\."):
        MultiHeadAttention(3)(normal(2, 5, 7))


def test_rotary_needs_no_memory_and_is_kept_in_the_config():
    layer = MultiHeadAttention(3, rotary=RotaryEmbedding(100.0))
    assert MultiHeadAttention.from_config(layer.get_config()).rotary.max_wavelength == 100.0
    with pytest.raises(
        ValueError, match=r"MultiHeadAttention with rotary needs no memory, got one of shape \(2, 7, 6\)"
    ):
        layer(np.zeros((2, 5, 6), "float32"), np.zeros((2, 7, 6), "float32"))
