"""What a fit is fed is what the dataset holds, and counted by step."""

import numpy as np
import pytest
import tensorflow as tf

from training.feed import KEPT, Feed, count_tokens, reason
from training.pipelines import counted


def batches(count=29):
    """Batch i has rows of i % 5 + 1 real tokens of 5 places."""
    masks = [np.arange(5)[None] < np.full((3, 1), i % 5 + 1) for i in range(count)]
    masks = tf.data.Dataset.from_tensor_slices(np.array(masks))
    return masks.map(lambda mask: ({"token_ids": tf.cast(mask, tf.int32), "padding_mask": mask}, mask, mask))


def test_batches_pass_as_they_are():
    given, fed = list(batches()), list(Feed(batches()).dataset())
    assert Feed(batches()).dataset().element_spec == batches().element_spec
    for one, other in zip(given, fed, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_tokens_are_those_of_the_steps_done_and_not_of_what_is_prepared():
    feed = Feed(batches(), first_step=100, tokens=(1000, 2000))
    assert feed.tokens(100) == (1000, 2000)
    iterator = iter(feed.dataset())
    for _ in range(3):
        next(iterator)
    assert feed.tokens(103) == (1000 + 3 * (1 + 2 + 3), 2000 + 3 * 15)
    assert feed.inputs(102)["padding_mask"].sum() == 3 * 2


def test_the_end_of_a_fit_or_a_validation_waits_for_no_tuner():
    feed = Feed(tf.data.Dataset.range(3))
    for batches in (feed.batches, feed.dataset(), counted(tf.data.Dataset.range(3)).repeat()):
        assert batches.options().autotune.enabled is False


def test_what_a_reader_says_of_a_file_is_told_though_tensorflow_ran_it():
    def read():
        yield 1
        raise ValueError("lines, line 3 needs column 1, got 1 columns: 'x'")

    given = tf.data.Dataset.from_generator(read, output_signature=tf.TensorSpec((), tf.int32))
    given = given.map(lambda x: ({"padding_mask": tf.fill((1, 2), x > 0)}, x, x))
    with pytest.raises(tf.errors.OpError) as raised:
        list(Feed(given).dataset())
    assert reason(raised.value) == "lines, line 3 needs column 1, got 1 columns: 'x'"
    assert reason(tf.errors.ResourceExhaustedError(None, None, "no memory")) is None
    for words in ("IsADirectoryError: [Errno 21] a/b", "PermissionError: [Errno 13] a/b"):
        assert reason(tf.errors.UnknownError(None, None, f"{words}\nTraceback")) == words.partition(": ")[2]
    assert reason(tf.errors.UnknownError(None, None, "TypeError: ours")) is None


def test_the_last_batches_can_be_asked_for_and_old_ones_are_gone():
    feed = Feed(batches())
    list(feed.dataset())
    assert feed.inputs(29) is not None and feed.inputs(29 - KEPT) is None


def test_tokens_of_an_encoder_and_a_decoder_are_added():
    one, other = np.array([[1, 1, 0]], bool), np.array([[1, 0, 0, 0]])
    assert count_tokens({"encoder_padding_mask": one, "decoder_padding_mask": other, "x": one}) == (3, 7)
