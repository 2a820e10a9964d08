"""Small models, their inputs, and the copying of weights into other programs' layers. Sizes are primes where the maths
allows: 13 source and 11 target tokens, 3 rows, 5 source and 7 target positions; 3 heads of 2 channels."""

import functools
import os
import pathlib

# Before JAX starts: the tests compile thousands of tiny programs and run each once or twice.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# A model that was saved and loaded gives the program that was compiled before: found on disk, also in the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[2] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import numpy as np
import pytest

import keras_seq
from keras_seq import backend


def pytest_configure(config):
    # Of Keras 3.15 itself: get_weights() of a JAX variable under NumPy 2.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )
    # Half a file, of another worker that is writing it or of a run that was killed: the program is compiled again.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry:UserWarning")


BLOCKS = {"num_layers": 2, "num_heads": 3, "hidden_dim": 6, "intermediate_dim": 7, "max_sequence_length": 17}
RECURRENT = {"hidden_dim": 7, "embedding_dim": 5, "num_layers": 2}


def _bert(**changes):
    return keras_seq.BERT(11, **{**BLOCKS, "num_segments": 3, **changes})


def _gpt(**changes):
    return keras_seq.GPT(11, **{**BLOCKS, **changes})


# How many texts a row has, where it has several.
TEXTS = {"BERTMultipleChoice": 5, "GPTSimilarityClassifier": 2, "GPTMultipleChoice": 5}


BUILDERS = {
    "Seq2Seq": lambda **k: keras_seq.Seq2Seq(13, 11, **{**RECURRENT, **k}),
    "AttentionSeq2Seq": lambda **k: keras_seq.AttentionSeq2Seq(13, 11, **{**RECURRENT, **k}),
    "Transformer": lambda **k: keras_seq.Transformer(13, 11, **{**BLOCKS, **k}),
    "GPT": _gpt,
    "BERT": _bert,
    "BERTForPreTraining": lambda **k: keras_seq.BERTForPreTraining(_bert(**k)),
    "BERTClassifier": lambda **k: keras_seq.BERTClassifier(_bert(**k), 5),
    "BERTTokenClassifier": lambda **k: keras_seq.BERTTokenClassifier(_bert(**k), 5),
    "BERTSpanClassifier": lambda **k: keras_seq.BERTSpanClassifier(_bert(**k)),
    "BERTMultipleChoice": lambda **k: keras_seq.BERTMultipleChoice(_bert(**k)),
    "GPTClassifier": lambda **k: keras_seq.GPTClassifier(_gpt(**k), 5),
    "GPTSimilarityClassifier": lambda **k: keras_seq.GPTSimilarityClassifier(_gpt(**k), 5),
    "GPTMultipleChoice": lambda **k: keras_seq.GPTMultipleChoice(_gpt(**k)),
}


@functools.cache
def _shared(name):
    return _randomized(BUILDERS[name]())


def _randomized(layer, seed=0):
    # As Keras draws them some weights are 0 or nearly so, and would hide a mistake.
    random = np.random.default_rng(seed)
    for weight in layer.trainable_variables:
        weight.assign(random.normal(size=weight.shape, scale=0.5))
    return layer


def _inputs(name, batch=3, source=5, target=7, seed=0):
    random = np.random.default_rng(seed)

    def text(vocabulary, length):
        mask = np.arange(length) < random.integers(2, length + 1, size=(batch, 1))
        mask[0] = True
        return np.where(mask, random.integers(1, vocabulary, size=(batch, length)), 0).astype("int32"), mask

    if name in TEXTS:
        flat = _inputs("GPT" if name.startswith("GPT") else "BERT", batch * TEXTS[name], source, target, seed)
        return {key: one.reshape(batch, TEXTS[name], target) for key, one in flat.items()}
    ids, mask = text(11, target)
    if name.startswith("GPT"):
        return {"token_ids": ids, "padding_mask": mask}
    if name.startswith("BERT"):
        segments = random.integers(0, 3, size=ids.shape).astype("int32")
        inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}
        if name == "BERTForPreTraining":
            inputs["mask_positions"] = np.array([[0, 1]] * batch, "int32")
        if name == "BERTSpanClassifier":
            inputs["answer_mask"] = mask & (random.random(mask.shape) < 0.7)
        return inputs
    source_ids, source_mask = text(13, source)
    return {
        "encoder_token_ids": source_ids,
        "encoder_padding_mask": source_mask,
        "decoder_token_ids": ids,
        "decoder_padding_mask": mask,
    }


@pytest.fixture(scope="session")
def keras_nlp():
    """KerasHub, which imports TensorFlow beside JAX: only the worker that asks for it waits for that."""
    import keras_nlp

    return keras_nlp


@pytest.fixture
def build():
    """build(name, **changes): a new small model, its weights as Keras draws them."""
    return lambda name, **changes: BUILDERS[name](**changes)


@pytest.fixture
def shared():
    """shared(name): a small model with random weights, the same object in every test; not to be changed."""
    return _shared


@pytest.fixture
def randomized():
    """randomized(layer): the layer, its weights drawn anew from a wide normal distribution."""
    return _randomized


@pytest.fixture
def make_inputs():
    """make_inputs(name, batch, source, target, seed): NumPy inputs of that model, padded on the right."""
    return _inputs


@pytest.fixture
def pad():
    """pad(inputs, count, value): the same inputs with `count` places more of padding, ids `value` in all padding."""

    def longer(inputs, count=3, value=4):
        padded = {}
        for name, one in inputs.items():
            if name == "mask_positions":
                padded[name] = one
                continue
            places = [(0, 0)] * (one.ndim - 1) + [(0, count)]
            wide = np.pad(one, places)
            if name.endswith("_mask"):
                padded[name] = wide
            else:
                mask = inputs[name.replace("token_ids", "padding_mask").replace("segment_ids", "padding_mask")]
                padded[name] = np.where(np.pad(mask, places), wide, min(value, 2)).astype("int32")
        return padded

    return longer


def _compiled(function, model):
    # TensorFlow runs the operations of a few calls in less time than it traces them.
    return function if keras.backend.backend() == "tensorflow" else backend.compiled(function, model)


@pytest.fixture
def compiled():
    """compiled(function, model): traced once on JAX, which else compiles each of the function's loops at every call."""
    return _compiled


@functools.cache
def _forward(model):
    function = _compiled(lambda inputs: model(inputs), model)
    return lambda inputs: function({name: keras.ops.convert_to_tensor(one) for name, one in inputs.items()})


@pytest.fixture
def forward():
    """forward(model)(inputs): the model called; on JAX in a graph, traced once a shape for all tests."""
    return _forward


@pytest.fixture
def gradient():
    """gradient(function, x): of a scalar function, as float32 NumPy."""

    def of(function, x):
        if keras.backend.backend() == "jax":
            import jax

            return np.asarray(jax.grad(function)(x), "float32")
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tf.cast(tape.gradient(y, x, unconnected_gradients="zero"), "float32").numpy()

    return of


@pytest.fixture
def weight_gradients():
    """weight_gradients(model, inputs, loss): loss(outputs) in training and its gradient for each trainable weight."""

    def of(model, inputs, loss):
        inputs = {name: keras.ops.convert_to_tensor(one) for name, one in inputs.items()}
        if keras.backend.backend() == "jax":
            import jax

            frozen = [weight.value for weight in model.non_trainable_variables]

            def value(weights):
                return loss(model.stateless_call(weights, frozen, inputs, training=True)[0])

            result = jax.jit(jax.value_and_grad(value))([weight.value for weight in model.trainable_variables])
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                value = loss(model(inputs, training=True))
            weights = [weight.value for weight in model.trainable_variables]
            result = value, [tf.convert_to_tensor(one) for one in tape.gradient(value, weights)]
        return np.asarray(result[0]), [np.asarray(one, "float32") for one in result[1]]

    return of


def _copy_attention(ours, theirs):
    width, heads = ours.query_dense.kernel.shape[1], ours.num_heads
    split = (heads, width // heads)
    for name in ("query", "key", "value"):
        kernel, bias = getattr(ours, f"{name}_dense").get_weights()
        getattr(theirs, f"_{name}_dense").set_weights([kernel.reshape(-1, *split), bias.reshape(split)])
    kernel, bias = ours.output_dense.get_weights()
    theirs._output_dense.set_weights([kernel.reshape(*split, -1), bias])


@pytest.fixture
def copy_attention():
    """copy_attention(ours, theirs): a MultiHeadAttention's weights into a built keras.layers.MultiHeadAttention."""
    return _copy_attention


@pytest.fixture
def copy_block():
    """copy_block(ours, theirs): a block's weights into KerasHub's built TransformerEncoder or TransformerDecoder."""

    def copy(ours, theirs):
        for name in ("self_attention", "cross_attention"):
            if hasattr(ours, name):
                prefix = "_self" if name == "self_attention" else "_cross"
                layer = f"{prefix}_attention_layer"
                _copy_attention(getattr(ours, name), getattr(theirs, layer))
                getattr(theirs, f"{layer}_norm").set_weights(getattr(ours, f"{name}_residual").norm.get_weights())
        theirs._feedforward_intermediate_dense.set_weights(ours.feed_forward.intermediate_dense.get_weights())
        theirs._feedforward_output_dense.set_weights(ours.feed_forward.output_dense.get_weights())
        theirs._feedforward_layer_norm.set_weights(ours.feed_forward_residual.norm.get_weights())

    return copy
