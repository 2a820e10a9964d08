"""keras_seq.checkpoints against what transformers answered; the files themselves are in test_checkpoint_files.py."""

import json

import keras
import numpy as np
import pytest
from parity import ours
from written_checkpoints import FOLDER, KINDS, copied, expected, loaded

from keras_seq import load_checkpoint, save_checkpoint

WRITERS = ("gpt2", "gpt1", "marian", "marian_separate")


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_logits_equal_transformers(kind):
    model = loaded(kind)
    assert type(model) is KINDS[kind]
    ours.check_answers(model, expected(kind, "inputs"), expected(kind, "outputs"))


@pytest.mark.parametrize("kind", WRITERS)
def test_greedy_and_beam_tokens_equal_transformers(kind):
    arrays, start = np.load(FOLDER / kind / "expected.npz"), 30 if kind.startswith("marian") else None
    model, inputs, end = loaded(kind), expected(kind, "prompt"), int(arrays["end"])
    np.testing.assert_array_equal(ours.generated(model, inputs, end, start, 9), arrays["greedy"])
    np.testing.assert_array_equal(ours.generated(model, inputs, end, start, 9, 3, 0.7), arrays["beam"])


def test_a_saved_folder_loads_with_equal_outputs(tmp_path, capsys):
    model, inputs = loaded("bert_classifier"), expected("bert_classifier", "inputs")
    save_checkpoint(model, tmp_path / "saved")
    capsys.readouterr()
    again = load_checkpoint(tmp_path / "saved")
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-6)
    assert again.num_classes == 5
    backend = keras.backend.backend()
    assert f"of keras_seq on {backend}" in capsys.readouterr().out
    assert json.loads((tmp_path / "saved" / "keras_seq_probe.json").read_text())["differences"][backend] < 1e-6


def test_a_loaded_model_is_saved_and_loaded_as_any_keras_model(tmp_path):
    model, inputs = loaded("marian"), expected("marian", "inputs")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (again.interleave_positions, again.logits_bias, again.share_embeddings) == (False, True, True)
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-6)


def test_the_probe_is_compared_with_and_kept(tmp_path, capsys):
    folder = copied("bert", tmp_path)
    load_checkpoint(folder)
    assert "no keras_seq_probe.json to compare with" in capsys.readouterr().out
    place = folder / "keras_seq_probe.json"
    probe = json.loads(place.read_text())
    probe["outputs"]["pooled_output"][3] += 0.25
    place.write_text(json.dumps({**probe, "written_by": "another program", "differences": {"other": 0.5}}))
    load_checkpoint(folder)
    said = f"{folder}: largest difference 2.5e-01 from the answers in keras_seq_probe.json of another program\n"
    assert capsys.readouterr().out == said
    differences = json.loads(place.read_text())["differences"]
    assert differences.keys() == {"other", keras.backend.backend()} and differences["other"] == 0.5
    probe["outputs"]["sequence_output"][3] = float("nan")  # the last of the two
    place.write_text(json.dumps(probe))
    load_checkpoint(folder)
    assert "largest difference nan from" in capsys.readouterr().out
    probe["outputs"]["pooled_output"].pop()
    place.write_text(json.dumps(probe))
    with pytest.raises(ValueError, match=r"needs a probe of outputs .*'pooled_output': 36.*, got .*35"):
        load_checkpoint(folder)
    del probe["inputs"]["segment_ids"]
    place.write_text(json.dumps(probe))
    with pytest.raises(
        ValueError, match=r"of inputs .*'segment_ids', 'token_ids'\], got \['padding_mask', 'token_ids'\]"
    ):
        load_checkpoint(folder)
