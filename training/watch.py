"""Stops a run whose loss is no number, and says which step and which lines."""

from collections import deque
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.checkpointing import token_means
from training.feed import Feed
from training.files import write_beside

LAG = 2  # steps: reading a loss at once would make a GPU wait for the next step
FILE = "failed_batch.txt"


class NotFiniteError(ValueError):
    """A loss that is NaN or infinite."""


def lines_of(inputs: dict[str, Any], tokenizer: Any, target_tokenizer: Any = None) -> list[str]:
    """The text of a batch's rows, source and target joined by a tab."""
    tokenizers = {"token_ids": tokenizer, "encoder_token_ids": tokenizer, "decoder_token_ids": target_tokenizer}
    texts = []
    for name, one in tokenizers.items():
        if name in inputs:
            # Of several texts a row, each is a line.
            parts = (inputs[name], inputs[name.replace("token_ids", "padding_mask")])
            rows = tf.ragged.boolean_mask(*(np.reshape(part, (-1, np.shape(part)[-1])) for part in parts))
            texts.append([text.decode().replace("\n", "\\n") for text in one.detokenize(rows).numpy()])
    return ["\t".join(parts) for parts in zip(*texts, strict=True)]


class Watch(keras.callbacks.Callback):
    """Raises NotFiniteError at the first step whose loss is not finite; to come before what saves checkpoints.

    Args:
        feed: what the fit is fed.
        folder: of the run; the lines of the batch are written there.
        tokenizers: the run's, of source and target.
        checkpoint_steps: at these the loss is read at once, before the checkpoint is written.
    """

    def __init__(self, feed: Feed, folder: Path, tokenizers: tuple[Any, Any], checkpoint_steps: int | None = None):
        super().__init__()
        self.feed = feed
        self.folder = folder
        self.tokenizers = tokenizers
        self.checkpoint_steps = checkpoint_steps
        self.step = feed.first_step
        self._waiting: deque[tuple[int, Any]] = deque()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        self._waiting.append((self.step, token_means(logs or {})["loss"]))
        saves = self.checkpoint_steps and self.step % self.checkpoint_steps == 0
        self._check(0 if saves else LAG)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check(0)

    def _check(self, left: int) -> None:
        while len(self._waiting) > left:
            step, loss = self._waiting.popleft()
            if not np.isfinite(float(loss)):
                self._stop(step, float(loss))

    def _stop(self, step: int, loss: float) -> None:
        inputs = self.feed.inputs(step)
        lines = lines_of(inputs, *self.tokenizers) if inputs else []
        write_beside(self.folder / FILE, lambda beside: beside.write_text("\n".join([*lines, ""]), "utf-8"))
        shown = "; ".join(repr(line[:60]) for line in lines[:3])
        raise NotFiniteError(
            f"The loss is {loss} at step {step}. {self.folder / FILE} has the {len(lines)} lines of its batch: {shown}"
        )
