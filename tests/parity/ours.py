"""Our models held against what another program answered."""

import numpy as np
from keras import ops

import keras_seq

TOLERANCE = 2e-4


def check_answers(model, inputs, expected):
    """Hidden states and logits at real positions equal, within 2e-4 of them."""
    outputs = model(inputs)
    outputs = dict(outputs) if isinstance(outputs, dict) else {"output": outputs}
    if "hidden" in expected:
        outputs["hidden"] = model.backbone(inputs)
    mask = inputs.get("decoder_padding_mask", inputs.get("padding_mask"))
    for name, theirs in expected.items():
        ours = ops.convert_to_numpy(outputs[name])
        assert ours.shape == theirs.shape, name
        a_token_each = ours.shape[: mask.ndim] == mask.shape and name != "masked_lm"
        real = np.asarray(mask, bool) if a_token_each else ...
        np.testing.assert_allclose(ours[real], theirs[real], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def generated(model, inputs, end, start, new_tokens, beams=1, length_penalty=1.0):
    """Token ids written greedily, or by beam search."""
    sampler = keras_seq.BeamSampler(beams, length_penalty) if beams > 1 else None
    inputs = {name: one for name, one in inputs.items() if not name.startswith("decoder_")}
    return model.generate(inputs, new_tokens, end, start, sampler)["token_ids"]


def copy_recurrent(encoder, arrays):
    """torch's weights into a built RecurrentEncoder: torch has [gates, inputs], GRU gates r z n and two biases."""
    for layer, cells in enumerate(encoder.cells):
        for cell, end in zip(cells, ("", "_reverse")):
            kernels = [arrays[f"weight_{part}_l{layer}{end}"].T for part in ("ih", "hh")]
            biases = [arrays[f"bias_{part}_l{layer}{end}"] for part in ("ih", "hh")]
            if encoder.cell == "lstm":
                bias = biases[0] + biases[1]
            else:
                kernels = [_z_first(one) for one in kernels]
                bias = np.stack([_z_first(one) for one in biases])
            cell.set_weights([*kernels, bias])


def _z_first(gates):
    r, z, n = np.split(gates, 3, axis=-1)
    return np.concatenate([z, r, n], axis=-1)


def check_recurrent(cell, bidirectional, arrays):
    """Outputs at real positions and last states equal torch's."""
    encoder = keras_seq.RecurrentEncoder(arrays["weight_hh_l0"].shape[1], 2, cell, bidirectional)
    encoder.build(arrays["inputs"].shape)
    copy_recurrent(encoder, arrays)
    outputs, states = encoder(arrays["inputs"], arrays["mask"])
    mask = arrays["mask"]
    np.testing.assert_allclose(ops.convert_to_numpy(outputs)[mask], arrays["outputs"][mask], atol=1e-5)
    directions = 2 if bidirectional else 1
    for layer, state in enumerate(states):
        for i, part in enumerate(state):
            theirs = arrays[f"state_{i}"][layer * directions : (layer + 1) * directions]
            np.testing.assert_allclose(part, np.concatenate(list(theirs), axis=-1), atol=1e-5)
