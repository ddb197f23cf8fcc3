"""The dashboard in a real browser: what it shows is true, it switches, and it asks nobody but the service."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.integration.browser import CHROMIUM, Page, browsing
from tests.integration.service import ADMIN, Service
from tests.paths import ROOT
from tests.unit.metrics.examples import metric
from workflow_composer.fleet.held import FILE_NAME as HELD
from workflow_composer.fleet.held import HeldLog, HeldSpan
from workflow_composer.fleet.places import STATE_VARIABLE
from workflow_composer.server.auth.callers import marked
from workflow_composer.server.auth.keys import VERSION, Key, change_keys

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
CASCADE = "mv_cascade_small_k2_t0.7_large_k1_t0.0"


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[str]:
    """The service over the embedded models; its URL."""
    with Service("development", *options, folder=folder) as service:
        yield service.url


def ask(url: str, model: str, text: str, key: str = "") -> int:
    """One chat request; its status."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def text_of(element: str) -> str:
    """JavaScript for what an element shows."""
    return f"document.getElementById('{element}').innerText"


async def is_clean(page: Page, url: str, besides: str = "nothing") -> None:
    """The page has had nothing to complain of, and has asked only the service."""
    assert [complaint for complaint in page.complaints if besides not in complaint] == []
    assert [asked for asked in page.asked if not asked.startswith((url, "data:"))] == []


async def test_it_shows_what_was_asked_and_why(tmp_path):
    """Counts, models, tiers, failures and reasons; a question never, nor markup in a name."""
    async with serving(tmp_path) as url, browsing(tmp_path / "browser") as page:
        await page.open(f"{url}/dashboard")
        await page.until(f"{text_of('state')} === 'ready'")
        assert "No requests yet." in await page.value(text_of("models"))
        for number in (3, 4, 5):
            assert await asyncio.to_thread(ask, url, "auto", f"Ann has {number} apples and buys 9. How many?") == 200
        assert await asyncio.to_thread(ask, url, CASCADE, "Bob has 2 pens and loses 1. How many?") == 200
        assert await asyncio.to_thread(ask, url, "<img src=x onerror=document.title='hurt'>", "x") == 404
        await page.until(f"{text_of('tiles')}.includes('20 %')")  # one of five requests has failed
        tiles = (await page.value(text_of("tiles"))).split("\n")
        assert tiles[:3] == ["Requests", "5", "5 per minute"]
        assert tiles[tiles.index("Errors") + 1 : tiles.index("Errors") + 3] == ["20 %", "1 failed"]
        assert "of always calling the strongest" in await page.value(text_of("tiles"))
        assert "large" in await page.value(text_of("models"))
        assert (await page.value("document.querySelector('#tiers td').innerText")).strip().startswith("1: large")
        assert "RoutingError" in await page.value(text_of("errors"))
        recent = await page.value(text_of("recent"))
        assert "task math_statistics is routed to large" in recent
        assert f"the caller named {CASCADE}" in recent
        whole = await page.value("document.documentElement.outerHTML")
        assert "apples" not in whole
        assert await page.value("document.querySelectorAll('img').length") == 0
        assert await page.value("document.title") == "workflow_composer"
        fleet = await page.value(text_of("fleet"))
        assert all(name in fleet for name in ("small", "medium", "large", "in this process", "closed"))
        await is_clean(page, url)


@pytest.mark.parametrize("width", [1280, 390])
async def test_it_fits_the_screen(tmp_path, width):
    """Nothing is wider than the page, on a desk and on a phone."""
    async with serving(tmp_path) as url, browsing(tmp_path / "browser") as page:
        assert await asyncio.to_thread(ask, url, CASCADE, "Bob has 2 pens and loses 1. How many?") == 200
        await page.size(width)
        await page.open(f"{url}/dashboard")
        await page.until(f"{text_of('models')}.includes('share') || {text_of('models')}.includes('requests')")
        assert await page.value("document.documentElement.scrollWidth") <= width
        assert len(await page.screenshot()) > 20_000
        await is_clean(page, url)


async def test_the_operator_switches_and_goes_back(tmp_path):
    """First what would change, then the switch, then back to the version before; a wrong token is told."""
    async with serving(tmp_path) as url, browsing(tmp_path / "browser") as page:
        await page.open(f"{url}/dashboard")
        await page.until(f"{text_of('strategy')} === 'development'")
        await page.value("document.getElementById('token').value = 'wrong'")
        await page.value("document.getElementById('target').value = 't4_local_only'")
        await page.value("document.getElementById('preview').click()")
        await page.until(f"{text_of('outcome')}.includes('token is missing or wrong')")
        await page.value(f"document.getElementById('token').value = {json.dumps(ADMIN)}")
        await page.value("document.getElementById('preview').click()")
        await page.until(f"{text_of('outcome')}.includes('would change:')")
        assert "allow_cloud" not in await page.value(text_of("outcome"))  # false in both
        assert "task_routing" in await page.value(text_of("outcome"))
        assert await page.value(text_of("strategy")) == "development"
        await page.value("document.getElementById('confirm').click()")
        await page.until(f"{text_of('strategy')} === 't4_local_only'")
        await page.until("document.querySelector('#versions button') !== null")
        await page.value("document.querySelector('#versions button').click()")
        await page.until(f"{text_of('strategy')} === 'development'")
        await is_clean(page, url, besides="status of 401")
    assert '"rollback"' in (tmp_path / "state" / "audit.jsonl").read_text()


async def test_without_a_key_it_shows_nothing_where_the_service_wants_one(tmp_path):
    """The page asks for a key; with one it shows that key's own use, with the operator's token everybody's figures."""
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workflow_composer", "keys", "new", "ann", "--file", str(tmp_path / "keys.json"),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    key = (await made.communicate())[0].decode().strip()
    async with serving(tmp_path, "--keys", str(tmp_path / "keys.json")) as url, browsing(tmp_path / "browser") as page:
        await page.open(f"{url}/dashboard")
        await page.until(f"{text_of('state')} === 'locked'")
        assert await page.value("document.getElementById('content').hidden")
        for given, state in (("sk-wrong", "locked"), (key, "ready"), (ADMIN, "ready")):
            await page.value(f"document.getElementById('key').value = {json.dumps(given)}")
            await page.value("document.getElementById('entry').requestSubmit()")
            await page.until(f"{text_of('state')} === '{state}'")
            if given == key:
                assert await asyncio.to_thread(ask, url, "auto", "Ann has 3 apples and buys 9. How many?", ADMIN) == 401
                assert await asyncio.to_thread(ask, url, "auto", "Ann has 3 apples and buys 9. How many?", key) == 200
                await page.until(
                    f"{text_of('tiles')}.startsWith('Key\\nann') && {text_of('tiles')}.includes('Requests\\n1')"
                )
                assert await page.value("document.getElementById('chart').offsetParent") is None
        await page.until("document.getElementById('chart').offsetParent !== null")
        await page.until(f"{text_of('recent')}.includes('math_statistics')")
        await is_clean(page, url, besides="status of 401")


async def test_who_used_what_and_what_own_gpus_cost_is_shown_to_whom_it_concerns(tmp_path):
    """An operator sees every key and user and the reservation of own GPUs; a key sees what its own users have used."""
    keys = {}
    for name in ("ann", "ben"):
        key, secret = Key.new(name, team="genomics", rights=())
        change_keys(tmp_path / "keys.json", lambda known, key=key: known.update({key.id: key}))
        keys[name] = (key, secret)
    now = time.time()
    span = HeldSpan(server="coder", role="coder", price=3600.0, began=now - 60.0, until=now + 3600.0)
    HeldLog(tmp_path / "fleet" / HELD).add(span)
    environ = {STATE_VARIABLE: str(tmp_path / "fleet")}
    options = ("--keys", str(tmp_path / "keys.json"))
    with Service("development", *options, folder=tmp_path, environ=environ) as service:
        for name, user in (("ann", "a@lab.org"), ("ann", "a@lab.org"), ("ann", "<img src=x>"), ("ben", "b@lab.org")):
            headers = {"authorization": f"Bearer {keys[name][1]}", "x-openwebui-user-email": user}
            body = {"model": "auto", "messages": [{"role": "user", "content": "Ann has 3 apples and buys 9. How many?"}]}
            path = "/v1/chat/completions"
            assert (await asyncio.to_thread(service.request, "POST", path, body, headers))[0] == 200
        async with browsing(tmp_path / "browser") as page:
            await page.open(f"{service.url}/dashboard")
            await page.until(f"{text_of('state')} === 'locked'")
            for given in (keys["ben"][1], ADMIN):
                await page.value(f"document.getElementById('key').value = {json.dumps(given)}")
                await page.value("document.getElementById('entry').requestSubmit()")
                seen = "a@lab.org" if given == ADMIN else "b@lab.org"
                await page.until(f"{text_of('usage')}.includes('{seen}')")
                cells = (
                    "[...document.querySelectorAll('#usage tbody tr')].map((row) => row.innerText.split('\\t').slice(0, 4))"
                )
                rows = sorted(await page.value(cells))
                if given == ADMIN:
                    break
                assert rows == [["ben", "b@lab.org", "genomics", "1"]]
                assert "Own GPUs" not in await page.value(text_of("tiles"))
            assert rows == [
                ["ann", "<img src=x>", "genomics", "1"],
                ["ann", "a@lab.org", "genomics", "2"],
                ["ben", "b@lab.org", "genomics", "1"],
            ]
            await page.until(f"{text_of('tiles')}.includes('Own GPUs\\n$')")
            assert "held, idle included: coder" in await page.value(text_of("tiles"))
            assert await page.value("document.querySelectorAll('img').length") == 0
            await is_clean(page, service.url, besides="status of 401")
    command = ("-m", "workflow_composer", "keys", "usage", "--by", "user")
    state = {**os.environ, "WORKFLOW_COMPOSER_SERVE_STATE": str(tmp_path / "state")}
    for form in ("--csv", "--json"):
        made = await asyncio.create_subprocess_exec(
            sys.executable, *command, form, cwd=ROOT, env=state, stdout=asyncio.subprocess.PIPE
        )
        told = (await made.communicate())[0].decode()
        found = json.loads(told) if form == "--json" else list(csv.DictReader(io.StringIO(told)))
        used = {row["user"]: int(row["requests"]) for row in found}
        assert used == {"a@lab.org": 2, "b@lab.org": 1, "<img src=x>": 1}


async def test_it_says_when_it_is_not_up_to_date(tmp_path):
    """The last numbers stay, under a banner."""
    async with browsing(tmp_path / "browser") as page:
        async with serving(tmp_path) as url:
            await page.open(f"{url}/dashboard")
            await page.until(f"{text_of('state')} === 'ready'")
        await page.until(f"{text_of('state')} === 'no connection'")
        assert "cannot reach" in await page.value(text_of("trouble"))
        assert "Requests" in await page.value(text_of("tiles"))


async def test_a_file_of_metrics_becomes_the_same_page(tmp_path):
    """`metrics --html` needs no service, and no network."""
    async with serving(tmp_path) as url:
        assert await asyncio.to_thread(ask, url, CASCADE, "Bob has 2 pens and loses 1. How many?") == 200
    report = tmp_path / "report.html"
    command = ("-m", "workflow_composer", "metrics", "--file", str(tmp_path / "metrics.jsonl"), "--html", str(report))
    made = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    assert b": 1 requests" in (await made.communicate())[1]
    async with browsing(tmp_path / "browser") as page:
        await page.open(report.as_uri())
        await page.until(f"{text_of('state')} === 'from a file'")
        assert (await page.value(text_of("tiles"))).split("\n")[:2] == ["Requests", "1"]
        assert f"the caller named {CASCADE}" in await page.value(text_of("recent"))
        assert await page.value("document.getElementById('switching').hidden")
        await is_clean(page, report.as_uri())


async def choose(page: Page, **wanted: str) -> str:
    """Choose in the filters as a person does; the decisions that are left."""
    for name, value in wanted.items():
        select = f"document.getElementById('by-{name}')"
        await page.value(f"{select}.value = {json.dumps(value)}, {select}.dispatchEvent(new Event('change'))")
        assert await page.value(f"{select}.value") == value
    return await page.value(text_of("recent"))


async def test_decisions_of_a_file_are_filtered_by_task_model_key_time_and_error(tmp_path):
    """Each alone, together, and back."""
    ann, _ = Key.new("ann")
    (tmp_path / "keys.json").write_text(json.dumps({"version": VERSION, "keys": [asdict(ann)]}))
    told = {"plan": "small", "left_out": [], "attempts": ["small: CallTimeout in 9 ms: node 12 is silent"]}
    lines = [
        *(metric(request_id=f"req-old-{n}", reason="old", timestamp="2026-02-01T09:00:00+00:00") for n in range(150)),
        metric(request_id=marked(ann, "req-1"), reason="first", timestamp="2026-03-01T09:00:00+00:00"),
        metric(request_id="req-2", reason="second", task_type="math", candidate="large"),
        metric(request_id="req-3", reason="third", success=False, error="CallTimeout", decision=told),
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(line.to_json() for line in lines))
    report = tmp_path / "report.html"
    options = ("--file", str(file), "--keys", str(tmp_path / "keys.json"), "--html", str(report))
    made = await asyncio.create_subprocess_exec(sys.executable, "-m", "workflow_composer", "metrics", *options, cwd=ROOT)
    assert await made.wait() == 0
    async with browsing(tmp_path / "browser") as page:
        await page.open(report.as_uri())
        await page.until(f"{text_of('state')} === 'from a file'")
        assert await page.value(text_of("shown")) == "25 of 153"
        for wanted, kept in (
            ({"task": "math"}, {"second"}),
            ({"model": "large"}, {"second"}),
            ({"key": "ann"}, {"first"}),
            ({"error": "CallTimeout"}, {"third"}),
            ({"error": "failed, whatever the error"}, {"third"}),
            ({"time": "day"}, {"first", "second", "third"}),
            ({"time": "hour"}, {"second", "third"}),
            ({"time": "hour", "task": "code"}, {"third"}),
            ({"time": "hour", "key": "ann"}, set()),
        ):
            text = await choose(page, **wanted)
            assert {word for word in ("first", "second", "third", "old") if word in text} == kept, wanted
            assert await page.value(text_of("shown")) == f"{len(kept)} of 153"
            await choose(page, **dict.fromkeys(wanted, ""))
        assert "node 12 is silent" in await page.value("document.getElementById('recent').textContent")
        await page.size(390)
        assert await page.value("document.documentElement.scrollWidth") <= 390
        await is_clean(page, report.as_uri())


async def test_an_operator_filters_the_service_s_decisions_by_key(tmp_path):
    """What is chosen stays chosen while decisions arrive."""
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workflow_composer", "keys", "new", "ann", "--file", str(tmp_path / "keys.json"),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    key = (await made.communicate())[0].decode().strip()
    async with serving(tmp_path, "--keys", str(tmp_path / "keys.json")) as url, browsing(tmp_path / "browser") as page:
        await page.open(f"{url}/dashboard")
        await page.until(f"{text_of('state')} === 'locked'")
        await page.value(f"document.getElementById('key').value = {json.dumps(ADMIN)}")
        await page.value("document.getElementById('entry').requestSubmit()")
        assert await asyncio.to_thread(ask, url, "small", "Ann has 3 apples and buys 9. How many?", key) == 200
        assert await asyncio.to_thread(ask, url, "nonsense", "x", key) == 404
        await page.until(f"{text_of('shown')} === '2 of 2'")
        assert "(ann)" in await choose(page, key="ann", error="RoutingError")
        assert await page.value(text_of("shown")) == "1 of 2"
        assert await asyncio.to_thread(ask, url, "nonsense", "x", key) == 404
        await page.until(f"{text_of('shown')} === '2 of 3'")
        assert "small" not in await page.value(text_of("recent"))
        await is_clean(page, url, besides="status of 401")
