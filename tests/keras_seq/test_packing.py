"""keras_seq.packing against KerasHub's packers."""

import keras_hub
import numpy as np
import tensorflow as tf

from keras_seq.packing import pack_segments, pack_start_end

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
