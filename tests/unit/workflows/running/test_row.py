"""Steps of a row: states, reasons, lists, loops, and what is kept."""

import json

import pytest

from tests.unit.workflows.running.kit import states, values
from workflow_composer.errors import ServerFailed
from workflow_composer.workflows.running.world import StopSign


async def test_values_flow_from_step_to_step(bench):
    made = bench(lambda model, prompt: "{{ t }} {% if %}" if "describe" in prompt else "ok")
    flow = made.flow(
        """
        workflow: two
        inputs: {t: text}
        steps:
          a: {prompt: "describe {{ t }}"}
          b: {prompt: "check: {{ a }}"}
        output: {t: "{{ t }}", b: "{{ b }}"}
        """
    )
    outcome = await made.run(flow, t="x")
    assert made.prompts == ["describe x", "check: {{ t }} {% if %}"]
    assert (outcome.state, outcome.output, outcome.errors) == ("done", {"t": "x", "b": "ok"}, ())


SKIPPING = """
    workflow: skipping
    inputs: {n: number}
    steps:
      a: {when: n > 1, prompt: "A"}
      b: {prompt: "B {{ a }}"}
      c: {prompt: "C {{ a | default('none') }}"}
      d: {when: a is done or n < 0, prompt: "D {{ b }}"}
      e: {prompt: "E"}
    output: {a: "{{ a }}", b: "{{ b }}", c: "{{ c }}", e: "{{ e }}"}
"""


async def test_what_needs_a_skipped_step_is_skipped_and_says_so(bench):
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(SKIPPING), n=1)
    assert states(outcome) == {"a": "skipped", "b": "skipped", "c": "done", "d": "skipped", "e": "done"}
    assert outcome.steps["b"].reason == "needs a, which was skipped"
    assert outcome.output == {"a": None, "b": None, "c": "C none", "e": "E"}
    assert (outcome.state, outcome.errors) == ("done", ())
    assert (await made.run(made.flow(SKIPPING), n=2)).output["b"] == "B A"


async def test_what_needs_a_failed_step_is_not_run(bench):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "A" else prompt)
    outcome = await made.run(made.flow(SKIPPING), n=2)
    assert states(outcome) == {"a": "failed", "b": "not_run", "c": "done", "d": "skipped", "e": "done"}
    assert outcome.steps["b"].reason == "needs a, which failed"
    assert outcome.state == "failed"
    assert [error.split(":")[0] for error in outcome.errors] == ["a", "b"]


@pytest.mark.parametrize(
    ("trouble", "state", "after", "row"),
    [
        ("row", "failed", "not_run", "failed"),
        ("skip", "skipped", "skipped", "partial"),
        ("{default: nothing}", "done", "done", "done"),
        ("stop", "failed", "not_run", "failed"),
    ],
)
async def test_on_error(bench, trouble, state, after, row):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "A" else prompt)
    flow = made.flow(
        f"""
        workflow: trouble
        steps:
          a: {{prompt: "A", on_error: {trouble}}}
          b: {{prompt: "B {{{{ a }}}}"}}
        output: {{b: "{{{{ b }}}}"}}
        """
    )
    world = made.world()
    outcome = await made.run(flow, world=world)
    assert states(outcome) == {"a": state, "b": after}
    assert outcome.state == row
    assert outcome.errors
    assert world.stopped.is_set() == (trouble == "stop")
    if state == "done":
        assert outcome.steps["a"].origin == "default"
        assert outcome.output == {"b": "B nothing"}


@pytest.mark.parametrize(
    ("condition", "state"),
    [
        ("a.flag", "failed"),
        ("a.score > 5", "failed"),
        ('a.tags == "x"', "failed"),
        ('a.flag == "true"', "skipped"),
        ("not a.tags", "failed"),
        ('a.flag == "false"', "done"),
    ],
)
async def test_a_condition_is_true_or_false(bench, condition, state):
    answer = json.dumps({"flag": "false", "score": "10", "tags": {"x": 1}})
    made = bench(lambda model, prompt: answer if prompt.startswith("A") else "ran")
    flow = made.flow(
        f"""
        workflow: conditions
        steps:
          a: {{prompt: A, answer: {{flag: text, score: text, tags: {{x: number}}}}}}
          b: {{when: '{condition}', prompt: B}}
        output: {{b: "{{{{ b }}}}"}}
        """
    )
    outcome = await made.run(flow)
    assert states(outcome)["b"] == state
    assert made.calls == 1 + (state == "done")


FAN = """
    workflow: fan
    inputs: {items: json}
    steps:
      a: {for_each: x in items, prompt: "{{ x }}"%s}
      b: {for_each: y in a, prompt: "again {{ y }}"}
      c: {prompt: "all {{ a }}"}
      d: {prompt: "done {{ a | done }}"}
    output: {a: "{{ a }}", b: "{{ b }}", d: "{{ d }}"}
"""


SKIPPED_ITEMS = """
    workflow: items
    inputs: {items: json}
    steps:
      a: {for_each: x in items, prompt: "{{ x }}", on_error: %s}
    output: {a: "{{ a }}"}
"""


@pytest.mark.parametrize(("trouble", "value", "state"), [("skip", None, "partial"), ("{default: D}", "D", "done")])
async def test_a_row_says_which_items_are_null_or_a_default(bench, trouble, value, state):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "q" else prompt)
    outcome = await made.run(made.flow(SKIPPED_ITEMS % trouble), items=["p", "q", "r"])
    assert (outcome.output["a"], outcome.state) == (["p", value, "r"], state)
    (error,) = outcome.errors
    assert "item 2 of 3: " in error


async def test_an_error_of_the_journal_is_the_runs(bench):
    """It is raised as it is, also out of a list, and nothing goes on meanwhile."""

    class Full(Exception):
        pass

    made = bench(lambda model, prompt: prompt)

    def keep(question, answer):
        raise Full

    made.keeper.keep = keep
    with pytest.raises(Full):
        await made.run(made.flow(SKIPPED_ITEMS % "skip"), items=["p", "q", "r"])


async def test_an_empty_prompt_is_not_sent(bench):
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(SKIPPED_ITEMS % "row"), items=[" ", "x"])
    assert outcome.steps["a"].reason == "item 1 of 2: the prompt is empty"
    assert made.prompts == ["x"]


async def test_an_empty_list_is_done(bench):
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(FAN % ""), items=[])
    assert states(outcome) == dict.fromkeys("abcd", "done")
    assert (values(outcome)["a"], values(outcome)["b"], made.prompts) == ([], [], ["all []", "done []"])


async def test_an_item_that_fails_fails_the_step_and_keeps_the_others(bench):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "q" else prompt.upper())
    outcome = await made.run(made.flow(FAN % ""), items=["p", "q", "r"])
    assert states(outcome) == {"a": "failed", "b": "not_run", "c": "not_run", "d": "not_run"}
    assert outcome.steps["a"].reason.startswith("item 2 of 3: ")
    made.again()
    made.reply = lambda model, prompt: prompt.upper()
    assert (await made.run(made.flow(FAN % ""), items=["p", "q", "r"])).output["a"] == ["P", "Q", "R"]
    assert "p" not in made.prompts
    assert made.prompts[0] == "q"


async def test_items_that_fail_may_be_null(bench):
    made = bench(lambda model, prompt: ServerFailed("down") if prompt == "q" else prompt.upper())
    outcome = await made.run(made.flow(FAN % ", on_error: skip"), items=["p", "q", "r"])
    assert values(outcome)["a"] == ["P", None, "R"]
    assert values(outcome)["b"] == ["AGAIN P", None, "AGAIN R"]
    assert outcome.steps["c"].state == "failed"
    assert "item 2 is missing" in outcome.steps["c"].reason
    assert 'done ["P", "R"]' in made.prompts


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("BRCA1", "a list is needed"),
        ({"a": 1}, "a list is needed"),
        (None, "a list is needed"),
        (["a"] * 12, "12 items, and at most 10"),
    ],
)
async def test_what_is_no_list_or_too_long_fails(bench, items, said):
    made = bench(lambda model, prompt: prompt)
    outcome = await made.run(made.flow(FAN % ", at_most: 10"), items=items)
    assert outcome.steps["a"].state == "failed"
    assert said in outcome.steps["a"].reason
    assert made.calls == 0


async def test_a_condition_that_names_the_item_is_asked_for_each(bench):
    made = bench(lambda model, prompt: prompt)
    flow = made.flow(
        """
        workflow: each
        inputs: {items: json}
        steps:
          a: {for_each: x in items, when: x > 1, prompt: "{{ x }}"}
        output: {a: "{{ a }}"}
        """
    )
    assert (await made.run(flow, items=[1, 2, 3])).output["a"] == [None, "2", "3"]


async def test_lists_within_lists(bench):
    made = bench(lambda model, prompt: prompt)
    flow = made.flow(
        """
        workflow: nested
        inputs: {teams: json}
        steps:
          t:
            for_each: team in teams
            steps:
              m: {for_each: member in team.m, prompt: "{{ team.n }}-{{ member }}"}
              n: {prompt: "{{ team.n }} has {{ m | length }}"}
        output: {names: "{{ t.m }}", n: "{{ t.n }}"}
        """
    )
    teams = [{"n": "A", "m": ["x", "y"]}, {"n": "B", "m": []}, {"n": "C", "m": ["z"]}]
    outcome = await made.run(flow, teams=teams)
    assert outcome.output == {"names": [["A-x", "A-y"], [], ["C-z"]], "n": ["A has 2", "B has 0", "C has 1"]}
    places = {question.place for question, _ in made.keeper.answers}
    assert places == {"t[0].m[0]", "t[0].m[1]", "t[2].m[0]", "t[0].n", "t[1].n", "t[2].n"}


async def test_inner_steps_of_different_items_do_not_wait_for_each_other(bench):
    """The first item's first step ends only after the second item's last step has begun."""
    import asyncio

    begun = asyncio.Event()

    def reply(model, prompt):
        async def late(call):
            await begun.wait()
            return prompt

        def last(call):
            begun.set()
            return prompt

        return late if prompt == "one 0" else last if prompt == "two 1" else prompt

    made = bench(reply)
    flow = made.flow(
        """
        workflow: streams
        steps:
          t:
            for_each: x in [0, 1]
            steps:
              one: {prompt: "one {{ x }}"}
              two: {prompt: "two {{ x }}", when: one is done}
        output: {t: "{{ t.two }}"}
        """
    )
    async with asyncio.timeout(20):
        assert (await made.run(flow)).output == {"t": ["two 0", "two 1"]}


async def test_a_step_is_repeated_until_its_condition_holds(bench):
    replies = iter("123")
    made = bench(lambda model, prompt: next(replies))
    text = """
        workflow: until
        steps:
          a: {prompt: "more than {{ a | default('nothing') }}", until: a == "3", at_most: %d}
        output: {a: "{{ a }}", tries: "{{ a._attempts }}"}
    """
    outcome = await made.run(made.flow(text % 5))
    assert made.prompts == ["more than nothing", "more than 1", "more than 2"]
    assert outcome.output == {"a": "3", "tries": 3}
    made.again()
    outcome = await made.run(made.flow(text % 2))
    assert (outcome.steps["a"].state, made.calls) == ("failed", 0)
    assert "after 2 times" in outcome.steps["a"].reason


async def test_a_workflow_within_a_workflow(bench, tmp_path):
    (tmp_path / "inner.yaml").write_text(
        "workflow: inner\ninputs: {t: text}\n"
        'steps: {x: {prompt: "x {{ t }}"}, y: {prompt: "y {{ x }}"}}\noutput: {y: "{{ y }}"}\n'
    )
    made = bench(lambda model, prompt: prompt)
    flow = made.flow(
        """
        workflow: outer
        inputs: {t: text}
        steps:
          call: {workflow: inner.yaml, with: {t: t}}
          last: {prompt: "last {{ call.y }}"}
        output: {last: "{{ last }}"}
        """
    )
    outcome = await made.run(flow, t="1")
    assert outcome.output == {"last": "last y x 1"}
    assert [question.place for question, _ in made.keeper.answers] == ["call/x", "call/y", "last"]
    made.reply = lambda model, prompt: ServerFailed("down") if prompt.startswith("y") else prompt
    outcome = await made.run(flow, t="2")
    assert states(outcome) == {"call": "failed", "last": "not_run"}
    assert outcome.steps["call"].reason.startswith("y: ")


async def test_nothing_is_asked_twice(bench):
    made = bench(lambda model, prompt: f"answer {made.calls}")
    flow = made.flow(
        """
        workflow: kept
        steps:
          v: {prompt: same, temperature: 0.7}
          w: {prompt: same, temperature: 0.7}
          a: {prompt: "{{ v }} {{ w }}"}
        output: {a: "{{ a }}"}
        """
    )
    first = await made.run(flow)
    made.again()
    second = await made.run(flow)
    assert first.output == second.output
    assert made.calls == 0
    assert {result.origin for result in second.steps.values()} == {"kept"}
    assert second.steps["v"].value != second.steps["w"].value


async def test_a_stopped_run_begins_nothing(bench):
    made = bench(lambda model, prompt: prompt)
    flow = made.flow('workflow: w\nsteps: {a: {prompt: A}, b: {prompt: "B {{ a }}"}}\noutput: {b: "{{ b }}"}\n')
    sign = StopSign()
    sign.stop("stopped by hand")
    outcome = await made.run(flow, world=made.world(stopped=sign))
    assert (outcome.state, made.calls) == ("stopped", 0)
    assert outcome.steps["a"].reason == "stopped by hand"
    assert not made.keeper.failures


HUMAN = """
    workflow: human
    steps:
      a: {prompt: A}
      h: {human: "Is {{ a }} right?", answer: ["yes", "no"]%s}
      c: {prompt: "C {{ h }}"}
    output: {c: "{{ c }}"}
"""


async def test_a_person_is_waited_for(bench):
    from workflow_composer.workflows.keeping.answers import KeptAnswer

    made = bench(lambda model, prompt: prompt)
    flow = made.flow(HUMAN % "")
    outcome = await made.run(flow)
    assert (outcome.state, states(outcome)) == ("waiting", {"a": "done", "h": "waiting", "c": "waiting"})
    question, text = made.people.open["h"]
    assert text == "Is A right?"
    made.keeper.keep(question, KeptAnswer(value="yes", facts={"person": True}))
    made.again()
    outcome = await made.run(flow)
    assert (outcome.output, outcome.steps["h"].origin, made.calls) == ({"c": "C yes"}, "person", 1)


@pytest.mark.parametrize(("then", "state", "output"), [("no", "done", "C no"), ("fail", "failed", None)])
async def test_waiting_for_a_person_may_have_an_end(bench, then, state, output):
    made = bench(lambda model, prompt: prompt)
    flow = made.flow(HUMAN % f", waits: {{at_most: 7d, then: {then}}}")
    outcome = await made.run(flow, world=made.world(now=lambda: 1000.0 + 6 * 86400))
    assert outcome.state == "waiting"
    outcome = await made.run(flow, world=made.world(now=lambda: 1000.0 + 8 * 86400))
    assert (outcome.steps["h"].state, outcome.output["c"]) == (state, output)


async def test_rows_with_faulty_inputs_fail_before_anything_is_asked(bench):
    from tests.unit.workflows.running.kit import Row
    from workflow_composer.workflows.running.row import run_row

    made = bench(lambda model, prompt: prompt)
    flow = made.flow('workflow: w\ninputs: {n: number}\nsteps: {a: {prompt: "{{ n }}"}}\noutput: {a: "{{ a }}"}\n')
    outcome = await run_row(flow, Row("r", {"n": None}, "n: a number is needed, found a text"), made.world())
    assert (outcome.state, outcome.output, made.calls) == ("failed", {"a": None}, 0)
