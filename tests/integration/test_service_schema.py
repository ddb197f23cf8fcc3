"""The service against its own OpenAPI document, by Schemathesis: what the document says is what the service does.

It stands in an environment of its own: ``WORKFLOW_COMPOSER_CLIENTS_PYTHON`` names the Python there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.clients import VARIABLE, clients_python
from tests.integration.service import ADMIN, Service, chat, echoing, write_profile
from workflow_composer.server.auth.keys import Key, change_keys

SCHEMATHESIS = Path(clients_python() or "python").parent / "schemathesis"
EXAMPLES = "60"

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    pytest.mark.skipif(not SCHEMATHESIS.exists(), reason=f"{VARIABLE} names no Python with the clients"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """The service with keys, and a key."""
    folder = tmp_path_factory.mktemp("schema")
    key, secret = Key.new("schemathesis")
    change_keys(folder / "keys.json", lambda known: known.update({key.id: key}))
    with echoing() as stub:
        write_profile(folder, "other", stub.url)
        options = (
            "--keys",
            str(folder / "keys.json"),
            "--most-calls",
            "20000",
        )  # as many as a body of the document may need
        with Service(write_profile(folder, "p", stub.url), *options) as service:
            headers = {"Authorization": f"Bearer {secret}"}
            assert service.request("POST", "/v1/chat/completions", chat("warm"), headers)[0] == 200
            yield service, secret


def check(service: Service, token: str, folder: Path, *options: str) -> None:
    """Run all checks with a fixed seed, and show what failed."""
    command = [str(SCHEMATHESIS), "run", f"{service.url}/openapi.json", "-H", f"Authorization: Bearer {token}"]
    command += ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1"]
    command += ["--suppress-health-check", "all", "--warnings", "off", "--no-color", "--request-timeout", "10"]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout or " passed in " in done.stdout, done.stdout[-2000:]


def test_the_interface_for_clients_does_what_its_document_says(served, tmp_path):
    """What the document allows is answered, what it forbids is refused, and every answer has the form that it names."""
    service, secret = served
    check(service, secret, tmp_path, "--exclude-path-regex", "^/admin")


def test_the_operators_interface_does_what_its_document_says(served, tmp_path):
    """That a profile of some name exists, no document can promise; so valid requests may be refused here."""
    service, _ = served
    options = ("--include-path-regex", "^/admin", "--exclude-checks", "positive_data_acceptance")
    check(service, ADMIN, tmp_path, *options)


def test_without_a_key_nothing_is_answered_but_what_anybody_may_see(served):
    """Every operation of the document that names a key, asked without one and with a wrong one."""
    service, _ = served
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/feedback",
    ):
        assert service.request("POST", path, chat("hi"))[0] == 401
        assert service.request("POST", path, chat("hi"), {"Authorization": "Bearer wrong"})[0] == 401
    assert service.request("GET", "/v1/models")[0] == 401
    assert service.request("GET", "/admin/strategy")[0] == 401
    assert service.request("GET", "/health")[0] == 200
