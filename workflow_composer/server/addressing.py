"""The routing address: what ``model`` and the task of a request say of where it is to go.

``auto`` leaves it to the strategy; ``task:NAME`` names a task; anything else names a role, tier, model of the catalogue or
routing string. The task may also come as a header or in the metadata; where it does not, it is predicted from the words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workflow_composer.server import schemas
from workflow_composer.server.checks import described, wrong
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import ANY_TASK, Message, texts

AUTO = "auto"
TASK = "task:"
TASK_HEADER = "x-workflow-composer-task"
BUDGET_HEADER = "x-workflow-composer-budget"
TIMEOUT_HEADER = "x-workflow-composer-timeout"
LONGEST_NAME = 512

_ENOUGH = 4000
"""Characters of the last message that are looked at."""

# Words that speak for a task, first match first; the names are those of the shipped profiles.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (task, re.compile(pattern, re.IGNORECASE))
    for task, pattern in (
        (
            "code_validation",
            r"\b(review|lint|debug|fix|what is wrong with|find the bug)\b.{0,60}\b(code|script|function|pipeline)\b",
        ),
        (
            "code_generation",
            r"```|\b(write|implement|generate|create)\b.{0,60}\b(code|script|function|class|parser|program|regex)\b",
        ),
        (
            "code_generation",
            r"\b(python|bash|snakemake|nextflow|sql|rust|java|javascript)\b.{0,40}\b(code|script|function)\b",
        ),
        (
            "math_statistics",
            r"\b(solve|prove|integral|derivative|equation|probability|p-value|standard deviation|regression)\b",
        ),
        ("math_statistics", r"\bhow many\b|\d\s*[-+*/^=]\s*\d"),
        ("data_analysis", r"\b(csv|tsv|dataframe|pandas|plot|histogram|correlation|cluster(ing)?|outliers?)\b"),
        (
            "biomedical",
            r"\b(gene|protein|genome|variant|mutation|patient|clinical|disease|drug|rna|dna|fastq|bam|vcf|cell line)s?\b",
        ),
        ("documentation", r"\b(document|docstring|readme|summari[sz]e|explain)\b"),
    )
)


_NAME: schemas.Schema = {**schemas.TEXT, "maxLength": LONGEST_NAME}


@described(
    {
        **_NAME,
        "pattern": f"^(?! *{TASK} *$){schemas.PRINTABLE}*$",  # `address_of` refuses a task without a name
        "description": "auto, task:NAME, a tier, a model of the catalogue, or a routing string such as mv_small_k8_t0.7",
    }
)
def model_name(name: str, value: Any) -> str:
    """What ``model`` may be."""
    if isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable():
        return value
    raise wrong(name, "is no name" if isinstance(value, str) else "must be a text")


_TASK_NAME: schemas.Schema = {**_NAME, "minLength": 1, "pattern": f"^{schemas.PRINTABLE}*$"}


@described(
    {
        **schemas.record({"task_type": schemas.nullable(_TASK_NAME)}),
        "description": "`task_type`: the task that the request belongs to",
    }
)
def metadata(name: str, value: Any) -> dict[str, Any]:
    """Metadata; where they name a task, it must be a name."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    if (task := value.get("task_type")) is not None:
        _task(task)
    return value


def address_of(model: str | None, headers: Mapping[str, str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `LLMRequest` that say where it goes and what it may take. Raises `HttpFailure`.

    ``model`` and ``metadata`` have passed their checks.
    """
    found: dict[str, Any] = {}
    name = (model or AUTO).strip()
    if name.startswith(TASK):
        found["task_type"] = _task(name.removeprefix(TASK).strip())
    elif name and name != AUTO:
        found["model"] = name
    if "task_type" not in found:
        if task := headers.get(TASK_HEADER):
            found["task_type"] = _task(task)
        elif (task := metadata.get("task_type")) is not None:
            found["task_type"] = task
    if (budget := headers.get(BUDGET_HEADER)) is not None:
        found["budget"] = _positive(budget, BUDGET_HEADER)
    if (timeout := headers.get(TIMEOUT_HEADER)) is not None:
        found["timeout"] = _positive(timeout, TIMEOUT_HEADER)
    return found


def predict_task(messages: Sequence[Message], known: Collection[str]) -> str:
    """The task among the ``known`` that the last message of the user seems to be; ``*`` where nothing speaks for one.

    A handful of patterns, in microseconds. It decides which model is asked first, and nothing that could not be undone by
    naming the task.
    """
    if not known:
        return ANY_TASK
    for message in reversed(messages):
        if message.get("role") == "user":
            text = " ".join(texts(message))[:_ENOUGH]
            for task, sign in _SIGNS:
                if task in known and sign.search(text):
                    return task
            break
    return ANY_TASK


def _task(found: Any) -> str:
    if not isinstance(found, str) or not found or len(found) > LONGEST_NAME or not found.isprintable():
        raise HttpFailure(400, "the task is no name", param="metadata.task_type")
    return found


def _positive(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1e9:
        raise HttpFailure(400, f"the header {name} must be a positive number", param=name)
    return value
