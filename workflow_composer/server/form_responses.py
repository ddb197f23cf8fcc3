"""What a body of OpenAI's responses may hold, said in the words of chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workflow_composer.server import checks, schemas
from workflow_composer.server.checks import UNSUPPORTED, described, wrong
from workflow_composer.server.forms import COMMON, TOKENS, TOP_LOGPROBS, Field, Form, left_out, refused

_PART = schemas.either(
    schemas.record({"type": schemas.constant("input_text", "output_text", "text"), "text": schemas.TEXT}, "type", "text"),
    schemas.record({"type": schemas.constant("input_image"), "image_url": schemas.TEXT}, "type", "image_url"),
)
_CONTENT = schemas.either(schemas.TEXT, schemas.listed(_PART))
_ROLES = ("user", "assistant", "system", "developer")
_CALL_PARTS = ("call_id", "name", "arguments")
_ITEM = schemas.either(
    schemas.record(
        {"type": schemas.constant("message"), "role": schemas.constant(*_ROLES), "content": _CONTENT}, "role", "content"
    ),
    schemas.record(
        {"type": schemas.constant("function_call"), **dict.fromkeys(_CALL_PARTS, schemas.TEXT)}, "type", *_CALL_PARTS
    ),
    schemas.record(
        {"type": schemas.constant("function_call_output"), "call_id": schemas.TEXT, "output": _CONTENT},
        *("type", "call_id", "output"),
    ),
)
_NO_INPUT = "must be a text or a list of items"


@described(schemas.either(schemas.TEXT, schemas.listed(_ITEM, least=1)))
def _input(name: str, found: Any) -> list[dict[str, Any]]:
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    if not isinstance(found, list) or not found:
        raise wrong(name, _NO_INPUT)
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise wrong(f"{name}[{number}]", "must be an object")
        message = _item(item, f"{name}[{number}]")
        if "tool_calls" in message and messages and "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"] += message["tool_calls"]  # calls made at once belong to one message
        else:
            messages.append(message)
    return messages


def _item(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in _ROLES:
        return {"role": item["role"], "content": _content(item.get("content"), place)}
    if kind == "function_call" and all(isinstance(item.get(name), str) for name in _CALL_PARTS):
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output" and isinstance(item.get("call_id"), str):
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, f"{place}.output")
        return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
    message = "must be a message, function_call or function_call_output with all of its fields"
    raise wrong(place, message, code=UNSUPPORTED)


def _content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(f"{place}.content", "must be a text or a list of parts")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        if part.get("type") in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif part.get("type") == "input_image" and isinstance(part.get("image_url"), str):
            image = {"url": part["image_url"], **({"detail": part["detail"]} if isinstance(part.get("detail"), str) else {})}
            parts.append({"type": "image_url", "image_url": image})
        else:
            raise wrong(f"{place}.content[{number}]", "must be a text or an image by its URL", code=UNSUPPORTED)
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


_FUNCTION = schemas.record({"type": schemas.constant("function"), "name": schemas.TEXT}, "type", "name")


@described(schemas.listed(_FUNCTION))
def _tools(name: str, found: Any) -> tuple[dict[str, Any], ...] | None:
    return tuple(_tool(tool, f"{name}[{number}]") for number, tool in enumerate(checks.items(name, found))) or None


def _tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        message = "must be a function with a name; the service runs no tools itself"
        raise wrong(place, message, code=UNSUPPORTED)
    return {"type": "function", "function": {name: tool[name] for name in tool if name != "type" and tool[name] is not None}}


@described(schemas.either(schemas.TEXT, _FUNCTION))
def _tool_choice(name: str, found: Any) -> str | Mapping[str, Any]:
    if isinstance(found, str):
        return found
    if isinstance(found, dict) and found.get("type") == "function" and isinstance(found.get("name"), str):
        return {"type": "function", "function": {"name": found["name"]}}
    raise wrong(name, "must be a text or a function by its name")


@described(schemas.record({"type": schemas.constant("text", "json_object", "json_schema")}, "type"))
def _format(name: str, found: Any) -> Mapping[str, Any] | None:
    form = checks.mapping(name, found)
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        return {"type": "json_schema", "json_schema": schema}
    raise wrong(f"{name}.type", "must be text, json_object or json_schema")


FORM = Form(
    {
        **COMMON,
        "input": Field(_input, required=_NO_INPUT),
        "instructions": Field(checks.text),
        "max_output_tokens": Field(TOKENS, "max_tokens"),
        "top_logprobs": Field(TOP_LOGPROBS),
        "include": Field(checks.items),
        "reasoning": Field(checks.record({"effort": checks.text})),
        "text": Field(checks.record({"format": _format, "verbosity": checks.text})),
        "tools": Field(_tools, "tools"),
        "tool_choice": Field(_tool_choice, "tool_choice"),
        # Nothing is obfuscated: that hides the lengths of pieces from those who watch an encrypted line.
        "stream_options": Field(checks.record({"include_obfuscation": checks.flag})),
        "store": left_out("is not done here"),
        "service_tier": left_out("is not known here"),
        "truncation": left_out("is left to the model's server"),
        "prompt_cache_key": left_out("is not known here"),
        "safety_identifier": left_out("is not known here"),
        "previous_response_id": refused("cannot be honoured: no response is stored; send the whole conversation as input"),
        "conversation": refused("cannot be honoured: no conversation is stored"),
        "background": refused("cannot be honoured: answers are given at once"),
        "prompt": refused("cannot be honoured: no prompt templates are stored"),
        "context_management": refused("cannot be honoured here"),
        "max_tool_calls": refused("cannot be honoured: the service runs no tools itself"),
        "n": refused("is one in this form; ask /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "input": "What is 2 + 2?"},
)
