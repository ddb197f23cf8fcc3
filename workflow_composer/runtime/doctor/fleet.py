"""The registry of running servers, and SLURM's controller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from workflow_composer.backends.replicas.registry import (
    KEY_VARIABLE,
    RegistryView,
    ServerRegistry,
    SigningKey,
    registry_directory,
)
from workflow_composer.config.own_machines import own_users
from workflow_composer.config.profile_models import registered_role
from workflow_composer.errors import ConfigError, WorkflowComposerError, nearest
from workflow_composer.runtime.doctor.clocks import REMEDY, TOLERATED, apart, span
from workflow_composer.runtime.doctor.finding import Finding, Subject, named
from workflow_composer.runtime.resources import NO_SLURM, slurm_controller


def with_registry_key(environ: Mapping[str, str]) -> tuple[Mapping[str, str], list[Finding]]:
    """Return the environment, without the registry's key if it cannot be used, and what is wrong with it."""
    try:
        SigningKey.read(environ)
    except ConfigError as error:
        found = Finding("error", "registry-key", KEY_VARIABLE, error.message, error.hint)
        return {name: value for name, value in environ.items() if name != KEY_VARIABLE}, [found]
    return environ, []


def check_registry(subject: Subject) -> Iterator[Finding]:
    """Report a registry that hides servers: closed, open to strangers, or with entries that nobody renews. Reads files."""
    config = subject.config
    roles = {found for role in config.vllm_endpoints for one in config.servers_of(role) if (found := registered_role(one))}
    if not roles:
        return
    directory, users = registry_directory(subject.environ, config.registry), own_users(config.local_users)
    key, where = SigningKey.read(subject.environ), str(directory)
    view, registry = RegistryView(directory, users=users, key=key), ServerRegistry(directory, users, key)
    view.read()
    now = subject.now()
    for entry in registry.all():
        if entry.role not in roles:
            continue
        name, age = f"{entry.server} on {entry.node or entry.host}", now - entry.updated
        if age < -TOLERATED:
            problem = f"the entry of {name} is of the future: that node's clock is {apart(-age)} this machine's"
            yield Finding("warning", "clock", where, problem, REMEDY)
        elif not entry.alive(now):
            ended = entry.expires is not None and now >= entry.expires
            why = f"its job ended {span(now - (entry.expires or now))} ago" if ended else f"not renewed for {span(age)}"
            problem = f"the entry of {name} is stale ({why}), and is ignored"
            how = f"see `fleet status`; start the server again, or remove {directory / entry.file_name}"
            yield Finding("warning", "registry-stale", where, problem, how)
    fault = view.known.fault
    if fault and not fault.startswith("no folder"):  # which is said of each role that lacks a server
        yield Finding("warning", "registry", where, fault, _remedy(fault, where))


def of_fleet_file(places: Iterable[str], environ: Mapping[str, str]) -> str:
    """Return what to do if no role of the fleet file has the name of these places; empty if one has."""
    from workflow_composer.fleet.file import load_fleet

    wanted = [role for place in places if (role := registered_role(place)) is not None]
    try:
        known = list(load_fleet(None, environ).settings.roles)
    except WorkflowComposerError as error:
        return f"correct the fleet file first: {error.message.splitlines()[0]}"
    if any(role in known for role in wanted):
        return ""
    near = nearest(wanted[0], known) or f"it has {named(known)}"
    return f"the fleet file has no role {wanted[0]!r}; {near} (docs/fleet.md)"


def _remedy(fault: str, where: str) -> str:
    if "not signed" in fault:
        return f"start those servers with ${KEY_VARIABLE}, too, or remove their files"
    if "any user may write" in fault:
        return f"chmod o-w {where}"
    return "see `fleet status`; check the folder's rights, and local_users of the profile"


async def check_slurm(subject: Subject) -> list[Finding]:
    """Report a controller that does not answer, if SLURM's commands are installed and the profile has servers to start."""
    config = subject.config
    if not any(registered_role(place) for role in config.vllm_endpoints for place in config.servers_of(role)):
        return []
    fault = await slurm_controller(subject.environ)
    if not fault or fault == NO_SLURM:
        return []
    problem, _, hint = fault.removesuffix(")").partition(" (")
    how = hint or "check it with `scontrol ping`"
    return [
        Finding("warning", "slurm-silent", "SLURM", problem, f"{how}; servers on this machine need no SLURM (`fleet up`)")
    ]
