"""Checks of answers by a program, a function, a judge; and their way back to the model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from workflow_composer.errors import ProgramFault
from workflow_composer.execution.forming import MOST_BYTES
from workflow_composer.workflows.definition.model import AnswerCheck, CommandBody, ProgramLimits, PromptBody, PythonBody
from workflow_composer.workflows.programs.accepting import StepCheck
from workflow_composer.workflows.running.results import Scope, StepResult

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

LIMITS = ProgramLimits(seconds=120)


@dataclass
class Named:
    """The value of a name, as a reading."""

    text: str
    line: int = 1

    @property
    def reads(self):
        return frozenset([self.text])

    needs = reads

    def evaluate(self, names):
        return names.value(self.text)


@dataclass
class Words(Named):
    """A text without names."""

    reads = needs = frozenset()

    def evaluate(self, names):
        return self.text


@pytest.fixture
def checked(tmp_path):
    asked = []

    def make(body, *, judge=(), private=False, **fields):
        replies = list(judge)

        async def ask(request):
            asked.append(request)
            return SimpleNamespace(value=replies.pop(0), cost=0.25, attempts=(1,))

        names = Scope(
            {"tests": "import solution\nassert solution.f() == 2, f'expected 2, got {solution.f()}'\n", "limit": 5}
        )
        check = AnswerCheck(body=body, limits=LIMITS, **fields)
        made = StepCheck(check, step="code", names=names, folder=tmp_path, private=private, ask=ask)
        made.asked = asked
        return made

    return make


async def test_a_program_passes_with_exit_code_0(checked):
    files = {"solution.py": Named("code"), "test_it.py": Named("tests")}
    check = checked(CommandBody(argv=("python", "test_it.py")), files=files)
    assert await check("def f(): return 2\n") is None
    problem = await check("def f(): return 1\n")
    assert problem.startswith("the program ended with exit code 1\n")
    assert problem.endswith("AssertionError: expected 2, got 1")
    assert "SyntaxError" in await check("def f(: return 2\n")
    assert check.runs == 3


async def test_a_functions_files_are_in_its_working_directory(checked, tmp_path):
    (tmp_path / "reading.py").write_text("def same(answer):\n    return open('a.txt').read() == answer\n")
    check = checked(PythonBody(target="reading:same"), files={"a.txt": Named("code")})
    assert await check("x = 1\n") is None


async def test_the_end_of_its_output_goes_back(checked):
    check = checked(CommandBody(argv=("python", "-c", "print('é' * 5_000_000); print('the end'); raise SystemExit(1)")))
    problem = await check("x")
    assert len(problem.encode()) <= MOST_BYTES
    assert problem.startswith("the program ended with exit code 1\n")
    assert problem.endswith("é\nthe end")


@pytest.mark.parametrize(("value", "read"), [("a\nb", "a\nb"), ({"n": [1]}, '{"n": [1]}'), (7, "7")])
async def test_a_program_reads_the_answer_if_it_is_given_nothing_else(checked, value, read):
    check = checked(CommandBody(argv=("python", "-c", "import sys; raise SystemExit(sys.stdin.read())")))
    assert (await check(value)).endswith(read)


async def test_a_program_reads_what_it_is_given(checked):
    code = "import json, sys; d = json.load(sys.stdin); raise SystemExit(0 if d['answer'] < d['most'] else 'too large')"
    check = checked(CommandBody(argv=("python", "-c", code)), given={"answer": Named("code"), "most": Named("limit")})
    assert await check(4) is None
    assert (await check(6)).endswith("too large")


@pytest.mark.parametrize(
    ("returned", "problem"),
    [("True", None), ("None", None), ("False", "rules:ok says no"), ("'too long'", "too long"), ("1/0", "division by zero")],
)
async def test_a_function_says_what_is_wrong(checked, tmp_path, returned, problem):
    (tmp_path / "rules.py").write_text(f"def ok(answer): return {returned}\n")
    found = await checked(PythonBody(target="rules:ok"))("x")
    assert found == problem if problem is None else problem in found


async def test_a_check_that_cannot_run_is_no_verdict(checked, tmp_path):
    (tmp_path / "rules.py").write_text("def number(answer): return 1\n")
    for body in (CommandBody(argv=("no-such-program",)), PythonBody(target="rules:gone"), PythonBody(target="rules:number")):
        with pytest.raises(ProgramFault) as caught:
            await checked(body)("x")
        assert not caught.value.started


async def test_a_judge_is_asked_yes_or_no(checked):
    check = checked(PromptBody(prompt=Words("Is this polite?")), model="large", judge=["yes", "no"])
    assert await check("Hello") is None
    assert "Is this polite?" in await check("Go away")
    first, second = check.asked
    assert (first.messages[-1]["content"], second.messages[-1]["content"]) == (
        "Is this polite?\n\nHello",
        "Is this polite?\n\nGo away",
    )
    assert (first.model, first.form.spec, check.calls, check.cost) == ("large", ["yes", "no"], 2, 0.5)


async def test_a_judge_that_says_neither_is_no_verdict(checked):
    check = checked(PromptBody(prompt=Named("code")), judge=[None])
    with pytest.raises(ProgramFault, match="neither yes nor no"):
        await check("x")
    assert check.asked[0].messages[-1]["content"] == "x"


async def test_the_steps_own_name_is_the_value_that_is_checked(tmp_path):
    """Also where an earlier try of the step has a result."""
    names = Scope({}, {"code": StepResult(state="done", value="the earlier one")})
    check = AnswerCheck(
        body=CommandBody(argv=("python", "-c", "raise SystemExit(open('x').read())")),
        files={"x": Named("code")},
        limits=LIMITS,
    )
    made = StepCheck(check, step="code", names=names, folder=tmp_path, private=False, ask=None)
    assert (await made("this one")).endswith("this one")
