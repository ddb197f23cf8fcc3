"""Forms of request bodies: each field is declared once, for both parsing and JSON Schema.

A form is a table from the field's name to a `Field`. No field is dropped silently: it goes to the request or to the caller,
is refused by name, or is ignored with a warning because it cannot change the response. Unknown fields are returned
separately and passed to the model server; a closed form refuses them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from workflow_composer.backends.openai.adapting import OPTIONS
from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import NOTHING, FieldCheck, described, wrong
from workflow_composer.server.api.schemas import Schema
from workflow_composer.server.failures import HttpFailure
from workflow_composer.support import large_json
from workflow_composer.support.large_json import LARGE

_decode = msgspec.json.Decoder().decode

AUTO = "auto"
TASK = "task:"
WORKFLOW = "workflow:"
TASK_HEADER = "x-workflow-composer-task"
BUDGET_HEADER = "x-workflow-composer-budget"
TIMEOUT_HEADER = "x-workflow-composer-timeout"
CARRIED = ("x-request-id", "traceparent", "tracestate")
"""Headers of a client that go on to the model's server: callers set them to find a request again."""
ADDRESS_HEADERS = (TASK_HEADER, BUDGET_HEADER, TIMEOUT_HEADER)
LONGEST_NAME = 512
FOREIGN = frozenset(
    {"messages", "prompt", "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
) | frozenset({"response_format", "stream_options"})
"""Fields that are always sent to a model server, or whose effect only some dialects can write into the response.

A format with other names for them refuses them: passed through, they would contradict the fields that are sent.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request body.

    ``to`` names the attribute of `LLMRequest` for the value; without it, the caller gets the value. ``required`` is the
    error for a missing field, ``left_out`` the reason why a value is ignored. ``note`` goes to the OpenAPI document.
    """

    check: FieldCheck[Any]
    to: str | None = None
    required: str = ""
    left_out: str = ""
    note: str = ""

    @property
    def schema(self) -> Schema:
        """Return the field's JSON Schema; null counts as missing."""
        found = self.check.schema if self.required else schemas.nullable(self.check.schema)
        return {**found, "description": self.note} if self.note else found


def refused(reason: str) -> Field:
    """Return an unsupported field, which may only have a value that requests nothing."""
    return Field(field_checks.nothing(reason), note=reason)


def left_out(reason: str) -> Field:
    """Return a field that cannot change the response: any value is accepted, with a warning if it requests something."""
    return Field(field_checks.anything, left_out=reason, note=f"Ignored: {reason}")


def _undecodable(body: bytes | bytearray, error: Exception) -> HttpFailure:
    if isinstance(error, UnicodeDecodeError):
        return HttpFailure(400, "the request body is not UTF-8")
    if isinstance(error, RecursionError):
        return HttpFailure(400, "the request body is nested too deeply")
    return HttpFailure(400, f"the request body is not JSON: {error}" if body else "the request body is empty; send JSON")


class Form:
    """The fields of one request body.

    ``closed`` is the error message for unknown fields and ``code`` its code; without it, they are returned to the caller.
    ``translated``: the format has its own names for the `FOREIGN` fields, so those missing from the table are refused.
    ``beside`` is the schema of constraints between fields, which the caller checks; ``example`` is an example body.
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
        # Plain tuples and one bound lookup: parsing a usual chat takes 6 % less time than with `Field` objects.
        self._rule = {name: (field.to, field.check, field.left_out) for name, field in self.fields.items()}.get
        self._required = tuple((name, field.required) for name, field in fields.items() if field.required)
        self._closed = closed
        self._code = code
        self._more = {**(beside or {}), "examples": [example]}

    def read(self, body: bytes | bytearray) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
        """Parse a body; return attributes of the request, other fields by name, unknown fields, and warnings.

        Raises `HttpFailure`. A hot path of every request: one lookup and one call per field.
        """
        try:
            data = _decode(body) if len(body) <= LARGE else large_json.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's DecodeError is a ValueError
            raise _undecodable(body, error) from None
        if not isinstance(data, dict):
            raise HttpFailure(400, "the request body must be a JSON object")
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
                warnings.append(f"{name} is ignored: {why_left_out}")
        for name, message in self._required:
            if data.get(name) is None:
                raise wrong(name, message)
        if extra and self._closed:
            raise wrong(next(iter(extra)), self._closed, code=self._code)
        return request, own, extra, warnings

    @property
    def schema(self) -> Schema:
        """Return the JSON Schema of a body."""
        properties = {name: field.schema for name, field in self.fields.items()}
        required = (name for name, _ in self._required)
        return {**schemas.record(properties, *required, closed=bool(self._closed)), **self._more}


# ------------------------------------------------------------------------------------------------- the routing address
# ``auto`` leaves the choice to the strategy; ``task:NAME`` names a task, ``workflow:NAME`` a workflow; other values name a
# role, tier, catalogue model or routing string. A header or the metadata may name the task instead; otherwise it is
# predicted from the prompt.


_NAME: Schema = {**schemas.TEXT, "maxLength": LONGEST_NAME}


@described(
    {
        **_NAME,
        "pattern": f"^(?! *{TASK} *$){schemas.PRINTABLE}*$",  # `address_of` refuses a task without a name
        "description": "auto, task:NAME, workflow:NAME, a tier, a model, or a routing string such as mv_small_k8_t0.7",
    }
)
def model_name(name: str, value: Any) -> str:
    """Check a value of ``model``."""
    if isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable():
        return value
    raise wrong(name, "must be a printable, non-empty name" if isinstance(value, str) else "must be a string")


_TASK_NAME: Schema = {**_NAME, "minLength": 1, "pattern": f"^{schemas.PRINTABLE}*$"}


@described(
    {
        **schemas.record({"task_type": schemas.nullable(_TASK_NAME)}),
        "description": "`task_type`: the task that the request belongs to",
    }
)
def metadata(name: str, value: Any) -> dict[str, Any]:
    """Check metadata; a task in it must be a printable name."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    if (task := value.get("task_type")) is not None:
        _task(task)
    return value


@functools.lru_cache(maxsize=128)
def address_of(
    model: str | None, told: str | None, task: str | None, budget: str | None, timeout: str | None
) -> Mapping[str, Any]:
    """Return the routing and budget fields of an `LLMRequest`. Raises `HttpFailure`.

    ``model`` and the metadata's task ``told`` are checked already; the other fields come from `ADDRESS_HEADERS`.
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
        raise HttpFailure(400, "the task must be a printable, non-empty name", param="metadata.task_type")
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
    "client_metadata": left_out("what a client tells of itself is not passed on"),
}
"""Fields that all generation formats share."""

_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "guided_whitespace_pattern": "whitespace_pattern",
}
"""Older names of vLLM's -> the parts of ``structured_outputs``; servers of today ignore the old ones silently."""


def told_by_tool(call: str, parts: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the text that a tool returned to a call, and parts for a user's message: a tool's holds text only."""
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    others = [part for part in parts if part["type"] != "text"]
    if not others:
        return text, []
    text = f"{text}\nWhat the tool call {call} returned besides text follows.".strip()
    return text, [{"type": "text", "text": f"Returned by the tool call {call}:"}, *others]


def renamed(extra: dict[str, Any], warnings: list[str]) -> None:
    """Give unknown fields the names that servers know today, and leave out those that none knows, with warnings."""
    if (old := [name for name in extra if name.startswith("guided_")]) == []:
        return
    parts = {_GUIDED[name]: extra.pop(name) for name in old if name in _GUIDED}
    for name in old:
        if name in extra:
            del extra[name]
            warnings.append(f"{name} is ignored: servers have no such option any more")
        elif "structured_outputs" in extra:
            warnings.append(f"{name} is ignored because structured_outputs is set")
        else:
            warnings.append(f"{name} is sent as structured_outputs.{_GUIDED[name]}")
    if parts:
        extra.setdefault("structured_outputs", parts)


def carry(labels: Mapping[str, Any], extra: dict[str, Any]) -> None:
    """Add a caller's metadata, without what was for this service, to the fields that go to the model's server."""
    if told := {name: value for name, value in labels.items() if name != "task_type"}:
        extra["metadata"] = told


def carried_of(sent: Mapping[str, str], forwarded: frozenset[str]) -> dict[str, str] | None:
    """Return the headers that go on to the model's server; ``forwarded`` are those that the profile names."""
    return {name: sent[name] for name in (*CARRIED, *sorted(forwarded)) if name in sent} or None


def optional(own: dict[str, Any], extra: dict[str, Any]) -> None:
    """Add the fields that only some servers take to those that go to the model's server, if they are set."""
    extra.update((name, own[name]) for name in OPTIONS if name in own)


ONLY_SOME = "Sent to servers that know it (OpenAI); else left out, with a warning header"
TOKENS = field_checks.whole(least=1)
TOP_LOGPROBS = field_checks.whole(least=0, most=100)
