"""Writes what transformers answers for a Hugging Face folder as its keras_seq_probe.json, for load_checkpoint.

python tests/parity/write_probe.py FOLDER
"""

import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import transformers  # noqa: E402
from parity import theirs  # noqa: E402

import keras_seq  # noqa: E402
from keras_seq import checkpoint_probe  # noqa: E402


def main(folder):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    name = config["architectures"][0]
    # Ours has the logits of these two, which are tied to the embedding.
    name = {"GPT2Model": "GPT2LMHeadModel", "OpenAIGPTModel": "OpenAIGPTLMHeadModel"}.get(name, name)
    model = getattr(transformers, name).from_pretrained(folder).float().eval()
    # Loaded from links beside each other: nothing is written into the folder but the probe.
    with tempfile.TemporaryDirectory() as links:
        for one in folder.iterdir():
            if one.name != "keras_seq_probe.json":
                (pathlib.Path(links) / one.name).symlink_to(one.resolve())
        inputs = checkpoint_probe.probe_inputs(keras_seq.load_checkpoint(links))
    answers = {name: one for name, one in theirs.answers(model, inputs).items() if name != "hidden"}
    probe = checkpoint_probe.content(inputs, answers, f"transformers {transformers.__version__}")
    (folder / "keras_seq_probe.json").write_text(json.dumps(probe, indent=1), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
