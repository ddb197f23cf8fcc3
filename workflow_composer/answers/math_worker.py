r"""The worker process that compares formulas; `workflow_composer.answers.mathematics` starts this file by its path.

The protocol is lines of JSON. The first line in is ``sys.path``; the reply is ``{"ready": true}`` or ``{"error": why}``.
Each further line ``{"a": latex, "b": latex, "limit": seconds}`` gets ``true``, ``false``, or ``null`` if memory ran out.
The parent kills the worker if a comparison takes too long. The system kills it when the parent dies (Linux) and when it
uses far more CPU time than the limit. It imports nothing from this package.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

MEMORY = 2 << 30
"""Limit on its address space in bytes; sympy itself takes less than a fifth of it."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Compare until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not be mistaken for a reply
    logging.disable(logging.CRITICAL)
    _die_with(int(sys.argv[1]))
    sys.path[:] = json.loads(sys.stdin.readline() or "[]")
    try:
        same = _comparison()
        ready: Any = {"ready": True}
    except Exception as error:  # noqa: BLE001  # the parent reports any failure of the library
        ready = {"error": repr(error)}
    print(json.dumps(ready), file=answers, flush=True)
    if "error" in ready:
        return
    for line in sys.stdin:
        question = json.loads(line)
        _bound_processor_time(question["limit"])
        try:
            answer = same(question["a"], question["b"])
        except MemoryError:
            answer = None
        print(json.dumps(answer), file=answers, flush=True)


def _comparison() -> Any:
    """Return a symmetric test for equality of two formulas; math-verify's own test is not symmetric."""
    from math_verify import LatexExtractionConfig, parse, verify

    found_in = [LatexExtractionConfig(boxed_match_priority=0)]

    @lru_cache(maxsize=256)
    def parsed(formula: str) -> Any:
        return parse(f"${formula}$", found_in, parsing_timeout=None)

    def same(a: str, b: str) -> bool:
        try:
            one, other = parsed(a), parsed(b)
            return bool(verify(one, other, timeout_seconds=None) or verify(other, one, timeout_seconds=None))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # what the library cannot parse equals nothing
            return False

    _limit(resource.RLIMIT_AS, MEMORY)
    same("1", "2")  # builds the tables that the first comparison needs
    return same


def _die_with(parent: int) -> None:
    """Ask the system to kill this process when its parent dies, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _bound_processor_time(limit: float) -> None:
    """Let the system kill a comparison that the parent failed to kill."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + limit) + 5)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    if most == resource.RLIM_INFINITY or value < most:
        resource.setrlimit(kind, (value, most))


if __name__ == "__main__":
    main()
