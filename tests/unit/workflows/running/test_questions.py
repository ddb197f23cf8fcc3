"""One question of a step: forms, checks, releases, programs, and limits of time and money."""

import asyncio
import math

import pytest

from tests.unit.workflows.running.kit import states
from workflow_composer.backends.fake import Delay
from workflow_composer.errors import BadRequest, BudgetExceeded, ContextOverflow, RunBudgetReached
from workflow_composer.execution.reservation import Budget, Reservation
from workflow_composer.types import Sample

ONE = 'workflow: one\ninputs: {t: text, note: private}\nsteps:\n  a: {prompt: "A {{ t }}", %s}\noutput: {a: "{{ a }}"}\n'
NOTE = 'workflow: one\ninputs: {t: text, note: private}\nsteps:\n  a: {prompt: "A {{ note }}", %s}\noutput: {a: "{{ a }}"}\n'
TWO_TIERS = {"tiers": {"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 9.0}}}
UP = "model: mv_cascade_small_k1_t0.0_large_k1_t0.0, "


async def test_what_is_wrong_goes_back_and_then_the_next_model_gets_the_question_alone(bench):
    replies = iter(["unknown", "about forty", "[]"])
    made = bench(
        lambda model, prompt: next(replies) if model == "small" else '{"age": 41}',
        **TWO_TIERS,
        routers=["cascade", "cascading_provider"],
    )
    outcome = await made.run(made.flow(ONE % (UP + "answer: {age: number}")), t="x", note="")
    result = outcome.steps["a"]
    assert result.reason == ""
    assert (result.value, result.attempts, result.model) == ({"age": 41}, 4, "large")
    assert len(result.counts["refused"]) == 3
    assert [len(messages) for messages in made.messages] == [1, 3, 3, 1]
    assert made.messages[2][1]["content"] == "about forty"


async def test_when_nothing_has_the_form_the_step_fails_and_keeps_the_last_reply(bench):
    made = bench(lambda model, prompt: "hm" * made.calls)
    outcome = await made.run(made.flow(ONE % "answer: number, retries: 1"), t="x", note="")
    result = outcome.steps["a"]
    assert (result.state, result.kind, result.attempts, result.value) == ("failed", "invalid", 2, None)
    (_, kind, facts), *rest = made.keeper.failures
    assert (kind, facts["reply"], facts["calls"], rest) == ("invalid", "hmhm", 2, [])
    assert not made.keeper.answers


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        ("", "empty", "empty"),
        (Sample("half", "length"), "cut_off", "cut off at 1 tokens"),
        (Sample("", "content_filter"), "refused", "withheld"),
        (BadRequest("the value secret is bad"), "refused", "secret"),
        (ContextOverflow("30,632 tokens where 30,000 fit"), "too_long", "30,632"),
        (Delay(5.0, "late"), "timeout", ""),
    ],
)
async def test_why_a_step_failed_is_told_by_kind(bench, reply, kind, said):
    made = bench(lambda model, prompt: reply)
    outcome = await made.run(made.flow(ONE % "retries: 0, timeout: 1s"), t="x", note="")
    result = outcome.steps["a"]
    assert (result.state, result.kind) == ("failed", kind)
    assert said in result.reason


@pytest.mark.parametrize(
    ("reply", "form"),
    [
        (BadRequest("the request was: A SSN 123-45-6789 Ann Lee"), "text"),
        ("Ann Lee", "number"),
        ('{"Ann": 1}', "{age: number}"),
    ],
)
async def test_what_private_data_was_read_for_is_told_without_it(bench, reply, form):
    made = bench(lambda model, prompt: reply)
    outcome = await made.run(made.flow(NOTE % f"answer: {form}, retries: 0"), t="", note="SSN 123-45-6789 Ann Lee")
    assert outcome.steps["a"].state == "failed"
    (error,) = outcome.errors
    assert error
    assert not any(word in error for word in ("123-45", "Ann", "SSN"))


async def test_an_answer_is_checked_by_a_function_and_its_words_go_back(bench, tmp_path):
    (tmp_path / "checks.py").write_text("def even(value):\n    return None if value % 2 == 0 else f'{value} is odd'\n")
    replies = iter(["1", "3", "4"])
    made = bench(lambda model, prompt: next(replies))
    flow = made.flow(ONE % 'answer: number, accept: {python: "checks:even"}')
    outcome = await made.run(flow, t="x", note="")
    assert outcome.output == {"a": 4}
    assert ["3 is odd" in messages[-1]["content"] for messages in made.messages] == [False, False, True]
    made.again()
    assert ((await made.run(flow, t="x", note="")).output, made.calls) == ({"a": 4}, 0)


async def test_a_judge_is_asked_and_paid(bench):
    made = bench(lambda model, prompt: ("yes" if "good" in prompt else "no") if model == "large" else f"good {made.calls}")
    flow = made.flow(ONE % 'model: small, accept: {judge: large, ask: "Is it good? {{ a }}"}')
    outcome = await made.run(flow, t="x", note="")
    assert outcome.output == {"a": "good 1"}
    assert made.prompts[1].startswith("Is it good? good 1")
    assert outcome.steps["a"].counts["judged"] == 1


RELEASED = """
    workflow: released
    inputs: {note: private}
    steps:
      clean: {prompt: "clean {{ note }}", release: %s}
      after: {prompt: "after {{ clean }}"}
    output: {after: "{{ after }}"}
"""
CHECK = "{check: {command: [python, find.py]}}"


@pytest.mark.parametrize(
    ("program", "state", "after"),
    [
        ("import sys; sys.exit('Ann' in sys.stdin.read())", "done", "done"),
        ("import sys; sys.exit('60' in sys.stdin.read())", "withheld", "not_run"),
        ("raise SystemError", "withheld", "not_run"),
    ],
)
async def test_a_value_is_released_by_a_check_or_withheld(bench, tmp_path, program, state, after):
    (tmp_path / "find.py").write_text(program)
    made = bench(lambda model, prompt: "a patient, 60")
    outcome = await made.run(made.flow(RELEASED % CHECK), note="Ann Lee, 60")
    assert states(outcome) == {"clean": state, "after": after}
    assert outcome.steps["clean"].value == ("a patient, 60" if state == "done" else None)
    assert outcome.state == ("done" if state == "done" else "partial")
    assert made.calls == (2 if state == "done" else 1)
    assert bool(outcome.errors) == (state != "done")


async def test_a_check_that_cannot_run_releases_nothing(bench):
    made = bench(lambda model, prompt: "a patient, 60")
    flow = made.flow(RELEASED % "{check: {command: [no-such-program-here]}}")
    outcome = await made.run(flow, note="Ann Lee, 60")
    assert states(outcome) == {"clean": "withheld", "after": "not_run"}


async def test_a_person_releases(bench):
    from workflow_composer.workflows.keeping.answers import KeptAnswer

    made = bench(lambda model, prompt: prompt)
    flow = made.flow(RELEASED % "human")
    outcome = await made.run(flow, note="n")
    assert (outcome.state, states(outcome)) == ("waiting", {"clean": "waiting", "after": "waiting"})
    question, _ = made.people.open["clean!release"]
    made.keeper.keep(question, KeptAnswer(value="yes", facts={"person": True}))
    made.again()
    outcome = await made.run(flow, note="n")
    assert (outcome.output, made.calls) == ({"after": "after clean n"}, 1)


PROGRAMS = """
    workflow: programs
    inputs: {n: number}
    steps:
      c: {command: [python, double.py], with: {n: n}%s}
      p: {python: "own:plus", with: {n: c}}
    output: {p: "{{ p }}"}
"""


async def test_programs_and_functions_have_values(bench, tmp_path):
    (tmp_path / "double.py").write_text("import json, sys; print(2 * json.load(sys.stdin)['n'])")
    (tmp_path / "own.py").write_text("def plus(n):\n    return {'n': n + 1}\n")
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(PROGRAMS % ""), n=4)
    assert outcome.output == {"p": {"n": 9}}
    assert (outcome.steps["c"].attempts, outcome.steps["c"].cost) == (1, 0.0)


@pytest.mark.parametrize(
    ("program", "answer", "kind", "said"),
    [
        ("import sys; sys.exit('no such thing')", "", "program", "no such thing"),
        ("print('many')", ", answer: number", "invalid", "not one number"),
        ("import time; time.sleep(60)", ", limits: {time: 1s}", "program", "too long"),
    ],
)
async def test_a_program_that_fails_says_why(bench, tmp_path, program, answer, kind, said):
    (tmp_path / "double.py").write_text(program)
    (tmp_path / "own.py").write_text("def plus(n):\n    return n\n")
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(PROGRAMS % answer), n=4)
    assert states(outcome) == {"c": "failed", "p": "not_run"}
    assert outcome.steps["c"].kind == kind
    assert said in outcome.steps["c"].reason


async def test_a_prompt_that_cannot_fit_is_not_sent(bench):
    made = bench(lambda model, prompt: "ok")
    made.room = 30_000
    outcome = await made.run(made.flow(ONE % "retries: 0"), t="word " * 30_632, note="")
    assert (outcome.steps["a"].kind, made.calls) == ("too_long", 0)
    assert "30,633" in outcome.steps["a"].reason
    assert "30,000" in outcome.steps["a"].reason


async def test_a_rows_time_limit_ends_its_steps(bench):
    made = bench(lambda model, prompt: Delay(30.0, "late") if "slow" in prompt else "ok")
    flow = made.flow(
        'workflow: w\ndeadline: {row: 1s}\nsteps: {a: {prompt: fast}, b: {prompt: slow}}\noutput: {a: "{{ a }}"}\n'
    )
    outcome = await made.run(flow)
    assert states(outcome) == {"a": "done", "b": "failed"}
    assert (outcome.steps["b"].kind, outcome.state) == ("timeout", "done")  # the output does not read b


class OneBudget:
    """A purse of one budget."""

    def __init__(self, limit):
        self.budget = Budget(limit)

    def part(self, limit):
        return self

    def begin(self):
        if self.budget.room <= 0:
            raise RunBudgetReached("the run's budget is used up")
        return Reservation(self.budget)


async def test_the_purse_is_settled_with_what_was_spent_and_the_end_of_the_budget_stops_the_run(bench):
    made = bench(lambda model, prompt: "four words of answer")
    flow = made.flow('workflow: w\nsteps: {a: {prompt: A}, b: {prompt: "B {{ a }}"}}\noutput: {b: "{{ b }}"}\n')
    purse = OneBudget(math.inf)
    world = made.world(purse=purse)
    await made.run(flow, world=world)
    assert purse.budget.held == 0
    made.keeper.__init__()
    purse = OneBudget(0.0)
    world = made.world(purse=purse)
    outcome = await made.run(flow, world=world)
    assert (outcome.state, world.stopped.is_set(), world.stopped.why) == ("stopped", True, "the run's budget is used up")
    assert [(result.state, result.kind) for result in outcome.steps.values()] == [("not_run", "stopped")] * 2
    assert not made.keeper.failures


async def test_the_rows_own_budget_fails_its_step(bench):
    made = bench(lambda model, prompt: BudgetExceeded("the row's budget is used up"))
    outcome = await made.run(made.flow(ONE % "retries: 0"), t="x", note="")
    assert (outcome.steps["a"].state, outcome.steps["a"].kind) == ("failed", "budget")


async def test_calls_of_one_row_begin_in_order_one_at_a_time(bench):
    """With room for one call, the order of the calls does not depend on how long each takes."""
    made = bench(lambda model, prompt: Delay(0.001 * (int(prompt) % 3), prompt))
    made.limit = asyncio.Semaphore(1)
    flow = made.flow(
        'workflow: w\ninputs: {n: json}\nsteps: {a: {for_each: x in n, prompt: "{{ x }}"}}\noutput: {a: "{{ a }}"}\n'
    )
    outcome = await made.run(flow, n=list(range(200)))
    assert made.prompts == [str(n) for n in range(200)]
    assert outcome.output == {"a": [str(n) for n in range(200)]}
