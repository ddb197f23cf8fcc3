"""The cost of a call in dollars, forecast and paid: by tokens for a provider's API, by GPU time for local GPUs.

A GPU that serves many calls at once is paid for once. `GpuMeter` therefore divides each second among the calls in flight
(processor sharing), so that the charges add up to the time the GPU was busy, however the calls overlap.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.types import LLMRequest, Sample
from workflow_composer.usage import Delivered, Usage

if TYPE_CHECKING:
    from workflow_composer.config.strategy import ModelSpec


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million prompt tokens, per million completion tokens, and per hour of the GPU that serves the model.

    ``known`` is False if the profile sets neither both prices of tokens nor one of the GPU. A model that is free of charge
    has prices of 0. ``cached_per_million`` is the price of prompt tokens that the server read from its cache,
    ``reasoning_per_million`` that of completion tokens spent on reasoning; None: as all others.

    >>> price = Price(input_per_million=0.15, output_per_million=0.60)
    >>> round(price.cost(Usage(prompt_tokens=2_000, completion_tokens=500)), 6)
    0.0006
    """

    input_per_million: float = 0.0
    output_per_million: float = 0.0
    gpu_hour: float = 0.0
    known: bool = True
    cached_per_million: float | None = None
    reasoning_per_million: float | None = None

    @classmethod
    def of(cls, spec: ModelSpec) -> Price:
        """Return the price of a profile's model; missing prices are 0 and make the price unknown."""
        known = spec.gpu_hour_price is not None or None not in (spec.input_price, spec.output_price)
        return cls(
            spec.input_price or 0.0,
            spec.output_price or 0.0,
            spec.gpu_hour_price or 0.0,
            known,
            spec.cached_input_price,
            spec.reasoning_price,
        )

    def covers(self, usage: Usage) -> bool:
        """Whether the cost of a recorded call is known: the prices are, and so are the tokens that they apply to.

        Every prompt has tokens, so a count of 0 means that it was not recorded.
        """
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        return self.known and bool(
            (prompt or not self.input_per_million) and (prompt or answer or not self.output_per_million)
        )

    def cost(self, usage: Usage, gpu_seconds: float = 0.0) -> float:
        """Return the dollars for these tokens and ``gpu_seconds`` of the whole GPU, as measured by `GpuMeter.stop`."""
        tokens = usage.prompt_tokens * self.input_per_million + usage.completion_tokens * self.output_per_million
        if usage.cached_tokens and self.cached_per_million is not None:
            tokens += min(usage.cached_tokens, usage.prompt_tokens) * (self.cached_per_million - self.input_per_million)
        if usage.reasoning_tokens and self.reasoning_per_million is not None:
            reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
            tokens += reasoning * (self.reasoning_per_million - self.output_per_million)
        return tokens / 1e6 + gpu_seconds * self.gpu_hour / 3600.0


_VERSION = re.compile(
    r"(?:[-_@.](?:latest|preview|exp|\d{4}-\d{2}-\d{2}|\d{2}-\d{4}|\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{3}))+$"
)
_REGION = re.compile(r"^(?:(?:us|eu|apac|global)\.)?(?:[a-z0-9]+\.(?=[a-z]))?")
_ANY_VERSION = frozenset({"", "latest"})
_MOST_NAMES = 1000


def same_model(asked: str, answered: str) -> bool:
    """Whether two names mean one model: a dated snapshot, a tag, an alias, or a longer path of it.

    >>> same_model("gpt-4o", "gpt-4o-2024-08-06"), same_model("llama3", "library/llama3:latest")
    (True, True)
    >>> same_model("gpt-4o", "gpt-4o-mini"), same_model("gpt-4o-2024-05-13", "gpt-4o-2024-08-06")
    (False, False)
    """
    if asked == answered:
        return True
    (one, one_version, one_tag), (other, other_version, other_tag) = _parts(asked), _parts(answered)
    versions = one_version == other_version or one_version in _ANY_VERSION or other_version in _ANY_VERSION
    tags = one_tag == other_tag or one_tag in _ANY_VERSION or other_tag in _ANY_VERSION
    return one == other and versions and tags


def _parts(name: str) -> tuple[str, str, str]:
    """Split a model's name into base, version and tag."""
    last, _, tag = name.strip().lower().rstrip("/").rpartition("/")[2].partition(":")
    last = _REGION.sub("", last)
    found = _VERSION.search(last)
    return (last, "", tag) if found is None else (last[: found.start()], found[0].strip("-_@."), tag)


class ModelNames:
    """The names by which one model answers, and the prices of the profile's other models.

    ``known`` names mean the model that was asked for. ``asked`` is its name, None if any may answer; ``aliases`` are other
    names that mean it. ``others`` are the names and prices of further models. ``report`` gets each warning once.
    """

    def __init__(
        self,
        asked: str | None = None,
        aliases: Iterable[str] = (),
        others: Iterable[tuple[str, Price]] = (),
        *,
        name: str = "",
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.known: set[str | None] = {None, "", asked, *aliases}
        self._asked = asked
        self._others = tuple(others)
        self._name = name
        self._report = report
        self._warned: set[str] = set()

    def price(self, answered: str | None, own: Price) -> tuple[Price, bool]:
        """Return the price of the model that answered, and whether it is only estimated (as that of the model asked for).

        A price by GPU time stays: the GPU is the same, whatever runs on it.
        """
        if not answered or self._asked is None or any(name and same_model(name, answered) for name in self.known):
            if len(self.known) < _MOST_NAMES:
                self.known.add(answered)
            return own, False
        found = [price for name, price in self._others if name == answered]
        found += [price for name, price in self._others if same_model(name, answered)]
        priced = next((price for price in found if price.known and not price.gpu_hour), None)
        as_what = (
            f"the price of {answered[:200]!r}" if priced is not None else "its own price, as the profile has none for it"
        )
        what = "the GPU's time" if own.gpu_hour else as_what
        self.warn_once(
            f"model {answered}",
            f"{self._name}: model {self._asked!r} was asked for, but {answered[:200]!r} answered; it is charged by {what} "
            "(if the two are one model, list the name under `aliases` of the model in the profile)",
        )
        if own.gpu_hour:
            return own, False
        return (own, own.known) if priced is None else (priced, False)

    def warn_once(self, kind: str, text: str) -> None:
        """Report a warning the first time."""
        if kind not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(kind)
            self._report(text)


_MOST_WARNINGS = 20
"""A server may answer as another model each time."""


UNSEEN_ANSWER = 512
"""Assumed tokens per answer if the request sets no limit and no answer has been seen."""
CHARACTERS_PER_TOKEN = 4.0
_MEMORY = 20
"""Number of most recent calls in the means."""
_NOTHING = (0, 0, 0, 0, 0.0)
_ONE_TOKEN = 6.0
"""Mean characters of a stream's piece up to which it is taken for one token."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected tokens and GPU seconds of some calls."""

    usage: Usage
    gpu_seconds: float


class Forecast:
    """Means over one endpoint's last answers: tokens per prompt character, tokens per answer, GPU time per token.

    Running sums make both `learn` and `expect` constant-time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[int, int, int, int, float]] = deque()
        self._sums = _NOTHING
        self._longest: deque[float] = deque(maxlen=_MEMORY)
        self._beyond = 0
        self._streams: deque[tuple[int, int, int]] = deque(maxlen=_MEMORY)

    def learn(self, request: LLMRequest, usage: Usage, samples: int, gpu_seconds: float) -> None:
        """Record one successful call."""
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        call = (request.query_length if prompt else 0, prompt, answer, samples if answer else 0, gpu_seconds)
        with self._lock:
            seen = self._seen
            seen.append(call)
            gone = seen.popleft() if len(seen) > _MEMORY else _NOTHING
            old = self._sums
            self._sums = (
                old[0] + call[0] - gone[0],
                old[1] + call[1] - gone[1],
                old[2] + call[2] - gone[2],
                old[3] + call[3] - gone[3],
                old[4] + call[4] - gone[4],
            )
            if answer:
                self._longest.append(answer / samples)
                if request.max_tokens is not None and answer > request.max_tokens * samples:
                    self._beyond = _MEMORY  # the server does not keep to the limit, or counts more than it limits
                elif self._beyond:
                    self._beyond -= 1

    def most(self, request: LLMRequest, price: Price, samples: int = 1, calls: int = 1) -> tuple[float, float]:
        """Return the most dollars and tokens to expect of the prompts of ``calls`` calls and of ``samples`` answers.

        An answer is expected to be as long as the longest of the last ones, or as ``max_tokens`` if that is less and the
        server keeps to it; without both, and at a price by GPU time if no answer has been seen, it is infinite.
        """
        characters, prompts, answered, _, gpu = self._sums
        limit = 0 if request.kind == "embeddings" else request.max_tokens
        answer = max(self._longest, default=math.inf)
        if limit is not None and limit < answer and not (self._beyond and limit):
            answer = limit
        per_character = prompts / characters if characters else 1.0  # few languages have more tokens than characters
        prompt, answer = request.query_length * per_character * calls, answer * samples
        dollars, each = prompt * price.input_per_million, price.output_per_million
        if price.reasoning_per_million is not None and price.reasoning_per_million > each:
            each = price.reasoning_per_million
        if each and answer:
            dollars += answer * each
        dollars /= 1e6
        if price.gpu_hour:
            dollars += answer * max(gpu, 0.0) / answered * price.gpu_hour / 3600.0 if answered else math.inf
        return dollars, prompt + answer

    def gpu_seconds(self, tokens: int) -> float | None:
        """Return the expected GPU seconds of an answer of ``tokens`` tokens; None if no answer has been seen."""
        _, _, answered, _, gpu = self._sums
        return tokens * max(gpu, 0.0) / answered if answered else None

    def expect(self, request: LLMRequest, samples: int = 1, calls: int = 1) -> Expected:
        """Return the expected usage of ``samples`` answers; each call pays for the prompt. ``max_tokens`` is a limit."""
        characters, prompts, answered, drawn, gpu = self._sums
        answer = answered / drawn if drawn else UNSEEN_ANSWER
        if request.max_tokens is not None and (not drawn or request.max_tokens < answer) and not self._beyond:
            answer = request.max_tokens
        per_character = prompts / characters if characters else 1.0 / CHARACTERS_PER_TOKEN
        usage = Usage(round(request.query_length * per_character) * calls, round(answer * samples))
        return Expected(usage, usage.completion_tokens * max(gpu, 0.0) / answered if answered else 0.0)

    def of_prompt(self, request: LLMRequest, calls: int = 1) -> Usage:
        """Return the estimated usage of ``calls`` prompts without an answer."""
        return Usage(max(calls, self.expect(request, 0, calls).usage.prompt_tokens), estimated=True)

    def learn_pieces(self, delivery: Delivered, usage: Usage) -> None:
        """Record a whole stream: how many tokens its pieces, and their characters, have had.

        Reasoning may be counted without being delivered, so such a stream teaches nothing.
        """
        if delivery.uncounted and not delivery.counted and not usage.reasoning_tokens:
            with self._lock:
                self._streams.append((delivery.uncounted, delivery.characters, usage.completion_tokens))

    def tokens(self, delivery: Delivered) -> int:
        """Return the tokens of what a stream has delivered, at least one for each piece of content that came."""
        pieces, characters = delivery.uncounted, delivery.characters
        if not pieces:
            return delivery.counted
        seen = self._of_streams()
        if not seen[2]:
            found = pieces if characters <= _ONE_TOKEN * pieces else characters / CHARACTERS_PER_TOKEN
        elif 0.9 <= seen[2] / seen[0] <= 1.1 or not seen[1]:
            found = pieces * seen[2] / seen[0]
        else:
            found = characters * seen[2] / seen[1]
        return delivery.counted + max(1, round(found))

    def of_samples(self, samples: Sequence[Sample]) -> int:
        """Return the tokens of whole answers, which no server has counted."""
        return sum(map(self._of_sample, samples))

    def _of_sample(self, sample: Sample) -> int:
        if sample.logprobs:
            return len(sample.logprobs)
        called = sum(len(str(call.get("function"))) for call in sample.tool_calls)
        characters = len(sample.text) + len(sample.reasoning) + called
        seen = self._of_streams()
        if seen[1] and seen[2]:
            return max(bool(characters), round(characters * seen[2] / seen[1]))
        # A word is a token at least.
        return max(math.ceil(characters / CHARACTERS_PER_TOKEN), len(sample.text.split()))

    def _of_streams(self) -> list[int]:
        """Pieces, characters and tokens of the last whole streams."""
        return [sum(column) for column in zip(*tuple(self._streams), strict=True)] or [0, 0, 0]


class GpuMeter:
    """Divides the busy time of one endpoint among the calls in flight; O(1) per call, thread-safe.

    A virtual clock advances by ``dt / in_flight``; a call's share is the advance of that clock during the call. Once all
    calls have ended, the shares add up to the seconds in which at least one was in flight.

    >>> seconds = iter([0.0, 2.0, 6.0, 7.0])
    >>> meter = GpuMeter(clock=lambda: next(seconds))
    >>> first = meter.start()                    # alone from 0 to 2
    >>> second = meter.start()                   # both from 2 to 6
    >>> meter.stop(first), meter.stop(second)    # alone again from 6 to 7
    (4.0, 3.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._virtual = 0.0
        self._now = 0.0
        self._gpus = 1

    @property
    def in_flight(self) -> int:
        """Calls started and not yet stopped."""
        return self._in_flight

    def use(self, gpus: int) -> None:
        """Set the number of busy GPUs: each second counts ``gpus`` times from now on."""
        with self._lock:
            self._advance()
            self._gpus = gpus

    def start(self) -> float:
        """Begin a call and return a token for `stop`, which must follow exactly once, even if the call fails."""
        with self._lock:
            self._advance()
            self._in_flight += 1
            return self._virtual

    def stop(self, token: float) -> float:
        """End the call; return its share of the endpoint's busy time, in seconds. Raises ValueError if none runs."""
        with self._lock:
            if not self._in_flight:
                raise ValueError("stop() without start(): no call is in flight")
            self._advance()
            self._in_flight -= 1
            return self._virtual - token

    def _advance(self) -> None:
        now = self._clock()
        if self._in_flight:
            self._virtual += (now - self._now) * self._gpus / self._in_flight
        else:
            # No call is running, so the clock can restart: it stays small and its differences exact.
            self._virtual = 0.0
        self._now = now
