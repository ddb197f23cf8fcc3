"""The workflows in `examples/workflows`, by scripted answers as their files say, and against servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.integration.workflows.kit import DONE, OUT, SOME_FAILED, WAITING
from tests.paths import ROOT

EXAMPLES = ROOT / "examples" / "workflows"


@pytest.fixture
def example(desk):
    """Copies an example's files beside the profile."""

    def copied(*names):
        for name in names:
            shutil.copy(EXAMPLES / name, desk.folder)
        desk.profile(task_routing={"documentation": "remote", "*": "small"})
        return desk

    return copied


@pytest.mark.parametrize("path", sorted(EXAMPLES.parent.rglob("*.test.yaml")), ids=lambda path: path.name)
def test_the_command_at_the_top_of_a_test_passes(path):
    """As it stands there, in a checkout, without any model."""
    lines = re.match(r"((?:#.*\n)+)", path.read_text("utf-8"))[1]
    words = re.sub(r"[#\\\s]+", " ", lines).split()
    assert words[:3] == ["python", "-m", "workflow_composer"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_workflow_of_the_page_of_comparisons_is_the_one_of_the_examples():
    page = (ROOT / "docs" / "workflows-elsewhere.md").read_text("utf-8")
    text = (EXAMPLES.parent / "elsewhere" / "genes.yaml").read_text("utf-8")
    assert text[text.index("workflow:") :] in page


NOTES = [
    {"pmid": "101", "note": "Mrs. Keller, 61 years old, carries BRCA1 c.68_69del."},
    {"pmid": "102", "note": "Mr. Brandt, MRN 884213, has TP53 p.R175H."},
    {"pmid": "103", "note": "Waiting times at the Lindenhof clinic."},
]


def test_of_a_patient_s_note_only_what_was_cleaned_and_checked_reaches_the_cloud(example):
    """A person decides what the models call unclear; the row waits for it alone."""
    desk = example("abstract_triage.yaml", "find_identifiers.py")
    desk.table(NOTES)
    desk.small.says(lambda call: "a case" in call.prompt and "Waiting" in call.prompt, "neither").says("a case", "case")
    desk.small.says(
        lambda call: "List every" in call.prompt and "Keller" in call.prompt,
        {"variants": [{"gene": "BRCA1", "variant": "c.68_69del"}, {"gene": "BRCA2", "variant": None}]},
    )
    desk.small.says("List every", {"variants": [{"gene": "TP53", "variant": "p.R175H"}]})
    desk.small.says(lambda call: "Rewrite" in call.prompt and "Keller" in call.prompt, "A carrier of BRCA1 c.68_69del.")
    desk.small.says("Rewrite", "A patient, MRN 884213, has TP53 p.R175H.")
    desk.small.says("BRCA1 c.68_69del called", "pathogenic").says("TP53 p.R175H called", "unclear")
    desk.large.says("", "unclear")
    desk.remote.says("Summarise", "A carrier.").says("in common", "Carriers.")

    first = desk.run(file="abstract_triage.yaml").ended(WAITING)

    assert first.summary["waiting"] == 1
    assert desk.remote.prompts("Summarise") == ["Summarise in three sentences:\n\nA carrier of BRCA1 c.68_69del."]
    sent = b"".join(call.raw for call in desk.remote.calls)
    assert not [word for word in ("Keller", "61", "Brandt", "884213", "TP53", "Lindenhof") if word.encode() in sent]
    asked = desk.remote.count()
    desk.answer("2", "review", "benign").ended(DONE)
    last = desk.run(file="abstract_triage.yaml").ended(SOME_FAILED)
    assert desk.remote.count() == asked
    assert last.column("verdict") == [["pathogenic"], "benign", []]
    assert last.column("summary") == ["A carrier.", "", ""]
    assert last.states == ["done", "partial", "done"]
    assert "the check of its release did not pass" in last.errors(2)


def test_a_function_is_written_anew_until_its_tests_pass(example):
    """What failed goes back to the same model, and the next one gets the task alone."""
    desk = example("write_function.yaml", "tasks.jsonl")
    right = "```python\ndef is_leap(year):\n    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n```"
    wrong = [f"def middle(numbers):\n    return sorted(numbers)[{place}]" for place in (0, 1, -1)]
    desk.small.says(lambda call: "is_leap" in call.prompt, "def is_leap(year):\n    return year % 4 == 0", right)
    desk.small.says("middle", *wrong)
    desk.large.says("middle", "import statistics\n\n\ndef middle(numbers):\n    return statistics.median(numbers)")
    desk.small.says("Explain", "It is right.")

    ran = desk.run(file="write_function.yaml", table="tasks.jsonl").ended(DONE)

    assert ran.column("attempts") == [2, 4]
    again = desk.small.asked("is_leap(year)")[1]
    assert "assert not is_leap(1900)" in again.text
    (escalated,) = desk.large.asked("middle")
    assert escalated.messages == [("user", escalated.prompt)]
    assert "statistics.median" in ran.rows[1]["code"]


def test_payments_are_summed_up_by_company_whatever_it_is_called(example):
    """A letter without a payment costs its own row only."""
    desk = example("invoices.yaml", "names.py", "names.json", "letters.csv")
    desk.small.says("ACME / Acme GmbH", "yes").says("The same company?", "no")
    for needle, company, amount, currency in (
        ("120.50", "Acme GmbH", 120.5, "EUR"),
        ("second reminder", "ACME", 80, "EUR"),
        ("Alpine", "Alpine Rail AG", 42, "CHF"),
        ("Acme Rail", "Acme Rail Ltd", None, "USD"),
    ):
        desk.small.says(needle, {"company": company, "amount": amount, "currency": currency})
    desk.small.says("your visit", "There is none.")
    desk.small.says("Summarise", lambda call: f"{len(call.prompt.splitlines()) - 1} payments")

    ran = desk.run(file="invoices.yaml", table="letters.csv").ended(SOME_FAILED)

    assert ran.column("company") == ["Acme GmbH", "Acme GmbH", "Alpine Rail AG", "", "Acme Rail Ltd"]
    assert ran.column("amount") == [120.5, 80, 42, None, None]
    assert ran.states == ["done", "done", "done", "partial", "done"]
    tables = {path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in tables_of(desk)}
    companies = next(rows for name, rows in tables.items() if "companies" in name)
    assert [(row["group"], row["value"]) for row in companies] == [
        ("Acme GmbH", "2 payments"),
        ("Alpine Rail AG", "1 payments"),
        ("Acme Rail Ltd", "1 payments"),
    ]


def tables_of(desk):
    """The further tables beside that of the rows."""
    return [path for path in desk.folder.glob("out*") if path.name != OUT and "journal" not in path.name]
