"""Metrics sinks. A sink never fails a request: it reports a write error once and drops the metrics."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from workflow_composer.metrics.record import RoutingMetric
from workflow_composer.storage.appending import LineFile
from workflow_composer.support.line_writer import LineWriter
from workflow_composer.support.places import log_file

METRICS_VARIABLE = "WORKFLOW_COMPOSER_METRICS"
"""Environment variable: the metrics file instead of the default one; ``off`` disables metrics."""

TOGETHER = 0.02
"""Seconds for which a service buffers lines before it writes them together."""

METRICS_FILE = "routing_metrics.jsonl"
"""The metrics file's name in its default folder."""

_PATIENCE, _LONG_PATIENCE = 0.05, 2.0
"""Seconds to wait for another process that appends: while requests are served, and at the end."""
_MOST_WAITING = 10_000
"""Maximum number of lines that wait for the file's lock, which is normally held for microseconds."""


class MetricsSink(Protocol):
    """Accepts the metric of every request, from any thread."""

    def write(self, metric: RoutingMetric) -> None:
        """Accept one metric. Must be fast and must not raise."""
        ...

    def close(self) -> None:
        """Release resources; safe to call twice."""
        ...


class JsonlSink:
    """Appends one line of JSON per request to a file. The first line creates the file and its folder.

    Any number of processes may append to it (`storage.appending`), and it may be rotated by moving it, or by copying and
    truncating it.

    ``on_trouble`` is called once with the reason if lines cannot be written (default: a warning in the log). Every metric
    tries again, so writing resumes when the disk has space again.

    ``together``: seconds for which lines are buffered to write several at once, for thousands of requests per second. The
    next line after that time, `flush` and `close` write the buffer, also of lines that came while another process held the
    file's lock.
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
        self._gathering = 0
        self._written_at = float("-inf")
        self._on_trouble = on_trouble or _warn
        self._lock = threading.Lock()
        self._troubled = False
        self._held_up = False
        _sinks.add(self)

    def forked(self) -> None:
        """Start afresh in a forked child; the lines that wait are the parent's to write."""
        self._lock = threading.Lock()
        self._waiting = []

    def write(self, metric: RoutingMetric) -> None:
        """Append the metric's line."""
        try:
            line = metric.to_json()
        except (TypeError, ValueError, OverflowError) as error:  # a field of the wrong type, or a number that is not finite
            self._report(f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self._waiting.append(line)
            now = time.monotonic()
            if now - self._written_at >= (max(self._together, TOGETHER) if self._gathering else self._together):
                self._written_at = now
                self._append(0.0 if self._held_up else _PATIENCE)

    def flush(self) -> None:
        """Write the buffered lines."""
        if self._waiting:
            with self._lock:
                self._written_at = time.monotonic()
                self._append(0.0)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Buffer lines for `TOGETHER` seconds while a run makes many requests; several runs may do so at a time."""
        with self._lock:
            self._gathering += 1
        try:
            yield
        finally:
            with self._lock:
                self._gathering -= 1
            self.flush()

    def close(self) -> None:
        """Write the buffered lines and close the file; a later metric reopens it."""
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
            self._on_trouble(f"cannot write metrics to {self.path}: {reason}; requests continue without them")


class ThreadedSink(JsonlSink):
    """A `JsonlSink` for an event loop: a thread appends the lines, so that nothing which holds up the file delays a request.

    Lines that come while another process holds the file's lock wait, up to `line_writer.MOST_BYTES`.
    """

    def __init__(self, path: str | os.PathLike[str], *, on_trouble: Callable[[str], None] | None = None) -> None:
        super().__init__(path, on_trouble=on_trouble, together=TOGETHER)
        self._writer = LineWriter(self._written)

    def forked(self) -> None:
        """Start afresh in a forked child, which has no copy of the thread."""
        super().forked()
        self._writer = LineWriter(self._written)

    def close(self) -> None:
        """Write the buffered lines and close the file, unless it is held up; a later metric reopens it."""
        self.flush()
        if self._writer.flush(_LONG_PATIENCE):
            self._file.close()
        else:
            self._report("it is locked or does not take any lines")

    def _append(self, wait: float) -> None:
        if self._waiting:
            self._writer.put(b"".join(self._waiting))
            self._waiting.clear()

    def _written(self, lines: bytes, dropped: int) -> bool:
        if dropped:
            self._report(f"{dropped} lines were dropped while it took none")
        try:
            self._file.append(lines, wait=_LONG_PATIENCE)
        except TimeoutError:
            return False
        except OSError as error:
            self._report(error.strerror or str(error))
        return True


@contextmanager
def gathered(sinks: Sequence[MetricsSink]) -> Iterator[Callable[[], None]]:
    """Let files of metrics buffer their lines, as `JsonlSink.gathering`; the value writes those that wait."""
    files = [sink for sink in sinks if isinstance(sink, JsonlSink)]

    def flush() -> None:
        for file in files:
            file.flush()

    with ExitStack() as stack:
        for file in files:
            stack.enter_context(file.gathering())
        yield flush


_sinks: weakref.WeakSet[JsonlSink] = weakref.WeakSet()


def _after_fork() -> None:
    for sink in _sinks:
        sink.forked()


os.register_at_fork(after_in_child=_after_fork)


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

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def metrics_file(environ: Mapping[str, str], logs: str | None = None) -> Path | None:
    """Return the metrics file: the environment's, else that in the folder ``logs`` (a profile's), else the user's.

    Relative paths are relative to the working directory. None if metrics are off.
    """
    named = environ.get(METRICS_VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    return Path(named).expanduser() if named else log_file(environ, METRICS_FILE, logs)


def default_sink(environ: Mapping[str, str], logs: str | None = None) -> NullSink | JsonlSink:
    """Return the sink of `metrics_file`."""
    path = metrics_file(environ, logs)
    return NullSink() if path is None else JsonlSink(path)


def service_sink(
    environ: Mapping[str, str], on_trouble: Callable[[str], None], logs: str | None = None
) -> NullSink | ThreadedSink:
    """Like `default_sink`, for a service: buffers lines and relies on periodic calls of `flush`."""
    path = metrics_file(environ, logs)
    return NullSink() if path is None else ThreadedSink(path, on_trouble=on_trouble)


def _warn(message: str) -> None:
    import logging

    logging.getLogger("workflow_composer").warning(message)
