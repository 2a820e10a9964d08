"""Training and keeping a model with less: low-rank updates, activations computed twice, 8-bit weights."""

import keras

from keras_seq import calls
from keras_seq.blocks import DecoderBlock, EncoderBlock

ATTENTION = ("query", "value")


def dense_layers(model):
    """Every dense layer of a model, in the fixed order in which it holds them."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]


def enable_lora(model, rank, lora_alpha=None, targets=None):
    """Freezes a model and adds a trainable low-rank update to some of its matrices: W + (alpha / rank) A B.

    Hu et al. 2022, section 4.1; which matrices: section 4.2. `keras.layers.Dense.enable_lora` does it; the embedding
    tables and the matrices within an LSTM or GRU cell are no dense layers and stay frozen. B starts at 0, so that no
    output changes. To be called before `compile`: a model that was compiled says that it is to be compiled again; one
    that holds `model` as its backbone does not know, and would go on with what it trained before. Saving adds the
    updates into the matrices: what is loaded is an ordinary model with the same outputs, except over 8-bit or 4-bit
    weights, where the sum is rounded as they are.

    Args:
        model: any of the models, or the backbone of one (then the head on top stays trainable).
        rank: columns of A, >= 1.
        lora_alpha: alpha; None: rank.
        targets: names of dense layers; None: "query" and "value" of every attention as in the paper, or, in a model
            that has none, every dense layer.

    Returns:
        The layers that were given an update.

    Raises:
        ValueError: rank < 1, or a target that no dense layer has as its name.
    """
    if rank < 1:
        raise ValueError(f"enable_lora needs rank >= 1, got rank={rank!r}.")
    layers = dense_layers(model)
    names = sorted({layer.name for layer in layers})
    if targets is None:
        targets = ATTENTION if set(ATTENTION) <= set(names) else names
    if isinstance(targets, str) or not targets or not set(targets) <= set(names):
        raise ValueError(f"enable_lora needs targets among the dense layers {names}, got targets={targets!r}.")
    chosen = [layer for layer in layers if layer.name in targets]
    for variable in model.weights:
        variable.trainable = False
    for layer in chosen:
        layer.enable_lora(rank, lora_alpha)
    if getattr(model, "compiled", False):
        model.compiled = False  # its step trains what it trained before: without this, all but the updates
    forget_traces(model)
    return chosen


def enable_gradient_checkpointing(model):
    """Computes every block of a Transformer, BERT or GPT again in the backward pass instead of keeping what is in it.

    Chen et al. 2016, section 4.1: memory for activations falls to what enters the blocks, for one forward pass more. (A
    step of 8 layers of width 256 over 8 x 384 tokens peaked at 0.43 GB, not 1.29, on TensorFlow. On JAX as little is
    kept, but on a CPU XLA joins the two computations again, so there nothing is saved.)
    Gradients are the same, dropout included. To be called before the first training step. (`keras.RematScope` cannot do
    it: within it a layer takes neither keywords on TensorFlow nor a training flag on JAX.)

    Raises:
        ValueError: the model has no blocks.
    """
    blocks = [layer for layer in model._flatten_layers() if isinstance(layer, EncoderBlock | DecoderBlock)]
    if not blocks:
        raise ValueError(f"enable_gradient_checkpointing needs a model with blocks, got {type(model).__name__}.")
    for block in blocks:
        block.rematerialize = True


def forget_traces(model):
    """Drops what `generate` has traced, and with it the weights as they were, which a trace keeps in memory."""
    for layer in model._flatten_layers():
        calls.forget(layer)
