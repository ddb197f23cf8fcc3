"""A decision in words: the plan, what was left out, and the result of every call and tier."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from workflow_composer.config.redaction import scrub
from workflow_composer.execution.call import Trace
from workflow_composer.plan import Member, Plan
from workflow_composer.types import Attempt, TierResult

_LONGEST = 400
"""Characters of one error's text: a server may send pages of it."""
_MOST_CAUSES = 3
_MOST_ATTEMPTS = 10
"""Attempts at the beginning and at the end that are listed."""


def told(plan: Plan | None, trace: Trace, error: BaseException | None = None) -> dict[str, Any]:
    """Return a full decision as plain data: plan, what it left out and why, the result of every call and tier, the error.

    The texts of errors may quote what a server said; secrets are removed from them.
    """
    found: dict[str, Any] = {
        "plan": None if plan is None else describe(plan),
        "left_out": [] if plan is None else list(plan.left_out),
        "attempts": _attempts(trace.attempts),
    }
    if plan is not None and plan.notes:
        found["notes"] = list(plan.notes)
    if plan is not None and (trace.tiers or trace.skipped):
        found["tiers"] = _tiers(plan, trace.tiers, trace.skipped)
    if error is not None:
        found["error"] = cause_of(error)
    return found


def describe(plan: Plan) -> str:
    """A plan on one line: tiers joined by ``=>`` (escalation), members by ``+``, candidates by ``->`` (fallback)."""
    return " => ".join(" + ".join(map(_described, tier.members)) for tier in plan.tiers)


def cause_of(error: BaseException) -> str:
    """Return an error with what to do about it, and the errors behind it, without the attempts that are listed anyway."""
    found: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(found) < _MOST_CAUSES:
        text = getattr(behind, "summary", "") or getattr(behind, "message", "") or str(behind)
        hint = getattr(behind, "hint", "") if behind is error else ""
        found.append(_clean(f"{type(behind).__name__}{': ' * bool(text)}{text}{f' ({hint})' if hint else ''}"))
        behind = behind.__cause__
    return ", because of ".join(found)


def _clean(text: str) -> str:
    line = " ".join(scrub(text[: 2 * _LONGEST]).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _attempts(made: list[Attempt]) -> list[str]:
    """Return the attempts, those that ended alike together; of a great many, the first and the last ones."""
    told = [_attempt(list(alike)) for _, alike in groupby(made, key=lambda one: (one.name, one.error_type, one.error))]
    left_out = len(told) - 2 * _MOST_ATTEMPTS
    return told if left_out <= 0 else [*told[:_MOST_ATTEMPTS], f"{left_out} more", *told[-_MOST_ATTEMPTS:]]


def _attempt(alike: list[Attempt]) -> str:
    """Return one attempt, or several in a row at one model that ended alike."""
    one = alike[0]
    fastest, slowest = min(each.latency_ms for each in alike), max(each.latency_ms for each in alike)
    result = "ok" if one.error_type is None else one.error_type
    times = "" if len(alike) == 1 else f" to {slowest:.0f} ms, {len(alike)} times"
    text = f"{one.name}: {result} in {fastest:.0f}{times or ' ms'}"
    return f"{text}: {_clean(one.error)}" if one.error else text


def _tiers(plan: Plan, results: list[TierResult], skipped: Mapping[int, str]) -> list[str]:
    """Return the verdict on each tier up to the last one that was reached, and why those without a result were skipped."""
    by_number = {result.tier: result for result in results}
    texts = []
    for number in range(max({*by_number, *skipped}) + 1):
        result = by_number.get(number)
        if result is None:
            why = skipped.get(number, "")
            texts.append(f"{plan.tiers[number].title}: skipped{': ' * bool(why)}{_clean(why)}")
            continue
        verdict = result.verdict
        sure = "" if verdict.confidence is None else f" with confidence {verdict.confidence:.3g}"
        what = "accepted" if verdict.accepted else "not accepted" if result.samples else "no answer"
        texts.append(f"{result.name or plan.tiers[number].title}: {what}{sure}: {_clean(verdict.reason)}")
    return texts


def _described(member: Member) -> str:
    names = " -> ".join(candidate.name for candidate in member.candidates)
    return names + (f" x{member.samples}" if member.samples > 1 else "")
