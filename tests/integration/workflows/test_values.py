"""Values in prompts: what an answer says reaches the next question as it is."""

from __future__ import annotations

import json

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, line_of

HINT = "{{ t }} and {% if %} and ${t} and {0}"


def test_g1_braces_in_an_answer_travel_unchanged(desk):
    reply = json.dumps({"type": "error", "hint": HINT})
    desk.small.says("describe", reply)
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: braces
        inputs: {t: text}
        steps:
          a: {prompt: "describe {{ t }}"}
          b: {prompt: "check: {{ a }}"}
        output: {a: "{{ a }}", b: "{{ b }}"}
    """)
    ran = desk.run().ended(DONE)
    assert desk.small.prompts() == ["describe x", f"check: {reply}"]
    assert ran.column("a") == [reply]


def test_g1_braces_in_a_field_travel_unchanged(desk):
    desk.small.says("describe", {"type": "error", "hint": HINT})
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: braces
        inputs: {t: text}
        steps:
          a:
            prompt: "describe {{ t }}"
            answer: {type: text, hint: text}
          b: {prompt: "check: {{ a.hint }}"}
        output: {b: "{{ b }}"}
    """)
    desk.run().ended(DONE)
    assert desk.small.prompts("check") == [f"check: {HINT}"]
    assert desk.calls == 2


def test_g2_braces_in_the_prompts_own_text(desk):
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: braces
        inputs: {t: text}
        steps:
          a:
            prompt: 'Reply as {"name": "...", "tags": ["a"]} for: {{ t }}'
          b:
            prompt: "literally {{ '{{' }} {{ t }}"
        output: {a: "{{ a }}", b: "{{ b }}"}
    """)
    desk.run().ended(DONE)
    assert sorted(desk.small.prompts()) == ['Reply as {"name": "...", "tags": ["a"]} for: x', "literally {{ x"]


@pytest.mark.parametrize("prompt", ["open {{ t", "open {% if t", "open {# t"])
def test_g2_an_opening_mark_without_its_end(desk, prompt):
    desk.table([{"t": "x"}])
    path = desk.file(f"""
        workflow: braces
        inputs: {{t: text}}
        steps:
          a:
            prompt: "{prompt}"
        output: {{a: "{{{{ a }}}}"}}
    """)
    desk.refused("{%" if "%" in prompt else "{#" if "#" in prompt else "{{", line=line_of(path, "prompt:"))


THREE = [{"id": str(n), "text": f"text {n}"} for n in range(3)]


def test_g3_a_misspelt_name_under_a_condition_that_is_never_true(desk):
    desk.table(THREE)
    path = desk.file("""
        workflow: names
        inputs: {id: text, text: text}
        steps:
          a: {prompt: "first {{ text }}"}
          b:
            when: id == "never"
            prompt: "second {{ txet }}"
        output: {b: "{{ b }}"}
    """)
    desk.refused("b", "txet", "text", line=line_of(path, "txet"))


def test_g3_a_misspelt_name_in_a_branch_of_a_template(desk):
    desk.table(THREE)
    path = desk.file("""
        workflow: names
        inputs: {id: text, text: text}
        steps:
          a:
            prompt: |
              first {{ text }}
              {% if id == "never" %}{{ txet }}{% endif %}
        output: {a: "{{ a }}"}
    """)
    desk.refused("a", "txet", "text", line=line_of(path, "txet"))


def test_g3_a_field_that_the_answer_does_not_have(desk):
    desk.table(THREE)
    path = desk.file("""
        workflow: names
        inputs: {id: text, text: text}
        steps:
          a:
            prompt: "first {{ text }}"
            answer: {name: text}
          b:
            when: id == "never"
            prompt: "second {{ a.nmae }}"
        output: {b: "{{ b }}"}
    """)
    desk.refused("b", "nmae", "name", line=line_of(path, "nmae"))


def test_g3_a_column_that_the_table_does_not_have(desk):
    desk.table([{"id": "1", "txt": "one"}])
    desk.file("""
        workflow: names
        inputs: {id: text, text: text}
        steps:
          a: {prompt: "first {{ text }}"}
        output: {a: "{{ a }}"}
    """)
    desk.refused("text", "txt")


def test_g4_a_field_called_items(desk):
    desk.small.says("make", {"items": ["p", "q"], "keys": 2, "count": 7})
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: names
        inputs: {t: text}
        steps:
          a:
            prompt: "make {{ t }}"
            answer: {items: [text], keys: number, count: number}
          b: {prompt: "{{ a.items }} {{ a.keys }} {{ a.count }}"}
        output: {b: "{{ b }}"}
    """)
    desk.run().ended(DONE)
    assert desk.small.prompts()[1:] == ['["p", "q"] 2 7']


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "copy", "__class__"])
def test_g4_a_missing_field_is_no_method(desk, name):
    """An input of any form has no such field in its row: the row fails, and nothing is asked."""
    desk.table([{"j": {"other": 1}}, {"j": {name: "there"}}])
    desk.file(f"""
        workflow: names
        inputs: {{j: json}}
        steps:
          b: {{prompt: "see {{{{ j['{name}'] }}}} and {{{{ j.{name} }}}}"}}
        output: {{b: "{{{{ b | default('none') }}}}"}}
    """)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.prompts() == ["see there and there"]
    assert ran.states[0] != "done"
    assert name in ran.errors(1)


def test_g5_lists_nothing_truth_accents_and_smaller_than(desk):
    rows = [{"p": "p < 0.05 & n > 3", "ok": True, "note": None, "who": "Zoë's 北京"}]
    desk.small.says("make", {"rows": rows})
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: values
        inputs: {t: text}
        steps:
          a:
            prompt: "make {{ t }}"
            answer: {rows: [{p: text, ok: truth, note: text or none, who: text}]}
          b: {prompt: "{{ a.rows }}"}
          c: {prompt: "note: {{ a.rows[0].note }}"}
        output: {b: "{{ b }}", c: "{{ c }}"}
    """)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.prompts()[1:] == ['[{"p": "p < 0.05 & n > 3", "ok": true, "note": null, "who": "Zoë\'s 北京"}]']
    assert "note" in ran.errors(1)
    assert ran.rows[0]["b"] is not None
    assert ran.rows[0]["c"] is None


TYPES = """
    workflow: types
    inputs: {id: text, n: text}
    steps:
      a:
        prompt: "genes of {{ id }}"
        answer: {genes: [{name: text}], n: number, code: text}
    output:
      id: "{{ id }}"
      genes: "{{ a.genes }}"
      n: "{{ a.n }}"
      code: "{{ a.code }}"
      text: "n={{ a.n }}"
"""


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv"])
def test_g6_types_survive_into_the_table(desk, output):
    desk.small.says("genes", {"genes": [{"name": "TP53"}], "n": 3, "code": "0042"})
    desk.table([{"id": "00731", "n": "12"}], "in.csv")
    desk.file(TYPES)
    ran = desk.run(table="in.csv", output=output).ended(DONE)
    assert desk.small.prompts()[0].startswith("genes of 00731")
    (row,) = ran.rows
    if output == "out.csv":
        assert json.loads(row.pop("genes")) == [{"name": "TP53"}]
        assert row == {"id": "00731", "n": "3", "code": "0042", "text": "n=3", "_state": "done", "_errors": ""}
        return
    assert row == {
        "id": "00731",
        "genes": [{"name": "TP53"}],
        "n": 3,
        "code": "0042",
        "text": "n=3",
        "_state": "done",
        "_errors": [],
    }
    assert isinstance(row["n"], int)


def test_g7_yes_and_no_are_words(desk):
    desk.small.says("is it", "no")
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: words
        inputs: {t: text}
        steps:
          check:
            prompt: "is it {{ t }}"
            answer: [yes, no, unclear]
          after:
            when: check == "no"
            prompt: "then"
        output: {check: "{{ check }}", after: "{{ after }}"}
    """)
    desk.small.says("then", "went on")
    ran = desk.run().ended(DONE)
    assert ran.rows == [{"check": "no", "after": "went on", "_state": "done", "_errors": []}]
