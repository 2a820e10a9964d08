"""keras_seq.blocks against KerasHub's blocks with the same weights."""

import numpy as np
import pytest
from keras import ops

from keras_seq.blocks import DecoderBlock, EncoderBlock, FeedForward, Residual

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 5, 6)).astype("float32")
MEMORY = RANDOM.normal(size=(2, 7, 11)).astype("float32")
X_MASK = np.arange(5) < np.array([[5], [3]])
MEMORY_MASK = np.arange(7) < np.array([[2], [7]])
CAUSAL = np.tri(5, dtype=bool)[None]


def built(block, randomized, *inputs, **options):
    block(*inputs, **options)
    return randomized(block)


@pytest.mark.parametrize("normalize_first", [False, True])
def test_the_encoder_block_equals_keras_hubs(normalize_first, randomized, copy_block, keras_nlp):
    ours = built(EncoderBlock(3, 13, normalize_first=normalize_first), randomized, X)
    theirs = keras_nlp.layers.TransformerEncoder(13, 3, normalize_first=normalize_first)
    theirs(X)
    copy_block(ours, theirs)
    output, weights = ours(X, allowed=X_MASK[:, None])
    np.testing.assert_allclose(output, theirs(X, padding_mask=X_MASK), atol=1e-4)
    assert weights.shape == (2, 3, 5, 5)


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("with_memory", [False, True])
def test_the_decoder_block_equals_keras_hubs(with_memory, normalize_first, randomized, copy_block, keras_nlp):
    memory = {"memory": MEMORY} if with_memory else {}
    ours = built(DecoderBlock(3, 13, normalize_first=normalize_first), randomized, X, **memory)
    theirs = keras_nlp.layers.TransformerDecoder(13, 3, normalize_first=normalize_first)
    theirs(X, *memory.values())
    copy_block(ours, theirs)
    masked = {**memory, "memory_allowed": MEMORY_MASK[:, None]} if with_memory else {}
    output, weights, _ = ours(X, allowed=CAUSAL & X_MASK[:, None], **masked)
    their_mask = {"encoder_padding_mask": MEMORY_MASK} if with_memory else {}
    expected = theirs(X, *memory.values(), decoder_padding_mask=X_MASK, **their_mask)
    np.testing.assert_allclose(output, expected, atol=1e-4)
    assert weights.shape == (2, 3, 5, 7 if with_memory else 5)


@pytest.mark.parametrize("normalize_first", [False, True])
def test_the_decoder_never_looks_ahead(normalize_first, randomized):
    block = built(DecoderBlock(3, 13, normalize_first=normalize_first), randomized, X)
    output, _, _ = block(X, allowed=CAUSAL)
    for t in range(1, 5):
        changed = X.copy()
        changed[:, t:] += 3
        np.testing.assert_allclose(block(changed, allowed=CAUSAL)[0][:, :t], output[:, :t], atol=1e-5)


@pytest.mark.parametrize("normalize_first", [False, True])
def test_step_by_step_over_a_projected_memory_equals_all_at_once(normalize_first, randomized):
    # Also in training, and where the whole would be computed again.
    block = built(DecoderBlock(3, 13, normalize_first=normalize_first), randomized, X, memory=MEMORY)
    memory_allowed = MEMORY_MASK[:, None]
    whole, whole_weights, _ = block(X, memory=MEMORY, allowed=CAUSAL, memory_allowed=memory_allowed)
    projected = block.cross_attention.project(ops.convert_to_tensor(MEMORY))
    block.rematerialize = True
    cache = (ops.zeros((2, 3, 5, 2)), ops.zeros((2, 3, 5, 2)))
    for t in range(5):
        output, weights, cache = block(
            X[:, t : t + 1], allowed=CAUSAL[:, t : t + 1], memory_allowed=memory_allowed, memory_cache=projected,
            cache=cache, position=ops.full((2,), t, "int32"), training=normalize_first,
        )  # fmt: skip
        np.testing.assert_allclose(output[:, 0], whole[:, t], atol=1e-4)
        np.testing.assert_allclose(weights[:, :, 0], whole_weights[:, :, t], atol=1e-5)


def formula_gelu(x):
    return x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("activation, formula", [("relu", lambda x: x * (x > 0)), ("gelu_approximate", formula_gelu)])
def test_feed_forward_equals_its_formula(activation, formula, randomized):
    layer = built(FeedForward(13, activation), randomized, X)
    w1, b1, w2, b2 = layer.intermediate_dense.get_weights() + layer.output_dense.get_weights()
    np.testing.assert_allclose(layer(X), formula(X @ w1 + b1) @ w2 + b2, atol=1e-4)


def test_the_two_gelus_differ(randomized):
    exact = built(FeedForward(13, "gelu"), randomized, X)
    approximate = built(FeedForward(13, "gelu_approximate"), randomized, X)
    difference = np.abs(np.asarray(exact(X)) - np.asarray(approximate(X))).max()
    assert 1e-5 < difference < 1e-2


def test_an_initializer_may_be_a_function():
    layer = EncoderBlock(3, 13, kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype))
    layer.build(X.shape)
    assert all(np.all(np.asarray(one) == 1) for one in layer.weights if one.name == "kernel")


@pytest.mark.parametrize("normalize_first", [False, True])
def test_residual_puts_the_norm_first_or_last(normalize_first):
    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    layer, f = Residual(normalize_first=normalize_first), 3 * X[:, ::-1]
    layer.build(X.shape)
    np.testing.assert_allclose(layer.enter(ops.convert_to_tensor(X)), norm(X) if normalize_first else X, atol=1e-4)
    np.testing.assert_allclose(layer(X, f), X + f if normalize_first else norm(X + f), atol=1e-4)


@pytest.mark.parametrize(
    "layer", [EncoderBlock(3, 13, 0.1, "gelu", True), DecoderBlock(3, 13), FeedForward(13), Residual(0.1, True)]
)
def test_config_round_trip(layer):
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_errors_name_the_rule_and_the_value():
    with pytest.raises(ValueError, match=r"FeedForward needs intermediate_dim >= 1, got intermediate_dim=0\."):
        FeedForward(0)
    with pytest.raises(ValueError, match=r"needs a width that 5 heads divide, got width=6\."):
        EncoderBlock(5, 13)(X)
    with pytest.raises(ValueError, match=r"`rate`.*1\.5|Invalid value received for argument `rate`"):
        Residual(dropout=1.5)
