"""Putting a context first: one system message, a fixed order, the same bytes."""

import itertools

import pytest

from tests.unit.contexts.writing import write
from workflow_composer.contexts.applying import Context, Contexts
from workflow_composer.contexts.library import Library
from workflow_composer.errors import ContextError
from workflow_composer.types import LLMRequest


@pytest.fixture
def library(tmp_path):
    for name in ("beta", "alpha", "gamma"):
        write(tmp_path, name, f"About {name}.")
    return Library([tmp_path])


@pytest.fixture
def contexts(library):
    tasks = {"code": Context.of([library.get("alpha")]), "plain": Context.of([]), "*": Context.of([library.get("beta")])}
    return Contexts(library, tasks)


def asked(**fields):
    return LLMRequest.of("Why?", **fields)


def system(request):
    return [message["content"] for message in request.messages if message["role"] == "system"]


def test_the_order_in_which_they_are_named_makes_no_difference(contexts):
    """Nor does naming one twice; a subset that sorts first shares its beginning with the whole."""
    texts = {
        system(contexts.applied(asked(context=names)))[0]
        for names in (*itertools.permutations(("alpha", "beta", "gamma")), ("gamma", "beta", "alpha", "beta@1"))
    }
    assert texts == {"About alpha.\n\nAbout beta.\n\nAbout gamma."}
    assert texts.pop().startswith(system(contexts.applied(asked(context=("beta", "alpha"))))[0])


def test_the_context_stands_before_the_callers_words_in_one_system_message(contexts):
    found = contexts.applied(asked(context=("alpha",), system="Be brief."))
    assert [message["role"] for message in found.messages] == ["system", "user"]
    assert system(found) == ["About alpha.\n\nBe brief."]


def test_a_request_without_a_system_message_gets_one(contexts):
    found = contexts.applied(asked(context=("alpha",)))
    assert found.messages == ({"role": "system", "content": "About alpha."}, {"role": "user", "content": "Why?"})


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_system_message_leaves_no_blank_lines(contexts, content):
    messages = ({"role": "system", "content": content}, {"role": "user", "content": "Why?"})
    assert system(contexts.applied(LLMRequest(messages=messages, context=("alpha",)))) == ["About alpha."]


def test_a_developer_message_and_its_other_fields_are_kept(contexts):
    messages = ({"role": "developer", "name": "ops", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    first = contexts.applied(LLMRequest(messages=messages, context=("alpha",))).messages[0]
    assert first == {"role": "developer", "name": "ops", "content": "About alpha.\n\nBe brief."}


def test_a_system_message_in_parts_gets_a_part_in_front(contexts):
    own = {"type": "text", "text": "Be brief."}
    messages = ({"role": "system", "content": [own]}, {"role": "user", "content": "Why?"})
    found = contexts.applied(LLMRequest(messages=messages, context=("alpha",)))
    assert found.messages[0]["content"] == [{"type": "text", "text": "About alpha."}, own]
    assert contexts.applied(found) == found
    assert messages[0]["content"] == [own], "the caller's own messages are not changed"


def test_applying_twice_is_applying_once(contexts):
    """A plugin may send a request on that has its context already."""
    for fields in ({}, {"system": "Be brief."}):
        once = contexts.applied(asked(context=("alpha", "beta"), **fields))
        assert contexts.applied(once) == once


def test_the_request_says_exactly_what_stood_first(contexts, library):
    found = contexts.applied(asked(context=("beta", "alpha")))
    assert found.context == (library.get("alpha").pin, library.get("beta").pin)
    assert system(contexts.applied(asked(context=found.context))) == system(found)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"task_type": "code"}, ["About alpha."]),
        ({"task_type": "other"}, ["About beta."]),
        ({"task_type": "plain"}, []),
        ({"task_type": "code", "context": ("gamma",)}, ["About gamma."]),
        ({"task_type": "code", "context": "gamma"}, ["About gamma."]),
        ({"task_type": "code", "context": ()}, []),
    ],
)
def test_the_requests_own_context_goes_before_its_tasks(contexts, fields, text):
    """Tasks that are not listed have the one of ``*``; an empty one is none."""
    assert system(contexts.applied(asked(**fields))) == text


def test_vectors_are_made_of_the_callers_text_alone(contexts):
    request = asked(kind="embeddings", task_type="code")
    assert contexts.applied(request) is request


def test_without_any_context_the_request_is_left_as_it_is(library):
    request = asked()
    assert Contexts(library).applied(request) is request


def test_two_different_ones_of_the_same_name_are_an_error(library, tmp_path):
    other = write(tmp_path / "other", "alpha", "Something else.")
    with pytest.raises(ContextError, match="two different contexts are named 'alpha'"):
        Contexts(library).applied(asked(context=("alpha", str(other))))


def test_many_different_sets_do_not_fill_the_memory(library, monkeypatch):
    """What requests name may come from far away."""
    contexts = Contexts(library)
    for size in range(1, 600):
        contexts.applied(asked(context=("alpha",) * size))
    assert len(contexts._known) <= 256


def test_a_profiles_paths_are_relative_to_it(tmp_path):
    write(tmp_path / "profiles", "mine", "By path.")
    found = Contexts.of({"*": ("./mine.md",)}, base=tmp_path / "profiles", environ={})
    request = found.applied(asked())
    assert system(request) == ["By path."]
    assert found.applied(request) == request
