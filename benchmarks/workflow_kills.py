"""A flow of five steps over a table, ended by SIGKILL at random moments: is the table the same, and what was paid for twice?

    python benchmarks/workflow_kills.py [--rows 1000] [--kills 30] [--seed 20] [--json]

The flow: a list is asked for (its first reply is refused in every fifth row), a question for each of its items, a vote of
three on a condition, a program, and another workflow of two questions, the second with a judge. A stub on the loopback
answers after 5 to 15 ms; what it says follows from the question alone. One run is left alone. The other, in a folder of its
own, is killed (the process with all its descendants) after a random number of calls and a random part of 50 ms more,
and started again, until it ends.

A call is *in flight* at a kill if its answer had not reached the journal: either the stub had not answered it, or it had
answered within the last moments, of which the longest is printed. Exit code 1 if the tables differ in a byte, or if a call
was made again whose answer had come longer than two seconds before the kill.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script

from benchmarks.workflows import reply, stub

HERE = Path(__file__).resolve().parent
AT_A_TIME = 16
LONGEST = 2.0
"""Seconds between an answer and a kill for which the answer may be missing in the journal."""

FLOW = """
workflow: five
inputs: {n: number, t: text}
steps:
  find: {prompt: "find {{ t }}", answer: [text], retries: 2}
  each:
    for_each: x in find
    prompt: "each {{ x }}"
  odd:
    when: len(find) in [1, 3]
    model: mv_cascade_stub_k3_t0.7
    prompt: "odd {{ each }}"
    answer: ["x", "z"]
  count:
    command: [python, count.py]
    with: {each: each}
    answer: number
  inner:
    workflow: inner.yaml
    with: {t: t, count: count}
output:
  n: "{{ n }}"
  each: "{{ each }}"
  odd: "{{ odd | default('') }}"
  count: "{{ count }}"
  end: "{{ inner.end }}"
  tries: "{{ find._attempts }}"
"""
INNER = """
workflow: inner
inputs: {t: text, count: number}
steps:
  first: {prompt: "inner {{ t }} {{ count }}"}
  end:
    prompt: "end {{ first }}"
    accept: {judge: stub, ask: "Is it an end?"}
output: {end: "{{ end }}"}
"""
COUNT = """
import json, sys
print(len(json.load(sys.stdin)["each"]))
"""


# ------------------------------------------------------------------------------------------------------------------ stub


@dataclass(slots=True)
class Call:
    """A request: when it came, and when it was answered (None: never)."""

    came: float
    answered: float | None = None


class Record:
    """The calls by what was sent, in order of their coming."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.count = 0
        self.alarm: int | None = None
        self.reached = threading.Event()

    def add(self, body: bytes) -> Call:
        """Note a request."""
        call = Call(time.monotonic())
        self.calls[hashlib.sha256(body).hexdigest()].append(call)
        self.count += 1
        if self.count == self.alarm:
            self.reached.set()
        return call


class Stub(asyncio.Protocol):
    """One connection; requests come one after another."""

    record = Record()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: Any = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0]) if b"content-length:" in head else 0
            whole = end + 4 + length
            if len(self.data) < whole:
                return
            body, self.data = self.data[end + 4 : whole], self.data[whole:]
            if head.startswith(b"post"):
                call = Stub.record.add(body)
                delay = 0.005 + 0.01 * (hashlib.sha256(body).digest()[0] / 255)
                asyncio.get_running_loop().call_later(delay, self._answer, body, call)
            else:
                self.transport.write(reply(_LIST))

    def _answer(self, body: bytes, call: Call) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply(_answer_to(json.loads(body))))
            call.answered = time.monotonic()


_LIST = {"object": "list", "data": [{"id": "stub", "object": "model", "created": 1, "owned_by": "stub"}]}


def _answer_to(request: dict[str, Any]) -> dict[str, Any]:
    prompt = next(message["content"] for message in request["messages"] if message["role"] == "user")
    asked_again = len(request["messages"]) > 1
    found = re.search(r"row-(\d+);", prompt)
    number = int(found[1]) if found else 0
    if prompt.startswith("find"):
        said = json.dumps([f"row-{number}; item {item}" for item in range(number % 4)])
        said = "a list is not what comes to mind" if number % 5 == 0 and not asked_again else said
    elif prompt.startswith("odd"):
        said = "x"
    elif "Is it an end?" in prompt:
        said = "yes"
    else:
        said = f"<{prompt}>"
    samples = int(request.get("n") or 1)
    choices = [
        {"index": at, "message": {"role": "assistant", "content": said}, "logprobs": None, "finish_reason": "stop"}
        for at in range(samples)
    ]
    usage = {"prompt_tokens": 20, "completion_tokens": 5 * samples, "total_tokens": 20 + 5 * samples}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "stub", "choices": choices, "usage": usage}


# ------------------------------------------------------------------------------------------------------------------ runs


def prepared(folder: Path, url: str, rows: int) -> Path:
    """Write the flow, its profile and its table into a folder."""
    folder.mkdir()
    profile = {
        "profile_name": "kills",
        "allow_cloud": False,
        "models": {"stub": {"backend": "vllm", "base_url": url, "input_price": 1, "output_price": 1}},
        "task_routing": {"*": "stub"},
        "routers": [{"cascade": {"stopping": "fixed"}}, "cascading_provider"],
    }
    (folder / "profile.yaml").write_text(json.dumps(profile))
    for name, text in {"flow.yaml": FLOW, "inner.yaml": INNER, "count.py": COUNT}.items():
        (folder / name).write_text(text)
    table = [{"n": number, "t": f"row-{number};"} for number in range(1, rows + 1)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder


def started(folder: Path) -> subprocess.Popen[str]:
    """Start the run in a session of its own."""
    program = [sys.executable, "-m", "workflow_composer", "-s", "profile.yaml", "workflow", "run", "flow.yaml"]
    more = ["--input", "in.jsonl", "-o", "out.jsonl", "--concurrency", str(AT_A_TIME), "--yes", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent), "XDG_STATE_HOME": str(folder / "state")}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*program, *more], cwd=folder, env=environ, text=True, start_new_session=True, **streams)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the end; return the report."""
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}\n{out[-2000:]}\n{err[-2000:]}")
    report: dict[str, Any] = json.loads(out)
    return report


def killed(process: subprocess.Popen[str]) -> tuple[float, float]:
    """End a run and all that it has started at once; return when, and when the stub had read what was on its way."""
    moment = time.monotonic()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(0.3)
    return moment, time.monotonic()


def run_with_kills(
    folder: Path, needed: int, kills: int, chance: random.Random
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Run until the end, with kills spread over the calls; return the last report and the moments of the kills."""
    moments: list[tuple[float, float]] = []
    for alarm in sorted(chance.sample(range(1, needed), kills)):
        record = Stub.record
        record.reached.clear()
        record.alarm = max(alarm, record.count + 1)
        process = started(folder)
        while not record.reached.wait(0.1):
            if process.poll() is not None:
                return ended(process), moments
        time.sleep(chance.uniform(0.0, 0.05))
        moments.append(killed(process))
    return ended(started(folder)), moments


def in_flight(record: Record, needed: dict[str, int], moments: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the calls made more often than needed: whether they were answered, and for how long before the kill."""
    unanswered, late = 0, []
    for sent, calls in record.calls.items():
        for call in calls[: len(calls) - needed.get(sent, 0)]:
            kill = next((moment for moment, settled in moments if settled >= call.came), float("inf"))
            if call.answered is None or kill < call.answered < float("inf"):
                unanswered += 1
            else:
                late.append(kill - call.answered)
    return {"unanswered": unanswered, "answered": len(late), "longest": max(late, default=0.0)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with stub(Stub) as url, tempfile.TemporaryDirectory() as name:
        alone = prepared(Path(name) / "alone", url, options.rows)
        began = time.monotonic()
        undisturbed = ended(started(alone))
        seconds = time.monotonic() - began
        needed = {sent: len(calls) for sent, calls in Stub.record.calls.items()}
        total = Stub.record.count
        Stub.record = Record()
        disturbed = prepared(Path(name) / "disturbed", url, options.rows)
        report, moments = run_with_kills(disturbed, total, options.kills, random.Random(options.seed))
        tables = [(folder / "out.jsonl").read_bytes() for folder in (alone, disturbed)]
        found: dict[str, Any] = {
            "rows": options.rows,
            "kills": len(moments),
            "needed": total,
            "made": Stub.record.count,
            "equal": tables[0] == tables[1],
            "other_questions": len(Stub.record.calls.keys() - needed.keys()),
            "cost": [undisturbed["cost"], report["cost"]],
            "seconds": [seconds, time.monotonic() - began - seconds],
        }
        found |= in_flight(Stub.record, needed, moments)
    well = found["equal"] and not found["other_questions"] and found["longest"] <= LONGEST
    well = well and found["made"] == found["needed"] + found["unanswered"] + found["answered"]
    if options.json:
        print(json.dumps(found))
        return not well
    print(f"{platform.platform()}, Python {platform.python_version()}; {AT_A_TIME} calls at a time, seed {options.seed}")
    print(f"{found['rows']} rows, {found['kills']} kills; tables equal byte for byte: {'yes' if found['equal'] else 'NO'}")
    print(
        f"calls needed {found['needed']}, made {found['made']}: in flight at the kills {found['unanswered']} unanswered and "
        f"{found['answered']} answered but not yet in the journal (at most {1000 * found['longest']:.0f} ms before)"
    )
    print(f"questions that the undisturbed run does not ask: {found['other_questions']}")
    print(
        f"cost of the table ${found['cost'][0]:.6f} undisturbed, ${found['cost'][1]:.6f} with what the journal has of kills"
    )
    print(f"seconds: {found['seconds'][0]:.0f} undisturbed, {found['seconds'][1]:.0f} with kills")
    return not well


if __name__ == "__main__":
    sys.exit(main())
