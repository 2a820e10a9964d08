"""What GPT is given to read when it is fine-tuned: each task's texts as one sequence between special tokens.

Radford et al. 2018, section 3.3 and figure 1. Texts are lists of token ids; start, delimiter and extract are three ids
that stand for nothing else: reserved ones of the vocabulary, or new ones at its end (`GPT.with_vocabulary_size`). A
sequence that would exceed `max_length` loses the end of its longest part, so that every special token stays.
"""

import numpy as np


def classification_inputs(texts, start_token_id, extract_token_id, max_length=None):
    """start, text, extract.

    Args:
        texts: b lists of token ids.
        start_token_id: first token of every sequence.
        extract_token_id: last token of every sequence, whose hidden state the head reads.
        max_length: most tokens of a sequence, the special ones included; None: no bound.

    Returns:
        dict of NumPy arrays: token_ids (b, t) int32, padding_mask (b, t) bool.
    """
    return _pad([_join([text], start_token_id, None, extract_token_id, max_length) for text in texts])


def entailment_inputs(premises, hypotheses, start_token_id, delimiter_token_id, extract_token_id, max_length=None):
    """start, premise, delimiter, hypothesis, extract.

    Args:
        premises: b lists of token ids.
        hypotheses: b lists of token ids.
        start_token_id: first token of every sequence.
        delimiter_token_id: token between the two.
        extract_token_id: last token of every sequence.
        max_length: most tokens of a sequence; None: no bound.

    Returns:
        dict of NumPy arrays: token_ids (b, t) int32, padding_mask (b, t) bool.
    """
    special = (start_token_id, delimiter_token_id, extract_token_id, max_length)
    return _pad([_join(pair, *special) for pair in _rows(premises, hypotheses, "entailment_inputs")])


def similarity_inputs(firsts, seconds, start_token_id, delimiter_token_id, extract_token_id, max_length=None):
    """Two texts without an order, in both: start, one, delimiter, other, extract.

    Args:
        firsts: b lists of token ids.
        seconds: b lists of token ids.
        start_token_id: first token of every sequence.
        delimiter_token_id: token between the two.
        extract_token_id: last token of every sequence.
        max_length: most tokens of a sequence; None: no bound.

    Returns:
        dict of NumPy arrays: token_ids (b, 2, t) int32, padding_mask (b, 2, t) bool.
    """
    special = (start_token_id, delimiter_token_id, extract_token_id, max_length)
    pairs = _rows(firsts, seconds, "similarity_inputs")
    return _stack([[_join(pair, *special), _join(pair[::-1], *special)] for pair in pairs])


def multiple_choice_inputs(contexts, choices, start_token_id, delimiter_token_id, extract_token_id, max_length=None):
    """A context (a document and its question) with each possible answer: start, context, delimiter, answer, extract.

    Args:
        contexts: b lists of token ids.
        choices: for each context a list of answers, lists of token ids; a row with fewer answers is padded with
            choices that have no real token.
        start_token_id: first token of every sequence.
        delimiter_token_id: token between context and answer.
        extract_token_id: last token of every sequence.
        max_length: most tokens of a sequence; None: no bound.

    Returns:
        dict of NumPy arrays: token_ids (b, k, t) int32, padding_mask (b, k, t) bool.
    """
    special = (start_token_id, delimiter_token_id, extract_token_id, max_length)
    rows = _rows(contexts, choices, "multiple_choice_inputs")
    return _stack([[_join((context, answer), *special) for answer in answers] for context, answers in rows])


def language_model_targets(inputs):
    """Targets of the auxiliary loss (Radford et al. 2018, section 3.2): at each real token the next one.

    Args:
        inputs: what a function above gave.

    Returns:
        targets (..., t) int32 and sample weights (..., t) float32, 0 where no real token follows.
    """

    def following(one):
        return np.concatenate([one[..., 1:], np.zeros_like(one[..., :1])], axis=-1)

    return following(inputs["token_ids"]), following(inputs["padding_mask"]).astype("float32")


def _rows(ones, others, name):
    ones, others = list(ones), list(others)
    if len(ones) != len(others):
        raise ValueError(f"{name} needs as many of the one as of the other, got {len(ones)} and {len(others)}.")
    return list(zip(ones, others))


def _join(parts, start, delimiter, extract, max_length):
    parts = [list(part) for part in parts]
    if max_length is not None:
        room = max_length - len(parts) - 1
        if room < 1:
            raise ValueError(f"Task inputs need max_length > {len(parts) + 1}, their special tokens, got {max_length}.")
        while sum(map(len, parts)) > room:
            max(parts, key=len).pop()
    joined = [start]
    for part in parts:
        joined += [*part, delimiter]
    return [*joined[:-1], extract]


def _pad(sequences):
    if not sequences:
        raise ValueError("Task inputs need at least one text, got none.")
    lengths = np.array([len(one) for one in sequences])
    mask_bt = np.arange(lengths.max()) < lengths[:, None]
    ids_bt = np.zeros(mask_bt.shape, "int32")
    ids_bt[mask_bt] = np.concatenate([np.asarray(one, "int32") for one in sequences])
    return {"token_ids": ids_bt, "padding_mask": mask_bt}


def _stack(rows):
    count = max(map(len, rows), default=0)
    flat = _pad([one for row in rows for one in row + [[]] * (count - len(row))])
    return {name: one.reshape(len(rows), count, -1) for name, one in flat.items()}
