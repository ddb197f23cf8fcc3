"""What the adaptive router knows of kinds of requests: from a file, and from what was decided when it asked."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.storage.lines import objects
from workflow_composer.types import LLMRequest, Plan, texts

_SHAPE = '{"shape": "...", "target": "a model or role"}'
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CODE = re.compile(r"```|^\s*(?:def|class|import|#include|function|SELECT)\b", re.MULTILINE)


def shape_of(request: LLMRequest) -> str:
    """The kind of a request in a word: task, form, needs, length, and whether there are code and numbers in it.

    Lengths are characters, rounded up to a power of four.

    >>> shape_of(LLMRequest.of("What is 12 + 7?", task_type="maths"))
    'maths chat 16 numbers'
    """
    text = "\n".join(_texts(request))
    length = 16
    while length < len(text):
        length *= 4
    marks = [mark for mark, form in (("code", _CODE), ("numbers", _NUMBER)) if form.search(text)]
    model = [f"model={request.model}"] if request.model else []
    bare = ["completion"] if request.kind == "completion" else []  # which no vote can be taken of
    return " ".join([request.task_type, *model, *bare, *sorted(request.needs), str(length), *marks])


def key_of(request: LLMRequest, *, digits_alike: bool) -> int:
    """64 bits for everything of a request that a router may look at, but its id and metadata.

    Texts are compared in lower case and with single spaces; with ``digits_alike``, all numbers in them are the same.
    """
    said = [
        (str(message.get("role")), _normal(text, digits_alike=digits_alike))
        for message in request.messages
        for text in texts(message)
    ]
    rest = (
        request.kind,
        request.task_type,
        request.model,
        sorted(request.needs),
        request.max_tokens,
        request.temperature,
        request.top_p,
        request.budget,
        request.timeout,
        repr(request.extra),
    )
    return int.from_bytes(blake2b(repr((said, rest)).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _normal(text: str, *, digits_alike: bool) -> str:
    plain = _SPACE.sub(" ", text).strip().casefold()
    return _NUMBER.sub("0", plain) if digits_alike else plain


def _texts(request: LLMRequest) -> list[str]:
    return [text for message in request.messages for text in texts(message)]


@dataclass(slots=True, eq=False)
class _Kind:
    """What was decided for one shape: plans (or that there is none), each with a count; asked last at ``when``."""

    when: float
    asked: int = 0
    plans: list[tuple[Plan | None, int]] = field(default_factory=list)


class ShapeTable:
    """Shapes and what becomes of them; at most ``size`` shapes, and a few plans each. Not thread-safe.

    A shape is known once it was asked about ``least`` times and a share ``agreement`` of the plans were the same. What is
    known is forgotten ``ttl`` seconds after the last time that it was asked.
    """

    def __init__(self, *, least: int, agreement: float, ttl: float, size: int) -> None:
        self.least, self.agreement, self.ttl, self.size = least, agreement, ttl, size
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kinds)

    def known(self, shape: str, now: float) -> tuple[bool, Plan | None]:
        """Whether the shape is known, and its plan (None: the inner router has none for it)."""
        kind = self._current(shape, now)
        if kind is None or kind.asked < self.least:
            return False, None
        plan, count = max(kind.plans, key=lambda entry: entry[1])
        return count >= self.agreement * kind.asked, plan

    def usual(self, shape: str, now: float) -> Plan | None:
        """The plan that was made most often for the shape, however seldom; None where there was none."""
        kind = self._current(shape, now)
        return None if kind is None else max(kind.plans, key=lambda entry: entry[1])[0]

    def learn(self, shape: str, plan: Plan | None, now: float) -> None:
        """One more decision of the inner router."""
        kind = self._current(shape, now) or _Kind(now)
        self._kinds[shape] = kind
        self._kinds.move_to_end(shape)
        kind.when, kind.asked = now, kind.asked + 1
        for at, (other, count) in enumerate(kind.plans):
            if _same(other, plan):
                kind.plans[at] = (plan, count + 1)
                break
        else:
            if len(kind.plans) >= _MOST_PLANS:
                kind.plans.remove(min(kind.plans, key=lambda entry: entry[1]))
            kind.plans.append((plan, 1))
        while len(self._kinds) > self.size:
            self._kinds.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._kinds.clear()

    def _current(self, shape: str, now: float) -> _Kind | None:
        kind = self._kinds.get(shape)
        return kind if kind is not None and now - kind.when < self.ttl else None


_MOST_PLANS = 8


def _same(one: Plan | None, other: Plan | None) -> bool:
    """Whether two plans do the same; their reasons may differ."""
    if one is None or other is None:
        return one is other
    return (one.tiers, one.budget, one.gapless) == (other.tiers, other.budget, other.gapless)


def read_shapes(path: Path) -> Mapping[str, str]:
    """Shape -> target, from JSON lines ``{"shape": ..., "target": ...}``. Raises `ConfigError`, naming the line."""
    found: dict[str, str] = {}
    try:
        for number, entry in objects(path, form=_SHAPE):
            shape, target = entry.get("shape"), entry.get("target")
            if not (isinstance(shape, str) and isinstance(target, str)):
                raise ConfigError(f"{path}:{number}: not a shape", hint=f"write {_SHAPE}")
            found[shape] = target
    except InputError as error:
        raise ConfigError(f"no table of shapes: {error.message}", hint=error.hint) from None
    return found
