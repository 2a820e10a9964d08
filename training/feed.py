"""What a fit is fed, and what it has been fed: how many of its tokens were real, and the last batches."""

import builtins
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from training.batches import without_tuner

# The errors of reading: of the system, and of what a file holds.
_OF_FILES = ["BadGzipFile"] + [
    name
    for name, one in vars(builtins).items()
    if isinstance(one, type) and issubclass(one, OSError | ValueError | EOFError)
]
KEPT = 16  # batches: more than tf.data prepares ahead of the step that trains


def count_tokens(inputs: dict[str, Any]) -> tuple[int, int]:
    """Real tokens and places of a batch's inputs, over all their padding masks."""
    masks = [np.asarray(mask) for name, mask in inputs.items() if name.endswith("padding_mask")]
    return sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)


def reason(error: tf.errors.OpError) -> str | None:
    """What a reader said of a file while TensorFlow ran it: of its error only the words get through, among others.

    None where no reader said anything.
    """
    found = re.search(rf"\b(?:{'|'.join(_OF_FILES)}): (.+)", str(error))
    return found[1] if found else None


class Feed:
    """Passes batches on and counts them: by step, since tf.data reads ahead of what has been trained.

    Args:
        batches: (inputs, labels, sample_weights), with padding masks among the inputs.
        first_step: of the first batch, from 0.
        tokens: real tokens and places of the steps before it.
    """

    def __init__(self, batches: tf.data.Dataset, first_step: int = 0, tokens: tuple[int, int] = (0, 0)):
        self.batches = without_tuner(batches)
        self.first_step = first_step
        self._tokens = [tokens]
        self._last: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT)

    def dataset(self) -> tf.data.Dataset:
        """The batches as `model.fit` takes them."""
        made = tf.data.Dataset.from_generator(self._pass_on, output_signature=self.batches.element_spec)
        return without_tuner(made.prefetch(2))

    def _pass_on(self) -> Iterator[Any]:
        for step, batch in enumerate(self.batches.as_numpy_iterator(), start=self.first_step + 1):
            real, places = count_tokens(batch[0])
            before = self._tokens[-1]
            self._last.append((step, batch[0]))
            self._tokens.append((before[0] + real, before[1] + places))
            yield batch

    def tokens(self, step: int) -> tuple[int, int]:
        """Real tokens and places of the first `step` steps of the run."""
        return self._tokens[step - self.first_step]

    def inputs(self, step: int) -> dict[str, Any] | None:
        """What was fed at a step, counted from 1; None if it is long ago."""
        return dict(self._last).get(step)
