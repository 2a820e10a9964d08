"""A loss that is no number stops the run, with the step and the lines."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_seq import train_tokenizer
from training.feed import Feed
from training.watch import NotFiniteError, Watch, lines_of

LINES = ["a dog runs", "the cat", "a cat runs"]
TOKENIZER = train_tokenizer(LINES, "word", 31)


def batches():
    ids = TOKENIZER.tokenize(tf.constant(LINES)).to_tensor(0)
    one = tf.data.Dataset.from_tensors(({"token_ids": ids, "padding_mask": ids != 0}, ids, ids))
    return one.concatenate(
        one.map(lambda x, y, w: ({name: part[:2] for name, part in x.items()}, y[:2], w[:2]))
    ).repeat(5)


def watch(folder, losses, checkpoint_steps=None):
    """Steps as fit takes them, until the watch stops it."""
    feed = Feed(batches(), first_step=100)
    one, iterator = Watch(feed, folder, (TOKENIZER, None), checkpoint_steps), iter(feed.dataset())
    for done, loss in enumerate(losses):
        next(iterator)
        one.on_train_batch_end(done, {"loss": tf.constant(0.0), "token_loss": tf.constant(loss)})
    one.on_epoch_end(0)
    return one


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_the_first_step_without_a_number_is_named_with_its_lines(loss, after, tmp_path):
    # A mean over the epoch stays NaN from there on.
    with pytest.raises(
        NotFiniteError, match=rf"The loss is {loss} at step 102\. .* has the 2 lines .* 'a dog runs'; 'the"
    ):
        watch(tmp_path, [2.0, loss, *[loss] * after])
    assert (tmp_path / "failed_batch.txt").read_text() == "a dog runs\nthe cat\n"


def test_it_is_read_before_a_checkpoint_would_be_written(tmp_path):
    with pytest.raises(NotFiniteError, match="at step 102"):
        watch(tmp_path, [2.0, math.nan], checkpoint_steps=51)


def test_losses_that_are_numbers_leave_no_trace(tmp_path):
    assert watch(tmp_path, [2.0, 1e30, -3.0]).step == 103
    assert not list(tmp_path.iterdir())


def test_each_of_a_rows_choices_is_a_line():
    ids = np.array([[[5, 6, 0], [7, 0, 0]], [[6, 0, 0], [0, 0, 0]]], "int32")
    shown = [TOKENIZER.detokenize(tf.constant([row])).numpy()[0].decode() for row in ([5, 6], [7], [6])]
    assert lines_of({"token_ids": ids, "padding_mask": ids > 0}, TOKENIZER) == [*shown, ""]


def test_the_lines_of_a_translation_are_source_and_target():
    ids = np.array([[5, 6, 0], [7, 0, 0]], "int32")
    inputs = {
        f"{side}_{name}": part
        for side in ("encoder", "decoder")
        for name, part in (("token_ids", ids), ("padding_mask", ids > 0))
    }
    (first, second) = (TOKENIZER.detokenize(tf.constant([row])).numpy()[0].decode() for row in ([5, 6], [7]))
    assert lines_of(inputs, TOKENIZER, TOKENIZER) == [f"{first}\t{first}", f"{second}\t{second}"]
