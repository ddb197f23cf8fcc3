"""When a starting server counts as ready: one token, or one vector, of the model that it should serve."""

from __future__ import annotations

import time

import pytest

from tests.unit.fleet.conftest import until
from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.readiness import Readiness, refuse_another_model
from workflow_composer.fleet.settings import RoleSpec


@pytest.fixture
def stub():
    with serving(StubVLLM()) as made:
        yield made


def role(**keys):
    return RoleSpec(**{"name": "r", "model": "small", "port": 8001, **keys})


def asked(stub, path):
    return sum(found == path for _, found, _ in stub.asked)


def found_after(readiness, stub, path, times=2):
    """What is found when a path has been asked that often, so that an answer has been understood."""

    def enough():
        readiness.poll()
        return asked(stub, path) > times

    until(enough, f"{times} answers of {path}")
    return readiness.poll()


def test_a_token_of_the_model_makes_a_server_ready(stub):
    readiness = Readiness("127.0.0.1", stub.port, role(), "")
    found = until(lambda: (one := readiness.poll()).ready and one, "ready")
    assert (found.why, found.never) == ("", False)
    assert [path for _, path, _ in stub.asked] == ["/health", "/v1/models", "/v1/completions"]
    readiness.poll()
    assert len(stub.asked) == 3, "what is ready is not asked again"


def test_a_pooling_role_is_asked_for_a_vector(stub):
    readiness = Readiness("127.0.0.1", stub.port, role(task="pooling"), "")
    until(lambda: readiness.poll().ready, "ready")
    assert asked(stub, "/v1/embeddings") == 1
    assert asked(stub, "/v1/completions") == 0


@pytest.mark.parametrize(
    ("path", "answer", "why"),
    [
        ("/v1/completions", (503, b"warming up"), "no token: status 503"),
        ("/v1/completions", (200, b"<html>"), "no token in the response"),
        ("/v1/models", (503, b""), "/v1/models lists no model (status 503)"),
        ("/v1/models", (200, b"<html>"), "/v1/models lists no model (status 200)"),
        ("/health", (503, b""), "not healthy (status 503)"),
    ],
)
def test_what_is_healthy_and_warms_up_is_not_ready_until_it_answers(stub, path, answer, why):
    stub.answers[path] = answer
    readiness = Readiness("127.0.0.1", stub.port, role(), "")
    found = found_after(readiness, stub, path)
    assert (found.ready, found.never, found.why) == (False, False, why)
    stub.answers.clear()
    until(lambda: readiness.poll().ready, "ready")


def test_a_server_of_another_model_and_one_that_refuses_the_key_never_get_ready(stub):
    stub.models = ["theirs"]
    readiness = Readiness("127.0.0.1", stub.port, role(), "")
    found = until(lambda: (one := readiness.poll()).never and one, "given up")
    assert found.why == f"port {stub.port} serves theirs, not small"
    stub.models, stub.key = ["small"], "right"
    readiness = Readiness("127.0.0.1", stub.port, role(), "wrong")
    found = until(lambda: (one := readiness.poll()).never and one, "given up")
    assert "wrong" not in found.why
    assert Readiness("127.0.0.1", stub.port, role(), "right") is not None


def test_a_question_that_hangs_delays_no_poll(stub):
    """The supervisor's heartbeat and its signals are looked after between polls."""
    stub.hang.add("/v1/completions")
    readiness = Readiness("127.0.0.1", stub.port, role(), "")
    until(lambda: not readiness.poll().ready and asked(stub, "/v1/completions") == 1, "the token is asked for")
    for _ in range(50):
        assert not readiness.poll().ready
    assert asked(stub, "/v1/completions") == 1


def entry(**fields):
    usual = {"server": "r-2", "role": "r", "host": "127.0.0.1", "port": 1, "model": "other", "state": "ready"}
    return Entry(**{**usual, "started": time.time(), "updated": time.time(), **fields})


def test_two_models_under_one_role_are_refused(folder):
    fleet = folder.fleet({"r": {}})
    mine = role(served_name="mine")
    fleet.registry.publish(entry())
    with pytest.raises(FleetError, match=r"already serves other by r-2 .* cannot serve mine"):
        refuse_another_model(fleet, "r", mine)


@pytest.mark.parametrize("fields", [{"model": "mine"}, {"state": "draining"}, {"server": "r"}, {"role": "s"}])
def test_servers_of_the_model_predecessors_and_other_roles_are_no_obstacle(folder, fields):
    fleet = folder.fleet({"r": {}})
    fleet.registry.publish(entry(**fields))
    refuse_another_model(fleet, "r", role(served_name="mine"))
