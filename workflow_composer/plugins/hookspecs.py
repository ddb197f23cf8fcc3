"""All hooks that a plugin can implement, each with a runnable example.

A plugin is a module or object whose functions are marked with `hookimpl`; an installed package declares it in the
entry-point group ``workflow_composer``. A function may take any subset of a hook's arguments.

Hooks named ``register_*`` get a callback, so that the host controls names and order: the profile decides which router is
asked first, not the order of discovery. The other hooks are notified of events and should be fast.

>>> from workflow_composer import hookimpl
>>> class Counter:
...     answers = 0
...     @hookimpl
...     def after_answer(self, response):
...         self.answers += 1
>>> from workflow_composer.plugins import PluginHost
>>> host = PluginHost()
>>> host.add(Counter(), name="counter")
>>> [plugin.name for plugin in host.plugins]
['workflow_composer', 'counter']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from workflow_composer.backends.base import BackendFactory
    from workflow_composer.plan import Candidate, Plan
    from workflow_composer.types import Attempt, LLMRequest, LLMResponse, Verdict
    from workflow_composer.workflows.step_kinds import StepCheckFunction

ENTRY_POINT_GROUP = "workflow_composer"

hookspec = pluggy.HookspecMarker("workflow_composer")
hookimpl = pluggy.HookimplMarker("workflow_composer")
"""Marks a function as the implementation of the hook of its name."""

RouterFactory = Callable[..., Any]
"""``(context: RouterContext, settings: Mapping) -> Router``, such as a subclass of `Router`."""

StepFunction = Callable[..., Any]
"""``(settings, **given) -> JSON data``, at the top level of a module."""

StrategyFactory = Callable[..., Any]
"""``() -> BatchStrategy``, or ``(tier: str) -> BatchStrategy`` if users may name a tier: a class with ``routes``."""


class RegisterBackend(Protocol):
    """The callback of `register_backends`."""

    def __call__(self, name: str, factory: BackendFactory) -> None:
        """Register ``factory`` under ``name``, the value of ``backend:`` in profiles."""
        ...


class RegisterStep(Protocol):
    """The callback of `register_steps`."""

    def __call__(self, name: str, run: StepFunction, *, check: StepCheckFunction | None = None, answer: Any = None) -> None:
        """Register a kind of step under ``name``, the key that steps of workflows have in place of ``prompt``."""
        ...


@hookspec
def register_routers(register: Callable[[str, RouterFactory], None]) -> None:
    """Register routers. ``name`` is the entry in a profile's ``routers:``; the factory is usually the class.

    >>> from workflow_composer import Plan, Tier, hookimpl
    >>> from workflow_composer.routers import Router
    >>> class ShortOnes(Router):
    ...     '''Sends short questions to the model named in its settings; has no plan for long ones.'''
    ...     def plan(self, request, resources):
    ...         if request.model is not None or request.query_length > 200:  # somebody has named a model, or it is long
    ...             return None
    ...         return Plan((Tier.of(self.context.candidates("small")),), "short_ones", "the question is short")
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_routers(self, register):
    ...         register("short_ones", ShortOnes)
    """


@hookspec
def register_backends(register: RegisterBackend) -> None:
    """Register backends: engines or APIs for the models of a profile's catalogue.

    A backend must open connections through ``context.egress``, which enforces where data may go under the profile. A backend
    whose ``local`` is False is rejected if the profile forbids the cloud.

    >>> from workflow_composer import hookimpl
    >>> from workflow_composer.backends import FakeBackend
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_backends(self, register):
    ...         register("echo", lambda spec, context: FakeBackend("hello", name=spec.name))
    """


@hookspec
def register_batch_strategies(register: Callable[[str, StrategyFactory], None]) -> None:
    """Register batch policies: ways to plan a whole data set. ``name`` is the value of ``--policies``.

    A policy's ``routes`` returns one routing string per question of a batch. ``questions`` has ``texts`` (an Arrow
    array), ``lengths``, ``features`` and, with a probe, ``success(tier)`` as columns; ``context`` has the tiers, their
    prices and the user's settings (`workflow_composer.batch.planning.policies`).

    >>> from workflow_composer import hookimpl
    >>> class ShortOnesCheap:
    ...     '''Routes short questions to the cheapest tier and the others to the strongest.'''
    ...     def routes(self, questions, context):
    ...         cheapest, strongest = context.tiers[0].name, context.tiers[-1].name
    ...         return [cheapest if length < 200 else strongest for length in questions.lengths]
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_batch_strategies(self, register):
    ...         register("short_ones_cheap", ShortOnesCheap)
    """


@hookspec
def register_steps(register: RegisterStep) -> None:
    """Register kinds of workflow steps. ``name`` is a step's key, whose value in the file are the step's settings.

    ``run`` is a function at the top level of a module: each question is a call ``run(settings, **given)`` in a process of
    its own, as that of a ``python`` step, with the same limits, and without a network where the step reads private inputs.
    ``given`` are the values of the step's ``with``. ``check(settings, names)`` is called when a file is read, before
    anything runs, and returns what is wrong (a text, or texts by keys of the settings) or None. ``answer`` is the form of
    the answers where the file has none.

    >>> from workflow_composer import hookimpl
    >>> def repeated(settings, text):
    ...     return text * settings["times"]
    >>> def check(settings, given):
    ...     if not isinstance(settings, dict) or not isinstance(settings.get("times"), int):
    ...         return "found no number of times; write repeated: {times: 2}"
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_steps(self, register):
    ...         register("repeated", repeated, check=check, answer="text")
    """


@hookspec
def register_commands(register: Callable[[click.Command], None]) -> None:
    """Register commands for the command line.

    >>> import click
    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_commands(self, register):
    ...         @click.command()
    ...         def greet():
    ...             click.echo("hello")
    ...         register(greet)
    """


@hookspec
def before_route(request: LLMRequest, strategy: str) -> LLMRequest | None:
    """Called before a router sees the request. May return a modified request, or raise to reject it.

    Implementations run in the order of plugin names, each with the result of the previous one. An exception other than the
    package's own fails the request with `PluginError`: a broken guard must not let requests pass. Afterwards the context
    templates of ``request.context`` are prepended, before anything that a plugin added.

    >>> from dataclasses import replace
    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def before_route(self, request):
    ...         return replace(request, max_tokens=min(request.max_tokens or 512, 512))
    """


@hookspec
def after_answer(request: LLMRequest, response: LLMResponse) -> None:
    """Called with every answer, after its metric is written. Exceptions are reported and otherwise ignored.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     spent = 0.0
    ...     @hookimpl
    ...     def after_answer(self, response):
    ...         self.spent += response.cost
    """


@hookspec
def on_escalation(request: LLMRequest, plan: Plan, tier: int, verdict: Verdict) -> None:
    """Called when the answer of ``plan.tiers[tier]`` was not accepted and the next tier starts. Exceptions as in
    `after_answer`.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_escalation(self, plan, tier, verdict):
    ...         print(f"{plan.tiers[tier].title} was not enough: {verdict.reason}")
    """


@hookspec
def on_fallback(request: LLMRequest, failed: Attempt, candidate: Candidate) -> None:
    """Called when a candidate has failed (``failed`` is its last attempt) and the tier's next candidate is tried.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_fallback(self, failed, candidate):
    ...         print(f"{failed.name} failed ({failed.error_type}); asking {candidate.name}")
    """


@hookspec
def on_strategy_switch(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Called after a switch to another profile; ``old`` and ``new`` are the profiles as dictionaries without secrets.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_strategy_switch(self, old, new):
    ...         print(f"{old['profile_name']} -> {new['profile_name']}")
    """
