"""The learning rates are the formulas written out."""

import math

import keras
import numpy as np
import pytest

from training.schedules import DECAYS, WarmUp

PEAK, WARM_UP, STEPS = 0.7, 5, 29
WRITTEN_OUT = {
    "constant": lambda n: 1.0,
    "linear": lambda n: (STEPS - n) / (STEPS - WARM_UP),
    "cosine": lambda n: (1 + math.cos(math.pi * (n - WARM_UP) / (STEPS - WARM_UP))) / 2,
    "inverse_square_root": lambda n: math.sqrt(WARM_UP / n),
}


def rates(decay, count=STEPS, **changes):
    schedule = WarmUp(**{"peak": PEAK, "warmup_steps": WARM_UP, "steps": STEPS, "decay": decay, **changes})
    return np.array([float(schedule(step)) for step in range(count)])


@pytest.mark.parametrize("decay", DECAYS)
def test_the_rate_rises_linearly_to_its_peak_and_then_follows_its_formula(decay):
    # Keras counts steps from 0; the first step is step 1 of the formula.
    expected = [PEAK * (n / WARM_UP if n <= WARM_UP else WRITTEN_OUT[decay](n)) for n in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates(decay), expected, rtol=1e-5, atol=1e-7)


def test_the_inverse_square_root_is_the_formula_of_vaswani_2017():
    width = 13
    peak = width**-0.5 * WARM_UP**-0.5
    expected = [width**-0.5 * min(n**-0.5, n * WARM_UP**-1.5) for n in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates("inverse_square_root", peak=peak), expected, rtol=1e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_final_rate_is_what_the_decay_goes_down_to(decay):
    final = PEAK / 7
    expected = [
        PEAK * n / WARM_UP if n <= WARM_UP else final + (PEAK - final) * WRITTEN_OUT[decay](n)
        for n in range(1, STEPS + 1)
    ]
    np.testing.assert_allclose(rates(decay, final=final), expected, rtol=1e-5)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decayed_rate_ends_at_zero_and_stays_there(decay):
    np.testing.assert_allclose(rates(decay, STEPS + 7)[STEPS - 1 :], 0, atol=1e-7)


def test_a_warm_up_longer_than_the_run_only_rises():
    assert np.all(np.diff(rates("cosine", 11, warmup_steps=11, steps=7)) > 0)


def test_a_schedule_comes_back_from_its_configuration():
    schedule = WarmUp(PEAK, WARM_UP, STEPS, "linear", PEAK / 7)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert isinstance(again, WarmUp)
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "cosin"}, "WarmUp needs decay in .*, got decay='cosin'"),
        ({"decay": "linear", "warmup_steps": 0}, "WarmUp needs warmup_steps >= 1, got warmup_steps=0"),
        ({"decay": "linear", "final": 1.1}, "WarmUp needs final between 0 and peak=0.7, got final=1.1"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        rates(**changes)
