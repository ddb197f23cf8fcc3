"""One callable model of a snapshot: its backend together with what the executor keeps about it."""

from __future__ import annotations

from dataclasses import dataclass

from workflow_composer.backends.base import Backend
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.cascade.breaker import CircuitBreaker
from workflow_composer.types import Candidate, Usage


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A backend, its price, its circuit breaker and, where its price is per GPU-hour, its meter.

    Models served by one process share breaker and meter.
    """

    candidate: Candidate
    backend: Backend
    price: Price
    breaker: CircuitBreaker
    meter: GpuMeter

    def start(self) -> float | None:
        """Start metering a call; the token goes to `stop`. None where time costs nothing."""
        return self.meter.start() if self.price.gpu_hour else None

    def stop(self, token: float | None) -> float:
        """End metering; the seconds of GPU time that the call is charged for."""
        return 0.0 if token is None else self.meter.stop(token)

    def cost(self, usage: Usage, gpu_seconds: float) -> float:
        """Dollars for a call: its tokens, and its share of the GPU's time."""
        return self.price.cost_of_tokens(usage) + gpu_seconds * (self.price.gpu_hour or 0.0) / 3600.0
