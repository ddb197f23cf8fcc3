"""Choosing requests from the metrics: by task, model, error and key; and one request by its ID."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.metrics.summary import metrics_since, read_line
from workflow_composer.storage.lines import lines

ANY_ERROR = "any"
"""Instead of an error's type: every failed request."""

LAST = "last"
"""Instead of a request's ID: the last one of the file."""

Owns = Callable[[str], bool]
"""Whether a request with this ID is a key's own."""

_FORMS = ("chatcmpl-", "cmpl-", "msg_", "resp_")
"""What the forms of the API put before a request's ID."""
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests to read. None: all. ``model`` is the model that answered, or the profile's name of it.

    ``error`` is an error's type, or whose fault it was (``caller``, ``server``, ``ours``), or `ANY_ERROR`. ``owns`` tells a
    key's own requests by their IDs.
    """

    task: str | None = None
    model: str | None = None
    error: str | None = None
    owns: Owns | None = None

    def __call__(self, metric: Mapping[str, Any]) -> bool:
        """Whether a request is among them."""
        return (
            self.task in (None, metric["task_type"])
            and self.model in (None, metric["model_used"], metric["candidate"])
            and (self.error is None or self._failed(metric))
            and (self.owns is None or self.owns(str(metric.get("request_id", ""))))
        )

    def _failed(self, metric: Mapping[str, Any]) -> bool:
        wanted = {metric.get("error"), metric.get("fault"), ANY_ERROR}
        return not metric["success"] and self.error in wanted


def found_request(path: Path, request_id: str) -> list[Mapping[str, Any]]:
    """Return the metric lines of a request, in their order: usually one.

    ``request_id`` may be its beginning, and may have what a form of the API puts before it (``chatcmpl-``); `LAST` is the
    file's last request. Raises `InputError` if the file has no such request, or several that begin so.
    """
    wanted = request_id.strip()
    for form in _FORMS:
        wanted = wanted.removeprefix(form)
    if not wanted:
        raise InputError("the request ID is empty", hint="it is in the header x-workflow-composer-request-id")
    if not path.exists():
        raise InputError(f"no metrics file at {path}", hint="send a request first, or name another file with --file")
    if wanted == LAST:
        return _last(path)
    needle = json.dumps(wanted)[1:-1].encode()
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines(path):
        if needle in line and (metric := read_line(line)) is not None:
            identity = str(metric.get("request_id", ""))
            if identity.startswith(wanted):
                found.setdefault(identity, []).append(metric)
    if wanted in found:
        return found[wanted]
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise InputError(f"no request {wanted!r} in {path}", hint=_where_else(path))
    named = ", ".join(list(found)[:_MOST_NAMED]) + ", ..." * (len(found) > _MOST_NAMED)
    raise InputError(f"{len(found)} requests begin with {wanted!r}", hint=f"write more of one: {named}")


def _last(path: Path) -> list[Mapping[str, Any]]:
    last = None
    for line in lines(path):
        last = line if line.strip() else last
    found = None if last is None else read_line(last)
    if found is None:
        raise InputError(f"the last line of {path} is no request", hint="name the request by its ID")
    return [found]


def _where_else(path: Path) -> str:
    """Say what the file has instead."""
    first = last = None
    for _, at in metrics_since(path, None):
        first = at if first is None else min(first, at)
        last = at if last is None else max(last, at)
    if first is None or last is None:
        return "it has no requests; name another file with --file"
    return f"it has those from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC; name another file with --file"


# --------------------------------------------------------------------------------------------------------------- explained

NOT_RECORDED = "with debug_routing: true in the profile, or BIOPIPELINES_DEBUG_ROUTING=1, plan, attempts and causes are kept"


def explained(metric: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a request, as titles and texts; never its prompt."""
    decision = metric.get("decision") or {}
    router = f", router {metric['router']}" if metric.get("router") else ""
    rows = [
        ("request", str(metric.get("request_id", ""))),
        ("time", f"{metric['timestamp']}, {metric['latency_ms']:.0f} ms, of these {metric['overhead_ms']:.2f} ms overhead"),
        ("strategy", f"{metric['strategy']}{router}"),
        ("task", metric["task_type"]),
        ("context", metric.get("context") or ""),
        ("plan", decision.get("plan") or ""),
        ("reason", metric.get("reason") or ""),
        ("alarm", metric.get("alarm") or ""),
        *(("left out", text) for text in decision.get("left_out", ())),
        *(("note", text) for text in decision.get("notes", ())),
        *(("attempt", text) for text in decision.get("attempts", ())),
        *(("tier", text) for text in decision.get("tiers", ())),
        ("result", _result(metric)),
        ("error", decision.get("error") or ""),
        ("cost", _cost(metric)),
    ]
    if not decision:
        rows.append(("more", NOT_RECORDED))
    return [(title, text) for title, text in rows if text]


def _result(metric: Mapping[str, Any]) -> str:
    failed = metric["fallback_depth"]
    after = f", after {failed} failed candidate{'s' * (failed != 1)}" if failed else ""
    place = f"tier {metric.get('tier', 0) + 1}{after}; calls: {metric.get('attempts', 1)}"
    if metric["success"]:
        return f"answered by {metric['model_used'] or metric['candidate']} ({place})"
    fault = f", fault: {metric['fault']}" if metric.get("fault") else ""
    last = f", last at {metric['candidate']}" if metric["candidate"] else ""
    return f"no answer: {metric.get('error')}{fault}{last} ({place})"


def _cost(metric: Mapping[str, Any]) -> str:
    tokens = f"{metric['prompt_tokens']} prompt and {metric['completion_tokens']} completion tokens"
    known = metric.get("cost_known") is not False
    cost = f"${metric['cost']:.6g}" if known else f"at least ${metric['cost']:.6g}" if metric["cost"] else "unknown"
    return f"{cost}{' (estimated)' * (metric.get('estimated') is True)}, {tokens}"
