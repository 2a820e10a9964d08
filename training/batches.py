"""Which rows share a batch: those of about one length, so that nearly all its places hold real tokens."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

POOL = 50_000  # examples of a stream that are in memory at once, shuffled together


class Stream(Protocol):
    """Examples that are read while they are used: files larger than memory."""

    def pools(self, size: int, seed: int | None) -> Iterator[list]:
        """`size` examples after another; with a seed in an order of its own and again and again."""


class Rows:
    """Rows of several parts, in memory as flat arrays.

    Args:
        parts: ragged (n, None) int32, as many rows in each, or arrays (n,) of one number a row.
    """

    def __init__(self, parts: dict[str, Any]):
        ragged = {name: part for name, part in parts.items() if isinstance(part, tf.RaggedTensor)}
        self.values = {name: part.values.numpy() for name, part in ragged.items()}
        self.starts = {name: part.row_splits.numpy() for name, part in ragged.items()}
        self.numbers = {name: np.asarray(part) for name, part in parts.items() if name not in ragged}
        self.lengths = np.stack([np.diff(starts) for starts in self.starts.values()], axis=1)  # (n, parts)

    def padded(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows: each ragged part `x` padded with 0, beside `x_mask`, 1 where it is real."""
        batch = {name: part[chosen] for name, part in self.numbers.items()}
        for column, (name, values) in enumerate(self.values.items()):
            lengths, starts = self.lengths[chosen, column], self.starts[name][chosen]
            mask = np.arange(lengths.max(initial=0))[None] < lengths[:, None]
            batch[name] = np.zeros(mask.shape, "int32")
            batch[name][mask] = np.concatenate([values[a : a + n] for a, n in zip(starts, lengths)])
            batch[f"{name}_mask"] = mask.astype("int32")
        return batch


def plan(lengths: np.ndarray, tokens_per_batch: int, width: int, rng: np.random.Generator | None) -> list[np.ndarray]:
    """The rows of each batch: sorted by length and cut; with `rng`, rows of one length and all batches are shuffled.

    Args:
        lengths: (n, parts), tokens of each part of each row.
        tokens_per_batch: greatest number of rows times the longest of their parts.
        width: greatest difference of the longest parts within a batch.
        rng: of the order, or None.
    """
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    longest = lengths.max(axis=1)
    # Of one longest part, rows go from a short first part to a short last one, and back in the next length: a batch
    # across two lengths then holds what is alike.
    lean = (lengths[:, 0] - lengths[:, -1]) * np.where(longest % 2, 1, -1)
    order = order[np.lexsort((lean[order], longest[order]))]
    batches, start, sizes = [], 0, np.maximum(longest[order], 1)
    for end in range(1, len(order) + 1):
        if end < len(order):
            size = sizes[end]
            if size * (end + 1 - start) <= tokens_per_batch and size - sizes[start] <= width:
                continue
        batches.append(order[start:end])
        start = end
    if rng is not None:
        rng.shuffle(batches)  # type: ignore[arg-type]
    return batches


def bucketed(
    examples: Sequence | Stream,
    rows: Callable[[Sequence], dict[str, Any]],
    names: tuple[Sequence[str], Sequence[str]],
    tokens_per_batch: int,
    width: int,
    seed: int | None,
    num_draws: int = 0,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Batches of rows of about one length; with a seed shuffled anew in each pass, for ever.

    With `num_draws`, each place of the first part also has that many random numbers in [0, 1), `draws` (b, t,
    num_draws), which depend on the seed, the pass and the row: the same whatever the batches and after a resumption.

    Args:
        examples: all of them, or a stream, of which POOL are in memory at once.
        rows: makes the parts of some examples.
        names: of the ragged parts, and of those of one number a row.
        tokens_per_batch, width, seed: see `plan`.
        num_draws: random numbers a place.
        start_step: batches to leave out; of examples in memory these are not made.
    """
    ragged, numbers = names
    if isinstance(examples, Sequence) and not len(examples):
        raise ValueError("Batches need one example or more, got 0.")
    whole = Rows(rows(examples)) if isinstance(examples, Sequence) else None

    def pools() -> Iterable[Rows]:
        if whole is not None:
            return [whole] if seed is None else itertools.repeat(whole)
        assert not isinstance(examples, Sequence)
        return (Rows(rows(pool)) for pool in examples.pools(POOL, seed))

    def generate() -> Iterator[dict[str, np.ndarray]]:
        left, seen = start_step, 0
        for number, pool in enumerate(pools()):
            rng = None if seed is None else np.random.default_rng((seed, number))
            batches = plan(pool.lengths, tokens_per_batch, width, rng)
            for chosen in batches[left:]:
                batch = pool.padded(chosen)
                if num_draws:
                    batch["draws"] = _draws(batch[ragged[0]].shape[1], num_draws, seed or 0, seen + chosen)
                yield batch
            left = max(0, left - len(batches))
            seen += len(pool.lengths)

    signature = {name: tf.TensorSpec((None, None), tf.int32) for part in ragged for name in (part, f"{part}_mask")}
    signature |= {name: tf.TensorSpec((None,), tf.int32) for name in numbers}
    if num_draws:
        signature["draws"] = tf.TensorSpec((None, None, num_draws), tf.float32)
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def _draws(length: int, count: int, seed: int, keys: np.ndarray) -> np.ndarray:
    """(b, length, count) in [0, 1): each row from a counter-based stream of its own, whose beginning it always has."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, int(key)])).random((length, count), "f") for key in keys]
    return np.stack(rows)


def without_tuner(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without tf.data's tuner, which has nothing to tune here.

    It sleeps twice as long each time, and an iterator's end may wait until it wakes: of fits of 2.6 s every second one
    ended after 5.1.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
