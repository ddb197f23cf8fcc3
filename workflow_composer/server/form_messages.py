"""What a body of Anthropic's messages may hold, said in the words of OpenAI's chats."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from workflow_composer.server import checks, schemas
from workflow_composer.server.checks import NOTHING, UNSUPPORTED, described, wrong
from workflow_composer.server.forms import COMMON, TOKENS, Field, Form, left_out, refused

CACHE = "cache_control is not known here; servers keep what requests have in common by themselves"

_NO_MESSAGES = "must be a list of at least one message"
Notes = dict[str, None]
"""What is left out, each said once, in order."""

_ANY = schemas.ANYTHING
_CACHED = {"cache_control": _ANY}
_TEXT_BLOCK = {"type": schemas.constant("text"), "text": schemas.TEXT}
_SOURCE = schemas.either(
    schemas.record({"type": schemas.constant("url"), "url": schemas.TEXT}, "type", "url"),
    schemas.record(
        {"type": schemas.constant("base64"), "data": schemas.TEXT, "media_type": schemas.TEXT}, "type", "data", "media_type"
    ),
)
_RESULT = schemas.nullable(schemas.either(schemas.TEXT, schemas.listed(schemas.record(_TEXT_BLOCK, "text"))))
_BLOCKS = {
    "text": {"text": schemas.TEXT, "citations": _ANY, **_CACHED},
    "image": {"source": _SOURCE, **_CACHED},
    "tool_use": {"id": schemas.TEXT, "name": schemas.TEXT, "input": _ANY, "caller": _ANY, **_CACHED},
    "tool_result": {"tool_use_id": schemas.TEXT, "content": _RESULT, "is_error": _ANY, **_CACHED},
}
"""The fields of each kind of block. Citations and callers are of answers that are sent back: they say nothing new."""
_NEEDED = {"text": ("text",), "image": ("source",), "tool_use": ("id", "name"), "tool_result": ("tool_use_id",)}
_BLOCK = schemas.either(
    *(
        schemas.record({**parts, "type": schemas.constant(kind)}, "type", *_NEEDED[kind], closed=True)
        for kind, parts in _BLOCKS.items()
    )
)
_MESSAGE = {
    "role": schemas.constant("user", "assistant"),
    "content": schemas.either(schemas.TEXT, schemas.listed(_BLOCK, least=1)),
}
_TOOL = {
    "type": schemas.constant("custom", *NOTHING),
    "name": schemas.TEXT,
    **dict.fromkeys(("description", "input_schema", "strict"), _ANY),
    **_CACHED,
}


@described(
    schemas.either(schemas.TEXT, schemas.listed(schemas.record({**_TEXT_BLOCK, **_BLOCKS["text"]}, "text", closed=True)))
)
def _system(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    notes: Notes = {}
    if isinstance(found, str):
        return [{"role": "system", "content": found}], notes
    if not isinstance(found, list) or not all(_is_text(one) for one in found):
        raise wrong(name, "must be a text or a list of text blocks")
    for number, block in enumerate(found):
        _known(block, ("type", *_BLOCKS["text"]), f"{name}[{number}]", notes)
    return ([{"role": "system", "content": "\n\n".join(one["text"] for one in found)}] if found else []), notes


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type", "text") == "text" and isinstance(block.get("text"), str)


def _known(found: Mapping[str, Any], names: Collection[str], place: str, notes: Notes) -> None:
    """Refuse what is not known of a block or tool; note what is known and cannot change the answer."""
    for name, value in found.items():
        if name not in names and value is not None:
            raise wrong(f"{place}.{name}", "cannot be honoured here", code=UNSUPPORTED)
    if found.get("cache_control") is not None:
        notes[CACHE] = None


@described(schemas.listed(schemas.record(_MESSAGE, "role", "content", closed=True), least=1))
def _messages(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    if not checks.items(name, found):
        raise wrong(name, _NO_MESSAGES)
    notes: Notes = {}
    return [one for number, message in enumerate(found) for one in _message(message, f"{name}[{number}]", notes)], notes


def _message(message: Any, place: str, notes: Notes) -> list[dict[str, Any]]:
    """One of Anthropic's messages as OpenAI's: results of tools become messages of their own, before the rest."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise wrong(f"{place}.role", "must be user or assistant")
    _known(message, _MESSAGE, place, notes)
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not content or not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise wrong(f"{place}.content", "must be a text or a list of at least one block")
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        where = f"{place}.content[{number}]"
        _block(block, where, parts, calls, results)
        _known(block, ("type", *_BLOCKS[block["type"]]), where, notes)
        if block.get("is_error"):
            notes["tool_result.is_error is not told to the model; the content should say it"] = None
    rest: dict[str, Any] = {"role": role, "content": _content(parts)}
    if calls:
        rest["tool_calls"] = calls
    return [*results, *([rest] if parts or calls else [])]


def _block(
    block: Mapping[str, Any],
    place: str,
    parts: list[dict[str, Any]],
    calls: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> None:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        parts.append({"type": "text", "text": block["text"]})
    elif kind == "image" and isinstance(block.get("source"), dict):
        parts.append({"type": "image_url", "image_url": {"url": _image(block["source"], place)}})
    elif kind == "tool_use" and isinstance(block.get("id"), str) and isinstance(block.get("name"), str):
        arguments = json.dumps(block.get("input") or {})
        calls.append({"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}})
    elif kind == "tool_result" and isinstance(block.get("tool_use_id"), str):
        results.append(
            {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _result(block.get("content"), place)}
        )
    else:
        raise wrong(place, "must be a text, image, tool_use or tool_result block", code=UNSUPPORTED)


def _content(parts: list[dict[str, Any]]) -> Any:
    if not parts:
        return None
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _image(source: Mapping[str, Any], place: str) -> str:
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if source.get("type") == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        return f"data:{source['media_type']};base64,{source['data']}"
    raise wrong(f"{place}.source", "must be a url or base64 data with a media_type")


def _result(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(_is_text(one) for one in content):
        return "\n".join(one["text"] for one in content)
    raise wrong(f"{place}.content", "must be a text or a list of text blocks")


@described(schemas.listed(schemas.record(_TOOL, "name", closed=True)))
def _tools(name: str, found: Any) -> tuple[tuple[dict[str, Any], ...] | None, Notes]:
    notes: Notes = {}
    made = (_tool(tool, f"{name}[{number}]", notes) for number, tool in enumerate(checks.items(name, found)))
    return tuple(made) or None, notes


def _tool(tool: Any, place: str, notes: Notes) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise wrong(place, "must be an object with a name")
    if (tool.get("type") or "custom") != "custom":
        raise wrong(f"{place}.type", "must be custom; the service runs no tools itself", code=UNSUPPORTED)
    _known(tool, _TOOL, place, notes)
    function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_CHOICE = {"name": _ANY, "disable_parallel_tool_use": _ANY}


@described(
    schemas.either(
        schemas.record({**_CHOICE, "type": schemas.constant(*_CHOICES)}, "type", closed=True),
        schemas.record({**_CHOICE, "type": schemas.constant("tool"), "name": schemas.TEXT}, "type", "name", closed=True),
    )
)
def _tool_choice(name: str, found: Any) -> tuple[str | Mapping[str, Any], dict[str, Any]]:
    """The choice, and what it says of calls at once."""
    choice = checks.mapping(name, found)
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    for part, value in choice.items():
        if part != "type" and part not in _CHOICE and value is not None:
            raise wrong(f"{name}.{part}", "cannot be honoured here", code=UNSUPPORTED)
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}, parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise wrong(f"{name}.type", "must be auto, any, none or tool")
    return _CHOICES[kind], parallel


@described(schemas.constant({"type": "disabled"}))
def _thinking(name: str, found: Any) -> None:
    if checks.mapping(name, found) != {"type": "disabled"}:
        raise wrong(name, "cannot be honoured here", code=UNSUPPORTED)


FORM = Form(
    {
        **COMMON,
        "messages": Field(_messages, required=_NO_MESSAGES),
        "system": Field(_system),
        "max_tokens": Field(TOKENS, "max_tokens", required="is required"),
        "stop_sequences": Field(checks.texts, "stop"),
        "tools": Field(_tools),
        "tool_choice": Field(_tool_choice),
        "thinking": Field(_thinking),
        "cache_control": Field(checks.mapping, note=f"Not heeded: {CACHE}"),
        "service_tier": left_out("is not known here"),
        "container": refused("is not known here"),
        "mcp_servers": refused("is not known here"),
        "n": refused("is one in this form; ask /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "max_tokens": 256, "messages": [{"role": "user", "content": "What is 2 + 2?"}]},
)
