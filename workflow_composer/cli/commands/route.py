"""``route``: show the plan of a request without sending it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, context_option, examples, read_prompt, strategy_option
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.plan import Candidate, Member, Plan, Tier
    from workflow_composer.types import LLMRequest


@click.command(
    epilog=examples('route --task code_generation "Write a parser"', '-s t4_hybrid route --model small "Hello" --json')
)
@click.argument("prompt", required=False)
@click.option("-t", "--task", default="*", metavar="TASK", help="Task type, as in the profile's task_routing.")
@click.option("-m", "--model", metavar="NAME", help="Role, tier, model or routing string to use instead of the task's.")
@context_option
@strategy_option
@common_options
@click.pass_obj
def route(state: State, prompt: str | None, task: str, model: str | None, contexts: tuple[str, ...]) -> None:
    """Show which models a request would go to, and why; sends nothing.

    Tiers are tried in order until an answer is accepted (escalation), the models of a tier in order until a call succeeds
    (fallback). The prompt is the argument, or standard input.
    """
    from workflow_composer.metrics.sink import NullSink

    text = read_prompt(prompt)
    with state.orchestrator(NullSink()) as orchestrator:
        strategy = orchestrator.strategy
        request, plan = orchestrator.prepare(text, task_type=task, model=model, context=contexts or None)
        servers = servers_of(plan, orchestrator.config, state.environ)
    if state.json:
        known = {"strategy": strategy, "context": request.context or (), "query_length": request.query_length}
        print_json({**known, **to_dict(plan), "servers": servers})
        return
    print_plan(strategy, request, plan, servers)


def print_plan(strategy: str, request: LLMRequest, plan: Plan, servers: Mapping[str, list[str]]) -> None:
    """Print a request's plan in words; ``servers`` are those that may get it now, by role."""
    click.echo(f"strategy:  {strategy}")
    click.echo(f"router:    {plan.router}")
    click.echo(f"reason:    {plan.reason}")
    for pin in request.context or ():
        click.echo(f"context:   {pin}")
    for number, tier in enumerate(plan.tiers, 1):
        click.echo(f"tier {number}:    {_describe(tier)}")
    for role, places in servers.items():
        click.echo(f"servers:   {role}: {', '.join(places) or 'none registered'}")
    for reason in plan.left_out:
        click.echo(f"left out:  {reason}")
    for note in plan.notes:
        click.echo(f"note:      {note}")


def servers_of(plan: Plan, config: StrategyConfig, environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the servers that may get the request now, for each role of the plan with several servers or a registry."""
    from workflow_composer.backends.replicas.discovery import Finder
    from workflow_composer.backends.replicas.observer import shown_url

    roles = {c.endpoint: c for tier in plan.tiers for c in tier.candidates if c.endpoint is not None}
    finders = {role: Finder(config, role, environ) for role in roles}
    several = {role: finder for role, finder in finders.items() if len(finder.listed) > 1 or finder.registered}
    return {
        role: [shown_url(place.url) for place in finder.places_now() if place.refused is None]
        for role, finder in several.items()
    }


def to_dict(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain data."""
    return {
        "router": plan.router,
        "reason": plan.reason,
        "tiers": [
            {
                "name": tier.name,
                "members": [_member(member) for member in tier.members],
                "accept": _accept(tier),
                "form": None if tier.form is None else tier.form.spec,
                "retries": None if tier.form is None else tier.retries,
                "voting": None if tier.voting is None else asdict(tier.voting),
                "deadline": tier.deadline,
                "budget": tier.budget,
            }
            for tier in plan.tiers
        ],
        "left_out": list(plan.left_out),
        "notes": list(plan.notes),
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "candidates": [
            {"name": c.name, "local": c.local, "endpoint": c.endpoint, "context_length": c.context_length}
            for c in member.candidates
        ],
        "samples": member.samples,
        "temperature": member.temperature,
        "form": None if member.form is None else member.form.name,
        "weight": member.weight,
    }


def _describe(tier: Tier) -> str:
    parts = [f"tier {tier.name!r}"] if tier.name not in ("", tier.candidates[0].name) else []
    parts.append(" + ".join(_ask(member) for member in tier.members))
    if tier.deadline is not None:
        parts.append(f"at most {tier.deadline:g} s")
    return "; ".join([*parts, f"accept: {_accept(tier)}"])


def _ask(member: Member) -> str:
    """Describe a member: its candidates and how it samples."""
    parts = [", else ".join(_place(candidate) for candidate in member.candidates)]
    if member.samples != 1:
        parts.append(f"{member.samples} samples")
    if member.temperature is not None:
        parts.append(f"temperature {member.temperature:g}")
    if member.form is not None:
        parts.append(f"as {member.form.name}")
    if member.weight != 1:
        parts.append(f"weight {member.weight:g}")
    return "; ".join(parts)


def _accept(tier: Tier) -> str:
    """Describe a tier's condition for accepting an answer."""
    if tier.form is not None:
        return f"{_accept(replace(tier, form=None))}, of the form {tier.form!r}"
    voting = tier.voting
    if voting is None:
        return repr(tier.accept)
    if tier.samples == 1 and voting.measure != "score":
        return "a readable answer"
    more = f", up to {voting.explore} more samples if ambiguous" if voting.explore else ""
    return f"{voting.measure} >= {voting.target:g}{more}"


def _place(candidate: Candidate) -> str:
    return f"{candidate.name} ({'local' if candidate.local else 'cloud'})"
