"""Programs within limits: what they read and write, how they are ended, that nothing of them is left, and no network."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.paths import ROOT
from workflow_composer.errors import ProgramFault
from workflow_composer.workflows.definition.model import CommandBody, ProgramLimits
from workflow_composer.workflows.programs import launcher, sandbox
from workflow_composer.workflows.programs.command import run_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

PATIENT = ProgramLimits(seconds=120)
WAYS = ["_whole", "_network_only", "_filter_only"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The workflow's folder; temporary folders are made elsewhere, so that what is left behind is seen."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "flow").mkdir()
    yield tmp_path / "flow"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture(params=WAYS)
def way(request, monkeypatch, tmp_path):
    """Each way of keeping a program in alone: a launcher that knows no other one."""
    source = Path(launcher.__file__).read_text()
    chosen = "ways = [_whole, _network_only, _filter_only] if kept_in else [_whole, _plain]"
    assert chosen in source
    made = tmp_path / "launcher.py"
    made.write_text(source.replace(chosen, f"ways = [{request.param}]"))
    monkeypatch.setattr(sandbox, "_LAUNCHER", made)
    return request.param


def python(code, *more):
    return CommandBody(argv=("python", "-c", code, *more))


async def run(body, folder, *, given=None, files=None, limits=PATIENT, private=False):
    return await run_command(body, given=given, files=files or {}, limits=limits, folder=folder, private=private)


def alive(mark):
    """Processes whose command line has a mark."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0"):
                found.append(int(entry.name))
    return found


async def test_a_program_reads_and_writes(folder, way):
    body = python("import json, sys; d = json.load(sys.stdin); print(d['b']['c'], file=sys.stderr); print(d['a'])")
    outcome = await run(body, folder, given={"a": "Zoë's 北京", "b": {"c": 1}})
    assert (outcome.exit_code, outcome.output, outcome.errors) == (0, "Zoë's 北京\n", "1\n")
    assert (outcome.ended_by, outcome.passed, outcome.shortened) == (None, True, False)


async def test_nothing_is_said_of_how_it_was_waited_for(folder, caplog):
    for _ in range(5):
        await run(python("print(1)"), folder)
    assert caplog.records == []


async def test_a_text_is_read_as_it_is(folder):
    outcome = await run(python("import sys; print(len(sys.stdin.buffer.read()))"), folder, given='a "note"\n')
    assert outcome.output == "9\n"


@pytest.mark.parametrize(
    ("code", "ends"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11), ("1/0", 1)]
)
async def test_the_end_of_a_program_is_told(folder, way, code, ends):
    outcome = await run(python(code), folder)
    assert (outcome.exit_code, outcome.ended_by, outcome.passed) == (ends, None, False)


async def test_its_folder_is_new_and_has_the_files(folder):
    """Files of the step, in folders too; and nothing is left of what it writes there or for a while."""
    code = (
        "import os, sys, tempfile; print(sorted(os.listdir()), open('a/b.txt').read()); open('new', 'w'); tempfile.mkdtemp()"
    )
    outcome = await run(python(code), folder, files={"a/b.txt": "ü\n", "c.py": ""})
    assert outcome.output == "['a', 'c.py'] ü\n\n"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
async def test_a_file_outside_its_folder_is_refused(folder, name):
    with pytest.raises(ProgramFault, match="outside"):
        await run(python("1"), folder, files={name: "x"})


async def test_files_of_the_workflow_are_found(folder):
    """As an argument, as the value of an option, in a folder; but a file of the step goes before."""
    (folder / "sub").mkdir()
    (folder / "sub" / "names.txt").write_text("theirs")
    (folder / "x.txt").write_text("theirs")
    code = "import sys; print([a.partition('=')[2] if '=' in a else open(a).read() for a in sys.argv[1:]])"
    outcome = await run(python(code, "sub/names.txt", "--from=sub/names.txt", "x.txt"), folder, files={"x.txt": "own"})
    assert outcome.output == f"['theirs', '{folder / 'sub' / 'names.txt'}', 'own']\n"


async def test_a_program_beside_the_workflow(folder):
    """A script with a first line, one without, and modules beside it."""
    (folder / "good.sh").write_text("#!/bin/sh\necho $1 good\n")
    (folder / "bare.sh").write_text("echo $1 bare\n")
    for script in folder.iterdir():
        script.chmod(0o755)
    assert (await run(CommandBody(argv=("good.sh", "a")), folder)).output == "a good\n"
    assert (await run(CommandBody(argv=("./bare.sh", "b")), folder)).output == "b bare\n"
    (folder / "helper.py").write_text("WORD = 'found'")
    (folder / "main.py").write_text("import helper; print(helper.WORD)")
    assert (await run(CommandBody(argv=("python3", "main.py")), folder)).output == "found\n"
    assert (await run(python("import helper; print(helper.WORD)"), folder)).output == "found\n"


async def test_a_program_that_is_not_there_is_named(folder):
    with pytest.raises(ProgramFault, match="no program 'no-such-program'") as caught:
        await run(CommandBody(argv=("no-such-program",)), folder)
    assert not caught.value.started
    (folder / "check.py").write_text("print(1)")
    with pytest.raises(ProgramFault, match=r"cannot run check\.py") as caught:
        await run(CommandBody(argv=("check.py",)), folder)
    assert "[python, FILE]" in caught.value.hint


async def test_keys_are_not_passed_on(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("LC_TIME", "C")
    outcome = await run(
        python("import os; print('OPENAI_API_KEY' in os.environ, os.environ['LC_TIME'], 'PATH' in os.environ)"), folder
    )
    assert outcome.output == "False C True\n"


# ---------------------------------------------------------------------------------------------------------------- limits


async def test_one_that_hangs_is_ended_with_all_that_it_started(folder, way, tmp_path):
    """Also what has left its session and its parent, and ignores requests to end."""
    mark = f"mark-{os.getpid()}-{way}"
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000)', sys.argv[1]])\n"
        "        os._exit(0)\n"
        "print('started', flush=True)\n"
        "time.sleep(1000)\n"
    )
    outcome = await run(python(code, mark), folder, limits=ProgramLimits(seconds=2))
    assert (outcome.ended_by, outcome.output, outcome.passed) == ("time", "started\n", False)
    assert alive(mark) == []


async def test_a_daemon_does_not_outlive_the_program(folder, way):
    """Neither does it keep anybody waiting."""
    mark = f"mark-{os.getpid()}-daemon-{way}"
    code = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000)', sys.argv[1]])\n"
        "print('done')\n"
    )
    outcome = await run(python(code, mark), folder)
    assert (outcome.passed, outcome.output) == (True, "done\n")
    assert alive(mark) == []


@pytest.mark.parametrize("way", ["_whole", "_filter_only"], indirect=True)
async def test_a_thousand_forks_are_ended(folder, way):
    mark = f"mark-{os.getpid()}-forks-{way}"
    code = "import os, time\nfor _ in range(1000):\n    if os.fork() == 0:\n        time.sleep(1000)\ntime.sleep(1000)"
    outcome = await run(python(code, mark), folder)
    assert (outcome.ended_by, outcome.passed) == ("processes", False)
    assert alive(mark) == []


async def test_one_that_eats_memory_is_ended(folder, way):
    code = "kept = []\nwhile True: kept.append(bytearray(b'x' * 4_000_000))"
    outcome = await run(python(code), folder, limits=ProgramLimits(seconds=120, memory=100_000_000))
    assert (outcome.ended_by, outcome.passed) == ("memory", False)


async def test_memory_of_all_its_processes_counts_and_shared_memory_once(folder):
    code = (
        "import os, sys, time\n"
        "kept = bytearray(100_000_000)\n"
        "def touch():\n"
        "    for at in range(0, len(kept), 4096): kept[at] = 1\n"
        "touch()\n"
        "made = []\n"
        "for _ in range(4):\n"
        "    if 0 not in made: made.append(os.fork())\n"
        "if 0 in made:\n"
        "    if sys.argv[1] == 'own': touch()\n"
        "    time.sleep(1 if sys.argv[1] == 'shared' else 1000)\n"
        "for pid in made:\n"
        "    if pid: os.waitpid(pid, 0)\n"
        "print('done')\n"
    )
    limits = ProgramLimits(seconds=120, memory=200_000_000)
    shared = await run(python(code, "shared"), folder, limits=limits)
    assert (shared.ended_by, shared.exit_code) == (None, 0)
    assert (await run(python(code, "own"), folder, limits=limits)).ended_by == "memory"


async def test_the_end_of_a_long_output_is_kept(folder, monkeypatch):
    monkeypatch.setattr(sandbox, "KEPT_OUTPUT", 1 << 20)
    code = "import sys\nfor at in range(500): print(f'{at:>9999}')\nsys.stderr.write('e' * 5_000_000 + 'end')"
    outcome = await run(python(code), folder)
    assert (outcome.passed, outcome.written, outcome.shortened, len(outcome.output)) == (True, 5_000_000, True, 1 << 20)
    assert outcome.output.endswith(" 499\n")
    assert (outcome.errors[-4:], len(outcome.errors)) == ("eend", sandbox.KEPT_ERRORS)


async def test_one_that_writes_for_ever_is_ended(folder, monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_OUTPUT", 8 << 20)
    outcome = await run(python("while True: print('x' * 100_000)"), folder)
    assert (outcome.ended_by, outcome.passed) == ("output", False)


async def test_one_that_does_not_read_is_not_waited_for(folder):
    assert (await run(python("print(1)"), folder, given="x" * 5_000_000)).output == "1\n"


async def test_cancelling_ends_it(folder, way):
    mark = f"mark-{os.getpid()}-cancel-{way}"
    made = folder / "made"
    code = f"import time, pathlib; pathlib.Path({str(made)!r}).touch(); time.sleep(1000)"
    task = asyncio.ensure_future(run(python(code, mark), folder))
    while not made.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(mark) == []


@pytest.mark.integration
def test_it_dies_with_its_parent(folder, tmp_path):
    """Killed without a chance to say goodbye; the program's folder goes too."""
    mark, made = f"mark-{os.getpid()}-parent", tmp_path / "made"
    program = f"import pathlib, time; pathlib.Path({str(made)!r}).touch(); time.sleep(1000)"
    code = (
        "import asyncio, pathlib, sys, tempfile\n"
        "from workflow_composer.workflows.definition.model import CommandBody, ProgramLimits\n"
        "from workflow_composer.workflows.programs.command import run_command\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "body = CommandBody(argv=('python', '-c', sys.argv[2], sys.argv[3]))\n"
        "limits = ProgramLimits(seconds=1000)\n"
        "asyncio.run(run_command(body, given=None, files={}, limits=limits, folder=pathlib.Path(), private=False))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "temporary"), program, mark]
    parent = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until(made.exists, parent)
        assert len(alive(mark)) == 2  # the parent itself has the mark, too
        parent.kill()
        parent.wait()
        until(lambda: not alive(mark) and not any((tmp_path / "temporary").iterdir()))
    finally:
        parent.kill()


def until(condition, process=None):
    ends, pause = time.monotonic() + 60, threading.Event()
    while not condition():
        assert time.monotonic() < ends, "it did not come to pass"
        assert process is None or process.poll() is None, "the process has ended"
        pause.wait(0.02)


# --------------------------------------------------------------------------------------------------------------- network

CALLS = """
import json, socket, sys
told = {}
for name, family, where in json.loads(sys.argv[1]):
    try:
        made = socket.socket(getattr(socket, family), socket.SOCK_STREAM if name != "udp" else socket.SOCK_DGRAM)
        made.settimeout(5)
        made.connect(tuple(where) if isinstance(where, list) else where)
        made.send(b"private")
        told[name] = "sent"
    except OSError as error:
        told[name] = "refused"
print(json.dumps(told))
"""


@pytest.fixture
def listening(tmp_path):
    """Sockets of this machine that take what comes; yields where they are."""
    made = {}
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    path = str(tmp_path / "door")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0test-{os.getpid()}")
    abstract.listen()
    made = [
        ("tcp", "AF_INET", tcp.getsockname()),
        ("udp", "AF_INET", udp.getsockname()),
        ("unix", "AF_UNIX", path),
        ("abstract", "AF_UNIX", f"\0test-{os.getpid()}"),
    ]
    yield made, (tcp, udp, unix, abstract)
    for one in (tcp, udp, unix, abstract):
        one.close()


async def test_nothing_leaves_a_private_program(folder, way, listening):
    calls, sockets = listening
    outcome = await run(
        python(CALLS, json.dumps(calls)), folder, private=True, limits=ProgramLimits(seconds=60, network=True)
    )
    told = json.loads(outcome.output)
    # Within its own network, a datagram to nobody is "sent" and goes nowhere.
    assert {name: how for name, how in told.items() if name != "udp"} == dict.fromkeys(
        ["tcp", "unix", "abstract"], "refused"
    )
    for one in sockets:
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.accept() if one.type == socket.SOCK_STREAM else one.recv(100)


async def test_the_control_reaches_all(folder, listening):
    """With the network allowed the same program gets through: the refusals above are no accident of the test."""
    calls, _ = listening
    outcome = await run(python(CALLS, json.dumps(calls)), folder, limits=ProgramLimits(seconds=60, network=True))
    assert json.loads(outcome.output) == dict.fromkeys(["tcp", "udp", "unix", "abstract"], "sent")


async def test_without_a_network_a_program_still_talks_to_itself(folder):
    """As tests of servers do; and over Unix sockets, if it is not private."""
    code = (
        "import socket, threading\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname())\n"
        "server.accept()[0].send(b'hello')\n"
        "print(client.recv(9), socket.socketpair() and 1)\n"
    )
    assert (await run(python(code), folder, private=True)).output == "b'hello' 1\n"


@pytest.fixture
def no_way(tmp_path, monkeypatch):
    """A system on which nothing keeps a program in."""
    source = Path(launcher.__file__).read_text()
    assert "if _LINUX else [] if kept_in" in source
    made = tmp_path / "launcher.py"
    made.write_text(source.replace("if _LINUX else [] if kept_in", "if False else [] if kept_in"))
    monkeypatch.setattr(sandbox, "_LAUNCHER", made)


async def test_where_nothing_keeps_it_off_the_network_it_does_not_run(folder, no_way):
    touched = folder / "touched"
    body = python(f"import pathlib; pathlib.Path({str(touched)!r}).touch()")
    for private, remedy in ((True, "trusted: true"), (False, "network: any")):
        with pytest.raises(ProgramFault, match="cannot be kept off the network") as caught:
            await run(body, folder, private=private)
        assert remedy in caught.value.hint
        assert not touched.exists()
    assert (await run(body, folder, limits=ProgramLimits(network=True))).passed
    assert touched.exists()


def test_programs_run_on_the_services_event_loop(folder):
    """It takes other arguments for processes than asyncio's own: a program ends well, at its time, and when cancelled."""
    uvloop = pytest.importorskip("uvloop")

    async def several():
        outcome = await run(python("import sys; print(sys.stdin.read())"), folder, given="é")
        assert (outcome.exit_code, outcome.output) == (0, "é\n")
        hangs = python("import time; time.sleep(600)")
        assert (await run(hangs, folder, limits=ProgramLimits(seconds=1))).ended_by == "time"
        task = asyncio.create_task(run(hangs, folder))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(several())
