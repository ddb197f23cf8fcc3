"""The pages about fleets promise what a test shows: each paragraph, list and table names its tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

PAGES = ("fleet.md", "cluster.md")
SHOWN, INSTRUCTION = "<!-- shown by: ", "<!-- an instruction -->"
_NAME = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")


def blocks(text: str) -> list[str]:
    """The paragraphs, lists and tables of a page, without code, headings and what is generated."""
    text = re.sub(r"<!-- keys: generated -->.*?<!-- keys: end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = [block.strip() for block in text.split("\n\n")]
    return [block for block in found if block and not block.startswith("#")]


def names_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_of_the_page_names_its_tests(page):
    found = blocks((ROOT / "docs" / page).read_text())
    assert [block[:70] for block in found if SHOWN not in block and INSTRUCTION not in block] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_a_page_names_exist(page):
    text = (ROOT / "docs" / page).read_text()
    named = [found for block in re.findall(r"<!-- shown by: (.*?) -->", text, re.DOTALL) for found in block.split(",")]
    assert len(named) > 20
    missing = []
    for one in named:
        found = _NAME.fullmatch(one.strip())
        place = ROOT / found[1] if found else None
        if place is None or not place.is_file() or found[2] not in names_in(place):
            missing.append(one.strip())
    assert missing == []
