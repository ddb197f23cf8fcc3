"""Endpoints around scripted backends."""

from __future__ import annotations

import pytest

from workflow_composer.backends.fake import FakeBackend
from workflow_composer.backends.pricing import GpuMeter, Price
from workflow_composer.execution.breaker import CircuitBreaker
from workflow_composer.execution.call import Endpoint, Trace
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.execution.member_run import RetryPolicy
from workflow_composer.plan import Candidate
from workflow_composer.types import Timeouts

QUICK = RetryPolicy(attempts=3, base_delay=0.001, max_delay=0.01)


class Recorder:
    """An observer that remembers what it was told."""

    def __init__(self):
        self.fallbacks = []
        self.escalations = []

    def on_fallback(self, request, failed, candidate):
        self.fallbacks.append((failed.name, failed.error_type, candidate.name))

    def on_escalation(self, request, plan, tier, verdict):
        self.escalations.append((tier, verdict.reason))


class Bench:
    """An executor over the given backends, with everything that happens at hand."""

    def __init__(
        self, *backends, retry=QUICK, timeouts=None, prices=None, lengths=None, local_only=False, failures=50, cooldown=60.0
    ):
        self.backends = {backend.name: backend for backend in backends}
        self.observer = Recorder()
        self.endpoints = {
            name: Endpoint(
                Candidate(name, backend.local, (lengths or {}).get(name)),
                backend,
                (prices or {}).get(name, Price()),
                CircuitBreaker(name, failures=failures, cooldown=cooldown),
                GpuMeter(),
            )
            for name, backend in self.backends.items()
        }
        self.executor = PlanExecutor(
            self.endpoints,
            retry=retry,
            timeouts=timeouts or Timeouts(1.0, 1.0, 2.0),
            observer=self.observer,
            local_only=local_only,
        )
        self.trace = Trace()

    def candidates(self, *names):
        return tuple(self.endpoints[name].candidate for name in names or self.endpoints)

    def names_tried(self):
        return [attempt.name for attempt in self.trace.attempts]


@pytest.fixture
def bench():
    return Bench


@pytest.fixture
def fake():
    def make(name, *script, **options):
        return FakeBackend(*script, name=name, **options)

    return make
