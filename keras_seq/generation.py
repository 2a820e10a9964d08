"""Greedy decoding, sampling, beam search and scoring over a model's doors, `start` and `step`; knows no architecture.

`generate`, `stream` and `score` are for users: they check, compile and give NumPy arrays. `decode` and `score_of` are
the same inside a graph, for export.
"""

from keras import ops, tree

from keras_seq import backend
from keras_seq.beams import beam_search
from keras_seq.calls import Call, checked, vocabulary_sizes
from keras_seq.samplers import BeamSampler, Constraints, History, RandomSampler, draw

FREE = Constraints()


def generate(model, inputs, max_new_tokens, end_token_id, start_token_id=None, sampler=None, **constraints):
    """Writes up to `max_new_tokens` tokens a row, until an end token.

    Args:
        model: one of the four with `start` and `step`.
        inputs: dict of the model's inputs without the decoder's; a prompt is padded on the right.
        max_new_tokens: n >= 1.
        end_token_id: a row ends with it; a sequence of ids: with any of them; -1: never.
        start_token_id: the decoder's first token; for a model with a prompt it is put before the prompt.
        sampler: GreedySampler() (the default), RandomSampler(...) or BeamSampler(...).
        **constraints: `min_new_tokens`, `repetition_penalty`, `no_repeat_ngram_size`, `prefix` and `suppress_tokens`:
            see Constraints.

    Returns:
        dict of NumPy arrays: token_ids (b, n) int32, without prompt and start token, with the end token, 0 after it;
        lengths (b,) int32, the end counted; scores (b,) float32, summed natural log-probability under the untempered
        and unconstrained model. BeamSampler adds an axis, best first: (b, num_beams, n), (b, num_beams),
        (b, num_beams).

    Raises:
        ValueError: max_new_tokens < 1, num_beams < 1, options out of range or not one a row, no start token for a model
            without a prompt, an input that is missing, ids that the vocabulary does not have, a prompt that is not
            padded on the right, or more positions than the model has.
    """
    call = Call(model, inputs, max_new_tokens, end_token_id, start_token_id, sampler, constraints)
    most, ends, start = call.max_new_tokens, call.ends, call.start

    def run(model, inputs, sampler, constraints):
        return decode(model, inputs, most, ends, start, sampler, constraints=constraints)

    return tree.map_structure(ops.convert_to_numpy, call.function(run, any_shape=True)(call.inputs, call.options))


def stream(model, inputs, max_new_tokens, end_token_id, start_token_id=None, sampler=None, **constraints):
    """`generate` as a generator of tokens, each as soon as it is known. The arguments are those of `generate`.

    Yields:
        (b,) int32: the next column of generate's `token_ids`, 0 in a row that has ended; until every row has ended.

    Raises:
        ValueError: as `generate`; and for a BeamSampler, whose first tokens may change until the end.
    """
    if isinstance(sampler, BeamSampler):
        raise ValueError(f"stream needs a GreedySampler or a RandomSampler, got {sampler!r}.")
    # Checked here, at the call; a generator's body would wait for the first token to be asked for.
    return _tokens(Call(model, inputs, max_new_tokens, end_token_id, start_token_id, sampler, constraints))


def _tokens(call):
    most, ends, start = call.max_new_tokens, call.ends, call.start

    def begin(model, inputs, sampler, constraints):
        return _first(model, inputs, most, start, sampler, constraints)

    def advance(model, carry, sampler, constraints):
        return _grow(model, carry, most, ends, sampler, constraints)

    carry = call.function(begin, any_shape=True)(call.inputs, call.options)
    grow = call.function(advance)
    while _goes_on(carry, most):
        carry = grow(carry, call.options)
        yield ops.convert_to_numpy(carry["token"])


def score(model, inputs, target_ids, target_mask, start_token_id=None):
    """How probable a given target is: its tokens' log-probabilities under the model, in one pass.

    Args:
        model: one of the four that generate.
        inputs: as for `generate`.
        target_ids: (b, n) int32, n >= 1, without prompt and start token; with the end token, if it is to count.
        target_mask: (b, n), 1 = real, padding on the right.
        start_token_id: as for `generate`.

    Returns:
        dict of NumPy arrays: log_probabilities (b, n) float32, natural, 0 where the target is padded; scores (b,)
        float32, their sums; lengths (b,) int32.

    Raises:
        ValueError: as `generate`, and a target whose shape is not that of its mask or whose rows are not the source's.
    """
    ids, mask = checked("target_ids", target_ids, target_mask, vocabulary_sizes(model)[1], padded_right=True)
    if not ids.shape[1]:
        raise ValueError(f"score needs target_ids (b, n) with n >= 1, got {ids.shape}.")
    call = Call(model, inputs, ids.shape[1], -1, start_token_id, None, {})
    if len(ids) != call.batch:
        raise ValueError(f"score needs as many targets as sources or prompts, {call.batch}, got {len(ids)}.")
    target, start = {"ids": ops.convert_to_tensor(ids), "mask": ops.convert_to_tensor(mask)}, call.start

    def run(model, inputs_and_target, sampler, constraints):
        inputs, target = inputs_and_target
        return score_of(model, inputs, target["ids"], target["mask"], start)

    call.key = (start,)  # the target's length is a shape, not a setting
    scored = call.function(run, any_shape=True)((call.inputs, target), call.options)
    return tree.map_structure(ops.convert_to_numpy, scored)


def decode(
    model,
    inputs,
    max_new_tokens,
    end_token_ids,
    start_token_id=None,
    sampler=None,
    limits=None,
    constraints=FREE,
):
    """`generate` inside a graph: the same arguments as tensors, unchecked, and the same result as tensors.

    Args:
        end_token_ids: an int or a tuple of ints.
        limits: (b,) int32, the most tokens each row may have, up to max_new_tokens; None: max_new_tokens.
    """
    ends = end_token_ids if isinstance(end_token_ids, tuple) else (end_token_ids,)
    if isinstance(sampler, BeamSampler):
        begun = _begin(model, inputs, max_new_tokens, start_token_id, constraints)
        limits = _limits(limits, begun["token"], max_new_tokens)
        return beam_search(model, begun, max_new_tokens, ends, sampler, limits, constraints)
    carry = _first(model, inputs, max_new_tokens, start_token_id, sampler, constraints)
    limits = _limits(limits, carry["token"], max_new_tokens)
    tokens_bn = ops.zeros((ops.shape(carry["token"])[0], max_new_tokens), "int32")
    places_n = ops.arange(max_new_tokens)[None]

    def body(carry, tokens_bn):
        here_n = places_n == carry["index"]
        carry = _grow(model, carry, max_new_tokens, ends, sampler, constraints, limits)
        return carry, ops.where(here_n, carry["token"][:, None], tokens_bn)

    carry, tokens_bn = ops.while_loop(lambda carry, _: _goes_on(carry, max_new_tokens), body, (carry, tokens_bn))
    return {"token_ids": tokens_bn, "lengths": carry["lengths"], "scores": carry["scores"]}


def _limits(limits, token_b, max_new_tokens):
    return ops.clip(ops.full_like(token_b, max_new_tokens) if limits is None else limits, 1, max_new_tokens)


def _begin(model, inputs, max_new_tokens, start_token_id, constraints):
    """The state after source or prompt, the token to feed first, and what was written so far."""
    if "token_ids" not in inputs:
        mask = next(inputs[name] for name in inputs if name.endswith("padding_mask"))
        ids = ops.full_like(ops.cast(mask[:, :1], "int32"), start_token_id)
        token, lengths, state = ids[:, 0], ops.ones_like(ids[:, 0]), model.start(inputs, max_new_tokens)
        real = inputs["encoder_padding_mask"]
    else:
        ids, real = _prompt(inputs, start_token_id)
        lengths = ops.sum(ops.cast(real, "int32"), axis=1)
        token = ops.take_along_axis(ids, ops.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        state = model.start({"token_ids": ids, "padding_mask": real}, ops.shape(ids)[1] + max_new_tokens)
    begun = {"token": token, "state": state, "history": (), "real": ops.cast(real, "bool")}
    if constraints.look_back:
        # No window of the n-gram size must be longer than what there is room for.
        room = max_new_tokens + constraints.no_repeat_ngram_size
        begun["history"] = History.begin(ids, lengths, room)
    return begun


def _prompt(inputs, start_token_id):
    ids, mask = ops.cast(inputs["token_ids"], "int32"), ops.cast(inputs["padding_mask"], "bool")
    if start_token_id is not None:
        ids = ops.pad(ids, ((0, 0), (1, 0)), constant_values=start_token_id)
        mask = ops.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    return ids, mask


def _first(model, inputs, max_new_tokens, start_token_id, sampler, constraints):
    """What `_grow` carries from token to token, before the first one."""
    begun = _begin(model, inputs, max_new_tokens, start_token_id, constraints)
    zeros_b = ops.zeros_like(begun["token"])
    random = isinstance(sampler, RandomSampler)
    return {
        "index": ops.convert_to_tensor(0, "int32"),
        **{name: begun[name] for name in ("token", "state", "history")},
        "uniform": backend.uniform_rows(sampler.seeds, max_new_tokens) if random else (),
        "lengths": zeros_b,
        "scores": ops.cast(zeros_b, "float32"),
        "open": ops.ones_like(zeros_b, dtype="bool"),
    }


def _goes_on(carry, max_new_tokens):
    return (carry["index"] < max_new_tokens) & ops.any(carry["open"])


def _grow(model, carry, max_new_tokens, ends, sampler, constraints, limits_b=None):
    """One token more a row."""
    index, open_b = carry["index"], carry["open"]
    with backend.overwriting():
        logits_bv, state, _ = model.step(carry["token"], carry["state"])
    allowed_bv = constraints.apply(logits_bv, carry["history"], index, ends)
    if isinstance(sampler, RandomSampler):
        token_b = draw(allowed_bv, ops.take(carry["uniform"], index, axis=1), sampler)
    else:
        token_b = backend.argmax(allowed_bv)
    token_b = ops.where(open_b, token_b, 0)
    lengths_b = carry["lengths"] + ops.cast(open_b, "int32")
    picked_b = log_probability(logits_bv, token_b)
    ended_b = lengths_b >= (max_new_tokens if limits_b is None else limits_b)
    for end in ends:
        ended_b = ended_b | (token_b == end)
    return {
        "index": index + 1,
        "token": token_b,
        "state": state,
        "history": History.append(carry["history"], token_b) if constraints.look_back else (),
        "uniform": carry["uniform"],
        "lengths": lengths_b,
        "scores": carry["scores"] + ops.where(open_b, picked_b, 0.0),
        "open": open_b & ops.logical_not(ended_b),
    }


def log_probability(logits, ids):
    """Natural log-probabilities of the ids: (..., v), (...) -> (...), float32."""
    picked = ops.take_along_axis(logits, ops.expand_dims(ids, -1), axis=-1)[..., 0]
    return picked - ops.logsumexp(logits, axis=-1)


def score_of(model, inputs, target_ids, target_mask, start_token_id=None):
    """`score` inside a graph: the same arguments as tensors, unchecked, and the same result as tensors."""
    target_ids = ops.cast(target_ids, "int32")
    if "token_ids" not in inputs:
        started = ops.concatenate([ops.full_like(target_ids[:, :1], start_token_id), target_ids], axis=1)
        decoder = {"decoder_token_ids": started[:, :-1], "decoder_padding_mask": target_mask}
        logits = model({**inputs, **decoder}, training=False)
    else:
        ids, mask = _prompt(inputs, start_token_id)
        # Of a prompt without a token its first place is read, as `generate` does.
        count_b1 = ops.maximum(ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True), 1)
        width, room = ops.shape(ids)[1], ops.shape(target_ids)[1]
        # Each row's target right after its prompt; the last target token need not be read.
        places = ops.arange(width + room - 1)[None]
        source = ops.where(places < count_b1, places, ops.minimum(places - count_b1, room - 1) + width)
        both = ops.take_along_axis(ops.concatenate([ids, target_ids], axis=1), source, axis=1)
        logits = model({"token_ids": both, "padding_mask": ops.ones_like(both, dtype="bool")}, training=False)
        asked = count_b1 - 1 + ops.arange(room)[None]
        logits = ops.take_along_axis(logits, asked[:, :, None], axis=1)
    real = ops.cast(target_mask, "bool")
    log_probabilities = ops.where(real, log_probability(logits, ops.where(real, target_ids, 0)), 0.0)
    lengths = ops.sum(ops.cast(real, "int32"), axis=1)
    return {"log_probabilities": log_probabilities, "scores": ops.sum(log_probabilities, axis=1), "lengths": lengths}
