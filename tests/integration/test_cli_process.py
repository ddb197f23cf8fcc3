"""The command line as a process: interrupts, kills, closed pipes, two at once, installed plugins.

A stub server stands for the model. It can keep a request waiting for ever, so that every signal meets a run in mid-work;
tests wait for what the server has seen, never for time to pass.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stub_server import Reply, StubServer
from tests.paths import ROOT
from workflow_composer.metrics.sink import METRICS_FILE

PATIENCE = 60.0
FOREIGN = ("WORKFLOW_COMPOSER", "BIOPIPELINES", "PYTHONUNBUFFERED")
"""Variables that would change what is tested."""


class Commands:
    """Starts the command line in a folder, with a profile whose one model is the server's."""

    def __init__(self, folder: Path, server: StubServer) -> None:
        self.folder = folder
        self.server = server
        self.started: list[subprocess.Popen[bytes]] = []
        profile = {
            "profile_name": "stub",
            "allow_cloud": False,
            "models": {"small": {"backend": "vllm", "base_url": server.url, "model": "stub-model"}},
            "task_routing": {"*": "small"},
            "retries": {"attempts": 1},
        }
        (folder / "stub.yaml").write_text(json.dumps(profile))

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a command."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environ = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
        process = subprocess.Popen(
            [sys.executable, "-m", "workflow_composer", "-s", "stub.yaml", *arguments],
            cwd=self.folder,
            **(streams | {"env": environ | {"PYTHONPATH": str(ROOT)}} | options),
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def rows(self, count: int) -> None:
        """Write an input."""
        rows = (json.dumps({"prompt": f"row {index}", "answer": "1"}) + "\n" for index in range(count))
        (self.folder / "in.jsonl").write_text("".join(rows))

    def output(self) -> list[dict[str, object]]:
        """The rows of the output."""
        return [json.loads(line) for line in (self.folder / "out.jsonl").read_bytes().splitlines()]

    def batch(self, *arguments: str) -> tuple[str, ...]:
        """The arguments of a batch run."""
        return ("generate", "-i", "in.jsonl", "-o", "out.jsonl", "--concurrency", "4", *arguments)

    def batch_in_mid_work(self, answered: int) -> subprocess.Popen[bytes]:
        """Start a batch that has so many answers and then waits for ever, four rows in flight."""
        self.server.script(*[Reply.chat("#### 1")] * answered, *[Reply(hang=True)] * 4)
        process = self.start(*self.batch())
        assert self.server.wait_for(lambda s: len(asked(s)) == answered + 4, PATIENCE), process.poll()
        return process


def asked(server: StubServer) -> list[str]:
    """The prompts that the server was asked."""
    return [r.json["messages"][-1]["content"] for r in list(server.requests) if r.path.endswith("/chat/completions")]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Commands in an empty folder, with a state of their own; none outlives its test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with StubServer() as server:
        made = Commands(tmp_path, server)
        yield made
        for process in made.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_batch_that_is_stopped_keeps_its_answers_and_goes_on_later(commands, number, code):
    """Ctrl-C and SIGTERM (which SLURM sends): at once, with what was answered; the server hears of it."""
    commands.rows(20)
    process = commands.batch_in_mid_work(answered=9)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == code
    assert b"9 of 20 rows done" in err
    assert b"run the same command again to resume" in err
    assert b"Traceback" not in err
    assert len(commands.output()) == 9
    assert commands.server.wait_for(lambda s: s.disconnects == 4)
    answered = {row["index"] for row in commands.output()}

    before = len(asked(commands.server))
    done = commands.run(*commands.batch())
    assert done.returncode == 0, done.stderr
    assert sorted(row["index"] for row in commands.output()) == list(range(20))
    assert set(asked(commands.server)[before:]) == {f"row {i}" for i in range(20) if i not in answered}
    written = commands.folder / "state" / "workflow-composer" / METRICS_FILE
    metrics = [json.loads(line) for line in written.read_bytes().splitlines()]
    assert not (commands.folder / "logs").exists()
    assert sum(metric["success"] for metric in metrics) == 20


def test_a_batch_that_is_killed_loses_no_answered_row(commands):
    """SIGKILL leaves no time for anything; the next run goes on."""
    commands.rows(20)
    process = commands.batch_in_mid_work(answered=9)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert len(commands.output()) == 9

    done = commands.run(*commands.batch("--json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["earlier"], found["errors"]) == (20, 9, 0)
    assert sorted(row["index"] for row in commands.output()) == list(range(20))


def test_two_runs_on_one_output_are_one_too_many(commands):
    """The second says so and touches nothing; the first goes on."""
    commands.rows(8)
    commands.batch_in_mid_work(answered=2)
    before = (commands.folder / "out.jsonl").read_bytes()
    second = commands.run(*commands.batch())

    assert second.returncode == 2
    assert b"another run is writing to" in second.stderr
    assert (commands.folder / "out.jsonl").read_bytes() == before
    assert len(asked(commands.server)) == 6


def test_a_killed_run_leaves_no_lock(commands):
    """The lock belongs to the process, not to the file."""
    commands.rows(8)
    process = commands.batch_in_mid_work(answered=2)
    process.kill()
    process.communicate(timeout=PATIENCE)

    assert commands.run(*commands.batch()).returncode == 0


def test_ctrl_c_ends_a_single_prompt_at_once(commands):
    """The server hears of it, and no traceback is shown."""
    commands.server.script(Reply(hang=True))
    process = commands.start("generate", "hello")
    assert commands.server.wait_for(lambda s: len(asked(s)) == 1, PATIENCE)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)

    assert (process.returncode, out) == (130, b"")
    assert err.strip() == b"interrupted"
    assert commands.server.wait_for(lambda s: s.disconnects == 1)


def test_ctrl_c_ends_a_stream_on_a_terminal_and_keeps_what_was_written(commands):
    """As a person sees it: half an answer, then the prompt of the shell."""
    commands.server.script(Reply.stream("half", *[" more"] * 10_000, gap=0.05))
    ours, theirs = pty.openpty()
    process = commands.start("generate", "hello", stdout=theirs)
    os.close(theirs)
    try:
        shown = b""
        while b"half" not in shown:
            shown += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        os.close(ours)

    assert process.returncode == 130
    assert err.strip() == b"interrupted"
    assert commands.server.wait_for(lambda s: s.disconnects == 1)


@pytest.mark.parametrize("arguments", [("generate", "-i", "in.jsonl"), ("strategies", "show", "t4_hybrid"), ("--help",)])
def test_a_closed_pipe_is_quiet(commands, arguments):
    """``| head -0``: nobody reads, nobody is told."""
    commands.rows(50)
    process = commands.start(*arguments)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(PATIENCE)

    assert process.returncode == 1
    assert b"Broken pipe" not in err
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [("generate", "-i", "in.jsonl"), ("generate", "hello"), ("strategies", "show", "t4_hybrid")]
)
def test_a_full_disk_behind_standard_output_is_told(commands, arguments):
    """In one line, once."""
    commands.rows(5)
    with Path("/dev/full").open("wb") as full:
        done = commands.run(*arguments, stdout=full)

    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_an_unreachable_server_is_an_error_with_a_hint(commands):
    """What failed, and where to look."""
    commands.server.close()
    done = commands.run("generate", "hello")

    assert done.returncode == 5
    assert done.stderr.startswith(b"error: ")
    assert b"hint: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_text_passes_through_any_locale(commands):
    """Also where Python takes the terminal for ASCII; and half a character is no reason to fail."""
    commands.server.script(Reply.chat("Grüße, 漢字 \ud83d"))
    environ = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONPATH=str(ROOT))
    done = commands.run("generate", "hello", env=environ)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Grüße, 漢字 ".encode())


PLUGIN = """
import click
from workflow_composer import hookimpl

@hookimpl
def register_commands(register):
    @click.command(NAME)
    def greet():
        "Say hello."
        click.echo("hello from a plugin")
    register(greet)
"""


@pytest.fixture
def install(commands):
    """Installs a plugin the way pip does, into a folder of its own; returns the environment that sees it."""

    def install_it(source: str, name: str = "stranger") -> dict[str, str]:
        site = commands.folder / "site"
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[workflow_composer]\n{name} = {name}\n")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}

    return install_it


def test_a_plugins_command_is_one_of_ours(commands, install):
    """It runs, and the help lists it."""
    environ = install(PLUGIN.replace("NAME", '"greet"'))

    assert commands.run("greet", env=environ).stdout == b"hello from a plugin\n"
    help_text = commands.run("--help", env=environ).stdout.decode()
    assert "Commands of plugins:" in help_text
    assert "greet" in help_text
    (found,) = [
        plugin
        for plugin in json.loads(commands.run("plugins", "--json", env=environ).stdout)["plugins"]
        if plugin["name"] == "stranger"
    ]
    assert (found["version"], found["status"], found["provides"]) == ("1.2", "loaded", ["command:greet"])


def test_a_plugin_with_a_built_in_name_is_an_error_and_can_be_blocked(commands, install):
    """Neither command wins in silence; commands that need no plugin go on."""
    environ = install(PLUGIN.replace("NAME", '"status"'))
    done = commands.run("plugins", env=environ)

    assert done.returncode == 2
    assert b"'stranger' registers a command 'status'" in done.stderr
    assert commands.run("generate", "--help", env=environ).returncode == 0
    assert commands.run("plugins", env=environ | {"WORKFLOW_COMPOSER_BLOCK_PLUGINS": "stranger"}).returncode == 0


def test_a_broken_plugin_is_listed_and_hinders_nothing(commands, install):
    """With the reason."""
    environ = install("import a_module_that_is_not_there")
    listed = commands.run("plugins", env=environ)

    assert listed.returncode == 0
    assert b"broken: ModuleNotFoundError" in listed.stdout
    assert commands.run("generate", "hello", env=environ).stdout == b"an answer\n"


def test_the_script_prints_the_same_summary_as_the_command(commands):
    """It is for cron jobs; the logic is the package's."""
    commands.run("generate", "hello")
    script = [sys.executable, str(ROOT / "scripts" / "analyze_routing_metrics.py"), "--since", "24h"]
    options = {"cwd": commands.folder, "timeout": PATIENCE}
    printed = subprocess.check_output(script, **options)

    assert printed.startswith(b"requests:    1, ")
    assert printed == commands.run("metrics", "--since", "24h").stdout
    assert json.loads(subprocess.check_output([*script, "--json"], **options))["requests"] == 1
