"""What is known of a step's questions before they are asked: its plan, and with it the model, its room, a cheaper way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import WorkflowComposerError
from workflow_composer.support.fast_dataclass import changed
from workflow_composer.types import ANY_TASK
from workflow_composer.workflows.definition.model import PromptBody, Step
from workflow_composer.workflows.running.prompt_room import room_in

if TYPE_CHECKING:
    from workflow_composer.plan import Plan


class StepPlans:
    """The plans of steps, as far as they do not depend on what is asked; each made once, by ``planned``."""

    def __init__(self, planned: Callable[..., Plan]) -> None:
        self._planned = planned
        self._plans: dict[int, tuple[Step, Plan | None]] = {}
        self._cheaper: dict[int, str | None] = {}

    def of(self, step: Step) -> Plan | None:
        """Return the plan of a step; None: it asks no model."""
        known = self._plans.get(id(step))
        if known is None:
            plan = None
            if isinstance(step.body, PromptBody):
                with suppress(WorkflowComposerError):
                    plan = self._planned_for(step, step.model)
            known = self._plans[id(step)] = (step, plan)  # the step is kept, so that no other one gets its id
        return known[1]

    def _planned_for(self, step: Step, model: str | None) -> Plan:
        fields: dict[str, Any] = {"task_type": step.task or ANY_TASK, "private": step.labels.private}
        return self._planned("?", **fields, **({} if model is None else {"model": model}))

    def room(self, step: Step) -> int | None:
        """Return how many tokens a prompt of the step may have; None: unknown."""
        plan = self.of(step)
        return None if plan is None else room_in(plan, step.tokens)

    def first_model(self, step: Step) -> str | None:
        """Return the model that the step's calls ask first; None: it asks none."""
        plan = self.of(step)
        return None if plan is None else plan.tiers[0].members[0].candidates[0].name

    def cheaper_model(self, step: Step) -> str | None:
        """Return the routing string that asks only the first tier of the step's plan; None: there is no further tier."""
        plan = self.of(step)
        if plan is None or len(plan.tiers) < 2:
            return None
        if id(step) not in self._cheaper:
            self._cheaper[id(step)] = self._only_first(step, plan)
        return self._cheaper[id(step)]

    def _only_first(self, step: Step, plan: Plan) -> str | None:
        """Return the routing string of the plan's first tier; None: none has just that."""
        first, only = plan.tiers[0], changed(plan, tiers=plan.tiers[:1])
        for text in (f"mv_{first.title}_k{first.samples}_t{first.members[0].temperature or 0.0}", str(only)):
            with suppress(WorkflowComposerError, ValueError):
                (tier,) = self._planned_for(step, text).tiers
                if (tier.candidates, tier.samples) == (first.candidates, first.samples):
                    return text
        return None
