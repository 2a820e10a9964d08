"""keras_seq.losses against the formulas written out in NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_seq.losses import TokenAccuracy, TokenCrossentropy, TokenLoss, TokenPerplexity

RANDOM = np.random.default_rng(0)
TRUE = RANDOM.integers(0, 11, size=(3, 7)).astype("int32")
LOGITS = RANDOM.normal(size=(3, 7, 11)).astype("float32") * 3
REAL = (np.arange(7) < np.array([[7], [2], [5]])).astype("float32")
LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
NLL = -np.take_along_axis(LOG_P, TRUE[..., None], -1)[..., 0]


def test_the_loss_is_the_mean_over_real_tokens():
    loss = TokenCrossentropy()(TRUE, LOGITS, REAL)
    np.testing.assert_allclose(loss, (NLL * REAL).sum() / REAL.sum(), rtol=1e-5)
    np.testing.assert_allclose(TokenCrossentropy()(TRUE, LOGITS), NLL.mean(), rtol=1e-5)


def test_label_smoothing_equals_cross_entropy_against_smoothed_one_hot_targets():
    targets = np.eye(11)[TRUE] * 0.7 + 0.3 / 11
    expected = ((-targets * LOG_P).sum(-1) * REAL).sum() / REAL.sum()
    np.testing.assert_allclose(TokenCrossentropy(label_smoothing=0.3)(TRUE, LOGITS, REAL), expected, rtol=1e-5)


def test_what_a_head_hides_has_no_share_of_a_smoothed_target():
    # As the heads of spans and choices hide places: what is left alone counts as if nothing else were there.
    hidden = np.concatenate([LOGITS, np.full((*LOGITS.shape[:-1], 5), -1e9, "float32") + LOGITS[..., :5]], -1)
    for loss in (TokenCrossentropy(0.1), TokenLoss(0.1)):
        np.testing.assert_allclose(loss(TRUE, hidden, REAL), loss(TRUE, LOGITS, REAL), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_longer_padding_and_what_stands_in_it_change_nothing(smoothing):
    loss = TokenCrossentropy(smoothing)
    true = np.pad(TRUE, ((0, 0), (0, 3)), constant_values=5)
    logits = np.pad(LOGITS, ((0, 0), (0, 3), (0, 0)), constant_values=9)
    real = np.pad(REAL, ((0, 0), (0, 3)))
    np.testing.assert_allclose(loss(true, logits, real), loss(TRUE, LOGITS, REAL), rtol=1e-6)


def test_a_batch_without_a_real_token_costs_nothing():
    assert float(TokenCrossentropy()(TRUE, LOGITS, 0 * REAL)) == 0


def test_bfloat16_logits_are_counted_in_float32():
    loss = TokenCrossentropy(0.1)(TRUE, ops.cast(LOGITS, "bfloat16"), REAL)
    np.testing.assert_allclose(loss, TokenCrossentropy(0.1)(TRUE, LOGITS, REAL), rtol=1e-2)


def test_perplexity_is_exp_of_the_mean_under_any_batching():
    whole, rows = TokenPerplexity(), TokenPerplexity()
    whole.update_state(TRUE, LOGITS, REAL)
    for i in range(3):
        rows.update_state(TRUE[i : i + 1], LOGITS[i : i + 1], REAL[i : i + 1])
    np.testing.assert_allclose(whole.result(), np.exp((NLL * REAL).sum() / REAL.sum()), rtol=1e-5)
    np.testing.assert_allclose(rows.result(), whole.result(), rtol=1e-5)


def test_accuracy_counts_real_tokens():
    metric = TokenAccuracy()
    metric.update_state(TRUE, LOGITS, REAL)
    np.testing.assert_allclose(metric.result(), ((LOGITS.argmax(-1) == TRUE) * REAL).sum() / REAL.sum(), rtol=1e-6)


@pytest.mark.parametrize("thing", [TokenCrossentropy(0.1), TokenPerplexity(name="p")])
def test_config_round_trip(thing):
    assert type(thing).from_config(thing.get_config()).get_config() == thing.get_config()


@pytest.mark.parametrize("thing", [TokenCrossentropy, TokenLoss])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_its_range_is_refused(thing, smoothing):
    with pytest.raises(ValueError, match=f"{thing.__name__} needs 0 <= label_smoothing < 1, got {smoothing}."):
        thing(smoothing)


MEASURES = [TokenCrossentropy, TokenLoss, TokenPerplexity, TokenAccuracy]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_weight_of_a_row_is_that_of_each_of_its_tokens(measure):
    of_rows = np.array([2.0, 0.0, 0.5], "float32")
    written_out = float(measure()(TRUE, LOGITS, np.repeat(of_rows[:, None], 7, 1)))
    for weight in (of_rows, of_rows[:, None]):
        assert float(measure()(TRUE, LOGITS, weight)) == pytest.approx(written_out, rel=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_labels_and_weights_may_have_a_last_axis_of_one(measure):
    true, weight = TRUE[:, 0], np.array([2.0, 1.0, 0.5], "float32")
    expected = float(measure()(true, LOGITS[:, 0], weight))
    assert float(measure()(true[:, None], LOGITS[:, 0], weight[:, None])) == pytest.approx(expected, rel=1e-6)
    assert float(measure()(TRUE[..., None], LOGITS, REAL[..., None])) == float(measure()(TRUE, LOGITS, REAL))


def test_one_hot_labels_are_refused_by_the_accuracy_even_where_they_would_broadcast():
    with pytest.raises(Exception, match=r"(?i)squeeze"):  # of each backend another
        TokenAccuracy()(np.eye(11), np.eye(11))


@pytest.mark.parametrize("metric", [TokenPerplexity, TokenAccuracy])
def test_metrics_are_the_same_under_any_batching_and_padding(metric):
    rng = np.random.default_rng(5)
    lengths = [2, 5, 11]
    logits = [rng.normal(size=(length, 13)).astype("float32") for length in lengths]
    labels = [np.where(rng.random(length) < 0.5, one.argmax(-1), 0) for length, one in zip(lengths, logits)]

    def measured(groups):
        one = metric()
        for group in groups:
            width = max(lengths[i] for i in group)
            y_pred = np.stack([np.pad(logits[i], [(0, width - lengths[i]), (0, 0)]) for i in group])
            y_true = np.stack([np.pad(labels[i], (0, width - lengths[i])) for i in group])
            weights = np.stack([np.arange(width) < lengths[i] for i in group]).astype("float32")
            one.update_state(y_true, y_pred, weights)
        return float(one.result())

    alone = measured([[i] for i in range(3)])
    assert measured([[0, 1, 2]]) == pytest.approx(alone, rel=1e-5)
    assert measured([[0, 2], [1]]) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.2])
def test_the_loss_of_tokens_is_one_number_however_they_are_batched(label_smoothing):
    random = np.random.default_rng(3)
    y_true, y_pred = random.integers(7, size=(5, 11)), random.normal(size=(5, 11, 7)).astype("float32")
    weights = (np.arange(11) < np.array([[11], [2], [7], [1], [5]])).astype("float32")
    whole = float(TokenCrossentropy(label_smoothing)(y_true, y_pred, weights))
    for cuts in ([], [1, 2, 4]):
        metric = TokenLoss(label_smoothing)
        for rows in np.split(np.arange(5), cuts):
            longest = int(weights[rows].sum(axis=1).max())  # each batch as short as its rows
            metric.update_state(y_true[rows, :longest], y_pred[rows, :longest], weights[rows, :longest])
        assert float(metric.result()) == pytest.approx(whole, rel=1e-6)
    assert TokenLoss.from_config(metric.get_config()).label_smoothing == label_smoothing
