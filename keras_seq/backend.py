"""What keras.ops lacks, once per backend: a scan whose outputs differ from its state, writing into a cache, a lean
argmax, one stream of random numbers a row, a layer computed again in the backward pass, and a compiled function over a
model's current weights.
"""

import contextlib
import contextvars

import keras
from keras import ops

BACKEND = keras.backend.backend()
if BACKEND not in ("tensorflow", "jax"):
    raise ImportError(f"keras_seq needs KERAS_BACKEND in ('tensorflow', 'jax'), got {BACKEND!r}.")


def scan(step, state, inputs, num_outputs, reverse=False):
    """Runs `step(state, input_t) -> (state, outputs_t)` along the first axis of every leaf of `inputs`.

    `keras.ops.scan` on TensorFlow demands outputs shaped as the state: it cannot carry one thing and collect another.

    Args:
        step: a function; `outputs_t` is a tuple of `num_outputs` tensors of the state's dtype.
        state: a nest of tensors.
        inputs: a nest of tensors (t, ...).
        num_outputs: how many outputs a step gives.
        reverse: from the last input to the first; outputs stay at the place of their input.

    Returns:
        The final state, and the outputs stacked: a tuple of tensors (t, ...).
    """
    if BACKEND == "jax":
        import jax

        return jax.lax.scan(step, state, inputs, reverse=reverse)
    import tensorflow as tf

    length = tf.shape(tf.nest.flatten(inputs)[0])[0]
    inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
    arrays = tf.nest.map_structure(
        lambda x: tf.TensorArray(x.dtype, size=length, element_shape=x.shape[1:]).unstack(x), inputs
    )
    dtype = tf.nest.flatten(state)[0].dtype
    collected = tuple(tf.TensorArray(dtype, size=length) for _ in range(num_outputs))

    def body(index, state, collected):
        state, outputs = step(state, tf.nest.map_structure(lambda array: array.read(index), arrays))
        collected = tuple(array.write(index, output) for array, output in zip(collected, outputs))
        return (index - 1 if reverse else index + 1), state, collected

    _, state, collected = tf.while_loop(
        lambda index, *_: index >= 0 if reverse else index < length,
        body,
        (length - 1 if reverse else tf.constant(0), state, collected),
        maximum_iterations=length,  # XLA wants to know it for the way back
    )
    return state, tuple(array.stack() for array in collected)


def by_rows(x, kernel):
    """x (..., d) times kernel (d, u), all rows of x as one matrix: (..., u).

    Within a loop on TensorFlow: `keras.ops.matmul` is `tf.tensordot` there, whose way back XLA refuses.
    """
    y = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), kernel)
    return ops.reshape(y, (*ops.shape(x)[:-1], kernel.shape[-1]))


_OVERWRITING = contextvars.ContextVar("overwriting", default=False)


@contextlib.contextmanager
def overwriting():
    """Within it `write_at` may overwrite the cache it is given: who enters promises to read the old one never again.

    A loop that decodes can promise that; a user who feeds two tokens to one state cannot.
    """
    token = _OVERWRITING.set(True)
    try:
        yield
    finally:
        _OVERWRITING.reset(token)


def empty_cache(shape, dtype):
    """A cache of zeros that may be overwritten: a buffer of its own, however many of one shape a graph has."""
    if BACKEND == "jax":
        return keras.ops.zeros(shape, dtype)
    import tensorflow as tf

    # Equal constants are merged into one buffer by TensorFlow's optimizer; this operation is stateful, and is not.
    return tf.raw_ops.Empty(shape=tf.stack(shape), dtype=tf.as_dtype(dtype), init=True)


def write_at(cache_bhsc, position_b, new_bh1c):
    """The cache with one place a row replaced.

    `keras.ops.slice_update` cannot be used: on TensorFlow it is an XLA operation, which TensorFlow Serving refuses.

    Args:
        cache_bhsc: (b, h, s, c).
        position_b: (b,) int32, the place to write in each row.
        new_bh1c: (b, h, 1, c).
    """
    if BACKEND == "jax":
        import jax

        def write(cache_hsc, position, new_h1c):
            return jax.lax.dynamic_update_slice(cache_hsc, new_h1c, (0, position, 0))

        return jax.vmap(write)(cache_bhsc, position_b, new_bh1c)
    import tensorflow as tf

    shape = ops.shape(cache_bhsc)
    batch, heads, length, channels = shape
    if not _OVERWRITING.get():
        here_bs = tf.range(length)[None] == position_b[:, None]
        return tf.where(here_bs[:, None, :, None], new_bh1c, cache_bhsc)
    # Nothing of the cache is copied. A test compares the answers with those of the copied way.
    rows_bh = tf.range(batch * heads) * length + tf.repeat(position_b, heads)
    flat_nc = tf.reshape(cache_bhsc, (batch * heads * length, channels))
    new_nc = tf.reshape(new_bh1c, (batch * heads, channels))
    return tf.reshape(tf.raw_ops.InplaceUpdate(x=flat_nc, i=rows_bh, v=new_nc), shape)


def fit_length(x_bhtc, length):
    """Cuts or pads the third axis to `length` places; what stands in a padded place is of no meaning (but finite).

    Args:
        x_bhtc: (b, h, t, c), t >= 1.
        length: Python int or scalar tensor.
    """
    places_s = ops.minimum(ops.arange(length), ops.shape(x_bhtc)[2] - 1)
    return ops.take(x_bhtc, places_s, axis=2)


def argmax(logits):
    """The first of the greatest along the last axis: (..., v) -> (...) int32."""
    if BACKEND == "jax":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    import tensorflow as tf

    # Keras first puts -0.0 below 0.0, with five passes over the vocabulary.
    return tf.argmax(logits, axis=-1, output_type="int32")


def uniform_rows(seeds_b, count):
    """One stream of random numbers a row, fixed by the row's seed alone, so that companions change nothing.

    The backends draw different numbers from the same seed.

    Args:
        seeds_b: (b,) integers.
        count: numbers a row, a Python int.

    Returns:
        (b, count) float32 in [0, 1).
    """
    if BACKEND == "jax":
        import jax

        return jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), (count,)))(seeds_b)
    import tensorflow as tf

    def draw(seed):
        return tf.random.stateless_uniform([count], tf.stack([seed, tf.zeros_like(seed)]))

    return tf.map_fn(draw, tf.cast(seeds_b, "int64"), fn_output_signature=tf.TensorSpec([count], "float32"))


def rematerialized(layer, function, *arguments):
    """`function(*arguments)`, computed again in the backward pass instead of kept.

    The layer's weights go in as arguments and the state of its random numbers as it is before the call, so that the
    second computation has the same dropout as the first; a seed's next state is set outside of it.

    Args:
        layer: whose weights `function` reads, and whose dropout layers each draw once in it.
        function: of tensors, giving a nest of tensors.
        *arguments: tensors or None.
    """
    variables = layer.variables
    # Copies: on TensorFlow a variable is read where it is used, a seed the second time after its next state is set.
    everything = [*(ops.copy(variable.value) for variable in variables), *arguments]
    # Masks and seeds have no gradient, and TensorFlow's recomputation cannot take a bool.
    places = [i for i, one in enumerate(everything) if one is not None and "float" in str(one.dtype)]

    def pure(*floats):
        tensors = list(everything)
        for i, one in zip(places, floats):
            tensors[i] = one
        with keras.StatelessScope(state_mapping=list(zip(variables, tensors))):
            return function(*tensors[len(variables) :])

    outputs = keras.remat(pure)(*(everything[i] for i in places))
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.Dropout) and part.rate > 0:
            part.seed_generator.next()
    return outputs


def compiled(function, model, any_shape=False):
    """`function(*arguments)` traced once per shape of its arguments, reading the model's weights anew at each call.

    Args:
        function: of nests of tensors, calling `model` or its layers.
        model: a built `keras.Model`.
        any_shape: on TensorFlow, trace once for arguments of all shapes of the first call's ranks; else a second shape
            is traced for all further ones. JAX compiles every shape by itself.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function, autograph=False, reduce_retracing=True)
        if not any_shape:
            return traced
        graphs = []

        def call(*arguments):
            if not graphs:
                specs = tf.nest.map_structure(lambda x: tf.TensorSpec([None] * len(x.shape), x.dtype), arguments)
                graphs.append(traced.get_concrete_function(*specs))
            return graphs[0](*arguments)

        return call
    import jax

    variables = list(model.variables)

    # Without this, jit would freeze the weights of its first call into the program.
    def stateless(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(*arguments)

    jitted = jax.jit(stateless)
    return lambda *arguments: jitted([variable.value for variable in variables], *arguments)
