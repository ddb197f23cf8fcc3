"""A flow of three steps over a table: processor and wall time per row, calls, money, and calls repeated after a kill.

    python benchmarks/workflows.py [--docetl FOLDER] [--rows 500] [--rounds 3] [--json]

The same flow (a choice, two fields, a sentence) over the same rows against the same stub on the loopback, which answers at
once: as a workflow of this package, as a pipeline of DocETL, as a plain asyncio script with the openai client that keeps
nothing, and as nothing but the exchange: the same requests written to sockets of asyncio, and their answers read as JSON.
``--docetl``: an environment with DocETL (``python -m venv FOLDER; FOLDER/bin/pip install docetl==0.3.0``); without
it that row is left out. The script runs with the same environment, or with this one.

CPU seconds (user and system) are those of each run's processes; the stub's are not counted. As a control, each also has a
process that does nothing but start: what starting costs is subtracted in "per row" and shown beside it. Rounds alternate.
``own per step`` is what a step costs here beyond the exchange alone, which nobody can avoid. For the kill, a run is ended by
SIGKILL at half of its calls and started again; the calls above those that are needed are repeated ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = 3
ANSWERS: dict[str, dict[str, Any]] = {
    "Which kind": {"kind": "case"},
    "Which gene": {"gene": "TP53", "year": 2001},
    "Summarise": {"summary": "A short summary of what was said."},
}
"""What each step's prompt contains, and the answer to it."""
TOKENS = {"prompt_tokens": 60, "completion_tokens": 12, "total_tokens": 72}
PRICE = 1e-6
"""Dollars per token, in and out."""
KIND = "Which kind of report is this: case, trial or review?\n\n"
GENE = "Which gene is named, and in which year was it found?\n\n"
SUMMARY = "Summarise in one sentence what is said of "


# ------------------------------------------------------------------------------------------------------------------ stub


class Stub(asyncio.Protocol):
    """One connection; requests come one after another. Counts calls, and calls ``reached`` when ``alarm`` of them came."""

    calls = 0
    alarm: int | None = None
    reached: Callable[[], None] = staticmethod(lambda: None)

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
            self.transport.write(self._answer(body) if head.startswith(b"post") else reply(_LIST))

    def _answer(self, body: bytes) -> bytes:
        Stub.calls += 1
        if Stub.calls == Stub.alarm:
            Stub.reached()
        request = json.loads(body)
        asked = json.dumps(request["messages"])
        value = next(found for mark, found in ANSWERS.items() if mark in asked)
        message: dict[str, Any] = {"role": "assistant", "content": _said(value)}
        if request.get("tools"):  # DocETL asks for its fields as the arguments of a function
            name = request["tools"][0]["function"]["name"]
            function = {"name": name, "arguments": json.dumps(value)}
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": function}],
            }
        reason = "tool_calls" if request.get("tools") else "stop"
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "stub"}
        return reply({**common, "choices": [choice], "usage": TOKENS})


_LIST = {
    "object": "list",
    "data": [{"id": "stub", "object": "model", "created": 1, "owned_by": "stub", "max_model_len": 4096}],
}


def _said(value: dict[str, Any]) -> str:
    return json.dumps(value) if len(value) > 1 else str(next(iter(value.values())))


def reply(data: object) -> bytes:
    """Return a whole response with this as JSON."""
    body = json.dumps(data).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@contextmanager
def stub(protocol: type[asyncio.Protocol] = Stub) -> Iterator[str]:
    """The address of a stub in a thread of this process, whose time is not counted."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(loop.create_server(protocol, "127.0.0.1", 0), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# ------------------------------------------------------------------------------------------------------------ contestants


@dataclass(frozen=True)
class Contestant:
    """A way to run the flow: its command, a command that only starts, and what it needs in its environment."""

    name: str
    command: tuple[str, ...]
    start: tuple[str, ...]
    environ: dict[str, str]


def _table(folder: Path, rows: int) -> list[dict[str, Any]]:
    made = [
        {"id": f"{row:05d}", "text": f"Report {row}: a carrier of TP53 was seen, first described in 2001."}
        for row in range(rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "rows.json").write_text(json.dumps(made))
    return made


def ours(folder: Path, url: str) -> Contestant:
    """A workflow of this package."""
    profile = {
        "profile_name": "flow",
        "allow_cloud": False,
        "models": {"stub": {"backend": "vllm", "base_url": url, "input_price": 1e6 * PRICE, "output_price": 1e6 * PRICE}},
        "task_routing": {"*": "stub"},
    }
    (folder / "profile.yaml").write_text(json.dumps(profile))
    flow = {
        "workflow": "flow",
        "inputs": {"id": "text", "text": "text"},
        "steps": {
            "kind": {"prompt": KIND + "{{ text }}", "answer": ["case", "trial", "review"]},
            "found": {"prompt": GENE + "{{ text }}", "answer": {"gene": "text", "year": "number"}},
            "summary": {"prompt": SUMMARY + "{{ found.gene }} in this {{ kind }}:\n\n{{ text }}"},
        },
        "output": {"id": "{{ id }}", "kind": "{{ kind }}", "gene": "{{ found.gene }}", "summary": "{{ summary }}"},
    }
    (folder / "flow.yaml").write_text(json.dumps(flow))
    program = (sys.executable, "-m", "workflow_composer", "-s", str(folder / "profile.yaml"))
    run = (
        *program,
        "workflow",
        "run",
        "flow.yaml",
        "--input",
        "rows.jsonl",
        "-o",
        "out.jsonl",
        "--concurrency",
        "16",
        "--yes",
    )
    environ = {"PYTHONPATH": str(HERE.parent), "XDG_STATE_HOME": str(folder / "state")}
    return Contestant("workflow_composer", run, (*program, "workflow", "check", "flow.yaml"), environ)


def docetl(folder: Path, url: str, home: Path) -> Contestant:
    """A pipeline of DocETL, with its checkpoints, without its cache of answers."""

    def step(name: str, prompt: str, schema: dict[str, str]) -> dict[str, Any]:
        return {"name": name, "type": "map", "prompt": prompt, "output": {"schema": schema}, "bypass_cache": True}

    text = "{{ input.text }}"
    pipeline = {
        "datasets": {"rows": {"type": "file", "path": "rows.json"}},
        "default_model": "openai/stub",
        "operations": [
            step("kind", KIND + text, {"kind": "enum[case, trial, review]"}),
            step("found", GENE + text, {"gene": "string", "year": "integer"}),
            step("summary", SUMMARY + "{{ input.gene }} in this {{ input.kind }}:\n\n" + text, {"summary": "string"}),
        ],
        "pipeline": {
            "steps": [{"name": "flow", "input": "rows", "operations": ["kind", "found", "summary"]}],
            "output": {"type": "file", "path": "docetl.json", "intermediate_dir": "checkpoints"},
        },
    }
    (folder / "pipeline.yaml").write_text(json.dumps(pipeline))
    tokenizers = next(
        home.glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers")
    )  # else it downloads some
    key = {"OPENAI_API_KEY": "none", "TIKTOKEN_CACHE_DIR": str(tokenizers)}
    environ = {"OPENAI_API_BASE": url, "OPENAI_BASE_URL": url, **key, "HOME": str(folder / "docetl-home")}
    program = str(home / "bin" / "docetl")
    return Contestant("DocETL", (program, "run", "pipeline.yaml", "--max-threads", "16"), (program, "version"), environ)


PLAIN = """
import asyncio, json, sys
from openai import AsyncOpenAI
url, rows, out, prompts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
async def main():
    client, gate = AsyncOpenAI(base_url=url, api_key="none", max_retries=0), asyncio.Semaphore(16)
    async def ask(text):
        answer = await client.chat.completions.create(model="stub", messages=[{"role": "user", "content": text}])
        return answer.choices[0].message.content
    async def row(line):
        async with gate:
            given = json.loads(line)
            kind = await ask(prompts[0] + given["text"])
            found = json.loads(await ask(prompts[1] + given["text"]))
            summary = await ask(prompts[2] + found["gene"] + " in this " + kind + ":\\n\\n" + given["text"])
            return {"id": given["id"], "kind": kind, "gene": found["gene"], "summary": summary}
    done = await asyncio.gather(*map(row, open(rows)))
    open(out, "w").write("".join(json.dumps(one) + "\\n" for one in done))
asyncio.run(main())
"""


def plain(folder: Path, url: str, python: str) -> Contestant:
    """A script as people write it on the first day."""
    (folder / "plain.py").write_text(PLAIN)
    run = (python, "plain.py", url, "rows.jsonl", "plain.jsonl", json.dumps([KIND, GENE, SUMMARY]))
    return Contestant("asyncio and openai", run, (python, "-c", "import asyncio, json; from openai import AsyncOpenAI"), {})


EXCHANGE = """
import asyncio, json, sys
from urllib.parse import urlsplit
url, rows, prompts = urlsplit(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
HEAD = "POST %s/chat/completions HTTP/1.1\\r\\nhost: %s\\r\\n"
HEAD += "content-type: application/json\\r\\ncontent-length: %d\\r\\n\\r\\n"
async def main():
    idle = [await asyncio.open_connection(url.hostname, url.port) for _ in range(16)]
    gate = asyncio.Semaphore(16)
    async def ask(text):
        reader, writer = connection = idle.pop()
        body = json.dumps({"model": "stub", "messages": [{"role": "user", "content": text}]}).encode()
        writer.write((HEAD % (url.path, url.netloc, len(body))).encode() + body)
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        answer = json.loads(await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\\r\\n")[0])))
        idle.append(connection)
        return answer["choices"][0]["message"]["content"]
    async def row(line):
        async with gate:
            text = json.loads(line)["text"]
            kind, found = await ask(prompts[0] + text), json.loads(await ask(prompts[1] + text))
            await ask(prompts[2] + found["gene"] + " in this " + kind + ":\\n\\n" + text)
    await asyncio.gather(*map(row, open(rows)))
asyncio.run(main())
"""


def exchange(folder: Path, url: str) -> Contestant:
    """What nobody can do without: requests and answers on sockets."""
    (folder / "exchange.py").write_text(EXCHANGE)
    run = (sys.executable, "exchange.py", url, "rows.jsonl", json.dumps([KIND, GENE, SUMMARY]))
    return Contestant("the exchange alone", run, (sys.executable, "-c", "import asyncio, json, urllib.parse"), {})


# ------------------------------------------------------------------------------------------------------------ measuring


def _spent(command: tuple[str, ...], contestant: Contestant, folder: Path) -> tuple[float, float]:
    """Run to the end; return CPU and wall seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **contestant.environ},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{contestant.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _fresh(made: Callable[[Path], Contestant], rows: int, act: Callable[[Contestant, Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _table(folder, rows)
        (folder / "docetl-home").mkdir()
        return act(made(folder), folder)


def measured(made: Callable[[Path], Contestant], rows: int) -> dict[str, float]:
    """Run once; return CPU and wall seconds, both without the start, the start's CPU seconds, and the calls."""

    def act(contestant: Contestant, folder: Path) -> dict[str, float]:
        start, start_wall = _spent(contestant.start, contestant, folder)
        before = Stub.calls
        cpu, wall = _spent(contestant.command, contestant, folder)
        return {"cpu": cpu - start, "wall": wall - start_wall, "start": start, "calls": Stub.calls - before}

    return _fresh(made, rows, act)


def repeated(made: Callable[[Path], Contestant], rows: int) -> int:
    """Return the calls above the needed ones if a run is killed at half of its calls and started again."""

    def act(contestant: Contestant, folder: Path) -> int:
        before, needed = Stub.calls, STEPS * rows
        environ = {**os.environ, **contestant.environ}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        first = subprocess.Popen(contestant.command, cwd=folder, env=environ, start_new_session=True, **silent)
        Stub.reached = staticmethod(lambda: os.killpg(first.pid, signal.SIGKILL))
        Stub.alarm = before + needed // 2
        first.wait()
        Stub.alarm = None
        _spent(contestant.command, contestant, folder)
        return Stub.calls - before - needed

    return _fresh(made, rows, act)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docetl", type=Path, help="environment with DocETL")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    python = sys.executable if options.docetl is None else str(options.docetl.absolute() / "bin" / "python")
    with stub() as url:
        makers: dict[str, Callable[[Path], Contestant]] = {
            "workflow_composer": lambda folder: ours(folder, url),
            "asyncio and openai": lambda folder: plain(folder, url, python),
            "the exchange alone": lambda folder: exchange(folder, url),
        }
        if options.docetl is not None:
            makers["DocETL"] = lambda folder: docetl(folder, url, options.docetl.absolute())
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
        for _ in range(options.rounds):
            for name, made in makers.items():
                rounds[name].append(measured(made, options.rows))
        again = {name: repeated(made, options.rows) for name, made in makers.items()}
    if options.json:
        print(json.dumps({"rounds": rounds, "repeated": again}))
        return
    print(
        f"{platform.platform()}, Python {platform.python_version()}; {options.rows} rows, medians of {options.rounds} rounds"
    )
    print(f"{'':<20} {'CPU ms/row':>22} {'wall ms/row':>12} {'start CPU s':>12} {'calls':>6} {'$':>8} {'repeated':>9}")
    for name, found in rounds.items():
        cpu = [1000 * one["cpu"] / options.rows for one in found]
        wall = statistics.median(1000 * one["wall"] / options.rows for one in found)
        calls = statistics.median(one["calls"] for one in found)
        spread = f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
        start = statistics.median(one["start"] for one in found)
        money = calls * TOKENS["total_tokens"] * PRICE
        print(f"{name:<20} {spread:>22} {wall:12.2f} {start:12.2f} {calls:6.0f} {money:8.4f} {again[name]:9d}")
    per_row = {name: statistics.median(1000 * one["cpu"] / options.rows for one in found) for name, found in rounds.items()}
    for name in ("the exchange alone", "asyncio and openai"):
        own = 1000 * (per_row["workflow_composer"] - per_row[name]) / STEPS
        print(f"of our own per step, above {name}: {own:.0f} us")
    if "DocETL" in per_row:
        print(f"DocETL's CPU per row to ours: {per_row['DocETL'] / per_row['workflow_composer']:.1f} to 1")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main()
