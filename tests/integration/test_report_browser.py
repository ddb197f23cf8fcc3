"""A report in a real browser: readable on a telephone and on a desk, and it asks nobody for anything."""

from __future__ import annotations

from functools import partial

import pytest

from tests.integration.browser import CHROMIUM, browsing
from tests.unit.batch.finished import cascade, failed, greedy
from workflow_composer.batch.report.report import build_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
CASCADE = "mv_cascade_Qwen2.5-Math-1.5B-Instruct_k4_t0.7_Qwen2.5-Math-72B-Instruct_k1_t0.0"

SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('figure svg text')].filter(text => text.textContent.trim())
    .map(text => text.getBoundingClientRect().height))"""
"""Height in pixels of the lowest text of a figure."""

TOO_WIDE = """[...document.querySelectorAll('body, .scroll, figure')].filter(part => part.scrollWidth > part.clientWidth + 1)
    .map(part => part.ariaLabel || part.tagName)"""
"""Parts of the page that would have to be scrolled sideways."""


async def test_it_fits_on_a_telephone_and_on_a_desk_and_loads_nothing(tmp_path):
    """Nothing to be scrolled sideways; on a telephone every number stands beside the name of its column."""
    runs = {
        "small": [*greedy(80, "small", lambda n: n % 3 > 0, cost=0.001), failed(80, "CallTimeout", "x" * 400)],
        "large": greedy(81, "large", lambda n: n % 20 > 0, cost=0.01),
        CASCADE: cascade(81, lambda n: n % 3 == 0, lambda n: n % 3 > 0, lambda n: n % 20 > 0, route=CASCADE),
    }
    _, html = build_report({name: partial(iter, rows) for name, rows in runs.items()}, title="problems")
    place = tmp_path / "report.html"
    place.write_text(html, encoding="utf-8")
    async with browsing(tmp_path / "browser") as page:
        await page.size(390)
        await page.open(place.as_uri())
        for width in (390, 1280):
            await page.size(width)
            assert await page.value(TOO_WIDE) == []
            assert await page.value("document.documentElement.scrollWidth") <= width
            assert await page.value(SMALLEST_TEXT) >= 8
        label = "getComputedStyle(document.querySelector('td.number'), '::before').content"
        assert await page.value(label) in {"none", "normal"}
        await page.size(390)
        assert await page.value(label) == '"#"'
        assert page.complaints == []
        assert [asked for asked in page.asked if not asked.startswith((place.as_uri(), "data:"))] == []
