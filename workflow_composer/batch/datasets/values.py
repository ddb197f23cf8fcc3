"""The values of a row: texts, messages, right answers and ids, in the forms in which data sets write them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workflow_composer.errors import InputError
from workflow_composer.storage.lines import WrittenNumber, kind
from workflow_composer.types import Message

_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Who speaks in a conversation of ShareGPT, as roles of messages."""

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_ARRAY = re.compile(r"(?<=['\"\]])\s+(?=['\"\[])")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_MISSING_ANSWERS = ("aliases", "text", "texts", "spans", "value")
"""Where an object holds right answers: TriviaQA, SQuAD, DROP."""


def at_path(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of a path into an object (``reward_model.ground_truth``); None if it is missing."""
    if not name:
        return None
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    value = row.get(head)
    while rest:
        if isinstance(value, str):
            value = literal(value)
        if not isinstance(value, Mapping):
            return None
        if rest in value:
            return value[rest]
        head, _, rest = rest.partition(".")
        value = value.get(head)
    return None


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, NaN (which pandas writes for it), a blank text or an empty list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (list, tuple)) and not value


def literal(text: str) -> Any:
    """Return the list or object that a text holds: as JSON, or as Python or NumPy prints it; the text itself otherwise."""
    stripped = text.strip()
    if not stripped or stripped[0] not in "[{(":
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    for tried in (_ARRAY.sub(", ", stripped), stripped):  # Python would join the strings of an array
        try:
            found = ast.literal_eval(tried)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(found) if isinstance(found, tuple) else found
    return text


# ------------------------------------------------------------------------------------------------------------- questions


def text_of(value: Any) -> str | None:
    """Return a non-blank text that is no list of messages; None otherwise."""
    if isinstance(value, str) and value.strip() and messages_of(value) is None:
        return value
    return None


def messages_of(value: Any) -> tuple[Message, ...] | None:
    """Return the messages of a chat, also of ShareGPT's form and as a text of JSON; None if the value is none."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[{", "[ {", "[\n")):
            return None
        value = literal(value)
    if not isinstance(value, (list, tuple)) or not value:
        return None
    found = [_message(each) for each in value]
    return tuple(each for each in found if each is not None) if all(found) else None


def _message(value: Any) -> Message | None:
    if not isinstance(value, Mapping):
        return None
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or ("role" not in value and "value" not in value):
        return None
    if "role" in value:
        return {name: sent(each) for name, each in value.items() if each is not None or name == "content"}
    return {"role": _SPEAKERS.get(role, role), "content": value["value"]}


def sent(value: Any) -> Any:
    """Return a value as it is sent to a server: with plain numbers."""
    if isinstance(value, WrittenNumber):
        return float(value)
    if isinstance(value, Mapping):
        return {name: sent(each) for name, each in value.items()}
    return [sent(each) for each in value] if isinstance(value, (list, tuple)) else value


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: dates and decimals as texts, numbers plain, bytes as their length."""
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return sent(value) if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def prompt_text(value: Any) -> str:
    """Return what a question asks, for comparison and planning: the text, or that of the last message of the user."""
    if isinstance(value, str) and (messages := messages_of(value)) is None:
        return value.strip()
    messages = messages_of(value)
    asked = [message for message in messages or () if message.get("role") == "user"]
    return content_text(asked[-1]) if asked else ""


def content_text(message: Message) -> str:
    """Return the text of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content.strip()
    parts = content if isinstance(content, (list, tuple)) else ()
    return "\n".join(
        part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ).strip()


def passage_of(value: Any) -> str:
    """Return a text that a question is about, also from a list of texts or an object of such lists; empty if it is none.

    PubMedQA writes {"contexts": [...]}, HotpotQA {"title": [...], "sentences": [[...], ...]}.
    """
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return next((passage_of(value[name]) for name in ("contexts", "sentences", "text") if name in value), "")
    if isinstance(value, (list, tuple)):
        parts = [passage_of(each) for each in value]
        flat = all(isinstance(each, str) for each in value) and any(len(part) < 400 for part in parts)
        return (" " if flat else "\n").join(parts) if all(parts) else ""
    return ""


def question_of(value: Any, column: str, where: str, *, missing: bool = False) -> str | tuple[Message, ...]:
    """Return a non-blank text that UTF-8 can encode, or messages up to the last one of the user.

    Raises `InputError` for another value.
    """
    if missing:
        raise InputError(f"{where}: no {column!r} in this row", hint="every row needs a question")
    if (messages := messages_of(value)) is not None:
        return asked_of(messages, column, where)
    if column == "messages":
        hint = 'write [{"role": "user", "content": "What is 2 + 2?"}]'
        raise InputError(f"{where}: 'messages' is not a list of messages", hint=hint)
    if (
        column == "turns"
        and isinstance(value, list)
        and value
        and all(isinstance(each, str) and each.strip() for each in value)
    ):
        if len(value) > 1:
            hint = "several turns need answers in between; give the first one only"
            raise InputError(f"{where}: {column!r} has {len(value)} turns", hint=hint)
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        hint = "write the question as a string"
        raise InputError(f"{where}: {column!r} is {kind(value)}; it must be a non-empty string", hint=hint)
    return whole(value, column, where)


def asked_of(messages: Sequence[Message], column: str, where: str) -> tuple[Message, ...]:
    """Return the messages without final answers of the assistant, which the model is to give. Raises `InputError`."""
    end = len(messages)
    while end and messages[end - 1].get("role") == "assistant":
        end -= 1
    unknown = next((message["role"] for message in messages if message.get("role") not in _ROLES), None)
    if unknown is not None:
        raise InputError(f"{where}: {column!r} has a message of {unknown!r}", hint=f"use {', '.join(sorted(_ROLES))}")
    if not any(message.get("role") == "user" for message in messages[:end]):
        raise InputError(f"{where}: {column!r} has no message of the user", hint="every row needs a question")
    return tuple(messages[:end])


# ---------------------------------------------------------------------------------------------------------------- answers


def labels_of(value: Any, column: str, where: str) -> tuple[str, ...]:
    """Return the right answers as texts; none if the value is missing. Numbers keep their writing.

    A list holds several right answers. Raises `InputError` for an object that holds none.
    """
    if is_missing(value):
        return ()
    if isinstance(value, str):
        return (whole(value, column, where),)
    if isinstance(value, bool):
        return (json.dumps(value),)
    if isinstance(value, Mapping):
        for name in _MISSING_ANSWERS:
            if name in value:
                return labels_of(value[name], column, where)
        hint = "choose another label column, or none; a point leads into an object: reward_model.ground_truth"
        raise InputError(f"{where}: {column!r} is an object, not a text or a number", hint=hint)
    if isinstance(value, (list, tuple)):
        found = dict.fromkeys(text for each in value for text in labels_of(each, column, where))
        return tuple(found)
    return (str(value),)


def id_of(value: Any) -> str | None:
    """Return texts and numbers as text; None for anything else (the row's number is then its id)."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode() or None
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def whole_id(value: str | None) -> str | int | None:
    """Return an id that is written as an integer as one, whatever the format's type; ``007`` stays a text."""
    return int(value) if value is not None and _INTEGER.fullmatch(value) else value


def whole(text: str, column: str, where: str) -> str:
    """Return the text. Raises `InputError` for a lone surrogate, which is valid JSON but cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(f"{where}: {column!r} contains the lone surrogate {half}", hint="remove it") from None
    return text
