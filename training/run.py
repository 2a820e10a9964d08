"""The only caller of compile and fit: from a recipe to a run's folder.

A folder holds recipe.json, tokenizer/ (and target_tokenizer/), labels.txt where there are classes, checkpoint/ to
resume from, history.csv, metrics.json, and model.keras once it is done. Each file is written beside and renamed into
place.
"""

import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import keras_seq
from keras_seq.text import load_tokenizer, train_tokenizer
from training import pipelines
from training.corpora import CORPORA
from training.progress import Progress
from training.recipes import Recipe, RecipeError, model_class
from training.schedules import WarmUp


class Run(NamedTuple):
    """A fitted (or loaded) run."""

    folder: Path
    recipe: Recipe
    model: keras.Model
    tokenizer: Any
    target_tokenizer: Any
    labels: list[str] | None


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` make a file or folder beside `path`, then renames it: the old one stays good until then."""
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    if beside.is_dir():
        shutil.rmtree(beside)
    write(beside)
    if path.is_dir():  # a folder cannot be replaced: the old one steps aside
        old = path.with_name(f".{path.stem}.old{path.suffix}")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(beside, path)
        shutil.rmtree(old)
    else:
        os.replace(beside, path)


def write_json(path: Path, values: Any) -> None:
    write_beside(
        path, lambda beside: beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def load_run(folder: str | Path) -> Run:
    """A finished run.

    Raises:
        FileNotFoundError: the folder is missing, or it is no finished run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}.")
    for name in ("recipe.json", "tokenizer", "model.keras"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"A finished run has {name}, which is not in {folder}.")
    recipe = Recipe.from_dict(_read_json(folder / "recipe.json"))
    model = keras.saving.load_model(folder / "model.keras")
    return Run(folder, recipe, model, *_tokenizers(folder), _labels(folder))


def _tokenizers(folder: Path) -> tuple[Any, Any]:
    target = folder / "target_tokenizer"
    return load_tokenizer(folder / "tokenizer"), load_tokenizer(target) if target.is_dir() else None


def _labels(folder: Path) -> list[str] | None:
    path = folder / "labels.txt"
    return path.read_text("utf-8").split("\n")[:-1] if path.exists() else None


def _train_tokenizers(recipe: Recipe, examples: Any, folder: Path) -> None:
    """Trains the run's tokenizer(s) on its training examples, or takes them from the run it starts from."""
    if recipe.start_from is not None:
        for name in ("tokenizer", "target_tokenizer"):
            source = Path(recipe.start_from) / name
            if source.is_dir():
                write_beside(folder / name, functools.partial(shutil.copytree, source))
        return

    def train(name: str, lines: Any) -> None:
        tokenizer = train_tokenizer(lines, recipe.tokenizer, recipe.vocabulary_size, lowercase=recipe.lowercase)
        tokenizer.save(folder / name)

    kind = CORPORA[recipe.corpus].kind
    if kind == "pairs":
        train("tokenizer", [a for a, _ in examples])
        train("target_tokenizer", [b for _, b in examples])
    elif kind == "documents":
        train("tokenizer", [line for document in examples for line in document])
    elif kind == "text":
        train("tokenizer", examples.splitlines(keepends=True))
    else:
        train("tokenizer", [example if kind == "lines" else example[0] for example in examples])


def build_model(recipe: Recipe, tokenizer: Any, target_tokenizer: Any, labels: list[str] | None) -> keras.Model:
    """The recipe's model with fresh weights, or with those of the run it starts from."""
    kind, arguments = recipe.architecture, {**recipe.model, "dtype": recipe.dtype}
    if kind == "bert-classify" and recipe.start_from is not None:
        backbone = keras.saving.load_model(Path(recipe.start_from) / "model.keras").backbone
        return keras_seq.BERTClassifier(backbone, len(labels or ()))
    if recipe.start_from is not None:
        return keras.saving.load_model(Path(recipe.start_from) / "model.keras")
    cls = model_class(kind)
    try:
        if kind in ("seq2seq", "attention", "transformer"):
            if kind == "transformer":
                arguments["max_sequence_length"] = recipe.max_sequence_length
            return cls(tokenizer.vocabulary_size, target_tokenizer.vocabulary_size, **arguments)
        model = cls(tokenizer.vocabulary_size, max_sequence_length=recipe.max_sequence_length, **arguments)
    except (TypeError, AttributeError) as error:
        raise RecipeError(f"The recipe's model={dict(recipe.model)} does not fit {cls.__name__}: {error}") from error
    if kind == "gpt":
        return model
    return keras_seq.BERTForPreTraining(model) if kind == "bert" else keras_seq.BERTClassifier(model, len(labels or ()))


def dataset(recipe: Recipe, examples: Any, run: Run, seed: int | None, start_step: int = 0) -> tf.data.Dataset:
    """The examples as batches for fit (with a seed: shuffled, for ever) or for evaluate (without one: in order)."""
    length, size, width = recipe.max_sequence_length, recipe.tokens_per_batch, recipe.bucket_width
    kind = CORPORA[recipe.corpus].kind
    if kind == "text":
        batch = max(1, size // length)
        windows = pipelines.packed_text(examples, run.tokenizer, length, batch, seed, start_step)
        return windows if seed is not None else pipelines.counted(windows)
    if kind == "pairs":
        batches = pipelines.translation_pairs(examples, run.tokenizer, run.target_tokenizer, length, size, width, seed)
    elif kind == "lines":
        batches = pipelines.text_lines(examples, run.tokenizer, length, size, width, seed)
    elif kind == "documents":
        count = sum(len(document) for document in examples)
        pairs = pipelines.next_sentence_pairs(examples, count, recipe.seed)
        batches = pipelines.masked_pairs(pairs, run.tokenizer, length, size, width, seed)
    else:
        batches = pipelines.labelled_text(examples, run.labels or [], run.tokenizer, length, size, width, seed)
    return batches.skip(start_step) if seed is not None else pipelines.counted(batches)


def compile_model(recipe: Recipe, model: keras.Model) -> None:
    """Optimizer, losses that count real tokens only, and metrics."""
    rate = WarmUp(recipe.learning_rate, recipe.warmup_steps, recipe.steps, recipe.decay)
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=recipe.weight_decay, beta_2=recipe.beta_2, epsilon=1e-8, global_clipnorm=recipe.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])  # norms and biases do not decay
    loss: Any = keras_seq.TokenCrossentropy(recipe.label_smoothing)
    metrics: Any = [keras_seq.TokenPerplexity(), keras_seq.TokenAccuracy()]
    if recipe.architecture == "bert":
        loss = {"masked_lm": loss, "next_sentence": keras_seq.TokenCrossentropy()}
        metrics = {name: [keras_seq.TokenAccuracy()] for name in loss}
    if recipe.architecture == "bert-classify":
        metrics = [keras_seq.TokenAccuracy()]
    model.compile(optimizer, loss=loss, weighted_metrics=metrics, jit_compile=recipe.jit_compile)


def fit(recipe: Recipe, out: str | Path, resume: bool = False, progress: bool = True) -> Run:
    """Trains a recipe into a folder; with `resume` goes on from its last checkpoint.

    Args:
        recipe: what to train.
        out: the run's folder; without `resume` it must not hold a run.
        resume: go on where an interrupted run with the same recipe stopped.
        progress: show progress in the terminal.

    Returns:
        The run, its files in place.

    Raises:
        RecipeError: the recipe does not fit its corpus, or the folder holds a run of another recipe.
        FileExistsError: the folder holds a run and `resume` is off.
        FileNotFoundError: a file of the corpus, or the run to start from, is missing.
    """
    recipe.check_model()
    folder, started = Path(out), time.perf_counter()
    _check_folder(recipe, folder, resume)
    _check_start(recipe)
    keras.utils.set_random_seed(recipe.seed)
    read = CORPORA[recipe.corpus].read
    examples = read("train", recipe.train_examples, recipe.seed)
    validation = read("validation", recipe.evaluate_examples, recipe.seed + 1)
    folder.mkdir(parents=True, exist_ok=True)
    if not (resume and (folder / "recipe.json").exists()):
        _train_tokenizers(recipe, examples, folder)
        if CORPORA[recipe.corpus].kind == "labelled":
            names = "".join(f"{name}\n" for name in sorted({label for _, label in examples}))
            write_beside(folder / "labels.txt", lambda beside: beside.write_text(names, "utf-8"))
        write_json(folder / "recipe.json", recipe.to_dict())
    tokenizers, labels = _tokenizers(folder), _labels(folder)
    model = build_model(recipe, *tokenizers, labels)
    run = Run(folder, recipe, model, *tokenizers, labels)
    compile_model(recipe, model)
    epochs = -(-recipe.steps // recipe.steps_per_epoch)
    first_epoch, seconds = _restore(run) if resume else (0, 0.0)
    checkpoint = _Checkpoint(run, started - seconds)
    if first_epoch < epochs:
        bar = Progress(recipe, folder.name, progress)
        try:
            model.fit(
                dataset(recipe, examples, run, recipe.seed, first_epoch * recipe.steps_per_epoch),
                validation_data=dataset(recipe, validation, run, None),
                epochs=epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=recipe.steps_per_epoch,
                shuffle=False,
                verbose=0,
                callbacks=[bar, checkpoint],
            )
        finally:
            bar.stop()
        seconds = checkpoint.seconds()
    if first_epoch < epochs or not (folder / "model.keras").exists():
        write_beside(folder / "model.keras", model.save)
        write_json(folder / "metrics.json", {"parameters": model.count_params(), "seconds": round(seconds, 1)})
    return run


def _check_start(recipe: Recipe) -> None:
    """A run starts from a finished one of its own architecture, a classifier also from a BERT."""
    if recipe.start_from is None:
        return
    start = Path(recipe.start_from)
    if not (start / "model.keras").exists():
        raise FileNotFoundError(f"The recipe starts from {start}, which is not a finished run.")
    old = Recipe.from_dict(_read_json(start / "recipe.json"))
    wanted = ("bert", "bert-classify") if recipe.architecture == "bert-classify" else (recipe.architecture,)
    if old.architecture not in wanted:
        raise RecipeError(f"{recipe.architecture} starts from a run of {wanted}, got {start}, of {old.architecture}.")
    if recipe.max_sequence_length > old.max_sequence_length:
        raise RecipeError(
            f"The recipe needs max_sequence_length <= {old.max_sequence_length}, the positions of {start}, "
            f"got max_sequence_length={recipe.max_sequence_length}."
        )


def _check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    if not (folder / "recipe.json").exists():
        return
    if not resume:
        raise FileExistsError(f"{folder} holds a run already: choose another --out, remove it, or give --resume.")
    old = _read_json(folder / "recipe.json")
    changed = sorted(name for name, value in recipe.to_dict().items() if old.get(name) != value)
    if changed:
        raise RecipeError(f"--resume needs the recipe that {folder} began with; these keys differ: {changed}.")


class _Checkpoint(keras.callbacks.Callback):
    """After each epoch: a line of history.csv; weights, optimizer, seeds, written beside and renamed.

    It also ends a last epoch that is shorter than the others.
    """

    def __init__(self, run: Run, started: float):
        super().__init__()
        self.run = run
        self.started = started

    def seconds(self) -> float:
        """Since the run began, without the time it lay interrupted."""
        return time.perf_counter() - self.started

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.left = self.run.recipe.steps - epoch * self.run.recipe.steps_per_epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            self.run.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        model, row = self.run.model, {"epoch": epoch, **(logs or {})}
        with open(self.run.folder / "history.csv", "a" if epoch else "w", encoding="utf-8") as history:
            if not epoch:
                print(*row, sep=",", file=history)
            print(*row.values(), sep=",", file=history)

        def write(beside: Path) -> None:
            beside.mkdir()
            model.save_weights(beside / "model.weights.h5")
            values: dict[str, Any] = {f"{i}": np.asarray(variable) for i, variable in enumerate(_seeds(model))}
            np.savez(beside / "seeds.npz", **values)
            (beside / "epoch.json").write_text(json.dumps({"epochs": epoch + 1, "seconds": self.seconds()}))

        write_beside(self.run.folder / "checkpoint", write)


def _seeds(model: keras.Model) -> list[Any]:
    """Where dropout's random numbers have got to: `save_weights` keeps weights and optimizer, but not these."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def _restore(run: Run) -> tuple[int, float]:
    """Loads the last checkpoint, if there is one; the number of epochs and the seconds it took."""
    folder = run.folder / "checkpoint"
    if not folder.is_dir():
        return 0, 0.0
    run.model.optimizer.build(run.model.trainable_variables)  # or its variables could not be loaded
    run.model.load_weights(folder / "model.weights.h5")
    with np.load(folder / "seeds.npz") as values:
        for i, variable in enumerate(_seeds(run.model)):
            variable.assign(values[f"{i}"])
    kept = _read_json(folder / "epoch.json")
    history = run.folder / "history.csv"
    if history.exists():  # one more line where the run was stopped between line and checkpoint
        lines = history.read_text("utf-8").splitlines(keepends=True)[: kept["epochs"] + 1]
        write_beside(history, lambda beside: beside.write_text("".join(lines), "utf-8"))
    return kept["epochs"], kept["seconds"]
