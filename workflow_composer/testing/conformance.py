"""What all conformance checks have in common, and those of batch policies and of kinds of workflow steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import ProgramFault, WorkflowComposerError

if TYPE_CHECKING:
    from workflow_composer.batch.planning.policies import Predictor


class NotConforming(AssertionError):  # it is a finding
    """A plugin does not keep to the interface; the text says where and how."""


_ODD_SETTINGS: tuple[Any, ...] = ({}, [], [1], "", "text", 1.5, True, {"no such setting": 1})
"""Settings of a step that somebody may write."""


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


def check_step(plugin: object, name: str, settings: Any, **given: Any) -> Any:
    """Check the kind of step ``name`` of a plugin, and return its value for these settings and the values of ``with``.

    The plugin's own check must find these settings right, and must say what is wrong with any others instead of raising;
    the function must do its work in a process of its own without a network, and return JSON data of the kind's form.
    Raises `NotConforming`.
    """
    from workflow_composer.plugins.host import PluginHost
    from workflow_composer.workflows.definition.model import ProgramLimits, PythonBody
    from workflow_composer.workflows.programs.function import call_function

    host = PluginHost()
    try:
        host.add(plugin, name="under_test")
    except WorkflowComposerError as error:
        raise NotConforming(f"it cannot be registered: {error.message}") from None
    kind = host.registry.step_kinds.get(name)
    require(kind is not None, f"register_steps does not offer {name!r}")
    assert kind is not None  # required
    problems = kind.problems(settings, tuple(given))
    require(not problems, f"its check refuses {settings!r}: {'; '.join(text for _, text in problems)}")
    for odd in _ODD_SETTINGS:
        for _, problem in kind.problems(odd, tuple(given)):
            found = f"its check of the settings {odd!r} fails ({problem})"
            require("could not check it" not in problem and "its check returned" not in problem, found)
    body = PythonBody(target=kind.target, plugin=kind, settings=settings)
    json.dumps(given)  # what a step is given is JSON data
    try:
        call = call_function(body, given=given, limits=ProgramLimits(), folder=Path(), private=True)
        value = asyncio.run(call)
    except ProgramFault as error:
        raise NotConforming(f"{error.message}\n{error.said}") from None
    if kind.form is not None and not kind.form.is_text:
        read = kind.form.read(json.dumps(value))
        require(read.problem is None, f"its value does not have the form of its answers: {read.problem}")
    return value
