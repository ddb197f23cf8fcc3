"""What sbatch is asked for, setting by setting."""

import shlex
from pathlib import Path

import pytest

from workflow_composer.fleet.settings import RoleSpec, SlurmSettings
from workflow_composer.fleet.slurm.sbatch import PYTHON_VARIABLE, JobMark, job_script, sbatch_command, server_of

ROLE = RoleSpec(name="coder", model="m", port=8002)


def command(role=ROLE, server="coder", **settings):
    where = {"logs": Path("/logs"), "python": "/py", "script": Path("/job.sh"), "environ": {}}
    return sbatch_command(SlurmSettings(**settings), role, JobMark("ab12", server, "/fleet/my fleet.yaml"), **where)


def test_the_defaults_are_a_day_on_t4flex_with_one_gpu():
    """And a signal ten minutes before the end, to the batch shell alone."""
    found = command()
    assert found[:2] == ["sbatch", "--parsable"]
    for option in ("--job-name=wc-coder", "--partition=t4flex", "--time=24:00:00", "--gres=gpu:1", "--requeue"):
        assert option in found
    assert "--signal=B:USR1@600" in found
    assert "--output=/logs/coder-slurm-%j.log" in found


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"partition": "p"}, "--partition=p"),
        ({"account": "a"}, "--account=a"),
        ({"qos": "q"}, "--qos=q"),
        ({"time": "2:00:00"}, "--time=2:00:00"),
        ({"gpu_type": "t4"}, "--gres=gpu:t4:1"),
        ({"constraint": "c&d"}, "--constraint=c&d"),
        ({"cpus_per_task": 9}, "--cpus-per-task=9"),
        ({"memory": "40G"}, "--mem=40G"),
        ({"drain_before": 90}, "--signal=B:USR1@90"),
        ({"options": ("--exclude=node7",)}, "--exclude=node7"),
    ],
)
def test_each_setting_becomes_its_option(settings, option):
    assert option in command(**settings)
    assert option not in command()


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"partition": None}, "--partition"),
        ({"cpus_per_task": None}, "--cpus-per-task"),
        ({"memory": None}, "--mem"),
        ({"gpus": False}, "--gres"),
    ],
)
def test_what_the_file_leaves_out_is_not_asked_for(settings, option):
    assert any(word.startswith(f"{option}=") for word in command())
    assert not any(word.startswith(f"{option}=") for word in command(**settings))


def test_a_server_that_spans_gpus_asks_for_them():
    assert "--gres=gpu:t4:4" in command(RoleSpec(name="coder", model="m", port=1, gpus=4), gpu_type="t4")


def test_the_cluster_s_own_options_come_last_but_for_the_work():
    """So that they can overrule what stands before them."""
    assert command(options=("--time=1",))[-2] == "--time=1"


def test_the_job_runs_the_script_in_the_shell_s_place():
    """The signal goes to the batch shell; with exec, that is the process that drains. Paths may hold spaces."""
    wrapped = command(server="coder-2")[-1].removeprefix("--wrap=exec ")
    assert shlex.split(wrapped) == [
        *["env", f"{PYTHON_VARIABLE}=/py", "bash", "/job.sh", "coder-2", "--fleet", "/fleet/my fleet.yaml"]
    ]


def test_the_job_script_is_there():
    """In a checkout among the scripts; in a wheel beside the package's files."""
    assert job_script().is_file()


def test_the_installed_script_is_preferred(tmp_path):
    (tmp_path / "slurm_vllm_job.sh").touch()
    assert job_script(tmp_path) == tmp_path / "slurm_vllm_job.sh"


def test_a_job_of_somebody_else_s_kind_is_no_server():
    assert server_of("wc-coder-2") == "coder-2"
    assert server_of("train") is None
