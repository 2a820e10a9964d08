"""keras_seq.generation against loops in plain Python, on `Chain`, and against full forward passes of four models."""

import contextlib
import gc
import weakref

import keras
import numpy as np
import pytest
from chains import Chain, chain_of, check_row, restrict, sources, write
from keras import ops, tree

import keras_seq
from keras_seq import BeamSampler, GreedySampler, RandomSampler, backend

GENERATIVE = ["Seq2Seq", "AttentionSeq2Seq", "Transformer", "GPT"]
SAMPLERS = {
    "greedy": lambda rows: GreedySampler(),
    "beam": lambda rows: BeamSampler(3, length_penalty=0.7),
    "sampling": lambda rows: RandomSampler(1.3, top_k=7, top_p=0.9, seeds=np.asarray(rows) + 20),
}


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


@pytest.mark.parametrize("name", ["AttentionSeq2Seq", "Transformer"])
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


# What is drawn may depend on most: it is asked of every model, the other samplers of one or two.
@pytest.mark.parametrize(
    ("name", "sampler"),
    [*((name, "sampling") for name in GENERATIVE), ("GPT", "greedy"), ("Transformer", "beam"), ("Seq2Seq", "beam")],
)
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


def test_masks_may_be_bool_or_int_from_call_to_call(shared, make_inputs):
    model, inputs = shared("GPT"), make_inputs("GPT")
    expected = model.generate(inputs, 5, 2)
    for dtype in ("int32", "int64", "float32"):
        other = {"token_ids": inputs["token_ids"].astype("int64"), "padding_mask": inputs["padding_mask"].astype(dtype)}
        np.testing.assert_array_equal(model.generate(other, 5, 2)["token_ids"], expected["token_ids"])


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


@pytest.mark.parametrize("name", ["AttentionSeq2Seq", "Transformer"])
def test_mixed_precision_generates(name, build, make_inputs):
    model, inputs = build(name, dtype="mixed_bfloat16"), prompt_of(name, make_inputs)
    result = model.generate(inputs, 3, 2, start_of(name), BeamSampler(2))
    assert np.all(np.isfinite(result["scores"]))


def test_a_prompt_counts_as_text_already_written(shared, make_inputs, forward):
    model, inputs = shared("GPT"), make_inputs("GPT")
    result = model.generate(inputs, 7, -1, repetition_penalty=1.3, no_repeat_ngram_size=2)
    for row, real in enumerate(inputs["padding_mask"].sum(1)):
        text = list(inputs["token_ids"][row, :real])
        for index in range(7):
            ids = np.zeros((1, 17), "int32")
            ids[0, : len(text)] = text
            logits = forward(model)({"token_ids": ids, "padding_mask": np.arange(17)[None] < len(text)})
            scores = np.asarray(logits)[0, len(text) - 1].astype("float64")
            scores = restrict(scores, text, index, (), row, penalty=1.3, size=2)
            assert result["token_ids"][row, index] == scores.argmax()
            text.append(int(scores.argmax()))


# === Streaming, scoring, traces ===


# What a sampler draws at a step depends on no model.
@pytest.mark.parametrize(("name", "sampler"), [*((name, "greedy") for name in GENERATIVE), ("Seq2Seq", "sampling")])
def test_a_stream_gives_the_columns_of_generate(name, sampler, shared, make_inputs):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    arguments = (inputs, 7, 2, start_of(name), SAMPLERS[sampler]([0, 1, 2]))
    expected = model.generate(*arguments, repetition_penalty=1.2)
    columns = list(keras_seq.stream(model, *arguments, repetition_penalty=1.2))
    assert len(columns) == expected["lengths"].max()
    np.testing.assert_array_equal(np.stack(columns, axis=1), expected["token_ids"][:, : len(columns)])


def test_a_stream_yields_before_the_end_is_known():
    tokens = keras_seq.stream(chain_of(), sources(3, 50), 1000, -1, start_token_id=1)
    assert next(tokens).shape == (2,)


@pytest.mark.parametrize("name", GENERATIVE)
def test_a_target_is_scored_as_it_was_written(name, shared, make_inputs, forward):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    written = model.generate(inputs, 7, 2, start_of(name), SAMPLERS["sampling"]([0, 1, 2]))
    mask = np.arange(7) < written["lengths"][:, None]
    scored = keras_seq.score(model, inputs, written["token_ids"], mask, start_of(name))
    log_p = full_log_p(model, name, inputs, written["token_ids"], forward)
    picked = np.take_along_axis(log_p, written["token_ids"][..., None], -1)[..., 0]
    np.testing.assert_allclose(scored["log_probabilities"], picked * mask, atol=1e-4)
    np.testing.assert_allclose(scored["scores"], written["scores"], atol=1e-4)
    np.testing.assert_array_equal(scored["lengths"], written["lengths"])


def test_one_setting_is_traced_once_for_all_shapes_and_values():
    chain = Chain()
    # JAX compiles each shape by itself.
    batches = (2, 3, 5) if keras.backend.backend() == "tensorflow" else (1, 1)
    for sampler in (lambda n: None, lambda n: BeamSampler(2, n / 2), lambda n: RandomSampler(n / 3, top_k=n)):
        chain.steps = 0
        write(chain, sources(3), 5, sampler(1), repetition_penalty=1.1)
        traced = chain.steps
        for n in batches:
            write(chain, sources(*range(n)), 5, sampler(n), repetition_penalty=1 + n / 10)
        assert chain.steps == traced > 0


def test_scores_are_traced_once_for_targets_of_all_lengths(shared, make_inputs, monkeypatch):
    model, inputs, traced = shared("GPT"), make_inputs("GPT"), []
    keras_seq.calls.forget(model)
    plain = keras_seq.generation.score_of
    monkeypatch.setattr(keras_seq.generation, "score_of", lambda *all: traced.append(all) or plain(*all))
    # JAX compiles each shape by itself.
    lengths = (2, 3, 5) if keras.backend.backend() == "tensorflow" else (3, 3)
    for length in lengths:
        keras_seq.score(model, inputs, np.ones((3, length)), np.ones((3, length)))
    assert len(traced) == 1


if backend.BACKEND == "tensorflow":  # JAX has no other way to write than its own.

    @pytest.mark.parametrize(("name", "sampler"), [("Transformer", BeamSampler(3)), ("GPT", None)])
    def test_a_cache_written_in_place_gives_what_a_copied_one_gives(
        name, sampler, shared, build, make_inputs, monkeypatch
    ):
        model, copy, inputs = shared(name), build(name), prompt_of(name, make_inputs)
        copy.set_weights(model.get_weights())
        arguments = (inputs, 7, -1, start_of(name), sampler)
        in_place = model.generate(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(backend, "overwriting", contextlib.nullcontext)
            copied = copy.generate(*arguments)
        for key, one in copied.items():
            np.testing.assert_allclose(in_place[key], one, atol=1e-5)


@pytest.mark.parametrize("name", ["Transformer", "GPT"])
def test_outside_a_loop_a_state_can_be_fed_two_tokens(name, shared, make_inputs, compiled):
    model, inputs = shared(name), prompt_of(name, make_inputs)
    start = compiled(lambda prompt: model.start(prompt, 7), model)
    state = start({key: ops.convert_to_tensor(one) for key, one in inputs.items()})
    before = tree.map_structure(np.array, state)
    compiled(model.step, model)(ops.convert_to_tensor(np.array([3, 5, 7], "int32")), state)
    tree.map_structure(np.testing.assert_array_equal, tree.map_structure(np.array, state), before)


# === Errors ===


def test_what_cannot_stream_or_cover_is_refused(shared, make_inputs):
    with pytest.raises(ValueError, match=r"stream needs a GreedySampler or a RandomSampler, got BeamSampler"):
        keras_seq.stream(chain_of(), sources(3), 2, 0, 1, BeamSampler(2))
    with pytest.raises(ValueError, match=r"coverage_penalty needs a model with a source, got GPT\."):
        shared("GPT").generate(make_inputs("GPT"), 2, -1, sampler=BeamSampler(2, coverage_penalty=0.2))
    with pytest.raises(ValueError, match=r"target_ids needs a mask of its shape \(b, t\), got \(1, 2\) and \(1, 3\)"):
        keras_seq.score(chain_of(), sources(3), np.ones((1, 2)), np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match=r"score needs target_ids \(b, n\) with n >= 1, got \(1, 0\)"):
        keras_seq.score(chain_of(), sources(3), np.ones((1, 0)), np.ones((1, 0)), 1)
    with pytest.raises(ValueError, match="score needs as many targets as sources or prompts, 2, got 1"):
        keras_seq.score(chain_of(), sources(3, 5), np.ones((1, 2)), np.ones((1, 2)), 1)


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
