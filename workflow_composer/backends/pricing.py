"""The cost of a call in dollars: by tokens for a provider's API, by GPU time for local GPUs.

A GPU that serves many calls at once is paid for once. `GpuMeter` therefore divides each second among the calls in flight
(processor sharing), so that the charges add up to the time the GPU was busy, however the calls overlap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workflow_composer.types import Usage

if TYPE_CHECKING:
    from workflow_composer.config.strategy import ModelSpec


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million prompt tokens, per million completion tokens, and per hour of the GPU that serves the model.

    ``known`` is False if the profile sets neither both prices of tokens nor one of the GPU. A model that is free of charge
    has prices of 0.

    >>> price = Price(input_per_million=0.15, output_per_million=0.60)
    >>> round(price.cost(Usage(prompt_tokens=2_000, completion_tokens=500)), 6)
    0.0006
    """

    input_per_million: float = 0.0
    output_per_million: float = 0.0
    gpu_hour: float = 0.0
    known: bool = True

    @classmethod
    def of(cls, spec: ModelSpec) -> Price:
        """Return the price of a profile's model; missing prices are 0 and make the price unknown."""
        known = spec.gpu_hour_price is not None or None not in (spec.input_price, spec.output_price)
        return cls(spec.input_price or 0.0, spec.output_price or 0.0, spec.gpu_hour_price or 0.0, known)

    def covers(self, usage: Usage) -> bool:
        """Whether the cost of a call is known: the prices are, and so are the tokens that they apply to.

        Every prompt has tokens, so a count of 0 means that the server did not report it.
        """
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        return self.known and bool(
            (prompt or not self.input_per_million) and (prompt or answer or not self.output_per_million)
        )

    def cost(self, usage: Usage, gpu_seconds: float = 0.0) -> float:
        """Return the dollars for these tokens and ``gpu_seconds`` of the whole GPU, as measured by `GpuMeter.stop`."""
        tokens = usage.prompt_tokens * self.input_per_million + usage.completion_tokens * self.output_per_million
        return tokens / 1e6 + gpu_seconds * self.gpu_hour / 3600.0


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
