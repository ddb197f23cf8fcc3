"""The service's log: one JSON object per line on standard error, with the request ID; without prompts and keys.

Lines are written by a thread: who does not read the service's standard error must not stop it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow_composer.config.redaction import scrub
from workflow_composer.support.line_writer import LineWriter

_AT_THE_END = 1.0
"""Seconds at the end in which the last lines are written; a pipe that nobody reads does not hold it up for longer."""


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

    def refusal(self, event: str, **fields: Any) -> None:
        """Log what an operator wanted and did not get."""
        self._log.error(event, **fields)


class _StandardError:
    """The output of structlog."""

    def msg(self, line: str) -> None:
        try:
            sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file and cannot block
            _write_text(line)
        else:
            _lines.put(line.encode("utf-8", "backslashreplace") + b"\n")

    debug = info = warning = warn = error = critical = exception = log = msg


def _write_text(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # a closed one must not fail requests
        return


def _write(lines: bytes, dropped: int) -> bool:
    """Write to the descriptor: a thread that waits in a text file's buffer would block the interpreter's end."""
    try:
        descriptor = sys.stderr.fileno()
        if dropped:
            lost = {"event": "log lines were dropped, because standard error was not read", "lines": dropped}
            lines = json.dumps({**lost, "level": "warning"}).encode() + b"\n" + lines
        while lines:
            lines = lines[os.write(descriptor, lines) :]
    except (OSError, ValueError, AttributeError):  # a closed pipe or a full disk
        pass
    return True


_lines = LineWriter(_write)


class _FromLibraries(logging.Handler):
    """Writes the warnings of libraries (asyncio's, for example) as lines of the log."""

    def __init__(self, log: ServiceLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; its traceback by the name and place of the exception."""
        try:
            said = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit its text
            said = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        more = {} if error is None else {"error": type(error).__name__, "place": _place(error)}
        self._log.warning(said[:_LONGEST], logger=record.name, **more)


_LONGEST = 2000


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


@contextmanager
def writing(log: ServiceLog) -> Iterator[None]:
    """Write the warnings of libraries to the log, which never blocks, and at the end the last lines."""
    handler = _FromLibraries(log)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        _lines.flush(_AT_THE_END)


def _redacted(logger: Any, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_keys(value) for name, value in fields.items()}


def _without_keys(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {name: _without_keys(one) for name, one in value.items()}
    return [_without_keys(one) for one in value] if isinstance(value, (list, tuple)) else value
