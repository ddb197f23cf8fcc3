"""What all conformance checks have in common, and that of batch policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import WorkflowComposerError

if TYPE_CHECKING:
    from workflow_composer.batch.planning.policies import Predictor


class NotConforming(AssertionError):  # it is a finding
    """A plugin does not keep to the interface; the text says where and how."""


def require(condition: object, finding: str) -> None:
    """Raise `NotConforming` unless the condition holds."""
    if not condition:
        raise NotConforming(finding)


@contextmanager
def only_own_errors(where: str) -> Iterator[None]:
    """Let the package's own errors pass; raise `NotConforming` for any other."""
    try:
        yield
    except (NotConforming, WorkflowComposerError):
        raise
    except Exception as error:
        raise NotConforming(
            f"{where} raised {type(error).__name__}: {error}; raise an error of workflow_composer.errors instead"
        ) from error


def check_policy(factory: Any, *, predictor: Predictor | None = None) -> None:
    """Check a batch policy's factory (usually its class) against the interface. Raises `NotConforming`.

    Its ``routes`` must return one routing string per question, in order, for no question, one, and a thousand; each must be
    readable and use the tiers ``small``, ``medium`` and ``large``. ``predictor`` is needed if the policy uses a probe.
    """
    from workflow_composer.batch.planning.policies import PlanningContext, PlanningTier, Questions

    tiers = tuple(PlanningTier(name, price, price) for name, price in (("small", 1.0), ("medium", 4.0), ("large", 16.0)))
    context = PlanningContext(tiers, predictor=predictor)
    with only_own_errors("the factory"):
        policy = factory()
    require(callable(getattr(policy, "routes", None)), "it has no method routes(questions, context)")
    for texts in ([], ["What is 30 + 12?"], [f"question {'long ' * (number % 50)}" for number in range(1000)]):
        with only_own_errors("routes"):
            routes = list(policy.routes(Questions(texts, predictor), context))
        require(len(routes) == len(texts), f"routes returned {len(routes)} routing strings for {len(texts)} questions")
        for route in {str(one) for one in routes}:
            with only_own_errors(f"reading the routing string {route!r}"):
                used = {
                    candidate.name
                    for tier in context.parse(route).tiers
                    for member in tier.members
                    for candidate in member.candidates
                }
            require(used <= {"small", "medium", "large"}, f"the routing string {route!r} uses tiers that do not exist")
