"""More devices than one: each trains on its share of the rows, and all end in the weights of one with the whole batch.

That takes four things beside Keras' own support. Rows are dealt here, padded to a multiple of the devices, so that each
step's joint batch is the recipe's. The loss divides by the real tokens of all devices, not of its own. Gradients are
summed before they are clipped. And two faults of Keras 3.15 are worked around: `Replicas.build` and `_scalars_too`.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from training.recipes import Recipe, RecipeError

NAMES = ("mirrored", "multiworker")


class OneDevice:
    """What training asks of its devices; here of one."""

    rank = 0
    adamw: type = keras.optimizers.AdamW

    def scope(self) -> AbstractContextManager:
        """In which variables are made, and the model is fit."""
        return contextlib.nullcontext()

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError where the recipe cannot be trained so."""

    def loss(self, loss: Any) -> Any:
        """A loss over the rows of one device whose sum over devices is that of all rows."""
        return loss

    def build(self, model: keras.Model, batches: tf.data.Dataset) -> None:
        """Prepares a compiled model for fit on such batches."""

    def meet(self) -> None:
        """Waits until all workers have come here."""

    def feed(self, batches: tf.data.Dataset) -> Any:
        """Endless batches as fit takes them."""
        return batches

    def held_out(self, batches: tf.data.Dataset) -> tuple[Any, int | None]:
        """Batches that end, as evaluate takes them, and the number of steps."""
        return batches, None


ONE_DEVICE = OneDevice()


class JaxDevices(OneDevice):
    """All of JAX's devices, through keras.distribution: arrays of all rows, whose loss is computed as on one."""

    def __init__(self) -> None:
        self.distribution = keras.distribution.DataParallel()
        self.count = len(keras.distribution.list_devices())

    def scope(self) -> AbstractContextManager:
        return self.distribution.scope()

    def feed(self, batches: tf.data.Dataset) -> Any:
        return batches.map(lambda *batch: filled(batch, self.count))

    def held_out(self, batches: tf.data.Dataset) -> tuple[Any, int | None]:
        return self.feed(batches), None


class Replicas(OneDevice):
    """TensorFlow's synchronous strategies: one copy of the variables on each device, gradients summed over all.

    Args:
        strategy: a MirroredStrategy or MultiWorkerMirroredStrategy.
        rank: of this process among the workers; 0 writes the run.
    """

    def __init__(self, strategy: tf.distribute.Strategy, rank: int = 0):
        self.strategy = strategy
        self.rank = rank
        self.count = strategy.num_replicas_in_sync
        self.adamw = JointAdamW

    def scope(self) -> AbstractContextManager:
        scopes = contextlib.ExitStack()
        scopes.enter_context(self.strategy.scope())
        if _reduces_along_an_axis(self.strategy):
            scopes.enter_context(_scalars_too())
        return scopes

    def check(self, recipe: Recipe) -> None:
        # Both make an update depend on a condition, inside of which TensorFlow's replicas cannot meet.
        if recipe.gradient_accumulation > 1 or recipe.dtype == "mixed_float16":
            raise RecipeError(
                "--strategy needs gradient_accumulation=1 and another dtype than mixed_float16, got "
                f"gradient_accumulation={recipe.gradient_accumulation!r}, dtype={recipe.dtype!r}."
            )

    def loss(self, loss: Any) -> Any:
        return JointLoss(loss)

    def build(self, model: keras.Model, batches: tf.data.Dataset) -> None:
        """Makes the variables of losses and metrics, and keeps Keras from doing so.

        Keras 3.15 reads a batch for that in fit and reduces it over the replicas where it may not (keras#20585). Also
        in a Keras that no longer does, a batch read first would change what a dataset shuffled anew gives next.
        """
        with self.strategy.scope():
            model._symbolic_build(data_batch=next(iter(batches)))
        model._maybe_symbolic_build = lambda **_: None

    def meet(self) -> None:
        # A first worker that left early would take the cluster's service away from those still at work.
        self.strategy.reduce("MEAN", tf.ones(()), axis=None)

    def feed(self, batches: tf.data.Dataset) -> Any:
        def dealt(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = self.count // context.num_input_pipelines
            first = context.input_pipeline_id * local

            def deal(*batch: Any) -> tf.data.Dataset:
                def shares(part: tf.Tensor) -> tf.Tensor:
                    shape = tf.shape(part)
                    split = tf.reshape(part, tf.concat([[self.count, shape[0] // self.count], shape[1:]], 0))
                    return tf.ensure_shape(split, [self.count, None, *part.shape[1:]])[first : first + local]

                return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(shares, filled(batch, self.count)))

            # Endless: a strategy asks the devices about the end of any other dataset at every step.
            return batches.flat_map(deal).apply(
                tf.data.experimental.assert_cardinality(tf.data.experimental.INFINITE_CARDINALITY)
            )

        return self.strategy.distribute_datasets_from_function(dealt)

    def held_out(self, batches: tf.data.Dataset) -> tuple[Any, int | None]:
        return self.feed(batches.repeat()), int(batches.cardinality())


def find(name: str | None) -> OneDevice:
    """The devices of `--strategy`; to be called before any tensor is made, or TensorFlow opens no cluster.

    Raises:
        ValueError: an unknown name, or TF_CONFIG is missing or wrong.
    """
    if name is None:
        return ONE_DEVICE
    if name not in NAMES:
        raise ValueError(f"--strategy needs one of {NAMES}, got {name!r}.")
    if keras.backend.backend() == "jax":
        if name != "mirrored":
            raise ValueError(f"--strategy under KERAS_BACKEND=jax needs mirrored, got {name!r}.")
        return JaxDevices()
    if name == "mirrored":
        return Replicas(_mirrored())
    rank = _rank()  # before TensorFlow reads TF_CONFIG, and tells less of what is wrong
    return Replicas(_multiworker(), rank)


@functools.cache  # a second one in a process would number its sums as the first did, and mistake them for those
def _mirrored() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


@functools.cache
def _multiworker() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


def _rank() -> int:
    """The place of this process among the workers of TF_CONFIG, a chief being the first."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        cluster[kind][index]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            '--strategy multiworker needs TF_CONFIG={"cluster": {"worker": ["HOST:PORT", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, got TF_CONFIG={text!r}.'
        ) from error
    return index + (len(cluster.get("chief", ())) if kind == "worker" else 0)


@contextlib.contextmanager
def writable(out: str | Path, rank: int, resume: bool) -> Iterator[Path]:
    """The folder a process writes: the run's for the first, for the others one that is thrown away.

    All do the same, for saving sums measures over the workers; but one writes the run. To resume, every worker
    needs the run at `out`, on a disk that they share or as a copy.
    """
    if rank == 0:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / Path(out).name
        if resume and (Path(out) / "recipe.json").exists():
            shutil.copytree(out, folder, ignore=shutil.ignore_patterns(".*"))
        yield folder


def filled(batch: Any, multiple: int) -> Any:
    """(inputs, labels, sample_weights) with rows up to a multiple: the last one again, of weight 0."""
    rows = tf.shape(tf.nest.flatten(batch)[0])[0]
    wanted = -(-rows // multiple) * multiple
    real = tf.range(wanted) < rows
    places = tf.minimum(tf.range(wanted), rows - 1)
    inputs, labels, weights = tf.nest.map_structure(lambda part: tf.gather(part, places), batch)

    def weigh(part: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(real, [-1] + [1] * (part.shape.rank - 1)), part, tf.zeros_like(part))

    return inputs, labels, tf.nest.map_structure(weigh, weights)


class JointLoss(keras.losses.Loss):
    """The share of one replica in the mean over the real tokens of all.

    Keras gives the replica's own mean / replicas; the sum of those would count the tokens of a replica with few more.
    """

    def __init__(self, loss: Any):
        super().__init__(name=loss.name)
        self.one = loss

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        loss = self.one(y_true, y_pred, sample_weight)
        context = tf.distribute.get_replica_context()
        if context is None:  # built, not trained
            return loss
        own = tf.reduce_sum(tf.cast(sample_weight, loss.dtype))
        all_of_them = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
        return loss * tf.math.divide_no_nan(own * context.num_replicas_in_sync, all_of_them)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.one.call(y_true, y_pred)


class JointAdamW(keras.optimizers.AdamW):
    """AdamW of summed gradients; Keras' own would clip those of each replica, then sum them."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        context = tf.distribute.get_replica_context()
        super().apply(context.all_reduce(tf.distribute.ReduceOp.SUM, list(grads)), trainable_variables)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


def _reduces_along_an_axis(strategy: tf.distribute.Strategy) -> bool:
    """Whether Keras still averages a step's scalars over workers along an axis that they do not have."""
    from keras.src.backend.tensorflow import trainer

    try:
        with strategy.scope():
            trainer.reduce_per_replica(tf.zeros(()), strategy, "auto")
    except ValueError:
        return True
    return False


@contextlib.contextmanager
def _scalars_too() -> Iterator[None]:
    """Averages scalars over the workers as they are."""
    from keras.src.backend.tensorflow import trainer

    original = trainer.reduce_per_replica

    def reduce_per_replica(values: Any, strategy: tf.distribute.Strategy, reduction: str) -> Any:
        if reduction != "auto":
            return original(values, strategy, reduction)
        return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)

    trainer.reduce_per_replica = reduce_per_replica
    try:
        yield
    finally:
        trainer.reduce_per_replica = original
