"""``var verify``: recompute a certificate from its data and compare."""

from __future__ import annotations

from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_differences
from workflow_composer.cli.state import State
from workflow_composer.cli.var.group import libraries

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog=examples("var verify var-certificate.json --routes routes.jsonl"))
@click.argument("file", type=_FILE)
@click.option("--routes", type=_FILE, required=True, help="The recorded routes from which the certificate was made.")
@common_options
@click.pass_context
def verify(context: click.Context, file: Path, routes: Path) -> None:
    """Learn, replay and test again from the recorded routes, and compare every number with the certificate.

    Exit codes: 0 no difference; 1 something differs; 2 wrong usage or input.
    """
    with libraries("calibration"):
        from workflow_composer.calibration.certify.route_certificate import RouteCertificate, verify_routes

        found = RouteCertificate.load(file)
        differences = verify_routes(found, routes)
    same = f"{file}: every number is reproduced from {routes} ({found.prompts} prompts)"
    context.exit(print_differences(differences, same, json=context.ensure_object(State).json))
