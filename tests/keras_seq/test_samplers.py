"""keras_seq.samplers against counted frequencies and the rules in plain Python."""

import dataclasses

import numpy as np
import pytest
from chains import CONSTRAINTS, chain_of, check_row, keywords, restrict, sources, write

from keras_seq import BeamSampler, RandomSampler, generate

# === Sampling ===

SKEWED = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], "float32"))


def draws(logits, count=4001, **options):
    """First tokens of `count` rows with seeds 0, 1, 2, ..."""
    sampler = RandomSampler(seeds=np.arange(count), **options)
    return write(chain_of(logits=tuple(logits)), sources(*[0] * count), 1, sampler, end=-1)["token_ids"][:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax_at_that_temperature(temperature):
    expected = np.exp(SKEWED / temperature)
    expected *= 4001 / expected.sum()
    counts = np.bincount(draws(SKEWED, temperature=temperature), minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_k": 3}, 3),
        ({"top_k": 0}, 5),
        ({"top_k": 99}, 5),
        ({"top_p": 0.39}, 1),
        ({"top_p": 0.41}, 2),
        ({"top_p": 0.64}, 2),
        ({"top_p": 0.84}, 3),
        ({"top_p": 1.0}, 5),
        ({"top_p": 0.0}, 1),
        # Among the three likeliest the shares are 0.47, 0.29 and 0.24: two of them reach 0.7.
        ({"top_k": 3, "top_p": 0.7}, 2),
        # At temperature 0.5 they are 0.58, 0.23, 0.15, ...: two reach 0.75.
        ({"temperature": 0.5, "top_p": 0.75}, 2),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest_tokens_in_their_proportions(options, kept):
    counts = np.bincount(draws(SKEWED, **options), minlength=5)
    expected = np.exp(SKEWED / options.get("temperature", 1.0))[:kept]
    expected *= 4001 / expected.sum()
    assert not np.any(counts[kept:])
    assert ((counts[:kept] - expected) ** 2 / expected).sum() < 18.5


@pytest.mark.parametrize(
    "option",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": 1}, {"temperature": 1.2e-38}, {"temperature": 1e-39}],
)
def test_temperature_of_nothing_and_one_likeliest_token_are_greedy(option):
    chain, inputs = chain_of(spread=20), sources(3, 50, 7)
    sampled = write(chain, inputs, 7, RandomSampler(seeds=np.arange(3), **option))
    for name, greedy in write(chain, inputs, 7).items():
        np.testing.assert_allclose(sampled[name], greedy, rtol=1e-6)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    chain, inputs = chain_of(spread=0.1), sources(*[3] * 5)
    seeds = np.array([1, 2, 1, 3, 2**31 - 1])
    tokens = write(chain, inputs, 13, RandomSampler(seeds=seeds), end=-1)["token_ids"]
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert len(np.unique(tokens, axis=0)) == 4
    np.testing.assert_array_equal(tokens, write(chain, inputs, 13, RandomSampler(seeds=seeds), end=-1)["token_ids"])


def test_without_seeds_each_call_and_each_row_draws_anew():
    tokens = [write(chain_of(spread=0.1), sources(3, 3), 13, RandomSampler(), end=-1)["token_ids"] for _ in range(2)]
    assert len(np.unique(np.concatenate(tokens), axis=0)) == 4


def test_scores_are_under_the_untempered_model():
    chain = chain_of()
    result = write(chain, sources(3, 50), 7, RandomSampler(3.0, top_k=2, seeds=[1, 2]), end=2)
    for row, first in enumerate((3, 50)):
        tokens = result["token_ids"][row][: result["lengths"][row]]
        score = sum(chain.log_p(first, tokens[:i])[v] for i, v in enumerate(tokens))
        np.testing.assert_allclose(result["scores"][row], score, atol=1e-4)


def test_each_row_may_have_its_own_options():
    chain, seeds = chain_of(spread=0.5), np.array([5, 5, 5, 5])
    options = {"temperature": [0.0, 1.0, 2.0, 2.0], "top_k": [0, 2, 0, 3], "top_p": [1.0, 1.0, 0.5, 1.0]}
    together = write(chain, sources(3, 3, 3, 3), 11, RandomSampler(seeds=seeds, **options), end=-1)
    for row in range(4):
        own = RandomSampler(seeds=seeds[:1], **{name: values[row] for name, values in options.items()})
        alone = write(chain, sources(3), 11, own, end=-1)
        np.testing.assert_array_equal(together["token_ids"][row], alone["token_ids"][0])


# === Constraints ===


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_greedy_under_a_constraint_equals_the_rule_in_plain_python(constraint):
    chain, firsts, end = chain_of(), (3, 50, 7), (2, 0)
    inputs = sources(*firsts)
    result = generate(chain, inputs, 11, end, start_token_id=1, **keywords(constraint))
    for row, first in enumerate(firsts):
        tokens, score = [], 0.0
        while len(tokens) < 11 and not (tokens and tokens[-1] in end):
            rules = CONSTRAINTS[constraint]
            scores = restrict(chain.logits(first, tokens), [1, *tokens], len(tokens), end, row, **rules)
            score += chain.log_p(first, tokens)[scores.argmax()]
            tokens.append(int(scores.argmax()))
        check_row(result, row, tokens, score)
    free = generate(chain, inputs, 11, end, start_token_id=1)
    assert not np.array_equal(free["token_ids"], result["token_ids"])


@pytest.mark.parametrize("temperature", [2.0, 1e30])
def test_sampling_never_draws_what_a_constraint_forbids(temperature):
    sampler = RandomSampler(temperature, seeds=np.arange(53))
    result = write(
        chain_of(), sources(*range(53)), 11, sampler, end=2, no_repeat_ngram_size=1, prefix=np.full((53, 1), 4)
    )
    for tokens, length in zip(result["token_ids"], result["lengths"]):
        assert tokens[0] == 4
        # The start token stands in the text too, and so does not come again.
        assert len(set(tokens[:length]) | {1}) == length + 1 or length > 4


def test_each_row_may_have_its_own_constraints():
    chain, least, penalties = chain_of(), np.array([0, 5, 2]), np.array([1.0, 2.0, 1.4])
    for sampler in (None, BeamSampler(2)):
        options = {"min_new_tokens": least, "repetition_penalty": penalties}
        together = write(chain, sources(3, 50, 7), 7, sampler, end=2, **options)
        for row, first in enumerate((3, 50, 7)):
            own = {name: one[row : row + 1] for name, one in options.items()}
            alone = write(chain, sources(first), 7, sampler, end=2, **own)
            np.testing.assert_array_equal(together["token_ids"][row], alone["token_ids"][0])


def test_seeds_of_64_bits_are_streams_of_their_own():
    seeds = [0, 1, -1, 2**31, 2**40, 2**40 + 1, 2**62]
    result = write(chain_of(spread=0.1), sources(*[3] * len(seeds)), 23, RandomSampler(seeds=seeds), end=-1)
    assert len(np.unique(result["token_ids"], axis=0)) == len(seeds)


def test_samplers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BeamSampler().num_beams = 3
