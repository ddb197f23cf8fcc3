"""Find, read and validate the fleet file, reporting every fault with its line; name the fleet's servers.

`search_path` lists where the file is looked for. Paths in it are relative to its folder, except `logs`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workflow_composer.backends.replicas.registry import ROLE, Entry, ServerRegistry, SigningKey, registry_directory
from workflow_composer.config.findings import add_faults
from workflow_composer.config.named_code import code_allowed, refuse
from workflow_composer.config.normalize import filled_in, url_fault, without_secrets
from workflow_composer.config.profile_models import Expanded
from workflow_composer.config.yaml_source import KeyPath, Problems, read_profile, shown
from workflow_composer.errors import FleetError, ProfileNotFound, nearest
from workflow_composer.fleet.identity import fleet_id, known_id, same_file
from workflow_composer.fleet.places import FILE, WORKING, own_files
from workflow_composer.fleet.settings import FleetSettings, RoleSpec, faults, sbatch_faults, short_names
from workflow_composer.fleet.slurm.commands import Slurm
from workflow_composer.fleet.state import ServerState, StateStore, state_directory

VLLM_PYTHON = "WORKFLOW_COMPOSER_VLLM_PYTHON"
"""Environment variable: the Python with vLLM, if the fleet file sets none."""

_TRACING = 20.0
"""Time limit in seconds for asking SLURM which jobs of this file there are, once in a fleet's life."""
_WEBHOOK: KeyPath = ("monitor", "alerts", "webhook")
_FOLDERS = ("registry", "state", "python")


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet: its settings, their file, the registry and the store of server states."""

    settings: FleetSettings
    path: Path
    registry: ServerRegistry
    states: StateStore
    environ: Mapping[str, str]

    @property
    def id(self) -> str:
        """The fleet's id, made now if it has none. Raises `WorkflowComposerError` if it cannot be recorded."""
        return fleet_id(self.states.directory, self.path, self._traces)

    @property
    def known_id(self) -> str:
        """The fleet's id if it has one, else that of a registry entry of its file, else empty; nothing is written."""
        return known_id(self.states.directory, self.path) or next(self._entries(), "")

    def owns(self, found: ServerState | Entry) -> bool:
        """Whether a state or a registry entry is of this fleet; one of an earlier version is by its file, if it has one."""
        if found.fleet and (known := self.known_id):
            return found.fleet == known
        return not found.fleet_file or same_file(found.fleet_file, self.path)

    def _entries(self) -> Iterator[str]:
        for entry in self.registry.all():
            if entry.fleet and same_file(entry.fleet_file, self.path):
                yield entry.fleet

    def _traces(self) -> Iterator[str]:
        """Yield the ids under which servers of this file run: by the registry, else by the comments of this user's jobs."""
        yield from self._entries()
        if shutil.which("squeue", path=self.environ.get("PATH")):
            with contextlib.suppress(FleetError):  # this is rare, and no cluster must be in reach
                for job in Slurm(self.environ, limit=_TRACING).jobs():
                    if job.mark and same_file(job.mark.file, self.path):
                        yield job.mark.fleet

    def role(self, name: str) -> RoleSpec:
        """Return the role of that name. Raises `FleetError`, which suggests the nearest name."""
        if name in self.settings.roles:
            return self.settings.roles[name]
        known = tuple(self.settings.roles)
        hint = nearest(name, known) or f"known roles: {', '.join(known) or 'none'}"
        raise FleetError(f"{self.path} has no role {name!r}", hint=hint)

    def server_names(self, role: str) -> tuple[str, ...]:
        """The names of the role's servers: ``coder``, ``coder-2``, ... Raises `FleetError`."""
        return tuple(server_name(role, number) for number in range(self.role(role).replicas))

    def find(self, server: str) -> tuple[RoleSpec, int]:
        """Return a server's role and port. Raises `FleetError`."""
        for role in self.settings.roles.values():
            for number in range(role.replicas):
                if server_name(role.name, number) == server:
                    return role, role.port + number
        return self.role(server), self.role(server).port

    def servers(self, names: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the servers with these names or of these roles; all servers if no name is given. Raises `FleetError`."""
        found: dict[str, None] = {}
        for name in names or tuple(self.settings.roles):
            if name in self.settings.roles:
                found |= dict.fromkeys(self.server_names(name))
            else:
                self.find(name)
                found[name] = None
        return tuple(found)

    def to_start(self, names: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the servers to start: those named, or all that need not be. Raises `FleetError`."""
        usual = tuple(name for name, role in self.settings.roles.items() if not role.on_request)
        return self.servers(names or usual) if names or usual else ()

    @property
    def slurm(self) -> Slurm:
        """SLURM's commands, for this fleet."""
        return Slurm(self.environ, keep=self.settings.slurm.sbatch_variables)

    @property
    def logs(self) -> Path:
        """The folder with the servers' logs."""
        return Path(self.settings.logs).expanduser().absolute()

    @property
    def python(self) -> str:
        """The Python interpreter with vLLM."""
        import sys

        return self.settings.python or self.environ.get(VLLM_PYTHON, "").strip() or sys.executable


def server_name(role: str, number: int) -> str:
    """The name of the role's server with this number, counted from 0."""
    return f"{role}-{number + 1}" if number else role


def load_fleet(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Fleet:
    """Read the fleet file at ``path``, or the first one that `search_path` finds.

    Raises `ProfileError` with every fault, `FleetError` if there is no file, `ConfigError` for the registry's key.
    """
    environ = os.environ if environ is None else environ
    place = Path(path).expanduser() if path is not None else next(p for p in search_path(environ) if p.is_file())
    found = path is None and place in WORKING and not place.samefile(shipped())
    settings = read_settings(place, environ, found=found)
    registry = ServerRegistry(registry_directory(environ, settings.registry), key=SigningKey.read(environ))
    states = StateStore(state_directory(environ, settings.state))
    return Fleet(settings, place.absolute(), registry, states, environ)


def search_path(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Candidate paths of the fleet file: in the working directory, of the user, and the shipped one, which always exists."""
    return (*own_files(environ), shipped())


def shipped(package: Path = Path(__file__).parent) -> Path:
    """The fleet file shipped with the package; in a source checkout it is in ``config/``."""
    installed = package / FILE
    return installed if installed.is_file() else package.parent.parent / "config" / FILE


def read_settings(path: Path, environ: Mapping[str, str], *, found: bool = False) -> FleetSettings:
    """Read the settings from a file. Raises `ProfileError` with every fault, `FleetError` if there is no file.

    ``found``: nobody has named the file by its path, so that it must not name programs.
    """
    example = "roles: {small: {model: ./small, port: 8001}}"
    try:
        tree, _, problems = read_profile(path, kind="fleet file", example=example, found=found)
    except ProfileNotFound as error:
        raise FleetError(
            error.message, hint="pass another file with --fleet, or copy the shipped one (docs/fleet.md)"
        ) from None
    tree = without_secrets(tree, problems, (lambda key: key == _WEBHOOK, "monitor.alerts.webhook"))
    normal = _Normal(problems, environ).of(tree)
    settings = None
    try:
        settings = FleetSettings(**normal)
    except ValidationError as error:
        add_faults(error, FleetSettings, tree, problems)
    _check(tree, problems)
    if found and not code_allowed(environ):
        for key in _programs(tree):
            refuse(key, problems, "--fleet")
    problems.raise_if_any()
    assert settings is not None, "every pydantic error is reported as a problem"
    return settings


# ------------------------------------------------------------------------------------------------------------ normal form


class _Normal:
    """Adds role names, makes paths absolute, expands the webhook; values of a wrong type are left for pydantic to report."""

    def __init__(self, problems: Problems, environ: Mapping[str, str]) -> None:
        self.problems = problems
        self.environ = environ

    def of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        data = dict(tree)
        for key in _FOLDERS:
            # `python` without a slash is a command to look up in PATH.
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
            allowed = "allowed: up to 64 letters, digits, '_', '-' and '.', starting with a letter or digit"
            self.problems.add(path, f"invalid role name {name[:70]!r}", allowed)
            self.problems.source.faulty.add(path)
            return None
        if not isinstance(value, Mapping):
            return value
        data = dict(value)
        if "name" in data:
            self.problems.add((*path, "name"), "unknown key", f"remove it; the role is named {name!r} by its key")
        if isinstance(model := data.get("model"), str):
            data["model"] = self.model(model, (*path, "model"))
            if "served_name" not in data:
                data = {"aliases": short_names(model), **data, "served_name": model}
        return {**data, "name": name}

    def model(self, text: str, path: KeyPath) -> str:
        if not text.startswith((".", "/", "~")) and "/" not in text:
            return text
        place = self.absolute(text)
        if Path(place).is_dir():
            return place
        if text.startswith((".", "/", "~")):
            self.problems.add(path, f"no such folder: {place}", "give a folder relative to this file, or a model id")
        return text

    def webhook(self, value: Any) -> Any:
        if not isinstance(value, str) or not value:
            return value
        url = filled_in(value, _WEBHOOK, self.problems, self.environ)
        if url is None:
            return value
        # Webhook services put their key into the query.
        fault = url_fault(url.partition("?")[0])
        if fault:
            self.problems.add(
                _WEBHOOK, f"invalid URL (not shown, it may contain a secret); {fault}", "allowed: http:// or https://"
            )
        return Expanded(url, value) if url != value else url


# ----------------------------------------------------------------------------------------------------------------- checks


def _check(tree: Mapping[str, Any], problems: Problems) -> None:
    """Check constraints between keys; values of a wrong type are skipped, so that one run reports every fault."""
    roles = tree.get("roles")
    roles = {name: role for name, role in roles.items() if isinstance(role, Mapping)} if isinstance(roles, Mapping) else {}
    if not roles and not any(path[:1] == ("roles",) for path in problems.source.faulty):
        problems.add(("roles",), "no roles", "define at least one role; docs/fleet.md shows how")
    _ports(roles, problems)
    _server_names(roles, problems)
    for name, role in roles.items():
        _arguments(("roles", name), role, problems)
    for index, found, instead in sbatch_faults(_texts(_mapping_at(tree, "slurm").get("options"))):
        problems.add(("slurm", "options", index), found, instead)


_LOADS_CODE = re.compile(
    r"--(?:trust[-_]remote[-_]code|middleware|tool[-_]parser[-_]plugin|reasoning[-_]parser[-_]plugin|logits[-_]processors"
    r"|worker[-_](?:cls|extension[-_]cls)|scheduler[-_]cls|io[-_]processor[-_]plugin|generation[-_]config|config)\b.*"
)
_NAMES_PROGRAMS = re.compile(r"PATH|BASH_ENV|ENV|IFS|(?:LD|DYLD|PYTHON|VLLM|GCONV|MALLOC|CUDA|TORCH|TRITON)_?.*")


def _programs(tree: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Yield the keys that name programs or code: run by the fleet, or loaded by its servers."""
    if tree.get("python") is not None:
        yield ("python",)
    alerts = _mapping_at(_mapping_at(tree, "monitor"), "alerts")
    if alerts.get("command"):
        yield ("monitor", "alerts", "command")
    for name in _mapping_at(tree, "roles"):
        role = _mapping_at(_mapping_at(tree, "roles"), name)
        for variable in _mapping_at(role, "environment"):
            if _NAMES_PROGRAMS.fullmatch(variable):
                yield ("roles", name, "environment", variable)
        arguments = role.get("arguments")
        for index, argument in enumerate(arguments if isinstance(arguments, tuple) else ()):
            if isinstance(argument, str) and _LOADS_CODE.fullmatch(argument):
                yield ("roles", name, "arguments", index)


def _mapping_at(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _ports(roles: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    taken: dict[int, str] = {}
    for name, ports in _ranges(roles):
        path = ("roles", name, "port")
        if ports[-1] > 65535:
            problems.add(path, f"the last of {len(ports)} replicas would get port {ports[-1]}", "allowed: ports up to 65535")
        for port in ports:
            if port in taken:
                problems.add(path, f"port {port} is already used by role {taken[port]!r}", "each server needs its own port")
                break
        taken |= dict.fromkeys(ports, name)


def _ranges(roles: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, range]]:
    for name, role in roles.items():
        port, replicas = role.get("port"), role.get("replicas", 1)
        if type(port) is int and type(replicas) is int and 0 < port < 65536 and 0 < replicas <= 64:
            yield name, range(port, port + replicas)


def _server_names(roles: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """Report roles whose name equals the name of another role's replica."""
    for name, ports in _ranges(roles):
        for number in range(1, len(ports)):
            if (other := server_name(name, number)) in roles:
                problems.add(("roles", other), f"role {name!r} already has a replica named {other!r}", "choose another name")


def _arguments(path: KeyPath, role: Mapping[str, Any], problems: Problems) -> None:
    environment = role.get("environment")
    for index, found, instead in faults(_texts(role.get("arguments"))):
        problems.add((*path, "arguments", index), found, instead)
    if isinstance(environment, Mapping) and "VLLM_API_KEY" in environment:
        here = (*path, "environment", "VLLM_API_KEY")
        problems.add(here, shown("a key", here), "set api_key_env to the name of the variable that holds it")


def _texts(items: object) -> list[str]:
    """The items of a list, an empty text for what is none."""
    return [item if isinstance(item, str) else "" for item in items] if isinstance(items, tuple) else []
