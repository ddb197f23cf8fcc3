"""The whole examination: a profile, its servers and keys, and this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError, PluginError, ProfileError, WorkflowComposerError
from workflow_composer.plan import Plan
from workflow_composer.plugins.builtin import plugin_host
from workflow_composer.plugins.host import PluginHost
from workflow_composer.runtime.doctor.clouds import ask_clouds, check_clouds
from workflow_composer.runtime.doctor.finding import Finding, Subject, without_model, without_price
from workflow_composer.runtime.doctor.fleet import check_registry, check_slurm, with_registry_key
from workflow_composer.runtime.doctor.machine import check_machine
from workflow_composer.runtime.doctor.servers import check_servers
from workflow_composer.runtime.resources import unprobed
from workflow_composer.runtime.snapshot import Snapshot, build
from workflow_composer.support.loop_thread import in_own_thread
from workflow_composer.types import LLMRequest, LLMResponse


def of_error(error: WorkflowComposerError) -> list[Finding]:
    """Return what an error says of a profile that does not load, or of none."""
    kind = "profile" if isinstance(error, (ConfigError, PluginError)) else "no-profile"
    found = []
    for line in error.problems if isinstance(error, ProfileError) else (error.message,):
        where, sign, problem = line.partition(": ")
        key, more, rest = problem.partition(": ")
        where, problem = (f"{where}: {key}", rest) if more else (where, problem)
        remedy = error.hint or (problem.rpartition("; ")[2] if "; " in problem else "correct it (docs/profiles.md)")
        found.append(Finding("error", kind, where if sign else "the profile", problem if sign else line, remedy))
    return found


async def examine(
    config: StrategyConfig | None, environ: Mapping[str, str], *, cloud: bool = False, host: PluginHost | None = None
) -> list[Finding]:
    """Return everything that is found to be wrong, errors first; without a profile only of this machine.

    Own servers are asked what they serve, for a few seconds; cloud servers only with ``cloud``, for their models, with the
    key and without a prompt. Never raises for what is wrong.
    """
    environ, unusable = with_registry_key(environ)
    waits: list[Awaitable[Iterable[Finding]]] = [in_own_thread(lambda: list(check_machine(environ, config)), "machine")]
    if config is not None:
        subject = Subject(config, environ)
        waits += [check_servers(subject), check_slurm(subject), _built(subject, host)]
        waits += [_apart(lambda: check_registry(subject)), _apart(lambda: check_clouds(subject))]
        if cloud and config.allow_cloud:
            waits.append(ask_clouds(subject))
    parts = await asyncio.gather(*waits)
    found = list(dict.fromkeys(finding for part in (unusable, *parts) for finding in part))
    if config is not None:
        found += [*without_price(Subject(config, environ)), *without_model(Subject(config, environ), found)]
    return sorted(found, key=lambda finding: finding.level != "error")


def _apart(check: Callable[[], Iterable[Finding]]) -> Awaitable[list[Finding]]:
    """Run a check that may wait for a file system in a thread."""
    return in_own_thread(lambda: list(check()), "check")


async def _built(subject: Subject, host: PluginHost | None) -> list[Finding]:
    """Build what answers requests under the profile, as the service would; report plugins and parts that are missing."""
    host = host or plugin_host()
    found = [
        Finding("warning", "plugin", f"plugin {one.name}", f"it is broken: {one.detail}", "update it, or uninstall it")
        for one in host.broken
    ]

    async def nothing(snapshot: Snapshot, plan: Plan, request: LLMRequest) -> LLMResponse:
        raise AssertionError("nothing is asked")

    config, environ = subject.config, subject.environ
    try:
        snapshot = build(config, host.registry, environ, execute=nothing, resources=unprobed(config, environ))
    except WorkflowComposerError as error:
        return found + [replace(one, kind="profile") for one in of_error(error)]
    await snapshot.retire()
    return found
