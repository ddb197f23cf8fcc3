"""Where metrics go. A sink never fails a request: what it cannot write it reports once and drops."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from workflow_composer.metrics.record import RoutingMetric

METRICS_VARIABLE = "WORKFLOW_COMPOSER_METRICS"
"""Another file for the metrics than ``logs/routing_metrics.jsonl``; ``off`` writes none."""

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
    """

    def __init__(self, path: str | os.PathLike[str], *, on_trouble: Callable[[str], None] | None = None) -> None:
        self.path = Path(path)
        self._on_trouble = on_trouble or _warn
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._troubled = False
        self._broken_line = False

    def write(self, metric: RoutingMetric) -> None:
        """Append the metric's line."""
        try:
            self._append(metric.to_json())
        except (OSError, TypeError, ValueError) as error:
            if not self._troubled:
                self._troubled = True
                reason = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
                self._on_trouble(f"metrics cannot be written to {self.path}: {reason}; requests go on without them")

    def _append(self, line: bytes) -> None:
        with self._lock:  # so that no thread writes to a descriptor that another has just closed
            if self._descriptor is None:
                self._descriptor = self._open()
            if self._broken_line:
                line = b"\n" + line
            written = os.write(self._descriptor, line)
            self._broken_line = 0 < written < len(line)  # the disk filled up in mid-line
            if written < len(line):
                raise OSError(0, "only a part of the line could be written")

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # A machine that lost power may have left half a line; the next one must not be glued to it.
        size = os.fstat(descriptor).st_size
        self._broken_line = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return descriptor

    def close(self) -> None:
        """Close the file; a metric that comes later opens it again."""
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


class NullSink:
    """Drops everything."""

    def write(self, metric: RoutingMetric) -> None:
        """Drop it."""

    def close(self) -> None:
        """Nothing is held."""


def metrics_file(environ: Mapping[str, str]) -> Path | None:
    """The file that the environment asks for, relative to the working directory; None where metrics are off."""
    named = environ.get(METRICS_VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    return Path(named).expanduser() if named else DEFAULT_FILE


def default_sink(environ: Mapping[str, str]) -> MetricsSink:
    """The sink that the environment asks for."""
    path = metrics_file(environ)
    return NullSink() if path is None else JsonlSink(path)


def _warn(message: str) -> None:
    import logging

    logging.getLogger("workflow_composer").warning(message)
