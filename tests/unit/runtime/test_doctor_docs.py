"""The page of findings names what the code finds."""

from __future__ import annotations

import ast
import re

from tests.paths import ROOT

FOLDER = ROOT / "workflow_composer" / "runtime" / "doctor"
KIND = re.compile(r"[a-z]+(?:-[a-z]+)*")
RETURNED = {"_of_error", "_of_connection", "_of_listing", "_of_status", "_of_key"}


def kinds():
    """The words that findings are made with: the second argument, or the first of what says why a server fails."""
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                yield from _words(node.args[1])
            elif isinstance(node, ast.FunctionDef) and node.name in RETURNED:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and isinstance(inner.value, (ast.Tuple, ast.IfExp)):
                        tuples = [one for one in ast.walk(inner.value) if isinstance(one, ast.Tuple)]
                        yield from (word for one in tuples for word in _words(one.elts[0]))


def _words(node):
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and KIND.fullmatch(str(one.value))]


def test_every_kind_of_finding_stands_in_the_table_and_no_other():
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "doctor.md").read_text().splitlines() if line.startswith("| `")]
    documented = {kind for row in rows for kind in re.findall(r"`([a-z-]+)`", row)}
    made = set(kinds()) | {"profile", "no-profile", "library-version", "library-missing", "no-locks", "not-writable"}
    assert documented == made
    assert len(documented) > 40
