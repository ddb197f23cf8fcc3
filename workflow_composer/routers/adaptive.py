"""The adaptive router: spares an expensive router most of its work, within a bound on how often it is asked.

Three paths, as for the tokens of a model (`workflow_composer.moe.routing.three_paths`): a table of known kinds of requests,
the decision made lately for the same request, or asking the router that it wraps.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.routing.three_paths import ThreePaths, Way
from workflow_composer.plan import Plan
from workflow_composer.routers.base import Router, RouterContext, RouterSettings, described
from workflow_composer.storage.lines import objects
from workflow_composer.types import LLMRequest, LLMResponse, ResourceStatus, texts

# ---------------------------------------------------------------------------------------------------------- adaptive table
#
# What the adaptive router knows of kinds of requests: from a file, and from what was decided when it asked.


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


pass  # MERGED


class AdaptiveSettings(RouterSettings):
    """Settings of `AdaptiveRouter`."""

    router: str = Field(description="the router that is wrapped: one that is expensive to ask; its name")
    settings: Mapping[str, Any] = Field(default={}, description="the wrapped router's own settings")
    share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="of the first n requests, at most `share` * (n + 1) + `start` are asked about, for every n",
    )
    start: int = Field(20, ge=0, description="how many may be asked about on top of that")
    ttl: float = Field(300.0, gt=0, description="seconds that a decision is used again for the same request")
    size: int = Field(1000, ge=1, description="decisions, and kinds of requests, that are remembered")
    digits_alike: bool = Field(False, description="whether requests that differ in their numbers only count as the same")
    least: int = Field(10, ge=1, description="decisions about one kind of request before it is known")
    agreement: float = Field(0.95, gt=0.5, le=1, description="share of these that must be the same")
    table_ttl: float = Field(3600.0, gt=0, description="seconds after which a known kind must be learned anew")
    shapes: str | None = Field(
        None, description="file of kinds that are known from the start: JSON lines of `shape` and `target`"
    )


class AdaptiveRouter(Router):
    """Plans as the router that it wraps would, mostly without asking it. Thread-safe.

    A plan's reason begins with the path that was taken: ``table``, ``cache``, ``asked`` or ``forced`` (the bound was
    reached, and the next best guess was used: what such requests usually get, else where the profile routes the task). What
    is remembered is plans and hashes, never texts. All of it is forgotten where the strategy changes, because each strategy
    has a router of its own, and where what is known of servers and keys changes.
    """

    name: ClassVar[str] = "adaptive"
    Settings: ClassVar[type[RouterSettings]] = AdaptiveSettings

    def __init__(self, context: RouterContext, settings: object = None) -> None:
        super().__init__(context, settings)  # type: ignore[arg-type]  # whatever it is, the model checks it
        assert isinstance(self.settings, AdaptiveSettings)
        chosen = self._chosen = self.settings
        if chosen.router == self.name:
            raise ConfigError("an adaptive router wraps another kind of router, not itself")
        self.inner = context.router(chosen.router, chosen.settings)
        if not self.inner.repeatable:
            raise ConfigError(
                f"plans of router {chosen.router!r} are good for one moment only and must not be used again",
                hint="wrap another router",
            )
        self._paths = ThreePaths(share=chosen.share, extra=chosen.start, entries=chosen.size, ttl=chosen.ttl)
        self._table = ShapeTable(least=chosen.least, agreement=chosen.agreement, ttl=chosen.table_ttl, size=chosen.size)
        self._given = read_shapes(context.config.directory / chosen.shapes) if chosen.shapes else {}
        for target in self._given.values():
            context.candidates(target)
        self._decided: list[Plan | None] = [None] * chosen.size
        self._made_for: object = None
        self._clock = time.monotonic
        self._lock = threading.Lock()

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """The wrapped router's plan, or what it would probably be; None where it has none. Raises what it raises."""
        shape, now = shape_of(request), self._clock()
        keys = np.array([key_of(request, digits_alike=self._chosen.digits_alike)], np.uint64)
        with self._lock, self._paths.lock:
            self._forget_others(resources)
            known, plan = self._known(shape, request, resources, now)
            choice = self._paths.choose(1, np.arange(0 if known else 1), keys[:0] if known else keys)
            path = Way(int(choice.paths[0]))
            if path is Way.CACHED:
                plan = self._decided[int(choice.slots[0])]
            elif path is Way.FORCED:
                plan = self._table.usual(shape, now)
        if path is Way.LEARNED:
            plan = self.inner.plan(request, resources)
            self._keep(keys, shape, plan, resources, now)
        elif path is Way.FORCED and plan is None:
            plan = self._as_routed(request, resources)
        return None if plan is None else replace(plan, router=self.name, reason=f"{_WORDS[path]}: {plan.reason}")

    def counts(self) -> dict[str, float]:
        """Requests by path, shares, and the worst prefix's share of asking; see `ThreePaths.counts`."""
        return self._paths.counts()

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:
        """Let the wrapped router know."""
        self.inner.answered(request, response)

    async def aclose(self) -> None:
        """Close the wrapped router."""
        await self.inner.aclose()

    # ------------------------------------------------------------------------------------------------------ the parts

    def _known(self, shape: str, request: LLMRequest, resources: ResourceStatus, now: float) -> tuple[bool, Plan | None]:
        if (target := self._given.get(shape)) is not None:
            kept, left_out = self.usable(self.context.candidates(target), request, resources)
            if kept:
                return True, self.single_tier(kept, left_out, f"such requests go to {target}")
        return self._table.known(shape, now)

    def _keep(self, keys: Any, shape: str, plan: Plan | None, resources: ResourceStatus, now: float) -> None:
        with self._lock, self._paths.lock:
            if self._made_for != _what_counts(resources):
                return
            slot = int(self._paths.store(keys)[0])
            self._decided[slot] = plan
            self._table.learn(shape, plan, now)

    def _as_routed(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        target = self.target(request)
        if target is None:
            return None
        return self.single_tier(
            *self.usable(self.context.candidates(target), request, resources), described(request, target)
        )

    def _forget_others(self, resources: ResourceStatus) -> None:
        """Plans were made for the servers and keys that there were."""
        now = _what_counts(resources)
        if now != self._made_for:
            self._paths.cache.clear()
            self._table.clear()
            self._made_for = now


_WORDS = {Way.FAST: "table", Way.CACHED: "cache", Way.LEARNED: "asked", Way.FORCED: "forced"}


def _what_counts(resources: ResourceStatus) -> tuple[object, ...]:
    """What of the resources a router may have looked at; not when it was probed, and how quickly it answered."""
    return (
        tuple((name, status.healthy, status.models) for name, status in resources.endpoints.items()),
        tuple(resources.cloud_apis.items()),
        resources.slurm_available,
        resources.embedded_available,
    )
