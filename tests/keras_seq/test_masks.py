"""keras_seq.masks: who may be seen."""

import numpy as np
from keras import ops

from keras_seq import masks

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], "int32")


def test_real_is_the_padding_mask_for_every_asking_position_bool_or_int():
    for mask in (MASK, MASK.astype(bool)):
        real = ops.convert_to_numpy(masks.real(mask))
        assert real.dtype == bool
        np.testing.assert_array_equal(real, MASK[:, None].astype(bool))


def test_places_count_from_zero_in_every_row():
    np.testing.assert_array_equal(masks.places(np.full((3, 7), 9)), np.tile(np.arange(7), (3, 1)))


def test_not_later_is_lower_triangular():
    allowed = ops.convert_to_numpy(masks.not_later(masks.places(MASK)))
    np.testing.assert_array_equal(allowed, np.tile(np.tri(5, dtype=bool), (3, 1, 1)))


def test_up_to_a_position_is_that_row_of_not_later():
    positions = np.array([4, 0, 2], "int32")
    allowed = ops.convert_to_numpy(masks.up_to(ops.convert_to_tensor(positions), 5))
    np.testing.assert_array_equal(allowed[:, 0], np.tri(5, dtype=bool)[positions])


def test_last_real_is_one_position_and_none_in_a_row_without_text():
    for mask in (MASK, MASK.astype(bool)):
        last = ops.convert_to_numpy(masks.last_real(mask))
        expected = [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
        np.testing.assert_array_equal(last[:, 0], np.array(expected, bool))


def test_only_the_same_segment_may_be_seen():
    seen = np.array(masks.same_segment(ops.convert_to_tensor([[1, 1, 2, 0]])))[0]
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
