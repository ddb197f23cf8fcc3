"""What is kept is used again exactly where the very same thing would be asked again."""

from __future__ import annotations

import hashlib
import json
import py_compile
import re
import shutil

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, WRONG, killed, rows_of
from tests.integration.workflows.scripted import Said

CHAIN = """
    workflow: chain
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      b:
        prompt: "second {{ a }}"
        model: small
        temperature: 0.5
        tokens: 100
        answer: number
      c: {prompt: "third {{ b }}"}
    output: {t: "{{ t }}", c: "{{ c }}"}
"""


def numbers(call):
    """A reply that differs with everything that was asked."""
    asked = {
        key: call.body.get(key) for key in ("messages", "temperature", "max_tokens", "max_completion_tokens", "n", "model")
    }
    return str(int(hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8], 16))


@pytest.fixture
def finished(desk):
    """Three steps over ten rows, done."""
    for model in desk.models:
        model.says("", numbers)
    desk.table(rows_of(10))
    desk.file(CHAIN)
    desk.run().ended(DONE)
    assert desk.calls == 30
    desk.reset()
    return desk


@pytest.mark.parametrize(
    ("old", "new", "calls"),
    [
        ("second {{ a }}", "2nd {{ a }}", 20),
        ("temperature: 0.5", "temperature: 0.6", 20),
        ("tokens: 100", "tokens: 101", 20),
        ("model: small", "model: large", 20),
        ("answer: number", "answer: text", 20),
        ("steps:", "steps:  # a comment\n", 0),
        ("inputs: {t: text}", "inputs: {t: text}\ndeadline: {run: 10h, row: 1h}\nbudget: {run: $5}", 0),
    ],
    ids=["prompt", "temperature", "length", "model", "form", "comment", "limits"],
)
def test_g21_what_makes_an_answer_reusable(finished, old, new, calls):
    finished.edit(old, new)
    ran = finished.run().ended(DONE)
    assert finished.calls == calls
    assert finished.small.count("first") == 0
    if calls:
        assert sum(ran.steps["b"]["asked_again"].values()) == 10, ran.steps["b"]
    assert ran.summary["kept"] == 30 - calls


def test_g21_votes(finished):
    finished.edit("model: small", "model: mv_cascade_small_k3_t0.5")
    finished.run().ended(DONE)
    assert finished.small.draws("second") == 30
    assert finished.small.count("third") == 10


def test_g21_another_model_at_the_same_address(finished):
    """The profile leaves the model to the server; its answers are asked for again, and are used again if it comes back."""
    table = (finished.folder / "out.jsonl").read_bytes()
    finished.small.served = "small-9b"
    ran = finished.run("--rows", "1-3").ended(DONE)
    assert finished.calls == 9
    assert ran.steps["a"]["asked_again"] == {"small was small-1b and is small-9b": 3}
    finished.reset()
    finished.small.served = "small-1b"
    again = finished.run().ended(DONE)
    assert finished.calls == 0
    assert again.output.read_bytes() == table


def test_g21_one_rows_text(finished):
    rows = rows_of(10)
    rows[3]["t"] = "another text"
    finished.table(rows)
    finished.run().ended(DONE)
    assert finished.calls == 3
    assert finished.small.count("another text") == 1


def test_g21_concurrency_and_columns_that_are_not_read(finished):
    finished.table([{**row, "colour": "red"} for row in rows_of(10)])
    finished.run("--concurrency", "3").ended(DONE)
    assert finished.calls == 0


def test_g21_a_step_of_another_name(finished):
    finished.edit("      b:\n".removeprefix("    "), "  bb:\n")
    finished.edit("third {{ b }}", "third {{ bb }}")
    finished.run().ended(DONE)
    assert finished.calls == 0


PROGRAMS = """
    workflow: programs
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      b:
        command: [python, shout.py]
        with: {a: a}
      c: {prompt: "third {{ b }}"}
      d:
        python: helpers:whisper
        with: {a: a}
      e: {prompt: "fifth {{ d }}"}
    output: {b: "{{ b }}", c: "{{ c }}", d: "{{ d }}", e: "{{ e }}"}
"""
SHOUT = """
import json, sys
given = json.load(sys.stdin)
print(given["a"].upper() + "!", end="")
"""
WHISPER = """
def whisper(a):
    return a.lower() + "?"
"""


@pytest.fixture
def programs(desk):
    desk.small.says("", lambda call: f"R({call.prompt})")
    desk.table(rows_of(3))
    desk.file(PROGRAMS)
    desk.file(SHOUT, "shout.py")
    desk.file(WHISPER, "helpers.py")
    return desk


def test_g22_a_changed_program(programs):
    ran = programs.run().ended(DONE)
    assert ran.column("b") == [f"R(FIRST ROW-{n};)!" for n in (1, 2, 3)]
    assert ran.column("d") == [f"r(first row-{n};)?" for n in (1, 2, 3)]
    assert ran.column("c") == [f"R(third R(FIRST ROW-{n};)!)" for n in (1, 2, 3)]
    assert programs.calls == 9
    programs.reset()
    programs.run().ended(DONE)
    assert programs.calls == 0
    programs.edit('"!"', '"!!"', "shout.py")
    ran = programs.run().ended(DONE)
    assert sorted(call.prompt[:5] for call in programs.small.calls) == ["third"] * 3
    assert ran.column("b")[0] == "R(FIRST ROW-1;)!!"
    programs.reset()
    programs.edit('"?"', '"??"', "helpers.py")
    programs.run().ended(DONE)
    assert sorted(call.prompt[:5] for call in programs.small.calls) == ["fifth"] * 3


def test_g22_a_change_that_cannot_be_seen_is_said_once(programs):
    source = programs.folder / "helpers.py"
    py_compile.compile(str(source), cfile=str(programs.folder / "helpers.pyc"))
    source.unlink()
    ran = programs.run().ended(DONE)
    assert ran.column("d")[0] == "r(first row-1;)?"
    assert len([line for line in ran.err.splitlines() if "helpers" in line]) == 1


TWO = """
    workflow: two
    inputs: {t: text}
    steps:
      a: {prompt: "first {{ t }}"}
      b: {prompt: "second {{ a }}"}
    output: {a: "{{ a }}", b: "{{ b }}"}
"""


def two_steps(desk, count):
    desk.small.says("first", lambda call: f"A-{call.prompt.removeprefix('first ')}")
    desk.small.says("second", lambda call: f"B-{call.prompt.removeprefix('second ')}")
    desk.table(rows_of(count))
    desk.file(TWO)
    return [f"A-row-{n};" for n in range(1, count + 1)], [f"B-A-row-{n};" for n in range(1, count + 1)]


def test_g23_stopped_in_the_middle_of_a_step(desk):
    """40 answers of the first step are kept, row 17 has failed, 8 calls are under way."""
    firsts, _ = two_steps(desk, 100)
    undisturbed = desk.copy("undisturbed").run("--concurrency", "8").ended(DONE).output.read_bytes()
    desk.small.forget()
    answered = []

    def reply(call):
        if len(answered) == 41:
            return Said(hang=True)
        answered.append(call)
        if "row-17;" in call.prompt:
            return Said(status=500)
        return f"A-{call.prompt.removeprefix('first ')}"

    desk.small.says("first", reply)
    process = desk.running("--concurrency", "8", "--only", "a")
    desk.small.wait_for(49)
    desk.wait_until_kept(firsts, 40, process)
    killed(process)
    assert desk.calls == 49
    assert desk.kept(firsts) == 40
    desk.small.forget()
    two_steps(desk, 100)
    ran = desk.run("--concurrency", "8").ended(DONE)
    assert desk.small.count("first") == 60
    assert desk.small.count("first row-17;") == 1
    assert desk.small.count("second") == 100
    assert ran.output.read_bytes() == undisturbed


def test_g23_killed_again_and_again(desk):
    """Calls made are calls needed and those that were under way at the kills; the table is that of an undisturbed run."""
    two_steps(desk, 60)
    desk.small.delay = 0.02
    undisturbed = desk.copy("undisturbed").run().ended(DONE).output.read_bytes()
    desk.reset()
    kills = 4
    for kill in range(1, kills + 1):
        process = desk.running("--concurrency", "6")
        desk.small.wait_for(25 * kill)
        killed(process)
    ran = desk.run().ended(DONE)
    assert ran.output.read_bytes() == undisturbed
    assert desk.calls <= 120 + 6 * kills


def test_g24_a_torn_line_and_a_strange_line(desk):
    firsts, seconds = two_steps(desk, 20)
    table = desk.run().ended(DONE).output.read_bytes()
    assert desk.kept(firsts + seconds) == 40
    desk.reset()
    lines = desk.journal().read_bytes().splitlines(keepends=True)
    strange = next(n for n, line in enumerate(lines) if b"A-row-10;" in line)
    torn = max(n for n, line in enumerate(lines) if b"B-A-row" in line)
    lines[strange] = b"\x00\xff{" + lines[strange][20:]
    lines[torn:] = [lines[torn][: len(lines[torn]) // 2]]
    desk.journal().write_bytes(b"".join(lines))
    ran = desk.run().ended(DONE)
    assert ran.output.read_bytes() == table
    assert desk.calls == 2
    assert "2 " in ran.err


def test_g24_a_newer_format_is_refused_and_left_alone(desk):
    two_steps(desk, 2)
    desk.run().ended(DONE)
    desk.reset()
    head, *rest = desk.journal().read_bytes().splitlines(keepends=True)
    newer = re.sub(rb"(\"workflow_journal\":)(\d+)", rb"\g<1>99", head, count=1)
    assert newer != head, head
    desk.journal().write_bytes(b"".join([newer, *rest]))
    before = desk.journal().read_bytes()
    ran = desk.run().ended(WRONG)
    assert desk.calls == 0
    assert desk.journal().read_bytes() == before
    assert "99" in ran.err or "newer" in ran.err


OPINIONS = """
    workflow: opinions
    inputs: {t: text}
    steps:
      a:
        model: mv_cascade_small_k5_t0.7
        prompt: "vote {{ t }}"
        answer: ["x", "z"]
      v: {prompt: "opinion {{ t }}"}
      w: {prompt: "opinion {{ t }}"}
    output: {a: "{{ a }}", v: "{{ v }}", w: "{{ w }}"}
"""


def opinions(desk):
    desk.small.says("vote", "x")
    said = iter(range(10_000))
    desk.small.says("opinion", lambda call: f"opinion {next(said)}")
    rows = rows_of(8)
    rows[6] = dict(rows[2])
    desk.table(rows)
    desk.file(OPINIONS)


def test_g25_equal_rows_and_equal_questions_have_answers_of_their_own(desk):
    opinions(desk)
    ran = desk.run().ended(DONE)
    assert desk.small.draws("vote row-3;") == 10
    assert desk.small.draws("vote row-1;") == 5
    assert desk.small.count("opinion row-3;") == 4
    said = [row[step] for row in ran.rows for step in "vw"]
    assert len(set(said)) == 16
    desk.reset()
    again = desk.run().ended(DONE)
    assert desk.calls == 0
    assert again.output.read_bytes() == ran.output.read_bytes()


def test_g25_votes_that_were_drawn_count_after_a_kill(desk):
    """Draws that were answered are not drawn again; those that were under way are."""
    answered = []

    def reply(call):
        if len(answered) >= 3:
            return Said(hang=True)
        answered.extend([call] * call.draws)
        return "x"

    desk.small.says("vote", reply)
    desk.table(rows_of(1))
    desk.file(OPINIONS.replace('prompt: "opinion {{ t }}"', 'when: t == "", prompt: "opinion {{ t }}"'))
    process = desk.running()
    desk.small.wait_for(1)
    if desk.small.calls[0].draws == 1:
        desk.small.wait_for(4)
    until = desk.journal()
    desk.wait_until_kept(['"x"'], 1, process) if len(answered) >= 3 and until.exists() else None
    killed(process)
    drawn = len(answered)
    desk.small.forget().says("vote", "x")
    desk.run().ended(DONE)
    assert desk.small.draws("vote") == 5 - drawn


def test_g25_sharing_is_a_setting_and_is_counted(desk):
    opinions(desk)
    desk.file(OPINIONS.replace('{prompt: "opinion {{ t }}"}', '{prompt: "opinion {{ t }}", share: true}'))
    ran = desk.run().ended(DONE)
    assert desk.small.count("opinion row-3;") == 1
    assert desk.small.draws("vote row-3;") == 10
    assert re.search(r"shared", ran.said)


def test_g26_a_row_put_in_at_the_top(desk):
    desk.small.says("", lambda call: f"R({call.prompt})")
    rows = rows_of(50)
    desk.table(rows)
    desk.file("""
        workflow: one
        inputs: {t: text}
        steps:
          a: {prompt: "first {{ t }}"}
        output: {t: "{{ t }}", a: "{{ a }}"}
    """)
    desk.run().ended(DONE)
    desk.reset()
    new = [{"n": 0, "t": "new;"}, *rows[:19], *rows[20:]]
    desk.table(new)
    ran = desk.run().ended(DONE)
    assert desk.small.prompts() == ["first new;"]
    assert ran.column("t") == [row["t"] for row in new]
    assert ran.column("a") == [f"R(first {row['t']})" for row in new]


def test_g27_the_same_output_asks_nothing_further(desk):
    other = []

    def second(call):
        return "changed" if "2nd" in call.prompt and "row-7;" in call.prompt else call.prompt.split()[-1]

    desk.small.says("first", lambda call: f"A-{call.prompt.removeprefix('first ')}")
    desk.small.says("second", second).says("2nd", second)
    desk.table(rows_of(10))
    desk.file(CHAIN.replace("        answer: number\n", ""))
    desk.run().ended(DONE)
    desk.reset()
    assert not other
    desk.edit("second {{ a }}", "2nd {{ a }}")
    desk.run().ended(DONE)
    assert desk.small.count("2nd") == 10
    assert desk.small.prompts("third") == ["third changed"]


def test_from_only_rows_and_redo(desk):
    """Which steps and rows a run does can be named."""
    two_steps(desk, 4)
    desk.run("--rows", "1,3-4").ended(DONE)
    assert sorted(desk.small.prompts("first")) == [f"first row-{n};" for n in (1, 3, 4)]
    desk.reset()
    desk.run().ended(DONE)
    assert desk.calls == 2
    desk.reset()
    desk.run("--redo", "b").ended(DONE)
    assert (desk.small.count("first"), desk.small.count("second")) == (0, 4)
    desk.reset()
    desk.run("--from", "a").ended(DONE)
    assert desk.small.count("first") == 4


def test_a_failed_row_is_asked_again(desk):
    two_steps(desk, 3)
    desk.small.forget().says("first row-2;", Said(status=500), "A-row-2;")
    two_steps(desk, 3)
    first = desk.run().ended(SOME_FAILED)
    assert [state == "done" for state in first.states] == [True, False, True]
    desk.reset()
    desk.run().ended(DONE)
    assert desk.small.prompts() == ["first row-2;", "second A-row-2;"]


def test_a_run_whose_table_was_lost_is_written_from_its_journal(desk):
    two_steps(desk, 3)
    ran = desk.run().ended(DONE)
    table = ran.output.read_bytes()
    shutil.move(ran.output, desk.folder / "away")
    desk.reset()
    desk.run().ended(DONE)
    assert desk.calls == 0
    assert ran.output.read_bytes() == table
