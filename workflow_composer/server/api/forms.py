"""Forms of bodies: each field is declared once, and both the reading of a body and its JSON Schema come from there.

A form is a table from the field's name to a `Field`. Of a body nothing is dropped in silence: a field goes to the request,
or to the code that asked, or is refused by name, or is left out with a warning because it cannot change the answer. What the
form does not know is handed back, for a model's server that may know it; a closed form refuses it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import NOTHING, FieldCheck, described, wrong
from workflow_composer.server.api.schemas import Schema
from workflow_composer.server.failures import HttpFailure

_decode = msgspec.json.Decoder().decode

AUTO = "auto"
TASK = "task:"
TASK_HEADER = "x-workflow-composer-task"
BUDGET_HEADER = "x-workflow-composer-budget"
TIMEOUT_HEADER = "x-workflow-composer-timeout"
ADDRESS_HEADERS = (TASK_HEADER, BUDGET_HEADER, TIMEOUT_HEADER)
LONGEST_NAME = 512
FOREIGN = frozenset(
    {"messages", "prompt", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
) | frozenset({"response_format", "stream_options"})
"""Fields that a model's server is sent in any case, or whose effect on the answer only some dialects can write.

Passed on from a form that says them in other words, they would contradict what is sent along with them.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body.

    ``to`` names the attribute of `LLMRequest` that takes the value; without it the caller gets it. ``required`` is what is
    said where the field is missing. ``left_out`` says why the value is not heeded. ``note`` is for the API's description.
    """

    check: FieldCheck[Any]
    to: str | None = None
    required: str = ""
    left_out: str = ""
    note: str = ""

    @property
    def schema(self) -> Schema:
        """What the field may hold; null is as if it were not there."""
        found = self.check.schema if self.required else schemas.nullable(self.check.schema)
        return {**found, "description": self.note} if self.note else found


def refused(reason: str) -> Field:
    """A field that cannot be honoured, and may only ask for nothing."""
    return Field(field_checks.nothing(reason), note=reason)


def left_out(reason: str) -> Field:
    """A field that cannot change the answer: any value, and a warning if it asks for something."""
    return Field(field_checks.anything, left_out=reason, note=f"Not heeded: {reason}")


def _undecodable(body: bytes, error: Exception) -> HttpFailure:
    if isinstance(error, UnicodeDecodeError):
        return HttpFailure(400, "the body is not UTF-8")
    if isinstance(error, RecursionError):
        return HttpFailure(400, "the body is nested too deeply")
    return HttpFailure(400, f"the body is not JSON: {error}" if body else "the body is empty; send JSON")


class Form:
    """The fields of one body.

    ``closed`` is the reason to refuse all others, ``code`` the code of that refusal; without it they are handed back.
    ``translated``: the form has words of its own for what `FOREIGN` fields say, so those that the table lacks are refused.
    ``beside`` is the schema of what fields demand of each other, which the caller checks; ``example`` is a body.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        *,
        closed: str = "",
        code: str | None = None,
        translated: bool = False,
        beside: Schema | None = None,
        example: Mapping[str, Any],
    ) -> None:
        absent = sorted(FOREIGN.difference(fields)) if translated else ()
        self.fields = {**fields, **{name: Field(field_checks.foreign) for name in absent}}
        # Plain tuples behind one bound look-up: 6 % less time to read a usual chat than with the fields themselves.
        self._rule = {name: (field.to, field.check, field.left_out) for name, field in self.fields.items()}.get
        self._required = tuple((name, field.required) for name, field in fields.items() if field.required)
        self._closed = closed
        self._code = code
        self._more = {**(beside or {}), "examples": [example]}

    def read(self, body: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
        """Read a body: attributes of the request, other fields by their names, unknown fields, and warnings.

        Raises `HttpFailure`. Every request to the service passes through here: one look-up and one call per field.
        """
        try:
            data = _decode(body)
        except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
            raise _undecodable(body, error) from None
        if not isinstance(data, dict):
            raise HttpFailure(400, "the body must be a JSON object")
        rule_of = self._rule
        request: dict[str, Any] = {}
        own: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        warnings: list[str] = []
        for name, value in data.items():
            if value is None:
                continue
            if (rule := rule_of(name)) is None:
                extra[name] = value
                continue
            to, check, why_left_out = rule
            if to is not None:
                request[to] = check(name, value)
            elif not why_left_out:
                own[name] = check(name, value)
            elif value not in NOTHING:
                warnings.append(f"{name} {why_left_out}")
        for name, message in self._required:
            if data.get(name) is None:
                raise wrong(name, message)
        if extra and self._closed:
            raise wrong(next(iter(extra)), self._closed, code=self._code)
        return request, own, extra, warnings

    @property
    def schema(self) -> Schema:
        """The JSON Schema of a body."""
        properties = {name: field.schema for name, field in self.fields.items()}
        required = (name for name, _ in self._required)
        return {**schemas.record(properties, *required, closed=bool(self._closed)), **self._more}


# ------------------------------------------------------------------------------------------------- the routing address
# ``auto`` leaves it to the strategy; ``task:NAME`` names a task; anything else names a role, tier, model of the catalogue or
# routing string. The task may also come as a header or in the metadata; where it does not, it is predicted from the words.


_NAME: Schema = {**schemas.TEXT, "maxLength": LONGEST_NAME}


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


_TASK_NAME: Schema = {**_NAME, "minLength": 1, "pattern": f"^{schemas.PRINTABLE}*$"}


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


@functools.lru_cache(maxsize=128)
def address_of(
    model: str | None, told: str | None, task: str | None, budget: str | None, timeout: str | None
) -> Mapping[str, Any]:
    """The fields of an `LLMRequest` that say where it goes and what it may take. Raises `HttpFailure`.

    ``model`` and the task that was ``told`` in the metadata have passed their checks; the others are `ADDRESS_HEADERS`.
    """
    found: dict[str, Any] = {}
    name = (model or AUTO).strip()
    if name.startswith(TASK):
        found["task_type"] = _task(name.removeprefix(TASK).strip())
    elif name and name != AUTO:
        found["model"] = name
    if "task_type" not in found:
        if task:
            found["task_type"] = _task(task)
        elif told is not None:
            found["task_type"] = told
    if budget is not None:
        found["budget"] = _positive(budget, BUDGET_HEADER)
    if timeout is not None:
        found["timeout"] = _positive(timeout, TIMEOUT_HEADER)
    return found


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


COMMON = {
    "model": Field(model_name),
    "stream": Field(field_checks.flag),
    "temperature": Field(field_checks.number(0.0, 2.0), "temperature"),
    "top_p": Field(field_checks.number(0.0, 1.0), "top_p"),
    "metadata": Field(metadata, "metadata"),
}
"""What every form that asks a language model has."""

TOKENS = field_checks.whole(least=1)
TOP_LOGPROBS = field_checks.whole(least=0, most=100)
