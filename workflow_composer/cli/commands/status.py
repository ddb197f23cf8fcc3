"""``status``: show the strategy, the reachable servers, and the routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.output import cost_text, print_json, print_table
from workflow_composer.cli.state import State
from workflow_composer.errors import WorkflowComposerError

if TYPE_CHECKING:
    from workflow_composer.orchestrator import OrchestratorStatus
    from workflow_composer.types import EndpointStatus

_MOST_MODELS = 3
"""Most models that the day's line names."""
_CHOSEN_BY = {
    "argument": "chosen by --strategy",
    "environment": "chosen by the environment (BIOPIPELINES_STRATEGY)",
    "detection": "detected automatically",
}


@click.command(epilog=examples("status", "-s t4_hybrid status --probe-cloud", "-s t4_hybrid status --json"))
@click.option("--probe/--no-probe", default=True, show_default=True, help="Probe the servers.")
@click.option(
    "--probe-cloud", is_flag=True, help="Ask cloud servers for their models, with the key; sends no prompt. Default: no."
)
@strategy_option
@common_options
@click.pass_obj
def status(state: State, probe: bool, probe_cloud: bool) -> None:
    """Show the strategy, the reachable servers, and the routers.

    Probes all servers at once, for at most two seconds. Cloud servers are not contacted without --probe-cloud; only the
    presence of their API keys is checked. `doctor` says what is wrong, and what to do about it.
    """
    with state.orchestrator() as orchestrator:
        found = orchestrator.status(probe=probe, probe_cloud=probe_cloud)
    if state.json:
        print_json(to_dict(found) | {"today": _today(state)})
        return
    _print_head(found)
    _print_today(state)
    click.echo(f"models:    {', '.join(found.models)}")
    resources = found.resources
    reason = f": {resources.slurm_detail}" if resources.slurm_detail else ""
    click.echo(f"slurm:     {'available' if resources.slurm_available else 'not available' + reason}")
    click.echo(f"embedded:  {'available' if resources.embedded_available else 'not installed'}")
    if resources.probed_at is None:
        click.echo("servers:   not probed")
    if resources.endpoints:
        click.echo()
        rows = [row for endpoint in resources.endpoints.values() for row in _rows(endpoint)]
        print_table(("server", "url", "state", "latency", "detail"), rows)
    if resources.cloud_apis:
        click.echo()
        keys = [(name, *_cloud(ready, resources.clouds.get(name))) for name, ready in resources.cloud_apis.items()]
        print_table(("cloud model", "state", "detail")[: 3 if resources.clouds else 2], keys)
    for broken in found.broken_plugins:
        click.echo(f"broken plugin: {broken}", err=True)


def show_short(state: State) -> None:
    """Print a short status and the next commands to try, for ``workflow-composer`` without a command."""
    with state.orchestrator() as orchestrator:
        found = orchestrator.status()
    if state.json:
        print_json(to_dict(found) | {"today": _today(state)})
        return
    _print_head(found)
    _print_today(state)
    for name, endpoint in found.resources.endpoints.items():
        click.echo(f"server:    {name} {_health(endpoint)} ({endpoint.url})")
    if found.in_process:
        engine = "" if found.resources.embedded_available else " (the embedded engine is not installed)"
        click.echo(f"here:      {', '.join(found.in_process)}{engine}")
    ready = [name for name, key in found.resources.cloud_apis.items() if key]
    if found.resources.cloud_apis:
        click.echo(f"cloud:     {', '.join(ready) or 'no key is set'}")
    call = click.get_current_context().command_path + (f" -s {state.strategy}" if state.strategy else "")
    click.echo("\nNext:")
    if not state.strategy and found.source:
        click.echo(f"  {call} {f'-s {found.strategy}':<58}talk to it, at a prompt")
    for line, meaning in (
        ('generate "your question"', "ask"),
        ('route "your question"', "see where it would go, and why"),
        ("generate --input questions.jsonl --output answers.jsonl", "answer a file"),
        ("strategies list", "see the other strategies"),
        ("--help", "see everything"),
    ):
        click.echo(f"  {call} {line:<58}{meaning}")


def to_dict(found: OrchestratorStatus) -> dict[str, Any]:
    """Return the status as plain data; times in milliseconds."""
    from dataclasses import asdict

    resources = found.resources
    return {
        "strategy": found.strategy,
        "source": found.source,
        "chosen_by": found.chosen_by,
        "allow_cloud": found.allow_cloud,
        "debug": found.debug,
        "routers": list(found.routers),
        "models": list(found.models),
        "in_process": list(found.in_process),
        "endpoints": {name: asdict(endpoint) for name, endpoint in resources.endpoints.items()},
        "cloud_apis": dict(resources.cloud_apis),
        "clouds": {name: asdict(endpoint) for name, endpoint in resources.clouds.items()},
        "slurm_available": resources.slurm_available,
        "slurm_detail": resources.slurm_detail,
        "embedded_available": resources.embedded_available,
        "probed": resources.probed_at is not None,
        "broken_plugins": list(found.broken_plugins),
    }


def _print_head(found: OrchestratorStatus) -> None:
    source = f" ({found.source})" if found.source else ""
    click.echo(f"strategy:  {found.strategy}{source}, {_CHOSEN_BY.get(found.chosen_by, found.chosen_by)}")
    click.echo(f"data:      {'may go to the cloud' if found.allow_cloud else 'stays on your own machines'}")
    click.echo(f"routers:   {', then '.join(found.routers)}")


def _today(state: State) -> dict[str, Any]:
    """Return the requests since midnight, local time, as plain data; with an ``error`` if their file cannot be read."""
    from workflow_composer.metrics.summary import summarize_today

    try:
        found = summarize_today(state.metrics_file())
    except WorkflowComposerError as error:
        return {"error": error.message}
    whole = found.to_dict()
    kept = ("requests", "prompt_tokens", "completion_tokens", "cost", "unpriced", "estimated", "errors")
    models = {name: tally.requests for name, tally in sorted(found.by_model.items(), key=lambda item: -item[1].requests)}
    return {name: whole[name] for name in kept} | {"failed": found.total.errors, "by_model": models}


def _print_today(state: State) -> None:
    """Print the day's requests on one line."""
    today = _today(state)
    if not today.get("requests"):
        click.echo(f"today:     {today.get('error', 'no requests')}")
        return
    count, failed = today["requests"], today["failed"]
    cost = cost_text(today["cost"] or 0.0, today["unpriced"], "request")
    models = list(today["by_model"].items())
    shares = ", ".join(f"{name} {number}" for name, number in models[:_MOST_MODELS])
    parts = [f"{count} request{'s' * (count != 1)}", f"{failed} failed", f"cost {cost}"]
    click.echo(f"today:     {', '.join(parts)}; {shares}{', ...' * (len(models) > _MOST_MODELS)}")


def _rows(endpoint: EndpointStatus, indent: str = "") -> list[tuple[str, str, str, str, str]]:
    """Return a server's row; for a role with several replicas, its row and one for each replica."""
    latency = "" if endpoint.latency_ms is None or endpoint.replicas else f"{endpoint.latency_ms:.0f} ms"
    row = (indent + endpoint.name, endpoint.url, _health(endpoint), latency, endpoint.detail)
    return [row, *(each for replica in endpoint.replicas for each in _rows(replica, "  "))]


def _health(endpoint: EndpointStatus) -> str:
    if endpoint.healthy:
        return "up"
    return "other model" if endpoint.models else "down"


def _cloud(ready: bool, found: EndpointStatus | None) -> tuple[str, ...]:
    """Return state and, if it was asked, detail of a cloud model."""
    if found is None:
        return ("key set" if ready else "no key",)
    return ("key taken" if found.healthy else "refused or unreachable" if ready else "no key"), found.detail
