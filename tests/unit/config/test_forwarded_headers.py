"""Headers that a profile forwards: named in any case; none with a key, of a connection, or of a client."""

from __future__ import annotations

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError

MODELS = {"m": {"backend": "fake"}}


def config(*names: str) -> StrategyConfig:
    """A profile that forwards these headers."""
    return StrategyConfig(profile_name="p", models=MODELS, task_routing={"*": "m"}, forward_headers=names)


def test_names_are_kept_in_lower_case():
    assert config("X-Tenant", " x-trace ").forward_headers == ("x-tenant", "x-trace")


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "Cookie", "x-api-key", "api-key", "X-Admin-Token", "Host", "Content-Length", "Connection"),
        *("Transfer-Encoding", "Proxy-Authorization", "X-Workflow-Composer-Budget", "X-Forwarded-For", "Forwarded"),
        *("User-Agent", "session-id", "Thread-Id", "x-codex-turn-metadata", "X-Stainless-OS", "x-openwebui-user-email"),
        *("", "a b", "a:b", "x\r\ny", "ü"),
    ],
)
def test_a_name_that_may_not_go_on_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        config(name)
    assert "forward_headers" in str(caught.value)
