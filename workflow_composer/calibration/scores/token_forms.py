"""The forms in which people have log-probabilities: numbers, samples and recordings, OpenAI's and vLLM's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from workflow_composer.errors import InvalidProbability

ROUNDING = 0.01
"""Rounding can make a log-probability slightly positive."""

_FORMS = "give numbers, or the `logprobs` of an answer as OpenAI, vLLM or this package returns them"

Tokens = tuple[list[float], list[list[float]] | None]
"""Log-probabilities of the chosen tokens, and of the likeliest alternatives of each; None: there are none."""


def read_logprobs(answer: Any) -> Tokens | None:
    """Return the log-probabilities (nats) of an answer's tokens; None if it has none.

    ``answer``: numbers; tokens with ``logprob`` and ``top`` or ``top_logprobs``; an object or mapping with ``logprobs``,
    such as a `Sample`, a line of a recording or a choice; a response with ``choices``, ``output``, ``outputs`` or
    ``samples``, of which the first counts; llama.cpp's ``completion_probabilities``; or vLLM's list of mappings from token
    to log-probability, the chosen token first. A mapping without any of these has none. Raises `InvalidProbability` for
    anything else, and for numbers that are no log-probabilities.

    >>> read_logprobs([-0.1, -0.2]), read_logprobs({"content": [{"token": "4", "logprob": -0.1, "top_logprobs": []}]})
    (([-0.1, -0.2], None), ([-0.1], None))
    """
    found = _tokens_in(answer)
    if field_of(found, "token_logprobs") is not None:
        return _parallel(field_of(found, "token_logprobs"), field_of(found, "top_logprobs"))
    if found is None or (isinstance(found, Mapping) and "content" not in found):
        return None
    if not is_list(found):
        found = field_of(found, "content", ABSENT)
    if found is None or (isinstance(found, str) and isinstance(answer, Mapping)):
        return None
    if not is_list(found):
        raise InvalidProbability(f"no log-probabilities in {type(answer).__name__}", hint=_FORMS)
    read = [_token(token, number) for number, token in enumerate(found, start=1)]
    tops = [top for _, top in read]
    return ([value for value, _ in read], tops if all(tops) else None) if read else None


_ANSWERS = ("choices", "outputs", "samples", "output")
"""Where responses have their answers: OpenAI's, vLLM's, this package's, and those of OpenAI's Responses."""
_TOKENS = ("logprobs", "completion_probabilities")
"""Where answers have their log-probabilities; the latter is llama.cpp's own."""


def _tokens_in(answer: Any) -> Any:
    """Return what an answer, or the first one of a response, has as log-probabilities; anything else as it is."""
    found = answer
    for name in _ANSWERS:
        inner = field_of(found, name)
        if is_list(inner):
            found = next((one for one in inner if field_of(one, "type", "message") == "message"), None)
    if found is not answer and is_list(parts := field_of(found, "content")) and len(parts):
        found = parts[0]
    if not is_list(found):
        for name in _TOKENS:
            if (inner := field_of(found, name, ABSENT)) is not ABSENT:
                return inner
    return found


ABSENT: Any = object()


def field_of(value: Any, name: str, default: Any = None) -> Any:
    """Return an entry of a mapping, or an attribute of anything else."""
    return value.get(name, default) if isinstance(value, Mapping) else getattr(value, name, default)


def is_list(value: Any) -> bool:
    """Whether it is a list of any library: a sequence, an array, a tensor; not a text or a mapping."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _parallel(values: Sequence[Any], tops: Sequence[Any] | None) -> Tokens | None:
    """Read a text completion's parallel lists; the first token of an echoed prompt has no value."""
    kept = [number for number, value in enumerate(values) if not (number == 0 and value is None)]
    if not kept:
        return None
    chosen = [_number(values[number], number + 1) for number in kept]
    if tops is None or len(tops) != len(values) or not all(tops[number] for number in kept):
        return chosen, None
    return chosen, [tops_of(tops[number], number + 1) for number in kept]


def _token(token: Any, number: int) -> tuple[float, list[float]]:
    """Return one token's log-probability and those of its alternatives."""
    if isinstance(token, Mapping) and "logprob" not in token:
        values = tops_of(token, number)
        if not values:
            raise InvalidProbability(f"token {number} has no log-probability", hint=_FORMS)
        return values[0], values  # vLLM lists the chosen token first, whatever its rank
    value = field_of(token, "logprob", ABSENT)
    if value is ABSENT:
        return _number(token, number), []
    alternatives = field_of(token, "top_logprobs")
    return _number(value, number), tops_of(field_of(token, "top") if alternatives is None else alternatives, number)


def tops_of(found: Any, number: int) -> list[float]:
    """Read alternatives: a mapping, or a list of tokens, pairs or numbers."""
    if found is None or not len(found):
        return []
    values = list(found.values()) if isinstance(found, Mapping) else list(found)
    pairs = [one[1] if isinstance(one, (list, tuple)) else field_of(one, "logprob", one) for one in values]
    return [_number(value, number) for value in pairs]


def _number(value: Any, number: int) -> float:
    """Return a log-probability as a float. Raises `InvalidProbability` if it is none."""
    if isinstance(value, Real) or (hasattr(value, "item") and not isinstance(value, bool)):
        found = float(value)
        if found <= ROUNDING:
            return min(0.0, found)
    what = "not a log-probability, which is at most 0"
    probability = isinstance(value, Real) and 0.0 < float(value) <= 1.0
    hint = "of a probability, give math.log(p)" if probability else _FORMS
    raise InvalidProbability(f"token {number}: {value!r} is {what}", hint=hint)


def read_alternatives(top: Sequence[Any], tokens: int) -> list[list[float]]:
    """Read the alternatives of so many tokens. Raises `InvalidProbability` if there are not as many."""
    if len(top) != tokens:
        hint = "give the alternatives of every token"
        raise InvalidProbability(f"there are alternatives for {len(top)} tokens, but {tokens} tokens", hint=hint)
    return [tops_of(one, number) for number, one in enumerate(top, start=1)]
