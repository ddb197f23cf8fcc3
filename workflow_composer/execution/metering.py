"""What a call used, where the server does not say: estimated from what was sent and what was delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workflow_composer.backends.pricing import Forecast
from workflow_composer.errors import CallTimeout, WorkflowComposerError
from workflow_composer.types import ModelCall, Sample
from workflow_composer.usage import MOST_TOKENS, Delivered, Usage


def of_answer(
    usage: Usage, call: ModelCall, delivery: Delivered | None, samples: Sequence[Sample], forecast: Forecast
) -> Usage:
    """Return the usage of a call that succeeded: as reported; what was not reported is estimated."""
    completion = usage.completion_tokens
    if delivery is not None:
        told = delivery.usage
        usage = usage if told is None else told
        completion = usage.completion_tokens
        if told is None or not completion or delivery.usage_at < delivery.pieces - 1:
            # A count that came before the last pieces (some servers send one with the first) does not include them.
            completion = max(completion, forecast.tokens(delivery))
    elif not completion:
        completion = forecast.of_samples(samples)
    prompt = usage.prompt_tokens or forecast.of_prompt(call.request).prompt_tokens
    return _estimated(usage, prompt, completion)


def of_failure(usage: Usage, call: ModelCall, delivery: Delivered | None, forecast: Forecast) -> Usage:
    """Return the usage of a call that was broken off after it was sent."""
    sending = call.sending
    ended = () if sending is None else sending.ended or ()
    calls = 1 if sending is None else max(0 if ended else 1, sending.sent - len(ended))
    completion = usage.completion_tokens
    if delivery is not None:
        usage = delivery.usage or usage
        whole = delivery.usage is not None and delivery.usage_at >= delivery.pieces
        completion = usage.completion_tokens if whole else max(usage.completion_tokens, forecast.tokens(delivery))
    prompt = usage.prompt_tokens or (forecast.of_prompt(call.request, calls).prompt_tokens if calls else 0)
    found = _estimated(usage, prompt, completion)
    return sum(ended, found)


def is_owed(failure: BaseException, call: ModelCall, delivery: Delivered | None, *, tells: bool) -> bool:
    """Whether the server has worked, or may have worked, for a call that failed.

    ``tells``: the backend says what it has sent. A request that was refused, or that never left, costs nothing.
    """
    if delivery is not None and (delivery.pieces or delivery.usage is not None):
        return True
    if tells and call.sending is not None:
        return call.sending.sent > 0
    if isinstance(failure, WorkflowComposerError):
        return isinstance(failure, CallTimeout) and failure.sent
    return True


def _estimated(usage: Usage, prompt: int, completion: int) -> Usage:
    if prompt == usage.prompt_tokens and completion == usage.completion_tokens:
        return usage
    return replace(
        usage,
        prompt_tokens=min(prompt, MOST_TOKENS),
        completion_tokens=min(completion, MOST_TOKENS),
        estimated=True,
    )
