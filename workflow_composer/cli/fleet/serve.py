"""``fleet serve``: run one server in the foreground."""

from __future__ import annotations

import sys

import click

from workflow_composer.cli.fleet.group import fleet_option, open_fleet
from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.state import State


@click.command(
    epilog=examples(
        "fleet serve coder",
        "fleet serve ./my_model --port 8009",
        "fleet serve coder --dry-run",
        "fleet serve coder -- --max-num-seqs 8",
    ),
)
@click.argument("server", metavar="ROLE|SERVER|MODEL")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF VLLM]")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port. Default: the fleet file's; for a model without a role, 8000."
)
@click.option("--dry-run", is_flag=True, help="Print the exact command and start nothing.")
@click.option("--keep-wanted", is_flag=True, hidden=True, help="Keep the server wanted after a stop signal.")
@fleet_option
@common_options
@click.pass_obj
def serve(
    state: State,
    server: str,
    options: tuple[str, ...],
    port: int | None,
    dry_run: bool,
    keep_wanted: bool,
    fleet_file: str | None,
) -> int:
    """Run one vLLM server until a signal stops it; print its URL when it is ready.

    SIGTERM and Ctrl-C let active requests finish first; a second signal stops it at once. Exit code 1: the server failed.
    """
    from workflow_composer.fleet.launch.local import target

    fleet = open_fleet(state, fleet_file)
    chosen = target(fleet, server, port=port)
    if dry_run:
        from workflow_composer.fleet.launch.preparation import plan

        command = plan(fleet, chosen.role, chosen.place.port, chosen.place.listen, options)
        for note in command.notes:
            click.echo(f"note: {note}", err=True)
        click.echo(command.shown)
        return 0
    from workflow_composer.cli.progress import Waiting
    from workflow_composer.fleet.launch.supervisor import ServerSupervisor

    with Waiting(sys.stderr) as waiting:
        supervisor = ServerSupervisor(
            fleet,
            chosen.server,
            chosen.role,
            chosen.place,
            options=options,
            wanted=chosen.in_file,
            resigns=not keep_wanted,
            say=waiting.say,
            progress=lambda seconds, line: waiting.show(f"{chosen.server}: {seconds:4.0f} s  {line}"),
        )
        ended = supervisor.run()
    return 1 if ended.reason == "failed" else 0
