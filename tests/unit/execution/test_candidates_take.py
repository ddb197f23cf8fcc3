"""Optional fields: each candidate gets those that it takes, and the caller is told of the others."""

from __future__ import annotations

import pytest

from workflow_composer.backends.openai.adapting import OPTIONAL
from workflow_composer.errors import ServerFailed
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.plan import Plan, Tier
from workflow_composer.types import LLMRequest

FIELDS = {"service_tier": "flex", "prompt_cache_key": "k", "metadata": {"team": "x"}, "top_k": 5}


@pytest.mark.parametrize("samples", [1, 3])
async def test_each_candidate_gets_what_it_takes(bench, fake, samples):
    """The first takes nothing of it and fails, the second all of it, as if it had been the first."""
    b = bench(fake("a", *[ServerFailed("500")] * 9), fake("b", "4"))
    b.endpoints["a"].backend.takes, b.endpoints["b"].backend.takes = frozenset(), OPTIONAL
    b.executor = PlanExecutor(b.endpoints, observer=b.observer)
    request = LLMRequest.of("2 + 2?", extra=FIELDS, left_out=[])
    seen = {"a": [], "b": []}
    for name, kept in seen.items():
        backend = b.endpoints[name].backend
        real = backend.complete

        async def complete(asked, real=real, kept=kept):
            kept.append(dict(asked.request.extra))
            return await real(asked)

        backend.complete = complete
    plan = Plan((Tier.of(b.candidates("a", "b"), samples=samples) if samples > 1 else Tier.of(b.candidates("a", "b")),))
    await b.executor.run(plan, request, b.trace)
    assert seen["a"]
    assert all(one == {"top_k": 5} for one in seen["a"])
    assert all(one == FIELDS for one in seen["b"])
    assert {text.split()[0] for text in request.left_out} == OPTIONAL
    assert all(" a " in text for text in request.left_out)
