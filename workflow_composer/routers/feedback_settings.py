"""The settings of the execution-feedback router, as profiles write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workflow_composer.calibration.signals import DEFAULT_RULES, Rules
from workflow_composer.routers.base import RouterSettings

STRONGEST = "strongest"

Names = Annotated[tuple[str, ...], Field(strict=False)]


class AuditSettings(RouterSettings):
    """How accepted answers are checked in use."""

    rate: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of accepted answers that is drawn for a check; 0: none, and an alarm that stands holds",
    )
    by: str = Field(
        "feedback",
        pattern=r"^(feedback|strongest|python:[\w.]+:\w+)$",
        description="who checks: `feedback` (people, by the command of that name), `strongest` (the last tier answers, too, "
        "and final answers are compared), `python:MODULE:FUNCTION` (your own: from request and response to true, false or "
        "None)",
    )
    file: str | None = Field(None, min_length=1, description="where audits are kept; default: logs/audits.jsonl")
    level: float = Field(0.05, gt=0, lt=1, description="probability of ever raising a false alarm")


Audit = Annotated[AuditSettings, BeforeValidator(lambda value: dict(value) if isinstance(value, Mapping) else value)]
"""A profile's mappings are read-only ones, which pydantic does not take for a model."""


class ExecutionFeedbackSettings(RouterSettings):
    """Settings of `ExecutionFeedbackRouter`."""

    certificate: str | None = Field(
        None, min_length=1, description="file of the certificate that decides, relative to the profile's; none: rules decide"
    )
    tiers: Names = Field((), description="tiers or models, cheap ones first; default: all tiers of the profile")
    tasks: Names = Field((), description="tasks that are routed so; default: all")
    task_floors: Mapping[str, str | int] = Field(
        default_factory=dict,
        description="task -> the lowest tier that it is ever given to: its name, or its number from 1; "
        "`*` stands for every task that is not listed",
    )
    unknown: Literal["vote", "escalate", "accept"] = Field(
        "escalate",
        description="what is done where a model gives no log-probabilities: `vote` (sample and vote), `escalate`, `accept`",
    )
    votes: int = Field(5, ge=2, le=1024, description="samples of such a vote")
    vote_target: float = Field(0.75, gt=0, le=1, description="share of its votes from which such an answer is accepted")
    vote_temperature: float = Field(0.7, gt=0, le=2, description="temperature of such a vote")
    abandon: Literal["streams", "always", "never"] = Field(
        "streams",
        description="when an answer that cannot be accepted any more is abandoned before its end: in `streams`, `always` "
        "(every call is then made as a stream), `never`",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="temperature of all tiers, whatever the request's; default: the certificate's, or the request's",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="alternatives asked for beside each token; default: the certificate's, or 5"
    )
    safety_threshold: float = Field(
        DEFAULT_RULES.safety_threshold, ge=0, le=1, description="rule: least probability per token (geometric mean)"
    )
    entropy: float = Field(DEFAULT_RULES.entropy, gt=0, description="rule: largest mean entropy of the tokens (nats)")
    binary_entropy: float = Field(
        DEFAULT_RULES.binary_entropy, gt=0, le=1, description="rule: largest mean binary entropy (bits)"
    )
    min_logprob: float = Field(DEFAULT_RULES.min_logprob, lt=0, description="rule: least log-probability of any token")
    low_confidence_ratio: float = Field(
        DEFAULT_RULES.low_confidence_ratio, ge=0, le=1, description="rule: largest share of tokens less likely than 0.5"
    )
    audit: Audit = Field(
        default_factory=lambda: AuditSettings.model_validate({}),
        description="how the answers that a certificate accepts are checked in use",
    )

    @model_validator(mode="after")
    def _floors_are_tiers(self) -> Self:
        for task, floor in self.task_floors.items():
            if isinstance(floor, bool):
                raise ValueError(f"task_floors.{task}: {floor} is neither a tier's name nor its number")  # noqa: TRY004  # pydantic wants ValueError
        return self

    @property
    def rules(self) -> Rules:
        """The rules."""
        return Rules(self.safety_threshold, self.entropy, self.binary_entropy, self.min_logprob, self.low_confidence_ratio)
