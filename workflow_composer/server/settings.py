"""What `serve` was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE_VARIABLE = "WORKFLOW_COMPOSER_SERVE_STATE"
"""Another folder for what the service keeps: spent budgets, the audit log, what its workers tell each other."""

ADMIN_VARIABLE = "WORKFLOW_COMPOSER_ADMIN_TOKEN"
"""The token that allows to switch the strategy."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen, and what to allow. Sizes in bytes, times in seconds; limits count for each worker.

    ``strategy`` is a profile's name or path; None: the environment's, else detection. Without ``keys_file`` no key is asked
    for. Without ``admin_token`` nobody can switch over the network. ``watch``: a profile file that changes is switched to.
    ``debug``: decisions are told in full, and prompts stand in the log, without keys.
    """

    strategy: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    state_directory: Path = Path("serve-state")
    keys_file: Path | None = None
    admin_token: str | None = field(default=None, repr=False)
    max_body: int = 32 * 2**20
    concurrency: int = 512
    queue: int = 1024
    queue_seconds: float = 10.0
    drain_seconds: float = 30.0
    watch: bool = True
    debug: bool = False
    access_log: bool = False
    json: bool = False

    @property
    def open_to_others(self) -> bool:
        """Whether other machines can connect."""
        return self.host not in LOOPBACK

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the processes of workers; the token travels beside them."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "admin_token"}
        return found | {
            "state_directory": str(self.state_directory),
            "keys_file": None if self.keys_file is None else str(self.keys_file),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, admin_token: str | None) -> ServerSettings:
        """The settings that `to_dict` wrote down."""
        keys = data["keys_file"]
        places = {"state_directory": Path(data["state_directory"]), "keys_file": None if keys is None else Path(keys)}
        return cls(**{**data, **places, "admin_token": admin_token})


def state_directory(environ: Mapping[str, str]) -> Path:
    """The folder that the environment names, else the user's own."""
    if place := environ.get(STATE_VARIABLE, "").strip():
        return Path(place).expanduser().absolute()
    home = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(home) / "workflow-composer" / "serve"
