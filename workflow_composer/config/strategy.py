"""StrategyConfig: a strategy profile, validated and frozen.

A profile (YAML) lists the models, routes each task to one of them, sets the order of fallbacks, and says whether data may
leave the user's own machines. `StrategyConfig.load` finds the file, checks it and reports every fault at once, each with
file, line and key. ``docs/profiles.md`` lists every key.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError

from workflow_composer.config.checks import Checks
from workflow_composer.config.cloud_names import CLOUD, FilledIn, in_catalogue
from workflow_composer.config.findings import add_faults
from workflow_composer.config.named_code import check_code
from workflow_composer.config.normalize import NormalForm, as_tree, without_secrets
from workflow_composer.config.profile_models import (
    BreakerSettings,
    Catalogue,
    HeaderNames,
    ModelSpec,
    Name,
    Names,
    NameToName,
    NameToNames,
    Place,
    Places,
    ProfilePart,
    RetrySettings,
    RoleToServers,
    Routers,
    RouterSpec,
    Tiers,
    TierSpec,
    TimeoutSettings,
    as_written,
    frozen,
    frozen_mapping,
    registered_role,
)
from workflow_composer.config.yaml_source import KeyPath, Problems, SourceText, read_profile
from workflow_composer.errors import ProfileError, ProfileNotFound, RoutingError, nearest
from workflow_composer.types import ANY_TASK

__all__ = [
    "PRESETS",
    "BreakerSettings",
    "ModelSpec",
    "RetrySettings",
    "RouterSpec",
    "StrategyConfig",
    "TierSpec",
    "TimeoutSettings",
    "profiles",
    "search_path",
]

PRESETS = ("t4_hybrid", "t4_local_only", "cloud_only", "development", "math_cascade", "t4_feedback")
"""The profiles shipped with the package."""

LOCAL_PRESETS = ("t4_local_only", "development", "math_cascade")
"""Those that promise to keep data on one's own machines."""

WORKING = Path("config/strategies")
"""Folder of profiles in the working directory."""

SUFFIXES = (".yaml", ".yml")


class StrategyConfig(ProfilePart):
    """A profile. Its mappings are read-only and in the order of the file.

    Faulty data, from a file or from Python, raises `ProfileError` with every fault:

    >>> config = StrategyConfig(profile_name="mine", models={"small": {"backend": "embedded", "path": "small"}})
    >>> config.resolve("small")[0].backend
    'embedded'
    """

    profile_name: Name = Field(description="The profile's name in metrics and in the status.")
    description: str = Field(default="", description="What the profile is for.")
    allow_cloud: bool = Field(
        default=True,
        description="Whether a request may leave the profile's own machines. With `false`, a route to the cloud is an error "
        "when the profile loads, and connections to other hosts are refused.",
    )
    trusted_programs: Names = Field(
        default=(),
        description="Steps of workflows, as `WORKFLOW.STEP`, whose programs may use the network although they read private "
        "inputs; the step says `trusted: true`, too.",
    )
    debug_routing: bool = Field(
        default=False, description="Explain every routing decision in the log, and write prompts to the metrics file."
    )
    logs: Name | None = Field(
        default=None,
        description="Folder of the metrics file and of the batch decision log, such as `logs`, relative to the working "
        "directory. Default: the user's state folder, `~/.local/state/workflow-composer`.",
    )
    vllm_endpoints: RoleToServers = frozen_mapping(
        "Role -> URL of your own model server, up to and including `/v1`; or `registry:ROLE` for the servers that a fleet "
        "registered; or a list of these, among which calls are balanced."
    )
    registry: Place | None = Field(
        default=None,
        description="Folder of the fleet's registry, relative to the profile's file. Default: "
        "`~/.local/state/workflow-composer/registry`; $WORKFLOW_COMPOSER_REGISTRY overrides both.",
    )
    local_networks: Names = Field(
        default=(), description="Networks (CIDR) with public addresses that are your own machines."
    )
    local_users: Names = Field(
        default=(),
        description="Users of this machine, by name or number, whose servers and registry entries are your own. With "
        "`allow_cloud: false`, a server of any other user on this machine is refused; you and root need no entry.",
    )
    task_routing: NameToName = frozen_mapping(
        'Task -> a role, model, tier or routing string, `cloud`, or `cascade` (all tiers). The task `"*"` covers every '
        "task that is not listed."
    )
    task_contexts: NameToNames = frozen_mapping(
        "Task -> the context templates to put at the start of its requests: a name or a list of names, such as "
        '`file-formats`, `file-formats@1`, or paths relative to the profile\'s file. The task `"*"` covers every task that '
        "is not listed."
    )
    fallback: Names = Field(
        default=(),
        description="Models to try, in this order, if the task's own model fails: a list, or the keys `primary` and "
        "`secondary`.",
    )
    fallback_on_auth: bool = Field(
        default=True,
        description="Whether the next model is tried if a server refuses a model's key (401, 403). After a local model, "
        "only local ones are tried: they see no more than it would have.",
    )
    forward_headers: HeaderNames = Field(
        default=(),
        description="Headers of a client's request that go on to the model's server, such as `x-tenant`, beside "
        "`X-Request-Id`, `traceparent` and `tracestate`, which always do. Those in which clients tell of themselves, or "
        "that hold keys, are refused.",
    )
    models: Catalogue = frozen_mapping("Name -> model: the catalogue.")
    tiers: Tiers = frozen_mapping("Name -> tier of a cascade, cheap ones first.")
    routers: Routers = Field(
        default=(RouterSpec(name="cascading_provider"),),
        description="Routers, asked in this order; the first that returns a plan decides. Each is `NAME` or "
        "`NAME: {SETTINGS}`.",
    )
    plugins: Places = Field(
        default=(),
        description="Python files (or folders that are packages) with plugins of this profile, relative to its file: "
        "`[./my_router.py]`. They run when the profile loads; see [plugins.md](plugins.md).",
    )
    workflows: Places = Field(
        default=(),
        description="Files of workflows, or folders of them, relative to the profile's file, that the service offers as "
        "models `workflow:NAME`: `[./triage.yaml]`. They are checked when the profile loads; see "
        "[workflows.md](workflows.md).",
    )
    timeouts: TimeoutSettings = Field(default=TimeoutSettings(), description="Limits in seconds for one call.")
    retries: RetrySettings = Field(default=RetrySettings(), description="Retries of one candidate.")
    circuit_breaker: BreakerSettings = Field(
        default=BreakerSettings(), description="When calls to a failing endpoint are suspended."
    )

    _source: SourceText = PrivateAttr()
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _specs: Mapping[str, ModelSpec] = PrivateAttr()

    def __repr__(self) -> str:
        where = "may use the cloud" if self.allow_cloud else "stays on your own machines"
        return f"<StrategyConfig {self.profile_name}: models {', '.join(self.models) or 'of its endpoints'}; {where}>"

    def __init__(self, /, *, _read: tuple[SourceText, Problems, Mapping[str, str]] | None = None, **data: Any) -> None:
        _, problems, environ = _read or _in_python()
        source = check_code(data, problems, environ)  # first: nothing that names code is read any further
        filled = FilledIn(without_secrets(as_tree(data), problems), source)
        tree = filled.tree
        normal = NormalForm(problems, environ).of(tree)
        try:
            super().__init__(**normal)
        except ValidationError as error:
            add_faults(error, type(self), tree, problems)
        Checks(tree, normal, problems).run()
        problems.raise_if_any()
        self._source = source
        self._notes = tuple(filled.notes)
        self._specs = _callable_specs(self)
        self.__dict__["models"] = frozen({name: self._specs[name] for name in self.models})

    # ------------------------------------------------------------------------------------------------------------ loading

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Self:
        """Read the file; ``environ`` (default: os.environ) gives the values of ``${NAME}``.

        Raises `ProfileNotFound` or `ProfileError`.
        """
        return cls._read(Path(path), environ, found=False)

    @classmethod
    def _read(cls, path: Path, environ: Mapping[str, str] | None, *, found: bool) -> Self:
        tree, source, problems = read_profile(path, found=found)
        return cls(_read=(source, problems, os.environ if environ is None else environ), **tree)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        search: Sequence[Path] | None = None,
        environ: Mapping[str, str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Self:
        """Load a profile by name or by path; ``search`` replaces the folders of `search_path`.

        A name is loaded as by `load_found`. Raises `ProfileNotFound` or `ProfileError`.
        """
        path = find(name_or_path, search_path(environ) if search is None else search)
        if is_path(name_or_path):
            return cls.from_yaml(path, environ=environ)
        return cls.load_found(path, environ=environ, report=report)

    @classmethod
    def load_found(
        cls,
        path: Path,
        *,
        environ: Mapping[str, str] | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Self:
        """Load a file that was found by a profile's name. From the working directory it must not name code.

        It must not undo the promise of a shipped profile of its name to keep data local either; if it replaces one
        otherwise, ``report`` is told (default: a warning). Raises `ProfileNotFound` or `ProfileError`.
        """
        found = is_in_working_directory(path)
        config = cls._read(path, environ, found=found)
        if found and path.stem in LOCAL_PRESETS:
            (report or warnings.warn)(config._replacing(path.stem))
        return config

    def reread(self, *, environ: Mapping[str, str] | None = None) -> Self:
        """Read the file again, under the rules by which it was read. Raises `ProfileNotFound` or `ProfileError`."""
        path = Path(self.source)
        if not self._source.found:
            return self.from_yaml(path, environ=environ)
        return self.load_found(path, environ=environ, report=lambda text: None)

    def _replacing(self, name: str) -> str:
        """Say that the profile replaces the shipped one of this name; raise `ProfileError` if it may send data elsewhere."""
        key = "allow_cloud" if self.allow_cloud else "local_networks" if self.local_networks else ""
        if key:
            raise ProfileError(
                [f"{self.where(key)}: the shipped profile {name!r} keeps data local, and this file of its name may not"],
                hint=f"name it by its path if you want it (-s ./{self.source}), or rename it",
            )
        return f"{self.source} in the working directory is used instead of the shipped profile {name}"

    # ----------------------------------------------------------------------------------------------------------- questions

    @property
    def source(self) -> str:
        """The path of its file, as given."""
        return self._source.label

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not taken as written: retired cloud models, and the successors that answer in their place."""
        return self._notes

    @property
    def directory(self) -> Path:
        """The folder to which its paths are relative."""
        return self._source.directory

    def replaced(self, **keys: Any) -> Self:
        """Return a copy with other values of these keys. Raises `ProfileError`."""
        source = replace(self._source, found=False)  # these keys come from a person
        return type(self)(_read=(source, Problems(source), os.environ), **{**self.to_dict(), **keys})

    def where(self, *keypath: str | int) -> str:
        """Return ``file:line: key.path`` with the line of the key or of its nearest parent: the start of an error.

        >>> StrategyConfig(profile_name="mine").where("routers", 0)
        '<StrategyConfig>: routers[0]'
        """
        path: KeyPath = keypath
        return self._source.where(path)

    def route_of(self, task: str) -> str | None:
        """Return the target of this task; None if the profile routes it nowhere."""
        return self.task_routing.get(task, self.task_routing.get(ANY_TASK))

    def servers_of(self, role: str | None) -> tuple[str, ...]:
        """Return the servers of a role, URLs and ``registry:ROLE``, in the profile's order; empty if there are none.

        >>> StrategyConfig(profile_name="mine", vllm_endpoints={"coder": "registry:coder"}).servers_of("coder")
        ('registry:coder',)
        """
        places = self.vllm_endpoints.get(role, ()) if role is not None else ()
        return (places,) if isinstance(places, str) else places

    def resolve(self, target: str) -> tuple[ModelSpec, ...]:
        """Return the models of a role, catalogue model, tier or ``cloud``, best first.

        Empty only for ``cloud`` in a profile without cloud models. Raises `RoutingError` for an unknown name.
        """
        if target == CLOUD:
            return self._cloud()
        name = self.tiers[target].model if target in self.tiers else target
        if name in self._specs:
            return (self._specs[name],)
        for spec in self._specs.values():
            if name in self.vllm_endpoints and spec.endpoint == name:
                return (spec,)
        valid = [*self.vllm_endpoints, *self.models, *self.tiers, *([CLOUD] if self.allow_cloud else [])]
        hint = nearest(target, valid) or f"allowed: {', '.join(dict.fromkeys(valid))}"
        if in_catalogue(target):
            hint = f"to use this cloud model, name it in the profile, for instance as `models: {{{target}: {{}}}}`"
        error = RoutingError(f"profile {self.profile_name!r} has no role, model or tier {target!r}", hint=hint)
        error.public = f"there is no model {target!r}{nearest(target, valid, prefix='; ')}"
        raise error

    def backend_specs(self) -> Mapping[str, ModelSpec]:
        """Return every callable model by name: the catalogue, and each role without a catalogue model.

        The specs include the URL of the role, and the tier's cost as the price if the model has none.
        """
        return self._specs

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists with defaults, ``${NAME}`` unexpanded: safe to print, and loadable as a profile."""
        data = {key: as_written(as_tree(getattr(self, key))) for key in type(self).model_fields}
        for spec in data["models"].values():
            if "endpoint" in spec:
                spec.pop("base_url", None)
        return data

    def _cloud(self) -> tuple[ModelSpec, ...]:
        named = [spec for target in self.fallback for spec in self.resolve(target) if not spec.local]
        return tuple(named or (spec for spec in self._specs.values() if not spec.local))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StrategyConfig) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # its mappings are not hashable

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the profile as written; unpickling expands ``${NAME}`` again."""
        return _revive, (self._source, self.to_dict())


def _in_python() -> tuple[SourceText, Problems, Mapping[str, str]]:
    """Return the source of a profile made in Python instead of read from a file."""
    source = SourceText("<StrategyConfig>", Path())
    return source, Problems(source), os.environ


def _revive(source: SourceText, data: dict[str, Any]) -> StrategyConfig:
    return StrategyConfig(_read=(source, Problems(source), os.environ), **data)


def _callable_specs(config: StrategyConfig) -> Mapping[str, ModelSpec]:
    """See `StrategyConfig.backend_specs`."""
    claimed = {spec.endpoint for spec in config.models.values()}
    roles = {role: ModelSpec(name=role, backend="vllm", endpoint=role) for role in config.vllm_endpoints}
    specs = dict(config.models) | {role: spec for role, spec in roles.items() if role not in claimed}
    by_endpoint = {spec.endpoint: name for name, spec in reversed(specs.items())}
    behind = {tier.model: tier.model if tier.model in specs else by_endpoint[tier.model] for tier in config.tiers.values()}
    costs = {behind[tier.model]: tier.cost for tier in config.tiers.values() if tier.cost is not None}
    for name, spec in specs.items():
        filled: dict[str, Any] = {}
        if spec.endpoint is not None:
            filled["base_url"] = _only_url(config.servers_of(spec.endpoint))
        if name in costs and not spec.priced:
            filled |= {"input_price": costs[name], "output_price": costs[name]}
        specs[name] = spec.model_copy(update=filled)
    return MappingProxyType(specs)


def _only_url(places: tuple[str, ...]) -> str | None:
    """Return the URL of a role with one server; None if a `ReplicaSet` finds the servers."""
    return places[0] if len(places) == 1 and registered_role(places[0]) is None else None


# ------------------------------------------------------------------------------------------------------------- finding


def search_path(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders to search for a profile, in order: working directory, user, package."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # no error without a home
    return (WORKING, Path(home) / "workflow-composer" / "strategies", shipped())


def shipped(package: Path = Path(__file__).parent.parent) -> Path:
    """Return the folder of the shipped profiles; in a source checkout it is beside the package."""
    installed = package / "strategies"
    return installed if installed.is_dir() else package.parent / "config" / "strategies"


def profiles(search: Sequence[Path] | None = None) -> dict[str, Path]:
    """Map every profile that can be loaded by name to its file. The first folder with a name wins."""
    found: dict[str, Path] = {}
    for folder in search_path() if search is None else search:
        for suffix in SUFFIXES:
            for path in sorted(folder.glob(f"*{suffix}")):
                found.setdefault(path.stem, path)
    return found


def find(name_or_path: str | os.PathLike[str], search: Sequence[Path]) -> Path:
    """Return a profile's file. A name with a separator, ``.yaml`` or ``.yml`` is a path. Raises `ProfileNotFound`."""
    name = os.fspath(name_or_path)
    if is_path(name_or_path):
        return Path(name)
    if (path := next(candidates(name, search), None)) is not None:
        return path
    places = ", ".join(str(folder) for folder in search)
    hint = nearest(name, profiles(search)) or f"available: {', '.join(sorted(profiles(search))) or 'none'}"
    raise ProfileNotFound(f"no profile named {name!r} in {places}", hint=hint)


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is the path of a profile, and no name."""
    name = os.fspath(name_or_path)
    return not isinstance(name_or_path, str) or name.endswith(SUFFIXES) or "/" in name or os.sep in name


def is_in_working_directory(path: Path) -> bool:
    """Whether a profile lies in the working directory's folder, and that is not the folder of the shipped ones."""
    with contextlib.suppress(OSError):
        return path.parent.samefile(WORKING) and not WORKING.samefile(shipped())
    return False


def candidates(name: str, search: Sequence[Path]) -> Iterator[Path]:
    """Yield every file of a profile's name, in the order of the folders."""
    places = (folder / f"{name}{suffix}" for folder in search for suffix in SUFFIXES) if name.isprintable() else ()
    for path in places:
        if os.path.exists(path):  # noqa: PTH110  # unlike Path.exists, False for a name too long and a closed folder
            yield path
