"""The service's log: one JSON object per line on standard error, with the request ID; without prompts and keys."""

from __future__ import annotations

import sys
from typing import Any

from workflow_composer.config.redaction import scrub


class ServiceLog:
    """Writes events. ``worker`` is the number of this process among several."""

    def __init__(self, *, worker: int | None = None) -> None:
        import structlog

        processors: list[Any] = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redacted,
            structlog.processors.JSONRenderer(),
        ]
        # Look up standard error for every line: it may be replaced, and a closed one must not end the service.
        structlog.configure(
            processors=processors, logger_factory=lambda *_: _StandardError(), cache_logger_on_first_use=True
        )
        bound = {} if worker is None else {"worker": worker}
        self._log = structlog.get_logger("workflow_composer").bind(**bound)

    def event(self, event: str, **fields: Any) -> None:
        """Log an event."""
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log an event that needs an operator's attention."""
        self._log.warning(event, **fields)


class _StandardError:
    """The output of structlog."""

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # a closed pipe or a full disk must not fail requests
            return

    debug = info = warning = warn = error = critical = exception = log = msg


def _redacted(logger: Any, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_keys(value) for name, value in fields.items()}


def _without_keys(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {name: _without_keys(one) for name, one in value.items()}
    return [_without_keys(one) for one in value] if isinstance(value, (list, tuple)) else value
