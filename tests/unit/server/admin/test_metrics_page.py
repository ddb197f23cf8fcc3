"""``/metrics``: who may read it, and how often the page is made."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from workflow_composer import ModelOrchestrator
from workflow_composer.calibration.monitoring.audits import AuditLog
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.metrics.live import LiveMetrics, SharedMetrics
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.server.admin import health
from workflow_composer.server.admin.health import Observing
from workflow_composer.server.api.completion_handler import Admission
from workflow_composer.server.failures import HttpFailure

TOKEN = "the-scraper's-own-token"


class Counted(SharedMetrics):
    """Metrics that count how often they are read, and say in which threads."""

    def __init__(self):
        super().__init__(LiveMetrics())
        self.readers = []

    def all(self):
        self.readers.append(threading.current_thread())
        return super().all()


@pytest.fixture
async def page(tmp_path, given, monkeypatch):
    """Reads the page of a service with or without a token; the clock is set by hand."""
    config = StrategyConfig(profile_name="p", models={"m": {"backend": "fake"}}, task_routing={"*": "m"})

    class Page:
        now = 100.0
        takes = 0.0

        def __init__(self):
            self.metrics = Counted()
            self.orchestrator = ModelOrchestrator(config, metrics=MemorySink(), environ={})
            self.observing = self.over(TOKEN)

        def over(self, token):
            audits = AuditLog(tmp_path / "audits.jsonl")
            return Observing(self.orchestrator, self.metrics, Admission(1, 1, 1.0), audits=audits, token=token)

        def clock(self):
            """Making a page takes as long as it is told to."""
            self.now += self.takes
            return self.now

        async def read(self, authorization=None, observing=None):
            headers = {} if authorization is None else {"authorization": authorization}
            return await (observing or self.observing).metrics(given("GET", "/metrics", b"", headers, ""))

    found = Page()
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=found.clock))
    yield found
    await found.orchestrator.aclose()


async def test_with_a_token_only_who_has_it_reads_the_metrics(page):
    reply = await page.read(f"Bearer {TOKEN}")
    assert (reply.status, b"strategy_active" in reply.body) == (200, True)
    assert (await page.read(observing=page.over(None))).status == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \udcff"],
)
async def test_without_the_token_nobody_reads_them_and_no_page_is_made(page, authorization):
    with pytest.raises(HttpFailure) as caught:
        await page.read(authorization)
    assert (caught.value.status, caught.value.code) == (401, "invalid_metrics_token")
    assert TOKEN not in caught.value.message
    assert page.metrics.readers == []


async def test_scrapes_at_once_share_a_page_which_is_made_apart_from_the_loop(page):
    page.takes = 1.0
    replies = await asyncio.gather(*(page.read(f"Bearer {TOKEN}") for _ in range(8)))  # each looks at the clock once
    assert len({reply.body for reply in replies}) == 1
    assert len(page.metrics.readers) == 1
    assert page.metrics.readers[0] is not threading.main_thread()


async def test_a_page_is_used_again_for_ten_times_as_long_as_it_took(page):
    """However often it is asked for, scrapes take a tenth of the time at most."""
    page.takes = 1.0  # the clock is read once before and once after
    await page.read(f"Bearer {TOKEN}")
    page.takes, made_at = 0.0, page.now
    for seconds in (0.5, 5.0, 9.9):
        page.now = made_at + seconds
        await page.read(f"Bearer {TOKEN}")
    assert len(page.metrics.readers) == 1
    page.now = made_at + 10.1
    await page.read(f"Bearer {TOKEN}")
    assert len(page.metrics.readers) == 2
