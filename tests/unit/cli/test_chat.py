"""The prompt without a terminal: what it sends, remembers and tells."""

from __future__ import annotations

import pytest

from workflow_composer import ModelOrchestrator, StrategyConfig, hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.cli.chat import COMMANDS, Chat
from workflow_composer.cli.line_editor import history_file
from workflow_composer.errors import ServerUnreachable
from workflow_composer.metrics.sink import NullSink
from workflow_composer.plugins.host import plugin_host


class Scripted:
    """A backend whose answers a test sets."""

    def __init__(self):
        self.answers = ()
        self.made = []

    @hookimpl
    def register_backends(self, register):
        register("scripted", self._backend)

    def _backend(self, spec, _):
        self.made.append(FakeBackend(*self.answers, name=spec.name, local=True))
        return self.made[-1]

    def sent(self):
        return [[m["content"] for m in call.request.messages] for made in self.made for call in made.calls]


@pytest.fixture
def scripted():
    return Scripted()


@pytest.fixture
def talk(scripted):
    """Begins a conversation over these answers."""
    opened = []

    def begin(*answers, **fields):
        scripted.answers = answers
        host = plugin_host(discover=False)
        host.add(scripted, name="scripted")
        profile = {
            "profile_name": "scripted",
            "models": {"small": {"backend": "scripted", "input_price": 1000.0, "output_price": 1000.0}},
            "task_routing": {"*": "small"},
            "routers": ["cascading_provider"],
            "retries": {"attempts": 1},
        }
        orchestrator = ModelOrchestrator(StrategyConfig(**(profile | fields)), plugins=host, metrics=NullSink(), environ={})
        opened.append(orchestrator)
        return Chat(orchestrator, {})

    yield begin
    for orchestrator in opened:
        orchestrator.close()


def test_an_answer_is_part_of_the_conversation_and_new_ends_it(talk, scripted):
    """Follow-up questions are understood; /new begins afresh."""
    chat = talk("first", "second", "third")
    for line in ("one", "two", "/new", "three"):
        chat.hear(line)

    assert scripted.sent() == [["one"], ["one", "first", "two"], ["three"]]


def test_a_line_that_begins_with_a_space_or_a_path_is_a_question(talk, scripted):
    """Only a slash and a name make a command."""
    chat = talk("an answer")
    for line in (" /help", "/usr/bin/env is what?", "/", "   "):
        chat.hear(line)

    assert [messages[-1] for messages in scripted.sent()] == ["/help", "/usr/bin/env is what?", "/"]


def test_what_could_command_the_terminal_is_not_printed(talk, capsys):
    """Not by a model's answer, nor by an error's text."""
    chat = talk("one \x1b[2J two", ServerUnreachable("gone \x1b[2J\nfar"))
    for line in ("x", "y", "/why"):
        chat.hear(line)

    shown = capsys.readouterr().out
    assert "one [2J two" in shown
    assert "\x1b[2J" not in shown


def test_why_tells_decision_cost_and_calls(talk, capsys):
    """Also of a question that nobody has answered, and before the first."""
    chat = talk("a b c", ServerUnreachable("the cable is out"))
    chat.hear("/why")
    assert "nothing was asked" in capsys.readouterr().out
    chat.hear("what")
    capsys.readouterr()
    chat.hear("/why")
    told = capsys.readouterr().out
    assert "task * is routed to small" in told
    assert "by small" in told
    assert "$0.00" in told
    chat.hear("what")
    capsys.readouterr()
    chat.hear("/why")
    assert "the cable is out" in capsys.readouterr().out


def test_an_empty_answer_is_said_to_be_empty(talk, capsys):
    """Nothing on the screen would look like a fault of the program."""
    talk("").hear("x")

    assert "the answer is empty" in capsys.readouterr().out


def test_completion_offers_commands_and_the_names_they_take(talk):
    """A question is never completed."""
    chat = talk("x")

    assert list(chat.completions("/st")) == ["/strategy"]
    assert "/strategy development" in list(chat.completions("/strategy dev"))
    assert list(chat.completions("/model s")) == ["/model small"]
    assert list(chat.completions("What ")) == list(chat.completions("")) == []


def test_every_command_is_listed(talk, capsys):
    """With its meaning."""
    talk("x").hear("/help")
    shown = capsys.readouterr().out

    assert all(f"/{name}" in shown and command.meaning in shown for name, command in COMMANDS.items())


def test_quit_ends_without_another_line(talk):
    """As the end of the input does."""

    class Lines:
        def __init__(self, *lines):
            self.lines = list(lines)

        def read(self, prompt):
            if not self.lines:
                raise EOFError
            return self.lines.pop(0)

    ended = Lines("/quit", "never read")
    talk("x").run(ended)
    assert ended.lines == ["never read"]
    talk("x").run(Lines())


def test_where_the_history_stands(tmp_path):
    """The user's folder for state, another file, or none."""
    assert history_file({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "workflow-composer" / "history"
    assert history_file({"HOME": str(tmp_path)}) == tmp_path / ".local" / "state" / "workflow-composer" / "history"
    assert history_file({"WORKFLOW_COMPOSER_HISTORY": "off", "HOME": "/"}) is None
    assert history_file({"WORKFLOW_COMPOSER_HISTORY": str(tmp_path / "h")}) == tmp_path / "h"


def test_the_models_of_the_package_get_each_question_alone(talk, capsys):
    """They take an earlier one for a part of it; nothing is left out for others."""
    models = {"small": {"backend": "embedded", "path": "small"}}
    chat = talk(models=models, allow_cloud=False)
    chat.messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "first"}]
    chat.hear("/route two")
    chat.run(type("Lines", (), {"read": staticmethod(lambda prompt: (_ for _ in ()).throw(EOFError))}))

    assert chat._said() == []
    assert "Each question stands alone" in capsys.readouterr().out
    chat = talk("an answer")
    chat.messages = [{"role": "user", "content": "one"}]
    assert chat._said() == chat.messages
