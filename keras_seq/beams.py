"""Beam search over a model's `step`, by transformers' rule: summed log-probability / length ** length_penalty."""

from keras import ops, tree

from keras_seq import backend
from keras_seq.samplers import IMPOSSIBLE, History

# The rank of what is not there. Ranks of real sequences are bounded to stay above it, and finite, under any penalty.
NOTHING = -3e38
# Below it stands only what the constraints forbid, beams that ended, and copies of the first beam.
FORBIDDEN = IMPOSSIBLE / 2
GREATEST_BONUS, GREATEST_DIVISOR = 1e37, 1e24


def beam_search(model, begun, max_new_tokens, ends, sampler, limits_b, constraints):
    """The best `num_beams` sequences a row, all rows side by side.

    Args:
        model: with `step`.
        begun: dict of the first token (b,), the state, the history and which source positions are real (b, s).
        max_new_tokens: n.
        ends: tuple of ids.
        sampler: a BeamSampler whose options are tensors (b,).
        limits_b: (b,) int32, the most tokens of each row.
        constraints: Constraints whose options are tensors.

    Returns:
        dict: token_ids (b, w, n), lengths (b, w), scores (b, w), best first. Where fewer than w sequences are allowed,
        the last are empty: tokens 0, length 0, score -3e38.
    """
    search = _Search(model, begun, max_new_tokens, ends, sampler, limits_b, constraints)
    _, _, done = ops.while_loop(
        lambda index, carry, done: (index < max_new_tokens) & ops.any(carry["open"]),
        search.step,
        (ops.convert_to_tensor(0, "int32"), search.first_carry(begun), search.nothing_done()),
    )
    there_bw = done["ranks"] > NOTHING
    return {
        "token_ids": ops.where(there_bw[:, :, None], done["token_ids"], 0),
        "lengths": ops.where(there_bw, done["lengths"], 0),
        "scores": ops.where(there_bw, done["scores"], NOTHING),
    }


class _Search:
    """What stays the same from step to step, and a step.

    A state has b * w rows for w beams. What is the same for all beams of a row at every step (under "memory") is
    repeated once and never reordered.
    """

    def __init__(self, model, begun, max_new_tokens, ends, sampler, limits_b, constraints):
        self.model, self.ends, self.limits_b, self.sampler = model, ends, limits_b, sampler
        self.width, self.max_new_tokens = sampler.num_beams, max_new_tokens
        self.constraints = constraints.repeated(self.width)
        self.batch = ops.shape(begun["token"])[0]
        self.real_rs = self.spread(begun["real"])

    def spread(self, x):
        return ops.repeat(x, self.width, axis=0)

    def first_carry(self, begun):
        nothing_bw = ops.zeros((self.batch, self.width), "float32")
        return {
            "token": self.spread(begun["token"]),
            "state": tree.map_structure(self.spread, begun["state"]),
            "history": tree.map_structure(self.spread, begun["history"]),
            "coverage": ops.zeros_like(self.real_rs, dtype="float32") if self.sampler.covers else (),
            "tokens": ops.zeros((self.batch, self.width, self.max_new_tokens), "int32"),
            # All beams of a row are alike at first: one of them is enough.
            "ranking": ops.where(ops.arange(self.width)[None] == 0, 0.0, IMPOSSIBLE) + nothing_bw,
            "scores": nothing_bw,
            "open": ops.ones_like(begun["token"], dtype="bool"),
        }

    def nothing_done(self):
        shape = (self.batch, self.width)
        return {
            "token_ids": ops.zeros((*shape, self.max_new_tokens), "int32"),
            "lengths": ops.zeros(shape, "int32"),
            "scores": ops.zeros(shape, "float32"),
            "ranks": ops.zeros(shape, "float32") + NOTHING,
        }

    def step(self, index, carry, done):
        with backend.overwriting():
            logits_rv, state, attention_rs = self.model.step(carry["token"], carry["state"])
        coverage_rs = carry["coverage"] + attention_rs if self.sampler.covers else carry["coverage"]
        grown = self._candidates(index, carry, logits_rv)
        length, count = index + 1, grown["token"].shape[1]
        ends_bk = ops.expand_dims(length >= self.limits_b, 1)
        for end in self.ends:
            ends_bk = ends_bk | (grown["token"] == end)
        ranks_bk = self._ranked(grown["ranking"], length)
        if self.sampler.covers:
            ranks_bk = ranks_bk + _pick(self._coverage_bonus(coverage_rs), grown["source"])
        # It counts as finished if it is among the `width` likeliest of a row still open.
        # Of forbidden ones only the very best does, which is the best where all are forbidden.
        place_1k = ops.arange(count)[None]
        allowed_bk = (grown["ranking"] > FORBIDDEN) | (place_1k == 0)
        counts_bk = ends_bk & allowed_bk & (place_1k < self.width) & carry["open"][:, None]
        new = {
            "token_ids": grown["tokens"],
            "lengths": ops.zeros_like(grown["token"]) + length,
            "scores": grown["scores"],
            "ranks": ops.where(counts_bk, ranks_bk, NOTHING),
        }
        done = _best(done, new, self.width)
        carry = self._go_on(carry, state, coverage_rs, grown, ends_bk)
        # Without its coverage a beam may yet become better than it stands, never with it.
        beaten_b = done["ranks"][:, -1] >= self._ranked(carry["ranking"], length)[:, 0]
        beaten_b = beaten_b | ((carry["ranking"][:, 0] <= FORBIDDEN) & (done["ranks"][:, 0] > NOTHING))
        return length, {**carry, "open": carry["open"] & ~beaten_b & (length < self.limits_b)}, done

    def _candidates(self, index, carry, logits_rv):
        """The likeliest continuations of a row's beams, best first, each (b, k): `ranking` under the constraints,
        `scores` under the model alone, the beam they come from, their last token, and (b, k, n) all their tokens."""
        vocabulary = logits_rv.shape[-1]
        plain_rv = ops.log_softmax(logits_rv)
        steps_rv = self.constraints.apply(plain_rv, carry["history"], index, self.ends)
        steps_bwv = ops.reshape(steps_rv, (self.batch, self.width, vocabulary))
        totals_bk = ops.reshape(carry["ranking"][:, :, None] + steps_bwv, (self.batch, self.width * vocabulary))
        # So many that `width` go on even if each beam ends here in every way it can.
        ways = max(2, 1 + len({end for end in self.ends if end >= 0}))
        totals_bk, flat_bk = ops.top_k(totals_bk, min(ways, vocabulary) * self.width)
        source_bk, token_bk = flat_bk // vocabulary, ops.cast(flat_bk % vocabulary, "int32")
        plain_bk = _pick(ops.reshape(plain_rv, (self.batch, self.width * vocabulary)), flat_bk)
        here_n = ops.arange(self.max_new_tokens)[None, None] == index
        return {
            "ranking": totals_bk,
            "scores": _pick(carry["scores"], source_bk) + plain_bk,
            "source": source_bk,
            "token": token_bk,
            "tokens": ops.where(here_n, token_bk[:, :, None], _pick(carry["tokens"], source_bk)),
        }

    def _go_on(self, carry, state, coverage_rs, grown, ends_bk):
        """The likeliest candidates that do not end here are the next beams."""
        totals_bk = grown["ranking"]
        ranking_bw, chosen_bw = ops.top_k(ops.where(ends_bk, IMPOSSIBLE + totals_bk, totals_bk), self.width)
        token_r = ops.reshape(_pick(grown["token"], chosen_bw), (-1,))
        rows_b1 = ops.arange(self.batch)[:, None] * self.width
        order_r = ops.reshape(_pick(grown["source"], chosen_bw) + rows_b1, (-1,))

        def reordered(x):
            return ops.take(x, order_r, axis=0)

        history = tree.map_structure(reordered, carry["history"])
        return {
            **carry,
            "token": token_r,
            "state": _map_changing(reordered, state),
            "history": History.append(history, token_r) if self.constraints.look_back else history,
            "coverage": tree.map_structure(reordered, coverage_rs),
            "tokens": _pick(grown["tokens"], chosen_bw),
            "ranking": ranking_bw,
            "scores": _pick(grown["scores"], chosen_bw),
        }

    def _ranked(self, scores_bk, length):
        penalty_b1 = ops.cast(self.sampler.length_penalty, "float32")[:, None]
        divisor_b1 = ops.power(ops.cast(length, "float32"), penalty_b1)
        return scores_bk / ops.clip(divisor_b1, 1 / GREATEST_DIVISOR, GREATEST_DIVISOR)

    def _coverage_bonus(self, coverage_rs):
        """What is added to the ranks of sequences that end: (b, w)."""
        # A float32 has no logarithm of 0; nothing that the search could choose has one lower than this.
        logs_rs = ops.where(self.real_rs, ops.log(ops.clip(coverage_rs, 1e-9, 1.0)), 0.0)
        summed_bw = ops.reshape(ops.sum(logs_rs, axis=1), (self.batch, self.width))
        return ops.clip(summed_bw * self.sampler.coverage_penalty[:, None], -GREATEST_BONUS, GREATEST_BONUS)


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
