"""What a vLLM server says of itself on ``/metrics``."""

from __future__ import annotations

import math
from dataclasses import dataclass

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The share of the cache in use, 0 to 1, by its name and by that of vLLM before 0.10."""
GENERATED = "vllm:generation_tokens_total"
PROMPT = "vllm:prompt_tokens_total"
FINISHED = "vllm:request_success_total"
STARTED = "process_start_time_seconds"

_NAMES = frozenset({RUNNING, WAITING, *CACHE, GENERATED, PROMPT, FINISHED, STARTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Requests that run and wait, share of the cache in use, tokens generated since the server's start. None: not said.

    ``work`` grows whenever the server does something: prompt tokens, generated tokens and finished requests. ``started`` is
    when the server's process began, in seconds since 1970: counters of two processes are not compared.
    """

    running: int | None = None
    waiting: int | None = None
    cache: float | None = None
    tokens: float | None = None
    work: float = 0.0
    started: float | None = None


def read_metrics(text: str) -> Readings:
    r"""The readings in a page of Prometheus' text form; of several engines, counts are added and the fullest cache counts.

    >>> read_metrics('vllm:num_requests_waiting{engine="0"} 2.0\nvllm:num_requests_waiting{engine="1"} 1.0\n').waiting
    3
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _NAMES and (value := _value(line)) is not None:
            found.setdefault(name, []).append(value)
    cache = [value for name in CACHE for value in found.get(name, ())]
    return Readings(
        running=_count(found.get(RUNNING)),
        waiting=_count(found.get(WAITING)),
        cache=max(cache, default=None),
        tokens=sum(found[GENERATED]) if GENERATED in found else None,
        work=sum(sum(found.get(name, ())) for name in (GENERATED, PROMPT, FINISHED)),
        started=max(found.get(STARTED, ()), default=None),
    )


def _value(line: str) -> float | None:
    """The sample of a line; nothing in a label's value can be taken for it, since labels end with the last brace."""
    words = line.rpartition("}")[2].split() if "}" in line else line.split()[1:]
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _count(values: list[float] | None) -> int | None:
    return None if values is None else int(sum(values))
