"""What a person sees of a run: a bar with time left while it trains, a line for each epoch."""

import math
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.recipes import Recipe


class Progress(keras.callbacks.Callback):
    """A bar over all steps with loss, steps per second and time left; after each epoch a line that stays."""

    def __init__(self, recipe: Recipe, name: str, shown: bool = True):
        super().__init__()
        self.recipe = recipe
        self.name = name
        self.console = Console(quiet=not shown)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
            transient=True,
        )

    def on_train_begin(self, logs: Any = None) -> None:
        self.done = 0
        self.steps = self.recipe.steps
        self.task = self.bar.add_task(self.name, total=self.steps, note="")
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.done = self.first = epoch * self.recipe.steps_per_epoch
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done % 10 == 0:  # reading the loss waits for the step
            self.bar.update(self.task, completed=self.done, note=f"loss {float((logs or {})['loss']):.3f}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        rate = (self.done - self.first) / (time.perf_counter() - self.started)
        values = {name: float(value) for name, value in (logs or {}).items()}
        shown = [f"{name} {value:.3f}" for name, value in values.items() if not math.isnan(value)]
        self.console.print(
            f"{self.name} {self.done}/{self.steps}  {'  '.join(shown)}  {rate:.1f} steps/s",
            highlight=False,
            soft_wrap=True,
        )

    def stop(self) -> None:
        """Takes the bar away; to be called however training ends, for a bar left running hides the cursor."""
        self.bar.stop()
