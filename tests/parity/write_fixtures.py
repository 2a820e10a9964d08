"""Writes tests/fixtures/checkpoints: small random models of transformers and layers of torch, and what they answer.

`make fixtures` runs it. A folder a model, as `save_pretrained` leaves it, with expected.npz beside: `inputs/*` and
`outputs/*` under our names, and what is written greedily and by beam search (`greedy`, `beam`, from `prompt/*`).
"""

import pathlib
import shutil
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from parity import theirs  # noqa: E402

FOLDER = ROOT / "tests" / "fixtures" / "checkpoints"
# Other sizes and activations than the defaults where a default could hide what is not read.
CHANGES = {"bert_pre_training": {"segments": 3, "activation": "gelu_new"}, "gpt2": {"activation": "relu"}}


def expected(kind, model):
    """Everything the tests compare with."""
    inputs = theirs.make_inputs(model, seed=1)
    found = {f"inputs/{name}": one for name, one in inputs.items()}
    found |= {f"outputs/{name}": one for name, one in theirs.answers(model, inputs).items()}
    if kind in theirs.WRITERS:
        prompt = theirs.make_inputs(model, seed=2, padded=kind != "gpt1")
        found |= {f"prompt/{name}": one for name, one in prompt.items() if not name.startswith("decoder_")}
        found["end"] = theirs.an_end(model, prompt)
        found["greedy"] = theirs.generated(model, prompt, found["end"])
        found["beam"] = theirs.generated(model, prompt, found["end"], theirs.BEAMS, 0.7)
    return found


def make(kind):
    """The first model that writes different things, some of which end: most small random ones repeat one token."""
    for seed in range(99):
        model = theirs.make(kind, seed, **CHANGES.get(kind, {}))
        found = expected(kind, model)
        if "greedy" not in found or all(_tells(found[name], found["end"]) for name in ("greedy", "beam")):
            return model, found
    raise SystemExit(f"no seed below 99 gives a {kind} that writes different things")


def _tells(written, end):
    rows = written.reshape(-1, written.shape[-1])
    ended = np.any(rows[:, :-1] == end, axis=1)
    return len(np.unique(rows)) > 5 and 0 < np.sum(ended) < len(ended)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for kind in theirs.KINDS:
        model, found = make(kind)
        model.save_pretrained(FOLDER / kind)
        np.savez_compressed(FOLDER / kind / "expected.npz", **found)
    # In three files, and in bfloat16: what is expected of that are the answers of the rounded weights.
    model = theirs.make("gpt2", 11)
    model.save_pretrained(FOLDER / "gpt2_sharded", max_shard_size="6KB")
    np.savez_compressed(FOLDER / "gpt2_sharded" / "expected.npz", **expected("gpt2_sharded", model))
    model = theirs.make("bert", 12).bfloat16()
    model.save_pretrained(FOLDER / "bert_bfloat16")
    np.savez_compressed(FOLDER / "bert_bfloat16" / "expected.npz", **expected("bert_bfloat16", model.float()))
    for place in FOLDER.glob("*/generation_config.json"):
        place.unlink()
    for seed, cell in enumerate(("lstm", "gru")):
        for bidirectional in (False, True):
            arrays = theirs.recurrent(cell, bidirectional, seed)
            np.savez_compressed(FOLDER / f"torch_{cell}_{2 if bidirectional else 1}.npz", **arrays)
    size = sum(one.stat().st_size for one in FOLDER.rglob("*") if one.is_file())
    print(f"{FOLDER.relative_to(ROOT)}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
