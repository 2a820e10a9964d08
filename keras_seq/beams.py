"""Beam search over a model's `step`, by transformers' rule: summed log-probability / length ** length_penalty."""

from keras import ops, tree

from keras_seq.samplers import IMPOSSIBLE, History


def beam_search(model, begun, max_new_tokens, ends, sampler, limits_b, constraints):
    """The best `num_beams` sequences a row, all rows side by side.

    A state has b * w rows for w beams. What is the same for all beams of a row at every step (under "memory") is
    repeated once and never reordered.

    Args:
        model: with `step`.
        begun: dict of the first token (b,), the state, the history and which source positions are real (b, s).
        max_new_tokens: n.
        ends: tuple of ids.
        sampler: a BeamSampler whose options are tensors (b,).
        limits_b: (b,) int32, the most tokens of each row.
        constraints: Constraints whose options are tensors.

    Returns:
        dict: token_ids (b, w, n), lengths (b, w), scores (b, w), best first.
    """
    width = sampler.num_beams
    penalty_b1 = ops.cast(sampler.length_penalty, "float32")[:, None]
    constraints = constraints.repeated(width)
    batch = ops.shape(begun["token"])[0]
    places_n = ops.arange(max_new_tokens)[None, None]
    rows_b1 = ops.arange(batch)[:, None] * width

    def spread(x):
        return ops.repeat(x, width, axis=0)

    def ranked(scores_bk, length):
        return scores_bk / ops.power(ops.cast(length, "float32"), penalty_b1)

    def bonus(coverage_rs):
        """What is added to the ranks of sequences that end: (b, w), at most 0."""
        # A float32 has no logarithm of 0; nothing that the search could choose has one lower than this.
        seen_rs = ops.clip(coverage_rs, 1e-9, 1.0)
        logs_rs = ops.where(begun_real_rs, ops.log(seen_rs), 0.0)
        return ops.reshape(ops.sum(logs_rs, axis=1), (batch, width)) * sampler.coverage_penalty[:, None]

    def body(index, carry, done):
        logits_rv, state, attention_rs = model.step(carry["token"], carry["state"])
        vocabulary = logits_rv.shape[-1]
        plain_rv = ops.log_softmax(logits_rv)
        steps_rv = constraints.apply(plain_rv, carry["history"], index, ends)
        steps_bwv = ops.reshape(steps_rv, (batch, width, vocabulary))
        totals_bk = ops.reshape(carry["ranking"][:, :, None] + steps_bwv, (batch, width * vocabulary))
        # Twice as many candidates as beams: even if `width` of them end here, `width` go on.
        count = min(2 * width, width * vocabulary)
        totals_bk, flat_bk = ops.top_k(totals_bk, count)
        source_bk, token_bk = flat_bk // vocabulary, ops.cast(flat_bk % vocabulary, "int32")
        plain_bk = _pick(ops.reshape(plain_rv, (batch, width * vocabulary)), flat_bk)
        scores_bk = _pick(carry["scores"], source_bk) + plain_bk
        tokens_bkn = ops.where(places_n == index, token_bk[:, :, None], _pick(carry["tokens"], source_bk))
        length = index + 1
        ends_bk = ops.expand_dims(length >= limits_b, 1)
        for end in ends:
            ends_bk = ends_bk | (token_bk == end)
        ranks_bk = ranked(totals_bk, length)
        coverage_rs = carry["coverage"]
        if sampler.covers:
            coverage_rs = coverage_rs + attention_rs
            ranks_bk = ranks_bk + _pick(bonus(coverage_rs), source_bk)
        # It counts as finished if it is among the `width` likeliest of a row still open.
        counts_bk = ends_bk & (ops.arange(count)[None] < width) & carry["open"][:, None]
        lengths_bk = ops.zeros_like(token_bk) + length
        done = _best(done, {
            "token_ids": tokens_bkn, "lengths": lengths_bk, "scores": scores_bk,
            "ranks": ops.where(counts_bk, ranks_bk, 2 * IMPOSSIBLE),
        }, width)  # fmt: skip
        # The likeliest candidates that do not end here are the next beams.
        ranking_bw, chosen_bw = ops.top_k(ops.where(ends_bk, IMPOSSIBLE + totals_bk, totals_bk), width)
        token_r = ops.reshape(_pick(token_bk, chosen_bw), (-1,))
        order_r = ops.reshape(_pick(source_bk, chosen_bw) + rows_b1, (-1,))

        def reordered(x):
            return ops.take(x, order_r, axis=0)

        history = tree.map_structure(reordered, carry["history"])
        # Without its coverage a beam may yet become better than it stands, never with it.
        beaten_b = done["ranks"][:, -1] >= ranked(ranking_bw, length)[:, 0]
        carry = {
            "token": token_r,
            "state": _map_changing(reordered, state),
            "history": History.append(history, token_r) if constraints.look_back else history,
            "coverage": reordered(coverage_rs) if sampler.covers else coverage_rs,
            "tokens": _pick(tokens_bkn, chosen_bw),
            "ranking": ranking_bw,
            "scores": _pick(scores_bk, chosen_bw),
            "open": carry["open"] & ops.logical_not(beaten_b) & (length < limits_b),
        }
        return length, carry, done

    tokens = ops.zeros((batch, width, max_new_tokens), "int32")
    nothing = ops.zeros((batch, width), "float32")
    begun_real_rs = spread(begun["real"])
    carry = {
        "token": spread(begun["token"]),
        "state": tree.map_structure(spread, begun["state"]),
        "history": tree.map_structure(spread, begun["history"]),
        "coverage": ops.zeros_like(begun_real_rs, dtype="float32") if sampler.covers else (),
        "tokens": tokens,
        "ranking": ops.where(ops.arange(width)[None] == 0, 0.0, IMPOSSIBLE) + nothing,
        "scores": nothing,
        "open": ops.ones_like(begun["token"], dtype="bool"),
    }
    done = {
        "token_ids": tokens,
        "lengths": ops.zeros((batch, width), "int32"),
        "scores": nothing,
        "ranks": nothing + 2 * IMPOSSIBLE,
    }
    _, _, done = ops.while_loop(
        lambda index, carry, done: (index < max_new_tokens) & ops.any(carry["open"]),
        body,
        (ops.convert_to_tensor(0, "int32"), carry, done),
    )
    return {name: done[name] for name in ("token_ids", "lengths", "scores")}


def _pick(x_bk, chosen_bw):
    """x_bk (b, k) or (b, k, n) at the chosen places: (b, w) or (b, w, n)."""
    return ops.take_along_axis(x_bk, chosen_bw if len(x_bk.shape) == 2 else ops.expand_dims(chosen_bw, -1), axis=1)


def _best(done, new, width):
    """The `width` of highest rank among what was finished before and what finishes now."""
    joined = {name: ops.concatenate([done[name], new[name]], axis=1) for name in done}
    ranks_bw, chosen_bw = ops.top_k(joined.pop("ranks"), width)
    return {**{name: _pick(one, chosen_bw) for name, one in joined.items()}, "ranks": ranks_bw}


def _map_changing(function, state):
    """Maps all leaves but those under "memory"."""
    changed = {name: tree.map_structure(function, part) for name, part in state.items() if name != "memory"}
    return {**changed, **{name: part for name, part in state.items() if name == "memory"}}
