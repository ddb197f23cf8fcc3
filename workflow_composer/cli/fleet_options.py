"""Options shared by the commands of ``fleet``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from workflow_composer.cli.state import State
    from workflow_composer.fleet.file import Fleet

F = TypeVar("F", bound=Callable[..., Any])


def fleet_option(function: F) -> F:
    """``--fleet FILE``, as the parameter ``fleet_file``."""
    return click.option("--fleet", "fleet_file", metavar="FILE", help="The fleet file. Default: see `fleet --help`.")(
        function
    )


def open_fleet(state: State, fleet_file: str | None) -> Fleet:
    """Load the given fleet file, or the one found by default. Raises `ProfileError`, `FleetError`."""
    from workflow_composer.fleet.file import load_fleet

    return load_fleet(fleet_file, state.environ)
