"""Templates of prompts: what is inserted, what is refused, and when a fault shows."""

from __future__ import annotations

import math
import time
from datetime import date
from decimal import Decimal

import jinja2
import pytest

from workflow_composer.batch.asking import templates
from workflow_composer.batch.asking.templates import FILTERS, PromptTemplate
from workflow_composer.errors import InputError


def rendered(text, **values):
    template = PromptTemplate(text, name="--prompt")
    template.check(list(values))
    return template.render(values, "t.csv, row 1")


def fault(text, **values):
    with pytest.raises(InputError) as found:
        rendered(text, **values)
    return found.value


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("as it is: <b> & é \u2028", "as it is: <b> & é \u2028"),
        ("0042", "0042"),
        (3, "3"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ([1, "p < 0.05", "é"], '[1, "p < 0.05", "é"]'),
        ({"items": [True, None]}, '{"items": [true, null]}'),
        ((), "[]"),
        (date(2024, 2, 29), "2024-02-29"),
        (Decimal("1.10"), "1.10"),
    ],
)
def test_a_value_prints_as_a_person_would_write_it(value, printed):
    """No Python writing, no escapes for HTML or accents."""
    assert rendered("{{ x }}", x=value) == printed
    assert rendered("{{ x ~ '' }}", x=value) == printed
    if not isinstance(value, (date, Decimal)):
        assert rendered("{{ [x] | join }}", x=value) == printed


def test_a_value_is_inserted_once():
    """Text that looks like a template, a comment or a statement stays text."""
    text = "{{ title }} {% if x %} {# no #} {{ 7 * 7 }}"
    assert rendered("{{ abstract }} of {{ title }}", abstract=text, title="T") == f"{text} of T"


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize(
    "text", ["{{ x }}", "{{ x | upper }}", "{{ 'a' ~ x }}", "{{ [x] }}", "{{ [x] | join }}", "{{ y or x }}"]
)
def test_null_is_an_error_that_names_the_row(value, text):
    """NaN is how tables with numbers write null."""
    assert "t.csv, row 1" in fault(text, x=value, y="").message


def test_null_names_its_expression():
    """So that a person finds the place."""
    assert "{{ meta.journal }}" in fault("{{ meta.journal }}", meta={"journal": None}).message


def test_a_column_that_a_row_lacks_is_null():
    """Rows of JSON lines may lack columns."""
    template = PromptTemplate("{{ title }}{{ year | default('?') }}")
    template.check(["title", "year"])
    assert template.render({"title": "T"}, "row 1") == "T?"


def test_default_stands_for_null_nan_and_missing_fields():
    """And for empty texts, if that is asked for."""
    assert (
        rendered("{{ a | default('-') }}{{ b | default('-') }}{{ c.d | default('-') }}", a=None, b=math.nan, c={}) == "---"
    )
    assert rendered("{{ a | default('-') }}|{{ a | default('-', true) }}", a="") == "|-"


def test_one_newline_at_the_end_is_removed():
    """The one that an editor adds to a file."""
    assert rendered("{{ a }}\n\n", a="x") == "x\n"


def test_json_in_a_prompt_stays():
    """Braces that are no places are text."""
    assert rendered('Answer {"gene": {"name": "…"}} for {{ a }}', a="x") == 'Answer {"gene": {"name": "…"}} for x'


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["items", "keys", "get", "copy", "__class__"])
def test_a_field_is_never_a_method(name):
    """The field if there is one, else nothing."""
    assert rendered(f"{{{{ x.{name} }}}}", x={name: "field"}) == "field"
    assert name in fault(f"{{{{ x.{name} }}}}", x={"other": 1}).message
    assert name in fault(f"{{{{ x['{name}'] }}}}", x="text").message


@pytest.mark.parametrize(
    "name", ["range", "dict", "self", "cycler", "namespace", "loop", "caller", "joiner", "lipsum", "row"]
)
def test_a_column_may_have_any_name(name):
    """There are no globals that would hide it."""
    assert rendered(f"{{{{ {name} }}}}", **{name: "column"}) == "column"
    if name != "row":
        assert name in fault(f"{{{{ {name} }}}}", other=1).message


def test_there_are_no_globals():
    """Whatever a template names comes from the row."""
    assert templates.tamed_environment().globals == {}


def test_a_column_whose_name_is_no_identifier():
    """By the row; the error for other writings says so."""
    values = {"Article Title": "T", "meta.journal": "J", "in": "I"}
    assert rendered('{{ row["Article Title"] }}{{ row["meta.journal"] }}{{ row["in"] }}', **values) == "TJI"
    assert 'row["Article Title"]' in fault("{{ Article_Title }}", **values).hint
    assert 'row["Article Title"]' in fault('{{ row["Article title"] }}', **values).hint
    assert 'row["Article Title"]' in fault("{{ Article Title }}", **values).hint
    assert 'row["meta.journal"]' in fault("{{ meta.journal }}", **values).hint


@pytest.mark.parametrize(
    "text",
    [
        "{{ tilte }}",
        "{% if false %}{{ tilte }}{% endif %}{{ title }}",
        "{% if title %}{% else %}{{ tilte }}{% endif %}",
        "{{ title if true else tilte }}",
        "{{ title or tilte }}",
        "{{ title | default(tilte) }}",
        "{{ title | truncate_words(tilte) }}",
        "{% for x in tags %}{% else %}{{ tilte }}{% endfor %}{{ title }}",
        "{% for x in tags if tilte %}{{ x }}{% endfor %}{{ title }}",
        "{% for tilte in tags %}{% endfor %}{{ tilte }}",
        "{{ tags[tilte] }}",
        "{{ title[tilte:] }}",
        "{{ {'a': tilte} }}",
        '{{ row["tilte"] }}',
        "{{ row.tilte }}",
        "{{ title is divisibleby(tilte) }}",
    ],
)
def test_a_misspelt_column_is_found_when_the_template_is_checked(text):
    """Also in branches that are not taken; the hint names the column that is meant."""
    template = PromptTemplate(text)
    with pytest.raises(InputError, match="'tilte'") as found:
        template.check(["title", "abstract", "tags"])
    assert "title" in found.value.hint


def test_the_line_of_a_misspelt_column_is_named():
    """Counted from 1."""
    with pytest.raises(InputError, match=r"prompt\.txt:3"):
        PromptTemplate("{{ title }}\n\n{{ tilte }}", name="prompt.txt").check(["title"])


def test_names_that_a_loop_binds_are_no_columns():
    """Within the loop."""
    assert (
        rendered("{% for k, v in pairs %}{{ loop.index }}{{ k }}{{ v }}{% endfor %}", pairs=[["a", 1], ["b", 2]]) == "1a12b2"
    )


def test_other_case_and_separators_are_near():
    """What people write for a column."""
    assert PromptTemplate("x {{ a }}").names == ("a",)
    with pytest.raises(InputError) as found:
        PromptTemplate("{{ articletitle }}").check(["Article-Title", "x"])
    assert 'row["Article-Title"]' in found.value.hint


def test_a_name_before_the_column_is_near():
    """Other tools put the row's name before it."""
    with pytest.raises(InputError, match="'input'") as found:
        PromptTemplate("{{ input.title }}").check(["id", "title"])
    assert found.value.hint == "did you mean title?"


def test_a_template_without_a_column_is_refused():
    """The usual reason is the braces of `str.format`."""
    with pytest.raises(InputError) as found:
        PromptTemplate("Classify: {title}").check(["title"])
    assert "{{ title }}" in found.value.hint


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "text",
    [
        "{% import 'x' as y %}{{ a }}",
        "{% from 'x' import y %}{{ a }}",
        "{% include 'x' %}{{ a }}",
        "{% extends 'x' %}{{ a }}",
        "{% block b %}{{ a }}{% endblock %}",
        "{% macro m() %}{{ a }}{% endmacro %}",
        "{% call a() %}{% endcall %}",
        "{% set b = a %}{{ b }}",
        "{% set b %}{{ a }}{% endset %}",
        "{% with b = a %}{{ b }}{% endwith %}",
        "{% filter upper %}{{ a }}{% endfilter %}",
        "{% for x in a recursive %}{{ loop(x) }}{% endfor %}",
        "{{ a() }}",
        "{{ a.upper() }}",
        "{{ a.format(1) }}",
        "{{ 9 ** 9 }}{{ a }}",
        "{{ a | replace('x', 'y') }}",
        "{{ a | map('upper') }}",
        "{{ a | attr('upper') }}",
        "{{ a is callable }}",
        "{% if false %}{{ a | nofilter }}{% endif %}",
        "{{ a",
        "{% if a %}",
        "{{ a | }}",
        "{# a {{ a }}",
        "{{ " + "(" * 300 + "a" + ")" * 300 + " }}",
        "{{ a" + " + 1" * 2000 + " }}",
    ],
)
def test_what_is_no_template_of_a_prompt_is_refused_when_it_is_read(text):
    """With the line, and before any row is seen."""
    with pytest.raises(InputError, match=r"p\.txt:1|nested"):
        PromptTemplate(text, name="p.txt")


@pytest.mark.parametrize(
    "text", ["{{ a * 1000000000 }}", "{{ 'x' * 1000000000 }}{{ a }}", "{{ [a] * 9 }}", "{{ a % 1 }}", "{{ -a }}"]
)
def test_no_expression_multiplies_a_text(text):
    """Arithmetic is for numbers."""
    fault(text, a="xy")


def test_arithmetic_on_numbers():
    """As in Python."""
    assert rendered("{{ a * 2 + 1 }} {{ a // 2 }} {{ -a }} {{ 7 % a }}", a=3) == "7 1 -3 1"


def test_the_length_of_a_prompt_is_limited_while_it_is_made(monkeypatch):
    """A loop in a loop stops at the limit: what is made is counted in pieces."""
    monkeypatch.setattr(templates, "LONGEST", 10_000)
    text = "{% for a in xs %}{% for b in xs %}{% for c in xs %}0123456789{% endfor %}{% endfor %}{% endfor %}"
    began = time.process_time()
    assert "10,000" in fault(text, xs=list(range(1000))).message
    assert time.process_time() - began < 20  # 10 GB would take hours


def test_a_loop_over_a_text_is_refused():
    """It would visit letters."""
    assert "tags" in fault("{% for t in tags %}{{ t }}{% endfor %}", tags="a;b").message


def test_a_field_of_nothing_is_an_error_also_in_a_condition():
    """A condition on a misspelt field must not be silently false."""
    assert "'jurnal'" in fault("{% if meta.jurnal %}x{% endif %}", meta={"journal": "J"}).message
    assert rendered("{% if meta.jurnal is defined %}x{% endif %}", meta={}) == ""
    assert rendered("{% if x is given %}x{% endif %}", x=None) == ""


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("{{ words | join(', ') }}", "b, a"),
        ("{{ people | join(' ', attribute='n') }}", "1 x"),
        ("{{ people | tojson }}", '[{"n": 1}, {"n": "x"}]'),
        ("{{ words | length }}", "2"),
        ("{{ words | first }}{{ words | last }}", "ba"),
        ("{{ text | upper }}{{ text | lower }}", "  ONE TWO THREE    one two three  "),
        ("{{ text | trim }}", "one two three"),
        ("{{ text | truncate_words(2) }}", "  one two…"),
        ("{{ text | truncate_words(3) }}", "  one two three  "),
        ("{{ '2.46' | round(1) }} {{ 2.6 | round }}", "2.5 3"),
    ],
)
def test_filters(text, printed):
    """Each of the allowed ones."""
    template = PromptTemplate(text)
    people = [{"n": 1}, {"n": "x"}]
    assert template.render({"words": ["b", "a"], "people": people, "text": "  one two three  "}, "row 1") == printed


def test_every_allowed_filter_is_tested_here():
    """And no other filter exists."""
    wanted = {"join", "tojson", "default", "length", "first", "last", "upper", "lower", "trim", "round", "truncate_words"}
    assert set(FILTERS) == wanted
    assert set(jinja2.Environment().filters) - wanted  # those that are not allowed


def test_truncating_a_long_text_takes_linear_time():
    """Counted in processor time, over texts that differ by a factor of 20."""
    for text in ("word " * 200_000, " " * 1_000_000, "x" * 1_000_000):
        began = time.process_time()
        rendered("{{ a | truncate_words(100000) }}", a=text)
        assert time.process_time() - began < 5
