"""SLURM's job states and reasons, in words with what to do. Names and spellings are those of SLURM 20 to 25."""

from __future__ import annotations

import re

ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
"""States of a job that has ended."""
ENDING = ENDED | {"COMPLETING"}
"""States of a job that has ended or is ending; one that is completing may be requeued."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a job in the queue."""

NEVER = "never starts"
"""How the words of a job begin that waits in vain until a person acts."""

_USED_UP = f"{NEVER}: {{}} hours are used up; ask for more, or set another slurm.account or slurm.qos"

_RESOURCES = {
    "gres": "GPU", "cpu": "CPU", "mem": "memory", "memory": "memory", "node": "node", "billing": "billing",
    "energy": "energy", "license": "license", "bb": "burst buffer",
}  # fmt: skip
_COUNTED = ("GPU", "CPU", "node", "license", "resource")
_KIND = r"(?P<kind>gres|cpu|memory|mem|node|billing|energy|license|bb|unknown|jobs|submitjobs?|wallduration|wall)?"

# Of several that match, the first counts. Reasons are compared in small letters, without anything else: SLURM writes
# `launch failed requeued held` or `launch_failed_requeued_held`, and adds details behind a comma.
_WORDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), said)
    for pattern, said in (
        (r"launchfailedrequeuedheld", "is held after a failed launch; release it with `scontrol release`"),
        (r"jobholdmaxrequeue", "is held: SLURM has requeued it too often; release it with `scontrol release`"),
        (r"jobheldadmin", "is held by the administrator"),
        (r"jobhelduser|requeuehold|specialexit", "is held; release it with `scontrol release`"),
        (r"resvdelhold|reservationdeleted", "is held: its reservation was deleted"),
        (r"dependencyneversatisfied", f"{NEVER}: the job that it depends on has failed; check slurm.options"),
        (r"dependency", "waits for another job"),
        (r"resources|schedd?efer", "waits for free resources"),
        (r"priority", "waits behind jobs with a higher priority"),
        (r"begintime", "restarts after a pause"),
        (r"prolog|cleaning|fedjoblock", "is being prepared by SLURM"),
        (r"jobarraytasklimit", "waits: its array runs as many tasks as it may at once"),
        (
            r"reqnodenotavailunavailablenodes|nodesrequired|nodedown|frontenddown",
            "waits: nodes down, drained or reserved; `sinfo -R` says why",
        ),
        (r"reqnodenotavail", "waits: the required nodes are down or reserved"),
        (r"partitiondown", "waits: its partition is down"),
        (r"partitioninactive", "waits: its partition is inactive"),
        (
            r"partitiontimelimit|(?:assoc|qos)maxwall.*|associationtimelimit|qostimelimit",
            f"{NEVER}: slurm.time in the fleet file is longer than allowed; lower it",
        ),
        (r"partitionnodelimit", f"{NEVER}: the partition does not have that many nodes"),
        (r"partitionconfig", f"{NEVER}: the partition's limits forbid it"),
        (r"badconstraints|constraints", f"{NEVER}: no node has the requested features; check slurm.constraint"),
        (
            r"invalidaccount|accountnotallowed",
            f"{NEVER}: slurm.account is invalid; `sacctmgr show assoc user=$USER` lists yours",
        ),
        (r"invalidqos|qosnotallowed", f"{NEVER}: slurm.qos is invalid here; `sacctmgr show qos` lists valid ones"),
        (r"reservationinvalid", f"{NEVER}: its reservation is invalid; check slurm.options"),
        (r"reservation", "waits for its reservation to begin"),
        (r"licenses", "waits for a license"),
        (r"powernotavail|powerreserved", "waits for electrical power that the site has capped or reserved"),
        (r"maxpoweredupnodes", "waits: as many nodes are powered up as the site allows"),
        (r"mpiportsbusy", "waits for ports of its node that other jobs use"),
        (r"burstbufferoperation", f"{NEVER}: its burst buffer failed"),
        (r"burstbuffer.*", "waits for its burst buffer"),
        (r"(?:assoc|qos)grpwall.*", _USED_UP.format("the")),
        (
            rf"(?:(?:assoc|qos)grp{_KIND}runminutes|max{_KIND.replace('<kind>', '<of>')}runmins).*",
            "waits: {whose} {what} limit is reached by the time reserved for running jobs",
        ),
        (
            rf"(?:assoc|qos)grp{_KIND}minutes.*",
            _USED_UP.format("{whose} {what}"),
        ),
        (
            rf"(?:assoc|qos)max{_KIND}minutesperjob.*",
            f"{NEVER}: it asks for more {{what}} hours than one job may use; lower slurm.time or what it asks for",
        ),
        (
            rf"(?:(?:assoc|qos)max{_KIND}per(?:job|node).*|maxmemperlimit)",
            f"{NEVER}: it asks for more {{many}} than one job may have; check the slurm section of the fleet file",
        ),
        (rf"(?:assoc|qos)min{_KIND}.*", f"{NEVER}: it asks for {{less}} {{many}} than a job must; check the slurm section"),
        (
            r"(?:assoc|qos)?(?:grp|max)submitjobs?.*|associationjoblimit|qosjoblimit",
            "waits: the limit of queued jobs is reached",
        ),
        (r"(?:assoc|qos)?(?:grp|max)jobs?.*", "waits: {whose} limit of running jobs is reached"),
        (rf"(?:assoc|qos)?(?:grp|max){_KIND}.*", "waits: {whose} {what} limit is reached"),
        (r"(?:assoc|qos|accounting).*", "waits: a limit of the account or the quality of service is reached"),
        (r"joblaunchfailure|systemfailure", "could not be launched; the folder of its log may be missing"),
        (r"deadline", f"{NEVER}: its deadline has passed"),
        (
            r"nonzeroexitcode|raisedsignal|timelimit|inactivelimit|outofmemory",
            "waits after a run that failed; its log says why",
        ),
    )
)  # fmt: skip


def waiting_words(reason: str) -> str:
    """Say why a job waits, and what to do about it.

    >>> waiting_words("None"), waiting_words("QOSMaxGRESPerUser")
    ('waits', 'waits: your GPU limit is reached')
    >>> waiting_words("launch_failed_requeued_held")
    'is held after a failed launch; release it with `scontrol release`'
    """
    plain = re.sub(r"[^a-z0-9]", "", reason.lower())
    if plain in ("", "none", "null"):
        return "waits"
    of_qos = "the quality of service's" if plain.startswith("qos") else "the account's"
    whose = "your" if "peruser" in plain else of_qos
    for pattern, said in _WORDS:
        if found := pattern.match(plain):
            groups = found.groupdict()
            kind = groups.get("kind") or groups.get("of") or ("memory" if plain.startswith("maxmem") else "")
            what = _RESOURCES.get(kind, "resource")
            many, less = (f"{what}s", "fewer") if what in _COUNTED else (what, "less")
            return said.format(what=what, many=many, less=less, whose=whose)
    return f"waits; SLURM's reason: {reason!r}"


def ended_words(state: str, reason: str) -> str:
    """Say how a job has ended, with SLURM's state and reason.

    >>> ended_words("FAILED", "JobLaunchFailure")
    'FAILED, JobLaunchFailure: it could not be launched; the folder of its log may be missing'
    >>> ended_words("OUT_OF_MEMORY", ""), ended_words("COMPLETED", "")
    ('OUT_OF_MEMORY: it used more memory than slurm.memory allows', 'COMPLETED')
    """
    said = f"{state}, {reason}" if reason else state
    for word, meaning in _ENDS.items():
        if word in (state, reason):
            return f"{said}: {meaning}"
    return said


_ENDS = {
    "JobLaunchFailure": "it could not be launched; the folder of its log may be missing",
    "OUT_OF_MEMORY": "it used more memory than slurm.memory allows",
    "OutOfMemory": "it used more memory than slurm.memory allows",
    "DEADLINE": "its deadline passed before it could end",
    "BOOT_FAIL": "its node did not boot",
    "LAUNCH_FAILED": "it could not be launched",
    "NODE_FAIL": "its node failed",
    "RECONFIG_FAIL": "its node could not be configured",
    "REVOKED": "a sister job of its federation runs instead",
    "PREEMPTED": "a job of higher priority took its node",
    "TIMEOUT": "its time limit was reached",
}
