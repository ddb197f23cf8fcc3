"""The account of an API key: what it has used in its periods, and the refusals of a key that has reached a limit."""

from __future__ import annotations

import calendar
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from workflow_composer.execution.reservation import ROUNDING
from workflow_composer.server.auth.keys import Key, Period
from workflow_composer.server.failures import RETRY_SOON, SERVER, HttpFailure

DAY = 86_400.0
_SET_BACK = 5.0
"""Seconds by which a clock must have been set back to count as such: workers write in any order."""


@dataclass(slots=True)
class Account:
    """The usage of one key. Dollars, counts, epoch seconds.

    ``began`` is the start of the latest day that has been charged: a clock that is set back never returns to an earlier one.
    ``seen`` is the time of the last charge. ``next_request`` and ``next_token`` are the time stamps of the two rates.
    """

    began: float = 0.0
    spent_this_month: float = 0.0
    spent_in_all: float = 0.0
    requests: int = 0
    tokens: int = 0
    next_request: float = 0.0
    next_token: float = 0.0
    spent_today: float = 0.0
    tokens_today: int = 0
    seen: float = 0.0
    period: Period = "month"

    @property
    def spent(self) -> float:
        """Dollars spent in the key's ``period``."""
        return self.spent_in(self.period)

    def spent_in(self, period: Period) -> float:
        """Return the dollars spent in the current day or month, or in all."""
        return {"day": self.spent_today, "month": self.spent_this_month, "total": self.spent_in_all}[period]

    def free(self, limits: Sequence[tuple[Period, float]]) -> float:
        """Return the dollars that are left of all limits; infinite without one."""
        return min((dollars - self.spent_in(period) for period, dollars in limits), default=math.inf)

    def turn_over(self, now: float) -> bool:
        """Start a new day, and perhaps a new month, if the old one has ended; return False if the clock was set back.

        Rates follow a clock that was set back, so that their time stamps do not lock a key out.
        """
        today = now // DAY * DAY
        if today > self.began:
            if self.began < period_of("month", now // DAY)[0]:
                self.spent_this_month = 0.0
            self.began, self.spent_today, self.tokens_today = today, 0.0, 0
        if now < self.seen - _SET_BACK:
            back = self.seen - now
            self.next_request, self.next_token = self.next_request - back, self.next_token - back
            self.seen = now
        return today >= self.began


@functools.lru_cache(maxsize=16)
def period_of(period: Period, day: float) -> tuple[float, float]:
    """Return start and end of the period that contains a day, UTC; days are counted from the epoch."""
    if period == "total":
        return 0.0, math.inf
    if period == "day":
        return day * DAY, (day + 1.0) * DAY
    year, month, *_ = time.gmtime(day * DAY)
    following = (year + month // 12, month % 12 + 1)
    return float(calendar.timegm((year, month, 1, 0, 0, 0))), float(calendar.timegm((*following, 1, 0, 0, 0)))


def exhausted(key: Key, account: Account, now: float) -> HttpFailure:
    """Return the error that names the limit that is reached; of several, the one that lasts longest."""
    ends = now
    message = "the budget of this API key is exhausted"
    for period, dollars in key.limits:
        end = period_of(period, max(now, account.began) // DAY)[1]
        if dollars - account.spent_in(period) <= ROUNDING and end >= ends:
            each = "" if period == "total" else f" per {period}"
            ends, message = end, f"the budget of this API key (${dollars:g}{each}) is exhausted"
    if key.tokens_per_day and account.tokens_today >= key.tokens_per_day:
        end = period_of("day", max(now, account.began) // DAY)[1]
        if end >= ends:
            ends, message = end, f"the budget of this API key ({key.tokens_per_day} tokens per day) is exhausted"
    code = "insufficient_quota"
    return HttpFailure(429, message, type=code, code=code, retry_after=ends - now)


def unavailable() -> HttpFailure:
    """Return the error if the usage of a key can be neither read nor written."""
    message = "the usage of this API key is temporarily unavailable"
    return HttpFailure(503, message, type=SERVER, code="ledger_unavailable", retry_after=RETRY_SOON)


def too_fast(what: str, limit: int, wait: float) -> HttpFailure:
    """Return the error if a rate is exceeded; ``wait`` in seconds."""
    message = f"this API key is limited to {limit} {what} per minute; retry in {wait:.1f} s"
    return HttpFailure(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait)


def too_many(most: int) -> HttpFailure:
    """Return the error if a key has as many requests in progress as it may."""
    message = f"this API key is limited to {most} requests in progress at a time"
    return HttpFailure(429, message, type="rate_limit_error", code="rate_limit_exceeded", retry_after=RETRY_SOON)
