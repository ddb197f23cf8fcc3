"""What a tier will probably cost, from what its model's answers have cost so far: for budgets."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from workflow_composer.types import LLMRequest, Usage

UNSEEN_ANSWER = 512
"""Tokens of an answer where neither the request limits it nor any answer has been seen."""
CHARACTERS_PER_TOKEN = 4.0
_MEMORY = 20
"""So many of the last calls count."""
_NOTHING = (0, 0, 0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens, and seconds of GPU time, that a call will probably take."""

    usage: Usage
    gpu_seconds: float


class Forecast:
    """Means over one endpoint's last answers: tokens per character of prompt, tokens per answer, GPU time per token.

    Sums are kept up to date, so that neither a call that ends nor a budget that asks has to look at all of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: deque[tuple[int, int, int, int, float]] = deque()
        self._sums = (0, 0, 0, 0, 0.0)

    def learn(self, request: LLMRequest, usage: Usage, samples: int, gpu_seconds: float) -> None:
        """Take note of one call that ended well."""
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        call = (request.query_length if prompt else 0, prompt, answer, samples if answer else 0, gpu_seconds)
        with self._lock:
            seen = self._seen
            seen.append(call)
            gone = seen.popleft() if len(seen) > _MEMORY else _NOTHING
            old = self._sums
            self._sums = (
                old[0] + call[0] - gone[0],
                old[1] + call[1] - gone[1],
                old[2] + call[2] - gone[2],
                old[3] + call[3] - gone[3],
                old[4] + call[4] - gone[4],
            )

    def gpu_seconds(self, tokens: int) -> float | None:
        """GPU time that an answer of so many tokens takes; None where none has been seen."""
        _, _, answered, _, gpu = self._sums
        return tokens * max(gpu, 0.0) / answered if answered else None

    def expect(self, request: LLMRequest, samples: int) -> Expected:
        """What ``samples`` answers to this request will take, in one call. ``max_tokens`` limits what is expected."""
        characters, prompts, tokens, drawn, _ = self._sums
        answer = tokens / drawn if drawn else UNSEEN_ANSWER
        if request.max_tokens is not None and (not drawn or request.max_tokens < answer):
            answer = request.max_tokens
        per_character = prompts / characters if characters else 1.0 / CHARACTERS_PER_TOKEN
        usage = Usage(round(request.query_length * per_character), round(answer * samples))
        return Expected(usage, self.gpu_seconds(usage.completion_tokens) or 0.0)
