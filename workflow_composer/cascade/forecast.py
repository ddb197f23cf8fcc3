"""What a tier will probably cost, from what its model's answers have cost so far: for budgets."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from workflow_composer.types import LLMRequest, Usage

UNSEEN_ANSWER = 512
"""Tokens of an answer where neither the request limits it nor any answer has been seen."""
CHARACTERS_PER_TOKEN = 4.0
_MEMORY = 20
"""So many of the last calls count."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens, and seconds of GPU time, that a call will probably take."""

    usage: Usage
    gpu_seconds: float


class Forecast:
    """Means over one endpoint's last answers: tokens per character of prompt, tokens per answer, GPU time per token.

    Every call is noted, budgets are rare: so noting is one append, and the means are made when they are asked for.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[LLMRequest, Usage, int, float]] = deque(maxlen=_MEMORY)

    def learn(self, request: LLMRequest, usage: Usage, samples: int, gpu_seconds: float) -> None:
        """Take note of one call that ended well."""
        self._seen.append((request, usage, samples, gpu_seconds))

    def expect(self, request: LLMRequest, samples: int) -> Expected:
        """What ``samples`` answers to this request will take, in one call. ``max_tokens`` limits what is expected."""
        seen = tuple(self._seen)
        characters = sum(asked.query_length for asked, usage, _, _ in seen if usage.prompt_tokens)
        prompts = sum(usage.prompt_tokens for _, usage, _, _ in seen)
        tokens = sum(usage.completion_tokens for _, usage, _, _ in seen)
        drawn = sum(count for _, usage, count, _ in seen if usage.completion_tokens)
        answer = tokens / drawn if drawn else UNSEEN_ANSWER
        if request.max_tokens is not None and (not drawn or request.max_tokens < answer):
            answer = request.max_tokens
        per_character = prompts / characters if characters else 1.0 / CHARACTERS_PER_TOKEN
        usage = Usage(round(request.query_length * per_character), round(answer * samples))
        gpu = sum(seconds for _, _, _, seconds in seen)
        return Expected(usage, usage.completion_tokens * gpu / tokens if tokens else 0.0)
