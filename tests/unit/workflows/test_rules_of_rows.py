"""The rules of workflows that speak of steps and rows, held against graphs and tables that a generator makes."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from tests.unit.workflows.running.kit import Bench, states
from workflow_composer.errors import ServerFailed, WorkflowFileError
from workflow_composer.workflows.keeping.keys import digest_of_data

BUSY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
ENDS = ("done", "skipped", "failed")

Wanted = tuple[str, tuple[int, ...], bool]


@pytest.fixture
def bench(tmp_path):
    """Makes benches, as many as there are examples."""
    made = []

    def make(reply, **profile):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Bench(folder, reply, {"circuit_breaker": {"failures": 1000}, **profile}))
        return made[-1]

    yield make
    for one in made:
        one.orchestrator.close()


@strategies.composite
def graphs(draw):
    """For each step: how it ends if it runs, which earlier steps it reads, and whether it has a default for them."""
    count = draw(strategies.integers(2, 6))
    return [
        (
            draw(strategies.sampled_from(ENDS)),
            tuple(sorted(draw(strategies.sets(strategies.integers(0, at - 1), max_size=2)) if at else ())),
            draw(strategies.booleans()),
        )
        for at in range(count)
    ]


def text_of(graph: list[Wanted]) -> str:
    lines = ["workflow: generated", "inputs: {t: text}", "steps:"]
    for at, (end, reads, default) in enumerate(graph):
        more = " | default('none')" if default else ""
        named = " ".join(f"{{{{ s{one}{more} }}}}" for one in reads)
        when = 'when: t == "never", ' if end == "skipped" else ""
        lines.append(f'  s{at}: {{{when}prompt: "step {at}; {named}"}}')
    outputs = ", ".join(f'"s{at}": "{{{{ s{at} | default(null) }}}}"' for at in range(len(graph)))
    return "\n".join([*lines, f"output: {{{outputs}}}", ""])


def expected(graph: list[Wanted]) -> list[str]:
    """Return the states that R5 asks for."""
    found: list[str] = []
    for end, reads, default in graph:
        before = set() if default else {found[one] for one in reads}
        if before & {"failed", "not_run"}:
            state = "skipped" if end == "skipped" else "not_run"
        elif "skipped" in before:
            state = "skipped"
        else:
            state = end
        found.append(state)
    return found


@BUSY
@given(graph=graphs())
async def test_r4_and_r5_states_follow_from_needs_and_have_reasons(bench, graph):
    def reply(model, prompt):
        at = int(prompt.split()[1].rstrip(";"))
        return ServerFailed("down") if graph[at][0] == "failed" else f"answer {at}"

    made = bench(reply)
    outcome = await made.run(made.flow(text_of(graph)), t="x")
    assert list(states(outcome).values()) == expected(graph)
    asked = sum(state in ("done", "failed") for state in expected(graph))
    assert made.calls == asked
    for at, (_, reads, default) in enumerate(graph):
        result = outcome.steps[f"s{at}"]
        assert bool(result.reason) == (result.state != "done")
        if result.state == "not_run":
            assert not default
            assert any(f"s{one}" in result.reason for one in reads)


@BUSY
@given(ends=strategies.lists(strategies.sampled_from(ENDS), max_size=12), skip=strategies.booleans())
async def test_r6_a_fan_out_has_a_place_for_each_item(bench, ends, skip):
    def reply(model, prompt):
        at = int(prompt.split()[1])
        return ServerFailed("down") if ends[at] == "failed" else f"R{at}"

    made = bench(reply)
    flow = made.flow(
        f"""
        workflow: fan
        inputs: {{items: json}}
        steps:
          a:
            for_each: i in items
            when: i.end != "skipped"
            on_error: {"skip" if skip else "row"}
            prompt: "item {{{{ i.at }}}}"
          b:
            for_each: x in a
            prompt: "item {{{{ x[1:] }}}}"
        output: {{a: "{{{{ a | default(null) }}}}"}}
        """
    )
    outcome = await made.run(flow, items=[{"at": at, "end": end} for at, end in enumerate(ends)])
    values = [f"R{at}" if end == "done" else None for at, end in enumerate(ends)]
    if "failed" in ends and not skip:
        assert outcome.steps["a"].state == "failed"
        assert outcome.steps["b"].state == "not_run"
        assert outcome.output["a"] is None
    else:
        assert outcome.steps["a"].value == values
        assert outcome.steps["b"].value == values


@BUSY
@given(graph=graphs(), rows=strategies.lists(strategies.text(max_size=3), min_size=1, max_size=5))
async def test_r8_every_row_has_an_outcome_in_order(bench, graph, rows):
    def reply(model, prompt):
        at = int(prompt.split()[1].rstrip(";"))
        return ServerFailed("down") if graph[at][0] == "failed" else f"answer {at}"

    made = bench(reply)
    text = text_of(graph).replace("output: {", 'output: {row: "{{ t }}", ')
    outcomes = await made.run(made.flow(text), *({"t": t} for t in rows))
    assert [outcome.output["row"] for outcome in outcomes] == rows
    for outcome in outcomes:
        assert outcome.output.keys() == {"row", *(f"s{at}" for at in range(len(graph)))}
        assert (outcome.state == "done") == (not outcome.errors)


@BUSY
@given(graph=graphs(), changed=strategies.integers(0, 5))
async def test_r9_only_what_would_be_asked_differently_is_asked_again(bench, graph, changed):
    """The prompt of one step changes, and with it what reads it; answers follow the prompts."""
    graph = [("done", reads, default) for _, reads, default in graph]
    changed %= len(graph)
    made = bench(lambda model, prompt: digest_of_data(prompt, 8))
    text = text_of(graph)
    await made.run(made.flow(text), t="x")
    made.again()
    await made.run(made.flow(text), t="x")
    assert made.calls == 0
    made.again()
    await made.run(made.flow(text.replace(f"step {changed};", f"step {changed}!;")), t="x")
    after = {changed}
    for at, (_, reads, _) in enumerate(graph):
        if after & set(reads):
            after.add(at)
    assert sorted(prompt.split()[1].rstrip(";!") for prompt in made.prompts) == sorted(map(str, after))


@given(one=strategies.text(), other=strategies.text())
def test_r9_different_questions_have_different_digests(one, other):
    assert (digest_of_data({"messages": one}) == digest_of_data({"messages": other})) == (one == other)


@BUSY
@given(
    graph=graphs(),
    at=strategies.integers(0, 5),
    fault=strategies.sampled_from(["{{ txet }}", "{{ s99 }}", "{{ t", "{% for %}"]),
)
async def test_r12_a_fault_anywhere_is_found_before_a_call(bench, graph, at, fault):
    made = bench(lambda model, prompt: "never")
    at %= len(graph)
    text = text_of(graph).replace(f"step {at};", f"step {at}; {fault}")
    with pytest.raises(WorkflowFileError, match=r"flow\w*\.yaml:\d+: "):
        made.flow(text)
    assert made.calls == 0


@pytest.mark.parametrize("value", [None, 0, 1, "", "true", "false", [], [True], {}, {"x": 1}, 1.5])
@pytest.mark.parametrize("condition", ["j", "not j", "j and true", "true and j", "j or false"])
async def test_r7_what_is_no_truth_fails_its_step_and_nothing_runs(bench, value, condition):
    made = bench(lambda model, prompt: "ran")
    flow = made.flow(
        f"""
        workflow: truth
        inputs: {{j: json}}
        steps:
          a: {{when: {json.dumps(condition)}, prompt: "a"}}
          b: {{prompt: "b {{{{ a }}}}"}}
        output: {{b: "{{{{ b | default(null) }}}}"}}
        """
    )
    outcome = await made.run(flow, j=value)
    assert states(outcome) == {"a": "failed", "b": "not_run"}
    assert made.calls == 0


def test_the_generator_makes_all_states():
    """Each combination of a step's end and that of the step before it."""
    made = {tuple(expected([(first, (), False), (second, (0,), False)])) for first, second in itertools.product(ENDS, ENDS)}
    assert {state for pair in made for state in pair} == {*ENDS, "not_run"}
