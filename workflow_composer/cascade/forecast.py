"""What a tier will probably cost, from what its model's answers have cost so far: for budgets."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from workflow_composer.types import LLMRequest, Usage

UNSEEN_ANSWER = 512
"""Tokens of an answer where neither the request limits it nor any answer has been seen."""
CHARACTERS_PER_TOKEN = 4.0
_MEMORY = 0.05
"""Weight of the newest answer in the running means: about the last twenty count."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens, and seconds of GPU time, that a call will probably take."""

    usage: Usage
    gpu_seconds: float


class Forecast:
    """Running means over one endpoint's answers: tokens per character of prompt, tokens per answer, GPU time per token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._per_character = 1.0 / CHARACTERS_PER_TOKEN
        self._answer: float | None = None
        self._gpu_per_token = 0.0

    def learn(self, request: LLMRequest, usage: Usage, samples: int, gpu_seconds: float) -> None:
        """Take note of one call that ended well."""
        characters = request.query_length
        with self._lock:
            if characters and usage.prompt_tokens:
                self._per_character = _mean(self._per_character, usage.prompt_tokens / characters)
            if usage.completion_tokens:
                each = usage.completion_tokens / samples
                self._answer = each if self._answer is None else _mean(self._answer, each)
                if gpu_seconds:
                    own = gpu_seconds / usage.completion_tokens
                    self._gpu_per_token = _mean(self._gpu_per_token, own) if self._gpu_per_token else own

    def expect(self, request: LLMRequest, samples: int) -> Expected:
        """What ``samples`` answers to this request will take, in one call. ``max_tokens`` limits what is expected."""
        answer = UNSEEN_ANSWER if self._answer is None else self._answer
        if request.max_tokens is not None and (self._answer is None or request.max_tokens < answer):
            answer = request.max_tokens
        usage = Usage(round(request.query_length * self._per_character), round(answer * samples))
        return Expected(usage, usage.completion_tokens * self._gpu_per_token)


def _mean(old: float, new: float) -> float:
    return old + _MEMORY * (new - old)
