"""The service without a named strategy: it detects one, as every command does."""

from __future__ import annotations

import pytest

from tests.integration.service import Service, echoing
from tests.integration.stub_server import MODEL
from workflow_composer.backends.replicas.registry import REGISTRY_VARIABLE, Entry, ServerRegistry


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_service_finds_own_servers_by_itself_and_leaves_a_key_alone(tmp_path, workers):
    """With a server of the fleet and a cloud key: the profile that stays on one's own machines."""
    with echoing() as stub:
        place = {"host": stub.host, "port": stub.port, "model": MODEL}
        ServerRegistry(tmp_path / "registry").publish(
            Entry(server="g", role="generalist", state="ready", started=1.0, updated=0.0, **place)
        )
        environ = {REGISTRY_VARIABLE: str(tmp_path / "registry"), "OPENAI_API_KEY": "k", "XDG_CONFIG_HOME": str(tmp_path)}
        with Service(None, "--workers", workers, folder=tmp_path, environ=environ) as service:
            status, headers, _ = service.ask("hello")
    assert status == 200
    assert headers["x-workflow-composer-strategy"] == "t4_local_only"
