"""What a person sees of a run: a bar with time left while it trains, a line for each epoch."""

import math
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.checkpointing import token_means
from training.feed import Feed
from training.recipes import Recipe


class Progress(keras.callbacks.Callback):
    """A bar over all steps with loss, real tokens per second and time left; after each epoch a line that stays.

    Args:
        recipe: of the run.
        name: of the run.
        shown: False: show nothing.
        feed: counts the tokens.
    """

    def __init__(self, recipe: Recipe, name: str, shown: bool, feed: Feed):
        super().__init__()
        self.feed = feed
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
        self.done = self.feed.first_step
        self.steps = self.recipe.steps
        self.task = self.bar.add_task(self.name, total=self.steps, completed=self.done, note="")
        self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.first = self.done
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done % 10 == 0:  # reading the loss waits for the step
            loss = float(token_means(logs or {})["loss"])
            self.bar.update(self.task, completed=self.done, note=f"loss {loss:.3f}  {self._rate()}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in token_means(logs or {}).items()}
        shown = [f"{name} {value:.3f}" for name, value in values.items() if not math.isnan(value)]
        rate = self._rate()  # with the validation in it: the time that passed
        self.console.print(
            f"{self.name} {self.done}/{self.steps}  {'  '.join(shown)}  {rate}", highlight=False, soft_wrap=True
        )

    def on_train_end(self, logs: Any = None) -> None:
        real, places = self.feed.tokens(self.done)
        self.console.print(f"{self.name}  {real:,} tokens, {real / places:.1%} of all places", highlight=False)

    def _rate(self) -> str:
        tokens = self.feed.tokens(self.done)[0] - self.feed.tokens(self.first)[0]
        return f"{tokens / (time.perf_counter() - self.started):,.0f} tokens/s"

    def stop(self) -> None:
        """Takes the bar away; to be called however training ends, for a bar left running hides the cursor."""
        self.bar.stop()
