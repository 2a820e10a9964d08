"""Greedy decoding, sampling and beam search over a model's two doors, `start` and `step`; knows no architecture.

`generate` is for users: it checks, compiles and gives NumPy arrays. `decode` is the same inside a graph, for export.
"""

import dataclasses
import weakref
from typing import Any

import numpy as np
from keras import ops, tree

from keras_seq import backend

IMPOSSIBLE = -1e9  # a log-probability that no candidate has


@dataclasses.dataclass(frozen=True)
class GreedySampler:
    """The most probable token at each step."""


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


@dataclasses.dataclass(frozen=True)
class BeamSampler:
    """The best sequences by summed log-probability / length ** length_penalty, with `num_beams` kept at each step.

    Sutskever et al. 2014, section 3.2; a row ends when its best open beam can no longer beat its worst finished one.

    Args:
        num_beams: beams a row.
        length_penalty: scalar or (b,) float; > 0 favours longer sequences.
    """

    num_beams: int = 4
    length_penalty: Any = 1.0


def generate(model, inputs, max_new_tokens, end_token_id, start_token_id=None, sampler=None):
    """Writes up to `max_new_tokens` tokens a row, until `end_token_id`.

    Args:
        model: one of the four with `start` and `step`.
        inputs: dict of the model's inputs without the decoder's; a prompt is padded on the right.
        max_new_tokens: n >= 1.
        end_token_id: a row ends with it; -1: never.
        start_token_id: the decoder's first token; for a model with a prompt it is put before the prompt.
        sampler: GreedySampler() (the default), RandomSampler(...) or BeamSampler(...).

    Returns:
        dict of NumPy arrays: token_ids (b, n) int32, without prompt and start token, with the end token, 0 after it;
        lengths (b,) int32, the end counted; scores (b,) float32, summed natural log-probability under the untempered
        model. BeamSampler adds an axis, best first: (b, num_beams, n), (b, num_beams), (b, num_beams).

    Raises:
        ValueError: max_new_tokens < 1, num_beams < 1, options that are not one a row, no start token for a model
            without a prompt, an input that is missing, or more positions than the model has.
    """
    sampler = GreedySampler() if sampler is None else sampler
    if max_new_tokens < 1:
        raise ValueError(f"generate needs max_new_tokens >= 1, got max_new_tokens={max_new_tokens!r}.")
    needed = [name for name in model.input if not name.startswith("decoder_")]
    if sorted(inputs) != sorted(needed):
        raise ValueError(f"generate needs inputs {needed}, got {sorted(inputs)}.")
    inputs = {name: ops.convert_to_tensor(inputs[name]) for name in needed}
    batch = inputs[needed[0]].shape[0]
    prompted = "token_ids" in inputs
    if start_token_id is None and not prompted:
        raise ValueError(f"generate needs start_token_id for {type(model).__name__}, got None.")
    options, sampler_key = _options(sampler, batch)
    key = (sampler_key, max_new_tokens, end_token_id, start_token_id)

    # Weakly: the function is kept for as long as the model lives, and would else keep it alive.
    model_reference = weakref.ref(model)

    def run(inputs, options):
        chosen = dataclasses.replace(sampler, **options)
        return decode(model_reference(), inputs, max_new_tokens, end_token_id, start_token_id, chosen)

    functions = _COMPILED.setdefault(model, {})
    if key not in functions:
        functions[key] = backend.compiled(run, model)
    return tree.map_structure(ops.convert_to_numpy, functions[key](inputs, options))


_COMPILED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def forget(model):
    """Drops what was traced for a model whose weights are no longer the same objects."""
    _COMPILED.pop(model, None)


def _options(sampler, batch):
    """The sampler's numbers as tensors, one a row, so that other numbers need no new trace; and what is left as key."""

    def rows(value, dtype):
        value = np.asarray(value)
        if value.shape not in ((), (batch,)):
            name = type(sampler).__name__
            raise ValueError(
                f"{name} needs options that are scalars or one a row, got shape {value.shape} for {batch}."
            )
        return ops.convert_to_tensor(np.broadcast_to(value, (batch,)).astype(dtype))

    if isinstance(sampler, GreedySampler):
        return {}, sampler
    if isinstance(sampler, BeamSampler):
        if sampler.num_beams < 1:
            raise ValueError(f"BeamSampler needs num_beams >= 1, got num_beams={sampler.num_beams!r}.")
        return {"length_penalty": rows(sampler.length_penalty, "float32")}, ("beam", sampler.num_beams)
    if not isinstance(sampler, RandomSampler):
        raise ValueError(f"generate needs a GreedySampler, RandomSampler or BeamSampler, got {sampler!r}.")
    seeds = np.random.randint(2**31 - 1, size=batch) if sampler.seeds is None else sampler.seeds
    options = {
        "temperature": rows(sampler.temperature, "float32"),
        "top_k": rows(sampler.top_k, "int32"),
        "top_p": rows(sampler.top_p, "float32"),
        "seeds": rows(seeds, "int64" if backend.BACKEND == "tensorflow" else "int32"),
    }
    return options, "random"


def decode(model, inputs, max_new_tokens, end_token_id, start_token_id=None, sampler=None, limits=None):
    """`generate` inside a graph: the same arguments as tensors, unchecked, and the same result as tensors.

    Args:
        limits: (b,) int32, the most tokens each row may have, up to max_new_tokens; None: max_new_tokens.
    """
    state, first_b = _begin(model, inputs, max_new_tokens, start_token_id)
    if limits is None:
        limits = ops.full_like(first_b, max_new_tokens)
    limits = ops.clip(limits, 1, max_new_tokens)
    if isinstance(sampler, BeamSampler):
        return _beam_search(model, state, first_b, max_new_tokens, end_token_id, sampler, limits)
    if isinstance(sampler, RandomSampler):
        uniform_bn = backend.uniform_rows(sampler.seeds, max_new_tokens)

        def choose(logits_bv, index):
            return _draw(logits_bv, ops.take(uniform_bn, index, axis=1), sampler)
    else:

        def choose(logits_bv, index):
            return ops.cast(ops.argmax(logits_bv, axis=-1), "int32")

    return _one_by_one(model, state, first_b, max_new_tokens, end_token_id, choose, limits)


def _begin(model, inputs, max_new_tokens, start_token_id):
    """The state after source or prompt, and the token to feed first."""
    if "token_ids" not in inputs:
        mask = ops.cast(next(inputs[name] for name in inputs if name.endswith("padding_mask")), "int32")
        first_b = ops.full_like(mask[:, 0], start_token_id)
        return model.start(inputs, max_new_tokens), first_b
    ids, mask = ops.cast(inputs["token_ids"], "int32"), ops.cast(inputs["padding_mask"], "int32")
    if start_token_id is not None:
        ids = ops.concatenate([ops.full_like(ids[:, :1], start_token_id), ids], axis=1)
        mask = ops.concatenate([ops.ones_like(mask[:, :1]), mask], axis=1)
    last_b1 = ops.maximum(ops.sum(mask, axis=1, keepdims=True) - 1, 0)
    first_b = ops.take_along_axis(ids, last_b1, axis=1)[:, 0]
    length = ops.shape(ids)[1] + max_new_tokens
    return model.start({"token_ids": ids, "padding_mask": mask}, length), first_b


def _draw(logits_bv, uniform_b, sampler):
    """A token a row: the distribution function over the tokens, likeliest first, inverted at one uniform number."""
    temperature_b1 = ops.cast(sampler.temperature, "float32")[:, None]
    safe_b1 = ops.where(temperature_b1 > 0, temperature_b1, 1.0)
    # The greatest taken away first: divided by a tiny temperature it would be infinite, and the softmax not a number.
    logits_bv = logits_bv - ops.max(logits_bv, axis=-1, keepdims=True)
    sorted_bv, ids_bv = ops.top_k(logits_bv / safe_b1, logits_bv.shape[-1])
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


def _one_by_one(model, state, first_b, max_new_tokens, end_token_id, choose, limits_b):
    tokens_bn = ops.zeros((ops.shape(first_b)[0], max_new_tokens), "int32")
    places_n = ops.arange(max_new_tokens)[None]

    def going_on(index, token_b, state, tokens_bn, lengths_b, scores_b, open_b):
        return (index < max_new_tokens) & ops.any(open_b)

    def body(index, token_b, state, tokens_bn, lengths_b, scores_b, open_b):
        logits_bv, state, _ = model.step(token_b, state)
        token_b = ops.where(open_b, choose(logits_bv, index), 0)
        picked_b = ops.take_along_axis(ops.log_softmax(logits_bv), token_b[:, None], axis=1)[:, 0]
        scores_b = scores_b + ops.where(open_b, picked_b, 0.0)
        lengths_b = lengths_b + ops.cast(open_b, "int32")
        tokens_bn = ops.where(places_n == index, token_b[:, None], tokens_bn)
        open_b = open_b & (token_b != end_token_id) & (lengths_b < limits_b)
        return index + 1, token_b, state, tokens_bn, lengths_b, scores_b, open_b

    zeros_b = ops.zeros_like(first_b)
    open_b = ops.ones_like(first_b, dtype="bool")
    start = (
        ops.convert_to_tensor(0, "int32"),
        first_b,
        state,
        tokens_bn,
        zeros_b,
        ops.cast(zeros_b, "float32"),
        open_b,
    )
    _, _, _, tokens_bn, lengths_b, scores_b, _ = ops.while_loop(going_on, body, start)
    return {"token_ids": tokens_bn, "lengths": lengths_b, "scores": scores_b}


def _beam_search(model, state, first_b, max_new_tokens, end_token_id, sampler, limits_b):
    """Beams of all rows side by side; w beams a row, so that a state has b * w rows. What is the same for all beams
    of a row at every step (under "memory") is repeated once and never reordered."""
    width = sampler.num_beams
    penalty_b1 = ops.cast(sampler.length_penalty, "float32")[:, None]
    batch = ops.shape(first_b)[0]
    places_n = ops.arange(max_new_tokens)[None, None]
    rows_b1 = ops.arange(batch)[:, None] * width

    def spread(x):
        return ops.repeat(x, width, axis=0)

    def pick(x_bk, chosen_bw):
        index = chosen_bw if len(x_bk.shape) == 2 else ops.expand_dims(chosen_bw, -1)
        return ops.take_along_axis(x_bk, index, axis=1)

    def ranked(scores_bk, length):
        return scores_bk / ops.power(ops.cast(length, "float32"), penalty_b1)

    def body(index, token_r, state, beams, sums_bw, done, open_b):
        logits_rv, state, _ = model.step(token_r, state)
        vocabulary = logits_rv.shape[-1]
        steps_bwv = ops.reshape(ops.log_softmax(logits_rv), (batch, width, vocabulary))
        totals_bk = ops.reshape(sums_bw[:, :, None] + steps_bwv, (batch, width * vocabulary))
        # Twice as many candidates as beams: even if `width` of them end here, `width` go on.
        count = min(2 * width, width * vocabulary)
        totals_bk, flat_bk = ops.top_k(totals_bk, count)
        source_bk, token_bk = flat_bk // vocabulary, ops.cast(flat_bk % vocabulary, "int32")
        grown_bkn = ops.where(places_n == index, token_bk[:, :, None], pick(beams, source_bk))
        length = index + 1
        ends_bk = (token_bk == end_token_id) | ops.expand_dims(length >= limits_b, 1)
        done = _finish(done, grown_bkn, totals_bk, ranked(totals_bk, length), ends_bk, length, open_b, width)
        # The likeliest candidates that do not end here are the next beams.
        sums_bw, chosen_bw = ops.top_k(ops.where(ends_bk, IMPOSSIBLE + totals_bk, totals_bk), width)
        source_bw, token_bw = pick(source_bk, chosen_bw), pick(token_bk, chosen_bw)
        beams = pick(grown_bkn, chosen_bw)
        order_r = ops.reshape(source_bw + rows_b1, (-1,))
        state = _map_changing(lambda x: ops.take(x, order_r, axis=0), state)
        best_open_b = ranked(sums_bw, length)[:, 0]
        worst_done_b = done["ranks"][:, -1]
        open_b = open_b & (worst_done_b < best_open_b) & (length < limits_b)
        return length, ops.reshape(token_bw, (-1,)), state, beams, sums_bw, done, open_b

    state = tree.map_structure(spread, state)
    sums_bw = ops.where(ops.arange(width)[None] == 0, 0.0, IMPOSSIBLE) + ops.zeros((batch, 1))
    empty = ops.zeros((batch, width, max_new_tokens), "int32")
    nothing = ops.zeros((batch, width), "float32")
    done = {
        "token_ids": empty,
        "lengths": ops.zeros((batch, width), "int32"),
        "scores": nothing,
        "ranks": nothing + 2 * IMPOSSIBLE,
    }
    open_b = ops.ones_like(first_b, dtype="bool")
    start = (ops.convert_to_tensor(0, "int32"), spread(first_b), state, empty, sums_bw, done, open_b)
    *_, done, _ = ops.while_loop(lambda *loop: (loop[0] < max_new_tokens) & ops.any(loop[-1]), body, start)
    return {name: done[name] for name in ("token_ids", "lengths", "scores")}


def _finish(done, grown_bkn, totals_bk, ranks_bk, ends_bk, length, open_b, width):
    """Adds the candidates that end here, if among the `width` likeliest of a row still open, and keeps the best."""
    counts_bk = ends_bk & (ops.arange(ends_bk.shape[1])[None] < width) & open_b[:, None]
    ranks_bk = ops.where(counts_bk, ranks_bk, 2 * IMPOSSIBLE)
    lengths_bk = ops.zeros_like(ends_bk, dtype="int32") + length
    new = {"token_ids": grown_bkn, "lengths": lengths_bk, "scores": totals_bk, "ranks": ranks_bk}
    joined = {name: ops.concatenate([done[name], new[name]], axis=1) for name in done}
    ranks_bw, chosen_bw = ops.top_k(joined["ranks"], width)
    picked = {
        "token_ids": ops.take_along_axis(joined["token_ids"], chosen_bw[:, :, None], axis=1),
        "lengths": ops.take_along_axis(joined["lengths"], chosen_bw, axis=1),
        "scores": ops.take_along_axis(joined["scores"], chosen_bw, axis=1),
    }
    return {**picked, "ranks": ranks_bw}


def _map_changing(function, state):
    """Maps all leaves but those under "memory"."""
    changed = {name: tree.map_structure(function, part) for name, part in state.items() if name != "memory"}
    return {**changed, **{name: part for name, part in state.items() if name == "memory"}}
