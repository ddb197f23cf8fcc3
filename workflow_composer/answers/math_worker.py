r"""The program of the process that compares mathematics: started by `workflow_composer.answers.mathematics`, by path.

It speaks lines of JSON. First it is told where Python finds its modules; it says ``{"ready": true}`` or ``{"error": why}``.
Then each line ``{"a": latex, "b": latex, "limit": seconds}`` is answered by ``true``, ``false``, or ``null`` where memory
ran out. It is killed by its parent when a comparison takes too long, and by the system when its parent dies (Linux), when it
uses far more processor time than the limit, or when it takes too much memory. It imports nothing of this package.
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
"""Bytes of address space that it may have; sympy itself takes less than a fifth of it."""
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Compare until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    logging.disable(logging.CRITICAL)
    _die_with(int(sys.argv[1]))
    sys.path[:] = json.loads(sys.stdin.readline() or "[]")
    try:
        same = _comparison()
        ready: Any = {"ready": True}
    except Exception as error:  # noqa: BLE001  # whatever is wrong with the library is told to the parent
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
    """The function that says whether two formulas are equal, in either order; math-verify's own is not symmetric."""
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
        except Exception:  # noqa: BLE001  # what the library cannot understand is not the same as anything
            return False

    _limit(resource.RLIMIT_AS, MEMORY)
    same("1", "2")  # builds the tables that the first comparison needs
    return same


def _die_with(parent: int) -> None:
    """Ask the system to kill this process when the one that started it is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _bound_processor_time(limit: float) -> None:
    """A second line of defence: the system ends a comparison that its parent did not."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + limit) + 5)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    if most == resource.RLIM_INFINITY or value < most:
        resource.setrlimit(kind, (value, most))


if __name__ == "__main__":
    main()
