"""A model with two doors whose next-token logits depend on the whole history through a table, so that a wrong
reordering of beams shows; and what it says in plain Python.
"""

import functools

import numpy as np
from keras import ops

from keras_seq import generate


class Chain:
    """A model with two doors: logits are a row of a table, chosen by everything fed so far."""

    variables = ()
    input = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")

    def __init__(self, vocabulary=5, spread=2.0, seed=0):
        random = np.random.default_rng(seed)
        self.source_vocabulary_size, self.target_vocabulary_size = 101, vocabulary
        self.table = (random.normal(size=(101, vocabulary)) * spread).astype("float32")
        # What is looked at among two source positions.
        self.attention = random.dirichlet([0.3, 0.3], size=101).astype("float32")
        self.steps = 0

    def start(self, inputs, length):
        return {"memory": {"unused": inputs["encoder_padding_mask"]}, "history": inputs["encoder_token_ids"][:, 0]}

    def step(self, token_ids, state):
        self.steps += 1
        history = (state["history"] * 7 + token_ids + 1) % 101
        logits, attention = (ops.take(ops.convert_to_tensor(table), history, axis=0) for table in self.tables)
        return logits, {**state, "history": history}, attention

    @property
    def tables(self):
        return self.table, self.attention

    def after(self, first, tokens):
        history = first
        for token in (1, *tokens):
            history = (history * 7 + token + 1) % 101
        return history

    def logits(self, first, tokens):
        """The same in NumPy: logits of the next token after `tokens`."""
        return self.table[self.after(first, tokens)].astype("float64")

    def log_p(self, first, tokens):
        """The same in NumPy: log-probabilities of the next token after `tokens`."""
        logits = self.logits(first, tokens)
        return logits - np.log(np.exp(logits).sum())

    def coverage(self, first, tokens):
        """The attention that each source position got while `tokens` were written."""
        return sum(self.attention[self.after(first, tokens[:i])].astype("float64") for i in range(len(tokens)))


@functools.cache
def chain_of(vocabulary=5, spread=2.0, logits=None):
    """One object for all tests, so that what was compiled for it is used again."""
    chain = Chain(vocabulary, spread)
    if logits is not None:
        chain.table[:] = logits
    return chain


def sources(*firsts):
    ids = np.array([[first, 0] for first in firsts], "int32")
    return {"encoder_token_ids": ids, "encoder_padding_mask": np.ones_like(ids)}


def write(model, inputs, count, sampler=None, end=0, start=1, **constraints):
    return generate(model, inputs, count, end_token_id=end, start_token_id=start, sampler=sampler, **constraints)


def check_row(result, row, tokens, score):
    length = len(tokens)
    assert result["lengths"][row] == length
    np.testing.assert_array_equal(result["token_ids"][row][:length], tokens)
    assert not np.any(result["token_ids"][row][length:])
    np.testing.assert_allclose(result["scores"][row], score, atol=1e-4)


# === Constraints ===

FORCED = np.array([[3, -1, 4], [-1, 0, -1], [2, 2, 2]])


def restrict(scores, text, index, end, row, least=0, penalty=1.0, size=0, forced=None, never=()):
    """What may be written, in plain Python; `text` holds the start token too."""
    raw, scores = scores, scores.copy()
    for token in set(text):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    if size:
        for i in range(len(text) - size + 1):
            if tuple(text[i : i + size - 1]) == tuple(text[len(text) - size + 1 :]):
                scores[text[i + size - 1]] = -1e9
    scores[list(never)] = -1e9
    if index < least:
        scores[list(end)] = -1e9
    if forced is not None and index < forced.shape[1] and forced[row, index] >= 0:
        scores = np.where(np.arange(len(scores)) == forced[row, index], raw, -1e9)
    return scores


CONSTRAINTS = {
    "min_new_tokens": {"least": 3},
    "repetition_penalty": {"penalty": 1.7},
    "no_repeat_ngram_size": {"size": 2},
    "prefix": {"forced": FORCED},
    "suppress_tokens": {"never": (3, 4)},
    "all": {"least": 4, "penalty": 1.2, "size": 3, "forced": FORCED},
}
KEYWORDS = {
    "least": "min_new_tokens",
    "penalty": "repetition_penalty",
    "size": "no_repeat_ngram_size",
    "forced": "prefix",
    "never": "suppress_tokens",
}


def keywords(constraint):
    return {KEYWORDS[name]: value for name, value in CONSTRAINTS[constraint].items()}
