"""Expressions and templates: what they mean, and what fails instead of passing."""

import pytest

from workflow_composer.workflows.definition.readings import Expression, read_expression, read_template, read_value
from workflow_composer.workflows.definition.syntax import SyntaxFault
from workflow_composer.workflows.running.results import Scope, StepResult, ValueFault

ANSWER = {
    "items": ["p", "q"],
    "keys": 2,
    "flag": "false",
    "score": "10",
    "tags": {"x": 1},
    "note": None,
    "rows": [{"p": "p < 0.05 & n > 3", "ok": True, "note": None, "who": "Zoë's 北京"}],
}
SCOPE = Scope(
    {"t": "x {{ t }} {% if %}", "n": 3, "id": "00731", "Article Title": "On mice"},
    {
        "a": StepResult(state="done", value=ANSWER, attempts=2),
        "gone": StepResult(state="skipped", reason="when is false"),
        "fan": StepResult(state="done", value=["P", None, "R"]),
        "empty": StepResult(state="done", value=[]),
        "nested": StepResult(state="done", value=[["a"], [None]]),
    },
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("check: {{ t }}", "check: x {{ t }} {% if %}"),
        ("{{ a.items }} {{ a.keys }}", '["p", "q"] 2'),
        ("{{ a.rows }}", '[{"p": "p < 0.05 & n > 3", "ok": true, "note": null, "who": "Zoë\'s 北京"}]'),
        ('Reply as {"tags": ["a"]} for: {{ id }}', 'Reply as {"tags": ["a"]} for: 00731'),
        ("{{ gone | default('none') }}", "none"),
        ("{{ gone.x.y | default('none') }}", "none"),
        ("{{ a.tags[gone.x] | default('none') }}", "none"),
        ("{{ a.tags[a.note] | default('none') }}", "none"),
        ("{{ gone._state }}/{{ a._attempts }}", "skipped/2"),
        ("{{ fan | done }}", '["P", "R"]'),
        ("{{ fan | tojson }}", '["P", null, "R"]'),
        ("{% for x in a.items %}{{ loop.index }}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}", "1p,2q"),
        ("{% for x in empty %}{{ x }}{% else %}none{% endfor %}", "none"),
        ('{{ row["Article Title"] }}', "On mice"),
        ("{% if gone is done %}{{ gone }}{% else %}not{% endif %}", "not"),
        ("{{ len(a.items) }}{{ max(1, n) }}", "23"),
        ("one\n", "one"),
        ("{{ '{{' }}", "{{"),
    ],
)
def test_a_template_prints(text, printed):
    assert read_template(text).evaluate(SCOPE) == printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ a.rows[0].note }}", "note is empty"),
        ("{{ gone }}", "gone is empty"),
        ("{{ a.nope }}", "a.nope is missing"),
        ("{{ a.tags[gone] }}", "gone is empty|gone"),
        ("{{ a.tags[a.note] }}", "a.note is empty"),
        ("{{ fan }}", "item 2 is missing"),
        ("{{ nested }}", "item 2.1 is missing"),
        ("{% for x in id %}{{ x }}{% endfor %}", "a list is needed, found text"),
        ("{{ a.rows[3].p }}", "missing|has 1 items"),
        ("{{ a.values }}", "a.values is missing"),
        ("{{ empty | first }}", "the list is empty"),
    ],
)
def test_a_template_fails(text, said):
    with pytest.raises(ValueFault, match=said):
        read_template(text).evaluate(SCOPE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.flag", "false"),
        ("a.items", ["p", "q"]),
        ("id", "00731"),
        ("n + 2 * 3", 9),
        ("gone | default([])", []),
        ("a.tags[gone.x] | default('none')", "none"),
        ("a.tags[a.note] | default('none')", "none"),
        ("a.note is given", False),
        ("a.note == none", True),
        ("gone is skipped", True),
        ("gone is done and gone.x == 1", False),
        ("a.flag == 'true'", False),
        ("a.score in ['10', '11']", True),
        ("'P' in done(fan)", True),
        ("3 in a.items", False),
        ("'x' in a.tags", True),
        ("n > 2 and not n == 4", True),
        ("1 < n <= 3", True),
        ("'yes' if n == 3 else 'no'", "yes"),
        ("a.items[1]", "q"),
        ("a.items[:1]", ["p"]),
        ('a["rows"][0].ok', True),
        ("null", None),
    ],
)
def test_an_expression_keeps_the_type(text, value):
    found = read_expression(text).evaluate(SCOPE)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.flag", "text where true or false is needed"),
        ("a.score > 5", "text compared with a number"),
        ('a.tags == "x"', "object compared with text"),
        ("not a.tags", "object where true or false is needed"),
        ("a.items", "list where true or false is needed"),
        ("gone", "nothing where true or false is needed"),
        ("n", "number where true or false is needed"),
        ("a.note == 'x'", "a.note is empty"),
        ("a.nope == 'x'", "a.nope is missing"),
        ("a.flag and true", "text where true or false"),
        ("'x' in n", "nothing can be looked for"),
        ("a.tags > a.tags", "no order"),
        ("id * 200000000 == 1", "arithmetic needs numbers"),
        ("true == 1", "true or false compared with a number"),
    ],
)
def test_a_condition_that_is_neither_true_nor_false_fails(text, said):
    with pytest.raises(ValueFault, match=said):
        read_expression(text).holds(SCOPE)


@pytest.mark.parametrize(
    ("text", "needs", "reads"),
    [
        ("{{ a }}{{ b | default('x') }}", {"a"}, {"a", "b"}),
        ("{{ a._state }}{{ b is done }}", set(), {"a", "b"}),
        ("{% if a is done %}{{ a.x }}{% else %}{{ b }}{% endif %}", {"b"}, {"a", "b"}),
        ("{{ a | default(b) }}", set(), {"a", "b"}),
        ("{{ a[b.x] | default('') }}", set(), {"a", "b"}),
        ("{{ a[b.x] }}", {"a", "b"}, {"a", "b"}),
        ("{{ done(a) }}", {"a"}, {"a"}),
        ("{% for x in a %}{{ x.y }}{{ b }}{% endfor %}", {"a", "b"}, {"a", "b"}),
        ("{{ a is given and a.x == b }}", {"b"}, {"a", "b"}),
        ("{{ a.x | default(b.y) if c is failed else d }}", {"d"}, {"a", "b", "c", "d"}),
        ("{{ a[b.c] }}", {"a", "b"}, {"a", "b"}),
    ],
)
def test_needed_and_read_names(text, needs, reads):
    found = read_template(text)
    assert (found.needs, found.reads) == (needs, reads)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a = 1", "=="),
        ("a && b", "and"),
        ("{{ a }}", "braces"),
        ("a.items()", "loop over"),
        ("range(3)", "functions"),
        ("a ** 2", ""),
        ("[x for x in a]", ""),
        ("", "condition"),
    ],
)
def test_what_is_no_expression(text, hint):
    with pytest.raises(SyntaxFault) as caught:
        read_expression(text, 7)
    assert caught.value.line == 7
    assert hint in caught.value.hint


def test_the_line_of_a_fault_is_that_of_the_file():
    with pytest.raises(SyntaxFault) as caught:
        read_template("first\nsecond {{ x\n", 10)
    assert caught.value.line == 11


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ a.items }}", ["p", "q"]),
        ("n={{ n }}", "n=3"),
        ("a.keys", 2),
        ("Some words", "Some words"),
        ("{{ gone | default({}) }}", {}),
    ],
)
def test_one_expression_keeps_its_type_and_anything_else_is_text(text, value):
    assert read_value(text).evaluate(SCOPE) == value


def test_a_value_is_never_read_as_a_template():
    inner = read_template("{{ t }}").evaluate(SCOPE)
    assert read_template("{{ v }}").evaluate(Scope({"v": inner})) == inner == "x {{ t }} {% if %}"


def test_messages_do_not_repeat_values():
    private = Scope({"note": "Ann Lee", "by_name": {"Ann Lee": 1}})
    for text in ("note > 5", "note", "by_name.Bo == 1", "note.x == 1", "by_name == 3", "note in 3"):
        with pytest.raises(ValueFault) as caught:
            read_expression(text).holds(private)
        assert "Ann" not in f"{caught.value.message} {caught.value.hint}"


def test_expressions_are_bounded():
    assert isinstance(read_expression("n"), Expression)
    with pytest.raises(SyntaxFault, match="too deeply"):
        read_expression("(" * 5000 + "n" + ")" * 5000)
