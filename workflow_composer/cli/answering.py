"""Answering one prompt: streamed on a terminal, whole elsewhere, or as JSON.

Loads nothing that only runs over files need: most of the processor time of a single answer is that of imports.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from workflow_composer.cli.output import known_cost, print_json, printable
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.runtime.streams import SyncResponseStream
    from workflow_composer.types import LLMResponse

_PATIENCE = 2.0
"""Seconds of silence before the terminal shows that the answer is awaited."""


def answer_prompt(state: State, prompt: str, fields: Mapping[str, Any]) -> None:
    """Print the answer to standard output and nothing else; warnings go to standard error.

    With ``--json`` it is printed with everything that is known of it.
    """
    with state.orchestrator() as orchestrator:
        if state.json:
            print_json(to_dict(orchestrator.generate(prompt, **fields)))
            return
        if sys.stdout.isatty() and not fields.get("logprobs"):
            with orchestrator.stream(prompt, **fields) as stream:
                show_stream(stream)
            response = stream.response
        else:
            with Awaited(sys.stderr):
                response = orchestrator.generate(prompt, **fields)
            _print_whole(response, fields)
        if response is not None and (warning := response.warning or silence_of(response)):
            click.echo(f"warning: {printable(warning)}", err=True)


def silence_of(response: LLMResponse) -> str:
    """Say why an answer is empty; empty if it is not."""
    if response.text.strip() or response.tool_calls:
        return ""
    sample = response.samples[0] if response.samples else None
    if sample is None or not sample.reasoning.strip():
        return "the answer is empty"
    if sample.finish_reason == "length":
        return "the model only thought, up to the limit of its tokens, and gave no answer; raise --max-tokens"
    return "the model only thought, and gave no answer; another may answer"


def _print_whole(response: LLMResponse, fields: Mapping[str, Any]) -> None:
    click.echo(printable(response.text) if sys.stdout.isatty() else response.text)
    if fields.get("logprobs"):
        for token, logprob in _logprobs(response) or ():
            click.echo(f"{logprob:10.4f}  {token!r}")


def show_stream(stream: SyncResponseStream, hear: Callable[[str], object] = lambda _: None) -> None:
    """Print an answer to a terminal as it comes, and a line end behind it; ``hear`` gets each piece as it came.

    What was printed stays if the stream breaks. Raises the stream's errors, and `KeyboardInterrupt`.
    """
    ended = True
    try:
        with Awaited(sys.stderr) as awaited:
            for chunk in stream:
                hear(chunk.text)
                if text := printable(chunk.text):
                    awaited.end()
                    click.echo(text, nl=False)
                    ended = text.endswith("\n")
    finally:
        if not ended:
            click.echo()


class Awaited:
    """Shows on a terminal's last line for how long an answer has been awaited, until `end`, which clears the line.

    Nothing is shown in the first two seconds, or on anything but a terminal.
    """

    def __init__(self, stream: TextIO, *, patience: float = _PATIENCE) -> None:
        self._stream = stream
        self._patience = patience
        self._over = threading.Event()
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread = threading.Thread(target=self._show, name="awaited", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Clear the line; does nothing the second time."""
        if self._thread is not None and not self._over.is_set():
            self._over.set()
            self._thread.join()

    def _show(self) -> None:
        shown = False
        while not self._over.wait(1.0 if shown else self._patience):
            shown = True
            waited = time.monotonic() - self._began
            self._write(f"\r\x1b[K{click.style(f'waiting for the answer, {waited:.0f} s', dim=True)}")
        if shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone; the answer goes on
            self._over.set()


def _logprobs(response: LLMResponse) -> list[list[Any]] | None:
    if not response.samples or response.samples[0].logprobs is None:
        return None
    from workflow_composer.batch.run.answer_file import logprobs_of

    return logprobs_of(response)


def to_dict(response: LLMResponse) -> dict[str, Any]:
    """Return the response as plain data; times in milliseconds, cost in dollars."""
    from dataclasses import asdict

    found: dict[str, Any] = {
        "text": response.text,
        "model": response.model,
        "decision": {**asdict(response.decision), "escalated": response.decision.escalated},
        "finish_reason": response.samples[0].finish_reason if response.samples else None,
        "tool_calls": [dict(call) for call in response.tool_calls],
        "confidence": response.confidence,
        "accepted": response.accepted,
        "warning": response.warning,
        "usage": asdict(response.usage),
        "cost": known_cost(response.cost, not response.cost_known),
        "cost_known": response.cost_known,
        "latency_ms": response.latency_ms,
        "overhead_ms": response.overhead_ms,
        "attempts": [asdict(attempt) for attempt in response.attempts],
        "request_id": response.request_id,
    }
    if (logprobs := _logprobs(response)) is not None:
        found["logprobs"] = logprobs
    return found
