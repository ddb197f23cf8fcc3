"""The prompt at a terminal, as a person sees it: typed, read from the screen, stopped, left."""

from __future__ import annotations

import json
import stat
import subprocess
import sys

import pytest

from tests.integration.stub_server import Reply, StubServer
from tests.integration.terminal import CTRL_D, UP, Terminal, profile_of, write_profile
from tests.paths import ROOT


@pytest.fixture
def server():
    """The model."""
    with StubServer() as made:
        yield made


@pytest.fixture
def folder(tmp_path, server):
    """A folder with two profiles: ``stub`` keeps data local; ``open`` may use a cloud, whose server is the same."""
    write_profile(tmp_path, profile_of(server))
    cloud = {"far": {"backend": "openai", "base_url": server.url, "model": "far-model"}}
    profile = profile_of(server, "open", allow_cloud=True)
    write_profile(tmp_path, profile | {"models": profile["models"] | cloud, "task_routing": {"*": "far"}})
    return tmp_path


def asked(server):
    """The messages of every request, by their texts."""
    chats = [request.json for request in list(server.requests) if request.path.endswith("/chat/completions")]
    return [[message["content"] for message in chat["messages"]] for chat in chats]


def test_a_strategy_on_a_terminal_is_a_prompt(folder, server):
    """Where prompts go, a streamed answer, why, and the end by Ctrl-D; the model hears the whole conversation."""
    server.script(Reply.stream("Par", "is."), Reply.stream("About two ", "million."))
    with Terminal(folder, "-s", "stub.yaml") as screen:
        assert "stub: prompts stay on your own machines: 127.0.0.1:" in screen.until("stub> ")
        assert "Paris." in screen.say("What is the capital of France?")
        assert "About two million." in screen.say("How many people live there?")
        why = screen.say("/why")
        screen.press(CTRL_D)
        code, _ = screen.end()

    assert code == 0
    assert asked(server) == [
        ["What is the capital of France?"],
        ["What is the capital of France?", "Paris.", "How many people live there?"],
    ]
    assert "task * is routed to small" in why
    assert "small (stub-model), local" in why
    assert "small: ok, " in why


def test_the_answer_is_shown_while_it_is_written(folder, server):
    """The first words are on the screen while the server still holds the rest; Ctrl-C stops it, and the prompt goes on."""
    server.script(Reply.stream("half", " of it", hang_after=2), Reply.stream("whole"))
    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        screen.child.sendline("Tell me a story")
        screen.until("half")
        screen.press("\x03")
        screen.until("(stopped)")
        screen.until("stub> ")
        assert server.wait_for(lambda s: s.disconnects == 1)
        assert "stopped by Ctrl-C" in screen.say("/why")
        assert "whole" in screen.say("Again, please")
        screen.press("\x03")
        screen.until("(Ctrl-D ends)")
        screen.press(CTRL_D)
        assert screen.end()[0] == 0

    assert asked(server)[-1] == ["Tell me a story", "half", "Again, please"]


def test_a_failure_is_told_and_the_prompt_goes_on(folder, server):
    """With its cause in /why; the question is not part of the conversation."""
    server.script(Reply.error(500, "out of memory"), Reply.stream("fine"))
    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        told = screen.say("Hello")
        assert "error: " in told
        assert "Traceback" not in told
        assert "out of memory" in screen.say("/why")
        assert "fine" in screen.say("Hello again")

    assert asked(server)[-1] == ["Hello again"]


def test_a_switch_is_live_and_takes_no_local_word_to_the_cloud(folder, server):
    """What was said under a profile that keeps data local is not sent where the next one may send it."""
    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        screen.say("The patient is called Ada")
        assert "prompts may go to the cloud" in screen.say("/strategy open.yaml", "open> ")
        screen.say("What is 2 + 2?", "open> ")
        assert "by far (stub-model), cloud" in screen.say("/why", "open> ")
        assert "error: no profile named 'nope'" in screen.say("/strategy nope", "open> ")
        screen.say("/strategy stub.yaml")
        screen.say("And 3 + 3?")

    assert asked(server) == [
        ["The patient is called Ada"],
        ["What is 2 + 2?"],
        ["What is 2 + 2?", "an answer", "And 3 + 3?"],
    ]


def test_commands_of_the_prompt(folder, server):
    """Models, route, one model for the next questions, help, slips; none of them asks a model."""
    with Terminal(folder, "-s", "open.yaml") as screen:
        screen.until("open> ")
        models = screen.say("/models", "open> ")
        assert "small  local  up" in models
        assert "far    cloud" in models
        assert "tier 1:    far (cloud)" in screen.say("/route What now?", "open> ")
        assert "asking small" in screen.say("/model small", "open> ")
        assert "tier 1:    small (local)" in screen.say("/route What now?", "open> ")
        assert "error: " in screen.say("/model nope", "open> ")
        assert "did you mean '/strategy'?" in screen.say("/strateg", "open> ")
        told = screen.say("/help", "open> ")
        assert all(f"/{name}" in told for name in ("strategy", "why", "route", "models", "help"))
        assert asked(server) == []
        assert "an answer" in screen.say("/etc/passwd is a file of what?", "open> ")
        screen.child.sendline("/quit")
        assert screen.end()[0] == 0


def test_lines_are_remembered_for_the_next_session_except_keys(folder, server):
    """The arrow key recalls; the file is its owner's; a line with a key is not in it."""
    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        screen.say("What is the capital of France?")
        screen.say("my key is sk-proj-abcdefghijklmnop1234")
        screen.press(CTRL_D)
        screen.end()
    history = folder / "state" / "workflow-composer" / "history"
    assert history.read_text() == "What is the capital of France?\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600

    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        screen.press(UP)
        screen.until("What is the capital of France?")
        screen.press("\r")
        screen.until("an answer")
    assert asked(server)[-1] == ["What is the capital of France?"]


def test_the_history_can_be_off(folder):
    """Then nothing is written."""
    with Terminal(folder, "-s", "stub.yaml", WORKFLOW_COMPOSER_HISTORY="off") as screen:
        screen.until("stub> ")
        screen.say("Hello")
        screen.press(CTRL_D)
        screen.end()
    assert not (folder / "state" / "workflow-composer" / "history").exists()


def test_several_lines_are_one_question(folder, server):
    """Pasted, as terminals mark it, or between two fences."""
    with Terminal(folder, "-s", "stub.yaml") as screen:
        screen.until("stub> ")
        screen.press("\x1b[200~first\nsecond\x1b[201~\r")
        screen.until("an answer")
        screen.until("stub> ")
        for line in ('"""', "third", "", "fourth"):
            screen.child.sendline(line)
            screen.until("... ")
        screen.say('"""')
    assert [chat[-1] for chat in asked(server)] == ["first\nsecond", "third\n\nfourth"]


def test_the_environment_may_name_the_strategy(folder):
    """As for every command."""
    with Terminal(folder, BIOPIPELINES_STRATEGY="stub.yaml") as screen:
        screen.until("stub> ")
        screen.press(CTRL_D)
        assert screen.end()[0] == 0


def run(folder, *arguments, **options):
    """Run a command without a terminal."""
    command = [sys.executable, "-m", "workflow_composer", *arguments]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(
        command, check=False, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, **options
    )


def test_standard_input_that_is_no_terminal_is_answered(folder, server):
    """The whole of it is one prompt; standard output is the answer and nothing else."""
    done = run(folder, "-s", "stub.yaml", input="What is\n30 + 12?\n")

    assert (done.returncode, done.stdout, done.stderr) == (0, "an answer\n", "")
    assert asked(server) == [["What is\n30 + 12?"]]
    assert json.loads(run(folder, "-s", "stub.yaml", "--json", input="Hi").stdout)["text"] == "an answer"
    assert run(folder, "-s", "stub.yaml", input=" \n").stdout.startswith("strategy:  stub")


@pytest.mark.parametrize("words", [("What is 30 + 12?",), ("What", "is", "30 + 12?")])
def test_a_bare_question_says_what_to_type(folder, words):
    """And what it says works, in a shell."""
    done = run(folder, "-s", "stub.yaml", *words, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    typed = done.stderr.partition("type: ")[2].strip()
    assert typed == "python -m workflow_composer -s stub.yaml generate 'What is 30 + 12?'"

    again = typed.replace("python -m", f"{sys.executable} -m", 1)
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    answered = subprocess.check_output(again, shell=True, cwd=folder, env=environ, text=True, timeout=60)
    assert answered == "an answer\n"


def test_on_a_terminal_standard_error_holds_where_prompts_go_and_standard_output_the_answer(folder):
    """Nothing else, each way round: one of the two goes to a file, the other is the screen."""
    with Terminal(folder, "-s", "stub.yaml", "generate", "hello", redirected="2>errors.txt") as screen:
        assert screen.end() == (0, "an answer\r\n")
    assert (folder / "errors.txt").read_text() == ""

    with Terminal(folder, "-s", "stub.yaml", "generate", "hello", redirected=">out.txt") as screen:
        _, shown = screen.end()
    (place,) = shown.splitlines()
    assert place.startswith("stub: prompts stay on your own machines: 127.0.0.1:")
    assert (folder / "out.txt").read_text() == "an answer\n"
