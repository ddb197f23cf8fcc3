"""Answers with a form: what costs nothing is mended, what is wrong is asked again, and nothing wrong goes on."""

from __future__ import annotations

import re

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, rows_of
from tests.integration.workflows.scripted import Said

CODE = """
    workflow: wrapped
    inputs: {t: text}
    steps:
      a:
        prompt: "make {{ t }}"
        answer: {code: text, n: number}
    output: {code: "{{ a.code }}", n: "{{ a.n }}"}
"""


def test_g8_a_reply_wrapped_in_talk_costs_no_second_call(desk):
    desk.small.says("row-1;", '```json\n{"code": "use `print`", "n": 1}\n```')
    desk.small.says("row-2;", 'Here is the `result`: {"code": "a}b", "n": 2} Hope it helps')
    desk.small.says("row-3;", '```sh\nls\n```\nand now\n```json\n{"code": "c", "n": 3}\n```')
    desk.small.says("row-4;", '\ufeff\n\n{"code": "d", "n": 4}\n\n')
    desk.small.says("row-5;", '<think>perhaps {"n": 99}, or not</think>\n{"code": "e", "n": 5}')
    desk.table(rows_of(5))
    desk.file(CODE)
    ran = desk.run().ended(DONE)
    assert ran.column("n") == [1, 2, 3, 4, 5]
    assert ran.column("code") == ["use `print`", "a}b", "c", "d", "e"]
    assert desk.calls == 5


AGE = """
    workflow: age
    inputs: {t: text}
    steps:
      a:
        model: mv_cascade_small_k1_t0.0_large_k1_t0.0
        prompt: "how old is {{ t }}"
        answer: {age: number}
        retries: 2
      b: {prompt: "so {{ a.age }}"}
    output:
      age: "{{ a.age | default(null) }}"
      attempts: "{{ a._attempts }}"
      cost: "{{ a._cost }}"
      b: "{{ b | default(null) }}"
"""
WRONG_AGES = ('{"age": "unknown"}', '{"age": "about forty"}', '{"age": []}')


def test_g9_the_error_goes_back_then_the_stronger_model_without_the_earlier_mess(desk):
    for model in (desk.small, desk.large):
        model.tokens = 1000
    desk.small.says("how old", *WRONG_AGES)
    desk.large.says("how old", '{"age": 41}')
    desk.table([{"t": "x"}])
    desk.file(AGE)
    ran = desk.run().ended(DONE)
    first, second, third = desk.small.asked("how old")
    assert "unknown" not in first.text
    for call, reply in ((second, WRONG_AGES[0]), (third, WRONG_AGES[1])):
        assert reply in call.text
        assert re.search(r"age.*number", call.messages[-1][1])
    assert WRONG_AGES[0] not in third.text
    (strong,) = desk.large.asked("how old")
    assert strong.messages == first.messages
    (row,) = ran.rows
    assert (row["age"], row["attempts"]) == (41, 4)
    assert row["cost"] == pytest.approx(4 * 1000 / 1e6)
    assert ran.steps["a"]["calls"] == 4
    assert sum(ran.steps["a"]["asked_again"].values()) >= 2


def test_g9_when_the_stronger_model_fails_too_nothing_invalid_goes_on(desk):
    desk.small.says("how old", *WRONG_AGES)
    desk.large.says("how old", '{"age": "x"}', '{"age": "y"}', '{"age": "last"}')
    desk.table([{"t": "x"}])
    desk.file(AGE)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.small.count("so ") == 0
    (row,) = ran.rows
    assert (row["age"], row["b"]) == (None, None)
    assert row["_state"] != "done"
    assert re.search(r"\ba\b.*age", ran.errors(1))
    assert desk.large.count() == 3


def test_a_server_that_fails_when_it_is_asked_once_more_is_asked_at_the_next_start(desk):
    """The wrong form is not the last word: what failed is the server."""
    desk.small.says("how old", WRONG_AGES[0], Said(status=503), '{"age": 41}')
    desk.table([{"t": "x"}])
    desk.file(ONE_AGE)
    first = desk.run().ended(SOME_FAILED)
    assert "503" in first.errors(1) or "asked again" in first.errors(1)
    assert desk.run().ended(DONE).column("age") == [41]
    assert desk.small.count() == 3


ONE_AGE = """
    workflow: age
    inputs: {t: text}
    steps:
      a: {prompt: "how old {{ t }}", answer: {age: number}}
    output: {age: "{{ a.age | default(null) }}"}
"""


def test_of_a_vote_a_reply_that_was_cut_off_behind_its_json_counts(desk):
    """Three samples say the same and then go on until their limit."""
    desk.small.says("how old", Said('{"age": 41}\n\nThat is because', finish="length", tokens=50))
    desk.table([{"t": "x"}])
    desk.file(ONE_AGE.replace("answer:", "model: mv_small_k3_t0.7, answer:"))
    ran = desk.run().ended(DONE)
    assert ran.column("age") == [41]
    assert desk.draws == 3


ITEMS = """
    workflow: cut
    inputs: {t: text}
    steps:
      a:
        prompt: "make {{ t }}"
        answer: {items: [text]}
        tokens: 50
        retries: 0
    output: {items: "{{ a.items | default(null) }}"}
"""
CUT = Said('{"items": ["a", "b', finish="length", tokens=50)


def test_g10_a_cut_off_reply_is_not_invalid_json(desk):
    def reply(call):
        return {"items": ["a", "b", "c"]} if call.limit > 50 else CUT

    desk.small.says("make", reply)
    desk.table([{"t": "x"}])
    desk.file(ITEMS)
    ran = desk.run().ended(DONE)
    first, second = desk.small.calls
    assert first.limit == 50
    assert second.limit > 50
    assert second.messages == first.messages
    assert ran.column("items") == [["a", "b", "c"]]


def test_g10_at_the_models_own_limit_it_fails_as_cut_off(desk):
    desk.small.says("make", lambda call: Said(CUT.text, finish="length", tokens=call.limit))
    desk.table([{"t": "x"}])
    desk.file(ITEMS)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.calls == 2
    assert re.search(r"cut.off", ran.errors(1))
    assert str(desk.small.calls[-1].limit) in ran.errors(1).replace(",", "")


def test_g10_a_complete_reply_is_accepted_whatever_its_reason_says(desk):
    desk.small.says("make", Said({"items": ["a"]}, finish="length"))
    desk.table([{"t": "x"}])
    desk.file(ITEMS)
    assert desk.run().ended(DONE).column("items") == [["a"]]
    assert desk.calls == 1


def test_g11_words_near_a_choice(desk):
    replies = ["Benign.", "**pathogenic**", "\nunclear \n", "The answer is: benign", "not pathogenic", "benign or unclear"]
    for number, reply in enumerate(replies, 1):
        desk.small.says(f"row-{number};", reply, "unclear")
    desk.table(rows_of(6))
    desk.file("""
        workflow: choice
        inputs: {t: text}
        steps:
          a:
            prompt: "which is {{ t }}"
            answer: [pathogenic, benign, unclear]
        output: {a: "{{ a }}"}
    """)
    ran = desk.run().ended(DONE)
    assert ran.column("a") == ["benign", "pathogenic", "unclear", "benign", "unclear", "unclear"]
    assert [desk.small.count(f"row-{n};") for n in range(1, 7)] == [1, 1, 1, 1, 2, 2]
    for number in (5, 6):
        again = desk.small.asked(f"row-{number};")[1]
        assert all(word in again.text for word in ("pathogenic", "benign", "unclear"))


def test_g12_the_reply_that_repeats_the_form(desk):
    desk.small.says("decide", {"run_review": {"type": "string", "enum": ["true", "false"]}}, {"run_review": "true"})
    desk.table([{"t": "x"}])
    later = "".join(
        f"""
          r{n}:
            when: a.run_review == "true"
            prompt: "review {n}"
        """
        for n in range(5)
    )
    outputs = ", ".join(f'r{n}: "{{{{ r{n} }}}}"' for n in range(5))
    desk.file(f"""
        workflow: echo
        inputs: {{t: text}}
        steps:
          a:
            prompt: "decide {{{{ t }}}}"
            answer: {{run_review: ["true", "false"]}}
        {later}
        output: {{{outputs}}}
    """)
    ran = desk.run().ended(DONE)
    assert desk.small.count("decide") == 2
    assert desk.small.count("review ") == 5
    assert ran.states == ["done"]
    assert ran.rows[0]["r4"] is not None


def test_g13_an_empty_reply_is_no_answer_and_is_never_remembered(desk):
    desk.small.says("say", "", "fine")
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: empty
        inputs: {t: text}
        steps:
          a: {prompt: "say {{ t }}", retries: 0}
        output: {a: "{{ a }}"}
    """)
    ran = desk.run().ended(SOME_FAILED)
    assert desk.calls == 1
    assert ran.column("a") == [None]
    assert ran.summary["done"] == 0
    assert ran.steps["a"]["failed"] == 1
    again = desk.run().ended(DONE)
    assert desk.calls == 2
    assert again.column("a") == ["fine"]


def test_g13_a_reply_of_another_form_is_asked_again_only_on_demand(desk):
    desk.small.says("count", "many", "12")
    desk.table([{"t": "x"}])
    desk.file("""
        workflow: bad
        inputs: {t: text}
        steps:
          a: {prompt: "count {{ t }}", answer: number, retries: 0}
        output: {a: "{{ a }}"}
    """)
    desk.run().ended(SOME_FAILED)
    assert desk.run().ended(SOME_FAILED).column("a") == [None]
    assert desk.calls == 1
    assert desk.run("--retry", "invalid").ended(DONE).column("a") == [12]
    assert desk.calls == 2
