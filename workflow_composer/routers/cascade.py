"""The cascade router: turns routing strings and the profile's tiers into plans with votes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from workflow_composer.answers.form import AnswerForm, Comparison, OutputForm
from workflow_composer.config.cloud_names import CASCADE_TARGET
from workflow_composer.config.profile_models import as_written
from workflow_composer.errors import ConfigError, ProfileError, RoutingError, Unsupported
from workflow_composer.markers import DEFAULT_TIERS, KnownTier, is_routing_string, parse_route
from workflow_composer.plan import Candidate, Drawing, Grouping, Measure, Plan, Stopping, Tier, Voting
from workflow_composer.routers.base import KindRouter, RouterContext, RouterSettings, described, gives_no_logprobs
from workflow_composer.types import LLMRequest, ResourceStatus

_WITHOUT_SCORES = frozenset({"vllm", "openai", "embedded"})
"""Backends whose answers never have a score."""

_ROUNDING = 1e-9

Extractors = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class CascadeSettings(RouterSettings):
    """Settings of `CascadeRouter`: how votes are drawn, counted and judged. A tier's own settings override these."""

    measure: Measure = Field("share", description="confidence measure: `share`, `entropy`, `posterior`, `logprob`, `score`")
    target: float = Field(0.75, description="minimum confidence to accept a tier's answer")
    stopping: Stopping = Field(
        "decided", description="the rule that ends a vote early: `decided`, `beta`, `window`, `sprt`, `martingale`, `fixed`"
    )
    level: float | None = Field(None, description="the stopping rule's parameter; the default depends on the rule")
    draw: Drawing = Field(
        "at_once",
        description="`at_once`: draw all samples concurrently and cancel the rest once the vote is decided (fastest); "
        "`as_needed`: draw in each step the fewest that could decide (cheapest)",
    )
    draws: int = Field(1, ge=0, le=16, description="maximum number of further draws in a tier of an entropy cascade")
    extract: Extractors = Field(
        ("auto",),
        description="extractors of the final answer, tried in order: `hashes`, `boxed`, `phrase`, `json:FIELD`, `line`, "
        "`whole`, `python:MODULE:FUNCTION`, `auto`. If `auto` is last, unmarked answers are read as well: the last number, "
        "or a short text",
    )
    compare: Comparison = Field("auto", description="how answers are compared: `number`, `text`, `math`, `auto`")
    vote_by: Grouping = Field(
        "answer",
        description="how votes are grouped: `answer` (final answers, tool calls, JSON), or `embedding`: free texts by "
        "meaning, with the model of the task `embeddings`",
    )
    similarity: float = Field(
        0.9, gt=0, le=1, description="`vote_by: embedding`: lowest cosine similarity of two texts that count as one answer"
    )
    compare_seconds: float = Field(2.0, gt=0, le=60, description="seconds of processor time for one comparison")
    budget: float | None = Field(None, gt=0, description="dollars per request, for requests without a budget")

    def voting(self) -> Voting:
        """Return the settings as a `Voting` for the plan's tiers. Raises `ConfigError` for an invalid rule or extractor."""
        form = AnswerForm(self.extract, self.compare, self.compare_seconds)
        # What is checked here is imported only if it is set: most profiles leave the defaults, and most requests never vote.
        if self.stopping != "decided" or self.level is not None:
            from workflow_composer.execution.voting.stopping import stopping_rule

            stopping_rule(self.stopping, self.level)
        if self.extract != ("auto",) or self.compare == "math":
            from workflow_composer.answers import reader

            reader(form)
        by, similarity = self.vote_by, self.similarity
        return Voting(self.measure, self.target, self.stopping, self.level, 0, self.draw, form, by, similarity)


class CascadeRouter(KindRouter):
    """Plans votes and cascades for requests whose model is a routing string, or ``cascade`` (the profile's tiers in order).

    A task may also be routed to either. The router has no plan for any other request.
    """

    name: ClassVar[str] = "cascade"
    Settings: ClassVar[type[RouterSettings]] = CascadeSettings

    def __init__(self, context: RouterContext, settings: object = None) -> None:
        super().__init__(context, settings)  # type: ignore[arg-type]  # whatever it is, the model checks it
        assert isinstance(self.settings, CascadeSettings)
        self._settings = self.settings
        self._voting = self.settings.voting()
        if self._voting.by == "embedding" and "embeddings" not in self.context.config.task_routing:
            hint = "add a model with embeddings, and the task to task_routing: {embeddings: NAME}"
            raise ConfigError("vote_by: embedding needs a model for the task 'embeddings'", hint=hint)
        self._forms = self._accepted_forms()
        self._check_targets()

    def _check_targets(self) -> None:
        """Raise `ProfileError` for a tier whose models cannot give the measure, or whose votes cannot reach its target."""
        config = self.context.config
        routes = [route for route in config.task_routing.values() if is_routing_string(route)]
        if config.tiers:
            routes.append(self._whole())
        problems: dict[str, None] = {}
        for route in routes:
            for tier in parse_route(route, self._declared, voting=self._voting, draws=self._settings.draws).tiers:
                own = tier.title in config.tiers and config.tiers[tier.title].target is not None
                if blind := self._unmeasured(tier):
                    problems[f"{self._where('measure')}: {blind}"] = None
                elif missed := unreachable(tier):
                    where = config.where("tiers", tier.title, "target") if own else self._where("target")
                    problems[f"{where}: {missed}"] = None
        if problems:
            raise ProfileError(list(problems))

    def _where(self, key: str) -> str:
        """Return the place of one of this router's keys; of the router, if the profile does not set the key."""
        config = self.context.config
        names = [(spec.name, dict(spec.settings).get("router")) for spec in config.routers]
        index = next((at for at, name in enumerate(names) if self.name in name), 0)
        return config.where("routers", index, self.name, key)

    def _declared(self, name: str) -> KnownTier:
        """Return a tier with all models that the profile has for it, usable now or not."""
        return self._tier(name, self.context.candidates(self._model_of(name)))

    def _unmeasured(self, tier: Tier) -> str:
        """Return why none of a tier's models can give the measure; empty if one can, or if that is not known."""
        measure = self._voting.measure
        specs = [self.context.config.backend_specs()[candidate.name] for candidate in tier.candidates]
        if measure == "score" and all(spec.backend in _WITHOUT_SCORES for spec in specs):
            return f"tier {tier.title!r}: no model of it gives its answers a score; use share, entropy or posterior"
        if measure == "logprob" and all(gives_no_logprobs(candidate) for candidate in tier.candidates):
            return f"tier {tier.title!r}: no model of it returns log-probabilities; use share, entropy or posterior"
        return ""

    def _accepted_forms(self) -> dict[str, OutputForm]:
        """Return the forms that tiers accept. Raises `ProfileError` with the place of an invalid one."""
        config, found = self.context.config, {}
        for name, spec in config.tiers.items():
            if spec.accept is not None:
                from workflow_composer.answers.output_form import output_form

                try:
                    found[name] = output_form(as_written(spec.accept), folder=config.directory)
                except ConfigError as error:
                    raise ProfileError(
                        [f"{config.where('tiers', name, 'accept')}: {error.message}"], hint=error.hint
                    ) from None
        return found

    def make(self, request: LLMRequest, resources: ResourceStatus) -> Plan | None:
        """Return the plan of the request's routing string; None if it has none. Raises `MarkerError` if it is malformed."""
        target = self.target(request)
        if target is None or not (is_routing_string(target) or target == CASCADE_TARGET):
            return None
        route = self._whole() if target == CASCADE_TARGET else target
        return (
            self.route_plan(route, request, resources)
            if request.kind == "chat"
            else self._unvoted(route, request, resources)
        )

    def _unvoted(self, route: str, request: LLMRequest, resources: ResourceStatus) -> Plan:
        """Return a plan that asks the route's models in turn until one answers, for what cannot be voted on or judged.

        Raises `Unsupported` if the caller named the route: it would not get what it asked for.
        """
        what = {"completion": "raw completions", "embeddings": "embeddings"}.get(request.kind, "such requests")
        if request.model is not None:
            error = Unsupported(
                f"{route} votes on or judges answers to chats, and {what} are neither voted on nor judged",
                hint="name a model, or send a chat",
            )
            error.field = "model"
            raise error
        if request.kind == "embeddings":
            missing = RoutingError(f"task {request.task_type!r} is routed to {route}, which gives no embeddings")
            missing.public = f"no model is set for the task {request.task_type!r}"
            raise missing
        tiers = parse_route(route, self._declared).tiers
        candidates = [candidate for tier in tiers for candidate in tier.candidates]
        reason = f"{described(request, route)}; {what} are not judged, so its first model that answers is taken"
        return self.single_tier(*self.usable(candidates, request, resources), reason)

    def route_plan(self, route: str, request: LLMRequest, resources: ResourceStatus) -> Plan:
        """Return the plan of a routing string, or of a model's name (one greedy answer)."""
        left_out: list[str] = []

        def lookup(name: str) -> KnownTier:
            return self._known(name, request, resources, left_out)

        plan = parse_route(route, lookup, voting=self._voting, draws=self._settings.draws)
        reason, notes = described(request, route), (*plan.notes, *filter(None, map(unreachable, plan.tiers)))
        return Plan(plan.tiers, self.name, reason, tuple(left_out), notes, self._settings.budget)

    def _whole(self) -> str:
        """Return the profile's tiers as a routing string, each with its number of samples; the last one has one sample."""
        tiers = self.context.config.tiers
        if not tiers:
            raise RoutingError("the profile has no tiers for a cascade", hint="add tiers, or write a routing string")
        names = list(tiers)
        steps = [f"{name}_k{tiers[name].samples}" for name in names[:-1]]
        return "_".join(["mv_cascade", *steps, f"{names[-1]}_k1"])

    def _known(self, name: str, request: LLMRequest, resources: ResourceStatus, left_out: list[str]) -> KnownTier:
        found = self.context.candidates(self._model_of(name))
        return self._tier(name, self._usable(name, found, request, resources, left_out))

    def _model_of(self, name: str) -> str:
        """Return the target that a tier's name means: itself, unless it is only a default's."""
        return name if name in self.context.config.tiers or name not in DEFAULT_TIERS else DEFAULT_TIERS[name].model

    def _tier(self, name: str, candidates: tuple[Candidate, ...]) -> KnownTier:
        spec = self.context.config.tiers.get(name)
        if spec is None:
            return KnownTier(candidates, name in DEFAULT_TIERS and DEFAULT_TIERS[name].greedy_only)
        known = KnownTier(candidates, spec.greedy_only, spec.temperature, spec.target, spec.deadline, spec.budget)
        return replace(known, form=self._forms.get(name), retries=spec.retries)

    def _usable(
        self,
        name: str,
        found: tuple[Candidate, ...],
        request: LLMRequest,
        resources: ResourceStatus,
        left_out: list[str],
    ) -> tuple[Candidate, ...]:
        kept, reasons = self.usable(found, request, resources)
        if self._voting.measure == "logprob":
            kept = [candidate for candidate in kept if not gives_no_logprobs(candidate)]
        left_out += reasons
        if kept:
            return tuple(kept)
        what = f"tier {name!r} has no usable model ({'; '.join(reasons) or 'its model does not return log-probabilities'})"
        local, far = "use tiers with local models", "set the API key of its model, or use other tiers"
        raise self.nothing_left(what, reasons, local=local, far=far)


def unreachable(tier: Tier) -> str:
    """Return why a tier's votes cannot reach its target, with the largest value that they can; empty if they can.

    All votes for one answer, and all further draws of an entropy cascade, are not enough.
    """
    voting = tier.voting
    if voting is None or (voting.measure != "posterior" and voting.target <= 1.0):
        return ""  # votes for one answer reach 1
    from workflow_composer.execution.voting.confidence import fewest, highest

    votes = tier.samples + voting.explore
    most, target = highest(voting.measure, votes), voting.target
    if most is None or most >= target - _ROUNDING:
        return ""
    enough, shown = fewest(voting.measure, target), math.floor(most * 1000) / 1000
    instead = f"at least {enough} votes, or " if enough is not None else ""
    return (
        f"tier {tier.title!r}: {votes} votes reach a {voting.measure} of {shown:g} at most, so never the target {target:g}; "
        f"take {instead}a target of at most {shown:g}"
    )
