"""Weights of 16 bits in an export: half the bytes, cast where they are used; and what that costs in quality."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from serving.signatures import WEIGHTS_DTYPES


class StoredWeights(keras.StatelessScope):
    """Within it a model reads its float32 weights from copies in another dtype.

    Args:
        model: whose weights are copied; the model itself stays as it is.
        dtype: "bfloat16" or "float16"; "float32": the model's own variables, no copies.

    Raises:
        ValueError: an unknown dtype, or a weight that has no finite value in it.
    """

    def __init__(self, model: Any, dtype: str):
        super().__init__(initialize_variables=False)
        if dtype not in WEIGHTS_DTYPES:
            raise ValueError(f"export needs weights_dtype {', '.join(WEIGHTS_DTYPES)}, got {dtype!r}.")
        self.dtype = dtype
        self.copies: dict[int, tf.Variable] = {}
        self.variables = []
        for variable in model.variables:
            value = variable.value
            if dtype != "float32" and variable.dtype == "float32":
                value = self.copies[id(variable)] = tf.Variable(_cast(variable, dtype), trainable=False)
            self.variables.append(value)

    def described(self) -> dict[str, Any]:
        """The dtype, and how many bytes the weights have, as they are stored and as they were."""
        stored = sum(value.dtype.size * value.shape.num_elements() for value in self.variables)
        saved = sum(2 * copy.shape.num_elements() for copy in self.copies.values())
        return {"dtype": self.dtype, "bytes": stored, "bytes_saved": saved}

    def get_current_value(self, variable: Any) -> Any:
        """Keras asks for the value of a variable: the copy, cast to what the variable is."""
        copy = self.copies.get(id(variable))
        if copy is None:
            return super().get_current_value(variable)
        # TensorFlow runs what it can as soon as it can: without an operation to wait for, all weights would be cast
        # at once when a request comes, and every request would hold a float32 copy of the whole model.
        with tf.control_dependencies(_latest()):
            return tf.cast(copy.read_value(), variable.dtype)


def loss(plain: dict[str, tf.Tensor], stored: dict[str, tf.Tensor]) -> dict[str, Any]:
    """What one signature's answers differ in between float32 weights and stored ones.

    Args:
        plain: output name -> answers, rows first, with float32 weights.
        stored: the same with stored weights.

    Returns:
        rows: how many; changed: how many of them have another text, token or count; largest_difference: output name ->
        the largest absolute difference of its numbers in the rows that have not changed.
    """
    pairs = {name: _padded(plain[name].numpy(), stored[name].numpy()) for name in plain}
    rows = len(next(iter(pairs.values()))[0])
    changed_b = np.zeros(rows, bool)
    for one, other in pairs.values():
        if one.dtype.kind != "f":
            changed_b |= (one != other).reshape(rows, -1).any(axis=1)
    differences = {
        name: float(np.abs(one - other)[~changed_b].max(initial=0.0))
        for name, (one, other) in pairs.items()
        if one.dtype.kind == "f"
    }
    return {"rows": rows, "changed": int(changed_b.sum()), "largest_difference": differences}


def report(weights: dict[str, Any]) -> str:
    """The manifest's `weights` as lines for the terminal."""
    megabytes = f"{weights['bytes'] / 1e6:.3g} MB in {weights['dtype']}, {weights['bytes_saved'] / 1e6:.3g} MB saved"
    lines = [f"weights: {megabytes}; against float32, on texts of random tokens:"]
    for name, told in weights["loss"].items():
        lines.append(f"  {name}: {told['changed']} of {told['rows']} answers changed")
        lines += [f"    {key}: differs by up to {most:.2g}" for key, most in told["largest_difference"].items()]
    return "\n".join(lines)


def _padded(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Both in the shape that holds both: an answer of another length has another width."""
    shape = np.maximum(one.shape, other.shape)
    fill: Any = b"" if one.dtype == object else 0
    return [
        np.pad(array, [(0, most - size) for size, most in zip(array.shape, shape)], constant_values=fill)
        for array in (one, other)
    ]


def _latest() -> list:
    """The operation that stands last in the graph so far; what is computed next comes after it."""
    if tf.executing_eagerly():
        return []
    return [one for one in tf.compat.v1.get_default_graph().get_operations()[-1:] if one.type != "Placeholder"]


def _cast(variable: Any, dtype: str) -> tf.Tensor:
    value = tf.cast(variable.value, dtype)
    if not tf.reduce_all(tf.math.is_finite(value)):
        largest = float(tf.reduce_max(tf.abs(variable.value)))
        raise ValueError(f"{variable.path} is not finite as {dtype}: it has values up to {largest:.3g}.")
    return value
