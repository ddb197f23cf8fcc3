"""The metrics of a vLLM server (``/metrics``), which count the requests of all its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The share of the cache in use, 0 to 1: its name, and its name in vLLM before 0.10."""
GENERATED = "vllm:generation_tokens_total"
PROMPT = "vllm:prompt_tokens_total"
FINISHED = "vllm:request_success_total"
STARTED = "process_start_time_seconds"

_MOST: dict[str, float] = dict.fromkeys((RUNNING, WAITING, *CACHE), 1e6) | dict.fromkeys(
    (GENERATED, PROMPT, FINISHED, STARTED), math.inf
)
"""The metrics to read and their upper bounds: no server has a million requests; counters are unbounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Running and waiting requests, share of the cache in use, tokens generated since the start. None: not reported.

    ``requests`` is the number of running and waiting ones. ``work`` increases whenever the server does something: prompt
    tokens, generated tokens and finished requests. ``started`` is the start time of the server's process in seconds since
    1970, because counters of different processes cannot be compared.
    """

    requests: int | None = None
    running: int | None = None
    waiting: int | None = None
    cache: float | None = None
    tokens: float | None = None
    work: float = 0.0
    started: float | None = None


def read_metrics(text: str) -> Readings:
    r"""Parse a page in Prometheus' text format; for several engines, add the counts and use the fullest cache.

    If one engine's value is invalid, the whole count is unknown: the server may be busy although the others report 0.

    >>> read_metrics('vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 1.0\n').waiting
    3
    """
    found: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _MOST:
            found.setdefault(name, []).append(_value(line, _MOST[name]))
    said = {name: [value for value in values if value is not None] for name, values in found.items()}
    return Readings(
        requests=_count([*found.get(RUNNING, ()), *found.get(WAITING, ())]),
        running=_count(found.get(RUNNING, [])),
        waiting=_count(found.get(WAITING, [])),
        cache=max((value for name in CACHE for value in said.get(name, ())), default=None),
        tokens=sum(said[GENERATED]) if said.get(GENERATED) else None,
        work=sum(sum(said.get(name, ())) for name in (GENERATED, PROMPT, FINISHED)),
        started=max(said.get(STARTED, ()), default=None),
    )


def _value(line: str, most: float) -> float | None:
    """Return the value of a line. Labels end with the last brace, so that no label's value is mistaken for it."""
    words = line.rpartition("}")[2].split() if "}" in line else line.split()[1:]
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) and 0 <= value < most else None


def _count(values: list[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(sum(known)) if known and len(known) == len(values) else None
