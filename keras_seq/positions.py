"""Where a token stands, told to a model that has no recurrence. Each layer takes positions, so that one path serves a
whole sequence (0, 1, 2, ...) and one step of it (where each row stands).
"""

import numbers

import keras
from keras import ops


def check_length(model, length, limit):
    """No more positions are read or kept than the model has; `limit` None: it has no bound."""
    if limit is not None and isinstance(length, numbers.Integral) and length > limit:
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


@keras.saving.register_keras_serializable("keras_seq")
class RotaryEmbedding(keras.layers.Layer):
    """Turns each pair of channels by an angle that grows with the position: R(p) x, so that a score of attention,
    R(p) q . R(s) k = q . R(s - p) k, knows of the distance alone.

    Su et al. 2021, section 3.2.2, with angles p / max_wavelength^(2i/c) for pair i. A pair is channels i and i + c/2,
    as in KerasHub and transformers; the paper's are neighbours, which is another order of the same channels.

    Shapes:
        x (b, h, t, c), positions (b or 1, t) int32 -> (b, h, t, c).

    Masks: none.

    Args:
        max_wavelength: the 10000 of the formula, in positions (over 2 pi).
        scaling_factor: positions are divided by it.

    Raises:
        ValueError: c is odd.
    """

    def __init__(self, max_wavelength=10000.0, scaling_factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.max_wavelength = max_wavelength
        self.scaling_factor = scaling_factor

    def call(self, x, positions):
        channels = x.shape[-1]
        if channels % 2:
            raise ValueError(f"RotaryEmbedding needs an even number of channels, got {channels}.")
        exponents_c = ops.arange(0, channels, 2, dtype="float32") / channels
        rates_c = ops.exp(exponents_c * -ops.log(self.max_wavelength)) / self.scaling_factor
        # In float32: a 16-bit angle of some hundred would be off by a good part of a turn.
        angles_b1tc = ops.expand_dims(ops.expand_dims(ops.cast(positions, "float32"), -1) * rates_c, 1)
        cos, sin = (ops.cast(one, x.dtype) for one in (ops.cos(angles_b1tc), ops.sin(angles_b1tc)))
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def get_config(self):
        config = {"max_wavelength": self.max_wavelength, "scaling_factor": self.scaling_factor}
        return {**super().get_config(), **config}


ENCODINGS = ("learned", "sine", "rotary")


def check_encoding(model, encoding, num_heads, hidden_dim):
    """How a model tells positions is one of three names; rotation needs channels of each head in pairs."""
    if encoding not in ENCODINGS:
        raise ValueError(f"{model} needs position_encoding in {ENCODINGS}, got position_encoding={encoding!r}.")
    if encoding == "rotary" and num_heads and hidden_dim % (2 * num_heads):
        raise ValueError(
            f"{model} with rotary positions needs hidden_dim to be a multiple of 2 * num_heads, got "
            f"hidden_dim={hidden_dim} and num_heads={num_heads}."
        )
