"""Answering one prompt."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.run.line_answers import logprobs_of
from workflow_composer.cli.output import dollars, print_json, printable
from workflow_composer.cli.prompt import read_prompt
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.types import LLMResponse


def answer_prompt(state: State, argument: str | None, fields: Mapping[str, Any]) -> None:
    """Print the answer: as it comes on a terminal, at the end elsewhere, as JSON where that is wanted."""
    prompt = read_prompt(argument)
    with state.orchestrator() as orchestrator:
        if state.json:
            print_json(to_dict(orchestrator.generate(prompt, **fields)))
        elif sys.stdout.isatty() and not fields.get("logprobs"):
            _stream(orchestrator, prompt, fields)
        else:
            _print_whole(orchestrator.generate(prompt, **fields), fields)


def _print_whole(response: LLMResponse, fields: Mapping[str, Any]) -> None:
    click.echo(printable(response.text) if sys.stdout.isatty() else response.text)
    if fields.get("logprobs"):
        for token, logprob in logprobs_of(response) or ():
            click.echo(f"{logprob:10.4f}  {token!r}")
    _print_foot(response)


def _stream(orchestrator: ModelOrchestrator, prompt: str, fields: Mapping[str, Any]) -> None:
    ended = True
    try:
        with orchestrator.stream(prompt, **fields) as stream:
            for chunk in stream:
                if text := printable(chunk.text):
                    click.echo(text, nl=False)
                    ended = text.endswith("\n")
    finally:
        if not ended:
            click.echo()
    if stream.response is not None:
        _print_foot(stream.response)


def _print_foot(response: LLMResponse) -> None:
    """A word on who answered, for a person at the terminal."""
    if sys.stderr.isatty():
        seconds, tokens = response.latency_ms / 1000.0, response.usage.total_tokens
        foot = f"[{response.decision.candidate}, {tokens} tokens, {dollars(response.cost)}, {seconds:.1f} s]"
        click.echo(click.style(foot, dim=True), err=True)


def to_dict(response: LLMResponse) -> dict[str, Any]:
    """The answer as plain data; times in milliseconds, cost in dollars."""
    from dataclasses import asdict

    found: dict[str, Any] = {
        "text": response.text,
        "model": response.model,
        "decision": {**asdict(response.decision), "escalated": response.decision.escalated},
        "finish_reason": response.samples[0].finish_reason if response.samples else None,
        "tool_calls": [dict(call) for call in response.tool_calls],
        "confidence": response.confidence,
        "accepted": response.accepted,
        "usage": asdict(response.usage),
        "cost": response.cost,
        "latency_ms": response.latency_ms,
        "overhead_ms": response.overhead_ms,
        "attempts": [asdict(attempt) for attempt in response.attempts],
        "request_id": response.request_id,
    }
    if (logprobs := logprobs_of(response)) is not None:
        found["logprobs"] = logprobs
    return found
