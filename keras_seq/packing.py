"""The special tokens around a text, in the one place that training and serving share: a model must be asked in the form
it was trained in. In KerasHub's words: a start-end packer and a multi-segment packer.
"""


def pack_start_end(rows, start_token_id=None, end_token_id=None):
    """One token put before, one after every row.

    Args:
        rows: ragged (b, None) int32.
        start_token_id: int, or None for nothing.
        end_token_id: int, or None for nothing.

    Returns:
        ragged (b, None) int32.
    """
    import tensorflow as tf

    def column(token_id):
        return tf.RaggedTensor.from_tensor(tf.fill([rows.nrows(), 1], token_id))

    before = [] if start_token_id is None else [column(start_token_id)]
    after = [] if end_token_id is None else [column(end_token_id)]
    return tf.concat([*before, rows, *after], axis=1)


def pack_segments(parts, start_token_id, end_token_id):
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP] (Devlin et al. 2019, section 3, input representation).

    Args:
        parts: sequence of ragged (b, None) int32, one a segment.
        start_token_id: [CLS].
        end_token_id: [SEP].

    Returns:
        token ids and segment ids 0, 1, ..., each ragged (b, None) int32.
    """
    import tensorflow as tf

    packed = [pack_start_end(part, None if i else start_token_id, end_token_id) for i, part in enumerate(parts)]
    kinds = [tf.ones_like(part) * i for i, part in enumerate(packed)]
    return tf.concat(packed, axis=1), tf.concat(kinds, axis=1)
