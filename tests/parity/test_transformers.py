"""Our models against transformers' own, live: fresh random weights and sizes at every run.

KERAS_SEQ_PARITY_SEED repeats a run; the seed is printed with every failure.
"""

import functools
import os
import tempfile

import numpy as np
import pytest
import transformers
from parity import ours, theirs

import keras_seq

SEED = int(os.environ.get("KERAS_SEQ_PARITY_SEED") or np.random.default_rng().integers(10**6))
ACTIVATIONS = {"bert": ("gelu", "gelu_new", "relu", "silu"), "gpt2": ("gelu", "relu", "silu"), "gpt1": ("gelu", "relu")}
# GPT2Model is written as GPT2LMHeadModel, which is among the others.
WRITTEN = [kind for kind in theirs.KINDS if kind != "gpt2_body"]


def sizes(kind):
    """Odd sizes that fit each other, the same for a kind throughout a run."""
    random = np.random.default_rng([SEED, *map(ord, kind)])
    heads = int(random.choice([1, 3, 5]))
    return {
        "vocabulary": int(random.choice([23, 37, 53])),
        "heads": heads,
        # Even, for the sines.
        "width": 2 * heads * int(random.integers(2, 6)),
        "intermediate": int(random.choice([7, 19, 29])),
        "positions": int(random.choice([29, 31])),
        "segments": int(random.choice([2, 3])),
        "activation": str(random.choice(ACTIVATIONS.get(kind.split("_")[0], ("gelu",)))),
    }


@functools.cache
def pair(kind):
    """transformers' model, and ours with its weights."""
    model = theirs.make(kind, SEED, **sizes(kind))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, keras_seq.load_checkpoint(folder)


@pytest.fixture(autouse=True)
def told():
    print("KERAS_SEQ_PARITY_SEED", SEED)


@pytest.mark.parametrize("length", [3, 11])
@pytest.mark.parametrize("kind", theirs.KINDS)
def test_hidden_states_and_logits_are_equal(kind, length):
    model, mine = pair(kind)
    inputs = theirs.make_inputs(model, SEED + length, batch=4, length=length)
    ours.check_answers(mine, inputs, theirs.answers(model, inputs))


@pytest.mark.parametrize(("beams", "length_penalty"), [(1, 1.0), (2, 1.0), (5, 0.3), (4, 2.0)])
@pytest.mark.parametrize("kind", theirs.WRITERS)
def test_greedy_and_beam_tokens_are_equal(kind, beams, length_penalty):
    model, mine = pair(kind)
    # transformers' GPT-1 knows no positions of a padded prompt.
    inputs = theirs.make_inputs(model, SEED, batch=5, padded=kind != "gpt1")
    start = model.config.decoder_start_token_id if kind.startswith("marian") else None
    end = theirs.an_end(model, inputs)
    ends = (end, range(1, model.config.vocab_size - 1, 2)) if beams == 4 else (end,)  # also half of all tokens
    for end in ends:
        expected = theirs.generated(model, inputs, end, beams, length_penalty, new_tokens=13)
        np.testing.assert_array_equal(ours.generated(mine, inputs, end, start, 13, beams, length_penalty), expected)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_saved_folder_loads_into_transformers_with_equal_outputs(kind, tmp_path):
    model, mine = pair(kind)
    keras_seq.save_checkpoint(mine, tmp_path, pad_token_id=model.config.pad_token_id)
    again, told = type(model).from_pretrained(tmp_path, output_loading_info=True)
    unexpected = {name.split(".")[0] for name in told["unexpected_keys"]}
    assert not told["missing_keys"] and not told["mismatched_keys"]
    # BERTForPreTraining is written with both heads and the pooler, also if it came without.
    assert not unexpected or kind in ("bert_masked_lm", "bert_next_sentence")
    inputs = theirs.make_inputs(model, SEED + 1)
    for name, expected in theirs.answers(model, inputs).items():
        np.testing.assert_allclose(theirs.answers(again.eval(), inputs)[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("interleave_positions", [True, False])
def test_a_transformer_of_ours_becomes_a_marian_model_with_equal_outputs_and_tokens(interleave_positions, tmp_path):
    model = keras_seq.Transformer(
        37, 41, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=19, interleave_positions=interleave_positions
    )
    random = np.random.default_rng(SEED)
    for weight in model.trainable_variables:
        weight.assign(weight + random.normal(size=weight.shape, scale=0.3))
    keras_seq.save_checkpoint(model, tmp_path, decoder_start_token_id=1, eos_token_id=2)
    again = transformers.MarianMTModel.from_pretrained(tmp_path).eval()
    inputs = theirs.make_inputs(again, SEED)
    ours.check_answers(model, inputs, {"output": theirs.answers(again, inputs)["output"]})
    expected = theirs.generated(again, inputs, 2, 3, new_tokens=11)
    np.testing.assert_array_equal(ours.generated(model, inputs, 2, 1, 11, 3), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_recurrent_encoder_equals_torchs(cell, bidirectional):
    ours.check_recurrent(cell, bidirectional, theirs.recurrent(cell, bidirectional, SEED, inputs=3, units=5, batch=4))
