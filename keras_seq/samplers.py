"""How the next token is chosen, and what may not be: the three samplers, and what holds for each of them."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_seq import backend

IMPOSSIBLE = -1e9  # a log-probability that no candidate has


@dataclasses.dataclass(frozen=True)
class GreedySampler:
    """The most probable token at each step."""

    def options(self, batch):
        """The numbers as tensors, one a row, so that others need no new trace; and what is left as a key for it."""
        return {}, "greedy"


@dataclasses.dataclass(frozen=True)
class RandomSampler:
    """A token drawn from softmax(logits / temperature) among the likeliest; each row has its own stream.

    Holtzman et al. 2020, section 3.1 (`top_p`); Fan et al. 2018, section 5.4 (`top_k`).

    Args:
        temperature: scalar or (b,); <= 0 means greedy.
        top_k: scalar or (b,) int; draw among the k likeliest; <= 0: all.
        top_p: scalar or (b,) float; draw among the fewest tokens whose probabilities reach p; >= 1: all.
        seeds: (b,) integers; None: drawn from NumPy's global generator.
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    seeds: Any = None

    def options(self, batch):
        """See GreedySampler.options."""
        seeds = np.random.randint(2**31 - 1, size=batch) if self.seeds is None else self.seeds
        if backend.BACKEND == "jax":
            seeds = _in_32_bits(seeds)
        options = {
            "temperature": _rows("temperature", self.temperature, "float32", batch),
            "top_k": _rows("top_k", self.top_k, "int32", batch),
            "top_p": _rows("top_p", self.top_p, "float32", batch),
            "seeds": _rows("seeds", seeds, "int64" if backend.BACKEND == "tensorflow" else "int32", batch),
        }
        return options, "random"


@dataclasses.dataclass(frozen=True)
class BeamSampler:
    """The best sequences by summed log-probability / length ** length_penalty, with `num_beams` kept at each step.

    Sutskever et al. 2014, section 3.2; a row ends when its best open beam can no longer beat its worst finished one.
    With a coverage penalty, + coverage_penalty * sum over the source of log(min(attention it got in all, 1)): Wu et al.
    2016, section 7, equation 14.

    Args:
        num_beams: beams a row, all of which are returned, best first.
        length_penalty: scalar or (b,) float; > 0 favours longer sequences.
        coverage_penalty: scalar or (b,) float; > 0 favours sequences that looked at the whole source; 0.0: off.
    """

    num_beams: int = 4
    length_penalty: Any = 1.0
    coverage_penalty: Any = 0.0

    @property
    def covers(self):
        """Whether coverage matters."""
        return not _is(self.coverage_penalty, 0)

    def options(self, batch):
        """See GreedySampler.options."""
        if self.num_beams < 1:
            raise ValueError(f"BeamSampler needs num_beams >= 1, got num_beams={self.num_beams!r}.")
        options = {"length_penalty": _rows("length_penalty", self.length_penalty, "float32", batch)}
        if self.covers:
            options["coverage_penalty"] = _rows("coverage_penalty", self.coverage_penalty, "float32", batch)
        return options, ("beam", self.num_beams, *options)


@dataclasses.dataclass(frozen=True)
class Constraints:
    """What holds for every sampler; the arguments of `generate`. Off as they stand here.

    Args:
        min_new_tokens: scalar or (b,) int; no end before so many tokens stand.
        repetition_penalty: scalar or (b,) float; logits of tokens that stand in the text already (the prompt's too)
            are divided by it if positive, multiplied if negative (Keskar et al. 2019, section 4.1).
        no_repeat_ngram_size: int; no sequence of so many tokens twice (Paulus et al. 2018, section 2.5); 0: off.
        prefix: (b, p) int32 that the text begins with; negative where a row is free.
        suppress_tokens: ids that are never written, as the padding token of Marian's models.
    """

    min_new_tokens: Any = 0
    repetition_penalty: Any = 1.0
    no_repeat_ngram_size: int = 0
    prefix: Any = None
    suppress_tokens: tuple = ()

    @property
    def look_back(self):
        """Whether what was written before matters."""
        return self.no_repeat_ngram_size > 0 or not _is(self.repetition_penalty, 1.0)

    def options(self, batch):
        """See GreedySampler.options."""
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"generate needs no_repeat_ngram_size >= 0, got {self.no_repeat_ngram_size!r}.")
        if not np.all(np.asarray(self.repetition_penalty) > 0):
            raise ValueError(f"generate needs repetition_penalty > 0, got {self.repetition_penalty!r}.")
        options = {}
        if not _is(self.min_new_tokens, 0):
            options["min_new_tokens"] = _rows("min_new_tokens", self.min_new_tokens, "int32", batch)
        if not _is(self.repetition_penalty, 1.0):
            options["repetition_penalty"] = _rows("repetition_penalty", self.repetition_penalty, "float32", batch)
        if self.prefix is not None:
            prefix = np.asarray(self.prefix)
            if prefix.ndim != 2 or prefix.shape[0] != batch or prefix.shape[1] < 1:
                raise ValueError(f"generate needs a prefix of shape ({batch}, p) with p >= 1, got {prefix.shape}.")
            if not np.issubdtype(prefix.dtype, np.integer):
                raise ValueError(f"generate needs a prefix of integers, got {prefix.dtype}.")
            options["prefix"] = ops.convert_to_tensor(prefix.astype("int32"))
        return options, (*options, self.no_repeat_ngram_size, *self.suppress_tokens)

    def repeated(self, times):
        """The same for `times` beams a row."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Constraints(**{
            name: ops.repeat(one, times, axis=0) if hasattr(one, "shape") else one
            for name, one in fields.items()
        })  # fmt: skip

    def apply(self, scores_rv, history, index, end_token_ids):
        """Scores in which what may not be written is IMPOSSIBLE.

        Args:
            scores_rv: (r, v) float32 logits or log-probabilities.
            history: from `History.begin`, or None if there is no `look_back`.
            index: how many tokens were written.
            end_token_ids: tuple of ints.
        """
        raw_rv = scores_rv
        vocabulary = scores_rv.shape[-1]
        if not _is(self.repetition_penalty, 1.0):
            penalty_r1 = ops.expand_dims(self.repetition_penalty, 1)
            penalized_rv = ops.where(scores_rv < 0, scores_rv * penalty_r1, scores_rv / penalty_r1)
            scores_rv = ops.where(History.seen(history, vocabulary), penalized_rv, scores_rv)
        if self.no_repeat_ngram_size > 0:
            repeats_rv = History.repeats(history, self.no_repeat_ngram_size, vocabulary)
            scores_rv = ops.where(repeats_rv, IMPOSSIBLE, scores_rv)
        if self.suppress_tokens:
            never_v = np.isin(np.arange(vocabulary), self.suppress_tokens)
            scores_rv = ops.where(ops.convert_to_tensor(never_v)[None], IMPOSSIBLE, scores_rv)
        if not _is(self.min_new_tokens, 0):
            ends_v = np.isin(np.arange(vocabulary), end_token_ids)
            early_r1 = ops.expand_dims(index < self.min_new_tokens, 1)
            scores_rv = ops.where(early_r1 & ops.convert_to_tensor(ends_v)[None], IMPOSSIBLE, scores_rv)
        if self.prefix is not None:
            last = ops.shape(self.prefix)[1] - 1
            forced_r1 = ops.take(self.prefix, ops.minimum(index, last), axis=1)[:, None]
            forced_rv = ops.where(ops.arange(vocabulary)[None] == forced_r1, raw_rv, IMPOSSIBLE)
            scores_rv = ops.where((forced_r1 >= 0) & (index <= last), forced_rv, scores_rv)
        return scores_rv


class History:
    """What each row consists of so far, as a dict of tensors that a loop can carry: ids (r, l), lengths (r,)."""

    @staticmethod
    def begin(ids_rt, lengths_r, room):
        """The prompt's ids (r, t), of which `lengths_r` are real, with room for more."""
        return {"ids": ops.pad(ids_rt, ((0, 0), (0, room))), "lengths": lengths_r}

    @staticmethod
    def append(history, token_r):
        lengths_r1 = history["lengths"][:, None]
        here_rl = ops.arange(ops.shape(history["ids"])[1])[None] == lengths_r1
        return {"ids": ops.where(here_rl, token_r[:, None], history["ids"]), "lengths": history["lengths"] + 1}

    @staticmethod
    def seen(history, vocabulary):
        """(r, v) bool: the tokens that stand in it."""
        ids_rl = history["ids"]
        return _marked(ids_rl, ops.arange(ops.shape(ids_rl)[1])[None] < history["lengths"][:, None], vocabulary)

    @staticmethod
    def repeats(history, size, vocabulary):
        """(r, v) bool: the tokens that would end a sequence of `size` tokens that stands in it already."""
        ids_rl, lengths_r1 = history["ids"], history["lengths"][:, None]
        windows = ops.shape(ids_rl)[1] - size + 1
        starts_w = ops.arange(windows)[None]
        matches_rw = starts_w + size - 1 < lengths_r1
        for k in range(size - 1):
            last_r1 = ops.take_along_axis(ids_rl, ops.maximum(lengths_r1 - (size - 1) + k, 0), axis=1)
            matches_rw = matches_rw & (ids_rl[:, k : k + windows] == last_r1)
        return _marked(ids_rl[:, size - 1 :], matches_rw, vocabulary)


def _marked(ids_rk, valid_rk, vocabulary):
    """(r, v) bool: the ids of each row that are valid."""
    rows_rk = ops.zeros_like(ids_rk) + ops.arange(ops.shape(ids_rk)[0])[:, None]
    places_n2 = ops.reshape(ops.stack([rows_rk, ids_rk], axis=-1), (-1, 2))
    counts_n = ops.reshape(ops.cast(valid_rk, "int32"), (-1,))
    return ops.scatter(places_n2, counts_n, (ops.shape(ids_rk)[0], vocabulary)) > 0


def _is(value, off):
    """Whether an option is a plain number that switches it off: a tensor's values are not known while tracing."""
    return isinstance(value, int | float) and value == off


def _rows(name, value, dtype, batch):
    """An option as a tensor, one number a row."""
    values = np.asarray(value)
    if values.shape not in ((), (batch,)):
        raise ValueError(f"generate needs {name} as a scalar or one a row, {batch}, got shape {values.shape}.")
    if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)):
        raise ValueError(f"generate needs {name} as finite numbers, got {value!r}.")
    if "int" in dtype and np.any(values != np.floor(values)):
        raise ValueError(f"generate needs {name} as whole numbers, got {value!r}.")
    return ops.convert_to_tensor(np.broadcast_to(values, (batch,)).astype(dtype))


def _in_32_bits(seeds):
    """JAX' integers: those of 64 bits folded, all others as they are, and what is no integer for `_rows` to refuse."""
    seeds = np.asarray(seeds)
    if seeds.dtype.kind not in "iu":
        return seeds
    low, high = seeds.astype("int64").astype("int32"), seeds.astype("int64") >> 32
    return low ^ (high - (low >> 31)).astype("int32")


def draw(logits_bv, uniform_b, sampler):
    """A token a row: the distribution function over the tokens, likeliest first, inverted at one uniform number."""
    temperature_b1 = ops.cast(sampler.temperature, "float32")[:, None]
    safe_b1 = ops.where(temperature_b1 > 0, temperature_b1, 1.0)
    # The greatest taken away first: divided by a tiny temperature it would be infinite, and the softmax not a number.
    scaled_bv = (logits_bv - ops.max(logits_bv, axis=-1, keepdims=True)) / safe_b1
    # What may not be written stays so at any temperature.
    scaled_bv = ops.where(logits_bv <= IMPOSSIBLE / 2, IMPOSSIBLE, scaled_bv)
    sorted_bv, ids_bv = ops.top_k(scaled_bv, logits_bv.shape[-1])
    ranks_v = ops.arange(logits_bv.shape[-1])[None]
    top_k_b1 = ops.cast(sampler.top_k, "int32")[:, None]
    probabilities_bv = ops.softmax(ops.where((top_k_b1 <= 0) | (ranks_v < top_k_b1), sorted_bv, IMPOSSIBLE))
    before_bv = ops.cumsum(probabilities_bv, axis=-1) - probabilities_bv
    # The likeliest token always stays; temperature <= 0 leaves it alone.
    top_p_b1 = ops.cast(sampler.top_p, "float32")[:, None]
    kept_bv = (ranks_v == 0) | ((temperature_b1 > 0) & ((before_bv < top_p_b1) | (top_p_b1 >= 1)))
    probabilities_bv = ops.where(kept_bv, probabilities_bv, 0.0)
    reached_bv = ops.cumsum(probabilities_bv, axis=-1)
    passed_bv = kept_bv & (reached_bv <= uniform_b[:, None] * reached_bv[:, -1:])
    # Rounding may let the number pass everything: then the last kept token that has a probability.
    most_b = ops.sum(ops.cast(probabilities_bv > 0, "int32"), axis=-1) - 1
    place_b = ops.minimum(ops.sum(ops.cast(passed_bv, "int32"), axis=-1), most_b)
    return ops.cast(ops.take_along_axis(ids_bv, place_b[:, None], axis=1)[:, 0], "int32")
