"""Fixed inputs and what a model answers to them: a number that tells whether a checkpoint is still what it was.

The file is JSON, so that any program can write one: `inputs` under our inputs' names, `outputs` under our outputs'
names ("output" for a model with one), of each what `kept` takes, and `written_by`; `differences` is what loading found.
"""

import keras
import numpy as np
from keras import ops

KEPT = 1024  # values of each output: all of them would, with a large vocabulary, make the file larger than is useful


def probe_inputs(model):
    """Three rows, the second and third padded; the same for every model of the same sizes."""
    random = np.random.default_rng(0)
    sizes = model if hasattr(model, "max_sequence_length") else model.backbone
    below = {
        "token_ids": getattr(sizes, "vocabulary_size", None),
        "segment_ids": getattr(sizes, "num_segments", None),
        "encoder_token_ids": getattr(sizes, "source_vocabulary_size", None),
        "decoder_token_ids": getattr(sizes, "target_vocabulary_size", None),
        "mask_positions": 2,
    }
    inputs = {}
    for name, tensor in model.input.items():
        length = 2 if name == "mask_positions" else 5 if name.startswith("decoder_") else 7
        texts = (2,) * (len(tensor.shape) - 2)  # of a row, where it has several
        shape = (3, *texts, min(length, sizes.max_sequence_length))
        if name.endswith("_mask"):
            inputs[name] = np.ones(shape, "int32")
            if name != "answer_mask":  # other programs have none
                inputs[name][1:, ..., shape[-1] - shape[-1] // 3 :] = 0
        else:
            inputs[name] = random.integers(0, below[name], size=shape).astype("int32")
    return inputs


def kept(output):
    """Of an output at most KEPT values, evenly spread over it."""
    values = np.asarray(output, "float32").ravel()
    return values[np.linspace(0, values.size - 1, min(values.size, KEPT)).astype(int)]


def answers(model, inputs):
    """A model's outputs: a dict of NumPy arrays."""
    outputs = model({name: np.asarray(one, "int32") for name, one in inputs.items()})
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {name: ops.convert_to_numpy(ops.cast(one, "float32")) for name, one in outputs.items()}


def content(inputs, outputs, written_by):
    """What the file holds.

    Args:
        inputs: dict of integer arrays.
        outputs: dict of arrays, whole.
        written_by: whose answers they are.
    """
    return {
        "inputs": {name: np.asarray(one).astype(int).tolist() for name, one in inputs.items()},
        "outputs": {name: kept(one).tolist() for name, one in outputs.items()},
        "written_by": written_by,
        "differences": {},
    }


def of_model(model):
    """The content of a probe of this model itself."""
    inputs = probe_inputs(model)
    return content(inputs, answers(model, inputs), f"keras_seq on {keras.backend.backend()}")


def compared(model, probe, place):
    """The largest difference of a model's answers from a probe's, and the probe with it noted under this backend.

    NaN where either has one.
    """
    if probe["inputs"].keys() != model.input.keys():
        raise ValueError(
            f"load_checkpoint needs a probe of inputs {sorted(model.input)}, got {sorted(probe['inputs'])} in {place}."
        )
    ours = {name: kept(one) for name, one in answers(model, probe["inputs"]).items()}
    theirs = {name: np.array(one, "float32") for name, one in probe["outputs"].items()}
    sizes = [{name: one.size for name, one in outputs.items() if name in theirs} for outputs in (ours, theirs)]
    if sizes[0] != sizes[1] or not theirs:
        raise ValueError(
            f"load_checkpoint needs a probe of outputs {sizes[0]} (values each), got {sizes[1]} in {place}."
        )
    # NumPy's maximum of all at once: Python's of several would pass over NaN.
    largest = float(np.max(np.concatenate([np.abs(ours[name] - one) for name, one in theirs.items()])))
    return largest, {**probe, "differences": {**probe.get("differences", {}), keras.backend.backend(): largest}}
