"""What stands in the way of a server, found before anything is loaded."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.unit.fleet.conftest import free_port
from workflow_composer.fleet.launch.hardware import Gpu, Hardware
from workflow_composer.fleet.launch.preflight import LEAST_DISK, disk_fault, faults, memory_fault, model_fault, port_fault
from workflow_composer.fleet.settings import RoleSpec

GIGA = 10**9


def role(**keys):
    return RoleSpec(**{"name": "r", "model": "Org/Model", "port": 8001} | keys)


def test_a_free_port_is_no_fault():
    assert port_fault("127.0.0.1", free_port()) is None


def test_a_taken_port_names_the_process_that_has_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fault = port_fault("127.0.0.1", port)

    name = Path("/proc/self/comm").read_text().strip()
    assert fault == f"port {port} is in use: process {os.getpid()} ({name}) listens on it; stop it or choose another port"


def test_a_port_that_another_address_has_is_taken_for_all_addresses():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "is in use" in port_fault("0.0.0.0", taken.getsockname()[1])


def test_a_taken_port_names_the_model_that_is_served_there(server):
    fault = port_fault("127.0.0.1", server.port)

    assert f"port {server.port} is in use: a server there serves " in fault


def test_an_address_that_is_not_the_machines_is_a_fault():
    assert "this machine has no address 192.0.2.1" in port_fault("192.0.2.1", free_port())
    assert "this machine has no address nix.invalid" in port_fault("nix.invalid", free_port())


@pytest.mark.parametrize(
    ("keys", "gpu", "fault"),
    [
        ({"memory_gb": 8, "gpu_memory_utilization": 0.5}, Gpu(3, "T4", 75, 16 * GIGA, 9 * GIGA), None),
        (
            {"memory_gb": 8, "gpu_memory_utilization": 0.5},
            Gpu(3, "T4", 75, 16 * GIGA, 7 * GIGA),
            "8.0 GB free on GPU 3 (T4)",
        ),
        (
            {"memory_gb": 8, "gpu_memory_utilization": 0.9},
            Gpu(3, "T4", 75, 16 * GIGA, 9 * GIGA),
            "14.4 GB free on GPU 3 (T4)",
        ),
        ({}, Gpu(3, "T4", 75, 16 * GIGA, 9 * GIGA), "14.7 GB free on GPU 3 (T4), but only 9.0 of 16.0 GB are free"),
        ({"memory_gb": 20}, Gpu(3, "T4", 75, 16 * GIGA, 16 * GIGA), "needs 20 GB, but GPU 3 (T4) has only 16.0 GB"),
    ],
)
def test_a_gpu_must_have_what_the_role_needs_and_what_vllm_takes(keys, gpu, fault):
    found = memory_fault(role(**keys), Hardware((gpu,)), (gpu,))

    assert found is None if fault is None else fault in found


def test_on_a_cpu_the_machine_must_have_the_memory():
    needs = role(memory_gb=8)

    assert memory_fault(needs, Hardware(memory=8 * GIGA), ()) is None
    assert memory_fault(needs, Hardware(memory=None), ()) is None
    assert "needs 8 GB of memory, but only 7.5 GB are free" in memory_fault(needs, Hardware(memory=75 * GIGA // 10), ())


def test_a_folder_that_can_be_written_to_is_made(tmp_path):
    assert disk_fault(tmp_path / "a" / "b") is None
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path):
    (tmp_path / "file").touch()

    assert disk_fault(tmp_path / "file" / "logs").startswith(f"cannot write logs to {tmp_path}/file/logs: not a directory;")


def test_a_disk_that_is_full_or_nearly_so_is_a_fault(small_disk):
    assert f"the disk of {small_disk} is full: " in disk_fault(small_disk)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(LEAST_DISK))

    assert disk_fault(small_disk).startswith(f"cannot write logs to {small_disk}: the disk is full;")


def test_a_models_folder_must_have_a_description(tmp_path):
    model = role(model=str(tmp_path / "m"))
    assert "no such folder" in model_fault(model, {})
    (tmp_path / "m").mkdir()
    assert "config.json: no such file or directory" in model_fault(model, {})
    (tmp_path / "m/config.json").write_text("{")
    assert "config.json is not valid JSON" in model_fault(model, {})
    (tmp_path / "m/config.json").write_text("{}")
    assert model_fault(model, {}) is None


def test_a_model_that_must_not_be_fetched_must_be_there(tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}

    assert f"model Org/Model is not on this machine ({tmp_path}/hub/models--Org--Model)" in model_fault(role(), offline)
    assert model_fault(role(), {"HF_HOME": str(tmp_path)}) is None
    assert model_fault(role(arguments=("--download-dir=/x",)), offline) is None
    (tmp_path / "hub/models--Org--Model").mkdir(parents=True)
    assert model_fault(role(), offline) is None


def test_every_fault_is_found_in_one_go(tmp_path):
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = list(
            faults(
                role(model="/nix", memory_gb=9),
                port=taken.getsockname()[1],
                listen="127.0.0.1",
                hardware=Hardware(memory=GIGA),
                gpus=(),
                logs=tmp_path / "file",
                environ={},
            )
        )

    assert len(found) == 4
    assert all("\n" not in fault and ";" in fault for fault in found)
