"""Settings of the `serve` command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_composer.support.places import state_folder

STATE_VARIABLE = "WORKFLOW_COMPOSER_SERVE_STATE"
"""Environment variable that sets the state directory: spent budgets, audit log, metrics shared between workers."""

ADMIN_VARIABLE = "WORKFLOW_COMPOSER_ADMIN_TOKEN"
"""Environment variable with the token that permits strategy switches."""

METRICS_VARIABLE = "WORKFLOW_COMPOSER_METRICS_TOKEN"
"""Environment variable with the token that ``/metrics`` requires; unset: none."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Listening address and limits. Sizes in bytes, times in seconds; limits apply per worker.

    ``strategy`` is a profile's name or path; None: from the environment, else by detection. Without ``keys_file`` no key is
    required. Without ``admin_token`` the admin API is off. With ``metrics_token``, ``/metrics`` requires it. ``watch``:
    reload the profile file when it changes. ``most_calls`` limits the calls of one request to models. ``debug``: responses
    report decisions in full, and the log contains prompts, without keys. ``cors`` are the web origins that may use the
    service from a browser, ``trusted_proxies`` the addresses whose ``X-Forwarded-For`` is believed. ``keep_files``: days for
    which uploaded files and finished batches are kept; 0: the service takes none.
    """

    strategy: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    state_directory: Path = Path("serve-state")
    keys_file: Path | None = None
    admin_token: str | None = field(default=None, repr=False)
    metrics_token: str | None = field(default=None, repr=False)
    max_body: int = 32 * 2**20
    concurrency: int = 512
    queue: int = 1024
    queue_seconds: float = 10.0
    most_calls: int = 64
    drain_seconds: float = 30.0
    watch: bool = True
    debug: bool = False
    access_log: bool = False
    json: bool = False
    cors: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    keep_files: float = 30.0

    @property
    def open_to_others(self) -> bool:
        """Whether the address accepts connections from other machines."""
        return self.host not in LOOPBACK

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for worker processes, without the admin's token, which is passed separately."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "admin_token"}
        return found | {
            "state_directory": str(self.state_directory),
            "keys_file": None if self.keys_file is None else str(self.keys_file),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, admin_token: str | None) -> ServerSettings:
        """Return the settings from the data of `to_dict`."""
        keys = data["keys_file"]
        places = {"state_directory": Path(data["state_directory"]), "keys_file": None if keys is None else Path(keys)}
        lists = {name: tuple(data[name]) for name in ("cors", "trusted_proxies")}
        return cls(**{**data, **places, **lists, "admin_token": admin_token})


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return the state directory from the environment, else the user's default."""
    if place := environ.get(STATE_VARIABLE, "").strip():
        return Path(place).expanduser().absolute()
    return state_folder(environ) / "serve"
