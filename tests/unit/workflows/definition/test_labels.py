"""Private inputs: which files are refused when they are read, with the way, and what the notes say leaves."""

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowFileError
from workflow_composer.workflows.definition.loading import load_workflow
from workflow_composer.workflows.keeping.keys import StepMeanings, question_of

MODELS = {
    "small": {"backend": "embedded", "path": "small"},
    "remote": {"backend": "openai", "base_url": "https://api.example.com/v1", "api_key_env": "KEY"},
}
CONFIG = StrategyConfig(
    profile_name="mine",
    trusted_programs=["w.known"],
    models=MODELS,
    task_routing={"*": "small", "far": "remote"},
    fallback=["remote"],
)
OWN = "s: {model: small, prompt: '{{ note }}'%s}"
CHOICES = ", answer: ['yes', 'no'], release: choices"
FAR = "r: {model: remote, prompt: '{{ id }}'%s}"


@pytest.fixture
def load(tmp_path):
    def loaded(*steps, files=None):
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        path = tmp_path / "flow.yaml"
        listed = "\n".join(f"  {step}" for step in steps)
        path.write_text(f"workflow: w\ninputs: {{note: private, id: text}}\nsteps:\n{listed}\noutput: {{id: id}}\n")
        return load_workflow(path, config=CONFIG)

    return loaded


REFUSED = {
    "prompt": (["r: {model: remote, prompt: '{{ note }}'}"], "note -> r"),
    "system": (["r: {model: remote, prompt: hi, system: '{{ note }}'}"], "note -> r"),
    "through a step": ([OWN % "", "r: {model: remote, prompt: '{{ s }}'}"], "note -> s -> r"),
    "condition": ([FAR % """, when: '"HIV" in note'"""], "note -> r"),
    "number of items": ([OWN % ", answer: [text]", FAR % ", for_each: x in s"], "note -> s -> r"),
    "item": ([OWN % ", answer: [text]", "r: {model: remote, for_each: x in s, prompt: '{{ x }}'}"], "note -> s -> r"),
    "judge": ([OWN % ", accept: {judge: remote, ask: 'good? {{ s }}'}"], "note -> s"),
    "judge of a release": ([OWN % ", release: {check: {judge: remote, ask: 'name in {{ s }}?'}}"], "note -> s"),
    "over rows": (
        [OWN % "", "all: {reduce: rows, model: remote, prompt: '{% for r in rows %}{{ r.s }}{% endfor %}'}"],
        "note -> s -> all",
    ),
    "whole rows": ([OWN % "", "all: {reduce: rows, model: remote, prompt: '{{ rows }}'}"], "note -> all"),
    "which rows": (["all: {reduce: rows, keep: \"note == 'x'\", model: remote, prompt: hi}"], "note -> all"),
    "groups": (["all: {reduce: rows, group_by: note, model: remote, prompt: hi}"], "note -> all"),
    "state under a private condition": (
        [OWN % """, when: '"a" in note'""", FAR % ", when: s is done"],
        "note -> s -> r",
    ),
    "state with a default": ([OWN % """, when: '"a" in note'""", FAR % ", when: s is skipped"], "note -> s -> r"),
    "released, but under a private condition": (
        [OWN % """, answer: [a, b], release: choices, when: '"a" in note'""", "r: {model: remote, prompt: '{{ s }}'}"],
        "note -> s -> r",
    ),
    "number of tries": ([OWN % "", "r: {model: remote, prompt: '{{ s._attempts }}'}"], "note -> s -> r"),
    "tries of a released step": ([OWN % CHOICES, "r: {model: remote, prompt: '{{ s._attempts }}'}"], "note -> s -> r"),
    "cost of a released step": ([OWN % CHOICES, "r: {model: remote, prompt: '{{ s._cost }}'}"], "note -> s -> r"),
    "who answered a released step": ([OWN % CHOICES, FAR % ", when: s._model == 'small'"], "note -> s -> r"),
    "error of a released step": ([OWN % CHOICES, FAR % ", when: s._error is given"], "note -> s -> r"),
    "error": ([OWN % "", "r: {model: remote, prompt: '{{ s._error | default(1) }}'}"], "note -> s -> r"),
    "length": ([FAR % ", when: len(note) > 3"], "note -> r"),
    "default": (["r: {model: remote, prompt: '{{ note | default(1) }}'}"], "note -> r"),
    "branch": (["r: {model: remote, prompt: '{% if note %}x{% endif %}'}"], "note -> r"),
    "until": (["r: {model: remote, prompt: hi, until: r == note, at_most: 3}"], "note -> r"),
    "routed task": (["r: {task: far, prompt: '{{ note }}'}"], "note -> r"),
    "cascade": (["r: {model: mv_cascade_small_k1_remote_k1, prompt: '{{ note }}'}"], "note -> r"),
    "inner step": (
        [OWN % ", answer: [text]", "o: {for_each: x in s, steps: {r: {model: remote, prompt: '{{ id }}'}}}"],
        "note -> s -> o -> r",
    ),
    "trusted only by the file": (["c: {command: [cat], with: {x: note}, trusted: true}"], "trusted_programs: [w.c]"),
    "program with a network": (["c: {command: [cat], with: {x: note}, limits: {network: any}}"], "note -> c"),
    "row by its name": (["r: {model: remote, prompt: '{{ row[\"note\"] }}'}"], "note -> r"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_tells_the_cloud_something_private_is_refused(load, name):
    steps, way = REFUSED[name]
    with pytest.raises(WorkflowFileError) as caught:
        load(*steps)
    (problem,) = caught.value.problems
    assert way in problem
    assert ":4: " in problem or ":5: " in problem


ALLOWED = {
    "beside": ([OWN % "", FAR % ""]),
    "released choices": ([OWN % ", answer: ['yes', 'no'], release: choices", FAR % ", when: s == 'yes'"]),
    "released by a check": ([OWN % ", release: {check: {command: [cat]}}", "r: {model: remote, prompt: '{{ s }}'}"]),
    "routed": (["s: {task: any, prompt: '{{ note }}'}"]),
    "value and state of a released step": ([OWN % CHOICES, "r: {model: remote, prompt: '{{ s }} {{ s._state }}'}"]),
    "state of a step that always runs": ([OWN % "", FAR % ", when: s is done"]),
    "rows that are done": (
        [
            OWN % "",
            "all: {reduce: rows, keep: s is done, model: remote, prompt: '{% for r in rows %}{{ r.id }}{% endfor %}'}",
        ]
    ),
    "a person": ([OWN % "", "p: {human: 'right? {{ s }}'}"]),
    "a program that the profile trusts": (["known: {command: [cat], with: {x: note}, trusted: true}"]),
    "a program without a network": (["c: {command: [cat], with: {x: note}}"]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed(load, name):
    load(*ALLOWED[name])


def test_labels(load):
    made = load(OWN % ", answer: ['yes', 'no'], release: choices", FAR % ", when: s == 'yes'")
    own, far = made.steps["s"].labels, made.steps["r"].labels
    assert (own.private, own.data, own.out, own.bits) == (True, {"note"}, frozenset(), 1.0)
    assert not far.private
    assert "at most 1 bit of note a row leaves through s" in made.notes


@pytest.mark.parametrize(
    ("answer", "bits"),
    [("[a, b, c, d]", 2.0), ("truth", 1.0), ("'truth or none'", 1.584962500721156), ("{x: [a, b], y: truth}", 2.0)],
)
def test_bits_of_closed_answers(load, answer, bits):
    assert load(OWN % f", answer: {answer}, release: choices").steps["s"].labels.bits == pytest.approx(bits)


@pytest.mark.parametrize(("default", "bits"), [("null", 1.584962500721156), ("a", 1.0)])
def test_a_null_as_default_is_one_answer_more(load, default, bits):
    step = OWN % f", answer: [a, b], release: choices, on_error: {{default: {default}}}"
    assert load(step).steps["s"].labels.bits == pytest.approx(bits)


def test_where_a_state_is_told_is_noted(load):
    made = load(OWN % "", FAR % ", when: s is done", "q: {model: small, prompt: 'x', when: s is done}")
    (note,) = [one for one in made.notes if "tells whether" in one and one.startswith("r ")]
    assert "note" in note
    assert not any("tells whether" in one for one in load(OWN % "", FAR % "").notes)


@pytest.mark.parametrize("answer", ["text", "number", "[text]", "{x: [a, b], y: text}", "[[a, b]]"])
def test_only_closed_answers_are_released_as_choices(load, answer):
    with pytest.raises(WorkflowFileError, match="closed list"):
        load(OWN % f", answer: {answer}, release: choices")


@pytest.mark.parametrize("release", ["{}", "{declared: ''}", "why", "true", "{declared: }"])
def test_a_release_without_a_reason_is_refused(load, release):
    with pytest.raises(WorkflowFileError, match=r"steps\.s\.release"):
        load(OWN % f", release: {release}")


INNER = "workflow: inner\ninputs: {x: text}\nsteps: {far: {model: remote, prompt: '{{ x }}'}}\noutput: {y: far}\n"


def test_labels_pass_through_a_nested_workflow_for_each_caller(load):
    files = {"inner.yaml": INNER}
    assert load("a: {workflow: inner.yaml, with: {x: id}}", files=files)
    with pytest.raises(WorkflowFileError, match=r"note -> a -> far|note -> far"):
        load("a: {workflow: inner.yaml, with: {x: note}}", files=files)
    with pytest.raises(WorkflowFileError, match=r"note -> far|note -> a -> far"):
        load("a: {workflow: inner.yaml, with: {x: id}, when: \"note == 'x'\"}", files=files)
    with pytest.raises(WorkflowFileError, match=r"note -> .*far"):
        load(OWN % "", "a: {workflow: inner.yaml, with: {x: s}}", files=files)


def test_a_private_step_and_one_that_is_not_never_share_an_answer(load):
    """Where other models may answer it, the same question is another one; else a kept answer would tell of a condition."""
    made = load(
        "one: {task: any, prompt: 'x', when: \"'a' in note\"}",
        "two: {task: any, prompt: 'x'}",
        "own: {model: small, prompt: 'x', when: \"'a' in note\"}",
        "open: {model: small, prompt: 'x'}",
    )
    meanings = StepMeanings(CONFIG)
    one, two, own, open_ = (
        question_of(step, row="r", place=name, asked={"messages": ["x"]}, meaning=meanings.of(step)).digest
        for name, step in made.steps.items()
    )
    assert one != two
    assert own == open_
