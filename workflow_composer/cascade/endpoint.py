"""One callable model of a snapshot: its backend together with what the executor keeps about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from workflow_composer.backends.base import Backend
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.cascade.breaker import CircuitBreaker, NoBreaker
from workflow_composer.cascade.forecast import Forecast
from workflow_composer.types import Candidate, LLMRequest, Usage


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A backend, its price, its circuit breaker, its meter (for a price per GPU-hour), and what its answers cost so far.

    Models served by one process share breaker and meter.
    """

    candidate: Candidate
    backend: Backend
    price: Price
    breaker: CircuitBreaker | NoBreaker
    meter: GpuMeter
    forecast: Forecast = field(default_factory=Forecast)

    def start(self) -> float | None:
        """Start metering a call; the token goes to `stop`. None where time costs nothing."""
        return self.meter.start() if self.price.gpu_hour else None

    def stop(self, token: float | None) -> float:
        """End metering; the seconds of GPU time that the call is charged for."""
        return 0.0 if token is None else self.meter.stop(token)

    def cost(self, usage: Usage, gpu_seconds: float) -> float:
        """Dollars for a call: its tokens, and its share of the GPU's time."""
        return self.price.cost_of_tokens(usage) + gpu_seconds * (self.price.gpu_hour or 0.0) / 3600.0

    def prompt_tokens(self, request: LLMRequest) -> int:
        """Tokens that the request's prompt probably has."""
        return self.forecast.expect(request, 1).usage.prompt_tokens

    def expected_cost(self, request: LLMRequest, samples: int, calls: int) -> float:
        """Dollars that ``samples`` answers in so many calls will probably cost; each call pays for the prompt."""
        expected = self.forecast.expect(request, samples)
        prompts = Usage(expected.usage.prompt_tokens * (calls - 1))
        return self.cost(expected.usage + prompts, expected.gpu_seconds)
