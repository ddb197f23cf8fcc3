"""SLURM's states and reasons, as versions 20 to 25 write them, in words with what to do."""

import re

import pytest

from workflow_composer.fleet.slurm.commands import SlurmJob, read_job
from workflow_composer.fleet.slurm.reasons import NEVER, ended_words, waiting_words

RECORDED = {
    # reason of a waiting job, as squeue prints it (%r): how its words begin, and a word that they hold
    "None": ("waits", ""),
    "Priority": ("waits", "priority"),
    "Resources": ("waits", "free resources"),
    "BeginTime": ("restarts", "pause"),
    "Dependency": ("waits", "another job"),
    "DependencyNeverSatisfied": (NEVER, "slurm.options"),
    "JobHeldUser": ("is held", "scontrol release"),
    "JobHeldAdmin": ("is held", "administrator"),
    "launch failed requeued held": ("is held", "scontrol release"),
    "launch_failed_requeued_held": ("is held", "scontrol release"),
    "JobHoldMaxRequeue": ("is held", "too often"),
    "PartitionDown": ("waits", "partition is down"),
    "PartitionInactive": ("waits", "inactive"),
    "PartitionTimeLimit": (NEVER, "slurm.time"),
    "PartitionNodeLimit": (NEVER, "nodes"),
    "PartitionConfig": (NEVER, "partition"),
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": ("waits", "nodes down"),
    "ReqNodeNotAvail, UnavailableNodes:gpu[1-3]": ("waits", "nodes down"),
    "ReqNodeNotAvail, May be reserved for other job": ("waits", "reserved"),
    "BadConstraints": (NEVER, "slurm.constraint"),
    "InvalidAccount": (NEVER, "slurm.account"),
    "AccountNotAllowed": (NEVER, "slurm.account"),
    "InvalidQOS": (NEVER, "slurm.qos"),
    "QOSNotAllowed": (NEVER, "slurm.qos"),
    "AssocGrpGRES": ("waits", "the account's GPU limit"),
    "AssocGrpGRESMinutes": (NEVER, "the account's GPU hours are used up"),
    "AssocGrpGRESRunMinutes": ("waits", "running jobs"),
    "AssocGrpCPUMinutesLimit": (NEVER, "the account's CPU hours are used up"),
    "AssocGrpCPURunMinutesLimit": ("waits", "running jobs"),
    "AssocGrpBillingMinutes": (NEVER, "hours are used up"),
    "AssocGrpMemLimit": ("waits", "memory limit"),
    "AssocGrpNodeLimit": ("waits", "node limit"),
    "AssocGrpJobsLimit": ("waits", "running jobs"),
    "AssocGrpSubmitJobsLimit": ("waits", "queued jobs"),
    "AssocGrpWallLimit": (NEVER, "hours are used up"),
    "AssocMaxJobsLimit": ("waits", "running jobs"),
    "AssocMaxWallDurationPerJobLimit": (NEVER, "slurm.time"),
    "AssocMaxGRESPerJob": (NEVER, "GPU"),
    "AssocMaxCpuMinutesPerJobLimit": (NEVER, "CPU"),
    "QOSGrpGRES": ("waits", "quality of service's GPU limit"),
    "QOSGrpGRESMinutes": (NEVER, "quality of service's GPU hours are used up"),
    "QOSGrpMemoryMinutes": (NEVER, "memory hours"),
    "QOSGrpCpuLimit": ("waits", "CPU limit"),
    "QOSMaxGRESPerUser": ("waits", "your GPU limit"),
    "QOSMaxCpuPerUserLimit": ("waits", "your CPU limit"),
    "QOSMaxMemoryPerUser": ("waits", "your memory limit"),
    "QOSMaxJobsPerUserLimit": ("waits", "your limit of running jobs"),
    "QOSMaxSubmitJobPerUserLimit": ("waits", "queued jobs"),
    "QOSMaxWallDurationPerJobLimit": (NEVER, "slurm.time"),
    "QOSMaxNodePerJobLimit": (NEVER, "node"),
    "QOSMaxGRESPerNode": (NEVER, "GPU"),
    "QOSMinGRES": (NEVER, "fewer GPUs"),
    "QOSMinCpuNotSatisfied": (NEVER, "fewer CPUs"),
    "MaxGRESPerAccount": ("waits", "the account's GPU limit"),
    "MaxMemPerLimit": (NEVER, "memory"),
    "Licenses": ("waits", "license"),
    "Reservation": ("waits", "reservation"),
    "ReservationDeleted": ("is held", "reservation"),
    "JobArrayTaskLimit": ("waits", "array"),
}  # fmt: skip


@pytest.mark.parametrize(("reason", "expected"), RECORDED.items(), ids=list(RECORDED))
def test_a_recorded_reason_is_said_in_words(reason, expected):
    begins, holds = expected
    said = waiting_words(reason)
    assert said.startswith(begins)
    assert holds in said
    assert "{" not in said


# The names that SLURM gives to reasons, from 20.11 to 25.11, as its sources list them.
ALL = """
None Prolog Priority Dependency Resources PartitionNodeLimit PartitionTimeLimit PartitionDown PartitionInactive JobHeldAdmin
JobHeldUser BeginTime Licenses AssociationJobLimit AssociationResourceLimit AssociationTimeLimit Reservation ReqNodeNotAvail
FrontEndDown SchedDefer NodeDown BadConstraints SystemFailure JobLaunchFailure NonZeroExitCode RaisedSignal TimeLimit
InactiveLimit InvalidAccount InvalidQOS QOSUsageThreshold QOSJobLimit QOSResourceLimit QOSTimeLimit Cleaning QOSNotAllowed
AccountNotAllowed DependencyNeverSatisfied QOSGrpCpuLimit QOSGrpCPUMinutesLimit QOSGrpCPURunMinutesLimit QOSGrpJobsLimit
QOSGrpMemLimit QOSGrpNodeLimit QOSGrpSubmitJobsLimit QOSGrpWallLimit QOSMaxCpuPerJobLimit QOSMaxCpuMinutesPerJobLimit
QOSMaxNodePerJobLimit QOSMaxWallDurationPerJobLimit QOSMaxCpuPerUserLimit QOSMaxJobsPerUserLimit QOSMaxNodePerUserLimit
QOSMaxSubmitJobPerUserLimit QOSMinCpuNotSatisfied AssocGrpCpuLimit AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit
AssocGrpJobsLimit AssocGrpMemLimit AssocGrpNodeLimit AssocGrpSubmitJobsLimit AssocGrpWallLimit AssocMaxJobsLimit
AssocMaxCpuPerJobLimit AssocMaxCpuMinutesPerJobLimit AssocMaxNodePerJobLimit AssocMaxWallDurationPerJobLimit
AssocMaxSubmitJobLimit JobHoldMaxRequeue JobArrayTaskLimit BurstBufferResources BurstBufferStageIn BurstBufferOperation
PowerNotAvail PowerReserved AssocGrpUnknown AssocGrpUnknownMinutes AssocGrpUnknownRunMinutes AssocMaxUnknownPerJob
AssocMaxUnknownPerNode AssocMaxUnknownMinutesPerJob AssocMaxCpuPerNode AssocGrpMemMinutes AssocGrpMemRunMinutes
AssocMaxMemPerJob AssocMaxMemPerNode AssocMaxMemMinutesPerJob AssocGrpNodeMinutes AssocGrpNodeRunMinutes
AssocMaxNodeMinutesPerJob AssocGrpEnergy AssocGrpEnergyMinutes AssocGrpEnergyRunMinutes AssocMaxEnergyPerJob
AssocMaxEnergyPerNode AssocMaxEnergyMinutesPerJob AssocGrpGRES AssocGrpGRESMinutes AssocGrpGRESRunMinutes AssocMaxGRESPerJob
AssocMaxGRESPerNode AssocMaxGRESMinutesPerJob AssocGrpLicense AssocGrpLicenseMinutes AssocGrpLicenseRunMinutes
AssocMaxLicensePerJob AssocMaxLicenseMinutesPerJob AssocGrpBB AssocGrpBBMinutes AssocGrpBBRunMinutes AssocMaxBBPerJob
AssocMaxBBPerNode AssocMaxBBMinutesPerJob QOSGrpUnknown QOSGrpUnknownMinutes QOSGrpUnknownRunMinutes QOSMaxUnknownPerJob
QOSMaxUnknownPerNode QOSMaxUnknownPerUser QOSMaxUnknownMinutesPerJob QOSMinUnknown QOSMaxCpuPerNode QOSGrpMemoryMinutes
QOSGrpMemoryRunMinutes QOSMaxMemoryPerJob QOSMaxMemoryPerNode QOSMaxMemoryPerUser QOSMaxMemoryMinutesPerJob QOSMinMemory
QOSGrpNodeMinutes QOSGrpNodeRunMinutes QOSMaxNodeMinutesPerJob QOSMinNode QOSGrpEnergy QOSGrpEnergyMinutes
QOSGrpEnergyRunMinutes QOSMaxEnergyPerJob QOSMaxEnergyPerNode QOSMaxEnergyPerUser QOSMaxEnergyMinutesPerJob QOSMinEnergy
QOSGrpGRES QOSGrpGRESMinutes QOSGrpGRESRunMinutes QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxGRESPerUser
QOSMaxGRESMinutesPerJob QOSMinGRES QOSGrpLicense QOSGrpLicenseMinutes QOSGrpLicenseRunMinutes QOSMaxLicensePerJob
QOSMaxLicensePerUser QOSMaxLicenseMinutesPerJob QOSMinLicense QOSGrpBB QOSGrpBBMinutes QOSGrpBBRunMinutes QOSMaxBBPerJob
QOSMaxBBPerNode QOSMaxBBPerUser QOSMinBB DeadLine MaxBBPerAccount MaxCpuPerAccount MaxEnergyPerAccount MaxGRESPerAccount
MaxNodePerAccount MaxLicensePerAccount MaxMemoryPerAccount MaxUnknownPerAccount MaxJobsPerAccount MaxSubmitJobsPerAccount
PartitionConfig AccountingPolicy FedJobLock OutOfMemory MaxMemPerLimit AssocGrpBilling AssocGrpBillingMinutes
AssocGrpBillingRunMinutes AssocMaxBillingPerJob AssocMaxBillingPerNode AssocMaxBillingMinutesPerJob QOSGrpBilling
QOSGrpBillingMinutes QOSGrpBillingRunMinutes QOSMaxBillingPerJob QOSMaxBillingPerNode QOSMaxBillingPerUser
QOSMaxBillingMinutesPerJob MaxBillingPerAccount QOSMinBilling ReservationDeleted ReservationInvalid Constraints
MaxBBRunMinsPerAccount MaxBillingRunMinsPerAccount MaxCpuRunMinsPerAccount MaxEnergyRunMinsPerAccount
MaxGRESRunMinsPerAccount MaxNodeRunMinsPerAccount MaxLicenseRunMinsPerAccount MaxMemoryRunMinsPerAccount
MaxUnknownRunMinsPerAccount MaxBBRunMinsPerUser MaxBillingRunMinsPerUser MaxCpuRunMinsPerUser MaxEnergyRunMinsPerUser
MaxGRESRunMinsPerUser MaxNodeRunMinsPerUser MaxLicenseRunMinsPerUser MaxMemoryRunMinsPerUser MaxUnknownRunMinsPerUser
MaxPoweredUpNodes MpiPortsBusy"""
STARTS_IN_VAIN = re.compile(
    "Invalid|NotAllowed|Never|BadC|Constraints|PartitionConfig|(Node|Time)Limit$|DeadLine|BurstBufferOp|MaxMemPerLimit|QOSMin"
    "|MaxWall|Per(Job|Node)(Limit)?$|GrpWall|Grp[A-Za-z]*?(?<!Run)Minutes"
)


@pytest.mark.parametrize("reason", ALL.split())
def test_every_reason_of_slurm_is_said_in_words_and_what_starts_in_vain_says_so(reason):
    said = waiting_words(reason)
    assert reason not in said
    assert "{" not in said
    limited_by_others = {"AssocGrpNodeLimit", "QOSGrpNodeLimit", "TimeLimit"}  # "TimeLimit": its last run
    expected = STARTS_IN_VAIN.search(reason) is not None and reason not in limited_by_others
    assert said.startswith(NEVER) == expected


def test_an_unknown_reason_is_quoted():
    assert "'SomethingNew'" in waiting_words("SomethingNew")


@pytest.mark.parametrize(
    "state",
    [
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT", "COMPLETING",
    ],
)  # fmt: skip
def test_every_end_counts_as_over(state):
    assert SlurmJob(id="1", name="wc-a", state=state).over
    assert state.lower().partition("_")[0] in ended_words(state, "").lower()


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "NEW"]
)
def test_what_may_still_run_is_not_over(state):
    """An unknown state, too: a second job beside a living one is worse than a missing one."""
    assert not SlurmJob(id="1", name="wc-a", state=state).over


@pytest.mark.parametrize("state", ["REQUEUE_HOLD", "SPECIAL_EXIT"])
def test_a_held_job_says_so_without_a_reason(state):
    assert SlurmJob(id="1", name="wc-a", state=state).words().startswith("is held")


COMMENT = "workflow-composer fleet=ab12 server=coder file=/fleets/my%20fleet.yaml"
# Lines as `squeue --format='%i|%A|%T|%e|%S|%N|%r|%k|%j'` prints them, by version.
LINES = {
    "20.11": f"17|17|PENDING|N/A|N/A||Priority|{COMMENT}|wc-coder",
    "22.05, expected start": f"17|17|PENDING|1795647200|1795640000|(null)|Resources|{COMMENT}|wc-coder",
    "23.11, a task": f"17_3|20|RUNNING|1795647200|1795640000|gpu3|None|{COMMENT}|wc-coder",
    "24.05, waiting tasks": f"17_[4-9%2]|17|PENDING|N/A|N/A||JobArrayTaskLimit|{COMMENT}|wc-coder",
    "24.11, many tasks": f"17_[1,3,5,...]|17|PENDING|N/A|N/A||Priority|{COMMENT}|wc-coder",
    "25.05, a site's note": f"17|17|RUNNING|1795647200|1795640000|gpu3|None|billed to x; {COMMENT}|wc-coder",
}


@pytest.mark.parametrize("line", LINES.values(), ids=list(LINES))
def test_recorded_lines_are_read(line):
    job = read_job(line)
    assert job is not None
    assert job.id == line.partition("|")[0]
    assert (job.mark.fleet, job.mark.server, job.mark.file) == ("ab12", "coder", "/fleets/my fleet.yaml")
    assert job.server == "coder"
    assert job.order >= (17,)


def test_a_task_is_known_by_both_of_its_ids():
    """``$SLURM_JOB_ID`` in the task is not what squeue shows."""
    job = read_job(LINES["23.11, a task"])
    assert job.is_called("17_3")
    assert job.is_called("20")
    assert not job.is_called("17")
    assert not job.is_called("")
