"""Who checks accepted answers in use, as the settings name them: nobody here, a function, or the strongest tier."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace

from workflow_composer.answers import reader
from workflow_composer.answers.extraction import function_at
from workflow_composer.calibration.auditing import Judge
from workflow_composer.plan import Plan
from workflow_composer.types import LLMRequest, LLMResponse

Execute = Callable[[Plan, LLMRequest], Awaitable[LLMResponse]]


def judge_by_function(by: str) -> Judge | None:
    """The user's function at ``python:MODULE:FUNCTION``, plain or a coroutine function; None for any other ``by``.

    Raises `ConfigError` where it cannot be imported. A plain function runs in a thread of its own.
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
    """Whether ``plan`` gives the same final answer; None where either's cannot be read.

    The request's own limits of time and money were for its answer, and do not hold for the check.
    """

    async def judge(request: LLMRequest, response: LLMResponse) -> bool | None:
        again = replace(request, request_id=f"{request.request_id}.audit", model=None, timeout=None, budget=None)
        told = (await execute(plan(again), again)).text
        forms = reader()
        mine, other = forms.read(response.text), forms.read(told)
        if mine is None or other is None:
            return None
        same = forms.same(mine, other)
        return await forms.decide(mine, other) if same is None else same

    return judge
