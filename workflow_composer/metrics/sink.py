"""Where metrics go. A sink never fails a request: what it cannot write it reports once and drops."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from workflow_composer.metrics.record import RoutingMetric

METRICS_VARIABLE = "WORKFLOW_COMPOSER_METRICS"
"""Another file for the metrics than ``logs/routing_metrics.jsonl``; ``off`` writes none."""

TOGETHER = 0.02
"""Seconds within which a service's lines are written together."""

DEFAULT_FILE = Path("logs/routing_metrics.jsonl")


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

    A line is one ``write`` to a descriptor in append mode, which a local file system does not interleave with those of
    other processes. (NFS has no append: let each machine write a file of its own.) To rotate the file, copy and truncate it.

    ``on_trouble`` is told, once, why lines cannot be written (default: a warning in the log). Writing is tried again with
    every metric, so lines come back when there is room on the disk again.

    ``together``: seconds for which a line may wait for others, to be written with them; for who writes thousands a second.
    What waits is written by the next line that comes later, by `flush`, and by `close`.
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
        self._waiting: list[bytes] = []
        self._written_at = float("-inf")
        self._on_trouble = on_trouble or _warn
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._troubled = False
        self._broken_line = False

    def write(self, metric: RoutingMetric) -> None:
        """Append the metric's line."""
        try:
            line = metric.to_json()
        except (TypeError, ValueError, OverflowError) as error:  # a field that is no text or number, or not a finite one
            self._report(f"{type(error).__name__}: {error}")
            return
        if self._together:
            with self._lock:
                self._waiting.append(line)
                now = time.monotonic()
                if now - self._written_at < self._together:
                    return
                line = self._gathered(now)
        self._append(line)

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            with self._lock:
                lines = self._gathered(time.monotonic())
            self._append(lines)

    def _gathered(self, now: float) -> bytes:
        self._written_at = now
        lines = b"".join(self._waiting)
        self._waiting.clear()
        return lines

    def _append(self, lines: bytes) -> None:
        try:
            with self._lock:  # so that no thread writes to a descriptor that another has just closed
                if self._descriptor is None or self._broken_line:
                    lines = self._ready(lines)
                written = os.write(self._descriptor, lines)  # type: ignore[arg-type]  # _ready has opened it
            if written != len(lines):
                self._report("the disk filled up in mid-line")
        except OSError as error:
            self._report(error.strerror or str(error))

    def _ready(self, line: bytes) -> bytes:
        """Open the file where it is not; put a line end in front of the line where the file does not end with one."""
        if self._descriptor is None:
            self._descriptor = self._open()
            # A machine that lost power may have left half a line.
            size = os.fstat(self._descriptor).st_size
            self._broken_line = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        if self._broken_line:
            self._broken_line = False
            return b"\n" + line
        return line

    def _report(self, reason: str) -> None:
        self._broken_line = True  # perhaps; a blank line does no harm
        if not self._troubled:
            self._troubled = True
            self._on_trouble(f"metrics cannot be written to {self.path}: {reason}; requests go on without them")

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Write what waits and close the file; a metric that comes later opens it again."""
        self.flush()
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


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
