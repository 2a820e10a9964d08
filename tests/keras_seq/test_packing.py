"""keras_seq.packing against KerasHub's packers."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_seq.packing import pack_segments, pack_start_end, pack_windows

ROWS = tf.ragged.constant([[5, 6, 7], [], [8]], dtype=tf.int32)
SECOND = tf.ragged.constant([[9], [10, 11], []], dtype=tf.int32)


def test_start_and_end_stand_where_keras_hub_puts_them():
    for start, end in ((2, 3), (2, None), (None, 3)):
        packer = keras_hub.layers.StartEndPacker(7, start_value=start, end_value=end, pad_value=0)
        np.testing.assert_array_equal(pack_start_end(ROWS, start, end).to_tensor(shape=(None, 7)), packer(ROWS))
    assert pack_start_end(ROWS).to_list() == ROWS.to_list()


def test_segments_stand_and_are_numbered_as_keras_hub_does():
    packer = keras_hub.layers.MultiSegmentPacker(11, start_value=2, end_value=3)
    ours = pack_segments((ROWS, SECOND), 2, 3)
    for one, expected in zip(ours, packer((ROWS, SECOND))):
        np.testing.assert_array_equal(one.to_tensor(shape=(None, 11)), expected)
    assert pack_segments((ROWS,), 2, 3)[0].to_list() == pack_start_end(ROWS, 2, 3).to_list()


def test_the_number_of_rows_may_be_unknown_in_a_graph():
    packed = tf.function(lambda strings: pack_start_end(tf.strings.unicode_decode(strings, "UTF-8"), 2, 3))
    concrete = packed.get_concrete_function(tf.TensorSpec([None], tf.string))
    assert concrete(tf.constant(["a", ""])).to_list() == [[2, 97, 3], [2, 3]]


def windows_by_loop(question, context, limit, most):
    """The same with lists: a window, then half a window on, until the end of the context has been in one."""
    room, first, found = limit - 3 - len(question), 0, []
    while True:
        piece = context[first : first + room]
        found.append((first, [2, *question, 3, *piece, 3], [0] * (len(question) + 2) + [1] * (len(piece) + 1)))
        if first + room >= len(context) or len(found) == most:
            return found
        first += room // 2


@pytest.mark.parametrize("most", [None, 3])
def test_windows_are_those_of_a_loop_and_each_half_window_of_the_context_stands_whole_in_one(most):
    questions = [[5], [], [5, 6, 7], [5, 6], [8]]
    contexts = [list(range(20, 20 + size)) for size in (0, 7, 23, 8, 9)]
    rows = [tf.ragged.constant(ids, dtype=tf.int32) for ids in (questions, contexts)]
    packed = pack_windows(*rows, 2, 3, 13, most)
    expected = [windows_by_loop(*pair, 13, most) for pair in zip(questions, contexts)]
    flat = [window for windows in expected for window in windows]
    assert packed["firsts"].numpy().tolist() == [first for first, _, _ in flat]
    assert packed["token_ids"].to_list() == [ids for _, ids, _ in flat]
    assert packed["segment_ids"].to_list() == [ids for _, _, ids in flat]
    assert packed["rows"].numpy().tolist() == [i for i, windows in enumerate(expected) for _ in windows]
    assert packed["numbers"].numpy().tolist() == [i for windows in expected for i in range(len(windows))]
    for ids, start, first, row in zip(
        packed["token_ids"].to_list(), *(packed[x] for x in ("starts", "firsts", "rows"))
    ):
        assert ids[int(start) : -1] == contexts[int(row)][int(first) : int(first) + len(ids) - 1 - int(start)]
    if most is None:
        whole = packed["token_ids"].to_list()
        for row, context in enumerate(contexts):
            half = (13 - 3 - len(questions[row])) // 2
            for place in range(len(context) - half + 1):
                piece = context[place : place + half]
                held = [ids for ids, owner in zip(whole, packed["rows"]) if owner == row]
                assert any(piece == ids[i : i + half] for ids in held for i in range(len(ids)))


def test_no_rows_have_no_windows():
    none = tf.RaggedTensor.from_row_splits(tf.constant([], tf.int32), [0])
    packed = pack_windows(none, none, 2, 3, 13)
    assert packed["token_ids"].to_list() == [] and packed["rows"].shape == (0,)
