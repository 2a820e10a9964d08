"""LSTM and GRU cells: one step of each, with the part that does not depend on the state apart."""

import keras
from keras import ops


def as_computed(layer, variable):
    # Keras casts weights to the compute dtype within a layer's call only; a decoder's step is taken outside of it.
    return ops.cast(variable, layer.compute_dtype)


def _orthogonal(layer):
    if layer.variable_dtype == "float32":
        return "orthogonal"
    # Keras draws in the variable's dtype, and the decomposition that it needs knows no bfloat16.
    draw = keras.initializers.Orthogonal()
    return lambda shape, dtype=None: ops.cast(draw(shape, "float32"), dtype)


@keras.saving.register_keras_serializable("keras_seq")
class LSTMCell(keras.layers.Layer):
    """One step of a long short-term memory: c' = f c + i tanh(.), h' = o tanh(c').

    Hochreiter and Schmidhuber 1997, section 4; forget gate: Gers et al. 2000, section 3, with its bias starting at 1.
    Gates in Keras' order i, f, c, o.

    Shapes:
        x (b, d), state: h and c, each (b, u) -> new state.

    Masks: none; the encoder keeps the old state at padding.

    Args:
        units: u.

    Raises:
        ValueError: units < 1.
    """

    num_states = 2

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"LSTMCell needs units >= 1, got units={units!r}.")
        self.units = units

    @property
    def gates(self):
        return 4 * self.units

    def build(self, x_shape):
        self.kernel = self.add_weight(shape=(x_shape[-1], self.gates), initializer="glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, self.gates), initializer=_orthogonal(self), name="recurrent_kernel"
        )

        def forget_one(shape, dtype=None):
            parts = [ops.zeros(self.units), ops.ones(self.units), ops.zeros(2 * self.units)]
            return ops.cast(ops.concatenate(parts), dtype)

        self.bias = self.add_weight(shape=(self.gates,), initializer=forget_one, name="bias")

    def project(self, x):
        """The part of the gates that does not depend on the state: (..., d) -> (..., 4 u)."""
        return ops.matmul(x, as_computed(self, self.kernel)) + as_computed(self, self.bias)

    def step(self, projected, state):
        h, c = state
        i, f, g, o = ops.split(projected + ops.matmul(h, as_computed(self, self.recurrent_kernel)), 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        return ops.sigmoid(o) * ops.tanh(c), c

    def call(self, x, state):
        return self.step(self.project(x), state)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("keras_seq")
class GRUCell(keras.layers.Layer):
    """One step of a gated recurrent unit: h' = z h + (1 - z) tanh(x W + r (h U)).

    Cho et al. 2014, section 2.3, with the reset gate after the product, as in cuDNN, Keras and PyTorch. Gates in Keras'
    order z, r, h.

    Shapes:
        x (b, d), state: h (b, u) -> new state.

    Masks: none; the encoder keeps the old state at padding.

    Args:
        units: u.

    Raises:
        ValueError: units < 1.
    """

    num_states = 1

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"GRUCell needs units >= 1, got units={units!r}.")
        self.units = units

    @property
    def gates(self):
        return 3 * self.units

    def build(self, x_shape):
        self.kernel = self.add_weight(shape=(x_shape[-1], self.gates), initializer="glorot_uniform", name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, self.gates), initializer=_orthogonal(self), name="recurrent_kernel"
        )
        self.bias = self.add_weight(shape=(2, self.gates), initializer="zeros", name="bias")

    def project(self, x):
        """The part of the gates that does not depend on the state: (..., d) -> (..., 3 u)."""
        return ops.matmul(x, as_computed(self, self.kernel)) + as_computed(self, self.bias)[0]

    def step(self, projected, state):
        (h,) = state
        x_z, x_r, x_h = ops.split(projected, 3, axis=-1)
        h_z, h_r, h_h = ops.split(
            ops.matmul(h, as_computed(self, self.recurrent_kernel)) + as_computed(self, self.bias)[1], 3, axis=-1
        )
        z = ops.sigmoid(x_z + h_z)
        candidate = ops.tanh(x_h + ops.sigmoid(x_r + h_r) * h_h)
        return (z * h + (1 - z) * candidate,)

    def call(self, x, state):
        return self.step(self.project(x), state)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


CELLS = {"lstm": LSTMCell, "gru": GRUCell}
