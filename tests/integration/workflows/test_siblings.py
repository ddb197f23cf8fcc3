"""Relatives of the forty: other traps of templates, of YAML, of tables, and other shapes of graphs."""

from __future__ import annotations

import json

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, WRONG, killed, rows_of
from tests.integration.workflows.scripted import Said


def one(desk, prompt, rows, *, inputs="{t: text}", more=""):
    """A workflow of one question."""
    desk.table(rows)
    steps = json.dumps({"prompt": prompt}, ensure_ascii=False)[:-1]
    desk.file(
        f"workflow: one\ninputs: {inputs}\nsteps:\n  a: {steps}{more}}}\noutput: {{a: '{{{{ a | default(null) }}}}'}}\n"
    )


@pytest.mark.parametrize(
    "cell",
    [
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{# gone? #}",
        "a\r\nb\rc",
        "  spaces at both ends \n\n",
        "<b>&amp;</b> \"quoted\" 'single'",
        "$HOME ${HOME} $(id) `id` %s %(t)s {t} {0}",
        "\\n is no newline, \\u00e9 is no accent",
        "é e\u0301 \u202eright to left\u202c 👩‍🔬 \u00a0",
        "null",
        "[1, 2]",
    ],
)
def test_a_cell_is_inserted_as_it_is(desk, cell):
    one(desk, "[{{ t }}]", [{"t": cell}])
    desk.run().ended(DONE)
    assert desk.small.prompts() == [f"[{cell}]"]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ j | tojson }}", '{"a": ["<é>", 1, 1.5, true, null]}'),
        ("{{ j.a[0] }} {{ j.a[1] }} {{ j.a[2] }} {{ j.a[3] }}", "<é> 1 1.5 true"),
        ("{% for x in j.a %}{% if x is given %}{{ x }};{% endif %}{% endfor %}", "<é>;1;1.5;true;"),
        ("{{ j.a[4] | default('-') }}", "-"),
        ("{{ j.a | length }}", "5"),
        ("{% if j.a[3] %}yes{% else %}no{% endif %}", "yes"),
        ("line\n\n", "line\n"),
        ("  {{- j.a[1] -}}  ", "1"),
    ],
)
def test_templates_say_what_they_say(desk, template, prompt):
    one(desk, template, [{"j": {"a": ["<é>", 1, 1.5, True, None]}}], inputs="{j: json}")
    desk.run().ended(DONE)
    assert desk.small.prompts() == [prompt]


@pytest.mark.parametrize(
    "template",
    [
        "{{ t * 100000000 }}",
        "{{ t.__class__.__mro__ }}",
        "{{ range(3) }}",
        "{{ cycler }}",
        "{{ self }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% set x = 1 %}{{ x }}",
        "{{ t.format(1) }}",
        "{{ t | attr('x') }}",
        "{{ t | safe_eval }}",
        "{{ loop.index }}",
        "{{ namespace(x=1) }}",
        "{{ t is sameas t }}",
    ],
)
def test_what_a_template_must_not_do_is_refused_or_fails(desk, template):
    one(desk, template, [{"t": "x" * 50}])
    ran = desk.run()
    assert ran.code in (WRONG, SOME_FAILED), ran.said
    assert desk.calls == 0


@pytest.mark.parametrize("name", ["range", "dict", "loop_", "items", "class_", "größe", "_x1", "true_", "cycler"])
def test_columns_may_have_any_name(desk, name):
    one(desk, f"see {{{{ {name} }}}}", [{name: "v"}], inputs=json.dumps({name: "text"}, ensure_ascii=False))
    ran = desk.run()
    if ran.code == WRONG:  # a name that is kept for something else is refused by name
        assert name in ran.said
        assert desk.calls == 0
    else:
        assert desk.small.prompts() == ["see v"]


WORDS = [
    "on",
    "off",
    "yes",
    "No",
    "TRUE",
    "null",
    "1.10",
    "0042",
    "1e3",
    "12:30",
    "2024-01-01",
    "0x1F",
    "1_000",
    ".5",
    "NaN",
]


@pytest.mark.parametrize("word", WORDS)
def test_choices_are_the_words_that_were_written(desk, word):
    desk.small.says("pick", word)
    desk.table([{"t": "x"}])
    desk.file(f"""
        workflow: words
        inputs: {{t: text}}
        steps:
          a:
            prompt: "pick {{{{ t }}}}"
            answer: [{word}, other]
          b:
            when: a == "{word}"
            prompt: "then"
        output: {{a: "{{{{ a }}}}", b: "{{{{ b }}}}"}}
    """)
    ran = desk.run()
    if ran.code == WRONG:
        assert "quotes" in ran.said
        assert desk.calls == 0
        return
    ran.ended(DONE)
    assert ran.column("a") == [word]
    assert desk.small.count("then") == 1


@pytest.mark.parametrize("name", ["yes", "on", "null", "1", "1.5", "a b", "a-b", "_a", "rows", "done"])
def test_odd_names_of_steps_work_or_are_refused_by_name(desk, name):
    desk.table([{"t": "x"}])
    desk.file(f"""
        workflow: names
        inputs: {{t: text}}
        steps:
          {name}: {{prompt: "first {{{{ t }}}}"}}
        output: {{a: "{{{{ t }}}}"}}
    """)
    ran = desk.run()
    assert ran.code in (DONE, WRONG), ran.said
    if ran.code == WRONG:
        assert "flow.yaml:4" in ran.said
        assert desk.calls == 0


FAULTS = {
    "two steps of one name": '  a: {prompt: "x"}\n  a: {prompt: "y"}\n',
    "a step with the name of an input": '  t: {prompt: "x"}\n',
    "two bodies": '  a: {prompt: "x", command: [ls]}\n',
    "no body": "  a: {task: general}\n",
    "an unknown key": '  a: {promt: "x"}\n',
    "a cycle": '  a: {prompt: "{{ b }}"}\n  b: {prompt: "{{ a }}"}\n',
    "itself": '  a: {prompt: "{{ a }}"}\n',
    "a tab": '  a:\n\tprompt: "x"\n',
    "a negative number of tries": '  a: {prompt: "x", retries: -1}\n',
    "an empty prompt": '  a: {prompt: ""}\n',
    "a prompt that is a list": "  a: {prompt: [x]}\n",
    "a fan-out without a list": '  a: {for_each: x, prompt: "x"}\n',
    "a condition that is no expression": '  a: {when: "t ==", prompt: "x"}\n',
    "an assignment": '  a: {when: "t = 1", prompt: "x"}\n',
    "a call": '  a: {when: "open(t)", prompt: "x"}\n',
    "a form that is none": '  a: {prompt: "x", answer: numbr}\n',
    "a model that is none": '  a: {prompt: "x", model: smal}\n',
    "a loop without an end": '  a: {prompt: "x", until: a == "x"}\n',
    "an on_error that is none": '  a: {prompt: "x", on_error: ignore}\n',
    "a time without a unit that can be read": '  a: {prompt: "x", timeout: soon}\n',
    "an alias": '  a: &x {prompt: "x"}\n  b: *x\n',
    "a merge key": '  a: &x {prompt: "x"}\n  b: {<<: *x}\n',
    "no steps": "",
    "a program as one text": '  a: {command: "rm -rf x"}\n',
    "a module that is none": '  a: {python: "os.system"}\n',
    "a nested file that is none": "  a: {workflow: missing.yaml, with: {t: t}}\n",
    "a schema that is none": '  a: {prompt: "x", answer: {json_schema: missing.json}}\n',
    "group_by without reduce": '  a: {prompt: "x", group_by: t}\n',
    "an output of a name that is none": '  a: {prompt: "{{ aa }}"}\n',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_before_anything_is_asked(desk, fault):
    desk.table([{"t": "x"}])
    desk.file(f"workflow: faults\ninputs: {{t: text}}\nsteps:\n{FAULTS[fault]}output: {{t: '{{{{ t }}}}'}}\n")
    ran = desk.run().ended(WRONG)
    assert desk.calls == 0
    assert "flow.yaml:" in ran.said, ran.said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "just text",
        "workflow: x",
        "\x00",
        "{",
        "workflow: x\nsteps: []\n",
        "- a\n- b\n",
        "workflow: x\n---\nworkflow: y\n",
    ],
)
def test_a_file_that_is_no_workflow_is_refused(desk, text):
    desk.table([{"t": "x"}])
    (desk.folder / "flow.yaml").write_text(text)
    ran = desk.run().ended(WRONG)
    assert "flow.yaml" in ran.said


def test_files_that_are_missing_are_named(desk):
    one(desk, "x {{ t }}", [{"t": "x"}])
    assert "nowhere.yaml" in desk.run(file="nowhere.yaml").ended(WRONG).said
    assert "nowhere.csv" in desk.run(table="nowhere.csv").ended(WRONG).said
    assert desk.run(output="in.jsonl").ended(WRONG)
    assert desk.run(output="missing/folder/out.jsonl").code in (DONE, WRONG)
    assert len((desk.folder / "in.jsonl").read_text().splitlines()) == 1


def test_a_diamond_runs_its_end_once(desk):
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: diamond
        inputs: {t: text}
        steps:
          d: {prompt: "d {{ b }} {{ c }}"}
          c: {prompt: "c {{ a }}"}
          b: {prompt: "b {{ a }}"}
          a: {prompt: "a {{ t }}"}
        output: {d: "{{ d }}"}
    """)
    desk.small.says("", lambda call: call.prompt.upper())
    assert desk.run().ended(DONE).column("d") == ["D B A X C A X"]
    assert desk.calls == 4


def test_either_or_joins_in_one(desk):
    desk.table(rows_of(3))
    desk.file("""
        workflow: either
        inputs: {n: number}
        steps:
          low: {when: n < 2, prompt: "low {{ n }}"}
          high: {when: not (n < 2), prompt: "high {{ n }}"}
          both: {prompt: "both {{ low | default(high) }}"}
        output: {both: "{{ both }}", low: "{{ low is done }}"}
    """)
    desk.small.says("", lambda call: call.prompt)
    ran = desk.run().ended(DONE)
    assert ran.column("both") == ["both low 1", "both high 2", "both high 3"]
    assert ran.column("low") == [True, False, False]
    assert desk.calls == 6


def test_a_failed_step_may_have_a_default_and_is_then_partial_or_marked(desk):
    desk.small.says("row-2;", Said(status=500))
    desk.table(rows_of(3))
    desk.file("""
        workflow: default
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}", on_error: {default: "nothing"}}
          b: {prompt: "then {{ a }}"}
        output: {a: "{{ a }}", b: "{{ b }}"}
    """)
    ran = desk.run()
    assert ran.code in (DONE, SOME_FAILED)
    assert ran.column("a")[1] == "nothing"
    assert desk.small.count("then nothing") == 1


def test_a_failed_step_may_stop_the_run(desk):
    desk.small.says("row-2;", Said(status=500))
    desk.table(rows_of(50))
    desk.file("""
        workflow: stop
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}", on_error: stop}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run("--concurrency", "1").ended(SOME_FAILED)
    assert desk.calls == 2
    assert len(ran.rows) == 50
    assert ran.states[0] == "done"


def test_items_have_conditions_of_their_own(desk):
    desk.small.says("", lambda call: call.prompt.upper())
    desk.table([{"v": [{"x": "a"}, {"x": None}, {"x": "c"}]}])
    desk.file("""
        workflow: items
        inputs: {v: json}
        steps:
          a:
            for_each: i in v
            when: i.x is given
            prompt: "item {{ i.x }}"
          b: {prompt: "all {{ a | done }}"}
        output: {a: "{{ a }}", b: "{{ b }}"}
    """)
    ran = desk.run().ended(DONE)
    assert ran.column("a") == [["ITEM A", None, "ITEM C"]]
    assert desk.small.prompts()[-1] == 'all ["ITEM A", "ITEM C"]'


def test_a_loop_ends_by_its_condition_or_its_number(desk):
    replies = iter(["1", "2", "3", "4", "5", "6"])
    desk.small.says("step", lambda call: next(replies))
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: loop
        inputs: {t: text}
        steps:
          a:
            until: a == 3
            at_most: 5
            prompt: "step {{ t }} {{ a | default(0) }}"
            answer: number
        output: {a: "{{ a }}"}
    """)
    assert desk.run().ended(DONE).column("a") == [3]
    assert [prompt[:8] for prompt in desk.small.prompts()] == ["step x 0", "step x 1", "step x 2"]


@pytest.mark.parametrize("number", ["12345678901234567890", "0.1", "1e21", "-0", "3.0"])
def test_numbers_of_a_table_stay_what_they_are(desk, number):
    (desk.folder / "in.jsonl").write_text(f'{{"n": {number}}}\n')
    desk.file("""
        workflow: numbers
        inputs: {n: json}
        steps:
          a: {prompt: "see {{ n }}"}
        output: {n: "{{ n }}"}
    """)
    ran = desk.run().ended(DONE)
    assert float(desk.small.prompts()[0].removeprefix("see ")) == float(number)
    if "." not in number and "e" not in number and number != "-0":
        assert desk.small.prompts() == [f"see {number}"]
        assert ran.column("n") == [int(number)]


TABLES = {
    "bom.csv": "\ufefft,n\r\none,1\r\ntwo,2\r\n".encode(),
    "quoted.csv": b't,n\n"a ""b"", c\nd",1\n',
    "tabs.tsv": b"t\tn\none\t1\n",
    "no_end.jsonl": b'{"t": "one", "n": 1}\n{"t": "two", "n": 2}',
    "list.json": b'[{"t": "one", "n": 1}, {"t": "two", "n": 2}]',
    "empty_lines.jsonl": b'\n{"t": "one", "n": 1}\n\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_many_kinds(desk, name):
    (desk.folder / name).write_bytes(TABLES[name])
    desk.file("""
        workflow: tables
        inputs: {t: text, n: number}
        steps:
          a: {when: n > 0, prompt: "see {{ t }} {{ n }}"}
        output: {t: "{{ t }}", a: "{{ a }}"}
    """)
    ran = desk.run(table=name).ended(DONE)
    assert len(ran.rows) == desk.calls
    assert desk.small.prompts()[0].startswith('see a "b", c\nd 1' if name == "quoted.csv" else "see one 1")


def test_a_table_without_rows(desk):
    (desk.folder / "in.csv").write_text("t\n")
    desk.file("workflow: none\ninputs: {t: text}\nsteps:\n  a: {prompt: 'x {{ t }}'}\noutput: {a: '{{ a }}'}\n")
    ran = desk.run(table="in.csv", output="out.csv")
    assert ran.code in (DONE, WRONG), ran.said
    assert desk.calls == 0


def test_nothing_in_a_cell_fails_its_row_only(desk):
    one(desk, "see {{ t }}", [{"t": None}, {"t": "x"}, {}])
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.prompts() == ["see x"]
    assert [state == "done" for state in ran.states] == [False, True, False]
    assert "t" in ran.errors(1)


def test_a_cell_of_the_wrong_kind_fails_its_row_only(desk):
    one(desk, "see {{ t }}", [{"t": "twelve"}, {"t": "12"}], inputs="{t: number}")
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.prompts() == ["see 12"]
    assert ran.states[1] == "done"


def test_a_spreadsheets_formula_from_a_model_is_no_formula(desk):
    desk.small.says("see", '=HYPERLINK("http://evil")')
    one(desk, "see {{ t }}", [{"t": "x"}])
    ran = desk.run(output="out.csv").ended(DONE)
    assert ran.rows[0]["a"].startswith("'=")


def test_two_runs_of_one_output_do_not_mix(desk):
    one(desk, "see {{ t }}", [{"t": "x"}])
    desk.small.hold()
    process = desk.running()
    try:
        desk.small.wait_for(1)
        second = desk.run()
        assert second.code == WRONG, second.said
        assert desk.calls == 1
    finally:
        killed(process)


def test_a_dry_run_never_calls(desk):
    one(desk, "see {{ t }}", rows_of(5))
    ran = desk.run("--dry-run")
    assert ran.code == DONE, ran.said
    assert desk.calls == 0
    assert not (desk.folder / "out.jsonl").exists()


def test_a_run_goes_on_with_rows_that_were_added(desk):
    one(desk, "see {{ t }}", rows_of(3))
    desk.run().ended(DONE)
    desk.reset()
    desk.table(rows_of(5))
    ran = desk.run().ended(DONE)
    assert sorted(desk.small.prompts()) == ["see row-4;", "see row-5;"]
    assert len(ran.rows) == 5


def test_shuffled_rows_ask_nothing(desk):
    one(desk, "see {{ t }}", rows_of(6))
    desk.run().ended(DONE)
    desk.reset()
    desk.table([*reversed(rows_of(6))])
    desk.run().ended(DONE)
    assert desk.calls == 0


@pytest.mark.parametrize("reply", [Said("", finish="content_filter"), Said("   \n"), Said("<think>only thoughts</think>")])
def test_what_is_no_answer_fails(desk, reply):
    desk.small.says("see", reply)
    one(desk, "see {{ t }}", [{"t": "x"}], more=', "retries": 0')
    ran = desk.run().ended(SOME_FAILED)
    assert ran.column("a") == [None]
    assert ran.summary["done"] == 0
