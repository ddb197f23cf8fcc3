"""What is derived from private input stays on the person's own machines until it is released with a reason."""

from __future__ import annotations

import re

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, WRONG, files_below, line_of
from tests.integration.workflows.scripted import Said

HEAD = """
workflow: private
inputs: {id: text, note: private}
steps:
"""
SUMMARY = """
  summary: {model: remote, prompt: "about {{ s }}"}
output: {summary: "{{ summary }}"}
"""
LEAKS = {
    "a": ('  summary: {model: remote, prompt: "about {{ note }}"}', r"note.*summary"),
    "b": (
        '  s: {model: small, prompt: "sum {{ note }}"}\n  summary: {model: remote, prompt: "about {{ s }}"}',
        r"note.*s.*summary",
    ),
    "c": ("""  summary:\n    model: remote\n    when: '"HIV" in note'\n    prompt: "about {{ id }}\"""", r"note.*summary"),
    "d": (
        '  s: {model: small, prompt: "list {{ note }}", answer: [text]}\n'
        '  summary: {for_each: x in s, model: remote, prompt: "about {{ id }}"}',
        r"note.*s.*summary",
    ),
    "default": (
        '  s: {model: small, prompt: "sum {{ note }}"}\n  summary: {model: remote, prompt: "about {{ s | default(0) }}"}',
        r"note.*s.*summary",
    ),
    "state": (
        '  s: {model: small, when: note == "", prompt: "sum {{ id }}"}\n'
        '  summary: {model: remote, prompt: "about {{ id }} {{ s._state }}"}',
        r"note.*s.*summary",
    ),
    "judge": (
        '  summary:\n    model: small\n    prompt: "sum {{ note }}"\n    accept: {judge: remote, ask: "Is this good?"}',
        r"note.*summary",
    ),
    "tiers": ('  summary: {model: mv_cascade_small_k1_t0.0_remote_k1_t0.0, prompt: "sum {{ note }}"}', r"note.*summary"),
    "reduce": (
        '  s: {model: small, prompt: "sum {{ note }}"}\n'
        '  summary: {reduce: rows, model: remote, prompt: "all {% for r in rows %}{{ r.s }}{% endfor %}"}',
        r"note.*s.*summary",
    ),
    "group": (
        '  s: {model: small, prompt: "sum {{ note }}"}\n'
        '  summary: {reduce: rows, group_by: s, model: remote, prompt: "all {% for r in rows %}{{ r.id }}{% endfor %}"}',
        r"note.*s.*summary",
    ),
    "until": (
        '  s: {model: small, prompt: "sum {{ note }}"}\n'
        '  summary: {until: summary == s, at_most: 3, model: remote, prompt: "about {{ id }}"}',
        r"note.*s.*summary",
    ),
    "system": ('  summary: {model: remote, system: "You know {{ note }}", prompt: "about {{ id }}"}', r"note.*summary"),
    "after": (
        '  s: {model: small, when: note == "", prompt: "sum {{ id }}"}\n'
        '  t: {model: small, prompt: "twice {{ s }}"}\n  summary: {model: remote, prompt: "about {{ id }} {{ t }}"}',
        r"note.*s.*t.*summary",
    ),
}


def rows(*notes):
    return [{"id": str(number), "note": note} for number, note in enumerate(notes, 1)]


@pytest.mark.parametrize("kind", LEAKS)
def test_g34_private_by_text_by_condition_by_count_by_default(desk, kind):
    steps, path = LEAKS[kind]
    desk.table(rows("HIV", "flu"))
    output = (
        "tables: {summary: summary}\noutput: {id: '{{ id }}'}\n"
        if kind in ("reduce", "group")
        else ("output: {summary: '{{ summary }}'}\n")
    )
    file = desk.file(f"{HEAD}{steps}\n{output}")
    checked = desk.check().ended(WRONG)
    assert any(re.search(path, line) for line in checked.said.splitlines()), checked.said
    desk.refused("note", line=line_of(file, "  summary"))


def test_g34_beside_a_private_step_is_allowed(desk):
    desk.table(rows("HIV", "flu"))
    desk.file(
        HEAD
        + '  s: {model: small, prompt: "sum {{ note }}"}\n'
        + '  summary: {model: remote, prompt: "about {{ id }}"}\n'
        + "output: {summary: '{{ summary }}', s: '{{ s }}'}\n"
    )
    desk.check().ended(DONE)
    desk.run().ended(DONE)
    assert sorted(desk.remote.prompts()) == ["about 1", "about 2"]
    assert len(desk.small.calls) == 2
    assert not any(word in call.raw for call in desk.remote.calls for word in (b"HIV", b"flu"))


RELEASED = """
  s:
    model: small
    prompt: "is it {{ note }}"
    answer: ["yes", "no"]
    release: choices
  summary:
    when: s == "yes"
    model: remote
    prompt: "about {{ id }}"
output: {summary: "{{ summary | default(null) }}"}
"""


def test_g34_a_closed_answer_may_be_released_and_its_bits_are_told(desk):
    desk.small.says("HIV", "yes").says("flu", "no")
    desk.table(rows("HIV", "flu"))
    desk.file(HEAD + RELEASED)
    checked = desk.check().ended(DONE)
    assert re.search(r"\b1(\.0)? bit.*note.*\bs\b", checked.said), checked.said
    desk.run().ended(DONE)
    assert desk.remote.prompts() == ["about 1"]


@pytest.mark.parametrize("release", ["choices", "true", "{declared: ''}"])
def test_g34_a_release_needs_a_reason(desk, release):
    """A text is no closed answer; ``true`` and an empty reason are none."""
    desk.table(rows("HIV"))
    desk.file(f'{HEAD}  s: {{model: small, prompt: "sum {{{{ note }}}}", release: {release}}}{SUMMARY}')
    desk.refused("release")


def routed(desk):
    desk.table(rows("HIV", "flu"))
    desk.file(f"{HEAD}  s: {{task: general, prompt: \"sum {{{{ note }}}}\"}}\noutput: {{s: '{{{{ s }}}}'}}\n")


@pytest.mark.parametrize("failure", [Said(status=500), Said(status=429, headers={"Retry-After": "0"}), Said(status=404)])
def test_g34_a_routed_private_step_has_no_fallback_in_the_cloud(desk, failure):
    desk.profile(fallback=["large", "remote"])
    desk.small.says("", failure)
    desk.large.says("", failure)
    routed(desk)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.count() >= 1
    assert desk.remote.calls == []
    assert all(state != "done" for state in ran.states)


def test_g34_a_routed_private_step_is_answered_at_home(desk):
    desk.profile(fallback=["remote"])
    routed(desk)
    desk.run().ended(DONE)
    assert desk.small.count() == 2
    assert desk.remote.calls == []


def test_g34_a_private_step_whose_task_goes_to_the_cloud_is_refused_or_stays(desk):
    desk.profile(task_routing={"*": "remote"})
    routed(desk)
    ran = desk.run()
    assert ran.code in (SOME_FAILED, WRONG), ran.said
    assert desk.remote.calls == []


CHECKED = """
  clean:
    model: small
    prompt: "rewrite {{ note }}"
    release: {check: {command: [python, names.py]}}
  summary: {model: remote, prompt: "about {{ clean }}"}
output: {id: "{{ id }}", summary: "{{ summary }}"}
"""
NAMES = """
import sys
text = sys.stdin.read()
sys.exit(1 if "Ann Lee" in text or "Bo Ek" in text else 0)
"""


def checked(desk, program):
    desk.small.says("note1", "A patient, 60, with a cough").says("note2", "Ann Lee, 60, with a cough")
    desk.table(rows("note1", "note2"))
    desk.file(HEAD + CHECKED)
    desk.file(program, "names.py")


def test_g35_releasing_needs_a_reason_row_by_row(desk):
    checked(desk, NAMES)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.remote.prompts() == ["about A patient, 60, with a cough"]
    first, second = ran.rows
    assert first["_state"] == "done"
    assert second["_state"] != "done"
    assert second["summary"] is None
    assert "withheld" in ran.errors(2)
    assert ran.steps["clean"]["withheld"] == 1


@pytest.mark.parametrize(
    "program",
    ["import nothing_of_this_name", "import sys; sys.exit(3)", "import os; os.kill(os.getpid(), 9)", "while True: pass"],
)
def test_g35_if_the_check_fails_to_run_nothing_is_released(desk, program):
    checked(desk, program)
    if "while" in program:
        desk.edit("{check: {command: [python, names.py]}}", "{check: {command: [python, names.py], limits: {time: 1s}}}")
    ran = desk.run().ended(SOME_FAILED)
    assert desk.remote.calls == []
    assert all(state != "done" for state in ran.states)


def test_g35_a_check_that_does_not_exist_releases_nothing(desk):
    checked(desk, NAMES)
    (desk.folder / "names.py").unlink()
    desk.run()
    assert desk.remote.calls == []


SECRETS = ("123-45-6789", "Ann")


def test_g36_nothing_private_in_what_stays_behind(desk):
    note = "SSN 123-45-6789 Ann Lee"
    desk.small.says("one " + note, lambda call: Said(status=422, error=call.raw.decode()))
    desk.small.says("two " + note, {"age": note}, {"age": "Ann"}, {"age": "still " + note})
    desk.table(rows("one " + note, "two " + note, "three " + note))
    desk.small.says("three", {"age": 60})
    desk.file(
        HEAD + '  s: {prompt: "age of {{ note }}", answer: {age: number}}\n' + "output: {id: '{{ id }}', s: '{{ s }}'}\n"
    )
    ran = desk.run().ended(SOME_FAILED)
    assert ran.states[2] == "done"
    assert [secret for secret in SECRETS if secret in ran.said or secret in ran.output.read_text()] == []
    assert "s" in ran.errors(1)
    assert "422" in ran.errors(1)
    assert ran.errors(2)
    given = {desk.folder / "in.jsonl", *desk.folder.glob(f"{desk.journal().name}*")}
    for path in files_below(desk.folder):
        assert not any(secret in str(path) for secret in SECRETS)
        if path not in given:
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path
        elif path.name != "in.jsonl":
            assert path.stat().st_mode & 0o077 == 0, path
    assert desk.journal().name in ran.said
    shown = desk.does("workflow", "show", "out.jsonl")
    assert not any(secret in shown.said for secret in SECRETS)
    desk.does("workflow", "forget", "out.jsonl", "--yes").ended(DONE)
    assert not desk.journal().exists()
    for path in files_below(desk.folder):
        assert path.name == "in.jsonl" or not any(secret.encode() in path.read_bytes() for secret in SECRETS), path
