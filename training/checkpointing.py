"""Checkpoints by step: what a run needs to go on as if it had never stopped, and the weights it leaves.

checkpoints/step-N/ holds model.weights.h5 (weights and optimizer), state.npz (dropout's random streams and the sums of
the epoch's measures) and state.json. Each is whole or not there; the new one is in place before an old one goes.
"""

import functools
import json
import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.feed import Feed
from training.files import read_json, reserve, write_beside
from training.optimizers import schedule
from training.recipes import Recipe

FOLDER, BEST = "checkpoints", "best.weights.h5"
HEADER = 2048  # bytes of HDF5 beside each variable; of small models 1,200 to 1,500 were seen


def token_means(logs: dict[str, Any]) -> dict[str, Any]:
    """The logs of Keras, each loss a mean over real tokens: `TokenLoss` in the place of the mean over batches."""
    means = {name.replace("token_loss", "loss"): logs[name] for name in logs if name.endswith("token_loss")}
    for prefix in ("", "val_"):
        parts = [value for name, value in means.items() if name.startswith("val_") == bool(prefix)]
        if parts:
            means[f"{prefix}loss"] = sum(parts)
    return {name: means.get(name, value) for name, value in logs.items() if not name.endswith("token_loss")}


def folders(run: Path) -> list[Path]:
    """A run's checkpoints, the oldest first."""
    return sorted((run / FOLDER).glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _state(model: keras.Model) -> list[Any]:
    """What `save_weights` leaves out: where dropout's random numbers have got to, and the measures of the epoch."""
    seeds = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    return [*seeds, *model.metrics_variables]


class Checkpoints(keras.callbacks.Callback):
    """Keeps checkpoints and history.csv, goes on from the last of them, and ends epochs and the run where they end.

    Args:
        recipe: of the run.
        folder: of the run.
        started: of `time.perf_counter`.
    """

    def __init__(self, recipe: Recipe, folder: Path, started: float):
        super().__init__()
        self.recipe = recipe
        self.folder = folder
        self.started = started
        self.averages: keras.callbacks.SwapEMAWeights | None = None  # set where weights are averaged
        self.feed: Feed | None = None
        self.step = self.epochs = 0
        self.tokens = (0, 0)
        self.rows: list[dict[str, float]] = []  # of history.csv
        self._measures: list[np.ndarray] = []

    def seconds(self) -> float:
        """Since the run began, without the time it lay interrupted."""
        return time.perf_counter() - self.started

    # ---- Going on ---------------------------------------------------------------------------------------------------

    def restore(self, model: keras.Model) -> None:
        """Loads the last checkpoint, if there is one: weights, optimizer, random streams, step.

        Raises:
            ValueError: the checkpoint is broken.
        """
        kept = folders(self.folder)
        if not kept:
            return
        try:
            model.load_weights(kept[-1] / "model.weights.h5")
            values = read_json(kept[-1] / "state.json")
            self.step, self.epochs, self.tokens = values["step"], values["epochs"], tuple(values["tokens"])
            self.started -= values["seconds"]
            with open(kept[-1] / "state.npz", "rb") as file, np.load(file) as arrays:
                saved = [arrays[f"{i}"] for i in range(len(arrays))]
        except (ValueError, OSError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"The checkpoint {kept[-1]} is broken: {error}. Without it --resume goes on from the one before, "
                "or from the beginning."
            ) from error
        seeds = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
        for variable, value in zip(seeds, saved, strict=False):
            variable.assign(value)
        # fit sets them to zero when its epoch begins; at an epoch's end they are those of the validation.
        inside = self.step > self.epochs * self.recipe.steps_per_epoch
        self._measures = saved[len(seeds) :] if inside else []
        history = self.folder / "history.csv"
        if history.exists():  # one more line where the run was stopped between line and checkpoint
            lines = history.read_text("utf-8").splitlines(keepends=True)[: self.epochs + 1]
            write_beside(history, lambda beside: beside.write_text("".join(lines), "utf-8"))
            # Empty where the disk was full, or the run was killed, between opening and writing.
            names = lines[0].strip().split(",") if lines else []
            self.rows = [dict(zip(names, map(float, line.strip().split(",")), strict=True)) for line in lines[1:]]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        end = min((epoch + 1) * self.recipe.steps_per_epoch, self.recipe.steps)
        self.left = end - self.step
        for variable, value in zip(self.model.metrics_variables if self._measures else [], self._measures, strict=True):
            variable.assign(value)
        self._measures = []

    # ---- Steps and epochs -------------------------------------------------------------------------------------------

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        self.left -= 1
        if not self.left:
            self.model.stop_training = True  # ends the epoch; the next begins if `on_epoch_end` allows it
        elif self.recipe.checkpoint_steps and self.step % self.recipe.checkpoint_steps == 0:
            self.save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = {"epoch": epoch, "learning_rate": self.rate(), **token_means(logs or {})}
        row = {name: float(value) for name, value in row.items()} | {"epoch": epoch}
        with open(self.folder / "history.csv", "a" if epoch else "w", encoding="utf-8") as history:
            if not epoch:
                print(*row, sep=",", file=history)
            print(*row.values(), sep=",", file=history)
        self.rows.append(row)
        self.epochs = epoch + 1
        if self.recipe.early_stopping is not None and self._epochs_since_the_best() == 0:
            self.write_averaged(self.folder / BEST)
        self.save()
        self.model.stop_training = self.done

    def _epochs_since_the_best(self) -> int:
        # The first of equals; a NaN is the worst of all, though Python calls it neither more nor less than another.
        best = min(self.rows, key=lambda row: (math.isnan(row["val_loss"]), row["val_loss"]))
        return self.epochs - 1 - int(best["epoch"])

    @property
    def done(self) -> bool:
        """Whether all steps are trained, or the run has stopped early."""
        patience = self.recipe.early_stopping
        early = patience is not None and bool(self.rows) and self._epochs_since_the_best() >= patience
        return self.step >= self.recipe.steps or early

    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(schedule(self.recipe)(self.step - 1))

    # ---- Files ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """A checkpoint of now; then the oldest go.

        Raises:
            ValueError: the weights are not finite: a run could not go on from them.
            OSError: it could not be written; those there are as they were.
        """
        model = self.model
        if not all(np.isfinite(keras.ops.convert_to_numpy(one)).all() for one in model.trainable_variables):
            raise ValueError(f"The weights are not finite at step {self.step}; the last checkpoint is good.")
        if self.feed is not None:
            self.tokens = self.feed.tokens(self.step)

        def write(beside: Path) -> None:
            beside.mkdir()
            save_weights(model, beside / "model.weights.h5")
            arrays = {f"{i}": keras.ops.convert_to_numpy(variable) for i, variable in enumerate(_state(model))}
            np.savez(beside / "state.npz", **arrays)  # type: ignore[arg-type]
            state = {"step": self.step, "epochs": self.epochs, "tokens": self.tokens, "seconds": self.seconds()}
            (beside / "state.json").write_text(json.dumps(state))

        (self.folder / FOLDER).mkdir(exist_ok=True)
        write_beside(self.folder / FOLDER / f"step-{self.step}", write)
        for old in folders(self.folder)[: -self.recipe.average_checkpoints]:
            shutil.rmtree(old)

    def write_averaged(self, path: Path) -> None:
        """The weights that were validated: the moving average's where there is one."""
        if self.averages is not None:
            self.averages.on_test_begin()
        write_beside(path, functools.partial(save_weights, self.model))
        if self.averages is not None:
            self.averages.on_test_end()

    def take_final_weights(self) -> None:
        """After the last step: the best weights of a run that may stop early, the moving average, or the mean of the
        last checkpoints."""
        if self.recipe.ema_momentum is not None:  # fit has done so, unless it was interrupted behind the last step
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.recipe.early_stopping is not None:
            self.model.load_weights(self.folder / BEST)
        elif self.recipe.average_checkpoints > 1:
            average(self.model, [folder / "model.weights.h5" for folder in folders(self.folder)])


def save_weights(model: keras.Model, path: Path) -> None:
    """The model's weights and its optimizer's variables.

    Raises:
        OSError: there is no room for them. HDF5 would find that out in the middle, and end the process.
    """
    variables = [*model.variables, *model.optimizer.variables]
    reserve(path, sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize + HEADER for one in variables))
    model.save_weights(path)


def average(model: keras.Model, paths: list[Path]) -> None:
    """Gives the model the mean of the weights in some files (Vaswani et al. 2017, section 6.1)."""
    sums: list[np.ndarray] = []
    for path in paths:
        model.load_weights(path)
        weights = [np.asarray(one, "float64") for one in model.get_weights()]
        sums = [one + other for one, other in zip(sums, weights, strict=True)] if sums else weights
    model.set_weights(
        [(one / len(paths)).astype(old.dtype) for one, old in zip(sums, model.get_weights(), strict=True)]
    )
