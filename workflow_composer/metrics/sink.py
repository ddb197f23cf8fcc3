"""Where metrics go. A sink never fails a request: what it cannot write it reports once and drops."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from workflow_composer.metrics.record import RoutingMetric
from workflow_composer.storage.appending import LineFile

METRICS_VARIABLE = "WORKFLOW_COMPOSER_METRICS"
"""Another file for the metrics than ``logs/routing_metrics.jsonl``; ``off`` writes none."""

TOGETHER = 0.02
"""Seconds within which a service's lines are written together."""

DEFAULT_FILE = Path("logs/routing_metrics.jsonl")

_PATIENCE, _LONG_PATIENCE = 0.05, 2.0
"""Seconds to wait for another process that appends: once while requests are served, and at the end."""
_MOST_WAITING = 10_000
"""Lines that wait for the file's lock; it is held for microseconds, unless by somebody who should not."""


class MetricsSink(Protocol):
    """Takes the metric of every request, from any thread."""

    def write(self, metric: RoutingMetric) -> None:
        """Take one metric. Must be quick, and must not raise."""
        ...

    def close(self) -> None:
        """Release what is held; safe to call twice."""
        ...


class JsonlSink:
    """Appends one line of JSON per request to a file, which is made with its folder when the first line comes.

    Any number of processes may append to it (`storage.appending`), and it may be rotated in either way: moved away, or
    copied and truncated.

    ``on_trouble`` is told, once, why lines cannot be written (default: a warning in the log). Writing is tried again with
    every metric, so lines come back when there is room on the disk again.

    ``together``: seconds for which a line may wait for others, to be written with them; for who writes thousands a second.
    What waits is written by the next line that comes later, by `flush`, and by `close`; so are lines that came while another
    process had the file's lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_trouble: Callable[[str], None] | None = None,
        together: float = 0.0,
    ) -> None:
        self.path = Path(path)
        self._together = together
        self._file = LineFile(self.path)
        self._waiting: list[bytes] = []
        self._written_at = float("-inf")
        self._on_trouble = on_trouble or _warn
        self._lock = threading.Lock()
        self._troubled = False
        self._held_up = False

    def write(self, metric: RoutingMetric) -> None:
        """Append the metric's line."""
        try:
            line = metric.to_json()
        except (TypeError, ValueError, OverflowError) as error:  # a field that is no text or number, or not a finite one
            self._report(f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self._waiting.append(line)
            now = time.monotonic()
            if now - self._written_at >= self._together:
                self._written_at = now
                self._append(0.0 if self._held_up else _PATIENCE)

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            with self._lock:
                self._written_at = time.monotonic()
                self._append(0.0)

    def close(self) -> None:
        """Write what waits and close the file; a metric that comes later opens it again."""
        with self._lock:
            if self._waiting:
                self._append(_LONG_PATIENCE)
            self._file.close()

    def _append(self, wait: float) -> None:
        try:
            self._file.append(b"".join(self._waiting), wait=wait)
        except TimeoutError as error:
            self._held_up = True
            if len(self._waiting) < _MOST_WAITING:
                return
            self._report(str(error.strerror))
        except OSError as error:
            self._report(error.strerror or str(error))
        else:
            self._held_up = False
        self._waiting.clear()

    def _report(self, reason: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._on_trouble(f"metrics cannot be written to {self.path}: {reason}; requests go on without them")


class MemorySink:
    """Keeps metrics in a list; for tests."""

    def __init__(self) -> None:
        self.metrics: list[RoutingMetric] = []
        self.closed = False

    def write(self, metric: RoutingMetric) -> None:
        """Keep it."""
        self.metrics.append(metric)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class TeeSink:
    """Gives every metric to several sinks. One that raises keeps it from none of the others."""

    def __init__(self, *sinks: MetricsSink) -> None:
        self._sinks = sinks

    def write(self, metric: RoutingMetric) -> None:
        """Pass it on; raises the first error once all have had it."""
        failed: Exception | None = None
        for sink in self._sinks:
            try:
                sink.write(metric)
            except Exception as error:  # noqa: BLE001  # whatever it is, the caller hears of it below
                failed = failed or error
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close them all."""
        for sink in self._sinks:
            sink.close()


class NullSink:
    """Drops everything."""

    def write(self, metric: RoutingMetric) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


def metrics_file(environ: Mapping[str, str]) -> Path | None:
    """The file that the environment asks for, relative to the working directory; None where metrics are off."""
    named = environ.get(METRICS_VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    return Path(named).expanduser() if named else DEFAULT_FILE


def default_sink(environ: Mapping[str, str]) -> NullSink | JsonlSink:
    """The sink that the environment asks for."""
    path = metrics_file(environ)
    return NullSink() if path is None else JsonlSink(path)


def service_sink(environ: Mapping[str, str]) -> NullSink | JsonlSink:
    """The same for a service: lines that come at once are written at once; it calls `flush` every now and then."""
    path = metrics_file(environ)
    return NullSink() if path is None else JsonlSink(path, together=TOGETHER)


def _warn(message: str) -> None:
    import logging

    logging.getLogger("workflow_composer").warning(message)
