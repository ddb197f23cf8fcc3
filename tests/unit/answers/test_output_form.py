"""Output forms: what is read, what is mended without loss, what is asked again, and how wrong forms are reported.

The replies have the shapes of public reports: fences around JSON (pydantic-ai#3141, codex-plugin-cc#583), only one fence
(pydantic-ai#3475), brackets in the talk (lgtmaybe#105), a label with its reason (cheshire-cat#1092) or its meaning in
brackets (spacy-llm#99), line breaks in strings (pr-reviewer-action#449).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from workflow_composer.answers.choices import CASE, NUMBER
from workflow_composer.answers.json_text import FENCES, TALK, WRITING, canonical
from workflow_composer.answers.output_form import EMPTY_REPLY, output_form
from workflow_composer.answers.schema import ABSENT, EXTRA, LISTED, NAMES, TEXT, TRUTH
from workflow_composer.errors import ConfigError

KINDS = output_form(["case", "trial", "neither"])
TRUTHS = output_form("truth")
NUMBERS = output_form("number")
INVOICE = output_form({"company": "text", "amount": "number or none", "currency": ["EUR", "USD"], "paid": "truth"})
GOOD = {"company": "Ines", "amount": 12, "currency": "EUR", "paid": True}


class Person(BaseModel):
    """A type of a user's."""

    name: str
    age: int = Field(ge=0)
    kind: Literal["adult", "child"] = "adult"


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("case", "case"),
        ("Case.", "case"),
        ("**Trial**", "trial"),
        ("```\ncase\n```", "case"),
        ('"case"', "case"),
        ('{"answer": "Case"}', "case"),
        ("Answer: trial", "trial"),
        ("The answer is trial.", "trial"),
        ("Category: case\nReason: it describes one patient and no trial", "case"),
        ("case, because it describes one patient and no trial", "case"),
        ("Trial (randomised)", "trial"),
        ("I would classify this as **trial**.", "trial"),
        ("This abstract is a case report.", "case"),
        ("<think>trial? no.</think>case", "case"),
        ("1. case", "case"),
        (r"\boxed{trial}", "trial"),
        ("Answer: trial (not a case)", "trial"),
        ('{"category": "trial", "confidence": 0.9}', "trial"),
        ("\u7b54\u6848\uff1atrial", "trial"),
    ],
)
def test_a_word_is_read(reply, value):
    found = KINDS.read(reply)
    assert (found.value, found.problem) == (value, None)
    assert bool(found.mended) == (reply not in ("case", "<think>trial? no.</think>case"))


@pytest.mark.parametrize(
    "reply",
    [
        "This is not a trial",
        "either case or trial",
        "case or trial",
        "case, or perhaps trial",
        "Neither case nor trial",
        "**case** or **trial**",
        "It is a case, not a trial.",
        "Trial.\nCase.",
        "cases",
        "review",
        "<think>trial",
        "",
        "It is rather unlikely that this is a trial",
    ],
)
def test_a_reply_that_chooses_no_word_has_no_value(reply):
    found = KINDS.read(reply)
    assert found.value is None
    assert found.problem


def test_words_that_differ_in_case_only_are_told_by_case():
    form = output_form(["US", "us", "it"])
    assert [form.read(reply).value for reply in ("US", "us", "Us", "IT")] == ["US", "us", None, "it"]


def test_letters_are_not_articles():
    form = output_form(["A", "B"])
    assert [form.read(reply).value for reply in ("B", "(B)", "B) Paris", "Answer: a", "It is a city, B")] == [
        "B",
        "B",
        "B",
        "A",
        "B",
    ]


@pytest.mark.parametrize("reply", ["A cat sat on the mat", "A, B", "I do not know", "E"])
def test_a_letter_in_a_sentence_is_no_choice(reply):
    assert output_form(["A", "B", "I"]).read(reply).value is None


@pytest.mark.parametrize("reply", ["There is no evidence", "No one knows", "Not yes", "yes or no"])
def test_a_common_word_in_a_sentence_is_no_choice(reply):
    assert output_form(["yes", "no"]).read(reply).value is None


def test_choices_may_be_numbers():
    assert output_form([1, 2, 3]).read("2.").value == 2


@pytest.mark.parametrize(
    ("reply", "value"),
    [("yes", True), ("No, it does not.", False), ("True", True), ("**No**", False), ("no\n\nThe gene is absent", False)],
)
def test_a_truth_value_is_read(reply, value):
    assert TRUTHS.read(reply).value is value


@pytest.mark.parametrize("reply", ["I have no idea", "Yes and no", "no, wait, yes", "maybe", "There is no doubt"])
def test_a_doubtful_truth_value_is_not_read(reply):
    assert TRUTHS.read(reply).problem


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("12", 12),
        ("1,234.5", 1234.5),
        ("The answer is 12.", 12),
        ("9 * 2 = 18. The answer is 18 dollars.", 18),
        ("12 mg", 12),
        ("\u22123", -3),
        ("\uff11\uff12", 12),
        ("```\n5\n```", 5),
        ('{"n": 3}', 3),
    ],
)
def test_a_number_is_read(reply, value):
    assert NUMBERS.read(reply).value == value


@pytest.mark.parametrize("reply", ["12 or 13", "2021-04-02", "1/2", "none", "v1.10.2", "1e400", "9" * 500])
def test_what_is_not_one_number_is_not_read(reply):
    assert NUMBERS.read(reply).problem


@pytest.mark.parametrize(
    ("reply", "mended"),
    [
        (json.dumps(GOOD), ()),
        (json.dumps(GOOD, indent=2), ()),
        (f"```json\n{json.dumps(GOOD)}\n```", (FENCES,)),
        (f"```json\n{json.dumps(GOOD)}", (FENCES,)),
        (f"Of [3] files:\n{json.dumps(GOOD)}\nDone.", (TALK,)),
        (str(GOOD), (WRITING,)),
        (json.dumps(GOOD)[:-1] + ",}", (WRITING,)),
        (json.dumps(GOOD | {"amount": "12"}), (NUMBER,)),
        (json.dumps(GOOD | {"currency": "eur."}), (CASE,)),
        (json.dumps(GOOD | {"paid": "yes"}), (TRUTH,)),
        (json.dumps([GOOD]), (LISTED,)),
        (json.dumps({name.title(): value for name, value in GOOD.items()}), (NAMES,)),
        (json.dumps(GOOD | {"note": "x"}), (EXTRA,)),
    ],
)
def test_fields_are_read_and_mended(reply, mended):
    assert INVOICE.read(reply) == (GOOD, mended, None)


def test_a_field_that_may_be_none_may_be_missing():
    found = INVOICE.read('{"company": "Ines", "currency": "EUR", "paid": true}')
    assert (found.value, found.mended) == (GOOD | {"amount": None}, (ABSENT,))


def test_a_text_field_keeps_the_number_as_written():
    assert output_form({"version": "text"}).read('{"version": 1.10}') == ({"version": "1.10"}, (TEXT,), None)


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (json.dumps(GOOD | {"amount": "12 EUR"}), "amount: '12 EUR' is not of type 'number'"),
        (json.dumps(GOOD | {"currency": "GBP"}), "currency: 'GBP' is not one of"),
        ('{"company": "Ines"}', "'currency' is a required property"),
        ("No invoice here.", "no JSON"),
        (json.dumps(GOOD) + json.dumps(GOOD | {"amount": 13}), "2 different JSON values"),
        ('{"company": "Ines", "amount": NaN}', "no JSON"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(reply, named):
    assert named in (INVOICE.read(reply).problem or "")


def test_the_same_value_twice_is_one_value():
    assert INVOICE.read(f"{json.dumps(GOOD)}\nAgain:\n{json.dumps(GOOD, indent=1)}").value == GOOD


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("- a\n- b", ["a", "b"]),
        ('{"genes": ["a"]}', ["a"]),
        ("[]", []),
        ('["a", 2.50]', ["a", "2.50"]),
    ],
)
def test_lists(reply, value):
    assert output_form(["text"]).read(reply).value == value


def test_one_object_per_line_is_a_list():
    form = output_form([{"gene": "text", "variant": "text or none"}])
    found = form.read('{"gene": "TP53", "variant": "none"}\n{"gene": "EGFR", "variant": "L858R"}')
    assert found.value == [{"gene": "TP53", "variant": None}, {"gene": "EGFR", "variant": "L858R"}]


def test_or_none():
    assert output_form("number or none").read("None.") == (None, (CASE,), None)
    assert output_form("[a, b] or none").read("B").value == "b"


def test_code():
    form = output_form("code")
    assert form.read("Sure:\n```python\nx = 1\n```\nDone.") == ("x = 1", (FENCES, TALK), None)
    assert form.read("x = 1").value == "x = 1"
    assert "2 code blocks" in (form.read("```\na\n```\nor\n```\nb\n```").problem or "")
    assert form.read(" ").problem == EMPTY_REPLY


def test_a_json_schema_keeps_its_own_rules():
    schema = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "additionalProperties": False}
    form = output_form(schema | {"$defs": {"n": {"type": "integer", "minimum": 3}}})
    assert form.read('{"n": "3"}').value == {"n": 3}
    assert "minimum" in (form.read('{"n": "2"}').problem or "")
    assert "Additional properties" in (form.read('{"n": 3, "m": 1}').problem or "")


def test_a_schema_file(tmp_path):
    (tmp_path / "names.json").write_text('{"type": "array", "items": {"type": "string"}}')
    assert output_form({"json_schema": "names.json"}, folder=tmp_path).read('["a"]').value == ["a"]


def test_pydantic_types():
    form = output_form(Person)
    found = form.read('```json\n{"name": "Ines", "age": "3", "kind": "Child."}\n```')
    assert found.value == Person(name="Ines", age=3, kind="child")
    assert form.plain(found.value) == {"name": "Ines", "age": 3, "kind": "child"}
    assert "age" in (form.read('{"name": "Ines", "age": -1}').problem or "")
    assert output_form(list[Person]).read('[{"name": "Ines", "age": 3}]').value == [Person(name="Ines", age=3)]
    assert output_form(Literal["yes", "no"]).read("Yes.").value == "yes"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("txt", "unknown form 'txt'"),
        (["one"], "one choice"),
        ({}, "at least one"),
        ([True, False], "in quotes"),
        (["a", "a"], "different words"),
        ({"a": {"b": "nmber"}}, "unknown form 'nmber'"),
        ({"json_schema": {"type": "objekt"}}, "invalid at type"),
        ({"json_schema": {"$ref": "https://example.org/s.json"}}, "outside itself"),
        ({"json_schema": {"$ref": "#/$defs/absent"}}, "does not have"),
        ({"json_schema": "absent.json"}, "absent.json"),
        (3, "3 is no form"),
    ],
)
def test_a_wrong_form_is_an_error_that_names_its_part(spec, said):
    with pytest.raises(ConfigError, match=said):
        output_form(spec)


def test_keys_of_votes_ignore_the_writing():
    assert INVOICE.key(GOOD) == INVOICE.key(dict(reversed(GOOD.items())) | {"amount": 12.0})
    assert canonical({"a": 1}) != canonical({"a": True})
    assert canonical([1, 2]) != canonical([2, 1])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 40_000,
        "{" * 40_000,
        '{"' + '\\"' * 40_000,
        "```\n" * 20_000,
        "{}" * 20_000,
        "1" * 80_000,
        "case: " * 13_000,
        '[{"a":' * 9000,
    ],
)
def test_hostile_replies_are_no_error(text):
    for form in (KINDS, TRUTHS, NUMBERS, INVOICE, output_form(["text"])):
        form.read(text)


def test_the_library_is_imported_only_for_a_schema():
    code = (
        "import sys; from workflow_composer.answers.output_form import output_form as f; f(['a', 'b']).read('a');"
        "print('jsonschema' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_a_reply_is_read_once_for_the_executor_and_its_caller(monkeypatch):
    form, read = output_form({"gene": "text"}), []
    whole = type(form)._read
    monkeypatch.setattr(type(form), "_read", lambda self, text: (read.append(text), whole(self, text))[1])
    text = '{"gene": "TP53"}'
    assert form.read(text) is form.read(text)
    assert form.read('{"gene": "MYC"}').value == {"gene": "MYC"}
    assert form.read(text).value == {"gene": "TP53"}
    assert len(read) == 3
