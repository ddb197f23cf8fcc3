"""A plugin's backend that returns or raises what it should not: its model has failed, and the next one is asked."""

import pytest

from workflow_composer import hookimpl
from workflow_composer.backends.fake import FakeBackend
from workflow_composer.errors import AllCandidatesFailed, PluginError
from workflow_composer.testing import orchestrator_with
from workflow_composer.types import Completion, Usage


class Odd(FakeBackend):
    """A backend of a plugin, with one method replaced."""


def plugin(**methods):
    made = type("Odd", (Odd,), methods)

    class Plugin:
        @hookimpl
        def register_backends(self, register):
            register("odd", lambda spec, context: made("fine", name=spec.name))

    return Plugin()


def profile(*, fallback=True):
    return {
        "models": {"odd": {"backend": "odd"}, "small": {"backend": "fake"}},
        "tiers": {},
        "task_routing": {"*": "odd"},
        "fallback": ["small"] if fallback else [],
        "retries": {"attempts": 1},
    }


async def _value(value):
    return value


async def _failing(error):
    raise error


async def _chunks(*chunks):
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize(
    ("method", "found"),
    [
        (lambda self, call: _value("42"), "str '42', not a Completion"),
        (lambda self, call: _value(Completion(samples=("42",), usage=Usage(1, 1), model="m")), "str '42', not a Sample"),
        (lambda self, call: _failing(KeyError("x")), "KeyError: 'x'"),
    ],
)
def test_a_wrong_answer_is_a_failure_of_that_model(method, found):
    """The next candidate answers; without one the error names plugin, backend and value."""
    with orchestrator_with(plugin(complete=method), **profile()) as orchestrator:
        assert orchestrator.generate("hello").decision.candidate == "small"
    said = f"complete of backend 'odd' of plugin 'under_test' .*{found}"
    alone = orchestrator_with(plugin(complete=method), **profile(fallback=False))
    with alone as orchestrator, pytest.raises(AllCandidatesFailed, match=said):
        orchestrator.generate("hello")


@pytest.mark.parametrize("method", [lambda self, call: _chunks("42"), lambda self, call: _failing(KeyError("x"))])
def test_a_wrong_piece_of_a_stream_is_a_failure_of_that_model(method):
    """Before the first piece has reached the caller."""
    with orchestrator_with(plugin(stream=method), **profile()) as orchestrator:
        stream = orchestrator.stream("hello")
        assert "".join(chunk.text for chunk in stream)
        assert stream.response.decision.candidate == "small"


def test_a_right_backend_is_used_as_it_is():
    """With its streams and its other parts."""
    with orchestrator_with(plugin(), **profile()) as orchestrator:
        assert orchestrator.generate("hello").text == "fine"
        assert "".join(chunk.text for chunk in orchestrator.stream("hello")) == "fine"


def test_what_is_no_backend_is_refused_when_it_is_made():
    """The error names what it lacks."""

    class Plugin:
        @hookimpl
        def register_backends(self, register):
            register("odd", lambda spec, context: object())

    said = r"'odd' of plugin 'under_test' is object .*has no name, local, complete"
    with pytest.raises(PluginError, match=said), orchestrator_with(Plugin(), **profile()):
        pass
