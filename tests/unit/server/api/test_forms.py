"""Fields declared once: the readers take exactly what the described schema allows, field by field and together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.server.examples import sent
from tests.unit.server.schemas import ANNOTATIONS, ANY, MANY, fits, samples, values, variants
from workflow_composer.server.admin.switching import RELOAD, ROLLBACK, SWITCH
from workflow_composer.server.api import (
    chat,
    completions,
    embeddings,
    field_checks,
    message_form,
    passing,
    response_form,
    schemas,
)
from workflow_composer.server.api.catalogue import FEEDBACK
from workflow_composer.server.api.chat import ChatDialect
from workflow_composer.server.api.completions import CompletionsDialect
from workflow_composer.server.api.embeddings import read_embeddings
from workflow_composer.server.api.forms import FOREIGN, Field, Form, address_of, left_out, refused
from workflow_composer.server.api.messages import MessagesDialect
from workflow_composer.server.api.responses import ResponsesDialect
from workflow_composer.server.conversations import Conversations
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.openapi import document
from workflow_composer.types import LLMRequest

PATHS = {
    "/v1/chat/completions": (chat.FORM, lambda body: ChatDialect().read(body, {})),
    "/v1/completions": (completions.FORM, lambda body: CompletionsDialect().read(body, {})),
    "/v1/responses": (response_form.FORM, lambda body: ResponsesDialect(Conversations()).read(body, {})),
    "/v1/messages": (message_form.FORM, lambda body: MessagesDialect().read(body, {})),
    passing.COUNT: (passing.COUNTED, lambda body: message_form.asked_of(body, {}, passing.COUNTED)),
    **dict.fromkeys(
        passing.PATHS, (passing.FORM, lambda body: address_of(passing.FORM.read(body)[1].get("model"), *[None] * 4))
    ),
    "/v1/embeddings": (embeddings.FORM, lambda body: read_embeddings(body, {})),
    "/v1/feedback": (FEEDBACK, FEEDBACK.read),
    "/admin/strategy": (SWITCH, SWITCH.read),
    "/admin/strategy/rollback": (ROLLBACK, ROLLBACK.read),
    "/admin/plugins/reload": (RELOAD, RELOAD.read),
    "/admin/plugins/rollback": (RELOAD, RELOAD.read),
}
BESIDE = {"stream": ("stream_options",), "model": ("metadata.task_type",)}
"""Options of streams without a stream, and ``task:`` without a name, are refused as what they are."""
FIELDS = [(path, name) for path, (form, _) in PATHS.items() for name in form.fields]
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


def failure(path: str, body: dict[str, Any]) -> HttpFailure | None:
    """Why a body is refused, if it is; anything else that is raised fails the test."""
    try:
        PATHS[path][1](sent(body))
    except HttpFailure as found:
        return found
    return None


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_the_schema_allows_are_read(path):
    """Whole bodies, with any of the fields."""
    schema = PATHS[path][0].schema
    for example in schema["examples"]:
        assert fits(schema, example)
        assert failure(path, example) is None

    @settings(max_examples=60, suppress_health_check=SLOW)
    @given(values(schema))
    def check(body):
        assert failure(path, body) is None

    check()


@pytest.mark.parametrize(("path", "name"), FIELDS)
def test_a_field_is_refused_by_name_exactly_where_its_value_is_outside_the_schema(path, name):
    """Values at the limits and beyond, and each alternative with each of its parts changed, in a body that is right."""
    schema = PATHS[path][0].schema
    body = {**schema["examples"][0], **({"stream": True} if name == "stream_options" else {})}
    good = samples(schema["properties"][name])
    assert all(fits(schema, {**body, name: value}) for value in good)
    for value in (*good, MANY, *(other for one in good for other in variants(one))):
        agrees(path, schema, body, name, value)


@pytest.mark.parametrize("path", PATHS)
def test_one_field_changed_among_many_is_the_one_that_is_refused(path):
    """Whatever stands beside it."""
    schema = PATHS[path][0].schema

    @settings(max_examples=60, suppress_health_check=SLOW)
    @given(values(schema), st.sampled_from(sorted(schema["properties"])), ANY)
    def check(body, name, value):
        agrees(path, schema, body, name, value)

    check()


def agrees(path: str, schema: dict[str, Any], body: dict[str, Any], name: str, value: Any) -> None:
    """The reader refuses the body exactly if it is outside the schema, and names the field."""
    changed = {**body, name: value}
    found = failure(path, changed)
    assert (found is None) == fits(schema, changed), (name, value, found)
    if found is not None:
        beside = BESIDE.get(name, ())
        assert found.status == 400
        assert found.param == name or found.param.startswith((f"{name}.", f"{name}[")) or found.param in beside


@pytest.mark.parametrize("path", PATHS)
@given(name=st.from_regex(r"x_[a-z]{1,8}", fullmatch=True), value=ANY)
def test_a_field_that_the_form_does_not_know_is_refused_only_where_the_schema_is_closed(path, name, value):
    schema = PATHS[path][0].schema
    body = {**schema["examples"][0], name: value}
    found = failure(path, body)
    assert (found is None) == fits(schema, body)
    assert found is None or found.param == name


@pytest.mark.parametrize("path", PATHS)
def test_the_document_describes_a_body_by_its_form(path):
    (operation,) = (one for method, one in document()["paths"][path].items() if method in {"post", "put"})
    form = PATHS[path][0]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == form.schema
    passed = path in passing.PATHS  # any object, but no empty body
    assert operation["requestBody"]["required"] == (passed or any(field.required for field in form.fields.values()))


def test_every_body_of_the_document_has_a_form_here():
    described = {
        path
        for path, methods in document()["paths"].items()
        for one in methods.values()
        if "application/json" in one.get("requestBody", {}).get("content", {})
    }
    assert described == {*PATHS, "/v1/batches"}  # whose form depends on the paths of the service


@pytest.mark.parametrize("path", PATHS)
def test_values_go_to_attributes_that_a_request_has(path):
    attributes = {one.name for one in dataclasses.fields(LLMRequest)}
    aims = [field.to for field in PATHS[path][0].fields.values() if field.to is not None]
    assert set(aims) <= attributes
    assert len(set(aims)) == len(aims)


# ----------------------------------------------------------------------------------------------------------- one form

FORM = Form(
    {
        "size": Field(field_checks.whole(least=1), "max_tokens"),
        "name": Field(field_checks.text, required="must be there"),
        "by": refused("cannot be honoured"),
        "user": left_out("says nothing"),
    },
    translated=True,
    example={"name": "a"},
)
CLOSED = Form({"name": Field(field_checks.text)}, closed="is not known", code="a_code", example={})


def test_values_go_to_the_request_or_to_the_caller_and_the_unknown_is_handed_back():
    assert FORM.read(sent({"size": 5.0, "name": "a", "x": 1, "y": None})) == (
        {"max_tokens": 5},
        {"name": "a"},
        {"x": 1},
        [],
    )


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_a_field_that_asks_for_nothing_is_neither_refused_nor_warned_of(value):
    _, own, extra, warnings = FORM.read(sent({"name": "a", "by": value, "user": value}))
    assert (own.get("by"), extra, warnings) == (None, {}, [])


def test_a_field_that_asks_for_something_is_refused_or_warned_of():
    assert FORM.read(sent({"name": "a", "user": "x"}))[3] == ["user is ignored: says nothing"]
    with pytest.raises(HttpFailure, match="by: cannot be honoured") as caught:
        FORM.read(sent({"name": "a", "by": "x"}))
    assert (caught.value.param, caught.value.code) == ("by", "unsupported_parameter")


@pytest.mark.parametrize("body", [{}, {"name": None}])
def test_a_required_field_that_is_missing_or_null_is_named(body):
    with pytest.raises(HttpFailure, match="name: must be there"):
        FORM.read(sent(body))


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_a_chats_field_that_the_form_lacks_is_refused_whatever_it_holds(name):
    with pytest.raises(HttpFailure, match=f"{name}: is not a field of this API") as caught:
        FORM.read(sent({"name": "a", name: False}))
    assert caught.value.code == "unsupported_parameter"
    assert FORM.read(sent({"name": "a", name: None}))[2] == {}


def test_a_closed_form_refuses_what_it_does_not_know_but_for_nulls():
    assert CLOSED.read(sent({"name": "a", "x": None})) == ({}, {"name": "a"}, {}, [])
    with pytest.raises(HttpFailure, match="x: is not known") as caught:
        CLOSED.read(sent({"x": False}))
    assert (caught.value.param, caught.value.code) == ("x", "a_code")


def test_parts_of_an_object_are_named_with_it():
    check = field_checks.record({"effort": field_checks.text})
    assert check("reasoning", {"effort": "low", "summary": None}) == {"effort": "low"}
    for value, param in (({"effort": 1}, "reasoning.effort"), ({"summary": 1}, "reasoning.summary"), ([], "reasoning")):
        with pytest.raises(HttpFailure) as caught:
            check("reasoning", value)
        assert caught.value.param == param


@pytest.mark.parametrize(
    "schema",
    [
        {},
        schemas.NULL,
        schemas.TEXT,
        schemas.constant("a"),
        schemas.constant(None, "a"),
        schemas.either(schemas.TEXT, schemas.listed(schemas.TEXT)),
    ],
)
def test_what_may_be_null_allows_null_and_nothing_else_more(schema):
    found = schemas.nullable(schema)
    assert fits(found, None)
    for value in ("a", "b", 1, [], ["a"], {}):
        assert fits(found, value) == fits(schema, value)
    assert not set(found) & ANNOTATIONS


def test_the_document_allows_no_more_answers_than_a_request_may_make_calls():
    """Whoever goes by the document is not refused for the service's own limit."""

    def most(path, *limit):
        body = document(*limit)["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return body["properties"]["n"]["maximum"]

    for path in ("/v1/chat/completions", "/v1/completions"):
        assert (most(path, 5), most(path, 1000), most(path)) == (5, 128, 128)
