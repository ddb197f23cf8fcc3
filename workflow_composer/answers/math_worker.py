r"""The worker process that compares formulas; `workflow_composer.answers.mathematics` starts this file by its path.

The protocol is lines of JSON. The first line in is ``sys.path``; the reply is ``{"ready": true}`` or ``{"error": why}``.
Each further line ``{"a": latex, "b": latex, "limit": seconds}`` gets ``true``, ``false``, or ``null`` if memory ran out.
With ``"b": null`` it gets the value of a constant instead: ``"3/a"`` (hexadecimal) if it is rational, ``"~1.414..."`` (20
digits) if it is real, else ``false``.
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
from contextlib import suppress
from functools import lru_cache
from typing import Any

MEMORY = 2 << 30
"""Limit on its address space in bytes; sympy itself takes less than a fifth of it."""
LARGEST = 1 << 14
"""Bits of the numerator and denominator of an exact value; a larger one is rounded."""
DIGITS = 20
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
        same, value = _comparison()
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
            answer = value(question["a"]) if question["b"] is None else same(question["a"], question["b"])
        except MemoryError:
            answer = None
        print(json.dumps(answer), file=answers, flush=True)


def _comparison() -> tuple[Any, Any]:
    """Return a symmetric test for equality of two formulas, and a function from a formula to its value.

    math-verify's own test is not symmetric, and takes numbers for equal that differ by little: 2^{-98} and 2^{-99}.
    """
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

    def value(formula: str) -> str | bool:
        try:
            found = parsed(formula)
            return _value(found[0]) if found else False
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  # as above
            return False

    _limit(resource.RLIMIT_AS, MEMORY)
    same("1", "2")  # builds the tables that the first comparison needs, as does that of expressions
    with suppress(MemoryError):  # not here the reason for giving up
        same("2x+2", "x+1")
    return same, value


def _value(expression: Any) -> str | bool:
    if not getattr(expression, "is_number", False):
        return False
    exact = expression.doit()
    if exact.is_Rational and max(int(exact.p).bit_length(), int(exact.q).bit_length()) <= LARGEST:
        return f"{int(exact.p):x}/{int(exact.q):x}"
    number = exact.evalf(DIGITS)
    return f"~{number}" if number.is_Float else False


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
