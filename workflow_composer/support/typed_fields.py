"""The fields of a request, for type checkers and editors: what may follow a prompt in `ModelOrchestrator`'s methods.

`LLMRequest` says what each means, and has the defaults. A misspelt field, or a value of a wrong type, is a type error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, TypeVar

V = TypeVar("V")

Schema = type[V] | Mapping[str, Any] | Sequence[Any] | str
"""What an answer must be: a pydantic model or another type, a JSON Schema, or a form as `output_form` takes it."""


class PlainFields(TypedDict, total=False):
    """Fields that every method takes."""

    kind: Literal["chat", "completion", "embeddings", "other"]
    task_type: str
    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    logprobs: bool
    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    response_format: Mapping[str, Any] | None
    form: Any
    form_retries: int
    check: Any
    vote_by: Literal["answer", "embedding"] | None
    n: int
    extra: Mapping[str, Any]
    timeout: float | None
    allowed: frozenset[str] | None
    private: bool
    most_calls: int | None
    context: str | Sequence[str] | None
    metadata: Mapping[str, Any]
    headers: Mapping[str, str] | None
    left_out: list[str] | None
    relay: Any
    purse: Any
    replies: Any
    request_id: str


class OwnFields(PlainFields, total=False):
    """Fields of a request, without those that `LLMRequest.of` names itself."""

    budget: float | None


class RowFields(PlainFields, total=False):
    """Fields for all rows of a run, whose budget is the run's."""

    system: str | None


class RequestFields(RowFields, total=False):
    """Fields of one request: those of `LLMRequest`, and ``system``, a system message that is put first."""

    budget: float | None


class EmbeddingFields(TypedDict, total=False):
    """Fields of a request for embeddings."""

    model: str | None
    timeout: float | None
    budget: float | None
    allowed: frozenset[str] | None
    private: bool
    most_calls: int | None
    extra: Mapping[str, Any]
    headers: Mapping[str, str] | None
    metadata: Mapping[str, Any]
    purse: Any
    request_id: str


class EmbedFields(EmbeddingFields, total=False):
    """What `ModelOrchestrator.embed` takes besides the texts."""

    task_type: str
    dimensions: int | None


class RunFields(RowFields, total=False):
    """What a run of many rows takes: limits in dollars (``row``, ``run``), rows at once, and tries after failures."""

    budget: Mapping[str, float] | None
    concurrency: int | None
    retries: int


class ManyFields(RunFields, total=False):
    """What `ModelOrchestrator.generate_many` takes besides the prompts and a schema."""

    journal: str | Path | None
    progress: bool | Callable[[Any], None]


class BatchFields(RunFields, total=False):
    """What `ModelOrchestrator.run_batch` takes besides the rows."""

    journal: Required[str | Path]
    schema: Any
    progress: Callable[[Any], None] | None


class WorkflowFields(TypedDict, total=False):
    """What `ModelOrchestrator.run_workflow` takes besides the workflow and its rows."""

    output: str | Path | None
    journal: str | Path | None
    budget: Mapping[str, float] | None
    concurrency: int | None
    labels: Mapping[str, str] | None
    progress: bool | Callable[[Any], None]
