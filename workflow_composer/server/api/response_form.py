"""The bodies of OpenAI's responses: their fields, translated to those of chat completions.

Tools that are no functions are functions to the model: a *custom* tool takes one text, those of a *namespace* have its
name in front. `Asked.tools` says what each stands for, so that its calls are returned as the client knows them. Tools that
OpenAI runs itself are left out with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    ONLY_SOME,
    TOKENS,
    TOP_LOGPROBS,
    Field,
    Form,
    address_of,
    carry,
    left_out,
    optional,
    refused,
    renamed,
    told_by_tool,
)
from workflow_composer.server.api.json_wire import Asked
from workflow_composer.types import EMPTY

Notes = dict[str, None]
"""Warnings about ignored values: each once, in order."""

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_PART = schemas.either(
    schemas.record({"type": schemas.constant(*_TEXT_PARTS), "text": schemas.TEXT}, "type", "text"),
    schemas.record({"type": schemas.constant("refusal"), "refusal": schemas.TEXT}, "type", "refusal"),
    schemas.record({"type": schemas.constant("input_image"), "image_url": schemas.TEXT}, "type", "image_url"),
    schemas.record({"type": schemas.constant("input_file"), "file_data": schemas.TEXT}, "type", "file_data"),
)
_CONTENT = schemas.either(schemas.TEXT, schemas.listed(_PART))
_ROLES = ("user", "assistant", "system", "developer")
_CALLS = {"function_call": ("call_id", "name", "arguments"), "custom_tool_call": ("call_id", "name", "input")}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_OWN_ITEMS = (
    *("web_search_call", "file_search_call", "code_interpreter_call", "computer_call", "computer_call_output"),
    *("image_generation_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output"),
    *("apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_call", "mcp_approval_request"),
    *("mcp_approval_response", "tool_search_call", "tool_search_output", "compaction"),
)
"""Types of items that belong to tools which OpenAI runs, or to its own models."""
_MORE_TOOLS = "additional_tools"
_FUNCTION = schemas.record({"type": schemas.constant("function"), "name": schemas.TEXT}, "type", "name")
_CUSTOM = schemas.record({"type": schemas.constant("custom"), "name": schemas.TEXT}, "type", "name")
_UNNAMED = schemas.record({"type": {**schemas.TEXT, "not": schemas.constant("function", "custom")}}, "type")
_INNER = schemas.listed(schemas.either(_FUNCTION, _CUSTOM, _UNNAMED))
_NAMESPACE = schemas.record(
    {"type": schemas.constant("namespace"), "name": schemas.TEXT, "tools": _INNER}, "type", "name", "tools"
)
_OTHER = schemas.record({"type": {**schemas.TEXT, "not": schemas.constant("function", "custom", "namespace")}}, "type")
_OFFERED = schemas.listed(schemas.either(_FUNCTION, _CUSTOM, _NAMESPACE, _OTHER))
_TEXT_ITEM = schemas.record({"text": schemas.TEXT}, "text")
_ITEM = schemas.either(
    schemas.record(
        {"type": schemas.constant("message"), "role": schemas.constant(*_ROLES), "content": _CONTENT}, "role", "content"
    ),
    *(
        schemas.record({"type": schemas.constant(kind), **dict.fromkeys(parts, schemas.TEXT)}, "type", *parts)
        for kind, parts in _CALLS.items()
    ),
    schemas.record(
        {"type": schemas.constant(*_OUTPUTS), "call_id": schemas.TEXT, "output": _CONTENT}, *("type", "call_id", "output")
    ),
    schemas.record(
        {
            "type": schemas.constant("reasoning"),
            "summary": schemas.nullable(schemas.listed(_TEXT_ITEM)),
            "content": schemas.nullable(schemas.listed(_TEXT_ITEM)),
        },
        "type",
    ),
    schemas.record({"type": schemas.constant(_MORE_TOOLS), "tools": _OFFERED}, "type", "tools"),
    schemas.record({"type": schemas.constant(*_OWN_ITEMS)}, "type"),
)
_NO_INPUT = "must be a string or a list of items"


@described(schemas.either(schemas.TEXT, schemas.listed(_ITEM, least=1)))
def _input(name: str, found: Any) -> _Conversation:
    conversation = _Conversation()
    if isinstance(found, str):
        conversation.messages.append({"role": "user", "content": found})
        return conversation
    if not isinstance(found, list) or not found:
        raise wrong(name, _NO_INPUT)
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise wrong(f"{name}[{number}]", "must be an object")
        conversation.add(item, f"{name}[{number}]")
    conversation.end_results()
    return conversation


class _Conversation:
    """The messages that items become: an assistant's text, its calls and the reasoning before them are one message.

    ``tools`` are those of items: Codex offers tools in the conversation to models that it knows to take them so.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.tools = Tools(None, {}, {})
        self.notes: Notes = {}
        self._thoughts = ""
        self._returned: list[dict[str, Any]] = []

    def add(self, item: Mapping[str, Any], place: str) -> None:
        """Add one item. Raises `HttpFailure`."""
        kind = item.get("type", "message")
        if kind == "reasoning":
            self._think(item, place)
            return
        if kind == _MORE_TOOLS:
            self.tools = self.tools.and_more(_tools(f"{place}.tools", item.get("tools")))
            return
        if isinstance(kind, str) and kind in _OWN_ITEMS:
            self.notes[f"items of type {kind} are left out: they belong to tools that this service does not run"] = None
            return
        message = _item(item, kind, place)
        if message["role"] != "tool":
            self.end_results()
        elif isinstance(message["content"], list):
            message["content"], others = told_by_tool(message["tool_call_id"], message["content"])
            self._returned += others
        if message["role"] == "assistant" and self._thoughts:
            message["reasoning_content"] = self._thoughts
        self._thoughts = ""
        last = self.messages[-1] if self.messages else {}
        if "tool_calls" in message and last.get("role") == "assistant" and "reasoning_content" not in message:
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            self.messages.append(message)

    def end_results(self) -> None:
        """Add what tools returned besides text, after the results of all calls of a turn."""
        if self._returned:
            self.messages.append({"role": "user", "content": self._returned})
            self._returned = []

    def _think(self, item: Mapping[str, Any], place: str) -> None:
        for name in ("content", "summary"):
            found = item.get(name)
            if found is not None and not (isinstance(found, list) and all(map(_has_text, found))):
                raise wrong(f"{place}.{name}", "must be a list of texts")
        parts = item.get("content") or item.get("summary") or []
        if not parts and item.get("encrypted_content"):
            self.notes["reasoning.encrypted_content is left out: only the model that wrote it can read it"] = None
        self._thoughts = "\n\n".join(part["text"] for part in parts)


def _has_text(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _item(item: Mapping[str, Any], kind: Any, place: str) -> dict[str, Any]:
    if kind == "message" and item.get("role") in _ROLES:
        return {"role": item["role"], "content": _content(item.get("content"), place)}
    if isinstance(kind, str) and kind in _CALLS and all(isinstance(item.get(name), str) for name in _CALLS[kind]):
        arguments = (
            item["arguments"] if kind == "function_call" else json.dumps({"input": item["input"]}, ensure_ascii=False)
        )
        namespace = item.get("namespace")
        name = _flat(namespace, item["name"]) if isinstance(namespace, str) and namespace else item["name"]
        call = {"id": item["call_id"], "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if isinstance(kind, str) and kind in _OUTPUTS and isinstance(item.get("call_id"), str):
        output = item.get("output")
        content = output if isinstance(output, str) else _parts(output, f"{place}.output")
        return {"role": "tool", "tool_call_id": item["call_id"], "content": content}
    if kind == "item_reference":
        raise wrong(
            place, "item_reference is not supported, because items are not stored; send them whole", code=UNSUPPORTED
        )
    message = "must be a message, reasoning, a call of a tool or its output, with all of its fields"
    raise wrong(place, message, code=UNSUPPORTED)


def _content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    parts = _parts(content, place)
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _parts(content: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(f"{place}.content", "must be a string or a list of parts")
    return [_part(part, f"{place}.content[{number}]") for number, part in enumerate(content)]


def _part(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"], **({"detail": part["detail"]} if isinstance(part.get("detail"), str) else {})}
        return {"type": "image_url", "image_url": image}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        name = {"filename": part["filename"]} if isinstance(part.get("filename"), str) else {}
        return {"type": "file", "file": {"file_data": part["file_data"], **name}}
    raise wrong(place, "must be a text, an image given by URL, or a file given by its data", code=UNSUPPORTED)


# ---------------------------------------------------------------------------------------------------------------- tools


class Meant(NamedTuple):
    """What a function stands for: a tool of this ``kind`` and ``name``, in a ``namespace`` or in none."""

    kind: str
    name: str
    namespace: str | None = None


class Tools(NamedTuple):
    """Functions for the model, what some of them stand for, and warnings about those left out."""

    functions: tuple[dict[str, Any], ...] | None
    meant: Mapping[str, Meant]
    notes: Notes

    def and_more(self, other: Tools) -> Tools:
        """Return the tools of both; of two with one name, the later one."""
        named = {tool["function"]["name"]: tool for tool in (*(self.functions or ()), *(other.functions or ()))}
        return Tools(tuple(named.values()) or None, {**self.meant, **other.meant}, {**self.notes, **other.notes})


@described(_OFFERED)
def _tools(name: str, found: Any) -> Tools:
    functions: list[dict[str, Any]] = []
    meant: dict[str, Meant] = {}
    notes: Notes = {}
    for number, tool in enumerate(field_checks.items(name, found)):
        place = f"{name}[{number}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise wrong(place, "must be an object with a type")
        if tool["type"] == "namespace":
            inner = field_checks.items(f"{place}.tools", tool.get("tools"))
            space = field_checks.text(f"{place}.name", tool.get("name"))
            for at, one in enumerate(inner):
                _add(one, f"{place}.tools[{at}]", functions, meant, notes, space)
        else:
            _add(tool, place, functions, meant, notes, None)
    return Tools(tuple(functions) or None, meant, notes)


def _add(
    tool: Any, place: str, functions: list[dict[str, Any]], meant: dict[str, Meant], notes: Notes, namespace: str | None
) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        raise wrong(place, "must be an object with a type")
    if kind not in ("function", "custom"):
        notes[f"tools of type {kind[:100]} are left out: this service does not run them"] = None
        return
    if not isinstance(tool.get("name"), str):
        raise wrong(place, f"must be a {kind} tool with a name")
    name = tool["name"] if namespace is None else _flat(namespace, tool["name"])
    if kind == "custom" or namespace is not None:
        meant[name] = Meant(kind, tool["name"], namespace)
    function = (
        _of_custom(tool) if kind == "custom" else {key: tool[key] for key in tool if key != "type" and tool[key] is not None}
    )
    for other in ("defer_loading", "allowed_callers"):
        function.pop(other, None)
    functions.append({"type": "function", "function": {**function, "name": name}})


def _flat(namespace: str, name: str) -> str:
    """Return the name of a namespace's tool as a function; models take names of 64 characters."""
    return f"{namespace.rstrip('_')}__{name}"[:64]


def _of_custom(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a custom tool, whose input is free text, as a function with one text."""
    said = [one] if isinstance(one := tool.get("description"), str) else []
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar" and isinstance(form.get("definition"), str):
        said.append(f"The input follows this grammar ({form.get('syntax') or 'lark'}):\n{form['definition']}")
    text = {"type": "string", "description": "The tool's whole input, as plain text"}
    parameters = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    return {"name": tool["name"], **({"description": "\n\n".join(said)} if said else {}), "parameters": parameters}


_CHOICE_KINDS = ("function", "custom", "allowed_tools")


@described(
    schemas.either(
        schemas.TEXT,
        _FUNCTION,
        _CUSTOM,
        schemas.record(
            {"type": schemas.constant("allowed_tools"), "mode": schemas.constant("auto", "required")}, "type", "mode"
        ),
        schemas.record({"type": {**schemas.TEXT, "not": schemas.constant(*_CHOICE_KINDS)}}, "type"),
    )
)
def _tool_choice(name: str, found: Any) -> tuple[str | Mapping[str, Any] | None, Notes]:
    if isinstance(found, str):
        return found, {}
    kind = found.get("type") if isinstance(found, dict) else None
    if kind in ("function", "custom") and isinstance(found.get("name"), str):
        return {"type": "function", "function": {"name": found["name"]}}, {}
    if kind == "allowed_tools" and found.get("mode") in ("auto", "required"):
        return found["mode"], {"tool_choice.tools is ignored: the model may call any of the request's tools": None}
    if isinstance(kind, str) and kind not in _CHOICE_KINDS:
        return None, {f"tool_choice of type {kind[:100]} is left out with its tool": None}
    raise wrong(name, "must be a string, or a function or custom tool with a name")


# ----------------------------------------------------------------------------------------------------------------- form


@described(schemas.record({"type": schemas.constant("text", "json_object", "json_schema")}, "type"))
def _format(name: str, found: Any) -> Mapping[str, Any] | None:
    form = field_checks.mapping(name, found)
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        return {"type": "json_schema", "json_schema": schema}
    raise wrong(f"{name}.type", "must be text, json_object or json_schema")


_REASONING = dict.fromkeys(("effort", "summary", "generate_summary", "context"), field_checks.text)

FORM = Form(
    {
        **COMMON,
        "input": Field(_input, required=_NO_INPUT),
        "instructions": Field(field_checks.text),
        "max_output_tokens": Field(TOKENS, "max_tokens"),
        "top_logprobs": Field(TOP_LOGPROBS),
        "include": Field(field_checks.items),
        "reasoning": Field(field_checks.record(_REASONING), note="No summary is made; reasoning is returned as it is"),
        "text": Field(field_checks.record({"format": _format, "verbosity": field_checks.text})),
        "tools": Field(_tools),
        "tool_choice": Field(_tool_choice),
        # Obfuscation (padding that hides the lengths of pieces on an encrypted connection) is not supported.
        "stream_options": Field(field_checks.record({"include_obfuscation": field_checks.flag})),
        "store": Field(field_checks.flag, note="Whether the response may be continued (previous_response_id); default: yes"),
        "service_tier": Field(field_checks.text, note=ONLY_SOME),
        "truncation": left_out("the model server decides"),
        "prompt_cache_key": Field(field_checks.text, note=ONLY_SOME),
        "prompt_cache_retention": left_out("not supported"),
        "safety_identifier": left_out("not supported"),
        "previous_response_id": Field(field_checks.text, note="Known to a service with one worker, as long as it runs"),
        "conversation": refused("is not supported, because conversations are not stored"),
        "background": refused("is not supported; responses are synchronous"),
        "prompt": refused("is not supported, because prompt templates are not stored"),
        "context_management": refused("is not supported"),
        "max_tool_calls": refused("is not supported; the service does not run tools itself"),
        "n": refused("must be 1 in this API; use /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "input": "What is 2 + 2?"},
)

LOGPROBS = "message.output_text.logprobs"
_NO_TOOLS = Tools(None, EMPTY, {})


def asked_of(body: bytes | bytearray, headers: Mapping[str, str]) -> Asked:
    """Parse a request body. Raises `HttpFailure`."""
    fields, own, extra, warnings = FORM.read(body)
    conversation: _Conversation = own["input"]
    messages, notes = conversation.messages, conversation.notes
    if (instructions := own.get("instructions")) is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    wanted = own.get("include", [])
    warnings += (f"include: {one} is not supported" for one in wanted if one != LOGPROBS)
    reasoning, form = own.get("reasoning", {}), own.get("text", {})
    if reasoning.get("summary") not in (None, "none") or reasoning.get("generate_summary"):
        warnings.append("reasoning.summary is ignored: reasoning is returned as it is")
    if reasoning.get("context"):
        notes["reasoning.context is ignored: the model gets the reasoning that the request holds"] = None
    tools = own.get("tools", _NO_TOOLS).and_more(conversation.tools)
    choice, more = own.get("tool_choice", (None, {}))
    if tools.functions is None and tools.notes:
        choice = None  # with the tools that it chooses from
    said = {"reasoning_effort": reasoning.get("effort"), "verbosity": form.get("verbosity")}
    top = own.get("top_logprobs")
    metadata = fields.get("metadata", EMPTY)
    if extra:
        renamed(extra, warnings)
    optional(own, extra)
    if metadata:
        carry(metadata, extra)
    if tools.functions is None and tools.notes:
        extra.pop("parallel_tool_calls", None)
    fields.update(
        address_of(own.get("model"), metadata.get("task_type"), *map(headers.get, ADDRESS_HEADERS)),
        messages=tuple(messages),
        top_logprobs=top or None,
        logprobs=bool(top) or LOGPROBS in wanted,
        tools=tools.functions,
        tool_choice=choice,
        response_format=form.get("format"),
        extra={**{name: value for name, value in said.items() if value is not None}, **extra},
    )
    found = Asked(fields, own.get("stream", False), warnings=(*warnings, *{**notes, **tools.notes, **more}))
    found.tools = tools.meant
    found.previous, found.store = own.get("previous_response_id"), own.get("store", True)
    found.instructed = instructions is not None
    return found
