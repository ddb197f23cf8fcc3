"""Detection of available resources: local servers, cloud keys, SLURM, the embedded engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.replicas.discovery import Finder
from workflow_composer.backends.replicas.observer import ServerObserver, api_url, probe
from workflow_composer.backends.replicas.replica import ReplicaPlace
from workflow_composer.config.strategy import StrategyConfig, candidates, search_path
from workflow_composer.errors import ConfigError, FleetError, NoStrategy
from workflow_composer.support.installing import install_command
from workflow_composer.support.loop_thread import LoopThread, in_own_thread
from workflow_composer.support.places import STRATEGY_VARIABLE
from workflow_composer.types import EndpointStatus, ResourceStatus

if TYPE_CHECKING:
    from workflow_composer.config.strategy import ModelSpec


PROBE_SECONDS = 2.0
CLOUD_SECONDS = 10.0
"""Limit in seconds of the question to a cloud server whether it takes the key."""


@dataclass(frozen=True, slots=True)
class _Target:
    """One server to probe for models; ``registered``: the registry lists it with its model."""

    name: str
    url: str
    key: str | None = field(repr=False)
    models: tuple[str, ...] = ()
    registered: bool = False


class ResourceDetector:
    """Detects the resources that a profile, or a list of servers, can use.

    Instead of a profile it takes the URLs of one's own servers, which name their status, or a mapping of names to URLs; the
    cloud models are then those of the built-in catalogue.

    ``limit`` bounds the probe of one server in seconds. All servers are probed concurrently, so a hundred dead servers take
    no longer than one. Local servers are reached through the profile's `EgressPolicy`; cloud servers are never contacted.
    """

    def __init__(
        self,
        config: StrategyConfig | str | Iterable[str] | Mapping[str, str | Sequence[str]],
        *,
        environ: Mapping[str, str] | None = None,
        egress: EgressPolicy | None = None,
        limit: float = PROBE_SECONDS,
    ) -> None:
        self._profiled = isinstance(config, StrategyConfig)
        self._config = config if isinstance(config, StrategyConfig) else _profile_of(config)
        self._environ = os.environ if environ is None else environ
        self._egress = egress
        self._limit = limit

    def detect(self) -> ResourceStatus:
        """Synchronous `adetect`, which works in a running event loop, too, such as a notebook's."""
        thread = LoopThread()
        try:
            return thread.run(self.adetect())
        finally:
            thread.stop()

    async def adetect(self, *, slurm: bool = True) -> ResourceStatus:
        """Probe now. Never raises; ``detail`` describes a server's problem. ``slurm``: ask its controller, too."""
        controller = asyncio.ensure_future(slurm_controller(self._environ, self._limit)) if slurm else None
        finders = {role: Finder(self._config, role, self._environ) for role in self._config.vllm_endpoints}
        places = dict(zip(finders, await asyncio.gather(*(finder.places() for finder in finders.values())), strict=True))
        targets = [target for role in finders for target in self._targets(role, places[role] or ())]
        found = await self._probe([*targets, *self._models()])
        endpoints: dict[str, EndpointStatus] = {}
        for role, finder in finders.items():
            answers = [status for target, status in found if target.name == role]
            one = len(finder.listed) == 1 and not finder.registered
            endpoints[role] = answers[0] if one else finder.summary(role, answers)
        endpoints |= {target.name: status for target, status in found if target.name not in finders}
        fault = NO_SLURM if controller is None else await controller
        known = unprobed(self._config, self._environ)
        return replace(
            known,
            endpoints=endpoints,
            cloud_apis=known.cloud_apis if self._profiled else catalogued_keys(self._environ),
            probed_at=time.time(),
            slurm_available=not fault,
            slurm_detail="" if fault == NO_SLURM else fault,
        )

    async def _probe(self, targets: list[_Target]) -> list[tuple[_Target, EndpointStatus]]:
        if not targets:
            return []
        egress = self._egress or EgressPolicy.of(self._config)
        for target in targets:
            if target.registered:
                egress = egress.admitting(target.url)
        questions = list(dict.fromkeys((target.url, target.key, target.models) for target in targets))
        async with Client(egress) as client:
            found = await asyncio.gather(
                *(
                    probe(ServerObserver.over(client, url, key), "", limit=self._limit, models=models)
                    for url, key, models in questions
                )
            )
        answers = dict(zip(questions, found, strict=True))
        return [(target, replace(answers[target.url, target.key, target.models], name=target.name)) for target in targets]

    def _targets(self, role: str, places: Iterable[ReplicaPlace]) -> list[_Target]:
        behind = [spec for spec in self._config.models.values() if spec.endpoint == role]
        keys = [self._key(spec) for spec in behind]
        named = tuple(spec.model for spec in behind if spec.model is not None)
        return [
            _Target(
                role,
                place.url,
                place.key or (keys[-1] if keys else None),
                (place.model,) if place.model is not None else named,
                place.registered,
            )
            for place in places
            if place.refused is None
        ]

    def _models(self) -> list[_Target]:
        """Return the models with their own server."""
        own = {name: s for name, s in self._config.models.items() if s.backend == "vllm" and s.endpoint is None}
        found = [(name, s, (s.model,) if s.model is not None else ()) for name, s in own.items()]
        return [_Target(name, api_url(s.base_url), self._key(s), models) for name, s, models in found if s.base_url]

    def _key(self, spec: ModelSpec) -> str | None:
        return self._environ.get(spec.api_key_env) if spec.api_key_env else None


def unprobed(config: StrategyConfig, environ: Mapping[str, str]) -> ResourceStatus:
    """Return the status without probing anything: the endpoints are unknown, and SLURM is what it was found to be last."""
    return ResourceStatus(
        cloud_apis=cloud_apis(config, environ),
        slurm_available=_controllers.get(_slurm_of(environ), (NO_SLURM, 0.0))[0] == "",
        embedded_available=embedded_available(),
    )


def cloud_apis(config: StrategyConfig, environ: Mapping[str, str]) -> dict[str, bool]:
    """Map each cloud model to whether its key is set; empty if the profile forbids the cloud."""
    models = {name: spec for name, spec in config.models.items() if not spec.local} if config.allow_cloud else {}
    return {name: not spec.api_key_env or bool(environ.get(spec.api_key_env)) for name, spec in models.items()}


def catalogued_keys(environ: Mapping[str, str]) -> dict[str, bool]:
    """Map each model of the built-in catalogue to whether its key is set."""
    from workflow_composer.backends.catalogue import CATALOGUE

    return {name: bool(environ.get(model.api_key_env)) for name, model in CATALOGUE.items()}


NO_SLURM = "its commands are not installed"
_SLURM_CONFS = (
    "/etc/slurm/slurm.conf",
    "/etc/slurm-llnl/slurm.conf",
    "/usr/local/etc/slurm.conf",
    "/run/slurm/conf/slurm.conf",
)
_SLURM_FRESH = 60.0
"""Seconds for which an answer of SLURM's controller is kept."""
_controllers: dict[tuple[str, str], tuple[str, float]] = {}
"""(PATH, configuration) -> why SLURM is not available, empty if it is, and when that was found (monotonic seconds)."""


def slurm_installed(environ: Mapping[str, str]) -> bool:
    """Whether SLURM's commands are on the PATH."""
    path = environ.get("PATH", os.defpath)
    return any(shutil.which(command, path=path) for command in ("sbatch", "sinfo"))


async def slurm_controller(environ: Mapping[str, str], limit: float = PROBE_SECONDS) -> str:
    """Return why SLURM is not available, empty if its controller answers within ``limit`` seconds; kept for a minute."""
    if not slurm_installed(environ):
        return NO_SLURM
    kept, at = _controllers.get(known := _slurm_of(environ), ("", float("-inf")))
    if time.monotonic() - at < _SLURM_FRESH:
        return kept

    def ask() -> str:
        from workflow_composer.fleet.slurm.commands import Slurm

        try:
            Slurm(_with_slurm_conf(environ), limit=limit).ping()
        except FleetError as error:
            return f"{error.message} ({error.hint})" if error.hint else error.message
        return ""

    try:
        found = await asyncio.wait_for(in_own_thread(ask, "slurm"), 2 * limit)
    except TimeoutError:  # its child processes keep the pipes open
        found = f"its controller does not answer within {limit:g} s (check it with `scontrol ping`)"
    _controllers[known] = found, time.monotonic()
    return found


def _with_slurm_conf(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Name an empty configuration where there is none: SLURM's commands would ask the name server for one."""
    places = (environ.get("SLURM_CONF", ""), *_SLURM_CONFS)
    return environ if any(place and Path(place).is_file() for place in places) else {**environ, "SLURM_CONF": os.devnull}


def _slurm_of(environ: Mapping[str, str]) -> tuple[str, str]:
    return environ.get("PATH", os.defpath), environ.get("SLURM_CONF", "")


def _profile_of(servers: str | Iterable[str] | Mapping[str, str | Sequence[str]]) -> StrategyConfig:
    """Return a profile of nothing but these servers. Raises `ProfileError` for what is no address of one's own machines."""
    if isinstance(servers, str):
        servers = (servers,)
    named = dict(servers) if isinstance(servers, Mapping) else {url: url for url in servers}
    return StrategyConfig(profile_name="detection", allow_cloud=False, vllm_endpoints=named)


def embedded_available() -> bool:
    """Whether the embedded engine is installed; does not load it."""
    return importlib.util.find_spec("mistralrs") is not None


# --------------------------------------------------------------------------------------------------------------- detection
#
# Choice of a default strategy that keeps data on local machines and can run with the available resources.


_OWN, _SERVERS, _EMBEDDED, _CLOUD = "local", "t4_local_only", "development", "cloud_only"


async def detect_strategy(
    environ: Mapping[str, str],
    *,
    search: Sequence[Path] | None = None,
    embedded: Callable[[], bool] = embedded_available,
    report: Callable[[str], None] = lambda text: None,
) -> StrategyConfig:
    """Choose a profile that can run here and has ``allow_cloud: false``: only an explicitly named profile may use the cloud.

    Returns ``local``, which `init` writes, if there is one; else ``t4_local_only`` if one of its servers answers, else
    ``development`` if the embedded engine is installed. Otherwise raises `NoStrategy` with what to set, even if a cloud key
    is set: ``cloud_only`` must be named explicitly.

    ``search`` replaces the folders of `search_path`. A file that does not load, or that may use the cloud, is skipped for
    the next one of its name, and reported once through ``report``.
    """
    look = _Look(environ, search_path(environ) if search is None else search, report)
    if (written := look.first(_OWN, own=True)) is not None:
        return written  # whoever has written it wants it, and its error says what to do if its server is down
    servers = look.first(_SERVERS, own=True)
    if servers is not None:
        status = await ResourceDetector(servers, environ=environ).adetect(slurm=False)
        if any(status.vllm_endpoints.values()):
            return servers
    engine = embedded()
    if engine and (found := look.first(_EMBEDDED, own=True)) is not None:
        return found
    raise _nothing(servers, look.first(_CLOUD, own=False), environ, engine=engine)


class _Look:
    """Searches the profiles of a name in order, and reports why one is skipped."""

    def __init__(self, environ: Mapping[str, str], search: Sequence[Path], report: Callable[[str], None]) -> None:
        self._environ = environ
        self._search = search
        self._report = report

    def first(self, name: str, *, own: bool) -> StrategyConfig | None:
        """Return the first profile that loads and, with ``own``, forbids the cloud."""
        for path in self._files(name):
            try:
                config = StrategyConfig.load_found(path, environ=self._environ, report=self._report)
            except ConfigError as error:
                first, *others = error.message.splitlines()
                self._pass_over(path, f"does not load: {first}" + (f" (and {len(others)} more)" if others else ""))
                continue
            if not own or not config.allow_cloud:
                return config
            self._pass_over(path, "may use the cloud (allow_cloud is not false); name it with --strategy to use it")
        return None

    def _files(self, name: str) -> Iterator[Path]:
        """Yield each file once, even if two of the folders are the same."""
        seen: set[Path] = set()
        for path in candidates(name, self._search):
            if (place := path.absolute()) not in seen:
                seen.add(place)
                yield path

    def _pass_over(self, path: Path, reason: str) -> None:
        self._report(f"skipped {path} in the choice of a strategy: it {reason}")


def _nothing(
    servers: StrategyConfig | None, cloud: StrategyConfig | None, environ: Mapping[str, str], *, engine: bool
) -> NoStrategy:
    """Return the error with the tried resources and the remedy; it names the variable of a cloud key, never its value."""
    places = [place for role in servers.vllm_endpoints for place in servers.servers_of(role)] if servers else []
    named = [spec.api_key_env for spec in cloud.models.values() if spec.api_key_env] if cloud else []
    keys = list(dict.fromkeys(named))
    there = [key for key in keys if environ.get(key)]
    verb, them = ("is", "it") if len(there) == 1 else ("are", "them")
    found = f"; {', '.join(there)} {verb} set; `-s {_CLOUD}` uses {them}, but must be named" if there else ""
    hint = "start a server (`init` looks for it), "
    hint += "" if engine else f"install the embedded engine ({install_command('embedded')}), "
    hint += f"or name a strategy with --strategy or {STRATEGY_VARIABLE}"
    if there:
        hint = f"-s {_CLOUD} sends every prompt to the cloud; or {hint}"
    elif keys:
        hint += f"; -s {_CLOUD} requires one of {', '.join(keys)}"
    return NoStrategy(
        "no strategy was named, and no local resource was found: no server answers at "
        f"{', '.join(places) or 'any address'}; "
        + (f"no usable profile {_EMBEDDED}" if engine else "the embedded engine is not installed")
        + found,
        hint=hint,
    )


@dataclass(frozen=True, slots=True)
class OrchestratorStatus:
    """The active strategy and the available resources. ``chosen_by`` is "argument", "environment", "detection" or "switch";
    ``in_process`` names the models that the embedded engine runs in this process.
    """

    strategy: str
    source: str
    chosen_by: str
    allow_cloud: bool
    debug: bool
    resources: ResourceStatus
    routers: tuple[str, ...]
    models: tuple[str, ...]
    in_process: tuple[str, ...]
    broken_plugins: tuple[str, ...]


async def served_models(config: StrategyConfig) -> dict[str, dict[str, str]]:
    """Ask one's own servers which models they serve, where the profile does not name one; within about two seconds.

    Return, by the model's or the role's name, ``model`` and, for the roles of a fleet, the ``engine`` of its registry. A
    server that does not answer is left out.
    """
    open_ones = {spec.endpoint or name for name, spec in config.models.items() if spec.local and spec.model is None}
    if not open_ones:
        return {}
    found: dict[str, dict[str, str]] = {}
    endpoints = (await ResourceDetector(config).adetect(slurm=False)).endpoints
    for name in open_ones & endpoints.keys():
        replicas = endpoints[name].replicas or (endpoints[name],)
        models = sorted({one.models[0] for one in replicas if one.healthy and one.models})
        if not models:
            continue
        found[name] = {"model": " and ".join(models)}
        if name in config.vllm_endpoints:
            finder = Finder(config, name, os.environ)
            await finder.places()
            if engines := sorted({entry.engine for entry in finder.entries if entry.engine}):
                found[name]["engine"] = " and ".join(engines)
    return found
