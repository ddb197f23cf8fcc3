"""Runs as others see them: over the service's API, by key, and on its dashboard, while they go on and afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.browser import CHROMIUM, browsing
from tests.integration.workflows.kit import DONE
from tests.integration.workflows.scripted import Said
from tests.integration.workflows.test_served import serving

pytestmark = pytest.mark.integration
RUNS = "/v1/workflows/runs"
SECRET = "zebra-7731"
MARKUP = "<img src=x onerror=document.title='hurt'>"

FLOW = """
    workflow: triage
    inputs: {t: private}
    steps:
      kind: {prompt: "kind of {{ t }}", answer: [case, trial, none]}
      words: {prompt: "words of {{ t }}", answer: [text]}
      each: {for_each: "w in words", when: 'kind == "case"', prompt: "each {{ w }}"}
      last: {prompt: "last {{ kind }} {{ each | default([]) }}"}
    output: {kind: "{{ kind }}", last: "{{ last }}"}
"""
TABLE = FLOW.replace(
    '    output: {kind: "{{ kind }}"', '      all: {reduce: rows, prompt: "all"}\n    output: {kind: "{{ kind }}"'
)


@pytest.fixture
def watched(desk):
    """A desk whose profile offers a workflow on private texts."""
    desk.file(FLOW, "triage.yaml")
    desk.file(TABLE)
    desk.profile(workflows=["triage.yaml"])
    desk.small.says("kind", "case").says("words", f'["{SECRET} a", "b"]').says("each", "it").says("last", f"end {SECRET}")
    return desk


def first(model, needle, said):
    """Answer questions with a text by this reply, whatever other rules say."""
    model._rules.insert(0, (lambda call: needle in call.prompt, [said], [0]))


def by_name(run):
    return {step["name"]: step for step in run["steps"]}


def seen(client, until, **headers):
    """The first of the runs, once it is so."""
    ends = time.monotonic() + 60
    while True:
        runs = json.loads(client.send(RUNS, **headers)[2])["data"]
        if runs and until(runs[0]):
            return runs[0]
        assert time.monotonic() < ends, runs
        time.sleep(0.05)


def test_a_request_s_steps_are_seen_while_it_runs_and_afterwards_without_any_value(watched):
    with serving(watched) as client, ThreadPoolExecutor(1) as beside:
        goes_on = threading.Event()
        first(watched.small, "last", Said("end", until=goes_on))
        asked = beside.submit(client.asked, f"note {SECRET}", "workflow:triage")
        live = seen(client, lambda run: by_name(run)["last"]["running"] == 1)
        assert (live["object"], live["state"], live["source"], live["ended"]) == ("workflow.run", "running", "service", None)
        assert by_name(live)["each"]["items"] == {"done": 2}
        goes_on.set()
        status, headers, _ = asked.result()
        assert status == 200
        identity = headers["x-workflow-composer-request-id"]
        assert identity == live["id"]
        status, _, text = client.send(f"{RUNS}/{identity}")
        found = json.loads(text)
        assert (status, found["state"], found["rows"]) == (200, "done", {"total": 1, "done": 1})
        steps = by_name(found)
        assert [step["states"] for step in steps.values()] == [{"done": 1}] * 4
        assert [step["calls"] for step in steps.values()] == [1, 1, 2, 1]
        assert (steps["kind"]["private"], steps["kind"]["answer"]["length"]) == (True, 4)
        assert [box["name"] for box in found["graph"]["boxes"]] == ["t", "kind", "words", "each", "last"]
        kept = "".join(path.read_text() for path in (watched.folder / "home").rglob("*") if path.is_file())
        assert identity in kept
        assert '"case"' not in text
        assert SECRET not in text + kept
        for path in (watched.folder / "home").rglob("workflow-runs/*"):
            assert path.stat().st_mode & 0o777 == 0o600
        assert client.send(f"{RUNS}/req-0")[0] == 404
        assert client.send(f"{RUNS}/..%2f..%2fledger")[0] == 404
        assert client.send(f"{RUNS}?limit=0")[0] == 400


def key_of(desk, name, *options):
    made = desk.does("keys", "new", name, "--file", "keys.json", *options).ended(DONE)
    return {"Authorization": f"Bearer {made.out.strip()}"}


def test_a_key_sees_the_runs_that_were_made_with_it_and_an_operator_all(watched):
    ann, ben, boss = key_of(watched, "ann"), key_of(watched, "ben"), key_of(watched, "boss", "--right", "admin")
    watched.table([{"t": "x"}])
    watched.run().ended(DONE)
    with serving(watched, "--keys", "keys.json", "--workers", "2") as client:
        body = {"model": "workflow:triage", "messages": [{"role": "user", "content": "x"}]}
        made = [
            client.send("/v1/chat/completions", body, **key)[1]["x-workflow-composer-request-id"] for key in (ann, ann, ben)
        ]
        for key, own in ((ann, made[:2]), (ben, made[2:]), (boss, made)):
            for _ in range(3):  # whichever worker answers
                runs = json.loads(client.send(RUNS, **key)[2])["data"]
                ids = {run["id"] for run in runs}
                assert ids & set(made) == set(own)
                assert {run["source"] for run in runs} == ({"service", "command"} if key is boss else {"service"})
                assert [client.send(f"{RUNS}/{one}", **key)[0] for one in made] == [
                    200 if one in own else 404 for one in made
                ]
        assert client.send(RUNS)[0] == client.send(f"{RUNS}/{made[0]}")[0] == 401


def test_a_client_that_goes_away_ends_its_run_and_that_is_seen(watched):
    watched.small.hold()
    with serving(watched) as client:
        place = client.place
        program = (
            "import sys, http.client as h; c = h.HTTPConnection(*sys.argv[1:3]); "
            "c.request('POST', '/v1/chat/completions', sys.argv[3], {'Content-Type': 'application/json'}); c.getresponse()"
        )
        body = json.dumps({"model": "workflow:triage", "messages": [{"role": "user", "content": "x"}]})
        command = [os.sys.executable, "-c", program, place.hostname, str(place.port), body]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        watched.small.wait_for(2)
        process.kill()
        process.wait()
        gone = seen(client, lambda run: run["state"] == "cancelled")
        assert [step["running"] for step in gone["steps"]] == [0] * 4
    assert watched.calls == 2


def test_a_run_of_the_command_line_is_seen_beside_the_service_and_is_lost_when_it_is_killed(watched):
    watched.table([{"t": f"{SECRET} {n}"} for n in range(3)])
    first(watched.small, f"kind of {SECRET} 2", Said(hang=True))
    process = watched.running()
    try:
        with serving(watched) as client:
            live = seen(client, lambda run: by_name(run)["last"]["states"].get("done") == 2)
            assert (live["workflow"], live["source"], live["output"], live["state"]) == (
                "triage",
                "command",
                "out.jsonl",
                "running",
            )
            assert live["rows"] == {"total": 3, "done": 2}
            assert (by_name(live)["kind"]["running"], by_name(live)["all"]["running"]) == (1, 0)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            (file,) = (watched.folder / "home").rglob(f"workflow-runs/{live['id']}.json")
            old = json.loads(file.read_text())
            file.write_text(json.dumps(old | {"updated": old["updated"] - 3600}))
            assert seen(client, lambda run: run["state"] == "lost")["id"] == live["id"]
            file.write_text("{}")
            assert client.send(f"{RUNS}/{live['id']}")[0] == 404
            assert json.loads(client.send(RUNS)[2])["data"] == []
    finally:
        process.kill()


def kept(picture, width):
    """Keep it for who wants to look at it."""
    if folder := os.environ.get("WORKFLOW_COMPOSER_PICTURES"):
        Path(folder, f"run-{width}.png").write_bytes(picture)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
async def test_the_dashboard_draws_a_run_while_it_goes_on(watched, tmp_path):
    """The boxes of `workflow graph`, each with its step's state; nothing wider than the screen; no text, no markup."""
    watched.edit("workflow: triage", f'workflow: "triage {MARKUP}"')
    watched.table([{"t": f"{SECRET} {n}"} for n in range(4)])
    for needle, said in ((f"kind of {SECRET} 1", "none"), (f"kind of {SECRET} 2", Said(status=500))):
        first(watched.small, needle, said)
    goes_on = threading.Event()
    first(watched.small, f"kind of {SECRET} 3", Said("case", until=goes_on))
    process = watched.running()
    try:
        with serving(watched) as client:
            url = client.place.geturl()
            async with browsing(tmp_path / "browser") as page:
                await page.size(1280)
                await page.open(f"{url}/dashboard")
                box = "document.querySelector('#runs [data-step={}]')"
                await page.until(f"({box.format('last')} || {{textContent: ''}}).textContent.includes('2 done')")
                shown = await page.value("document.getElementById('runs').innerText")
                assert "3 of 4 rows" in shown
                for name, told in (("kind", "1 running, 2 done, 1 failed"), ("each", "1 done"), ("all", "not begun")):
                    assert told in await page.value(f"{box.format(name)}.textContent"), (name, shown)
                assert "failed: server (1)" in shown
                drawn = watched.does("workflow", "graph", "flow.yaml", "--json").ended(DONE)
                names = [one["name"] for one in json.loads(drawn.out)]
                found = await page.value(
                    "[...document.querySelectorAll('#runs [data-step]')].map((one) => one.dataset.step)"
                )
                assert found == names
                assert await page.value("document.querySelectorAll('img').length") == 0
                for width in (1280, 390):
                    await page.size(width)
                    assert await page.value("document.documentElement.scrollWidth") <= width
                    picture = await page.screenshot()
                    assert len(picture) > 20_000
                    kept(picture, width)
                goes_on.set()
                await page.until("document.querySelector('#runs .pill').innerText === 'failed'")
                await page.until(f"{box.format('all')}.textContent.includes('1 done')")
                whole = await page.value("document.documentElement.outerHTML")
                assert SECRET not in whole
                assert page.complaints == []
                assert [asked for asked in page.asked if not asked.startswith((url, "data:"))] == []
                await page.value("document.querySelector('#runs summary').click()")
                assert await page.value("document.querySelector('#runs svg')") is None
    finally:
        goes_on.set()
        process.kill()
        process.communicate()
