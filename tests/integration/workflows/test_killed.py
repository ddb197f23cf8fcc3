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
      end: {prompt: "end {{ first }}"}
    output: {end: "{{ end }}"}
"""
COUNT = """
import json, sys
print(len(json.load(sys.stdin)["each"]))
"""


def items(call):
    number = int(re.search(r"row-(\d+);", call.prompt)[1])
    return [f"row-{number}; item {item}" for item in range(number % 4)]


@pytest.mark.slow
def test_a_flow_killed_at_random_moments_is_the_same(desk, capsys):
    desk.small.says("find", items)
    desk.small.says("", lambda call: f"<{call.prompt}>")
    desk.small.delay = 0.01
    desk.table(rows_of(ROWS))
    desk.file(FLOW)
    desk.file(INNER, "inner.yaml")
    desk.file(COUNT, "count.py")
    arguments = ("--concurrency", str(AT_A_TIME))
    undisturbed = desk.copy("undisturbed").run(*arguments).ended(DONE).output.read_bytes()
    needed = desk.calls
    desk.reset()
    chance = random.Random(20)
    for moment in sorted(chance.sample(range(1, needed), KILLS)):
        process = desk.running(*arguments)
        desk.small.wait_for(moment, seconds=120)
        time.sleep(chance.uniform(0, 0.05))  # a moment within an answer, not only that of its request
        killed(process)
    ran = desk.run(*arguments).ended(DONE)
    assert ran.output.read_bytes() == undisturbed
    assert needed <= desk.calls <= needed + KILLS * AT_A_TIME
    with capsys.disabled():
        print(f"\n{ROWS} rows, {KILLS} kills: {needed} calls needed, {desk.calls} made")
