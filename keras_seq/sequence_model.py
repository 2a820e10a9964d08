"""What the five models share: the constructor is the configuration, and the views of one graph."""

import inspect

import keras
from keras import ops

from keras_seq import generation, sizes, tuning
from keras_seq.positions import check_length


def token_inputs(*names, axes=1):
    """Symbolic inputs of any batch and length: ids int32, masks bool (int masks are cast by Keras).

    Args:
        names: of the inputs; those that end in "_mask" are masks.
        axes: 1: (b, t); 2: (b, k, t), several texts a row.
    """
    return {
        name: keras.Input((None,) * axes, dtype="bool" if name.endswith("_mask") else "int32", name=name)
        for name in names
    }


def mean_over_heads(weights_bhts):
    """(b, h, t, s) -> (b, t, s) float32."""
    return ops.mean(ops.cast(weights_bhts, "float32"), axis=1)


def check_layers(name, num_layers):
    """The last layer's attention is an output of every model, so there must be one."""
    if num_layers < 1:
        raise ValueError(f"{name} needs num_layers >= 1, got num_layers={num_layers!r}.")


@keras.saving.register_keras_serializable("keras_seq")
class GraphView(keras.Model):
    """A part of a model's graph, or all of it: a functional `keras.Model` that refuses texts of too many positions."""

    _positions = None

    @classmethod
    def of(cls, model, inputs, outputs, name):
        """A view that reads as many positions as `model`."""
        view = cls(inputs, outputs, name=f"{model.name}_{name}")
        view._positions = model._positions
        return view

    def __call__(self, inputs, *args, **kwargs):
        # Keras refuses NumPy ids beside a tensor as mask in one call: converted here, at the door.
        if isinstance(inputs, dict) and not any(isinstance(one, keras.KerasTensor) for one in inputs.values()):
            inputs = {name: ops.convert_to_tensor(one) for name, one in inputs.items()}
            for name, one in inputs.items():
                if name.endswith("token_ids"):
                    check_length(self, one.shape[-1], self._positions)
        return super().__call__(inputs, *args, **kwargs)


class SequenceModel(GraphView):
    """A functional `keras.Model` whose constructor arguments are its attributes and its configuration; abstract.

    Args:
        inputs: dict of symbolic inputs.
        outputs: what the model returns.
        hidden: the symbolic hidden states (b, t, d) before the logits, or None.
        attention: the symbolic attention weights (b, t, s) of the last layer, averaged over heads.
        **kwargs: `name`, `trainable`, `dtype`.
    """

    def __init__(self, inputs, outputs, hidden, attention, dtype=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.dtype_policy = keras.dtype_policies.get(dtype)
        self._views = (hidden, attention)
        self._positions = getattr(self, "max_sequence_length", None)

    @classmethod
    def from_size(cls, size, **overrides):
        """A model of a named size, with new weights: `BERT.from_size("base")`.

        Args:
            size: a name in `keras_seq.SIZES`.
            **overrides: constructor arguments that replace the size's or that it leaves open, as the vocabulary's.

        Raises:
            ValueError: an unknown size, or no vocabulary size where the name has none.
        """
        return cls(**sizes.configuration(cls, size, overrides))

    @classmethod
    def parameter_count(cls, size, **overrides):
        """How many parameters `from_size` with the same arguments would give, without allocating them."""
        return sizes.parameter_count(cls, sizes.configuration(cls, size, overrides))

    @property
    def attention_model(self):
        """The same graph up to the attention weights of the last layer, averaged over heads: (b, t, s) float32."""
        return GraphView.of(self, self.input, self._views[1], "attention")

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """`keras.Model.quantize` of the dense layers, which hold nearly all the weights of a block.

        Embedding tables (and with them tied logits) and the matrices within an LSTM or GRU cell keep their dtype.
        A quantized model is saved and loaded as any other.
        """
        if filters is None:
            # Of any other layer Keras would warn that it has no method for it.
            def filters(layer):
                return isinstance(layer, keras.layers.Dense)

        super().quantize(mode, config=config, filters=filters, **kwargs)
        tuning.forget_traces(self)

    def get_config(self):
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "kwargs")]
        values = {name: getattr(self, name) for name in names}
        values = {
            name: keras.saving.serialize_keras_object(value) if isinstance(value, keras.layers.Layer) else value
            for name, value in values.items()
        }
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        config = {**values, "name": self.name, "trainable": self.trainable, "dtype": policy}
        quantized = [
            keras.saving.serialize_keras_object(layer.quantization_config) if layer.quantization_mode else None
            for layer in tuning.dense_layers(self)
        ]
        if any(quantized):
            config["quantization"] = quantized
        trainable = [layer.trainable for layer in self._flatten_layers()]
        if len(set(trainable)) > 1:
            config["trainable_layers"] = trainable
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        quantized, trainable = config.pop("quantization", []), config.pop("trainable_layers", [])
        model = cls(**config)
        for layer, one in zip(tuning.dense_layers(model), quantized):
            if one is not None and layer.quantization_mode is None:
                # JSON made lists of tuples, and Keras refuses a range that is a list.
                one = keras.tree.traverse(lambda x: tuple(x) if isinstance(x, list) else None, one, top_down=False)
                layer.quantize(config=keras.saving.deserialize_keras_object(one))
        if trainable:
            # Keras sets a flag also in all that a layer holds, so whatever holds another comes before it.
            layers = zip(model._flatten_layers(), trainable, strict=True)
            for layer, flag in sorted(layers, key=lambda pair: -len(pair[0]._flatten_layers())):
                layer.trainable = flag
        return model


class TaskModel(SequenceModel):
    """A head over a backbone, whose dtype and attention are the backbone's; abstract.

    Args:
        inputs: dict of symbolic inputs.
        outputs: what the model returns.
        **kwargs: `name`, `trainable`; a `dtype` in a configuration is the backbone's.
    """

    def __init__(self, inputs, outputs, **kwargs):
        super().__init__(inputs, outputs, None, None, **{**kwargs, "dtype": self.backbone.dtype_policy})
        self._positions = self.backbone._positions

    @property
    def attention_model(self):
        """The backbone's, whose inputs are single texts: (b * k, t) where the model's are (b, k, t)."""
        return self.backbone.attention_model


def backbone_of(kind, backbone, name):
    """A backbone as it was given or as a configuration describes it.

    Raises:
        ValueError: it is no `kind`.
    """
    if isinstance(backbone, dict):
        backbone = keras.saving.deserialize_keras_object(backbone)
    if not isinstance(backbone, kind):
        raise ValueError(f"{name} needs a {kind.__name__} as backbone, got {type(backbone).__name__}.")
    return backbone


class GenerativeModel(SequenceModel):
    """A model with two doors more over the same layers, `start` and `step`; abstract."""

    def start(self, inputs, length):
        """Reads the source or the prompt; the state before the first `step`.

        Args:
            inputs: the model's inputs without the decoder's. A prompt is padded on the right.
            length: Python int (or, in a graph, a scalar tensor): positions to keep, the prompt's included.

        Returns:
            A nest of tensors with b first. What lies under "memory" is the same at every step.

        Raises:
            ValueError: `length` exceeds the model's positions.
        """
        raise NotImplementedError

    def step(self, token_ids, state):
        """Feeds one token a row.

        Args:
            token_ids: (b,) int32; for GPT first the last token of the prompt.
            state: from `start` or the step before.

        Returns:
            logits (b, v) float32, state, attention (b, s) float32.
        """
        raise NotImplementedError

    def generate(self, inputs, max_new_tokens, end_token_id, start_token_id=None, sampler=None, **constraints):
        """`keras_seq.generate` with this model."""
        return generation.generate(self, inputs, max_new_tokens, end_token_id, start_token_id, sampler, **constraints)
