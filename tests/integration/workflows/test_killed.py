"""A flow of five kinds of steps, killed at random moments: nothing is lost, and nothing is paid for twice but what was under
way.
"""

from __future__ import annotations

import os
import random
import re
import time

import pytest

from tests.integration.workflows.kit import DONE, killed, rows_of

ROWS = int(os.environ.get("WORKFLOW_COMPOSER_KILLED_ROWS", "60"))
KILLS = int(os.environ.get("WORKFLOW_COMPOSER_KILLS", "6"))
AT_A_TIME = 8

FLOW = """
    workflow: five
    inputs: {n: number, t: text}
    steps:
      find: {prompt: "find {{ t }}", answer: [text]}
      each:
        for_each: x in find
        prompt: "each {{ x }}"
      odd:
        when: n in [1, 3, 5, 7, 9]
        prompt: "odd {{ each }}"
      count:
        command: [python, count.py]
        with: {each: each}
        answer: number
      inner:
        workflow: inner.yaml
        with: {t: t, count: count}
    output: {n: "{{ n }}", each: "{{ each }}", odd: "{{ odd | default('') }}", count: "{{ count }}", end: "{{ inner.end }}"}
"""
INNER = """
    workflow: inner
    inputs: {t: text, count: number}
    steps:
      first: {prompt: "inner {{ t }} {{ count }}"}
      end:
        prompt: "end {{ first }}"
        accept: {judge: small, ask: "Is it an end?"}
    output: {end: "{{ end }}"}
"""
COUNT = """
import json, sys
print(len(json.load(sys.stdin)["each"]))
"""


def found(call):
    """A list; for every fifth row only after another reply was refused."""
    number = int(re.search(r"row-(\d+);", call.prompt)[1])
    if number % 5 == 0 and len(call.messages) == 1:
        return "no list comes to mind"
    return [f"row-{number}; item {item}" for item in range(number % 4)]


@pytest.fixture
def five(desk):
    desk.small.says("find", found)
    desk.small.says("Is it an end", "yes")
    desk.small.says("", lambda call: f"<{call.prompt}>")
    desk.small.delay = 0.01
    desk.table(rows_of(ROWS))
    desk.file(FLOW)
    desk.file(INNER, "inner.yaml")
    desk.file(COUNT, "count.py")
    return desk


@pytest.mark.slow
def test_a_flow_killed_at_random_moments_is_the_same(five, capsys):
    """Half of the kills come while the server holds back every answer, so that what is in flight is known exactly."""
    arguments = ("--concurrency", str(AT_A_TIME))
    undisturbed = five.copy("undisturbed").run(*arguments).ended(DONE).output.read_bytes()
    needed = five.calls
    five.reset()
    chance = random.Random(20)
    held = 0
    for number, moment in enumerate(sorted(chance.sample(range(1, needed - 12 * AT_A_TIME), KILLS))):
        process = five.running(*arguments)
        five.small.wait_for(max(moment, five.calls + 1), seconds=120)
        if number % 2:
            five.small.hold()
            before = five.small.unanswered
            five.small.wait_until(lambda before=before: five.small.unanswered - before == AT_A_TIME, seconds=120)
            held += AT_A_TIME
        else:
            time.sleep(chance.uniform(0, 0.05))  # a moment within an answer, not only that of its request
        killed(process)
        five.small.release()
    ran = five.run(*arguments).ended(DONE)
    assert ran.output.read_bytes() == undisturbed
    at_random = (KILLS + 1) // 2
    assert needed + held <= five.calls <= needed + held + at_random * AT_A_TIME
    with capsys.disabled():
        print(f"\n{ROWS} rows, {KILLS} kills: {needed} calls needed, {held} held back at kills, {five.calls} made")
