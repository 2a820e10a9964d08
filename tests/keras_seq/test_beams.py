"""keras_seq.beams against the rule in plain Python and brute force."""

import itertools

import numpy as np
import pytest
from chains import CONSTRAINTS, Chain, chain_of, check_row, keywords, restrict, sources, write

from keras_seq import BeamSampler


def reference_beam_search(chain, first, count, end, width, penalty, restrict=lambda scores, tokens: scores, cover=0.0):
    """Transformers' rule in plain Python: (rank, score, tokens), best first."""
    beams, done, ends = [(0.0, ())], [], np.ravel(end)
    for length in range(1, count + 1):
        grown = [
            (s + p, (*tokens, v))
            for s, tokens in beams
            for v, p in enumerate(restrict(chain.log_p(first, tokens), tokens))
            if p > -1e8
        ]
        grown = sorted(grown, reverse=True)[: max(2, 1 + len(ends)) * width]
        ending = [one[1][-1] in ends or length == count for one in grown]

        def rank(s, tokens):
            covered = np.log(np.minimum(chain.coverage(first, tokens), 1)).sum() if cover else 0.0
            return s / len(tokens) ** penalty + cover * covered

        done += [(rank(*one), *one) for one, ends in zip(grown[:width], ending) if ends]
        done = sorted(done, reverse=True)[:width]
        beams = [one for one, ends in zip(grown, ending) if not ends][:width]
        if not beams or (len(done) == width and done[-1][0] >= beams[0][0] / length**penalty):
            break
    return done


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_beam_search_equals_the_rule_in_plain_python(width, penalty):
    chain, firsts = chain_of(spread=1.0), tuple(range(0, 40, 3))
    result = write(chain, sources(*firsts), 7, BeamSampler(width, penalty), end=2)
    for row, first in enumerate(firsts):
        expected = reference_beam_search(chain, first, 7, 2, width, penalty)
        beams = {name: one[row] for name, one in result.items()}
        for beam, (_, score, tokens) in enumerate(expected):
            check_row(beams, beam, tokens, score)


def test_beams_go_on_beside_all_the_ends_there_are():
    # All tokens are nearly as likely, and most of them end: of six candidates three need not be left.
    chain, firsts, ends = Chain(vocabulary=11, spread=0.1), tuple(range(37)), (1, 2, 5, 7, 8)
    result = write(chain, sources(*firsts), 5, BeamSampler(3, 2.0), end=ends)
    for row, first in enumerate(firsts):
        beams = {name: one[row] for name, one in result.items()}
        for beam, (_, score, tokens) in enumerate(reference_beam_search(chain, first, 5, ends, 3, 2.0)):
            check_row(beams, beam, tokens, score)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_as_wide_as_the_space_finds_the_best_of_all_sequences(penalty):
    chain, firsts, count, end = chain_of(vocabulary=3, spread=1.0), (3, 50, 7), 3, 2
    # 1 sequence of one token, 2 of two and 12 of three.
    result = write(chain, sources(*firsts), count, BeamSampler(15, penalty), end=end)
    for row, first in enumerate(firsts):
        every = []
        for length in range(1, count + 1):
            for tokens in itertools.product(range(3), repeat=length):
                if end not in tokens[:-1] and (tokens[-1] == end or length == count):
                    score = sum(chain.log_p(first, tokens[:i])[v] for i, v in enumerate(tokens))
                    every.append((score / length**penalty, score, tokens))
        assert len(every) == 15
        beams = {name: one[row] for name, one in result.items()}
        for beam, (_, score, tokens) in enumerate(sorted(every, reverse=True)):
            check_row(beams, beam, tokens, score)


def test_without_length_penalty_an_early_stop_loses_nothing():
    # Sums only fall: nothing open can beat what is finished, so a beam of full width is exact though it stops early.
    chain, firsts, width = chain_of(vocabulary=3, spread=3.0), tuple(range(11)), 8
    result = write(chain, sources(*firsts), 4, BeamSampler(width, 0.0), end=2)
    for row, first in enumerate(firsts):
        every = [
            (sum(chain.log_p(first, tokens[:i])[v] for i, v in enumerate(tokens)), tokens)
            for length in range(1, 5)
            for tokens in itertools.product(range(3), repeat=length)
            if 2 not in tokens[:-1] and (tokens[-1] == 2 or length == 4)
        ]
        score, tokens = max(every)
        check_row({name: one[row] for name, one in result.items()}, 0, tokens, score)


def test_a_beam_wider_than_the_vocabulary_ranks_real_sequences_first():
    result = write(chain_of(vocabulary=3), sources(3, 50), 1, BeamSampler(5), end=2)
    for row, first in enumerate((3, 50)):
        np.testing.assert_allclose(result["scores"][row, :3], np.sort(chain_of(3).log_p(first, ()))[::-1], atol=1e-4)
        check_empty(result, row, 3)


def check_empty(result, row, allowed):
    assert np.all(result["lengths"][row, :allowed] > 0)
    assert not np.any(result["lengths"][row, allowed:]) and not np.any(result["token_ids"][row, allowed:])
    np.testing.assert_array_equal(result["scores"][row, allowed:], np.float32(-3e38))


@pytest.mark.parametrize(
    "count, constraints, allowed",
    [
        (1, {"suppress_tokens": (0, 2, 4)}, [(1,), (3,)]),
        (2, {"prefix": [[3, 4]] * 2}, [(3, 4)]),
        (4, {"prefix": [[2]] * 2}, [(2,)]),  # the end
        (3, {"prefix": [[0, -1, 2]] * 2, "suppress_tokens": (0, 1, 4)}, [(0, 2), (0, 3, 2)]),
    ],
)
def test_where_fewer_sequences_are_allowed_than_there_are_beams_the_last_are_empty(count, constraints, allowed):
    chain, firsts = chain_of(spread=1.0), (3, 50)
    result = write(chain, sources(*firsts), count, BeamSampler(4), end=2, **constraints)
    for row, first in enumerate(firsts):
        found = [tuple(ids[:n]) for ids, n in zip(result["token_ids"][row], result["lengths"][row]) if n]
        assert sorted(found) == allowed
        for tokens, score in zip(found, result["scores"][row]):
            assert score == pytest.approx(
                sum(chain.log_p(first, tokens[:i])[v] for i, v in enumerate(tokens)), abs=1e-4
            )
        check_empty(result, row, len(allowed))


def test_beam_with_an_end_that_never_comes_fills_every_length():
    result = write(chain_of(), sources(3, 50), 7, BeamSampler(3), end=-1)
    assert result["token_ids"].shape == (2, 3, 7)
    np.testing.assert_array_equal(result["lengths"], np.full((2, 3), 7))


def test_each_row_may_have_its_own_length_penalty():
    firsts, penalties = (3, 3, 3, 7), np.array([0.0, 1.0, 3.0, 1.0])
    together = write(chain_of(spread=1.0), sources(*firsts), 7, BeamSampler(3, penalties))
    for row, (first, penalty) in enumerate(zip(firsts, penalties)):
        alone = write(chain_of(spread=1.0), sources(first), 7, BeamSampler(3, penalty))
        np.testing.assert_array_equal(together["token_ids"][row], alone["token_ids"][0])


@pytest.mark.parametrize("penalty", [-3e38, -50.0, -4.0, 50.0, 3e38])
@pytest.mark.parametrize("cover", [0.0, -3e38, 3e38])
def test_no_penalty_is_so_great_that_nothing_is_written(penalty, cover):
    result = write(chain_of(spread=3.0), sources(3, 50), 13, BeamSampler(3, penalty, coverage_penalty=cover), end=2)
    assert np.all(result["lengths"] >= 1) and np.all(np.isfinite(result["scores"]))
    for row, first in enumerate((3, 50)):
        for length, ids, score in zip(*(result[name][row] for name in ("lengths", "token_ids", "scores"))):
            expected = sum(chain_of(spread=3.0).log_p(first, ids[:i])[ids[i]] for i in range(length))
            np.testing.assert_allclose(score, expected, rtol=1e-4)


@pytest.mark.parametrize("cover", [0.2, 1.5])
def test_the_coverage_penalty_ranks_by_what_was_looked_at(cover):
    chain, firsts = chain_of(spread=1.0), tuple(range(0, 40, 3))
    result = write(chain, sources(*firsts), 5, BeamSampler(3, 0.8, coverage_penalty=cover), end=2)
    for row, first in enumerate(firsts):
        beams = {name: one[row] for name, one in result.items()}
        for beam, (_, score, tokens) in enumerate(reference_beam_search(chain, first, 5, 2, 3, 0.8, cover=cover)):
            check_row(beams, beam, tokens, score)
    plain = write(chain, sources(*firsts), 5, BeamSampler(3, 0.8), end=2)
    assert not np.array_equal(plain["token_ids"], result["token_ids"])


def test_source_padding_needs_no_coverage():
    chain, inputs = chain_of(spread=1.0), sources(3, 50)
    # A third place that nothing ever looks at, once real and once padding.
    wide = {name: np.pad(one, ((0, 0), (0, 1))) for name, one in inputs.items()}

    class Wider(Chain):
        @property
        def tables(self):
            return self.table, np.pad(self.attention, ((0, 0), (0, 1)))

    expected = write(chain, inputs, 5, BeamSampler(3, coverage_penalty=1.0), end=2)
    result = write(Wider(spread=1.0), wide, 5, BeamSampler(3, coverage_penalty=1.0), end=2)
    np.testing.assert_array_equal(result["token_ids"], expected["token_ids"])


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_beam_search_under_a_constraint_equals_the_rule_in_plain_python(constraint):
    chain, firsts = chain_of(spread=1.0), (3, 50, 7)
    result = write(chain, sources(*firsts), 7, BeamSampler(3), end=2, **keywords(constraint))
    for row, first in enumerate(firsts):

        def rule(log_p, tokens, row=row):
            return restrict(log_p, [1, *tokens], len(tokens), (2,), row, **CONSTRAINTS[constraint])

        beams = {name: one[row] for name, one in result.items()}
        for beam, (_, _, tokens) in enumerate(reference_beam_search(chain, first, 7, 2, 3, 1.0, rule)):
            # Ranked under the constraint, scored under the model alone.
            score = sum(chain.log_p(first, tokens[:i])[v] for i, v in enumerate(tokens))
            check_row(beams, beam, tokens, score)
