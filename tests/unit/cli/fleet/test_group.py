"""The commands of ``fleet`` that start, stop and show servers, over a vLLM that is a fake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.fleet.conftest import Folder, alive, folder, free_port, until  # noqa: F401  # folder is a fixture
from workflow_composer.cli.fleet.logs import added, tail
from workflow_composer.cli.main import run
from workflow_composer.cli.state import State


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def fleet(folder, capfd):  # noqa: F811  # the fixture
    """Runs a command of ``fleet`` with the folder's file; what it prints, and its exit code."""

    def call(name: str, *arguments: str) -> Done:
        code = run(["fleet", name, "--fleet", str(folder.path / "fleet.yaml"), *arguments], State(environ=folder.environ))
        return Done(code, *capfd.readouterr())

    folder.write({"small": {}, "other": {"port": free_port()}})
    yield call
    call("down")


def health(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return answer.status


# ---------------------------------------------------------------------------------------------------------------- up, down


def test_up_starts_servers_that_go_on_and_down_stops_them(fleet, folder):  # noqa: F811
    up = fleet("up", "--json")

    assert (up.code, [result["status"] for result in up.json]) == (0, ["ready", "ready"])
    assert up.json[0]["url"] == f"http://127.0.0.1:{folder.port}/v1"
    assert health(folder.port) == 200

    down = fleet("down")
    assert (down.code, down.out.split()) == (0, ["server", "status", "other", "stopped", "small", "stopped"])
    assert not [pid for pid in folder.processes if alive(pid)]
    assert list((folder.path / "registry").iterdir()) == []
    assert json.loads((folder.path / "state" / "small.json").read_text())["wanted"] is False


def test_up_of_one_role_starts_that_one_and_again_says_that_it_runs(fleet, folder):  # noqa: F811
    first = fleet("up", "small")
    again = fleet("up", "small")

    assert "ready after" in first.out
    assert f"http://127.0.0.1:{folder.port}/v1" in again.out
    assert "already running" in again.out
    assert len(list((folder.path / "state").glob("*.json"))) == 1


def test_two_ups_at_once_start_one_server_and_both_wait_for_it(fleet, folder):  # noqa: F811
    command = [sys.executable, "-m", "workflow_composer", "fleet", "up", "small", "--fleet", str(folder.path / "fleet.yaml")]
    calls = [subprocess.Popen(command, env=folder.environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [call.communicate(timeout=60)[0] for call in calls]

    assert [call.returncode for call in calls] == [0, 0]
    assert sorted("already running" in out for out in outs) == [False, True]


def test_up_says_why_one_has_not_started_and_keeps_the_others(fleet, folder):  # noqa: F811
    with socket.create_server(("127.0.0.1", folder.port)):
        up = fleet("up", "--json")

    status = {result["server"]: result["status"] for result in up.json}
    assert (up.code, status) == (1, {"small": "failed", "other": "ready"})
    assert f"port {folder.port} is in use: process {os.getpid()}" in up.json[0]["detail"]
    assert "its log: " in up.json[0]["detail"]


def test_a_start_that_fails_is_told_with_vllms_own_reason(fleet, folder):  # noqa: F811
    folder.environ["FAKE_VLLM"] = "crash"

    up = fleet("up", "small")

    assert up.code == 1
    assert "small has not started: ValueError: the weights are of another shape" in up.out


def test_a_server_whose_supervisor_was_killed_is_started_anew(fleet, folder):  # noqa: F811
    fleet("up", "small")
    pids = folder.processes
    os.kill(json.loads((folder.path / "state" / "small.json").read_text())["pid"], signal.SIGKILL)
    until(lambda: not [pid for pid in pids if alive(pid)], "the end of vLLM")

    again = fleet("up", "small")

    assert (again.code, "ready after" in again.out) == (0, True)
    assert folder.processes != pids


def test_a_deleted_state_folder_loses_no_server(fleet, folder):  # noqa: F811
    """It is found by its registry entry: not started twice, and ended."""
    fleet("up", "small")
    pids = folder.processes
    shutil.rmtree(folder.path / "state")

    again = fleet("up", "small")

    assert (again.code, "already running" in again.out) == (0, True)
    assert folder.processes == pids
    shutil.rmtree(folder.path / "state")
    assert fleet("down").out.split()[-2:] == ["small", "stopped"]
    until(lambda: not [pid for pid in pids if alive(pid)], "the end of vLLM")


def test_fleets_that_share_a_state_folder_leave_each_other_s_servers_alone(fleet, folder):  # noqa: F811
    """The same name in another file: neither taken for one's own nor ended."""
    fleet("up", "small")
    other = folder.path / "other.yaml"
    shutil.copy(folder.path / "fleet.yaml", other)

    up, down = fleet("up", "small", "--fleet", str(other)), fleet("down", "small", "--fleet", str(other))

    assert up.code == 1
    assert str(folder.path / "fleet.yaml") in up.out
    assert (down.code, "left alone" in down.out) == (0, True)
    assert health(folder.port) == 200


def test_down_of_what_does_not_run_says_so(fleet):
    assert fleet("down").out == "no servers to stop\n"
    assert fleet("down", "small", "--json").json == [{"server": "small", "status": "stopped", "detail": "not running"}]
    assert "no role 'smal'" in fleet("down", "smal").err


def test_a_server_on_another_node_is_not_stopped_from_here(fleet, folder):  # noqa: F811
    from workflow_composer.fleet.launch.supervisor_lock import Holding

    holding = Holding(folder.path / "state", "small")
    holding.take()
    (folder.path / "state" / "small.run").write_text(json.dumps([1, "node9"]))

    down = fleet("down", "small")

    assert down.code == 1
    assert "small runs on node9 (run `fleet down small` on node9)" in down.out
    holding.release()


def test_a_server_that_runs_as_a_job_is_not_started_here_too(fleet, folder):  # noqa: F811
    from workflow_composer.backends.replicas.registry import Entry, ServerRegistry

    entry = Entry(
        server="small",
        role="small",
        host="10.0.0.7",
        node="node7",
        port=8001,
        model="m",
        job_id="42",
        started=1.0,
        updated=1.0,
    )
    ServerRegistry(folder.path / "registry").publish(entry)

    up = fleet("up", "small")

    assert up.code == 1
    assert "small is already running as SLURM job 42 on node7 (use that one, or stop it first: `fleet down small`)" in up.out
    assert folder.processes == []


def test_a_dry_run_prints_the_commands_and_starts_nothing(fleet, folder):  # noqa: F811
    dry = fleet("up", "--dry-run")

    assert dry.code == 0
    assert dry.out.splitlines()[0] == "# small"
    assert f"{sys.executable} -m vllm.entrypoints.openai.api_server --model {folder.model}" in dry.out.splitlines()[1]
    assert not (folder.path / "state").exists()


def test_a_dry_run_says_what_cannot_run_here(fleet, folder):  # noqa: F811
    folder.write({"small": {"device": "cuda"}})

    dry = fleet("up", "--dry-run")

    assert dry.code == 1
    assert dry.err.startswith("error: role 'small' sets device: cuda, but the vLLM of ")


# ------------------------------------------------------------------------------------------------------------------- serve


def serve(folder: Folder, *arguments: str, **more: Any) -> subprocess.Popen[str]:  # noqa: F811
    script = str(ROOT / "scripts" / "llm" / "start_vllm_server.sh")
    environ = folder.environ | {"WORKFLOW_COMPOSER_PYTHON": sys.executable}
    command = [script, *arguments, "--fleet", str(folder.path / "fleet.yaml")]
    return subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_script_serves_until_a_signal_and_leaves_nothing(folder, number):  # noqa: F811
    folder.write()
    with serve(folder, "small") as script:
        line = script.stdout.readline()
        assert f"http://127.0.0.1:{folder.port}/v1" in line
        state = json.loads((folder.path / "state" / "small.json").read_text())
        assert (state["status"], state["pid"]) == ("ready", script.pid)
        script.send_signal(number)
        out, err = script.communicate(timeout=60)

    assert (script.returncode, err) == (0, "")
    assert out.endswith("small has stopped\n")
    assert not [pid for pid in folder.processes if alive(pid)]
    assert list((folder.path / "registry").iterdir()) == []
    assert json.loads((folder.path / "state" / "small.json").read_text())["wanted"] is False


def test_what_nohup_shields_goes_on_when_the_terminal_closes(folder):  # noqa: F811
    folder.write()
    with serve(folder, "small", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as script:
        script.stdout.readline()
        script.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            script.wait(1)
        assert health(folder.port) == 200
        script.terminate()
        assert script.wait(30) == 0


def test_who_listens_on_every_address_is_published_under_its_nodes_name(folder):  # noqa: F811
    folder.write(listen="0.0.0.0")
    with serve(folder, "small") as script:
        assert f"http://{os.uname().nodename}:{folder.port}/v1" in script.stdout.readline()
        assert "--host 0.0.0.0" in (folder.path / "logs" / "small.log").read_text()
        script.terminate()
        assert script.wait(30) == 0


def test_a_model_that_is_no_role_is_served_as_it_stands(folder):  # noqa: F811
    folder.write()
    port = free_port()
    with serve(folder, str(folder.model), "--port", str(port)) as script:
        assert f"http://127.0.0.1:{port}/v1  model model" in script.stdout.readline()
        assert json.loads((folder.path / "state" / "model.json").read_text())["wanted"] is False
        script.terminate()
        assert script.wait(30) == 0


def test_a_failure_is_exit_code_1_with_the_reason(folder):  # noqa: F811
    folder.write()
    folder.environ["FAKE_VLLM"] = "memory"
    with serve(folder, "small") as script:
        out, _ = script.communicate(timeout=60)

    assert script.returncode == 1
    assert out.splitlines()[-1].startswith("small has failed: not enough GPU memory: ")


def test_every_fault_before_the_start_is_a_line_of_its_own(folder):  # noqa: F811
    (folder.model / "config.json").unlink()
    folder.write({"small": {"memory_gb": 1e6}})
    with serve(folder, "small") as script:
        _, err = script.communicate(timeout=60)

    lines = err.splitlines()
    assert script.returncode == 1
    assert [line.split(":")[0] for line in lines] == ["error", "error"]
    assert "needs 1e+06 GB of memory" in lines[0]
    assert "config.json" in lines[1]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("smal", "has no role 'smal'"),
        ("./nix", "no such folder"),
        ("Org/Nix", "model Org/Nix is not on this machine"),
    ],
)
def test_what_is_neither_role_nor_model_is_one_line(folder, name, fault):  # noqa: F811
    folder.write()
    folder.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nix"}
    with serve(folder, name, "--port", str(free_port())) as script:
        _, err = script.communicate(timeout=60)

    assert script.returncode == 1
    assert fault in err.splitlines()[0]
    assert "Traceback" not in err


def test_options_of_vllm_stand_behind_two_dashes(fleet):
    dry = fleet("serve", "small", "--port", "7000", "--dry-run", "--", "--max-num-seqs", "8")

    assert "--port 7000 " in dry.out
    assert dry.out.endswith("--max-num-seqs 8\n")
    assert "put --port before the `--`" in fleet("serve", "small", "--dry-run", "--", "--port", "8").err


def test_the_script_explains_itself_and_wants_a_role():
    script = str(ROOT / "scripts" / "llm" / "start_vllm_server.sh")
    explained = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    without = subprocess.run([script], capture_output=True, text=True, check=False)

    assert explained.stdout.startswith("Usage: start_vllm_server.sh ROLE|MODEL [--port N] [--dry-run]")
    assert (without.returncode, without.stderr) == (2, explained.stdout)


def test_the_script_passes_shellcheck():
    if not (program := shutil.which("shellcheck")):
        pytest.skip("shellcheck is not installed")
    subprocess.run([program, str(ROOT / "scripts" / "llm" / "start_vllm_server.sh")], check=True)


# -------------------------------------------------------------------------------------------------------------------- logs


def test_logs_shows_the_end_of_a_servers_log(fleet, folder):  # noqa: F811
    (folder.path / "logs").mkdir()
    (folder.path / "logs" / "small.log").write_text("".join(f"line {n}\n" for n in range(100)) + "red \x1b[31m\n")

    assert fleet("logs", "small", "-n", "2").out == "line 99\nred [31m\n"
    assert len(fleet("logs", "small").out.splitlines()) == 50
    assert fleet("logs", "small", "--json", "-n", "1").json["lines"] == ["red \x1b[31m"]


def test_a_server_without_a_log_is_one_line(fleet):
    done = fleet("logs", "small")

    assert (done.code, done.err.splitlines()[1]) == (1, "hint: start it with `fleet up small`")
    assert "no role 'smal'" in fleet("logs", "smal").err


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
def test_the_end_of_a_file_is_its_last_lines(tmp_path: Path, count):
    lines = [f"line {n} {'x' * (n % 97)}" for n in range(4000)]
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + "\n")

    assert tail(path, count) == (lines[-count:] if count else [])


def test_following_a_log_goes_on_where_it_is_begun_anew(tmp_path: Path):
    path = tmp_path / "log"
    path.write_text("old\n")
    lines = added(path)
    found: list[str] = []
    reader = threading.Thread(target=lambda: [found.append(next(lines)) for _ in range(3)], daemon=True)
    reader.start()
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        until(lambda: found == ["one"], "the first line")
        file.write("o\n")
    until(lambda: found == ["one", "two"], "the second line")
    path.rename(tmp_path / "log.1")
    path.write_text("three\n")
    reader.join(60)

    assert found == ["one", "two", "three"]
    lines.close()
