"""Where a token stands, told to a model that has no recurrence. Each layer takes positions, so that one path serves a
whole sequence (0, 1, 2, ...) and one step of it (where each row stands).
"""

import keras
from keras import ops


def check_length(model, length, limit):
    """No more positions are read or kept than the model has; `limit` None: it has no bound."""
    if limit is not None and isinstance(length, int) and length > limit:
        name = type(model).__name__
        raise ValueError(
            f"{name} has max_sequence_length={limit} positions, prompt included, got a request for length={length}."
        )


@keras.saving.register_keras_serializable("keras_seq")
class SinePositionEncoding(keras.layers.Layer):
    """Fixed sines and cosines: sin(p / 10000^(2i/d)) in the even channels, cos in the odd ones; or all sines, then all
    cosines.

    Vaswani et al. 2017, section 3.5; the two orders differ by the names of the channels alone.

    Shapes:
        positions (b or 1, t) int32 -> (b or 1, t, d).

    Masks: none.

    Args:
        hidden_dim: d, even.
        max_wavelength: the 10000 of the formula, in positions (over 2 pi).
        interleave: sines in the even channels and cosines in the odd; else sines in the first half, as in Marian.

    Raises:
        ValueError: hidden_dim is odd.
    """

    def __init__(self, hidden_dim, max_wavelength=10000.0, interleave=True, **kwargs):
        super().__init__(**kwargs)
        if hidden_dim % 2:
            raise ValueError(f"SinePositionEncoding needs an even hidden_dim, got hidden_dim={hidden_dim!r}.")
        self.hidden_dim = hidden_dim
        self.max_wavelength = max_wavelength
        self.interleave = interleave

    def call(self, positions):
        exponents_c = ops.arange(0, self.hidden_dim, 2, dtype="float32") / self.hidden_dim
        rates_c = ops.exp(exponents_c * -ops.log(self.max_wavelength))
        angles_btc = ops.expand_dims(ops.cast(positions, "float32"), -1) * rates_c
        # Stacked last, the two alternate in the channels; stacked before them, one follows the other.
        pairs = ops.stack([ops.sin(angles_btc), ops.cos(angles_btc)], axis=-1 if self.interleave else -2)
        shape = ops.shape(positions)
        return ops.cast(ops.reshape(pairs, (shape[0], shape[1], self.hidden_dim)), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "max_wavelength": self.max_wavelength,
            "interleave": self.interleave,
        }


@keras.saving.register_keras_serializable("keras_seq")
class PositionEmbedding(keras.layers.Layer):
    """A learned vector for each position up to a greatest one: P[position].

    Gehring et al. 2017, section 3.1; Devlin et al. 2019, section 3; Radford et al. 2018, section 3.1.

    Shapes:
        positions (b or 1, t) int32 in [0, max_sequence_length) -> (b or 1, t, d).

    Masks: none.

    Args:
        max_sequence_length: number of positions.
        hidden_dim: d.
        initializer: of the vectors.

    Raises:
        ValueError: max_sequence_length < 1.
    """

    def __init__(self, max_sequence_length, hidden_dim, initializer="uniform", **kwargs):
        super().__init__(**kwargs)
        if max_sequence_length < 1:
            raise ValueError(
                f"PositionEmbedding needs max_sequence_length >= 1, got max_sequence_length={max_sequence_length!r}."
            )
        self.max_sequence_length = max_sequence_length
        self.hidden_dim = hidden_dim
        self.initializer = keras.initializers.get(initializer)

    def build(self, positions_shape):
        shape = (self.max_sequence_length, self.hidden_dim)
        self.embeddings = self.add_weight(shape=shape, initializer=self.initializer, name="embeddings")

    def call(self, positions):
        return ops.cast(ops.take(self.embeddings, positions, axis=0), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "max_sequence_length": self.max_sequence_length,
            "hidden_dim": self.hidden_dim,
            "initializer": keras.initializers.serialize(self.initializer),
        }
