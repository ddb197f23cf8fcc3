"""What the operator is told by the service: refused keys of model servers, and what a switch would say."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.integration.service import ADMIN, PATIENCE, echoing, serving, write_profile
from tests.integration.stub_server import Reply, StubServer

OPERATOR = {"Authorization": f"Bearer {ADMIN}"}


def until(look, wanted):
    """What ``look`` finds once it is this: workers tell each other of their counts once a second."""
    ends = time.monotonic() + PATIENCE
    while (found := look()) != wanted and time.monotonic() < ends:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_refused_key_is_counted_and_shown_though_another_model_answers(tmp_path, status, path):
    """Over all workers, for whole answers and streams; a model that answers has none."""
    refusing = StubServer()
    refusing.answer = lambda request: Reply.error(status, "no")
    with refusing, echoing() as stub, serving(tmp_path, refusing, stub, options=("--workers", "2")) as service:
        for turn in range(6):
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": bool(turn % 2)}
            assert service.request("POST", path, {"model": "auto", **body})[0] == 200

        def counted():
            page = service.request("GET", "/metrics")[2].decode()
            return re.findall(r'^workflow_composer_refused_keys_total\{model="([^"]+)"\} (\S+)$', page, re.MULTILINE)

        def shown():
            found = json.loads(service.request("GET", "/dashboard/data")[2])
            return {one["name"]: one["refused_keys"] for one in found["servers"]}

        assert until(counted, [("p-0", "6.0")]) == [("p-0", "6.0")]
        assert until(shown, {"p-0": 6, "p-1": 0}) == {"p-0": 6, "p-1": 0}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dry_run_says_what_the_switch_says(tmp_path, workers):
    """In the process that serves, and through the supervisor; nothing is switched by it."""
    with echoing() as stub:
        write_profile(tmp_path, "fit", stub.url)
        write_profile(tmp_path, "no_router", stub.url, routers=["of_nobody"])
        write_profile(tmp_path, "no_plugin", stub.url, plugins=["absent.py"])
        write_profile(tmp_path, "no_backend", stub.url, models={"a": {"backend": "of_nobody"}}, task_routing={"*": "a"})
        with serving(tmp_path, stub, options=("--workers", str(workers))) as service:
            for name in ("no_router", "no_plugin", "no_backend"):
                asked = service.request("PUT", "/admin/strategy?dry_run=true", {"strategy": name}, OPERATOR)
                looked = service.request("GET", f"/admin/strategy?preview={name}", headers=OPERATOR)
                switched = service.request("PUT", "/admin/strategy", {"strategy": name}, OPERATOR)
                assert asked[0] == looked[0] == switched[0] == 400, (name, asked, looked, switched)
                assert asked[2] == looked[2] == switched[2], name
            status, _, body = service.request("PUT", "/admin/strategy?dry_run=true", {"strategy": "fit"}, OPERATOR)
            assert (status, json.loads(body)["to"]) == (200, "fit")
            versions = json.loads(service.request("GET", "/admin/strategy/versions", headers=OPERATOR)[2])
            assert [one["strategy"] for one in versions["versions"]] == ["p"]
            assert service.switch("fit")[0] == 200
