"""Which rows share a batch."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from training import batches
from training.batches import Rows, bucketed, plan

NUMBERS = [[i] * (i % 7 + 1) for i in range(1, 54)]
NAMES = (("x",), ("n",))


def rows(numbers):
    return {"x": tf.ragged.constant(numbers, "int32"), "n": np.array([one[0] for one in numbers], "int32")}


class Numbers:
    """A stream of lists."""

    def __init__(self):
        self.read = 0

    def pools(self, size, seed):
        while True:
            for start in range(0, len(NUMBERS), size):
                self.read += 1
                yield NUMBERS[start : start + size]
            if seed is None:
                return


def seen(dataset):
    return [batch["n"].tolist() for batch in dataset.as_numpy_iterator()]


def flat(lists):
    return sorted(one for some in lists for one in some)


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=53), st.integers(1, 5))
@settings(max_examples=53, deadline=None)
def test_each_row_is_in_one_batch_and_no_batch_is_too_large_or_too_wide(lengths, width):
    lengths = np.array(lengths)
    for rng in (None, np.random.default_rng(3)):
        made = plan(lengths, 31, width, rng)
        assert sorted(np.concatenate(made)) == list(range(len(lengths)))
        for chosen in made:
            longest = lengths[chosen].max(axis=1)
            assert len(chosen) == 1 or max(1, longest.max()) * len(chosen) <= 31
            assert np.maximum(longest, 1).max() - np.maximum(longest, 1).min() <= width


def test_pairs_share_batches_with_pairs_like_them():
    rng = np.random.default_rng(3)
    source = rng.integers(5, 29, size=2003)
    lengths = np.stack([source, source + rng.integers(-4, 5, size=2003)], axis=1)  # a translation's length is alike
    made = plan(lengths, 499, 3, np.random.default_rng(5))
    places = sum(len(chosen) * lengths[chosen].max(axis=0).sum() for chosen in made)
    assert lengths.sum() > 0.9 * places


def test_rows_are_padded_beside_their_masks():
    batch = Rows({"x": tf.ragged.constant([[1, 2, 3], [], [4]], "int32"), "n": [7, 8, 9]}).padded(np.array([2, 1, 0]))
    assert batch["x"].tolist() == [[4, 0, 0], [0, 0, 0], [1, 2, 3]]
    assert batch["x_mask"].tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert batch["n"].tolist() == [9, 8, 7]


def test_a_pass_has_every_example_and_the_next_another_order():
    dataset = bucketed(NUMBERS, rows, NAMES, 13, 2, 3)
    count = len(seen(bucketed(NUMBERS, rows, NAMES, 13, 2, None)))
    both = seen(dataset.take(2 * count))
    assert flat(both[:count]) == flat(both[count:]) == list(range(1, 54))
    assert both[:count] != both[count:]


def test_a_stream_is_read_in_pools_and_has_every_example(monkeypatch):
    monkeypatch.setattr(batches, "POOL", 11)
    stream = Numbers()
    assert flat(seen(bucketed(stream, rows, NAMES, 13, 2, None))) == list(range(1, 54))
    assert stream.read == 5
    stream = Numbers()
    first = seen(bucketed(stream, rows, NAMES, 13, 2, 3).take(2))
    assert set(flat(first)) <= set(range(1, 12))  # of the first pool alone
    assert stream.read < 5


def test_a_stream_and_examples_in_memory_can_start_at_any_step(monkeypatch):
    monkeypatch.setattr(batches, "POOL", 11)
    for examples in (NUMBERS, Numbers()):
        whole = seen(bucketed(examples, rows, NAMES, 13, 2, 3).take(61))
        assert seen(bucketed(examples, rows, NAMES, 13, 2, 3, start_step=47).take(14)) == whole[47:]


def test_random_numbers_of_a_row_are_its_own():
    def draws(tokens):
        dataset = bucketed(NUMBERS, rows, NAMES, tokens, 2, None, num_draws=2)
        return {
            int(n): x[: len(NUMBERS[n - 1])]
            for one in dataset.as_numpy_iterator()
            for n, x in zip(one["n"], one["draws"])
        }

    few, many = draws(7), draws(211)
    for n in range(1, 54):
        np.testing.assert_array_equal(few[n], many[n])
    values = np.concatenate([one.ravel() for one in few.values()])
    assert len(np.unique(values)) == len(values) and 0 <= values.min() < 0.1 and 0.9 < values.max() < 1


def test_nothing_to_batch_is_an_error():
    with pytest.raises(ValueError, match="Batches need one example or more, got 0"):
        bucketed([], rows, NAMES, 13, 2, 3)
