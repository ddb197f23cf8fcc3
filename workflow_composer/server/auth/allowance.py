"""What a key may still use, as its owner is told: ``GET /v1/usage``, and the headers ``x-ratelimit-*`` of each response."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workflow_composer.server.auth.account import DAY, Account, period_of
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import ROUNDED, Ledger
from workflow_composer.server.exchange import Fields

_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit of requests or tokens: how many, in which period, what is left, and the seconds until all of it is."""

    what: str
    per: str
    limit: int
    remaining: int
    reset: float


def rates(key: Key, account: Account, now: float) -> list[Rate]:
    """Return a key's limits of requests and tokens; ``account`` has turned over at ``now``.

    Limits per minute are filled up evenly, so that their reset is when nothing is missing; that per day is at midnight, UTC.
    """
    found = []
    if limit := key.requests_per_minute:
        ahead = max(account.next_request - now, 0.0)
        left = math.floor((_MINUTE + ROUNDED - ahead) * limit / _MINUTE)
        found.append(Rate("requests", "minute", limit, min(max(left, 0), limit), ahead))
    if limit := key.tokens_per_minute:
        ahead = max(account.next_token - now, 0.0)
        left = math.floor((_MINUTE + ROUNDED - ahead) * limit / _MINUTE)
        found.append(Rate("tokens", "minute", limit, min(max(left, 0), limit), ahead))
    if limit := key.tokens_per_day:
        end = (max(now, account.began) // DAY + 1.0) * DAY
        found.append(Rate("tokens", "day", limit, max(limit - account.tokens_today, 0), end - now))
    return found


def rate_headers(ledger: Ledger, key: Key) -> Fields:
    """Return the headers of OpenAI's form for a key's limits; of two of tokens, that of which less is left.

    Empty if the usage is unavailable.
    """
    now = ledger.clock()
    try:
        found = rates(key, ledger.account(key, now), now)
    except OSError:
        return ()
    by_kind: dict[str, Rate] = {}
    for rate in found:
        known = by_kind.get(rate.what)
        if known is None or rate.remaining < known.remaining:
            by_kind[rate.what] = rate
    fields: list[tuple[str, str]] = []
    for what, rate in by_kind.items():
        fields.append((f"x-ratelimit-limit-{what}", str(rate.limit)))
        fields.append((f"x-ratelimit-remaining-{what}", str(rate.remaining)))
        fields.append((f"x-ratelimit-reset-{what}", duration(rate.reset)))
    return fields


def duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it.

    >>> duration(0.25), duration(3.2), duration(90), duration(7200)
    ('250ms', '4s', '1m30s', '2h0m0s')
    """
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000.0)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + f"{rest}s"


def usage_of(key: Key, account: Account, now: float) -> dict[str, Any]:
    """Return what a key has used and what is left, as plain data. Dollars, tokens, epoch seconds; None: no limit, no end."""
    budgets = []
    for period, dollars in key.limits:
        ends = period_of(period, max(now, account.began) // DAY)[1]
        used = account.spent_in(period)
        left = max(dollars - used, 0.0)
        resets = None if math.isinf(ends) else ends
        budgets.append({"period": period, "budget": dollars, "spent": used, "left": left, "resets_at": resets})
    limits = [
        {"of": one.what, "per": one.per, "limit": one.limit, "remaining": one.remaining, "resets_at": now + one.reset}
        for one in rates(key, account, now)
    ]
    spent = {"today": account.spent_today, "month": account.spent_this_month, "total": account.spent_in_all}
    return {
        "object": "usage",
        "key": {"id": key.id, "name": key.name, "user": key.user, "team": key.team, "expires_at": key.expires},
        "requests": account.requests,
        "tokens": {"today": account.tokens_today, "total": account.tokens},
        "spent": spent,
        "budget_left": max(account.free(key.limits), 0.0) if key.limits else None,
        "budgets": budgets,
        "limits": limits,
    }
