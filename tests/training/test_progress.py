"""What a person sees of a run, at a terminal and in a file."""

import io

import pytest
from rich.console import Console

from training.progress import Progress
from training.recipes import Recipe

RECIPE = Recipe("gpt", "grammar-lines", steps=23, steps_per_epoch=11)


class Counted:
    """A Feed of 7 real tokens of 10 places a step."""

    def __init__(self, first_step=0):
        self.first_step = first_step

    def tokens(self, step):
        return 7 * step, 10 * step


def play(progress, first=0, until=23):
    """The calls of a fit."""
    progress.set_params({"epochs": 3, "steps": 11})
    progress.on_train_begin()
    for epoch in range(first, 3):
        progress.on_epoch_begin(epoch)
        for batch in range(min(11, until - epoch * 11)):
            progress.on_train_batch_end(batch, {"loss": 2.5})
        progress.on_epoch_end(epoch, {"loss": 2.5 - epoch, "accuracy": float("nan")})
    progress.on_train_end()
    progress.stop()


def at_a_terminal(progress):
    progress.console = progress.bar.live.console = Console(file=io.StringIO(), force_terminal=True, width=97)
    progress.bar.disable = False
    return progress.console.file


def test_a_piped_run_prints_a_line_an_epoch_and_nothing_else(capsys):
    play(Progress(RECIPE, "mine", True, Counted()))
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "mine  161 tokens, 70.0% of all places"
    assert [line.split("  ")[:2] for line in lines] == [
        ["mine 11/23", "loss 2.500"],
        ["mine 22/23", "loss 1.500"],
        ["mine 23/23", "loss 0.500"],
    ]
    assert all(line.endswith(" tokens/s") and "nan" not in line and "\x1b" not in line for line in lines)


def test_a_resumed_run_counts_on_from_its_checkpoint(capsys):
    play(Progress(RECIPE, "mine", True, Counted(11)), first=1)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]] == ["22/23", "23/23"]


def test_a_run_that_shows_nothing_prints_nothing(capsys):
    play(Progress(RECIPE, "mine", False, Counted()))
    assert capsys.readouterr() == ("", "")


def test_at_a_terminal_a_bar_shows_steps_and_loss_and_goes_away():
    progress = Progress(RECIPE, "mine", True, Counted())
    file = at_a_terminal(progress)
    play(progress)
    shown = file.getvalue()
    assert "mine 23/23" in shown
    assert progress.bar.tasks[0].total == 23
    assert progress.bar.tasks[0].fields["note"].startswith("loss 2.500  ")


def test_a_stopped_bar_gives_the_cursor_back():
    progress = Progress(RECIPE, "mine", True, Counted())
    file = at_a_terminal(progress)
    progress.set_params({"epochs": 3, "steps": 11})
    with pytest.raises(KeyboardInterrupt):
        try:
            progress.on_train_begin()
            raise KeyboardInterrupt
        finally:
            progress.stop()
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1
