"""The execution-feedback router: a cheap model answers first, and its log-probabilities decide whether to escalate.

Without a certificate, fixed rules decide. With a certificate, a learned score decides, with a threshold that bounds the
share of wrong answers among the accepted ones (``docs/guarantees.md``). A request that the certificate does not cover goes
to the strongest tier, and its answer is returned as not accepted.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from workflow_composer.answers import Question, reader
from workflow_composer.answers.extraction import function_at
from workflow_composer.answers.form import Patience
from workflow_composer.backends.pricing import Price
from workflow_composer.calibration.certify.certificate import Certificate, Group, ModelIdentity, check, floor_of, uncovered
from workflow_composer.calibration.monitoring.audits import AuditLog, Auditor, Judge, audits_file
from workflow_composer.calibration.scores.acceptance import RuleAcceptance, ScoreAcceptance, Suspended
from workflow_composer.calibration.scores.signals import (
    DEFAULT_RULES,
    VOCABULARY,
    FeedbackRules,
    FeedbackSignal,
    analyze,
    binary_entropy,
    probability_of,
    signal_of,
    token_entropy,
)
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.errors import ConfigError, InputError, RoutingError, WorkflowComposerError
from workflow_composer.metrics.escalation import EscalationStats, EscalationTally
from workflow_composer.plan import Candidate, Plan, Tier, Voting
from workflow_composer.routers.base import KindRouter, RouterContext, RouterSettings, gives_no_logprobs
from workflow_composer.types import ANY_TASK, LLMRequest, LLMResponse, ResourceStatus, TierResult

# ------------------------------------------------------------------------------------------------------------------ judges
#
# The judges that check accepted answers in production: people (the feedback command), a function, or the strongest tier.

Execute = Callable[[Plan, LLMRequest], Awaitable[LLMResponse]]


def judge_by_function(by: str) -> Judge | None:
    """Return the user's function ``python:MODULE:FUNCTION`` as a judge; None for any other ``by``.

    It may be a coroutine function; any other function runs in its own thread. Raises `ConfigError` if the import fails.
    """
    kind, _, place = by.partition(":")
    if kind != "python":
        return None
    function = function_at(place)

    async def judge(request: LLMRequest, response: LLMResponse) -> bool | None:
        found = await asyncio.to_thread(function, request, response)
        if inspect.isawaitable(found):
            found = await found
        return None if found is None else bool(found)

    return judge


def judge_by_answer(plan: Callable[[LLMRequest], Plan], execute: Execute) -> Judge:
    """Return a judge that says whether ``plan`` gives the same final answer; None if either answer cannot be read.

    The request's timeout and budget apply to its answer, not to the check.
    """

    async def judge(request: LLMRequest, response: LLMResponse) -> bool | None:
        again = replace(request, request_id=f"{request.request_id}.audit", model=None, timeout=None, budget=None)
        told = (await execute(plan(again), again)).text
        forms = reader()
        mine, other = forms.read(response.text), forms.read(told)
        if mine is None or other is None:
            return None
        return await Question(forms, other, patience=Patience.of(forms.form)).is_correct(mine)

    return judge


# ---------------------------------------------------------------------------------------------------------------- settings

STRONGEST = "strongest"

Names = Annotated[tuple[str, ...], Field(strict=False)]


class AuditSettings(RouterSettings):
    """Settings of the audits: how accepted answers are checked in production."""

    rate: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of accepted answers that are audited; 0: none, and an existing alarm stays active",
    )
    by: str = Field(
        "feedback",
        pattern=r"^(feedback|strongest|python:[\w.]+:\w+)$",
        description="judge of audited answers: `feedback` (people, with the command `feedback`), `strongest` (the last tier "
        "answers, too, and final answers are compared), `python:MODULE:FUNCTION` (request and response to true, false or "
        "None)",
    )
    file: str | None = Field(None, min_length=1, description="file of the audits; default: audits.jsonl in the state folder")
    level: float = Field(0.05, gt=0, lt=1, description="maximum probability of ever raising a false alarm")


Audit = Annotated[AuditSettings, BeforeValidator(lambda value: dict(value) if isinstance(value, Mapping) else value)]
"""Audit settings from a profile: its mappings are read-only, and pydantic does not accept those for a model."""


class ExecutionFeedbackSettings(RouterSettings):
    """Settings of `ExecutionFeedbackRouter`."""

    certificate: str | None = Field(
        None, min_length=1, description="certificate file, relative to the profile; without one, rules decide"
    )
    tiers: Names = Field((), description="tiers or models, cheapest first; default: all tiers of the profile")
    tasks: Names = Field((), description="tasks that this router plans; default: all")
    task_floors: Mapping[str, str | int] = Field(
        default_factory=dict,
        description="task -> its lowest allowed tier, by name or by number from 1; `*` means every task that is not listed",
    )
    unknown: Literal["vote", "escalate", "accept"] = Field(
        "escalate",
        description="action if a model returns no log-probabilities: `vote` (sample and vote), `escalate`, `accept`",
    )
    votes: int = Field(5, ge=2, le=1024, description="number of samples of such a vote")
    vote_target: float = Field(0.75, gt=0, le=1, description="minimum share of votes to accept the answer of such a vote")
    vote_temperature: float = Field(0.7, gt=0, le=2, description="sampling temperature of such a vote")
    abandon: Literal["streams", "always", "never"] = Field(
        "streams",
        description="when to abandon an unfinished answer that can no longer be accepted: `streams`, `always` (every call "
        "is then a streaming call), `never`",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="temperature of all tiers, overriding the request's; default: the certificate's, or the request's",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="alternative tokens requested per token; default: the certificate's, or 5"
    )
    safety_threshold: float = Field(
        DEFAULT_RULES.safety_threshold, ge=0, le=1, description="rule: minimum probability per token (geometric mean)"
    )
    entropy: float = Field(DEFAULT_RULES.entropy, gt=0, description="rule: maximum mean entropy of the tokens (nats)")
    binary_entropy: float = Field(
        DEFAULT_RULES.binary_entropy, gt=0, le=1, description="rule: maximum mean binary entropy (bits)"
    )
    min_logprob: float = Field(DEFAULT_RULES.min_logprob, lt=0, description="rule: minimum log-probability of any token")
    low_confidence_ratio: float = Field(
        DEFAULT_RULES.low_confidence_ratio, ge=0, le=1, description="rule: maximum share of tokens less likely than 0.5"
    )
    audit: Audit = Field(
        default_factory=lambda: AuditSettings.model_validate({}),
        description="audits of the answers that a certificate accepts",
    )

    @model_validator(mode="after")
    def _floors_are_tiers(self) -> Self:
        for task, floor in self.task_floors.items():
            if isinstance(floor, bool):
                raise ValueError(f"task_floors.{task}: {floor} is neither a tier's name nor its number")  # noqa: TRY004  # pydantic expects ValueError
        return self

    @property
    def rules(self) -> FeedbackRules:
        """The rules that decide without a certificate."""
        return FeedbackRules(
            self.safety_threshold, self.entropy, self.binary_entropy, self.min_logprob, self.low_confidence_ratio
        )


TARGET = "execution_feedback"
DEFAULT_TOP_LOGPROBS = 5


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """The result of one request. Tiers are numbered from 1; costs are in dollars and include all attempts.

    ``initial_response`` and ``final_response`` are equal without escalation. ``feedback_signal`` is computed from the first
    answer: from its first sample in a vote, from the tokens received if it was abandoned. ``confidence`` is None if it is
    unknown.
    """

    initial_tier: int
    final_tier: int
    initial_response: TierResult
    final_response: TierResult
    feedback_signal: FeedbackSignal
    escalated: bool
    accepted: bool
    total_cost: float
    confidence: float | None

    @classmethod
    def of(cls, response: LLMResponse, ladder: Sequence[str], rules: FeedbackRules = DEFAULT_RULES) -> CascadeResult:
        """Return the result of a response; ``ladder`` names the tiers, cheapest first; ``rules`` determine the signal."""
        tiers = response.tiers
        first, final = (
            min(tiers, key=lambda tier: tier.tier),
            next(tier for tier in tiers if tier.tier == response.decision.tier),
        )
        signal = signal_of(first.samples[0], rules) if first.samples else FeedbackSignal("unknown")
        return cls(
            ladder.index(first.name) + 1,
            ladder.index(final.name) + 1,
            first,
            final,
            signal,
            final is not first,
            response.accepted,
            response.cost,
            response.confidence,
        )


class ExecutionFeedbackRouter(KindRouter):
    """Plans chat requests without a model, or with the model ``execution_feedback``, over the profile's tiers.

    Tiers are ordered from cheapest to strongest. ``tier_costs``: dollars per million completion tokens, by tier.
    ``task_floors``: task -> position (from 0) of its lowest allowed tier. `escalation_stats` sums up the cost spent, wasted
    and saved.
    """

    name: ClassVar[str] = TARGET
    repeatable: ClassVar[bool] = False  # an alarm must be noticed at the next request
    Settings: ClassVar[type[RouterSettings]] = ExecutionFeedbackSettings

    def __init__(self, context: RouterContext, settings: object = None) -> None:
        super().__init__(context, settings)  # type: ignore[arg-type]  # whatever it is, the model checks it
        assert isinstance(self.settings, ExecutionFeedbackSettings)
        self._settings = self.settings
        self._specs = self._ladder()
        self._names = tuple(self._specs)
        prices = [Price.of(spec) for spec in self._specs.values()]
        self.tier_costs = dict(zip(self._names, (price.output_per_million for price in prices), strict=True))
        self.task_floors = {task: self._position(floor) for task, floor in self._settings.task_floors.items()}
        self.certificate = self._load()
        self._check_signal()
        self._tally = EscalationTally(self._names[-1], prices[-1].cost)
        self._auditor = None if self.certificate is None else self._make_auditor(self.certificate)

    # ----------------------------------------------------------------------------------------------------- planning

    def plan(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan; None for embeddings, requests for another model, and tasks that the settings exclude."""
        tasks = self._settings.tasks
        if request.kind != "chat" or request.model not in (None, TARGET) or (tasks and request.task_type not in tasks):
            return None
        if self.certificate is not None:
            alarm = self.alarm
            why = f"alarm: {alarm}" if alarm else uncovered(self.certificate, request, self.certificate.temperature)
            if why:
                return self._suspended(why, request, resources, alarm=alarm)
        return super().plan(request, resources)

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan:
        """Return the plan over the usable tiers."""
        group = None if self.certificate is None else self.certificate.group(request.task_type)
        floor = group.first if group is not None else floor_of(request.task_type, self.task_floors)
        tiers: list[Tier] = []
        left_out: list[str] = []
        for index in range(floor, len(self._names)):
            kept, reasons = self._candidates(index, request, resources)
            left_out += reasons
            if not kept and group is not None:
                return self._suspended(f"tier {self._names[index]} has no usable model", request, resources)
            tier, why = self._tier(index, kept, group)
            if tier is not None:
                tiers.append(tier)
            elif why:
                left_out.append(f"{self._names[index]}: {why}")
        if not tiers:
            raise self._no_tier(left_out)
        reason = f"task {request.task_type}: from tier {tiers[0].name} up, by {'certificate' if group else 'rules'}"
        return Plan(tuple(tiers), self.name, reason, tuple(left_out), gapless=group is not None)

    def _tier(self, index: int, kept: list[Candidate], group: Group | None) -> tuple[Tier | None, str]:
        """Return one tier of a plan, or the reason why it is excluded."""
        name, last = self._names[index], index + 1 == len(self._names)
        if not kept:
            return None, ""
        if group is not None:
            return self._certified_tier(index, kept, group)
        settings = self._settings
        rules, abandon = settings.rules, settings.abandon
        able = tuple(filter(_gives_logprobs, kept))
        if len(able) == len(kept) or (able[:1] == tuple(kept[:1]) and not last):
            accept = RuleAcceptance(rules, accept_unknown=settings.unknown == "accept", final=last)
            return Tier.of(
                able,
                name,
                temperature=settings.temperature,
                accept=accept,
                logprobs=DEFAULT_TOP_LOGPROBS if settings.top_logprobs is None else settings.top_logprobs,
                watch=None if abandon == "never" else accept.watch,
                watch_all=abandon == "always",
                when_unknown=self._votes(name, able) if settings.unknown == "vote" and not last else None,
            ), ""
        if last or settings.unknown == "accept":
            accepts_unknown = RuleAcceptance(rules, accept_unknown=True, final=last)
            return Tier.of(kept, name, temperature=settings.temperature, accept=accepts_unknown), ""
        if settings.unknown == "vote":
            return self._votes(name, kept), ""
        return None, "does not return log-probabilities, so its answers would be escalated"

    def _certified_tier(self, index: int, kept: list[Candidate], group: Group) -> tuple[Tier | None, str]:
        assert self.certificate is not None  # the group belongs to it
        certified, found = self.certificate.tiers[index], group.tiers[index - group.first]
        last, abandon = index + 1 == len(self._names), self._settings.abandon
        if found.threshold is None and found.straight_up is None and not last:
            return None, "the certificate accepts none of its answers"
        accept = ScoreAcceptance(certified.score, found.threshold, found.straight_up)
        return Tier.of(
            kept,
            self._names[index],
            temperature=certified.identity.temperature,
            accept=accept,
            logprobs=None if certified.score is None else certified.identity.top_logprobs or 0,
            watch=None if abandon == "never" or certified.score is None else accept.watch,
            watch_all=abandon == "always",
        ), ""

    def _votes(self, name: str, candidates: Sequence[Candidate]) -> Tier:
        """Return the tier that samples and votes, for answers without log-probabilities."""
        voting = Voting(target=self._settings.vote_target, draw="as_needed")
        return Tier.of(candidates, name, self._settings.votes, self._settings.vote_temperature, voting=voting)

    def _suspended(self, why: str, request: LLMRequest, resources: ResourceStatus, *, alarm: str = "") -> Plan:
        """Return a plan of the strongest tier only, whose answer is not accepted, because no certificate covers it."""
        kept, left_out = self._candidates(len(self._names) - 1, request, resources)
        if not kept:
            raise self._no_tier(left_out)
        certified = self._last_temperature
        temperature = certified if request.temperature in (None, certified) else None
        tier = Tier.of(kept, self._names[-1], temperature=temperature, accept=Suspended(why))
        return Plan((tier,), self.name, f"escalated, not certified: {why}", tuple(left_out), notes=(why,), alarm=alarm)

    @property
    def _last_temperature(self) -> float | None:
        return None if self.certificate is None else self.certificate.tiers[-1].identity.temperature

    def _candidates(self, index: int, request: LLMRequest, resources: ResourceStatus) -> tuple[list[Candidate], list[str]]:
        """Return a tier's usable models. With a certificate, only the model that it names; without one, the last tier also
        has the profile's fallback.
        """
        found = self.context.candidates(self._names[index])
        if self.certificate is not None:
            found = found[:1]
        elif index + 1 == len(self._names):
            found += tuple(one for target in self.context.config.fallback for one in self.context.candidates(target))
        return self.usable(found, request, resources)

    def _no_tier(self, left_out: Sequence[str]) -> WorkflowComposerError:
        what = f"no tier has a usable model ({'; '.join(left_out)})"
        local, far = "use tiers with local models", "set the API key of a tier's model, or use other tiers"
        return self.nothing_left(what, left_out, local=local, far=far)

    # ------------------------------------------------------------------------------------------------------ answers

    async def cascade(self, request: LLMRequest) -> CascadeResult:
        """Run a request and return its first and last answers and its cost. Raises the errors of `route`."""
        return CascadeResult.of(await self.route(request), self._names, self._settings.rules)

    def answered(self, request: LLMRequest, response: LLMResponse) -> None:
        """Count the response, and draw a random share for audits."""
        self._tally.count(response)
        if self._auditor is not None and self.certificate is not None and response.accepted:
            decided_last = response.tiers[-1].name == self._names[-1]
            if not (decided_last and self._settings.audit.by == STRONGEST):  # the strongest tier cannot judge itself
                task = request.task_type
                self._auditor.consider(request, response, task if task in self.certificate.groups else ANY_TASK)

    @property
    def escalation_stats(self) -> EscalationStats:
        """Return the cost and savings of escalation so far."""
        return self._tally.stats()

    @property
    def alarm(self) -> str:
        """Why the certificate is suspended; empty while it holds."""
        return "" if self._auditor is None else self._auditor.alarm

    async def aclose(self) -> None:
        """Wait for running audits."""
        if self._auditor is not None:
            await self._auditor.aclose()

    # ------------------------------------------------------------------------------------------------------ signals

    def analyze_output(
        self, token_logprobs: Sequence[float], token_probs: Sequence[Sequence[float]] | None = None
    ) -> FeedbackSignal:
        """Return the signal of an answer under this router's rules.

        ``token_logprobs``: log-probabilities of the chosen tokens (nats). ``token_probs``: for each token, the probabilities
        of the most likely alternatives; without them, surprisals replace the unknown entropies.
        """
        top = None
        if token_probs is not None:
            top = [[math.log(p) if p > 0 else -math.inf for p in probabilities] for probabilities in token_probs]
        return analyze(token_logprobs, top, self._settings.rules)

    @staticmethod
    def compute_entropy(probabilities: Sequence[float], *, vocabulary: int = VOCABULARY) -> float:
        """Return the entropy (nats) of a token's distribution; the upper bound if the probabilities do not add up to 1.

        An empty list has the largest entropy. Raises `InvalidProbability`, a `ValueError`, for what is no probability.
        """
        return token_entropy(probabilities, vocabulary)

    @staticmethod
    def compute_binary_entropy(probability: float) -> float:
        """Return the entropy (bits) of "this token or another". Raises `InvalidProbability` for what is no probability."""
        return binary_entropy(probability_of(probability))

    # -------------------------------------------------------------------------------------------------------- parts

    def _ladder(self) -> dict[str, ModelSpec]:
        """Return the models of the tiers by name, cheapest first."""
        config, names = self.context.config, self._settings.tiers or tuple(self.context.config.tiers)
        if not names:
            raise ConfigError(
                f"{config.where('routers')}: router {TARGET} needs tiers",
                hint="add `tiers` to the profile, or list models in the router's `tiers`, cheapest first",
            )
        found: dict[str, ModelSpec] = {}
        for name in names:
            try:
                models = config.resolve(name)
            except RoutingError as error:
                raise ConfigError(f"{config.where('routers')}: tiers: {error.message}", hint=error.hint) from None
            if not models or name in found:
                fault = "is listed twice" if name in found else "has no model"
                raise ConfigError(f"{config.where('routers')}: tiers: {name!r} {fault}")
            found[name] = models[0]
        return found

    def _check_signal(self) -> None:
        """Raise `ConfigError` if no answer before the last tier can ever be judged, so that all would be escalated."""
        *before, _ = self._names
        if not before or self._settings.unknown != "escalate":
            return
        if all(gives_no_logprobs(one) for name in before for one in self.context.candidates(name)):
            config = self.context.config
            raise ConfigError(
                f"{config.where('routers')}: router {TARGET}: no model of the tiers {', '.join(before)} returns "
                "log-probabilities, so every request would go to the last tier",
                hint="set unknown: vote (the agreement of samples decides), or list logprobs in the models' capabilities",
            )

    def _position(self, floor: str | int) -> int:
        """Return the position of a tier given by name or by number from 1."""
        if isinstance(floor, int) and 1 <= floor <= len(self._names):
            return floor - 1
        if isinstance(floor, str) and floor in self._names:
            return self._names.index(floor)
        where = self.context.config.where("routers")
        raise ConfigError(
            f"{where}: task_floors: unknown tier {floor!r}",
            hint=f"tiers: {', '.join(self._names)}, or 1 to {len(self._names)}",
        )

    def _load(self) -> Certificate | None:
        settings, config = self._settings, self.context.config
        if settings.certificate is None:
            return None
        if settings.unknown != "escalate":
            raise ConfigError(
                f"{config.where('routers')}: with a certificate, unknown must be `escalate`, not `{settings.unknown}`",
                hint="no certificate covers an answer that is accepted without a score",
            )
        try:
            certificate = Certificate.load(config.directory / Path(settings.certificate).expanduser())
        except InputError as error:
            raise ConfigError(f"{config.where('routers')}: {error.message}", hint=error.hint) from None
        identities = [self._identity(index, certificate) for index in range(len(self._names))]
        check(certificate, identities, self.task_floors, where=config.where("routers"))
        return certificate

    def _identity(self, index: int, certificate: Certificate) -> ModelIdentity:
        """Return the identity of this tier's model. The certificate fills in what the settings do not set."""
        name, settings = self._names[index], self._settings
        spec = self._specs[name]
        made = certificate.tiers[index].identity if index < len(certificate.tiers) else ModelIdentity("")
        return ModelIdentity(
            name,
            spec.model,
            spec.backend,
            spec.logprobs_mode,
            made.top_logprobs if settings.top_logprobs is None else settings.top_logprobs,
            made.temperature if settings.temperature is None else settings.temperature,
        )

    def _make_auditor(self, certificate: Certificate) -> Auditor:
        settings = self._settings.audit
        errs = settings.by == STRONGEST
        return Auditor(
            AuditLog(settings.file or audits_file(os.environ), level=settings.level),
            certificate,
            rate=settings.rate,  # at rate 0 the log is still read, because an existing alarm stays active
            judge=judge_by_answer(self._audit_plan, self.context.execute) if errs else judge_by_function(settings.by),
            judge_name=settings.by,
            allowance=lambda group: certificate.groups[group].last_wrong if errs else 0.0,
            report=self.context.report,
        )

    def _audit_plan(self, request: LLMRequest) -> Plan:
        """Return the strongest tier, at the temperature for which the certificate bounds its error rate."""
        candidates, _ = self._candidates(len(self._names) - 1, request, self.context.resources())
        tier = Tier.of(candidates, self._names[-1], temperature=self._last_temperature)
        return Plan((tier,), f"{self.name}.audit", "audit of an accepted answer")


def _gives_logprobs(candidate: Candidate) -> bool:
    return not candidate.capabilities or "logprobs" in candidate.capabilities
