"""Who may be seen. Every mask here is a bool tensor in which True means "may look".

Masks are made from ids or from padding masks, explicitly, and combined with ``&``; nothing relies on a mask that
travels behind the reader's back. The shapes broadcast: (b, 1, s) holds for every asking position.
"""

from keras import ops


def real(padding_mask_bs):
    """Only real positions may be seen.

    Args:
        padding_mask_bs: (b, s) bool or int, 1 = real.

    Returns:
        (b, 1, s) bool.
    """
    return ops.expand_dims(ops.cast(padding_mask_bs, "bool"), 1)


def places(token_ids_bt):
    """Where each token stands: 0, 1, 2, ... in every row; also for Keras' symbolic tensors, whose length is not known.

    Args:
        token_ids_bt: (b, t).

    Returns:
        (b, t) int32.
    """
    return ops.cumsum(ops.ones_like(token_ids_bt, dtype="int32"), axis=1) - 1


def not_later(places_bt):
    """No position may see one that comes after it (Vaswani et al. 2017, section 3.2.3).

    Args:
        places_bt: (b, t) int32.

    Returns:
        (b, t, t) bool, lower triangular for places 0, 1, 2, ...
    """
    return ops.expand_dims(places_bt, 2) >= ops.expand_dims(places_bt, 1)


def same_segment(segment_ids_bt):
    """Only positions of the same segment may be seen: several texts in a row, none of which sees another.

    Args:
        segment_ids_bt: (b, t) int32.

    Returns:
        (b, t, t) bool.
    """
    # Not `==`: of Keras' symbolic tensors that says whether they are the same object.
    return ops.equal(ops.expand_dims(segment_ids_bt, 2), ops.expand_dims(segment_ids_bt, 1))


def up_to(position_b, length):
    """One asking position a row: `not_later` for step by step decoding with a cache of `length` places.

    Args:
        position_b: (b,) int32, where each row stands.
        length: number of places s in the cache.

    Returns:
        (b, 1, s) bool.
    """
    return ops.expand_dims(ops.arange(length), 0)[None] <= position_b[:, None, None]


def first_real(padding_mask_bs):
    """Only the first real position may be seen: where one who reads backwards ends. As `last_real`."""
    real_bs = ops.cast(padding_mask_bs, "bool")
    return ops.expand_dims((places(real_bs) == 0) & real_bs, 1)


def last_real(padding_mask_bs):
    """Only the last real position may be seen: the one context vector of a whole sentence.

    Args:
        padding_mask_bs: (b, s) bool or int, 1 = real, padding on the right.

    Returns:
        (b, 1, s) bool; all False for a row without a real position.
    """
    real_bs = ops.cast(padding_mask_bs, "int32")
    last_b1 = ops.sum(real_bs, axis=1, keepdims=True) - 1
    return ops.expand_dims(places(real_bs) == last_b1, 1)
