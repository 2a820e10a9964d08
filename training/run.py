"""The only caller of compile and fit: from a recipe to a run's folder.

A folder holds recipe.json, tokenizer/ (and target_tokenizer/), labels.txt where there are classes, checkpoints/ to
resume from, history.csv, metrics.json, and model.keras once it is done. Each file is written beside and renamed into
place.
"""

import contextlib
import functools
import importlib.util
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

import keras_seq
from keras_seq.packing import NUM_TASK_TOKENS
from keras_seq.text import load_tokenizer, train_tokenizer
from training import fine_tuning, gpt_tasks, pipelines, strategies
from training.checkpointing import Checkpoints, folders
from training.corpora import corpus_of
from training.feed import Feed, reason
from training.files import read_json, remove, write_beside, write_json
from training.optimizers import optimizer
from training.progress import Progress
from training.readers import Files
from training.recipes import Recipe, RecipeError, model_class
from training.strategies import ONE_DEVICE, OneDevice
from training.watch import Watch

SAMPLE = 200_000  # examples of a stream
BEGINNING = ("recipe.json", "tokenizer", "target_tokenizer", "labels.txt")
TASKS = {**fine_tuning.TASKS, **gpt_tasks.TASKS}


class Run(NamedTuple):
    """A fitted (or loaded) run."""

    folder: Path
    recipe: Recipe
    model: keras.Model
    tokenizer: Any
    target_tokenizer: Any
    labels: list[str] | None


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
    recipe = Recipe.from_dict(read_json(folder / "recipe.json"))
    _check_saved(folder)
    model = keras.saving.load_model(folder / "model.keras")
    compile_model(recipe, model)
    return Run(folder, recipe, model, *_tokenizers(folder), _labels(folder))


def _tokenizers(folder: Path) -> tuple[Any, Any]:
    target = folder / "target_tokenizer"
    return load_tokenizer(folder / "tokenizer"), load_tokenizer(target) if target.is_dir() else None


def _labels(folder: Path) -> list[str] | None:
    path = folder / "labels.txt"
    return path.read_text("utf-8").split("\n")[:-1] if path.exists() else None


def _sample(recipe: Recipe, examples: Any) -> Any:
    """What a vocabulary is trained on: all examples, or so many of a stream's."""
    if not isinstance(examples, Files):
        return examples
    count = recipe.train_examples or SAMPLE
    return next(examples.pools(count, recipe.seed))[:count]


def _train_tokenizers(recipe: Recipe, examples: Any, folder: Path) -> None:
    """Trains the run's tokenizer(s) on its training examples, or takes them from the run it starts from."""
    if recipe.start_from is not None:
        for name in ("tokenizer", "target_tokenizer"):
            source = Path(recipe.start_from) / name
            if source.is_dir():
                write_beside(folder / name, functools.partial(shutil.copytree, source))
        return

    def train(lines: Any, *names: str) -> None:
        tokenizer = train_tokenizer(
            lines, recipe.tokenizer, recipe.vocabulary_size, recipe.min_frequency, recipe.lowercase
        )
        for name in names or ("tokenizer",):
            tokenizer.save(folder / name)

    kind = corpus_of(recipe).kind
    if kind == "pairs" and recipe.model.get("share_embeddings"):
        # One table of embeddings needs one vocabulary (Vaswani et al. 2017, section 5.1).
        train([line for pair in examples for line in pair], "tokenizer", "target_tokenizer")
    elif kind == "pairs":
        train([a for a, _ in examples])
        train([b for _, b in examples], "target_tokenizer")
    elif kind == "documents":
        train([line for document in examples for line in document])
    elif kind == "text":
        train(examples.splitlines(keepends=True))
    elif kind in fine_tuning.KINDS:
        train(fine_tuning.texts_of(kind, examples))
    else:
        train([example if kind == "lines" else example[0] for example in examples])


def build_model(recipe: Recipe, tokenizer: Any, target_tokenizer: Any, labels: list[str] | None) -> keras.Model:
    """The recipe's model with fresh weights, or with those of the run it starts from."""
    kind, arguments = recipe.architecture, {**recipe.model, "dtype": recipe.dtype}
    if recipe.start_from is not None:
        started = _in_dtype(keras.saving.load_model(Path(recipe.start_from) / "model.keras"), recipe.dtype)
        if "-" not in kind:
            return started
        backbone = started if isinstance(started, keras_seq.GPT) else started.backbone
        return _with_head(recipe, backbone, tokenizer, labels)
    cls = model_class(kind)
    try:
        if kind in ("seq2seq", "attention", "transformer"):
            if kind == "transformer":
                arguments["max_sequence_length"] = recipe.max_sequence_length
            return cls(tokenizer.vocabulary_size, target_tokenizer.vocabulary_size, **arguments)
        model = cls(tokenizer.vocabulary_size, max_sequence_length=recipe.max_sequence_length, **arguments)
    except (TypeError, AttributeError, ValueError) as error:
        raise RecipeError(f"The recipe's model={dict(recipe.model)} does not fit {cls.__name__}: {error}") from error
    if kind == "gpt":
        return model
    return keras_seq.BERTForPreTraining(model) if kind == "bert" else _with_head(recipe, model, tokenizer, labels)


def _in_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """The model itself, or one with its weights that computes in another dtype."""
    if model.dtype_policy.name == dtype:
        return model
    config = {**model.get_config(), "dtype": dtype}
    if "backbone" in config:  # a head computes as its backbone does
        config["backbone"] = _in_dtype(model.backbone, dtype)
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _with_head(recipe: Recipe, backbone: keras.Model, tokenizer: Any, labels: list[str] | None) -> keras.Model:
    """A model of a task over a backbone, its head with the backbone's dropout (a span's has none); a GPT that is fresh
    to such tasks first gets their three tokens."""
    if recipe.architecture == "bert-classify":
        return keras_seq.BERTClassifier(backbone, len(labels or ()), backbone.dropout)
    if recipe.architecture in gpt_tasks.TASKS and backbone.vocabulary_size == tokenizer.vocabulary_size:
        backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size + NUM_TASK_TOKENS)
    return TASKS[recipe.architecture].model(backbone, labels or ())


def dataset(recipe: Recipe, examples: Any, run: Run, seed: int | None, start_step: int = 0) -> tf.data.Dataset:
    """The examples as batches for fit (with a seed: shuffled, for ever) or for evaluate (without one: in order)."""
    length, size, width = recipe.max_sequence_length, recipe.tokens_per_batch, recipe.bucket_width
    kind = corpus_of(recipe).kind
    if kind == "text":
        batch = max(1, size // length)
        windows = pipelines.packed_text(examples, run.tokenizer, length, batch, seed, start_step)
        return windows if seed is not None else pipelines.counted(windows)
    if kind == "documents" and recipe.architecture == "gpt":
        examples, kind = _changed(examples, whole_documents), "lines"
    bounds = (length, size, width, seed, start_step)
    if kind == "pairs":
        batches = pipelines.translation_pairs(examples, run.tokenizer, run.target_tokenizer, *bounds)
    elif kind == "lines" and recipe.pack_documents:
        batches = pipelines.packed_documents(examples, run.tokenizer, length, size, seed, start_step)
    elif kind == "lines":
        batches = pipelines.text_lines(examples, run.tokenizer, *bounds)
    elif kind == "documents":

        def sentence_pairs(documents: Any) -> list:
            return pipelines.next_sentence_pairs(documents, sum(map(len, documents)), recipe.seed)

        pairs = _changed(examples, sentence_pairs)
        batches = pipelines.masked_pairs(pairs, run.tokenizer, *bounds, whole_words=recipe.whole_words)
    elif recipe.architecture in TASKS:
        task = TASKS[recipe.architecture]
        batches = fine_tuning.batches(task, examples, run.labels or (), run.tokenizer, *bounds)
    else:
        batches = pipelines.labelled_text(examples, run.labels or [], run.tokenizer, *bounds)
    return batches if seed is not None else pipelines.counted(batches)


def _changed(examples: Any, change: Callable[[Any], list]) -> Any:
    return examples.map(change) if isinstance(examples, Files) else change(examples)


def whole_documents(documents: Any) -> list[str]:
    """What a language model reads of a document: its lines as one text."""
    return ["\n".join(lines) for lines in documents]


def compile_model(recipe: Recipe, model: keras.Model, devices: OneDevice = ONE_DEVICE) -> None:
    """Optimizer, losses that count real tokens only, and metrics."""
    loss: Any = keras_seq.TokenCrossentropy(recipe.label_smoothing)
    metrics: Any = [keras_seq.TokenLoss(recipe.label_smoothing), keras_seq.TokenPerplexity(), keras_seq.TokenAccuracy()]
    if recipe.architecture == "bert":
        loss = {"masked_lm": loss, "next_sentence": keras_seq.TokenCrossentropy()}
        metrics = {
            name: [keras_seq.TokenLoss(one.label_smoothing), keras_seq.TokenAccuracy()] for name, one in loss.items()
        }
    if recipe.architecture == "bert-classify":
        metrics = [metrics[0], keras_seq.TokenAccuracy()]
    if recipe.architecture in TASKS:
        loss, metrics = fine_tuning.loss_and_metrics(TASKS[recipe.architecture], recipe.label_smoothing)
    gpt_task = recipe.architecture in gpt_tasks.TASKS
    weights = {"logits": 1.0, fine_tuning.LANGUAGE_MODEL: recipe.language_model_weight} if gpt_task else None
    loss = {name: devices.loss(one) for name, one in loss.items()} if isinstance(loss, dict) else devices.loss(loss)
    compiled = recipe.jit_compile or keras.backend.backend() == "jax"  # else JAX takes operation after operation
    model.compile(optimizer(recipe, devices.adamw), loss, weights, weighted_metrics=metrics, jit_compile=compiled)


def fit(
    recipe: Recipe,
    out: str | Path,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    strategy: str | None = None,
) -> Run:
    """Trains a recipe into a folder; with `resume` goes on from its last checkpoint.

    Args:
        recipe: what to train.
        out: the run's folder; without `resume` it must not hold a run.
        resume: go on where an interrupted run with the same recipe stopped.
        progress: show progress in the terminal.
        tensorboard: also write the measures of each epoch for TensorBoard, into the folder's tensorboard/.
        strategy: train on several devices: "mirrored", all of this machine, or "multiworker", those of TF_CONFIG.

    Returns:
        The run, its files in place (with "multiworker" those that the first worker wrote).

    Raises:
        RecipeError: the recipe does not fit its corpus, or the folder holds a run of another recipe.
        FileExistsError: the folder holds a run and `resume` is off.
        FileNotFoundError: a file of the corpus, or the run to start from, is missing.
        NotFiniteError: the loss is no number; which step and which lines, the message says.
    """
    devices = strategies.find(strategy)
    recipe.check_model()
    devices.check(recipe)
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard."
        )
    _check_start(recipe)
    with strategies.writable(out, devices.rank, resume) as folder:
        return _fit(recipe, folder, resume, progress and devices.rank == 0, tensorboard, devices)


def _fit(recipe: Recipe, folder: Path, resume: bool, progress: bool, tensorboard: bool, devices: OneDevice) -> Run:
    started = time.perf_counter()
    _check_folder(recipe, folder, resume)
    if (folder / "model.keras").exists():
        return load_run(folder)
    _set_seeds(recipe)
    read = corpus_of(recipe).read
    examples = read("train", recipe.train_examples, recipe.seed)
    validation = read("validation", recipe.evaluate_examples, recipe.seed + 1)
    if recipe.files:  # what comes last is not to fail after all the work
        read("test", 1, recipe.seed + 1)
    folder.mkdir(parents=True, exist_ok=True)
    if fresh := not (folder / "recipe.json").exists():
        _begin(recipe, folder, examples)
    tokenizers, labels = _tokenizers(folder), _labels(folder)
    with devices.scope():
        with _taken_back(folder, fresh):
            model = build_model(recipe, *tokenizers, labels)
            run = Run(folder, recipe, model, *tokenizers, labels)
            trained = model.packed_model if recipe.pack_documents else model
            compile_model(recipe, trained, devices)
            trained.optimizer.build(trained.trainable_variables)  # left to the first step, that would be traced twice
            kept = Checkpoints(recipe, folder, started)
            kept.set_model(trained)
            kept.restore(trained)
            if not kept.done:
                _train(run, trained, kept, examples, validation, progress, tensorboard, devices)
        kept.take_final_weights()
    write_json(folder / "metrics.json", _measures(kept, model))
    plain = _without_optimizer(model)
    write_beside(folder / "model.keras", plain.save)
    devices.meet()
    return run if devices is ONE_DEVICE else run._replace(model=plain)


def _begin(recipe: Recipe, folder: Path, examples: Any) -> None:
    """Writes what a run has before its first step: tokenizers, labels, and last of all the recipe."""
    _train_tokenizers(recipe, _sample(recipe, examples), folder)
    if (labels := fine_tuning.labels_of(corpus_of(recipe).kind, examples)) is not None:  # all of a stream, once
        if broken := [name for name in labels if "\n" in name or "\r" in name]:
            raise ValueError(f"A label needs to be one line, got {broken[0]!r}.")
        names = "".join(f"{name}\n" for name in labels)
        write_beside(folder / "labels.txt", lambda beside: beside.write_text(names, "utf-8"))
    write_json(folder / "recipe.json", recipe.to_dict())


@contextlib.contextmanager
def _taken_back(folder: Path, fresh: bool) -> Iterator[None]:
    """Removes what `_begin` wrote where no model can be made, or an example is wrong before there is a checkpoint: the
    recipe or the file is to be mended, and fit again."""
    try:
        yield
    except ValueError:
        if fresh and not folders(folder):
            for name in BEGINNING:
                remove(folder / name)
        raise


def _set_seeds(recipe: Recipe) -> None:
    keras.utils.set_random_seed(recipe.seed)
    if recipe.deterministic and tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # a CPU's operations give the same again as they are


def _train(
    run: Run,
    model: keras.Model,
    kept: Checkpoints,
    examples: Any,
    validation: Any,
    progress: bool,
    tensorboard: bool,
    devices: OneDevice = ONE_DEVICE,
) -> None:
    """The steps that are left, in the epochs that are left, the first of them perhaps from its middle."""
    recipe = run.recipe
    feed = kept.feed = Feed(dataset(recipe, examples, run, recipe.seed, kept.step), kept.step, kept.tokens)
    watch = Watch(feed, run.folder, (run.tokenizer, run.target_tokenizer), recipe.checkpoint_steps)
    bar = Progress(recipe, run.folder.name, progress, feed)
    callbacks = [watch, bar, kept]
    if recipe.ema_momentum is not None:
        kept.averages = keras.callbacks.SwapEMAWeights()
        callbacks.append(kept.averages)
    if tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(run.folder / "tensorboard", write_graph=False))
    batches = dataset(recipe, validation, run, None)
    devices.build(model, batches)
    if kept.step:
        first, steps = devices.held_out(batches.take(1))
        model.evaluate(first, steps=steps, verbose=0)  # makes the measures, or the epoch's could not be put back
    held_out, steps = devices.held_out(batches)
    try:
        model.fit(
            devices.feed(feed.dataset()),
            validation_data=held_out,
            validation_steps=steps,
            epochs=-(-recipe.steps // recipe.steps_per_epoch),
            initial_epoch=kept.epochs,
            steps_per_epoch=recipe.steps_per_epoch,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
    except tf.errors.OpError as error:
        if (told := reason(error)) is None:
            raise
        raise ValueError(told) from error
    finally:
        bar.stop()


def _without_optimizer(model: keras.Model) -> keras.Model:
    """A copy that is a third of the size in a file, and loads where `training` is not imported."""
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def _measures(kept: Checkpoints, model: keras.Model) -> dict[str, Any]:
    """What a finished run says of itself in metrics.json."""
    (real, places), seconds = kept.tokens, kept.seconds()
    return {
        "parameters": model.count_params(),
        "seconds": round(seconds, 1),
        "steps": kept.step,
        "tokens": real,
        "real_tokens": round(real / places, 4),
        "tokens_per_second": round(real / seconds, 1),
    }


def _check_start(recipe: Recipe) -> None:
    """A run starts from a finished one of its own architecture, of a task also from a BERT or a GPT."""
    if recipe.start_from is None:
        return
    start = Path(recipe.start_from)
    if not (start / "model.keras").exists():
        raise FileNotFoundError(f"The recipe starts from {start}, which is not a finished run.")
    old = Recipe.from_dict(read_json(start / "recipe.json"))
    wanted = tuple(dict.fromkeys((recipe.architecture.partition("-")[0], recipe.architecture)))
    if old.architecture not in wanted:
        raise RecipeError(f"{recipe.architecture} starts from a run of {wanted}, got {start}, of {old.architecture}.")
    if recipe.max_sequence_length > old.max_sequence_length:
        raise RecipeError(
            f"The recipe needs max_sequence_length <= {old.max_sequence_length}, the positions of {start}, "
            f"got max_sequence_length={recipe.max_sequence_length}."
        )
    _check_saved(start)
    with zipfile.ZipFile(start / "model.keras") as kept:
        config = json.loads(kept.read("config.json"))["config"]
    given = config["backbone"]["config"] if "backbone" in config else config
    if other := {name: value for name, value in recipe.model.items() if given.get(name, value) != value}:
        theirs = {name: given[name] for name in other}
        raise RecipeError(f"A recipe takes the model of {start} that it starts from: {theirs}, got model={other}.")


def _check_saved(folder: Path) -> None:
    """Keras says of what is no zip file that it is not there."""
    if not zipfile.is_zipfile(folder / "model.keras"):
        raise ValueError(f"A finished run has a saved model, which {folder / 'model.keras'} is not.")


def _check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    if not (folder / "recipe.json").exists():
        return
    if not resume:
        raise FileExistsError(f"{folder} holds a run already: choose another --out, remove it, or give --resume.")
    old = Recipe.from_dict(read_json(folder / "recipe.json")).to_dict()
    changed = sorted(name for name, value in recipe.to_dict().items() if old[name] != value)
    if changed:
        raise RecipeError(f"--resume needs the recipe that {folder} began with; these keys differ: {changed}.")
