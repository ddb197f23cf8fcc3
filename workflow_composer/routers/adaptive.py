"""The adaptive router: caches the decisions of an expensive router and bounds how often that router is consulted.

A decision takes one of three paths, as for the tokens of a model (`workflow_composer.moe.routing.three_paths`): a table of
known kinds of requests, a recent decision for the same request, or the wrapped router.
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
from workflow_composer.execution.readers import DataReader, may_read
from workflow_composer.moe.routing.three_paths import ThreePaths, Way
from workflow_composer.plan import Plan
from workflow_composer.routers.base import Router, RouterContext, RouterSettings, described
from workflow_composer.storage.lines import objects
from workflow_composer.types import LLMRequest, LLMResponse, ResourceStatus, texts

# ---------------------------------------------------------------------------------------------------------- request shapes
#
# The known kinds of requests, from a file and from earlier decisions of the wrapped router.

_SHAPE = '{"shape": "...", "target": "a model or role"}'
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CODE = re.compile(r"```|^\s*(?:def|class|import|#include|function|SELECT)\b", re.MULTILINE)


def shape_of(request: LLMRequest) -> str:
    """Return a request's kind as text: task, model, form, needs, length, and whether it contains code or numbers.

    The length is in characters, rounded up to a power of four.

    >>> shape_of(LLMRequest.of("What is 12 + 7?", task_type="maths"))
    'maths chat 16 numbers'
    """
    text = "\n".join(_texts(request))
    length = 16
    while length < len(text):
        length *= 4
    marks = [mark for mark, form in (("code", _CODE), ("numbers", _NUMBER)) if form.search(text)]
    model = [f"model={request.model}"] if request.model else []
    bare = ["completion"] if request.kind == "completion" else []  # a bare completion cannot be voted on
    return " ".join([request.task_type, *model, *bare, *sorted(request.needs), str(length), *marks])


def key_of(request: LLMRequest, *, digits_alike: bool) -> int:
    """Return a 64-bit hash of everything in a request that a router may read, except its id and metadata.

    Texts are case-folded and their white space is collapsed; with ``digits_alike``, all numbers are treated as equal.
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
        request.n,
        request.vote_by,
        repr(request.form),
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
    """The decisions for one shape: plans (None: no plan) with their counts; ``when`` is the time of the last one."""

    when: float
    asked: int = 0
    plans: list[tuple[Plan | None, int]] = field(default_factory=list)


class ShapeTable:
    """Shapes and their plans; at most ``size`` shapes, and a few plans per shape. Not thread-safe.

    A shape is known after ``least`` decisions of which at least the share ``agreement`` were the same plan. It expires
    ``ttl`` seconds after the last decision.
    """

    def __init__(self, *, least: int, agreement: float, ttl: float, size: int) -> None:
        self.least, self.agreement, self.ttl, self.size = least, agreement, ttl, size
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kinds)

    def known(self, shape: str, now: float) -> tuple[bool, Plan | None]:
        """Return whether the shape is known, and its plan (None: the wrapped router has none for it)."""
        kind = self._current(shape, now)
        if kind is None or kind.asked < self.least:
            return False, None
        plan, count = max(kind.plans, key=lambda entry: entry[1])
        return count >= self.agreement * kind.asked, plan

    def usual(self, shape: str, now: float) -> Plan | None:
        """Return the most frequent plan for the shape, even if it is rare; None if there is none."""
        kind = self._current(shape, now)
        return None if kind is None else max(kind.plans, key=lambda entry: entry[1])[0]

    def learn(self, shape: str, plan: Plan | None, now: float) -> None:
        """Record a decision of the wrapped router."""
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
    """Whether two plans are equal except for their reasons."""
    if one is None or other is None:
        return one is other
    return (one.tiers, one.budget, one.gapless) == (other.tiers, other.budget, other.gapless)


def read_shapes(path: Path) -> Mapping[str, str]:
    """Return target by shape, from JSON lines ``{"shape": ..., "target": ...}``. Raises `ConfigError`, naming the line."""
    found: dict[str, str] = {}
    try:
        for number, entry in objects(path, form=_SHAPE):
            shape, target = entry.get("shape"), entry.get("target")
            if not (isinstance(shape, str) and isinstance(target, str)):
                raise ConfigError(f"{path}:{number}: shape and target must both be text", hint=f"write {_SHAPE}")
            found[shape] = target
    except InputError as error:
        raise ConfigError(f"cannot read the table of shapes: {error.message}", hint=error.hint) from None
    return found


class AdaptiveSettings(RouterSettings):
    """Settings of `AdaptiveRouter`."""

    router: str = Field(description="name of the wrapped router, whose decisions are expensive")
    settings: Mapping[str, Any] = Field(default={}, description="the wrapped router's own settings")
    share: float = Field(
        0.15,
        ge=0,
        le=1,
        description="for every n, the wrapped router decides at most `share` * (n + 1) + `start` of the first n requests",
    )
    start: int = Field(20, ge=0, description="constant part of that bound")
    ttl: float = Field(300.0, gt=0, description="seconds for which a decision is reused for the same request")
    size: int = Field(1000, ge=1, description="maximum number of cached decisions, and of known kinds of requests")
    digits_alike: bool = Field(False, description="whether requests that differ only in their numbers count as the same")
    least: int = Field(10, ge=1, description="minimum decisions about a kind of request before it is known")
    agreement: float = Field(0.95, gt=0.5, le=1, description="minimum share of these decisions that must be equal")
    table_ttl: float = Field(3600.0, gt=0, description="seconds after which a known kind must be learned again")
    shapes: str | None = Field(
        None, description="file of kinds that are known from the start: JSON lines with `shape` and `target`"
    )


class AdaptiveRouter(Router):
    """Reproduces the plans of the wrapped router, mostly without calling it. Thread-safe.

    A plan's reason starts with its path: ``table``, ``cache``, ``asked`` or ``forced``. ``forced`` means that the bound was
    reached and a guess was used: the most frequent plan for such requests, or else the profile's route for the task. The
    router stores plans and hashes, never texts. It forgets them when the status of servers or keys changes; a change of
    strategy creates a new router.
    """

    name: ClassVar[str] = "adaptive"
    Settings: ClassVar[type[RouterSettings]] = AdaptiveSettings

    def __init__(self, context: RouterContext, settings: object = None) -> None:
        super().__init__(context, settings)  # type: ignore[arg-type]  # whatever it is, the model checks it
        assert isinstance(self.settings, AdaptiveSettings)
        chosen = self._chosen = self.settings
        if chosen.router == self.name:
            raise ConfigError("an adaptive router cannot wrap another adaptive router")
        self.inner = context.router(chosen.router, chosen.settings)
        if not self.inner.repeatable:
            raise ConfigError(
                f"an adaptive router cannot wrap router {chosen.router!r}, whose plans must not be reused",
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
        """Return the wrapped router's actual or probable plan; None if it has none. Raises what that router raises.

        A private request is planned by the wrapped router, and nothing is learned from it: a later plan would tell of it.
        """
        if not may_read(DataReader.LEARNER, request):
            return self.inner.plan(request, resources)
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
        """Return requests by path, their shares, and the largest share of wrapped-router calls; see `ThreePaths.counts`."""
        return self._paths.counts()

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:
        """Pass the response to the wrapped router."""
        self.inner.answered(request, response)

    async def aclose(self) -> None:
        """Close the wrapped router."""
        await self.inner.aclose()

    # ---------------------------------------------------------------------------------------------------------- parts

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
        """Forget all plans if the servers or keys have changed, because plans depend on them."""
        now = _what_counts(resources)
        if now != self._made_for:
            self._paths.cache.clear()
            self._table.clear()
            self._made_for = now


_WORDS = {Way.FAST: "table", Way.CACHED: "cache", Way.LEARNED: "asked", Way.FORCED: "forced"}


def _what_counts(resources: ResourceStatus) -> tuple[object, ...]:
    """Return the part of the resource status that plans may depend on, without probe times and latencies."""
    return (
        tuple((name, status.healthy, status.models) for name, status in resources.endpoints.items()),
        tuple(resources.cloud_apis.items()),
        resources.slurm_available,
        resources.embedded_available,
    )
