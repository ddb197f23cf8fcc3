"""Every hook that a plugin can implement, each with an example that runs.

A plugin is a module or object whose functions are marked with `hookimpl`; an installed package offers it through the
entry-point group ``workflow_composer``. A function may name any subset of a hook's arguments.

Hooks that begin with ``register_`` are handed a callback, so that the host keeps names and order: which router is asked
first is said by the profile, never by the order in which plugins were found. The others are told what happens; they should
be quick.

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
['counter']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from workflow_composer.backends.base import BackendFactory
    from workflow_composer.types import Attempt, Candidate, LLMRequest, LLMResponse, Plan, Verdict

ENTRY_POINT_GROUP = "workflow_composer"

hookspec = pluggy.HookspecMarker("workflow_composer")
hookimpl = pluggy.HookimplMarker("workflow_composer")
"""Marks a function as the implementation of the hook of its name."""

RouterFactory = Callable[..., Any]
"""``(context: RouterContext, settings: Mapping) -> Router``; a subclass of `Router` is one."""

StrategyFactory = Callable[..., Any]
"""``() -> BatchStrategy``, or ``(tier: str) -> BatchStrategy`` where users may name a tier: a class with ``routes``."""


class RegisterBackend(Protocol):
    """The callback of `register_backends`."""

    def __call__(self, name: str, factory: BackendFactory) -> None:
        """Offer ``factory`` under ``name``, the word that profiles write behind ``backend:``."""
        ...


@hookspec
def register_routers(register: Callable[[str, RouterFactory], None]) -> None:
    """Offer routers. ``name`` is the word that profiles write under ``routers:``; the factory is usually the class.

    >>> from workflow_composer import Plan, Tier, hookimpl
    >>> from workflow_composer.routers.base import Router
    >>> class ShortOnes(Router):
    ...     '''Sends short questions to the model named in its settings; has no plan for long ones.'''
    ...     def plan(self, request, resources):
    ...         if request.query_length > 200:
    ...             return None
    ...         return Plan((Tier.of(self.context.candidates("small")),), "short_ones", "the question is short")
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_routers(self, register):
    ...         register("short_ones", ShortOnes)
    """


@hookspec
def register_backends(register: RegisterBackend) -> None:
    """Offer backends: engines or APIs that models of a profile's catalogue may name.

    A backend that opens connections must make them with ``context.egress``, which keeps the profile's promise about where
    data may go; one whose ``local`` is False is refused where the profile forbids the cloud.

    >>> from workflow_composer import hookimpl
    >>> from workflow_composer.backends.fake import FakeBackend
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_backends(self, register):
    ...         register("echo", lambda spec, context: FakeBackend("hello", name=spec.name))
    """


@hookspec
def register_batch_strategies(register: Callable[[str, StrategyFactory], None]) -> None:
    """Offer batch strategies: ways to plan a whole data set. ``name`` is the word behind ``--strategies``.

    A strategy's ``routes`` gives one routing string per question of the piece it is handed. ``questions`` has their
    ``texts`` (an Arrow array), ``lengths``, ``features`` and, with a probe, ``success(tier)`` as columns; ``context`` the
    tiers, their prices and what the user set (`workflow_composer.batch.strategies`).

    >>> from workflow_composer import hookimpl
    >>> class ShortOnesCheap:
    ...     '''Short questions are answered by the cheapest tier, the others by the strongest.'''
    ...     def routes(self, questions, context):
    ...         cheapest, strongest = context.tiers[0].name, context.tiers[-1].name
    ...         return [cheapest if length < 200 else strongest for length in questions.lengths]
    >>> class Plugin:
    ...     @hookimpl
    ...     def register_batch_strategies(self, register):
    ...         register("short_ones_cheap", ShortOnesCheap)
    """


@hookspec
def register_commands(register: Callable[[click.Command], None]) -> None:
    """Offer commands for the command line.

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
    """Called before a router sees the request; may return another request to go on with, or raise to refuse it.

    Implementations are called in the order of their plugins' names, each with what the one before returned. One that fails
    with an exception of its own ends the request with `PluginError`: a guard that is broken must not let everything pass.
    The texts that ``request.context`` names are put first afterwards, before anything that a plugin has added.

    >>> from dataclasses import replace
    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def before_route(self, request):
    ...         return replace(request, max_tokens=min(request.max_tokens or 512, 512))
    """


@hookspec
def after_answer(request: LLMRequest, response: LLMResponse) -> None:
    """Called with every answer, after its metric was written. An exception is reported and otherwise ignored.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     spent = 0.0
    ...     @hookimpl
    ...     def after_answer(self, response):
    ...         self.spent += response.cost
    """


@hookspec
def on_escalation(request: LLMRequest, plan: Plan, tier: int, verdict: Verdict) -> None:
    """Called when tier ``tier`` of the plan was not accepted and the next is asked. Exceptions: as `after_answer`.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_escalation(self, tier, verdict):
    ...         print(f"tier {tier} was not enough: {verdict.reason}")
    """


@hookspec
def on_fallback(request: LLMRequest, failed: Attempt, candidate: Candidate) -> None:
    """Called when a candidate is given up (``failed`` was its last attempt) and the next one of its tier is asked.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_fallback(self, failed, candidate):
    ...         print(f"{failed.name} failed ({failed.error_type}); asking {candidate.name}")
    """


@hookspec
def on_strategy_switch(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Called after another profile has taken over; ``old`` and ``new`` are the profiles as dictionaries, without secrets.

    >>> from workflow_composer import hookimpl
    >>> class Plugin:
    ...     @hookimpl
    ...     def on_strategy_switch(self, old, new):
    ...         print(f"{old['profile_name']} -> {new['profile_name']}")
    """
