"""Rebuild the state of a fleet whose state folder was deleted, from what still runs: registry entries and SLURM jobs."""

from __future__ import annotations

import shutil
from dataclasses import replace

from workflow_composer.errors import FleetError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.identity import known_id
from workflow_composer.fleet.launch.process import log_path
from workflow_composer.fleet.slurm.queue import queue_of
from workflow_composer.fleet.slurm.submit import log_of, queued
from workflow_composer.fleet.state import ServerState


def rebuild(fleet: Fleet) -> list[str]:
    """Write the states that are missing, and return the names of their servers.

    Entries are looked at every time, SLURM's queue only if the folder holds no record of the fleet.
    Raises `WorkflowComposerError` if the folder is not writable.
    """
    lost = not known_id(fleet.states.directory, fleet.path)
    found = _by_entries(fleet)
    if lost and shutil.which("squeue", path=fleet.environ.get("PATH")):
        found += _by_jobs(fleet)
    return found


def _by_entries(fleet: Fleet) -> list[str]:
    found = []
    for entry in fleet.registry.entries():  # the newest last
        if entry.fleet != (fleet.known_id or None) or (entry.server not in found and fleet.states.get(entry.server)):
            continue
        log = log_of(fleet, entry.server, entry.job_id) if entry.job_id else log_path(fleet.logs, entry.server)
        state = ServerState(
            server=entry.server,
            role=entry.role,
            how="slurm" if entry.job_id else "process",
            status=entry.state,
            node=entry.node,
            pid=entry.pid,
            job_id=entry.job_id,
            port=entry.port,
            log=str(log),
            fleet_file=str(fleet.path),
            started=entry.started,
            fleet=fleet.id,
            cluster=entry.cluster,
        )
        fleet.states.put(state)
        found.append(entry.server)
    return found


def _by_jobs(fleet: Fleet) -> list[str]:
    found = []
    try:
        slurm = fleet.slurm
        for job in queue_of(fleet, slurm).mine:
            if job.mark and not job.over and fleet.states.get(job.server) is None:
                state = queued(fleet, job.server, job.number or job.id, cluster=slurm.cluster)
                fleet.states.put(replace(state, detail=f"job {job.id} was found in the queue"))
                found.append(job.server)
    except FleetError:  # no cluster in reach, or a role that the file no longer has: `down` finds its jobs by their comments
        pass
    return found
