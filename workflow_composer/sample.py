"""What a model reads and writes: a message, and one answer with what is known of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workflow_composer.values import quick

Message = Mapping[str, Any]
"""One chat message in OpenAI's form: ``{"role": "user", "content": "..."}``."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its log-probability (nats), and the most likely alternatives, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. ``logprobs`` is None where the backend returned none.

    ``score`` is what a gate, a reward model or a judge thinks of it, where the backend has one; more is better.
    ``reasoning`` is what the model thought before, where its server tells that apart; it is no part of the answer.
    """

    text: str
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    score: float | None = None
    reasoning: str = ""

    @property
    def cut_off(self) -> bool:
        """Whether a limit on its length ended it, and not the model."""
        return self.finish_reason == "length"
