"""Reads the fleet file: found, checked completely, every fault with its line, and what its servers are called.

A file is searched for as `search_path` says. Paths in it are relative to its folder, except `logs`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow_composer.backends.registry import ROLE, Registry, registry_directory
from workflow_composer.errors import FleetError, ProfileNotFound
from workflow_composer.fleet.options import faults
from workflow_composer.fleet.settings import FleetSettings, RoleSpec
from workflow_composer.fleet.state import StateStore, state_directory
from workflow_composer.names import nearest
from workflow_composer.profiles.faults import add_faults
from workflow_composer.profiles.models import Expanded
from workflow_composer.profiles.normal import filled_in, url_fault, without_secrets
from workflow_composer.profiles.source import KeyPath, Problems, read_profile, shown

VLLM_PYTHON = "WORKFLOW_COMPOSER_VLLM_PYTHON"
"""The Python that has vLLM, where the fleet file names none."""

FILE = "fleet.yaml"
_WEBHOOK: KeyPath = ("monitor", "alerts", "webhook")
_FOLDERS = ("registry", "state", "python")


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet: its settings, the file they stand in, and where its parts leave word for each other."""

    settings: FleetSettings
    path: Path
    registry: Registry
    states: StateStore
    environ: Mapping[str, str]

    def role(self, name: str) -> RoleSpec:
        """The role of that name. Raises `FleetError`, with the nearest name."""
        if name in self.settings.roles:
            return self.settings.roles[name]
        known = tuple(self.settings.roles)
        hint = nearest(name, known) or f"there are: {', '.join(known) or 'none'}"
        raise FleetError(f"{self.path} has no role {name!r}", hint=hint)

    def server_names(self, role: str) -> tuple[str, ...]:
        """What the role's servers are called: ``coder``, ``coder-2``, ... Raises `FleetError`."""
        return tuple(server_name(role, number) for number in range(self.role(role).replicas))

    def find(self, server: str) -> tuple[RoleSpec, int]:
        """The role of a server and the server's port. Raises `FleetError`."""
        for role in self.settings.roles.values():
            for number in range(role.replicas):
                if server_name(role.name, number) == server:
                    return role, role.port + number
        return self.role(server), self.role(server).port

    def servers(self, names: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The servers of these roles, or these servers; without a name, all. Raises `FleetError`."""
        found: dict[str, None] = {}
        for name in names or tuple(self.settings.roles):
            if name in self.settings.roles:
                found |= dict.fromkeys(self.server_names(name))
            else:
                self.find(name)
                found[name] = None
        return tuple(found)

    @property
    def logs(self) -> Path:
        """The folder of the servers' logs."""
        return Path(self.settings.logs).expanduser().absolute()

    @property
    def python(self) -> str:
        """The Python that has vLLM."""
        import sys

        return self.settings.python or self.environ.get(VLLM_PYTHON, "").strip() or sys.executable


def server_name(role: str, number: int) -> str:
    """What the role's server of that number, counted from 0, is called."""
    return f"{role}-{number + 1}" if number else role


def load_fleet(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Fleet:
    """Read the fleet file at ``path``, or the first one that `search_path` finds.

    Raises `ProfileError` with every fault, `FleetError` where there is no file.
    """
    environ = os.environ if environ is None else environ
    place = Path(path).expanduser() if path is not None else next(p for p in search_path(environ) if p.is_file())
    settings = read_settings(place, environ)
    registry = Registry(registry_directory(environ, settings.registry))
    states = StateStore(state_directory(environ, settings.state))
    return Fleet(settings, place.absolute(), registry, states, environ)


def search_path(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a fleet file is looked for: the working directory's, the user's, and the shipped one, which is always there."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # no error without a home
    return (Path("config") / FILE, Path(home) / "workflow-composer" / FILE, shipped())


def shipped(package: Path = Path(__file__).parent) -> Path:
    """The fleet file that comes with the package; in a source checkout it lies beside the package."""
    installed = package / FILE
    return installed if installed.is_file() else package.parent.parent / "config" / FILE


def read_settings(path: Path, environ: Mapping[str, str]) -> FleetSettings:
    """The settings in a file. Raises `ProfileError` with every fault, `FleetError` where there is no file."""
    try:
        tree, _, problems = read_profile(path, kind="fleet file", example="roles: {small: {model: ./small, port: 8001}}")
    except ProfileNotFound as error:
        raise FleetError(error.message, hint="name another by --fleet, or copy the shipped one: docs/fleet.md") from None
    tree = without_secrets(tree, problems, (lambda key: key == _WEBHOOK, "monitor.alerts.webhook"))
    normal = _Normal(problems, environ).of(tree)
    settings = None
    try:
        settings = FleetSettings(**normal)
    except ValidationError as error:
        add_faults(error, FleetSettings, tree, problems)
    _check(tree, problems)
    problems.raise_if_any()
    assert settings is not None, "pydantic's findings are problems"
    return settings


# ------------------------------------------------------------------------------------------------------------ normal form


class _Normal:
    """Names roles, makes paths absolute, fills in the webhook; what has the wrong type is left for pydantic to report."""

    def __init__(self, problems: Problems, environ: Mapping[str, str]) -> None:
        self.problems = problems
        self.environ = environ

    def of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        data = dict(tree)
        for key in _FOLDERS:
            # A Python without a folder is a command's name.
            if isinstance(data.get(key), str) and data[key] and (key != "python" or "/" in data[key]):
                data[key] = self.absolute(data[key])
        if isinstance(roles := data.get("roles"), Mapping):
            named = {name: self.role(name, value) for name, value in roles.items()}
            data["roles"] = {name: value for name, value in named.items() if value is not None}
        monitor = data.get("monitor")
        if isinstance(monitor, Mapping) and isinstance(alerts := monitor.get("alerts"), Mapping) and "webhook" in alerts:
            data["monitor"] = {**monitor, "alerts": {**alerts, "webhook": self.webhook(alerts["webhook"])}}
        return data

    def absolute(self, place: str) -> str:
        return os.path.abspath(self.problems.source.directory / os.path.expanduser(place))  # noqa: PTH100, PTH111  # keeps symlinks; no error without a home

    def role(self, name: str, value: Any) -> Any:
        path = ("roles", name)
        if not ROLE.fullmatch(name):
            allowed = "a role's name has up to 64 letters, digits, '_', '-' and '.', and begins with a letter or digit"
            self.problems.add(path, f"{name[:70]!r} cannot name a role", allowed)
            self.problems.source.faulty.add(path)
            return None
        if not isinstance(value, Mapping):
            return value
        data = dict(value)
        if "name" in data:
            self.problems.add((*path, "name"), "unknown key", f"the role's name is {name!r}")
        if isinstance(model := data.get("model"), str):
            data["model"] = self.model(model, (*path, "model"))
            data.setdefault("served_name", model)
        return {**data, "name": name}

    def model(self, text: str, path: KeyPath) -> str:
        if not text.startswith((".", "/", "~")) and "/" not in text:
            return text
        place = self.absolute(text)
        if Path(place).is_dir():
            return place
        if text.startswith((".", "/", "~")):
            self.problems.add(path, f"there is no folder {place}", "a folder relative to this file, or a model's id")
        return text

    def webhook(self, value: Any) -> Any:
        if not isinstance(value, str) or not value:
            return value
        url = filled_in(value, _WEBHOOK, self.problems, self.environ)
        if url is None:
            return value
        # Services' addresses carry their key in the query.
        fault = url_fault(url.partition("?")[0])
        if fault:
            self.problems.add(_WEBHOOK, f"found an address that is not shown; {fault}", "allowed: http:// or https://")
        return Expanded(url, value) if url != value else url


# ----------------------------------------------------------------------------------------------------------------- checks


def _check(tree: Mapping[str, Any], problems: Problems) -> None:
    """What one key demands of another; skips what has the wrong type, so that one run reports every fault."""
    roles = tree.get("roles")
    roles = {name: role for name, role in roles.items() if isinstance(role, Mapping)} if isinstance(roles, Mapping) else {}
    if not roles and not any(path[:1] == ("roles",) for path in problems.source.faulty):
        problems.add(("roles",), "there is no role", "name one server at least; docs/fleet.md shows how")
    _ports(roles, problems)
    _server_names(roles, problems)
    for name, role in roles.items():
        _arguments(("roles", name), role, problems)


def _ports(roles: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    taken: dict[int, str] = {}
    for name, ports in _ranges(roles):
        path = ("roles", name, "port")
        if ports[-1] > 65535:
            problems.add(path, f"the last of {len(ports)} replicas has port {ports[-1]}", "allowed: ports up to 65535")
        for port in ports:
            if port in taken:
                problems.add(path, f"port {port} is one of role {taken[port]!r} too", "each server has a port of its own")
                break
        taken |= dict.fromkeys(ports, name)


def _ranges(roles: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, range]]:
    for name, role in roles.items():
        port, replicas = role.get("port"), role.get("replicas", 1)
        if type(port) is int and type(replicas) is int and 0 < port < 65536 and 0 < replicas <= 64:
            yield name, range(port, port + replicas)


def _server_names(roles: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """A role must not be called what another role's replica is called."""
    for name, ports in _ranges(roles):
        for number in range(1, len(ports)):
            if (other := server_name(name, number)) in roles:
                problems.add(("roles", other), f"a replica of role {name!r} is called {other!r} too", "another name")


def _arguments(path: KeyPath, role: Mapping[str, Any], problems: Problems) -> None:
    arguments, environment = role.get("arguments"), role.get("environment")
    texts = [item if isinstance(item, str) else "" for item in arguments] if isinstance(arguments, tuple) else []
    for index, found, instead in faults(texts):
        problems.add((*path, "arguments", index), found, instead)
    if isinstance(environment, Mapping) and "VLLM_API_KEY" in environment:
        here = (*path, "environment", "VLLM_API_KEY")
        problems.add(here, shown("a key", here), "set the key api_key_env to the name of the variable that holds it")
