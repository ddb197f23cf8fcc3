"""What a model's server does not take: optional fields are left out, and the caller is told; packed bodies are refused."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.integration.service import Service, echo, echoing, serving
from tests.integration.stub_server import Reply

SAY = [{"role": "user", "content": "one two three"}]
FORMS = {"/v1/chat/completions": {"messages": SAY}, "/v1/responses": {"input": "one two three"}}
PACKED = {**FORMS, "/v1/completions": {"prompt": "hi"}, "/v1/messages": {"messages": SAY, "max_tokens": 9}}
VOTE = "mv_one_k2_t0.5"
WARNING = "x-workflow-composer-warning"
LABELS = {"metadata": {"team": "genomics"}}
OPTIONS = {"service_tier": "flex", "prompt_cache_key": "k-1"}


def picky(request):
    """A server that refuses labels as OpenAI does without `store`."""
    if "metadata" in request.json:
        return Reply.error(400, "The 'metadata' parameter is only allowed when 'store' is enabled.", param="metadata")
    return echo(request)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left-out")
    more = {"tiers": {"one": {"model": "p-0"}}, "routers": ["cascade", "cascading_provider"]}
    with echoing() as stub, serving(folder, stub, **more) as service:
        yield service, stub


def asked(service, path, fields, **more):
    """Status, warnings and body of one request."""
    status, headers, body = service.request("POST", path, {"model": "auto", **FORMS[path], **fields, **more})
    return status, headers.get_all(WARNING) or [], body


def sent(stub, since):
    return [request.json for request in stub.requests[since:] if request.method == "POST"]


@pytest.mark.parametrize("model", ["auto", VOTE])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FORMS)
def test_fields_that_only_openai_knows_do_not_reach_other_servers_and_one_warning_names_each(served, path, stream, model):
    service, stub = served
    since = len(stub.requests)
    status, warnings, body = asked(service, path, OPTIONS, stream=stream, model=model)
    assert status == 200, body
    told = [one for one in warnings if "left out" in one]
    assert sorted(one.split()[0] for one in told) == sorted(OPTIONS)
    assert sent(stub, since)
    assert not any(set(OPTIONS) & set(one) for one in sent(stub, since))
    assert asked(service, path, {})[1] == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", FORMS)
def test_a_server_that_refuses_labels_is_asked_without_them_and_the_caller_is_told(served, path, stream):
    """The first time, when it is asked again, and later, when it is known; not a caller that sends none."""
    service, stub = served
    real, stub.answer = stub.answer, picky
    try:
        for _ in range(2):
            status, warnings, body = asked(service, path, LABELS, stream=stream)
            assert status == 200, body
            assert [one.split()[0] for one in warnings] == ["metadata"]
        assert asked(service, path, {}, stream=stream)[1] == []
    finally:
        stub.answer = real


def test_labels_that_a_server_takes_reach_it_without_a_warning(tmp_path):
    with echoing() as stub, serving(tmp_path, stub) as service:
        assert asked(service, "/v1/chat/completions", LABELS)[:2] == (200, [])
        assert sent(stub, 0)[-1]["metadata"] == LABELS["metadata"]


def test_models_in_this_process_take_none_of_it(tmp_path):
    """They are no server's, and have no use for labels either."""
    with Service("development", folder=tmp_path) as service:
        status, warnings, body = asked(service, "/v1/chat/completions", {**OPTIONS, **LABELS}, max_tokens=3)
        assert status == 200, body
        assert sorted(one.split()[0] for one in warnings if "left out" in one) == ["metadata", *sorted(OPTIONS)]


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("field", OPTIONS)
def test_a_wrong_value_is_refused_by_name(served, path, field):
    status, _, body = asked(served[0], path, {field: 7})
    assert (status, json.loads(body)["error"]["param"]) == (400, field)


@pytest.mark.parametrize("encoding", ["br", "zstd", "zstd, gzip", "compress", "gzip, br", "unheard-of"])
@pytest.mark.parametrize("path", PACKED)
def test_a_body_packed_in_a_way_that_is_not_read_gets_415_with_those_that_are(served, path, encoding):
    service, stub = served
    since = len(stub.requests)
    body = gzip.compress(json.dumps({"model": "auto", **PACKED[path]}).encode())
    kind = {"Content-Type": "application/json", "Content-Encoding": encoding}
    status, headers, answer = service.request("POST", path, body, kind)
    assert status == 415
    assert headers["accept-encoding"] == "gzip, deflate"
    error = json.loads(answer)["error"]
    assert "gzip, deflate" in error["message"]
    assert error.get("code", "unsupported_content_encoding") == "unsupported_content_encoding"
    assert stub.requests[since:] == []
    kind["Content-Encoding"] = "gzip"
    assert service.request("POST", path, body, kind)[0] == 200
