"""keras_seq.trie: paths in arrays, against a dict of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seq.trie import DoubleArrayTrie

paths = st.dictionaries(
    st.tuples(st.integers(0, 2), st.lists(st.integers(1, 11), min_size=1, max_size=5).map(tuple)), st.integers(0, 101)
)


def walk(trie, root, symbols):
    """The slot of the longest path that symbols begin with."""
    base, slot = trie.roots[root], 0
    for symbol in symbols:
        if trie.slots[base + symbol, 0] != symbol:
            break
        slot = base + symbol
        base = trie.slots[slot, 1]
    return slot


@settings(max_examples=101, deadline=None, derandomize=True)
@given(paths, st.integers(0, 2), st.lists(st.integers(1, 11), max_size=7).map(tuple))
def test_a_walk_ends_at_the_longest_path_that_was_put_in(paths, root, symbols):
    paths[2, (11,)] = 103  # the largest symbol, beyond which none may be looked up
    trie = DoubleArrayTrie(paths, 3)
    for at, text in [*paths, (root, symbols), *((at, text + symbols) for at, text in paths)]:
        length = max((n for n in range(1, len(text) + 1) if (at, text[:n]) in paths), default=0)
        slot = walk(trie, at, text)
        assert (trie.lengths[slot], trie.values[slot]) == (length, paths.get((at, text[:length]), -1))
    assert trie.depth == max((len(text) for _, text in paths), default=0)


def test_slots_are_packed_and_no_two_nodes_share_a_base():
    random = np.random.default_rng(7)
    paths = {(0, tuple(map(int, random.integers(1, 101, size=random.integers(1, 7))))): i for i in range(997)}
    trie = DoubleArrayTrie(paths, 1)
    used = np.flatnonzero(trie.slots[:, 0] >= 0)
    assert len(used) > 0.8 * len(trie.slots)
    bases = trie.slots[used, 1]
    assert len(set(bases[bases > 0])) == np.count_nonzero(bases)


def test_families_too_large_to_be_fitted_in_are_laid_one_after_another():
    paths = {
        (root, (symbol, deep)): symbol for root in (0, 1) for symbol in (1, 997) for deep in range(1, 293, 1 + root)
    }
    trie = DoubleArrayTrie(paths, 2)
    for (root, symbols), value in paths.items():
        slot = walk(trie, root, symbols)
        assert (trie.values[slot], trie.lengths[slot]) == (value, 2)
    assert walk(trie, 1, (1, 2)) == walk(trie, 1, (1,))
