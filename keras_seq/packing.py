"""The special tokens around a text, in the one place that training and serving share: a model must be asked in the form
it was trained in. In KerasHub's words: a start-end packer and a multi-segment packer.
"""

NUM_TASK_TOKENS = 3  # that GPT gets for fine-tuning: start, delimiter, extract
MAX_WINDOWS = 32  # of a context, where it is answered from: what lies beyond is not read
MAX_SOURCE = 512  # tokens of a source, where the model itself sets no bound


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


def pack_task(parts, vocabulary_size):
    """start text extract, or start first delimiter second extract (Radford et al. 2018, section 3.3).

    The three are new tokens behind the tokenizer's: `GPT.with_vocabulary_size(vocabulary_size + 3)` has them.

    Args:
        parts: sequence of ragged (b, None) int32.
        vocabulary_size: number of the tokenizer's tokens, and id of the start token.

    Returns:
        ragged (b, None) int32.
    """
    import tensorflow as tf

    start, delimiter, extract = range(vocabulary_size, vocabulary_size + NUM_TASK_TOKENS)
    between = [delimiter] * (len(parts) - 1) + [extract]
    packed = [pack_start_end(part, None if i else start, after) for i, (part, after) in enumerate(zip(parts, between))]
    return tf.concat(packed, axis=1)


def pack_windows(questions, contexts, start_token_id, end_token_id, limit, max_windows=None):
    """[CLS] question [SEP] context [SEP], a context longer than its room in windows that overlap by half.

    Devlin et al. 2019, section 4.2; the windows ("document stride") are those of its code. With half in common, an
    answer of up to half a window stands whole in one of them.

    Args:
        questions: ragged (b, None) int32.
        contexts: ragged (b, None) int32.
        start_token_id: [CLS].
        end_token_id: [SEP].
        limit: most tokens of a window, the special ones included; every question leaves room for one of the context.
        max_windows: most windows of a row, the rest of its context is left out; None: no bound.

    Returns:
        dict, w windows in all, those of a row together: token_ids, segment_ids ragged (w, None) int32; rows (w,) int64,
        whose window it is; numbers (w,) int64, which of its row's, from 0; firsts (w,) int64, which token of the
        context stands first in it; starts (w,) int64, at which place.
    """
    import tensorflow as tf

    starts_b = questions.row_lengths() + 2
    sizes_b = contexts.row_lengths()
    room_b = tf.maximum(limit - 1 - starts_b, 1)
    stride_b = tf.maximum(room_b // 2, 1)
    count_b = 1 - (-tf.maximum(sizes_b - room_b, 0) // stride_b)
    if max_windows is not None:
        count_b = tf.minimum(count_b, max_windows)
    numbers = tf.ragged.range(count_b)
    rows_w, numbers_w = numbers.value_rowids(), numbers.values
    firsts_w = numbers_w * tf.gather(stride_b, rows_w)
    taken_w = tf.minimum(tf.gather(room_b, rows_w), tf.gather(sizes_b, rows_w) - firsts_w)

    def rows_of(ragged, firsts, lengths):
        begins = tf.gather(ragged.row_starts(), rows_w) + firsts
        places = tf.ragged.range(begins, begins + lengths)
        return places.with_values(tf.gather(ragged.values, places.values))

    asked = rows_of(questions, 0, tf.gather(starts_b - 2, rows_w))
    token_ids, segment_ids = pack_segments((asked, rows_of(contexts, firsts_w, taken_w)), start_token_id, end_token_id)
    return {
        "token_ids": token_ids,
        "segment_ids": segment_ids,
        "rows": rows_w,
        "numbers": numbers_w,
        "firsts": firsts_w,
        "starts": tf.gather(starts_b, rows_w),
    }
