"""A trie in arrays, walked with one addition and two look-ups a step: a double array (Aoe 1989, section 2)."""

import numpy as np

LARGE_FAMILY = 256  # children, of a root mostly: where they fit in between is not worth the search


class DoubleArrayTrie:
    """Paths of symbols from several roots.

    The child of a node along a symbol is the slot base + symbol, if that slot has this symbol: no two nodes have the
    same base, so a slot and its symbol tell the parent. Slot 0 is no node, and base 0 leads nowhere. Symbols are from
    0, which is on no path, to the largest of the paths.

    Attributes:
        roots: the bases of the roots.
        slots: per slot, int32 (slots, 2): its symbol, -1 for a slot without a node, and its base, 0 without children.
        values, lengths: per slot, int32: of the longest path that ends at this node or on the way to it, its value (-1:
            there is none) and number of symbols.
        depth: symbols of the longest path.

    Args:
        paths: dict (root, symbols) -> value, with symbols a tuple of int from 1 on.
        num_roots: how many roots there are.
    """

    def __init__(self, paths, num_roots):
        children, own = [{} for _ in range(num_roots)], [-1] * num_roots
        for (node, symbols), value in paths.items():
            for symbol in symbols:
                if symbol not in children[node]:
                    children[node][symbol] = len(children)
                    children.append({})
                    own.append(-1)
                node = children[node][symbol]
            own[node] = value
        bases, slots = _place(children)
        size = max(slots + bases) + max((symbol for node in children for symbol in node), default=0) + 1
        self.roots = bases[:num_roots]
        self.slots = np.tile(np.array([-1, 0], "int32"), [size, 1])
        self.values, self.lengths = np.full(size, -1, "int32"), np.zeros(size, "int32")
        longest, depths = [(-1, 0)] * len(children), [0] * len(children)
        for node, edges in enumerate(children):  # a parent comes before its children
            for symbol, child in edges.items():
                depths[child] = depths[node] + 1
                longest[child] = (own[child], depths[child]) if own[child] >= 0 else longest[node]
                slot = slots[child]
                self.slots[slot] = symbol, bases[child]
                self.values[slot], self.lengths[slot] = longest[child]
        self.depth = max(depths)


def _place(children):
    """Bases and slots of nodes: each base the first where all children fall into free slots, large families first."""
    # Sets of slots and of bases as the bits of one integer each, all but 0 free without end: a family is tried at every
    # base at once.
    free_slots = free_bases = -2
    bases, slots, top = [0] * len(children), [0] * len(children), 1
    for node in sorted((node for node, edges in enumerate(children) if edges), key=lambda node: -len(children[node])):
        family = np.zeros(max(children[node]) + 1, bool)
        family[list(children[node])] = True
        if len(children[node]) > LARGE_FAMILY:
            base = top
        else:
            fits = free_bases
            for symbol in children[node]:
                fits &= free_slots >> symbol
            base = (fits & -fits).bit_length() - 1
        bases[node] = base
        free_bases ^= 1 << base
        free_slots ^= int.from_bytes(np.packbits(family, bitorder="little").tobytes(), "little") << base
        for symbol, child in children[node].items():
            slots[child] = base + symbol
        top = max(top, base + len(family) - 1)
    return bases, slots
