"""keras_seq.calls: what may be asked of `generate`, and what is traced for it."""

import numpy as np
import pytest
from chains import Chain, chain_of, sources, write

import keras_seq
from keras_seq import BeamSampler, RandomSampler, calls


def text(ids, mask):
    return {"inputs": {"encoder_token_ids": ids, "encoder_padding_mask": mask}}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 0}, "generate needs max_new_tokens >= 1, got max_new_tokens=0."),
        ({"max_new_tokens": 2.0}, "generate needs max_new_tokens as a whole number, got 2.0."),
        ({"end_token_id": None}, "generate needs end_token_id as a whole number, got None."),
        ({"end_token_id": [0, 5]}, "generate needs end_token_id from -1 to 4, got 5."),
        ({"inputs": {"token_ids": 0}}, r"generate needs inputs \['encoder_token_ids', 'encoder_padding_mask'\], got"),
        (text([[3, 101]], [[1, 1]]), "encoder_token_ids needs ids from 0 to 100, got 101."),
        (text([[3, -1]], [[1, 1]]), "encoder_token_ids needs ids from 0 to 100, got -1."),
        (text([[3, 0.5]], [[1, 1]]), "encoder_token_ids needs ids from 0 to 100, got 0.5."),
        (text([["a"]], [[1]]), "encoder_token_ids needs numbers, and so does its mask, got <U1 and int64."),
        (text([[3, 5]], [[1]]), r"encoder_token_ids needs a mask of its shape \(b, t\), got \(1, 2\) and \(1, 1\)."),
        (text([3, 5], [1, 1]), r"encoder_token_ids needs a mask of its shape \(b, t\), got \(2,\) and \(2,\)."),
        ({"start_token_id": None}, "generate needs start_token_id for Chain, got None."),
        ({"start_token_id": True}, "generate needs start_token_id as a whole number, got True."),
        ({"sampler": BeamSampler(0)}, "BeamSampler needs num_beams >= 1, got num_beams=0."),
        ({"sampler": BeamSampler(2.0)}, "generate needs num_beams as a whole number, got 2.0."),
        ({"sampler": BeamSampler(2, [1.0])}, r"length_penalty as a scalar or one a row, 3, got shape \(1,\)."),
        ({"sampler": BeamSampler(2, np.nan)}, "generate needs length_penalty as finite numbers, got nan."),
        ({"sampler": "greedy"}, "generate needs a GreedySampler, RandomSampler or BeamSampler, got 'greedy'."),
        ({"sampler": RandomSampler(seeds=[1, 2])}, r"seeds as a scalar or one a row, 3, got shape \(2,\)."),
        ({"sampler": RandomSampler(np.inf)}, "generate needs temperature as finite numbers, got inf."),
        ({"sampler": RandomSampler(top_k=2.5)}, "generate needs top_k as whole numbers, got 2.5."),
        ({"repetition_penalty": 0.0}, "generate needs repetition_penalty > 0, got 0.0."),
        ({"repetition_penalty": np.nan}, "generate needs repetition_penalty > 0, got nan."),
        ({"min_new_tokens": 2.7}, "generate needs min_new_tokens as whole numbers, got 2.7."),
        ({"no_repeat_ngram_size": -1}, "generate needs no_repeat_ngram_size >= 0, got -1."),
        ({"suppress_tokens": [5]}, "generate needs suppress_tokens from 0 to 4, got 5."),
        ({"suppress_tokens": range(5)}, "generate needs suppress_tokens that leave a token, got all 5."),
        ({"prefix": [[1], [2]]}, r"generate needs a prefix of shape \(3, p\) with p >= 1, got \(2, 1\)."),
        ({"prefix": [[1], [-1], [5]]}, "generate needs a prefix of ids < 5, got 5."),
        ({"prefix": [[1.0], [2.5], [3.0]]}, "generate needs a prefix of integers, got float64."),
    ],
)
def test_errors_name_the_rule_and_the_value(arguments, message):
    usual = {"inputs": sources(3, 50, 7), "max_new_tokens": 2, "end_token_id": 0, "start_token_id": 1}
    with pytest.raises(ValueError, match=message):
        keras_seq.generate(chain_of(), **{**usual, **arguments})


def test_a_stream_is_refused_at_the_call_and_not_at_its_first_token():
    with pytest.raises(ValueError, match=r"max_new_tokens >= 1"):
        keras_seq.stream(chain_of(), sources(3), 0, 0, 1)


def test_a_prompt_padded_on_the_left_or_without_a_place_is_refused(shared):
    with pytest.raises(ValueError, match=r"token_ids needs padding on the right, got the mask \[0, 1\] in row 1"):
        shared("GPT").generate({"token_ids": [[3, 4], [0, 4]], "padding_mask": [[1, 0], [0, 1]]}, 2, -1)
    with pytest.raises(ValueError, match=r"prompts of a token or more, or a start_token_id, got \(1, 0\)"):
        shared("GPT").generate({"token_ids": np.ones((1, 0)), "padding_mask": np.ones((1, 0))}, 2, -1)


def test_whole_numbers_of_any_type_are_one_setting_and_a_refused_one_leaves_nothing():
    chain = Chain()
    with pytest.raises(ValueError, match=r"got 3\.0"):
        write(chain, sources(3), 3.0)
    expected = write(chain, sources(3), 3, BeamSampler(2), no_repeat_ngram_size=2)
    traced = chain.steps
    sampler = BeamSampler(np.int64(2))
    found = write(chain, sources(3), np.int64(3), sampler, np.int32(0), np.uint8(1), no_repeat_ngram_size=np.int64(2))
    assert chain.steps == traced
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])


@pytest.mark.parametrize("name", ["Seq2Seq", "Transformer", "GPT"])
def test_ids_behind_the_mask_are_never_read(name, shared):
    ids, mask = np.array([[3, 4, -1], [5, 10**6, 2]]), np.array([[1, 1, 0], [1, 0, 0]])
    prefix = "" if name == "GPT" else "encoder_"
    start = None if name == "GPT" else 1

    def ask(ids):
        inputs = {f"{prefix}token_ids": ids, f"{prefix}padding_mask": mask}
        return shared(name).generate(inputs, 3, -1, start)

    expected, found = ask(np.where(mask, ids, 7)), ask(ids)
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])
    np.testing.assert_array_equal(found["scores"], expected["scores"])


def test_a_prompt_without_a_token_is_scored_as_it_is_written(shared):
    inputs = {"token_ids": [[0, 0, 0], [3, 4, 5]], "padding_mask": [[0, 0, 0], [1, 1, 1]]}
    written = shared("GPT").generate(inputs, 3, -1)
    scored = keras_seq.score(shared("GPT"), inputs, written["token_ids"], np.ones((2, 3)))
    np.testing.assert_allclose(scored["scores"], written["scores"], atol=1e-4)


def test_weights_that_were_put_in_the_place_of_traced_ones_are_used(build):
    model, inputs = build("GPT"), {"token_ids": [[3, 4, 5]], "padding_mask": [[1, 1, 1]]}
    before = model.generate(inputs, 3, -1)["scores"]
    for layer in keras_seq.enable_lora(model.backbone, rank=2):  # whose layers the model shares, and not itself
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    after = model.generate(inputs, 3, -1)["scores"]
    calls.forget(model)
    np.testing.assert_array_equal(after, model.generate(inputs, 3, -1)["scores"])
    assert not np.allclose(after, before, atol=1e-3)
