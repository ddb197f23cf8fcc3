"""Which strategy to use where none is named: one that stays on one's own machines, and that works with what is there."""

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
    """A profile that can work here, and that has ``allow_cloud: false``: what nobody has named sends nothing out.

    A server of ``t4_local_only`` answers: that profile. The embedded engine is installed: ``development``. Otherwise raises
    `NoStrategy`, which says what to set, also where a cloud key is set: only who names ``cloud_only`` has asked for it.

    ``search`` replaces the folders of `search_path`. A file there that does not load, or that may use the cloud, is passed
    over for the next one of its name; ``report`` is told so, once for each.
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
    """Looks for the profiles of a name, in the order of the search, and tells what is wrong with those passed over."""

    def __init__(self, environ: Mapping[str, str], search: Sequence[Path], report: Callable[[str], None]) -> None:
        self._environ = environ
        self._search = search
        self._report = report

    def first(self, name: str, *, own: bool) -> StrategyConfig | None:
        """The first one that loads; with ``own``, that stays on one's own machines."""
        for path in self._files(name):
            try:
                config = StrategyConfig.from_yaml(path, environ=self._environ)
            except ConfigError as error:
                first, *others = error.message.splitlines()
                self._pass_over(path, f"does not load: {first}" + (f" (and {len(others)} more)" if others else ""))
                continue
            if not own or not config.allow_cloud:
                return config
            self._pass_over(path, "may use the cloud (allow_cloud is not false), which only a strategy that is named may do")
        return None

    def _files(self, name: str) -> Iterator[Path]:
        """Each file once, also where two of the folders are the same."""
        seen: set[Path] = set()
        for path in candidates(name, self._search):
            if (place := path.absolute()) not in seen:
                seen.add(place)
                yield path

    def _pass_over(self, path: Path, reason: str) -> None:
        self._report(f"{path} is passed over in the choice of a strategy: it {reason}")


def _nothing(
    servers: StrategyConfig | None, cloud: StrategyConfig | None, environ: Mapping[str, str], *, engine: bool
) -> NoStrategy:
    """What was looked for, and what to do; of a cloud key the variable's name, never its value."""
    places = [place for role in servers.vllm_endpoints for place in servers.servers_of(role)] if servers else []
    named = [spec.api_key_env for spec in cloud.models.values() if spec.api_key_env] if cloud else []
    keys = list(dict.fromkeys(named))
    there = ", ".join(key for key in keys if environ.get(key))
    found = f"; a cloud key is set ({there}), but a key alone chooses no strategy" if there else ""
    hint = "start a server, " + ("" if engine else "pip install 'workflow-composer[embedded]', ")
    hint += f"or name a strategy with --strategy or {STRATEGY_VARIABLE}"
    if there:
        hint = f"-s {_CLOUD} uses {there} and sends every prompt to the cloud; or {hint}"
    elif keys:
        hint += f"; -s {_CLOUD} wants one of {', '.join(keys)}"
    return NoStrategy(
        "no strategy was named, and nothing to work with was found on your own machines: no server answers at "
        f"{', '.join(places) or 'any address'}; "
        + (f"no profile {_EMBEDDED} can be used" if engine else "the embedded engine is not installed")
        + found,
        hint=hint,
    )
