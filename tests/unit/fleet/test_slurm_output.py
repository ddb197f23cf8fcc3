"""SLURM's output is read, and its refusals are said again, by programs that stand in for its commands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.errors import FleetError
from workflow_composer.fleet.slurm.commands import Slurm, SlurmJob, read_job


@pytest.fixture
def slurm(tmp_path):
    """SLURM's commands, each of which is a shell script that the test writes."""

    def make(limit=10.0, **commands):
        for name, text in commands.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return Slurm({"PATH": f"{tmp_path}:/usr/bin:/bin"} if commands else {"PATH": str(tmp_path)}, limit=limit)

    return make


@pytest.mark.parametrize("printed", ["17", "17;cluster", "Welcome to the cluster!\n17", "sbatch: note\n\n17;a-b.c\n"])
def test_the_job_s_id_is_found_among_what_a_site_prints(slurm, printed):
    assert slurm(sbatch=f"printf '%s\\n' '{printed}'").submit(["sbatch"]) == "17"


def test_no_job_id_is_said():
    """A wrapper around sbatch may swallow it."""
    with pytest.raises(FleetError, match="no job id"):
        Slurm().submit(["true"])


@pytest.mark.parametrize(
    ("said", "line", "remedy"),
    [
        (
            "sbatch: error: invalid partition specified: t9\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified",
            "sbatch failed: Batch job submission failed: Invalid partition name specified",
            "slurm.partition",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "sbatch failed: Batch job submission failed: Invalid account or account/partition combination specified",
            "slurm.account",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "sbatch failed: Batch job submission failed: Requested node configuration is not available",
            "slurm.gpu_type",
        ),
        ("broken", "sbatch failed: broken", ""),
        ("", "sbatch failed: exit code 1", ""),
    ],
)
def test_a_refusal_is_slurm_s_own_line_with_a_remedy(slurm, said, line, remedy):
    with pytest.raises(FleetError) as caught:
        slurm(sbatch=f"printf '%s\\n' '{said}' >&2; exit 1").submit(["sbatch"])
    assert caught.value.message == line
    assert remedy in caught.value.hint
    assert bool(remedy) == bool(caught.value.hint)


def test_a_machine_without_slurm_is_named_as_such(slurm):
    with pytest.raises(FleetError, match="SLURM is not available here: sbatch not found") as caught:
        slurm().submit(["sbatch"])
    assert "login node" in caught.value.hint


def test_a_controller_that_does_not_answer_is_not_waited_for(slurm):
    with pytest.raises(FleetError, match="squeue did not finish within 0 s: Unable to contact slurm controller"):
        slurm(limit=0.3, squeue="echo 'squeue: error: Unable to contact slurm controller' >&2; exec sleep 30").jobs()


def test_the_queue_is_read_whatever_stands_between_its_lines(slurm):
    text = "Maintenance on Monday\n7|7|RUNNING|1795647200|1795640000|node3|None|(null)|wc-coder\n\n"
    text += "8|8|PENDING|N/A|N/A||Priority|(null)|other\n9|9|PENDING|N/A|1795640000||Resources||wc-math\nslurm|broken"
    jobs = slurm(squeue=f"printf '%s\\n' '{text}'").jobs()
    assert [(job.id, job.server, job.state, job.ends) for job in jobs] == [
        ("7", "coder", "RUNNING", 1795647200.0),
        ("9", "math", "PENDING", None),
    ]
    assert [job.id for job in slurm(squeue=f"printf '%s\\n' '{text}'").jobs(["math", "nobody"])] == ["9"]


def test_a_job_that_slurm_has_forgotten_is_none(slurm):
    assert slurm(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1").job("9") is None


def test_another_fault_than_a_forgotten_job_is_an_error(slurm):
    with pytest.raises(FleetError, match="squeue failed"):
        slurm(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1").job("9")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waits for free resources; expected to start in 10 min"),
        ("QOSMaxGRESPerUser", "waits: your GPU limit is reached; expected to start in 10 min"),
        (
            "AssocGrpGRESRunMinutes",
            "waits: the account's GPU limit is reached by the time reserved for running jobs; expected to start in 10 min",
        ),
        ("SomethingNew", "waits; SLURM's reason: 'SomethingNew'; expected to start in 10 min"),
    ],
)
def test_why_a_job_waits_is_said_in_words(reason, words):
    job = SlurmJob(id="1", name="wc-a", state="PENDING", reason=reason, starts=1600.0)
    assert job.words(now=1000.0) == words


def test_a_running_job_says_where():
    assert SlurmJob(id="1", name="wc-a", state="RUNNING", node="node3", starts=5.0).words() == "running on node3"


@given(st.text(max_size=200))
def test_no_line_breaks_the_reading(text):
    """Whatever squeue prints, it is a job or it is nothing."""
    job = read_job(text)
    assert job is None or (job.id.isdecimal() and job.state)


def test_times_are_asked_for_in_seconds(slurm):
    """A site's own SLURM_TIME_FORMAT would make them unreadable."""
    script = 'printf "3|3|RUNNING|$(date -d @0 "+$SLURM_TIME_FORMAT")|N/A|n|None||wc-a\\n"'
    assert slurm(squeue=script).jobs()[0].ends == 0.0


@pytest.mark.parametrize(
    ("state", "now", "called"),
    [
        ("PENDING", False, "5"),
        ("RUNNING", False, "--batch --signal=TERM 5"),
        ("RUNNING", True, "5"),
        ("COMPLETING", False, None),
    ],
)
def test_a_running_job_is_told_to_finish_and_a_waiting_one_is_taken_away(slurm, tmp_path, state, now, called):
    slurm(scancel=f'echo "$*" > {tmp_path}/called').cancel([SlurmJob(id="5", name="wc-a", state=state)], now=now)
    path = tmp_path / "called"
    assert (path.read_text().strip() if path.exists() else None) == called
