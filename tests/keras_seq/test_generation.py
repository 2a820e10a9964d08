"""keras_seq.generation against plain Python: loops, brute force and counted frequencies.

Most claims are tested on `Chain`, whose next-token logits depend on the whole history through a table, so that a wrong
reordering of beams shows; the claims about floats are tested on the four models themselves.
"""

import dataclasses
import functools
import gc
import itertools
import weakref

import numpy as np
import pytest
from keras import ops

import keras_seq
from keras_seq import BeamSampler, GreedySampler, RandomSampler, generate

GENERATIVE = ["Seq2Seq", "AttentionSeq2Seq", "Transformer", "GPT"]
SAMPLERS = {
    "greedy": lambda rows: GreedySampler(),
    "beam": lambda rows: BeamSampler(3, length_penalty=0.7),
    "sampling": lambda rows: RandomSampler(1.3, top_k=7, top_p=0.9, seeds=np.asarray(rows) + 20),
}


class Chain:
    """A model with two doors: logits are a row of a table, chosen by everything fed so far."""

    variables = ()
    input = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")

    def __init__(self, vocabulary=5, spread=2.0, seed=0):
        random = np.random.default_rng(seed)
        self.table = (random.normal(size=(101, vocabulary)) * spread).astype("float32")

    def start(self, inputs, length):
        return {"memory": {"unused": inputs["encoder_padding_mask"]}, "history": inputs["encoder_token_ids"][:, 0]}

    def step(self, token_ids, state):
        history = (state["history"] * 7 + token_ids + 1) % 101
        return ops.take(ops.convert_to_tensor(self.table), history, axis=0), {**state, "history": history}, None

    def log_p(self, first, tokens):
        """The same in NumPy: log-probabilities of the next token after `tokens`."""
        history = first
        for token in (1, *tokens):
            history = (history * 7 + token + 1) % 101
        logits = self.table[history].astype("float64")
        return logits - np.log(np.exp(logits).sum())


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


def write(model, inputs, count, sampler=None, end=0, start=1):
    return generate(model, inputs, count, end_token_id=end, start_token_id=start, sampler=sampler)


def check_row(result, row, tokens, score):
    length = len(tokens)
    assert result["lengths"][row] == length
    np.testing.assert_array_equal(result["token_ids"][row][:length], tokens)
    assert not np.any(result["token_ids"][row][length:])
    np.testing.assert_allclose(result["scores"][row], score, atol=1e-4)


# === Greedy ===


@pytest.mark.parametrize("end", [2, -1])
def test_greedy_is_the_likeliest_token_at_each_step_until_the_end(end):
    chain, firsts = chain_of(), (3, 50, 7, 11, 13, 17)
    result = write(chain, sources(*firsts), 11, end=end)
    assert (result["token_ids"].dtype, result["lengths"].dtype, result["scores"].dtype) == ("int32", "int32", "float32")
    assert result["token_ids"].shape == (6, 11)
    for row, first in enumerate(firsts):
        tokens, score = [], 0.0
        while len(tokens) < 11 and tokens[-1:] != [end]:
            log_p = chain.log_p(first, tokens)
            tokens.append(int(log_p.argmax()))
            score += log_p.max()
        check_row(result, row, tokens, score)
    assert (len(set(result["lengths"])) > 1) == (end == 2)


def test_limits_end_each_row_at_its_own_length():
    inputs = {name: ops.convert_to_tensor(one) for name, one in sources(3, 50, 7).items()}
    limits = ops.convert_to_tensor(np.array([2, 5, 3], "int32"))
    for sampler in (None, BeamSampler(2, ops.ones(3))):
        result = keras_seq.generation.decode(chain_of(), inputs, 5, -1, 1, sampler, limits)
        lengths = np.asarray(result["lengths"]).reshape(3, -1)
        np.testing.assert_array_equal(lengths, np.broadcast_to([[2], [5], [3]], lengths.shape))


# === Beam search ===


def reference_beam_search(chain, first, count, end, width, penalty):
    """Transformers' rule in plain Python: (rank, score, tokens), best first."""
    beams, done = [(0.0, ())], []
    for length in range(1, count + 1):
        grown = [(s + p, (*tokens, v)) for s, tokens in beams for v, p in enumerate(chain.log_p(first, tokens))]
        grown = sorted(grown, reverse=True)[: 2 * width]
        ending = [one[1][-1] == end or length == count for one in grown]
        done += [(s / length**penalty, s, tokens) for (s, tokens), ends in zip(grown[:width], ending) if ends]
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


# === The models ===


def prompt_of(name, make_inputs):
    return {key: one for key, one in make_inputs(name, target=5).items() if not key.startswith("decoder_")}


def start_of(name):
    return None if name == "GPT" else 1


def full_log_p(model, name, inputs, tokens_bn, forward):
    """log_softmax of one forward pass over prompt (or source) and `tokens_bn`, at each of those tokens: (b, n, v)."""
    count = tokens_bn.shape[1]
    if name == "GPT":
        real_b = inputs["padding_mask"].sum(1)
        width = real_b.max() + count
        ids = np.zeros((len(tokens_bn), width), "int32")
        for row, real in enumerate(real_b):
            ids[row, :real] = inputs["token_ids"][row, :real]
            ids[row, real : real + count] = tokens_bn[row]
        given = {"token_ids": ids, "padding_mask": np.arange(width) < real_b[:, None] + count}
        first_b = real_b - 1
    else:
        ids = np.pad(tokens_bn[:, :-1], ((0, 0), (1, 0)), constant_values=1)
        given = {**inputs, "decoder_token_ids": ids, "decoder_padding_mask": np.ones_like(ids, bool)}
        first_b = np.zeros(len(ids), int)
    log_p = np.asarray(ops.log_softmax(forward(model)(given)))
    return np.stack([log_p[row, first : first + count] for row, first in enumerate(first_b)])


@pytest.mark.parametrize("name", GENERATIVE)
def test_greedy_equals_the_argmax_of_full_forward_passes_and_its_score_their_sum(name, shared, make_inputs, forward):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    result = model.generate(inputs, 7, 2, start_of(name))
    log_p = full_log_p(model, name, inputs, result["token_ids"], forward)
    written = np.arange(7) < result["lengths"][:, None]
    # What was written is at each step the likeliest continuation of what was written before.
    np.testing.assert_array_equal(result["token_ids"], log_p.argmax(-1) * written)
    np.testing.assert_allclose(result["scores"], (log_p.max(-1) * written).sum(-1), atol=1e-4)


@pytest.mark.parametrize("name", GENERATIVE)
def test_a_beam_of_one_is_greedy(name, shared, make_inputs):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    greedy = model.generate(inputs, 7, 2, start_of(name))
    beam = model.generate(inputs, 7, 2, start_of(name), BeamSampler(1))
    for key in greedy:
        np.testing.assert_allclose(beam[key][:, 0], greedy[key], atol=1e-4)


@pytest.mark.parametrize("name", GENERATIVE)
def test_the_score_of_every_beam_is_that_of_a_forward_pass(name, shared, make_inputs, forward):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    beams = model.generate(inputs, 7, 2, start_of(name), SAMPLERS["beam"](range(3)))
    for beam in range(3):
        tokens_bn = beams["token_ids"][:, beam]
        log_p = full_log_p(model, name, inputs, tokens_bn, forward)
        picked = np.take_along_axis(log_p, tokens_bn[..., None], -1)[..., 0]
        written = np.arange(7) < beams["lengths"][:, beam, None]
        np.testing.assert_allclose(beams["scores"][:, beam], (picked * written).sum(-1), atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", GENERATIVE)
def test_companions_and_longer_padding_change_nothing(name, sampler, shared, make_inputs, pad):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    together = model.generate(inputs, 7, 2, start_of(name), SAMPLERS[sampler]([0, 1, 2]))
    longer = pad({key: one[1:2] for key, one in inputs.items()})
    alone = model.generate(longer, 7, 2, start_of(name), SAMPLERS[sampler]([1]))
    for key in alone:
        np.testing.assert_allclose(together[key][1], alone[key][0], atol=1e-5)


def test_a_start_token_of_gpt_is_put_before_the_prompt(shared, make_inputs):
    model, inputs = shared("GPT"), make_inputs("GPT")
    before = {key: np.pad(one, ((0, 0), (1, 0)), constant_values=1) for key, one in inputs.items()}
    expected = model.generate(before, 5, 2)
    for key, one in model.generate(inputs, 5, 2, start_token_id=1).items():
        np.testing.assert_allclose(one, expected[key], atol=1e-5)


def test_generation_follows_the_weights(build, make_inputs, randomized):
    model, inputs = build("GPT"), make_inputs("GPT")
    answers = []
    for seed in (1, 2):
        randomized(model, seed)
        answers.append(model.generate(inputs, 5, -1))
        fresh = build("GPT")
        fresh.set_weights(model.get_weights())
        np.testing.assert_array_equal(answers[-1]["token_ids"], fresh.generate(inputs, 5, -1)["token_ids"])
    assert not np.array_equal(answers[0]["token_ids"], answers[1]["token_ids"])


def test_what_was_compiled_for_a_model_does_not_keep_it_alive():
    chain = Chain()
    write(chain, sources(3), 2)
    gone = weakref.ref(chain)
    del chain
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", GENERATIVE)
def test_mixed_precision_generates_with_every_sampler(name, build, make_inputs):
    model, inputs = build(name, dtype="mixed_bfloat16"), prompt_of(name, make_inputs)
    for sampler in (None, BeamSampler(2)):
        result = model.generate(inputs, 3, 2, start_of(name), sampler)
        assert np.all(np.isfinite(result["scores"]))


# === Errors ===


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 0}, "generate needs max_new_tokens >= 1, got max_new_tokens=0."),
        ({"inputs": {"token_ids": 0}}, r"generate needs inputs \['encoder_token_ids', 'encoder_padding_mask'\], got"),
        ({"start_token_id": None}, "generate needs start_token_id for Chain, got None."),
        ({"sampler": BeamSampler(0)}, "BeamSampler needs num_beams >= 1, got num_beams=0."),
        ({"sampler": "greedy"}, "generate needs a GreedySampler, RandomSampler or BeamSampler, got 'greedy'."),
        (
            {"sampler": RandomSampler(seeds=[1, 2])},
            r"RandomSampler needs options .* one a row, got shape \(2,\) for 3.",
        ),
        ({"sampler": BeamSampler(2, [1.0])}, r"BeamSampler needs options .* one a row, got shape \(1,\) for 3."),
    ],
)
def test_errors_name_the_rule_and_the_value(arguments, message):
    usual = {"inputs": sources(3, 50, 7), "max_new_tokens": 2, "end_token_id": 0, "start_token_id": 1}
    with pytest.raises(ValueError, match=message):
        generate(chain_of(), **{**usual, **arguments})


def test_more_positions_than_the_model_has_are_refused(shared, make_inputs):
    inputs = make_inputs("GPT")
    assert shared("GPT").generate(inputs, 10, -1)["token_ids"].shape == (3, 10)
    with pytest.raises(
        ValueError, match=r"GPT has max_sequence_length=17 positions, prompt included, got .* length=18\."
    ):
        shared("GPT").generate(inputs, 11, -1)
    inputs = prompt_of("Transformer", make_inputs)
    with pytest.raises(ValueError, match=r"Transformer has max_sequence_length=17 positions, .* length=18\."):
        shared("Transformer").generate(inputs, 18, -1, start_token_id=1)


def test_samplers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BeamSampler().num_beams = 3
