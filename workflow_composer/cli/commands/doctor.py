"""``doctor``: say what is wrong with a profile here and now, and what to do about it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.output import print_json, printable
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError, NoStrategy

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.runtime.doctor.finding import Finding


@click.command(
    epilog=examples(
        "doctor", "-s t4_hybrid doctor --cloud", "-s my_profile.yaml doctor --ask", "-s my_profile.yaml doctor --json"
    )
)
@click.option(
    "--cloud", is_flag=True, help="Ask cloud servers for their models, with the key; sends no prompt. Default: no."
)
@click.option("--ask", is_flag=True, help="Also ask each of your own models what 2 + 2 is. Default: no prompt is sent.")
@strategy_option
@common_options
@click.pass_obj
def doctor(state: State, cloud: bool, ask: bool) -> int:
    """Check a profile against reality: servers, models, keys, prices, this machine; each finding has its remedy.

    Asks your own servers what they serve, all at once, for a few seconds; no prompt is sent without --ask, and never to the
    cloud. Cloud servers are not contacted without --cloud. Also checks the registry, SLURM's controller, clocks, locks,
    rights, space and versions of libraries.

    Exit codes: 0 nothing keeps the profile from working (warnings may be printed); 1 errors were found; 2 the profile does
    not load; 3 no profile was named, and none was found.
    """
    config, trouble, code = _profile(state)
    if sys.stderr.isatty() and not state.json:
        click.echo("asking servers, and looking at this machine ...", err=True)
    found = [*trouble, *_examined(state, config, cloud=cloud)]
    if ask and config is not None and not any(finding.kind == "profile" for finding in found):
        found += _answers(state, config, {name for finding in found for name in finding.models})
    errors = sum(finding.level == "error" for finding in found)
    if state.json:
        profile = None if config is None else {"strategy": config.profile_name, "source": config.source}
        rows = [asdict(finding) for finding in found]
        print_json({"profile": profile, "errors": errors, "warnings": len(found) - errors, "findings": rows})
    else:
        _print(config, found, errors, cloud=cloud)
    return code or (1 if errors else 0)


def _profile(state: State) -> tuple[StrategyConfig | None, list[Finding], int]:
    """Return the profile; or else what is wrong with it, and the exit code."""
    from workflow_composer.runtime.doctor.examination import of_error
    from workflow_composer.runtime.resources import detect_strategy

    try:
        named = state.profile()
        return named or asyncio.run(detect_strategy(state.environ)), [], 0
    except (ConfigError, NoStrategy) as error:
        return None, of_error(error), error.exit_code


def _examined(state: State, config: StrategyConfig | None, *, cloud: bool) -> list[Finding]:
    from workflow_composer.runtime.doctor.examination import examine

    return asyncio.run(examine(config, state.environ, cloud=cloud))


def _answers(state: State, config: StrategyConfig, failing: set[str]) -> list[Finding]:
    """Ask each model of one's own machines a question whose answer is known, and report those that do not answer it."""
    from workflow_composer.metrics.sink import NullSink
    from workflow_composer.runtime.doctor.answers import questions

    found: list[Finding] = []
    with state.orchestrator(NullSink()) as orchestrator:
        for name, question in questions(config, failing):
            if sys.stderr.isatty() and not state.json:
                click.echo(f"asking {name} ...", err=True)
            found += question(orchestrator)
    return found


def _print(config: StrategyConfig | None, found: Sequence[Finding], errors: int, *, cloud: bool) -> None:
    if config is not None:
        click.echo(f"profile: {config.profile_name}" + (f" ({config.source})" if config.source else ""))
    for finding in found:
        click.echo(printable(f"\n{finding.level}: {finding.problem} [{finding.kind}]"))
        click.echo(printable(f"  where:  {finding.where}\n  remedy: {finding.remedy}"))
    warnings = len(found) - errors
    click.echo(
        ("\n" if found else "")
        + (f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}" if found else "nothing is wrong")
    )
    if config is not None and config.allow_cloud and not cloud and any(not spec.local for spec in config.models.values()):
        click.echo("cloud servers were not asked; --cloud asks them whether they take the keys")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
