"""What a call without an answer is called, and which of them are asked again, and when."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# Only these say that the same call may succeed later; an inference changes nothing, so asking twice does no harm.
RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class ServingError(Exception):
    """A call that got no answer.

    Attributes:
        code: the canonical name, such as "INVALID_ARGUMENT" or "UNAVAILABLE".
        message: what was refused, and why.
        side: who refused: "client" (a check of ours, before sending or on receiving), "transport" (no server, no answer
            in time) or "server".
        retry_after: seconds that the server asked to wait; None when it did not say; negative: do not ask again.
    """

    def __init__(
        self,
        code: str,
        message: str,
        side: Literal["client", "transport", "server"],
        retry_after: float | None = None,
    ):
        super().__init__(f"{code} ({side}): {message}")
        self.code, self.message, self.side, self.retry_after = code, message, side, retry_after


@dataclass(frozen=True)
class Retries:
    """Exponential back-off with full jitter: the n-th pause is drawn between 0 and initial * factor ** (n - 1).

    Args:
        attempts: how often a call is sent at most; 1: never again.
        initial: seconds, the longest first pause.
        factor: how much longer each further pause may be.
        maximum: seconds, the longest pause of all. What a server asks for by Retry-After is waited even if longer.
        draw: a number between 0 and 1.

    Raises:
        ValueError: a number out of its range.
    """

    attempts: int = 4
    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 5.0
    draw: Callable[[], float] = random.random

    def __post_init__(self):
        if self.attempts < 1:
            raise ValueError(f"Retries needs attempts >= 1, got attempts={self.attempts!r}.")
        if self.initial < 0 or self.factor < 1 or self.maximum < 0:
            numbers = f"initial={self.initial!r}, factor={self.factor!r}, maximum={self.maximum!r}"
            raise ValueError(f"Retries needs initial >= 0, factor >= 1 and maximum >= 0, got {numbers}.")

    def pause(self, error: ServingError, attempt: int) -> float | None:
        """Seconds to wait after the attempt of that number (from 1) failed; None: the error is final."""
        if error.side == "client" or error.code not in RETRIED or attempt >= self.attempts:
            return None
        if error.retry_after is not None and error.retry_after < 0:
            return None
        return max(self.draw() * self._longest(attempt), error.retry_after or 0.0)

    def _longest(self, attempt: int) -> float:
        try:
            return min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:  # after a thousand doublings
            return self.maximum if self.initial else 0.0


def seconds_of(retry_after: str | None) -> float | None:
    """The value of a Retry-After header, seconds or a date, in seconds from now; None if there is none to read."""
    if not retry_after:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())
