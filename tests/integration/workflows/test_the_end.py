"""Over all rows, loops, stopping, and who made a value."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.workflows.kit import CANCELLED, DONE, SOME_FAILED, rows_of
from tests.integration.workflows.scripted import Said

GROUPS = ["A", "A", "B", "B", "B", None, "1", 1, "A"]
OVERVIEW = """
    workflow: groups
    inputs: {n: number, g: json, t: text}
    steps:
      s: {prompt: "say {{ t }}", model: large}
      overview:
        reduce: rows
        group_by: g
        model: small
        tokens: 100
        prompt: "sum:{% for r in rows %} {{ r.n }}={{ r.s }};{% endfor %}"
        fold: "join:{% for p in parts %} {{ p }};{% endfor %}"
    output: {n: "{{ n }}", s: "{{ s }}"}
    tables: {overview: overview}
"""


def groups(desk, values=GROUPS, words=400):
    desk.profile(small={"context_length": 3 * words})
    desk.large.says("say", lambda call: f"{call.prompt.split()[-1]} " + "word " * words)
    desk.small.says("sum:", lambda call: "S(" + ",".join(re.findall(r"(\d+)=", call.prompt)) + ")")
    desk.small.says("join:", lambda call: "J(" + "|".join(re.findall(r"S\(([\d,]+)\)", call.prompt)) + ")")
    desk.table([{"n": n, "g": value, "t": f"row-{n};"} for n, value in enumerate(values, 1)])
    desk.file(OVERVIEW)


def overview_of(desk):
    """The further table, beside that of the rows."""
    (path,) = (path for path in desk.folder.glob("out*overview*") if "journal" not in path.name)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_g37_groups_and_folding(desk):
    groups(desk)
    desk.run().ended(DONE)
    assert sorted(desk.small.prompts("join:")) == ["join: S(1,2); S(9);", "join: S(3,4); S(5);"]
    sums = sorted(",".join(re.findall(r"(\d+)=", prompt)) for prompt in desk.small.prompts("sum:"))
    assert sums == ["1,2", "3,4", "5", "6", "7", "8", "9"]
    text = json.dumps(overview_of(desk))
    found = [text.index(f'"{value}"') for value in ("J(1,2|9)", "J(3,4|5)", "S(6)", "S(7)", "S(8)")]
    assert found == sorted(found)
    desk.reset()
    desk.run().ended(DONE)
    assert desk.calls == 0


def test_g37_failed_rows_are_left_out_and_counted(desk):
    groups(desk, ["A", "A", "B"])
    desk.large.forget().says("row-2;", Said(status=500)).says("say", lambda call: f"{call.prompt.split()[-1]} fine")
    ran = desk.run().ended(SOME_FAILED)
    sums = sorted(",".join(re.findall(r"(\d+)=", prompt)) for prompt in desk.small.prompts("sum:"))
    assert sums == ["1", "3"]
    assert len(ran.rows) == 3
    assert "1" in json.dumps(ran.steps["overview"])


def test_g37_a_text_that_does_not_fit_is_named_and_not_cut(desk):
    groups(desk, ["A", "B"])
    desk.large.forget().says("row-2;", "word " * 4000).says("say", "short")
    ran = desk.run().ended(SOME_FAILED)
    assert [re.findall(r"(\d+)=", prompt) for prompt in desk.small.prompts("sum:")] == [["1"]]
    assert "overview" in ran.said
    assert not any(len(prompt) > 10_000 for prompt in desk.small.prompts())


WRITE = """
    workflow: write_function
    inputs: {t: text, tests: text}
    steps:
      code:
        model: mv_cascade_small_k1_t0.0_large_k1_t0.0
        prompt: "write {{ t }}"
        answer: code
        accept:
          command: [python, test_it.py]
          files: {solution.py: "{{ code }}", test_it.py: "{{ tests }}"}
          limits: {time: 5s, memory: 512M}
        retries: 3
      explain: {prompt: "explain {{ code }}"}
    output: {code: "{{ code | default(null) }}", attempts: "{{ code._attempts }}", explain: "{{ explain | default(null) }}"}
"""
TEST = """
import sys
from solution import f
found = f()
if found != 2:
    print(f"expected 2, got {found}", file=sys.stderr)
    sys.exit(1)
"""


def fenced(code):
    return f"```python\n{code}\n```"


def write(desk, test=TEST):
    desk.table([{"t": "f", "tests": test}])
    desk.file(WRITE)


FIRST, SECOND, RIGHT = "def f():\n    return 1", "def f(:\n    return 2", "def f():\n    return 2"


def test_g38_fix_until_it_passes(desk):
    write(desk)
    desk.small.says("write", *map(fenced, (FIRST, SECOND, RIGHT)))
    desk.small.says("explain", "It returns two.")
    ran = desk.run().ended(DONE)
    first, second, third = desk.small.asked("write")
    assert "return 1" in second.text
    assert "expected 2, got 1" in second.text
    assert "SyntaxError" in third.text
    assert third.messages[0] == first.messages[0]
    (row,) = ran.rows
    assert row["attempts"] == 3
    assert row["code"].strip() == RIGHT
    assert row["explain"] == "It returns two."
    assert desk.large.calls == []


def test_g38_a_model_that_never_gets_it_right(desk):
    write(desk)
    counted = iter(range(3, 100))
    for model in (desk.small, desk.large):
        model.says("write", lambda call: fenced(f"def f():\n    return {next(counted)}"))
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.count() == 4
    assert desk.large.count() == 4
    assert desk.large.calls[0].messages == desk.small.calls[0].messages
    assert re.search(r"expected 2, got 10\b", ran.errors(1))
    assert ran.rows[0]["explain"] is None


HOSTILE = {
    "hangs": "while True: pass",
    "sleeps": "import time; time.sleep(3600)",
    "forks": "import os, time\nfor _ in range(1000):\n    if os.fork() == 0:\n        time.sleep(3600)\ntime.sleep(3600)",
    "eats": "held = []\nwhile True:\n    held.append(bytearray(64 << 20))",
    "daemon": (
        "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n        time.sleep(3600)\nsys.exit(1)"
    ),
}


def left_over(name):
    """Processes of this program."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if name.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


@pytest.mark.parametrize("kind", HOSTILE)
def test_g38_a_hostile_test_program_is_ended_and_counts_as_not_passed(desk, kind):
    name = f"hostile_{kind}_{os.getpid()}.py"
    write(desk, HOSTILE[kind])
    desk.edit("test_it.py]", f"{name}]")
    desk.edit("test_it.py:", f"{name}:")
    desk.edit("time: 5s", "time: 2s")
    desk.edit("retries: 3", "retries: 0")
    desk.edit("model: mv_cascade_small_k1_t0.0_large_k1_t0.0", "model: small")
    desk.small.says("write", fenced(RIGHT))
    ran = desk.run().ended(SOME_FAILED)
    assert desk.calls == 1
    assert ran.rows[0]["code"] is None
    until = time.monotonic() + 20
    while left_over(name) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_over(name) == []


def test_g38_a_test_program_has_no_network(desk):
    heard = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def accept():
        try:
            heard.append(listener.accept())
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    write(desk, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).send(b'x')\n")
    desk.edit("retries: 3", "retries: 0")
    desk.edit("model: mv_cascade_small_k1_t0.0_large_k1_t0.0", "model: small")
    desk.small.says("write", fenced(RIGHT))
    desk.run().ended(SOME_FAILED)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)
    assert heard == []


def test_g38_five_megabytes_of_output_are_shortened_to_their_end(desk):
    write(
        desk,
        "import sys\nfor n in range(100_000):\n    print(f'line {n:06d} ' + 'x' * 40)\nprint('the very end')\nsys.exit(1)",
    )
    desk.edit("retries: 3", "retries: 1")
    desk.small.says("write", fenced(RIGHT), fenced(RIGHT + "  # again"))
    desk.large.says("write", fenced(RIGHT))
    ran = desk.run().ended(SOME_FAILED)
    second = desk.small.calls[1]
    assert "the very end" in second.text
    assert "line 000000" not in second.text
    assert len(second.raw) < 20_000
    assert len(ran.errors(1)) < 20_000


STOPPED_BY_HAND = """
    workflow: stopped
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
    output: {a: "{{ a }}"}
"""


def hanging(desk, count=1000):
    desk.small.says(lambda call: call.number < 8, lambda call: f"R({call.prompt})").says("", Said(hang=True))
    desk.table(rows_of(count))
    desk.file(STOPPED_BY_HAND)


def test_g39_stopping_by_hand(desk):
    hanging(desk)
    process = desk.running("--concurrency", "8")
    desk.small.wait_for(16)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == CANCELLED
    assert json.loads(out)["state"] == "cancelled"
    assert desk.calls == 16
    assert desk.kept([f"R(first row-{n};)" for n in range(1, 1001)]) == 8
    desk.small.forget().says("", lambda call: f"R({call.prompt})")
    ran = desk.run("--concurrency", "32").ended(DONE)
    assert desk.calls == 992
    assert ran.column("a") == [f"R(first row-{n};)" for n in range(1, 1001)]


def test_g39_those_under_way_are_kept(desk):
    """Calls that end within a moment of Ctrl-C are answers; no new one starts."""
    desk.small.says("", lambda call: Said(f"R({call.prompt})", delay=0.5))
    desk.table(rows_of(1000))
    desk.file(STOPPED_BY_HAND)
    process = desk.running("--concurrency", "8")
    desk.small.wait_for(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CANCELLED, err
    kept = desk.kept([f"R(first row-{n};)" for n in range(1, 1001)])
    assert kept == json.loads(out)["done"]
    asked = desk.calls
    assert asked < 100
    desk.reset()
    desk.small.forget().says("", lambda call: f"R({call.prompt})")
    desk.run("--concurrency", "32").ended(DONE)
    assert desk.calls == 1000 - kept


def test_g39_a_second_ctrl_c_ends_at_once(desk):
    hanging(desk)
    process = desk.running("--concurrency", "8")
    desk.small.wait_for(16)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # the first one has been heard
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (CANCELLED, -signal.SIGINT)
    assert desk.kept([f"R(first row-{n};)" for n in range(1, 1001)]) == 8
    desk.small.forget().says("", lambda call: f"R({call.prompt})")
    desk.run("--concurrency", "32").ended(DONE)
    assert desk.calls == 992


def test_g39_over_the_network_a_client_that_goes_away_ends_the_remaining_steps(desk):
    desk.small.says("first", Said("one", delay=0.3))
    desk.file("""
        workflow: chain
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}"}
          b: {prompt: "second {{ a }}"}
        output: {b: "{{ b }}"}
        stream: b
    """)
    desk.profile(workflows=["flow.yaml"])
    process = desk.start("serve", "--port", "0", "--json")
    try:
        place = urlsplit(json.loads(process.stdout.readline())["url"])
        client = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        body = {"model": "workflow:chain", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        client.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        asked = desk.small.server.wait_for(lambda _: desk.small.count("first") == 1, 5)
        client.close()
        assert asked
        time.sleep(1)  # the step that must not come would have come
        assert desk.small.count("second") == 0
    finally:
        process.terminate()
        process.communicate(timeout=60)


WHO = """
    workflow: who
    inputs: {n: number, t: text}
    steps:
      a:
        model: mv_cascade_small_k1_t0.0_large_k1_t0.0
        prompt: "number {{ t }}"
        answer: number
        retries: 0
      b:
        prompt: "more {{ t }}"
        on_error: {default: "no idea"}
      c:
        when: n == 10
        human: "What is {{ t }}?"
        answer: ["x", "z"]
    output: {a: "{{ a }}", b: "{{ b }}", c: "{{ c }}", model: "{{ a._model }}"}
"""


def test_g40_who_made_this_value(desk):
    """Half of the rows are answered by other weights of the same name; 3 are escalated, 1 has a default, 1 a person's."""
    served = []

    def number(call):
        served.append(call)
        if re.search(r"row-[123];", call.prompt):
            return "no idea"
        return Said("7", model="small-1b" if len(served) <= 5 else "small-1b-v2")

    desk.small.says("number", number).says("more row-4;", Said(status=500)).says("more", "more")
    desk.large.says("number", "41")
    desk.table(rows_of(10))
    desk.file(WHO)
    desk.run("--concurrency", "1")
    desk.answer("10", "c", "x").ended(DONE)
    ran = desk.run("--concurrency", "1")
    assert ran.code in (DONE, SOME_FAILED)
    assert ran.column("a") == [41] * 3 + [7] * 7
    assert ran.column("b")[3] == "no idea"
    assert ran.column("c")[9] == "x"
    lineage = desk.lineage()
    assert {lineage[row]["a"]["model"] for row in (1, 2, 3)} == {"large"}
    assert lineage[4]["b"]["origin"] == "default"
    assert lineage[10]["c"]["origin"] == "person"
    assert {entry["a"]["origin"] for entry in lineage.values()} == {"kept"}
    for entry in lineage.values():
        assert {"model", "attempts", "cost", "seconds", "origin", "digest"} <= set(entry["a"])
    assert "small-1b-v2" in desk.does("workflow", "show", "out.jsonl").said
