"""Losses and metrics that count real tokens only: Keras multiplies by the sample weights, these also divide by them."""

import keras
from keras import ops

from keras_seq.attention import HIDDEN


@keras.saving.register_keras_serializable("keras_seq")
class TokenCrossentropy(keras.losses.Loss):
    """Mean negative log-probability of the true ids, in nats per token whose sample weight is not 0.

    With label smoothing the target is 1 - eps on the true id plus eps spread over the vocabulary (Szegedy et al. 2016,
    section 7; Vaswani et al. 2017, section 5.4), computed without one-hot targets.

    Shapes:
        y_true (b, t) int, y_pred logits (b, t, v), sample_weight (b, t) or one a row, (b,) or (b, 1) -> scalar.

    Args:
        label_smoothing: eps in [0, 1).

    Raises:
        ValueError: label_smoothing outside [0, 1).
    """

    def __init__(self, label_smoothing=0.0, name="token_crossentropy", **kwargs):
        super().__init__(name=name, **{"reduction": "mean_with_sample_weight", **kwargs})
        self.label_smoothing = _checked(self, label_smoothing)

    def __call__(self, y_true, y_pred, sample_weight=None):
        shape = ops.shape(ops.convert_to_tensor(y_pred))[:-1]
        return super().__call__(y_true, y_pred, _of_tokens(sample_weight, shape))

    def call(self, y_true, y_pred):
        return _crossentropy(y_true, y_pred, self.label_smoothing)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


def _checked(owner, label_smoothing):
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{type(owner).__name__} needs 0 <= label_smoothing < 1, got {label_smoothing!r}.")
    return label_smoothing


def _of_tokens(sample_weight, shape):
    """The weight of each token: that of its row, where rows have weights.

    Written out, as Keras would divide by the sum of the weights that came, one a row, and not by that of the tokens'.
    """
    if sample_weight is None:
        return None
    weight = ops.convert_to_tensor(sample_weight)
    if len(weight.shape) > len(shape):
        weight = ops.squeeze(weight, -1)
    while len(weight.shape) < len(shape):
        weight = ops.expand_dims(weight, -1)
    return ops.broadcast_to(weight, shape)


def _crossentropy(y_true, y_pred, label_smoothing=0.0):
    """One value a token, in nats."""
    y_pred = ops.cast(y_pred, "float32")
    nll_bt = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
    if not label_smoothing:
        return nll_bt
    # Cross-entropy against the uniform distribution over what is not hidden: logsumexp - mean.
    shown_btv = y_pred > HIDDEN / 2
    count_bt = ops.maximum(ops.sum(ops.cast(shown_btv, "float32"), axis=-1), 1.0)
    mean_bt = ops.sum(ops.where(shown_btv, y_pred, 0.0), axis=-1) / count_bt
    uniform_bt = ops.logsumexp(y_pred, axis=-1) - mean_bt
    return (1 - label_smoothing) * nll_bt + label_smoothing * uniform_bt


class _TokenMean(keras.metrics.Mean):
    """A mean over real tokens; abstract.

    Keras averages a batch over its padded length before it weighs it, so that a batch of short rows would count for
    more: here each token is a value of its own.
    """

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if len(y_true.shape) == len(y_pred.shape):  # (b, 1) for (b, v), as Keras takes it too
            y_true = ops.squeeze(y_true, -1)
        values = self.of_tokens(y_true, y_pred)
        weight = _of_tokens(sample_weight, ops.shape(values))
        super().update_state(ops.reshape(values, (-1,)), None if weight is None else ops.reshape(weight, (-1,)))


@keras.saving.register_keras_serializable("keras_seq")
class TokenLoss(_TokenMean):
    """TokenCrossentropy as a metric: its mean over all real tokens seen since the last reset, whatever the batches.

    The `loss` that Keras shows is the mean of its batches' losses weighed by their rows: of the same examples in other
    batches it would be another number.

    Shapes:
        y_true (b, t) int, y_pred logits (b, t, v), sample_weight (b, t) or one a row, (b,) or (b, 1) -> scalar.

    Args:
        label_smoothing: eps in [0, 1), the loss'.
        name: of the metric.

    Raises:
        ValueError: label_smoothing outside [0, 1).
    """

    def __init__(self, label_smoothing=0.0, name="token_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = _checked(self, label_smoothing)

    def of_tokens(self, y_true, y_pred):
        return _crossentropy(y_true, y_pred, self.label_smoothing)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("keras_seq")
class TokenPerplexity(_TokenMean):
    """exp of the mean negative log-probability over all real tokens seen since the last reset.

    Shapes:
        y_true (b, t) int, y_pred logits (b, t, v), sample_weight (b, t) or one a row, (b,) or (b, 1) -> scalar.

    Args:
        name: of the metric.
    """

    def __init__(self, name="perplexity", **kwargs):
        super().__init__(name=name, **kwargs)

    def of_tokens(self, y_true, y_pred):
        return _crossentropy(y_true, y_pred)

    def result(self):
        return ops.exp(super().result())


@keras.saving.register_keras_serializable("keras_seq")
class TokenAccuracy(_TokenMean):
    """Share of real tokens (or of rows, for labels (b,)) whose likeliest id is the true one.

    Shapes:
        y_true (b, t) int, y_pred logits (b, t, v), sample_weight (b, t) or one a row, (b,) or (b, 1) -> scalar.

    Args:
        name: of the metric.
    """

    def __init__(self, name="accuracy", **kwargs):
        super().__init__(name=name, **kwargs)

    def of_tokens(self, y_true, y_pred):
        likeliest = ops.cast(ops.argmax(y_pred, axis=-1), "int32")
        return ops.cast(ops.equal(likeliest, ops.cast(y_true, "int32")), "float32")
