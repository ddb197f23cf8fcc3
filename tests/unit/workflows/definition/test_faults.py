"""What is wrong in a workflow's file: each kind of fault names its line and the remedy, all at once, before any call."""

from __future__ import annotations

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ProfileNotFound, WorkflowFileError
from workflow_composer.workflows.definition.loading import load_workflow

MODELS = {
    "small": {"backend": "embedded", "path": "small"},
    "remote": {"backend": "openai", "base_url": "https://api.example.com/v1", "api_key_env": "KEY"},
}
CONFIG = StrategyConfig(profile_name="mine", models=MODELS, task_routing={"general": "small", "*": "small"})

HEAD = "workflow: w\ninputs: {note: private, id: text, n: number}\nsteps:\n"
TAIL = "output: {id: id}\n"
A = "  a: {model: small, prompt: '{{ id }}', answer: {name: text, score: number, kind: [case, trial]}}\n"


def of_steps(*steps):
    return HEAD + A + "".join(f"  {step}\n" for step in steps) + TAIL


# name: (text, line of the fault, what it says)
FAULTS = {
    # the file
    "no yaml": ("workflow: [w\n", 2, "YAML"),
    "a list": ("- a\n", 0, "mapping"),
    "duplicate key": (of_steps("b: {prompt: x}", "b: {prompt: y}"), 6, "duplicate key"),
    "alias": (of_steps("b: {prompt: &x hi}", "c: {prompt: *x}"), 6, "aliases"),
    "unknown key": (HEAD + A + TAIL + "stepps: 1\n", 6, "did you mean 'steps'"),
    "braces without quotes": (of_steps("b: {prompt: {{ id }}}"), 5, "in quotes"),
    "a colon without quotes": (HEAD + "  a:\n    prompt: Is this: yes or no?\n" + TAIL, 5, "in quotes"),
    "a quoted word first": (HEAD + '  a:\n    when: "x" in id\n    prompt: hi\n' + TAIL, 5, "all of it in quotes"),
    "a per cent sign first": (HEAD + "  a:\n    prompt: %x\n" + TAIL, 5, "in quotes"),
    "no steps": ("workflow: w\noutput: {a: 1}\n", 0, "steps"),
    "no output": (HEAD + A, 0, "output"),
    "no name": ("steps:\n  a: {prompt: x}\noutput: {a: a}\n", 0, "workflow"),
    # inputs
    "type of an input": (of_steps().replace("n: number", "n: numbr"), 2, "did you mean 'number'"),
    "reserved input": (of_steps().replace("n: number", "rows: text"), 2, "means something else"),
    # kinds of steps
    "no kind": (of_steps("b: {task: x}"), 5, "exactly one of"),
    "two kinds": (of_steps("b: {prompt: x, command: [y]}"), 5, "prompt and command"),
    "misspelt kind": (of_steps("b: {promt: x}"), 5, "did you mean 'prompt'"),
    "key of another kind": (of_steps("b: {human: x, temperature: 1}"), 5, "belongs to prompt"),
    "unknown key of a step": (of_steps("b: {prompt: x, retry: 3}"), 5, "did you mean 'retries'"),
    "name of a step": (of_steps("b-c: {prompt: x}"), 5, "no name of a step"),
    "reserved step": (of_steps("loop: {prompt: x}"), 5, "means something else"),
    "step and input of one name": (of_steps("id: {prompt: x}"), 5, "same name"),
    "a step that is text": (of_steps("b: hello"), 5, "mapping"),
    # templates and expressions
    "unclosed braces": (of_steps("b: {prompt: 'x {{ id'}"), 5, "write {{ '{{' }}"),
    "unclosed block": (of_steps("b: {prompt: '{% if id %}x'}"), 5, "endif"),
    "name with a space": (
        of_steps("b: {prompt: '{{ Article Title }}'}").replace("n: number", "Article Title: text"),
        5,
        'row["Article Title"]',
    ),
    "name with a hyphen": (
        of_steps("b: {prompt: '{{ pub-date }}'}").replace("n: number", "pub-date: text"),
        5,
        'row["pub-date"]',
    ),
    "unknown filter": (of_steps("b: {prompt: '{{ id | uper }}'}"), 5, "did you mean 'upper'"),
    "unknown test": (of_steps("b: {prompt: hi, when: id is giben}"), 5, "did you mean 'given'"),
    "unknown function": (of_steps("b: {prompt: hi, when: lenn(id) > 3}"), 5, "did you mean 'len'"),
    "method": (of_steps("b: {prompt: '{{ a.items() }}'}"), 5, "calls are not allowed"),
    "import": (of_steps("b: {prompt: '{% include id %}'}"), 5, "not allowed"),
    "one equals sign": (of_steps("b: {prompt: hi, when: id = 3}"), 5, "write =="),
    "braces in a condition": (of_steps("b: {prompt: hi, when: '{{ id }} == 1'}"), 5, "without {{ }}"),
    "ampersands": (of_steps("b: {prompt: hi, when: id && id}"), 5, "write `and`"),
    "empty condition": (of_steps("b: {prompt: hi, when: ''}"), 5, "empty"),
    # names
    "unknown name": (of_steps("b: {prompt: '{{ idd }}'}"), 5, "did you mean 'id'"),
    "in a branch not taken": (of_steps("b: {prompt: '{% if false %}{{ idd }}{% endif %}'}"), 5, "did you mean 'id'"),
    "behind a default": (of_steps("b: {prompt: '{{ idd | default(1) }}'}"), 5, "did you mean 'id'"),
    "unknown field": (of_steps("b: {prompt: '{{ a.nmae }}'}"), 5, "did you mean 'name'"),
    "field of a text": (of_steps("b: {prompt: '{{ a.name.x }}'}"), 5, "has no field"),
    "field of a list": (of_steps("b: {prompt: x, answer: [{x: text}]}", "c: {prompt: '{{ b.x }}'}"), 6, "take an item"),
    "method of an object": (of_steps("b: {prompt: '{{ a.items }}'}"), 5, "has no field 'items'"),
    "word that is no choice": (of_steps("b: {prompt: hi, when: a.kind == 'cse'}"), 5, "did you mean 'case'"),
    "word in a list that is no choice": (of_steps("b: {prompt: hi, when: \"a.kind in ['case', 'x']\"}"), 5, "is never 'x'"),
    "state of an input": (of_steps("b: {prompt: hi, when: id is done}"), 5, "is no step"),
    "fact of an input": (of_steps("b: {prompt: '{{ id._attempts }}'}"), 5, "is no step"),
    "its own value": (of_steps("b: {prompt: '{{ b }}'}"), 5, "its own value"),
    "item outside its loop": (
        of_steps("b: {for_each: x in n, prompt: '{{ x }}'}", "c: {prompt: '{{ x }}'}"),
        6,
        "no input or step 'x'",
    ),
    "inner step by its bare name": (
        of_steps("b: {for_each: x in n, steps: {i: {prompt: '{{ x }}'}}}", "c: {prompt: '{{ i }}'}"),
        6,
        "write b.i",
    ),
    "column of the output": (of_steps().replace("{id: id}", "{id: a.nme}"), 5, "did you mean 'name'"),
    "circle": (of_steps("b: {prompt: '{{ c }}'}", "c: {prompt: '{{ b }}'}"), 5, "circle"),
    "circle of state": (of_steps("b: {prompt: x, when: c is done}", "c: {prompt: '{{ b }}'}"), 5, "circle"),
    # flow
    "for_each without in": (of_steps("b: {for_each: x, prompt: hi}"), 5, "NAME in EXPRESSION"),
    "item of a taken name": (of_steps("b: {for_each: id in n, prompt: hi}"), 5, "choose another name"),
    "steps without a list": (of_steps("b: {steps: {i: {prompt: x}}}"), 5, "for_each"),
    "at_most alone": (of_steps("b: {prompt: x, at_most: 3}"), 5, "bounds nothing"),
    "until without a bound": (of_steps("b: {prompt: x, until: b == 'y'}"), 5, "at_most"),
    "until and for_each": (of_steps("b: {prompt: x, for_each: i in n, until: b == 'y', at_most: 3}"), 5, "`steps`"),
    "group_by alone": (of_steps("b: {prompt: x, group_by: id}"), 5, "reduce: rows"),
    "reduce of something": (of_steps("b: {prompt: x, reduce: columns}"), 5, "allowed: rows"),
    "fold of a program": (of_steps("b: {python: 'm:f', reduce: rows, fold: x}"), 5, "only a prompt"),
    "row value in a step over rows": (of_steps("b: {reduce: rows, prompt: '{{ id }}'}"), 5, "for r in rows"),
    "unknown field of rows": (
        of_steps("b: {reduce: rows, prompt: '{% for r in rows %}{{ r.idd }}{% endfor %}'}"),
        5,
        "did you mean 'id'",
    ),
    "table of a row value": (of_steps() + "tables: {t: a}\n", 6, "a value for each row"),
    # values of keys
    "retries": (of_steps("b: {prompt: x, retries: -1}"), 5, "0 to 100"),
    "temperature": (of_steps("b: {prompt: x, temperature: hot}"), 5, "0 to 2"),
    "timeout without a unit": (of_steps("b: {prompt: x, timeout: 60}"), 5, "60s"),
    "on_error": (of_steps("b: {prompt: x, on_error: ignore}"), 5, "row, skip, stop"),
    "default that does not fit": (of_steps("b: {prompt: x, answer: number, on_error: {default: many}}"), 5, "number"),
    "budget's unit": (of_steps() + "budget: {run: 20 EUR}\n", 6, "such as $20"),
    "deadline's unit": (of_steps() + "deadline: {row: 5}\n", 6, "6h"),
    "when_low": (of_steps() + "when_low: cheapest\n", 6, "allowed: stop, cheaper"),
    "key": (of_steps() + "key: idd\n", 6, "did you mean 'id'"),
    "stream": (of_steps() + "stream: b\n", 6, "allowed: a"),
    "waits": (of_steps("b: {human: x, waits: {at_most: 3d}}"), 5, "then"),
    "memory": (of_steps("b: {command: [x], limits: {memory: 5}}"), 5, "512M"),
    "network": (of_steps("b: {command: [x], limits: {network: yes}}"), 5, "none, any"),
    # forms
    "unknown form": (of_steps("b: {prompt: x, answer: txt}"), 5, "unknown form"),
    "one choice": (of_steps("b: {prompt: x, answer: [one]}"), 5, "one choice"),
    "truth values as choices": (of_steps("b: {prompt: x, answer: [true, false]}"), 5, "truth|in quotes"),
    "no such schema": (of_steps("b: {prompt: x, answer: {json_schema: none.json}}"), 5, "none.json"),
    "no form": (of_steps("b: {prompt: x, answer: }"), 5, "found nothing"),
    "no prompt": (of_steps("b: {prompt: null}"), 5, "found nothing"),
    "empty prompt": (of_steps("b: {prompt: ' '}"), 5, "is empty"),
    "value after waiting": (of_steps("b: {human: x, answer: [c, d], waits: {at_most: 3d, then: e}}"), 5, "not one of"),
    "cascade without tiers": (of_steps("b: {prompt: x, model: cascade}"), 5, "no tiers"),
    # programs, models, nested workflows
    "argv": (of_steps("b: {command: ls -l}"), 5, "list of the program"),
    "python target": (of_steps("b: {python: names.merge}"), 5, "module:function"),
    "file outside": (of_steps("b: {command: [x], files: {../x: hi}}"), 5, "outside"),
    "check of two kinds": (of_steps("b: {prompt: x, accept: {judge: small, command: [y]}}"), 5, "exactly one"),
    "judge without a question": (of_steps("b: {prompt: x, accept: {judge: small}}"), 5, "add ask"),
    "unknown model": (of_steps("b: {prompt: x, model: smal}"), 5, "did you mean 'small'"),
    "unknown judge": (of_steps("b: {prompt: x, accept: {judge: smal, ask: y}}"), 5, "did you mean 'small'"),
    "bad routing string": (of_steps("b: {prompt: x, model: mv_cascade_small_k0}"), 5, "routing string"),
    "no such workflow": (of_steps("b: {workflow: nothing.yaml}"), 5, "no file"),
    "itself": (of_steps("b: {workflow: flow.yaml}"), 5, "contains itself"),
    # privacy
    "private to the cloud": (of_steps("b: {model: remote, prompt: '{{ note }}'}"), 5, "note -> b"),
    "private by condition": (of_steps("b: {model: remote, prompt: x, when: \"'x' in note\"}"), 5, "note -> b"),
    "private by count": (of_steps("b: {model: remote, prompt: x, for_each: i in note}"), 5, "note -> b"),
    "private to a judge": (
        of_steps("b: {model: small, prompt: '{{ note }}', accept: {judge: remote, ask: y}}"),
        5,
        "note -> b",
    ),
    "release of free text": (of_steps("b: {prompt: '{{ note }}', release: choices}"), 5, "closed list"),
    "release without a reason": (of_steps("b: {prompt: '{{ note }}', release: {declared: ''}}"), 5, "reason"),
}


@pytest.fixture
def problems(tmp_path):
    def found(text, columns=None):
        (tmp_path / "flow.yaml").write_text(text)
        with pytest.raises(WorkflowFileError) as caught:
            load_workflow(tmp_path / "flow.yaml", config=CONFIG, columns=columns)
        return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]

    return found


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_has_its_line_and_its_remedy(problems, kind):
    text, line, said = FAULTS[kind]
    found = problems(text)
    place = f"flow.yaml:{line}:" if line else "flow.yaml:"
    matching = [one for one in found if one.startswith(place) and any(part in one for part in said.split("|"))]
    assert matching, found
    assert len(found) <= 2, found


def test_there_are_fifty_kinds():
    assert len(FAULTS) >= 50


def test_all_faults_are_told_at_once_in_the_order_of_the_file(problems):
    found = problems(of_steps("b: {prompt: '{{ idd }}', retries: x}", "c: {promt: y}").replace("{id: id}", "{id: ix}"))
    lines = [int(one.split(":")[1]) for one in found]
    assert lines == sorted(lines)
    assert {5, 6, 7} <= set(lines)


def test_a_line_within_a_block(problems):
    text = HEAD + "  a:\n    prompt: |\n      one\n      two {{ idd }}\n      three {{ nn }}\n" + TAIL
    assert [one.split(": ")[0] for one in problems(text)] == ["flow.yaml:7", "flow.yaml:8"]


def test_a_column_that_inputs_do_not_name(problems):
    (found,) = problems(of_steps("b: {prompt: '{{ title }}'}"), ["note", "id", "n", "title"])
    assert "add title: text to inputs" in found


def test_a_column_that_the_table_lacks(problems):
    (found,) = problems(of_steps(), ["note", "ID", "n"])
    assert found.startswith("flow.yaml:2:")


def test_a_fault_in_a_nested_workflow_names_its_file(problems, tmp_path):
    (tmp_path / "inner.yaml").write_text("workflow: i\ninputs: {x: text}\nsteps: {s: {prompt: '{{ y }}'}}\noutput: {s: s}\n")
    (found,) = problems(of_steps("b: {workflow: inner.yaml, with: {x: id}}"))
    assert "inner.yaml:3" in found
    assert found.startswith("flow.yaml:5:")


def test_arguments_of_a_nested_workflow(problems, tmp_path):
    (tmp_path / "inner.yaml").write_text("workflow: i\ninputs: {x: text}\nsteps: {s: {prompt: '{{ x }}'}}\noutput: {s: s}\n")
    found = problems(of_steps("b: {workflow: inner.yaml, with: {xx: id}}", "c: {prompt: '{{ b.t }}'}"))
    assert any("did you mean 'x'" in one for one in found)
    assert any("needs the input 'x'" in one for one in found)
    assert any("no field 't'" in one for one in found)


def test_no_such_file(tmp_path):
    with pytest.raises(ProfileNotFound):
        load_workflow(tmp_path / "none.yaml", config=CONFIG)
