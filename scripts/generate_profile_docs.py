"""Generate the tables of keys in docs/profiles.md and docs/fleet.md from the settings models.

python scripts/generate_profile_docs.py            rewrite the parts between the two markers
python scripts/generate_profile_docs.py --check    exit with 1 where a file is not up to date
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workflow_composer.config.profile_models import BreakerSettings, ModelSpec, RetrySettings, TierSpec, TimeoutSettings
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.fleet.settings import AlertSettings, FleetSettings, MonitorSettings, RoleSpec, SlurmSettings
from workflow_composer.routers.adaptive import AdaptiveSettings
from workflow_composer.routers.cascade import CascadeSettings
from workflow_composer.routers.cascading_provider import CascadingProviderSettings
from workflow_composer.routers.execution_feedback import AuditSettings, ExecutionFeedbackSettings

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, FLEET_PAGE = DOCS / "profiles.md", DOCS / "fleet.md"
BEGIN, END = "<!-- keys: generated -->", "<!-- keys: end -->"
SECTIONS: Mapping[str, type[BaseModel]] = {
    "The profile": StrategyConfig,
    "`models.NAME`": ModelSpec,
    "`tiers.NAME`": TierSpec,
    "`timeouts`": TimeoutSettings,
    "`retries`": RetrySettings,
    "`circuit_breaker`": BreakerSettings,
    "`routers`: `cascade`": CascadeSettings,
    "`routers`: `cascading_provider`": CascadingProviderSettings,
    "`routers`: `adaptive`": AdaptiveSettings,
    "`routers`: `execution_feedback`": ExecutionFeedbackSettings,
    "`routers`: `execution_feedback`: `audit`": AuditSettings,
}
FLEET_SECTIONS: Mapping[str, type[BaseModel]] = {
    "The fleet file": FleetSettings,
    "`roles.NAME`": RoleSpec,
    "`slurm`": SlurmSettings,
    "`monitor`": MonitorSettings,
    "`monitor.alerts`": AlertSettings,
}
SCALARS = {str: "text", bool: "true or false", int: "whole number", float: "number"}


def tables(sections: Mapping[str, type[BaseModel]]) -> str:
    """One table per part of a file."""
    return "\n\n".join(f"### {title}\n\n{_table(model)}" for title, model in sections.items())


def page(text: str) -> str:
    """The page of profiles with its generated part renewed."""
    return _renewed(text, tables(SECTIONS))


def fleet_page(text: str) -> str:
    """The page of the fleet file with its generated part renewed."""
    return _renewed(text, tables(FLEET_SECTIONS))


def _renewed(text: str, generated: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def _table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description} |"
        for name, field in model.model_fields.items()
        if not (name == "name" and model in (ModelSpec, RoleSpec))
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def _type(annotation: Any) -> str:
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return "list"
    if origin is Mapping or (isinstance(annotation, type) and issubclass(annotation, (BaseModel, Mapping))):
        return "mapping"
    if origin is typing.Literal:
        return "word"
    if origin is typing.Annotated:
        return _type(arguments[0])
    return next(_type(argument) for argument in arguments if argument is not type(None))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return ", ".join(f"`{item.name}`" for item in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple) and value:
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{value:g}`" if isinstance(value, (int, float)) else "none"


def main() -> int:
    """Write or check; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the file is stale")
    check = parser.parse_args().check
    pages = {place: renew(place.read_text(encoding="utf-8")) for place, renew in ((PAGE, page), (FLEET_PAGE, fleet_page))}
    stale = {place: new for place, new in pages.items() if new != place.read_text(encoding="utf-8")}
    for place, new in stale.items():
        if check:
            print(f"{place} is not up to date: run python scripts/generate_profile_docs.py", file=sys.stderr)
        else:
            place.write_text(new, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
