"""Whether a tier's answer is taken: by the tier's own rule, and never where it lacks its end or says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workflow_composer.answers.reasoning import says_nothing
from workflow_composer.types import LLMRequest, Sample, Tier, Verdict

CUT_OFF = "the answer was cut off by its length"
EMPTY = "the answer is empty"


def judged(tier: Tier, samples: Sequence[Sample], request: LLMRequest) -> Verdict:
    """What the tier's rule says of its samples; an answer that is cut off or empty is unreadable, and is not accepted.

    A bare completion goes on with a text until its length ends it, so there nothing is looked at.
    """
    verdict = tier.accept(samples)
    if not verdict.accepted or request.kind != "chat":
        return verdict
    fault = fault_of(samples[verdict.choice])
    return replace(verdict, accepted=False, reason=fault, unreadable=1) if fault else verdict


def fault_of(sample: Sample) -> str:
    """Why the sample is no answer; empty where it is one.

    One without a text may call tools; one with a score has been judged already, and its text may not have been recorded.
    """
    if sample.cut_off:
        return CUT_OFF
    if says_nothing(sample.text) and not sample.tool_calls and sample.score is None:
        return EMPTY
    return ""
