"""Choice of a default strategy that keeps data on local machines and can run with the available resources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from workflow_composer.errors import ConfigError, NoStrategy
from workflow_composer.resources import ResourceDetector, embedded_available
from workflow_composer.strategy import StrategyConfig, candidates, search_path

STRATEGY_VARIABLE = "BIOPIPELINES_STRATEGY"

_SERVERS, _EMBEDDED, _CLOUD = "t4_local_only", "development", "cloud_only"


async def detect_strategy(
    environ: Mapping[str, str],
    *,
    search: Sequence[Path] | None = None,
    embedded: Callable[[], bool] = embedded_available,
    report: Callable[[str], None] = lambda text: None,
) -> StrategyConfig:
    """Choose a profile that can run here and has ``allow_cloud: false``: only an explicitly named profile may use the cloud.

    Returns ``t4_local_only`` if one of its servers answers, else ``development`` if the embedded engine is installed.
    Otherwise raises `NoStrategy` with what to set, even if a cloud key is set: ``cloud_only`` must be named explicitly.

    ``search`` replaces the folders of `search_path`. A file that does not load, or that may use the cloud, is skipped for
    the next one of its name, and reported once through ``report``.
    """
    look = _Look(environ, search_path(environ) if search is None else search, report)
    servers = look.first(_SERVERS, own=True)
    if servers is not None:
        status = await ResourceDetector(servers, environ=environ).detect()
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
                config = StrategyConfig.from_yaml(path, environ=self._environ)
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
    """Return the error with what was tried and what to do; it names the variable of a cloud key, never its value."""
    places = [place for role in servers.vllm_endpoints for place in servers.servers_of(role)] if servers else []
    named = [spec.api_key_env for spec in cloud.models.values() if spec.api_key_env] if cloud else []
    keys = list(dict.fromkeys(named))
    there = ", ".join(key for key in keys if environ.get(key))
    found = f"; a cloud key is set ({there}), but a cloud strategy must be named explicitly" if there else ""
    hint = "start a server, " + ("" if engine else "pip install 'workflow-composer[embedded]', ")
    hint += f"or name a strategy with --strategy or {STRATEGY_VARIABLE}"
    if there:
        hint = f"-s {_CLOUD} uses {there} and sends every prompt to the cloud; or {hint}"
    elif keys:
        hint += f"; -s {_CLOUD} requires one of {', '.join(keys)}"
    return NoStrategy(
        "no strategy was named, and no local resource was found: no server answers at "
        f"{', '.join(places) or 'any address'}; "
        + (f"no usable profile {_EMBEDDED}" if engine else "the embedded engine is not installed")
        + found,
        hint=hint,
    )
