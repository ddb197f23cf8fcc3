"""One supervisor for a server, and one server for a share of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.gpu_leases import Claims
from workflow_composer.fleet.launch.hardware import Gpu
from workflow_composer.fleet.launch.supervisor_lock import Holder, Holding

GIGA = 10**9
TAKE = """
import sys; from pathlib import Path; from workflow_composer.fleet.launch.supervisor_lock import Holding
print(Holding(Path(sys.argv[1]), "coder").take(), flush=True); sys.stdin.read()
"""


def test_who_holds_a_server_is_known_to_others_until_it_lets_go(tmp_path):
    mine, other = Holding(tmp_path, "coder"), Holding(tmp_path, "coder")
    me = Holder(os.getpid(), os.uname().nodename)

    assert mine.holder() is None
    assert mine.take() is None
    assert (other.take(), other.holder()) == (me, me)
    assert me.here
    assert Holding(tmp_path, "math").take() is None
    mine.release()
    assert other.holder() is None
    assert other.take() is None


def test_a_process_that_is_killed_holds_nothing_any_more(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "None\n"
        assert Holding(tmp_path, "coder").take() == Holder(other.pid, os.uname().nodename)
        other.kill()
    assert Holding(tmp_path, "coder").take() is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(FleetError, match=r"coder\.run cannot be written"):
        Holding(tmp_path / "file", "coder").take()


def gpus(*free):
    return [Gpu(index, "T4", 75, 16 * GIGA, round(gigabytes * GIGA), f"GPU-{index}") for index, gigabytes in enumerate(free)]


def test_servers_that_start_together_get_gpus_of_their_own(tmp_path):
    claims, found = Claims(tmp_path, "node"), gpus(16, 16, 16)

    taken = [claims.take(server, found, 1, lambda gpu: 0.9 * gpu.total) for server in ("a", "b", "c")]

    assert [[gpu.index for gpu in chosen] for chosen in taken] == [[0], [1], [2]]


def test_a_gpu_is_shared_where_there_is_room_and_shows_what_is_left(tmp_path):
    claims, found = Claims(tmp_path, "node"), gpus(16)
    claims.take("a", found, 1, lambda gpu: 10 * GIGA)

    (left,) = claims.take("b", found, 1, lambda gpu: 4 * GIGA)

    assert left.free == 6 * GIGA


def test_what_is_claimed_and_in_use_counts_once(tmp_path):
    claims = Claims(tmp_path, "node")
    claims.take("a", gpus(16), 1, lambda gpu: 10 * GIGA)

    (left,) = claims.take("b", gpus(5), 1, lambda gpu: 4 * GIGA)

    assert left.free == 5 * GIGA


def test_a_claim_ends_when_it_is_released_or_its_process_has_ended(tmp_path):
    claims, found = Claims(tmp_path, "node"), gpus(16)
    take = (
        "import sys; from pathlib import Path; from workflow_composer.fleet.launch.gpu_leases import Claims\n"
        "from workflow_composer.fleet.launch.hardware import Gpu\n"
        "Claims(Path(sys.argv[1]), 'node').take('x', [Gpu(0, 'T4', 75, 16, 16, 'GPU-0')], 1, lambda gpu: 9e9)\n"
    )
    subprocess.run([sys.executable, "-c", take, str(tmp_path)], check=True)
    claims.take("a", found, 1, lambda gpu: 9 * GIGA)
    claims.release("a")

    (left,) = claims.take("b", found, 1, lambda gpu: GIGA)

    assert left.free == 16 * GIGA


def test_several_gpus_are_those_with_the_most_memory_left(tmp_path):
    chosen = Claims(tmp_path, "node").take("a", gpus(3, 9, 16), 2, lambda gpu: 0)

    assert [gpu.index for gpu in chosen] == [2, 1]
