import datetime
import email.utils

import pytest

from serving.retries import Retries, ServingError, seconds_of


def error(code="UNAVAILABLE", side="server", retry_after=None):
    return ServingError(code, "no", side, retry_after)


def test_pauses_grow_up_to_the_longest_and_end_with_the_attempts():
    longest = Retries(attempts=6, initial=0.5, factor=3.0, maximum=7.0, draw=lambda: 1.0)
    assert [longest.pause(error(), attempt) for attempt in range(1, 7)] == [0.5, 1.5, 4.5, 7.0, 7.0, None]


def test_a_pause_is_as_short_after_thousands_of_attempts():
    many = Retries(attempts=10**6, initial=0.001, maximum=0.01, draw=lambda: 1.0)
    assert many.pause(error(), 5000) == 0.01
    assert Retries(attempts=10**6, initial=0.0).pause(error(), 5000) == 0.0


def test_jitter_spreads_over_the_whole_pause():
    drawn = {Retries(initial=2.0).pause(error(), 1) for _ in range(101)}
    assert len(drawn) > 50 and min(drawn) < 0.5 and max(drawn) > 1.5 and max(drawn) <= 2.0


def test_only_codes_that_may_pass_are_repeated():
    retries = Retries()
    for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        assert retries.pause(error(code), 1) is not None
        assert retries.pause(error(code, "transport"), 1) is not None
        assert retries.pause(error(code, "client"), 1) is None
    for code in ("INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "DEADLINE_EXCEEDED", "UNAUTHENTICATED"):
        assert retries.pause(error(code), 1) is None


def test_what_the_server_asks_for_is_a_lower_bound_and_a_negative_wish_an_end():
    retries = Retries(initial=0.0, maximum=1.0)
    assert retries.pause(error(retry_after=13.0), 1) == 13.0
    assert retries.pause(error(retry_after=-1.0), 1) is None


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert seconds_of("17") == 17.0
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=31)
    assert 29 < seconds_of(email.utils.format_datetime(soon, usegmt=True)) <= 31
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for nothing in (None, "", "soon", "-3", "²"):
        assert seconds_of(nothing) is None


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"initial": -1}, {"factor": 0.5}, {"maximum": -2}])
def test_numbers_out_of_range_are_refused_with_what_came(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Retries(**wrong)
