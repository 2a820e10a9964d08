"""keras_seq.models.seq2seq: what is particular to the two recurrent translators."""

import numpy as np
import pytest

from keras_seq import AdditiveScore, AttentionSeq2Seq, DotScore, GeneralScore, Seq2Seq

SIZES = {"source_vocabulary_size": 13, "target_vocabulary_size": 11, "hidden_dim": 3}


def without_decoder(inputs):
    return {name: one for name, one in inputs.items() if not name.startswith("decoder_")}


@pytest.mark.parametrize("context", ["initial_state", "every_step"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_context_vector_looks_at_the_last_real_position_only(cell, context, bidirectional, make_inputs, forward):
    model, inputs = Seq2Seq(**SIZES, cell=cell, context=context, bidirectional=bidirectional), make_inputs("Seq2Seq")
    last = inputs["encoder_padding_mask"].sum(1) - 1
    expected = np.repeat(np.eye(5)[last][:, None], 7, 1)
    np.testing.assert_array_equal(forward(model.attention_model)(inputs), expected)


@pytest.mark.parametrize("ways", [{}, {"go_backwards": True}, {"bidirectional": True}])
def test_the_context_at_every_step_is_the_encoders_last_output_whichever_way_it_reads(ways, make_inputs, randomized):
    inputs = make_inputs("Seq2Seq")
    every, padding = randomized(Seq2Seq(**SIZES, context="every_step", **ways)), inputs["encoder_padding_mask"]
    memory = every.start(without_decoder(inputs), 7)["memory"]
    outputs = np.asarray(every.encoder(every.source_embedding(inputs["encoder_token_ids"]), padding)[0])
    first, last = outputs[:, 0], outputs[np.arange(3), padding.sum(1) - 1]
    half = outputs.shape[-1] // 2
    expected = {"go_backwards": first, "bidirectional": np.concatenate([last[:, :half], first[:, half:]], -1)}
    np.testing.assert_allclose(memory["context"], expected.get(next(iter(ways), ""), last), atol=1e-6)
    ended = 0 if ways == {"go_backwards": True} else padding.sum(1) - 1
    np.testing.assert_array_equal(memory["weights"], np.eye(5)[np.broadcast_to(ended, 3)])


def test_with_its_context_as_initial_state_a_decoder_has_no_matrix_for_another():
    every, initial = Seq2Seq(**SIZES, context="every_step"), Seq2Seq(**SIZES)
    assert hasattr(every.decoder, "context_kernel") and not hasattr(initial.decoder, "context_kernel")


@pytest.mark.parametrize("score", [DotScore(), GeneralScore(), AdditiveScore(2)])
def test_every_score_fits_and_each_model_gets_one_of_its_own(score, make_inputs):
    one, other = (AttentionSeq2Seq(**SIZES, score=score, bidirectional=False) for _ in range(2))
    assert type(one.score) is type(score)
    assert one.score is not score and one.score is not other.score
    assert one(make_inputs("AttentionSeq2Seq")).shape == (3, 7, 11)


def test_the_default_score_is_bahdanaus():
    model = AttentionSeq2Seq(**SIZES)
    assert isinstance(model.score, AdditiveScore) and model.score.width == 3


def test_any_length_may_be_asked_for(make_inputs):
    state = Seq2Seq(**SIZES).start(without_decoder(make_inputs("Seq2Seq")), 10**6)
    assert all(leaf.shape[-1] <= 5 for state in state["states"] for leaf in state)


def test_errors_name_the_rule_and_the_value():
    with pytest.raises(
        ValueError, match=r"Seq2Seq needs context in \('initial_state', 'every_step'\), got context='x'"
    ):
        Seq2Seq(**SIZES, context="x")
    for model in (Seq2Seq, AttentionSeq2Seq):
        with pytest.raises(ValueError, match=r"RecurrentEncoder needs cell in \('lstm', 'gru'\), got cell='rnn'"):
            model(**SIZES, cell="rnn")
        with pytest.raises(
            ValueError, match=r"needs hidden_dim >= 1 and num_layers >= 1, got hidden_dim=3, num_layers=0"
        ):
            model(**SIZES, num_layers=0)
    with pytest.raises(ValueError, match=r"DotScore needs query and memory of one width, got 3 and 6"):
        AttentionSeq2Seq(**SIZES, score=DotScore())
