"""The command line, in process and once as a user types it."""

import json
import os
import pty
import subprocess
import sys

import pytest

from training.__main__ import main
from training.recipes import RECIPES

TINY = [
    "steps=3",
    "steps_per_epoch=2",
    "train_examples=31",
    "evaluate_examples=7",
    "tokens_per_batch=211",
    "warmup_steps=1",
]
TINY += ["vocabulary_size=307", "model.num_layers=1", "model.num_heads=2", "model.hidden_dim=22"]
TINY += ["model.intermediate_dim=13"]


# A user's: another test may have set how much TensorFlow tells.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def command(*words):
    return subprocess.run([sys.executable, "-m", "training", *words], capture_output=True, text=True, env=ENVIRONMENT)


def test_list_prints_every_recipe_on_a_line(capsys):
    assert main(["list"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == list(RECIPES)
    assert max(map(len, out.splitlines())) <= 120
    assert not err


def test_a_recipe_is_fit_and_evaluated_end_to_end(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert main(["fit", "demo-gpt", "--set", *TINY, "--set", "seed=5", "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "mine 2/3" in out and "mine 3/3" in out and "% of all places" in out
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "nats per word" in out and "entropy per word" in out
    assert "error" not in err
    recipe = json.loads((folder / "recipe.json").read_text())
    assert (recipe["seed"], recipe["steps"], recipe["model"]["hidden_dim"]) == (5, 3, 22)
    fitted = json.loads((folder / "metrics.json").read_text())
    assert main(["evaluate", str(folder)]) == 0
    assert "nats per word" in capsys.readouterr().out
    again = json.loads((folder / "metrics.json").read_text())
    assert again["test"] == pytest.approx(fitted["test"], rel=1e-5)
    assert main(["evaluate", str(folder), "--split", "validation"]) == 0
    assert json.loads((folder / "metrics.json").read_text())["validation"]["examples"] == 7
    capsys.readouterr()
    assert main(["fit", "demo-gpt", "--set", *TINY, "--set", "seed=5", "--out", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["fit", "demo-gpt", "--set", *TINY, "seed=7", "--out", str(folder), "--resume"]) == 2
    assert "these keys differ: ['seed']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "demo-gtp", "--out", "OUT"], "Unknown recipe 'demo-gtp'; did you mean 'demo-gpt'?"),
        (["fit", "absent.yaml", "--out", "OUT"], "There is no recipe file absent.yaml."),
        (["fit", "demo-gpt", "--set", "step=3", "--out", "OUT"], "Unknown recipe key 'step'; did you mean 'steps'?"),
        (["fit", "demo-gpt", "--set", "model.num_head=3", "--out", "OUT"], "did you mean 'num_heads'?"),
        (["fit", "demo-gpt", "--set", "steps", "--out", "OUT"], "--set needs key=value, got 'steps'."),
        (["fit", "demo-gpt", "--set", "steps=many", "--out", "OUT"], "steps of type int, a number, got steps='many'."),
        (
            ["fit", "demo-gpt", "--set", "corpus=multi30k", "--out", "OUT"],
            "gpt reads lines, documents or text, got corpus='multi30k'",
        ),
        (
            ["fit", "demo-bert-classify", "--set", "start_from=OUT/absent", "--out", "OUT"],
            "which is not a finished run.",
        ),
        (["fit", "multi30k-seq2seq", "--out", "OUT"], "KERAS_SEQ_DATA names the folder it is looked for in."),
        (["fit", "demo-gpt", "--tensorboard", "--out", "OUT/x"], "--tensorboard needs the package tensorboard, which"),
        (["evaluate", "OUT/absent"], "There is no run folder"),
        (["evaluate", "OUT"], "A finished run has recipe.json, which is not in"),
        (["evaluate", "OUT", "--endpoint", "there"], "--endpoint needs HOST:PORT or HOST:PORT/NAME, got 'there'."),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SEQ_DATA", str(tmp_path / "no data"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert main([word.replace("OUT", str(tmp_path)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not out
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["fit", "demo-gpt", "--set", *TINY, "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_traceback_is_shown_to_who_asks_for_it(monkeypatch):
    monkeypatch.setenv("KERAS_SEQ_TRACEBACK", "1")
    with pytest.raises(ValueError, match="Unknown recipe"):
        main(["fit", "zzz", "--out", "x"])


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.recipes.find", interrupt)
    assert main(["fit", "demo-gpt", "--out", "x"]) == 130
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err


def test_missing_arguments_show_the_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "demo-gpt"])
    assert stopped.value.code == 2
    assert "usage: python -m training fit" in capsys.readouterr().err


def test_list_as_a_user_types_it_needs_no_tensorflow():
    code = "import sys; from training.__main__ import main; main(['list']); sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert "demo-gpt" in command("list").stdout


def test_an_error_as_a_user_sees_it_has_no_traceback_and_no_noise_of_tensorflow():
    done = command("fit", "demo-gpt", "--set", "model.num_head=3", "--out", "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unknown model argument of gpt 'num_head'; did you mean 'num_heads'?\n"


@pytest.mark.slow
def test_a_fit_at_a_terminal_shows_a_bar_and_only_our_own_lines(tmp_path):
    leader, follower = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "131"}
    words = [sys.executable, "-m", "training", "fit", "demo-gpt", "--set", *TINY, "--out", str(tmp_path / "mine")]
    process = subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(leader)
    assert process.wait() == 0
    text = shown.decode()
    assert "0/3" in text and "mine 3/3" in text and "nats per word" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")
    assert "absl" not in text and "0000 00:00" not in text and "Warning" not in text
