"""What a run leaves anywhere (files, their names, logs, metrics, arguments of processes) tells nothing of private inputs."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.workflows.kit import WAITING, files_below
from tests.integration.workflows.scripted import Said
from tests.integration.workflows.test_served import Client

SECRET, DERIVED = "qzx7secretnote", "qzx8derivedreply"
STATES = ("done", "skipped", "failed", "waiting", "withheld", "not_run")
PLACES = frozenset({"private.jsonl", "flow.yaml"})
FLOW = """
workflow: planted
inputs: {id: text, note: private}
key: note
steps:
  plain: {prompt: "plain {{ note }}"}
  echoed: {prompt: "echoed {{ note }}", on_error: skip}
  formless: {prompt: "formless {{ note }}", answer: {age: number}, on_error: skip}
  unchosen: {prompt: "unchosen {{ note }}", answer: ["yes", "no"], retries: 1, on_error: {default: "no"}}
  judged: {prompt: "judged {{ plain }}", accept: {judge: small, ask: "judge {{ judged }}"}, retries: 1, on_error: skip}
  words: {python: "own:words", with: {note: note}, answer: [text]}
  raising: {python: "own:raising", with: {note: note}, on_error: skip}
  exiting: {command: [python, exiting.py], with: {note: note}, files: {note.txt: "{{ note }}"}, on_error: skip}
  wrong: {command: [python, saying.py], with: {note: note}, answer: number, on_error: skip}
  refusing: {prompt: "refusing {{ note }}", accept: {python: "own:refusing"}, retries: 1, on_error: skip}
  each: {for_each: w in words, prompt: "each {{ w }}", answer: ["yes", "no"], retries: 0, on_error: skip}
  shape: {python: "own:shape", with: {note: note}}
  missing: {prompt: "missing {{ shape[note] }} {{ shape.gone[note] }}", on_error: skip}
  compared: {when: "note > 3", prompt: "never", on_error: skip}
  held: {prompt: "held {{ note }}", release: {check: {python: "own:refusing"}}}
  asked: {human: "right? {{ note }} {{ plain }}", answer: ["yes", "no"]}
  freed: {prompt: "freed {{ note }}", release: human}
  nested: {workflow: within.yaml, with: {x: note}, on_error: skip}
  groups: {reduce: rows, keep: "id != 'none'", group_by: note, prompt: "{% for r in rows %}{{ r.formless.age }}{% endfor %}"}
  total: {reduce: rows, keep: "id != 'none'", python: "own:raising", with: {note: rows}}
output: {id: "{{ id }}", asked: "{{ asked }}"}
"""
WITHIN = """
workflow: within
inputs: {x: text}
steps:
  a: {prompt: "formless {{ x }}", answer: {age: number}}
output: {a: "{{ a }}"}
"""
OWN = """
import sys

def words(**given):
    return [str(value) for value in given.values()]

def shape(note):
    return {"a": note, note: 1, "gone": {}}

def raising(note):
    print(note)
    print(note, file=sys.stderr)
    raise ValueError(f"cannot do {note}")

def refusing(answer):
    return f"{answer} is refused"
"""
EXITING = """
import pathlib, sys
text = sys.stdin.read() + pathlib.Path("note.txt").read_text()
print(text)
sys.exit(text)
"""
SAYING = "import sys\nprint(sys.stdin.read())\n"


def forms(secret):
    """A secret as it is, in other letters, and as programs write bytes."""
    raw = secret.encode()
    return {raw, raw.upper(), raw.hex().encode(), base64.b64encode(raw)[:-4]}


TOLD = forms(SECRET) | forms(DERIVED)


def tells(data):
    return any(one in data for one in TOLD)


class Watch(threading.Thread):
    """Looks at the arguments of every process, and at the names of files below a folder, until it is stopped."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.seen, self.found, self.over = folder, set(), [], threading.Event()

    def run(self):
        while not self.over.wait(0.03):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with suppress(OSError):
                        self._look((entry / "cmdline").read_bytes())
            with suppress(OSError):
                for path in self.folder.rglob("*"):
                    self._look(str(path).encode())

    def _look(self, data):
        self.seen.add(data)
        if tells(data):
            self.found.append(data)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def left(desk):
    """The files that tell something, but for what the user has written and what is said to keep it."""
    kept = {*desk.folder.glob(f"{desk.journal().name}*")}
    told = [path for path in files_below(desk.folder) if path.name not in PLACES and tells(path.read_bytes())]
    assert all(path.stat().st_mode & 0o077 == 0 for path in told), told
    return [path for path in told if path not in kept]


@pytest.fixture
def planted(desk, monkeypatch):
    """Replies that repeat, errors that quote, and an environment in which everything is written down."""
    small = desk.small
    small.says("echoed", lambda call: Said(status=422, error=call.raw.decode()))
    small.says("formless", {"age": SECRET}, {"age": DERIVED}, SECRET)
    small.says("judge", "no").says("each", DERIVED).says("unchosen", f"{SECRET} or no")
    small.says("", lambda call: f"{DERIVED} {call.prompt}")
    desk.file(FLOW)
    desk.file(WITHIN, "within.yaml")
    desk.file(OWN, "own.py")
    desk.file(EXITING, "exiting.py")
    desk.file(SAYING, "saying.py")
    desk.table([{"id": name, "note": f"{SECRET} {name}"} for name in ("r1", "r2")], "private.jsonl")
    environ = desk.environ()
    (desk.folder / "tmp").mkdir()
    more = {"BIOPIPELINES_DEBUG_ROUTING": "1", "TMPDIR": str(desk.folder / "tmp")}
    monkeypatch.setattr(desk, "environ", lambda: environ | more)
    return desk


def test_nothing_private_is_left_by_a_run_and_the_commands_about_it(planted):
    desk = planted
    with Watch(desk.folder) as watch:
        ran = desk.run(table="private.jsonl").ended(WAITING)
        told = [ran.said]
        assert left(desk) == []
        again = desk.run(table="private.jsonl")
        told.append(again.said)
        told += [
            desk.does(*command).said
            for command in (
                ["workflow", "show", "out.jsonl", "--row", "1"],
                ["workflow", "show", "out.jsonl", "--json"],
                ["workflow", "diff", "out.jsonl", "out.jsonl"],
                ["workflow", "answer", "out.jsonl", "--json"],
                ["workflow", "answer", "out.jsonl", "--show-private"],  # on no terminal
                ["workflow", "run", "flow.yaml", "--input", "private.jsonl", "-o", "dry.jsonl", "--dry-run"],
                ["workflow", "try", "flow.yaml", "--input", "private.jsonl", "--rows", "2"],
                ["metrics"],
            )
        ]
    assert [one for one in told if tells(one.encode())] == []
    assert left(desk) == []
    assert watch.found == []
    assert any(b"function_worker" in one for one in watch.seen)  # the programs were seen while they ran
    states = {name: [state for state in STATES if step[state]] for name, step in ran.steps.items()}
    assert states["held"] == ["withheld"]
    assert states["asked"] == ["waiting"]
    for name in ("echoed", "formless", "judged", "raising", "exiting", "wrong", "refusing"):
        assert states[name] == ["skipped"], (name, ran.steps[name])
    assert any("422" in reason for reason in ran.steps["echoed"]["reasons"])
    assert tells(desk.journal().read_bytes())  # the control: it is the journal that has it
    assert DERIVED.encode() in desk.journal().read_bytes()


SERVED = """
workflow: served
inputs: {message: private}
steps:
  plain: {prompt: "plain {{ message }}"}
  echoed: {prompt: "echoed {{ message }}", on_error: skip}
  formless: {prompt: "formless {{ message }}", answer: {age: number}, on_error: skip}
  refusing: {prompt: "refusing {{ message }}", accept: {python: "own:refusing"}, retries: 1, on_error: skip}
  raising: {python: "own:raising", with: {note: message}, on_error: %s}
  words: {python: "own:words", with: {note: message}, answer: [text]}
  each: {for_each: w in words, prompt: "each {{ w }}"}
output: {n: "{{ raising | default('') }}{{ each | length }}"}
"""
SEEN = ("/metrics", "/v1/workflows/runs", "/dashboard", "/dashboard/data", "/v1/usage", "/ready", "/v1/models")


def test_nothing_private_is_left_by_the_service(planted):
    """Its log, its pages, its metrics and its pictures of runs; a failure is told to the client by its kind."""
    desk = planted
    desk.file(SERVED % "skip")
    desk.file((SERVED % "row").replace("workflow: served", "workflow: failing"), "failing.yaml")
    desk.profile(workflows=["flow.yaml", "failing.yaml"])
    with Watch(desk.folder) as watch, (desk.folder / "log.txt").open("w") as log:
        process = desk.start("serve", "--port", "0", "--json", stderr=log)
        try:
            client = Client(json.loads(process.stdout.readline())["url"])
            status, headers, body = client.asked(SECRET, model="workflow:served")
            assert status == 200, body["error"]["message"]
            assert (status, body["choices"][0]["message"]["content"]) == (200, "1")
            status, failed_headers, failed = client.asked(SECRET, model="workflow:failing")
            assert status >= 400
            told = [str(headers), json.dumps(body), str(failed_headers), json.dumps(failed)]
            pages = {path: client.send(path) for path in SEEN}
            runs = json.loads(pages["/v1/workflows/runs"][2])["data"]
            told += [client.send(f"/v1/workflows/runs/{run['id']}")[2] for run in runs]
            told += [str(page) for page in pages.values()]
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=60)
    told.append(out)
    assert len(runs) == 2
    assert [one for one in told if tells(one.encode())] == []
    assert left(desk) == []
    assert watch.found == []
    assert "raising" in json.dumps(failed)
