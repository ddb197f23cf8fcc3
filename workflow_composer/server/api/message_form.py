"""The bodies of Anthropic's messages: their fields, translated to those of OpenAI's chat completions.

What a model behind another API cannot do, and what cannot change its answer, is left out with a warning; what would be lost
without being noticed is refused by name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from typing import Any

from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import NOTHING, UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import (
    ADDRESS_HEADERS,
    COMMON,
    TOKENS,
    Field,
    Form,
    address_of,
    left_out,
    refused,
    renamed,
    told_by_tool,
)
from workflow_composer.server.api.json_wire import Asked
from workflow_composer.types import EMPTY

CACHE = "cache_control is not supported; model servers cache common prefixes automatically"

_NO_MESSAGES = "must be a list of at least one message"
Notes = dict[str, None]
"""Warnings about ignored values: each once, in order."""

_ANY = schemas.ANYTHING
_CACHED = {"cache_control": _ANY}
_TEXT_BLOCK = {"type": schemas.constant("text"), "text": schemas.TEXT}
_FROM_URL = schemas.record({"type": schemas.constant("url"), "url": schemas.TEXT}, "type", "url")
_BASE64 = schemas.record(
    {"type": schemas.constant("base64"), "data": schemas.TEXT, "media_type": schemas.TEXT}, "type", "data", "media_type"
)
_SOURCE = schemas.either(_FROM_URL, _BASE64)
_PLAIN_SOURCE = schemas.record({"type": schemas.constant("text"), "data": schemas.TEXT}, "type", "data")
_WITH_TEXT = schemas.listed(schemas.record(_TEXT_BLOCK, "text"))
_DOCUMENT_SOURCE = schemas.either(
    _BASE64,
    _PLAIN_SOURCE,
    schemas.record(
        {"type": schemas.constant("content"), "content": schemas.either(schemas.TEXT, _WITH_TEXT)}, "type", "content"
    ),
)
_SHOWN: dict[str, dict[str, Any]] = {
    "text": {"text": schemas.TEXT, "citations": _ANY, **_CACHED},
    "image": {"source": _SOURCE, **_CACHED},
    "document": {
        "source": _DOCUMENT_SOURCE,
        **{name: schemas.nullable(schemas.TEXT) for name in ("title", "context")},
        "citations": _ANY,
        **_CACHED,
    },
    "search_result": {"source": schemas.TEXT, "title": schemas.TEXT, "content": _WITH_TEXT, "citations": _ANY, **_CACHED},
    "tool_reference": {"tool_name": schemas.TEXT, **_CACHED},
}
"""Fields of blocks that a message, or the result of a tool, may show to a model."""
_NEEDED = {
    "text": ("text",),
    "image": ("source",),
    "document": ("source",),
    "search_result": ("source", "title", "content"),
    "tool_reference": ("tool_name",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
}
_SHOWN_BLOCK = schemas.either(
    *(
        schemas.record({**parts, "type": schemas.constant(kind)}, "type", *_NEEDED[kind], closed=True)
        for kind, parts in _SHOWN.items()
    )
)
_RESULT = schemas.nullable(schemas.either(schemas.TEXT, schemas.listed(_SHOWN_BLOCK)))
_BLOCKS = {
    **_SHOWN,
    "thinking": {"thinking": schemas.TEXT, "signature": _ANY, **_CACHED},
    "redacted_thinking": {"data": _ANY, **_CACHED},
    "tool_use": {"id": schemas.TEXT, "name": schemas.TEXT, "input": _ANY, "caller": _ANY, **_CACHED},
    "tool_result": {"tool_use_id": schemas.TEXT, "content": _RESULT, "is_error": _ANY, **_CACHED},
}
"""Fields by block type. Citations and callers occur in returned responses and are redundant."""
_OTHERS = (
    *("server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "tool_search_tool_result", "mcp_tool_use"),
    *("code_execution_tool_result", "bash_code_execution_tool_result", "text_editor_code_execution_tool_result"),
    *("advisor_tool_result", "mcp_tool_result", "container_upload", "compaction", "fallback"),
)
"""Types of blocks that only Anthropic's own tools make; a conversation that began there may hold some."""
_BLOCK = schemas.either(
    *(
        schemas.record({**parts, "type": schemas.constant(kind)}, "type", *_NEEDED[kind], closed=True)
        for kind, parts in _BLOCKS.items()
    ),
    schemas.record({"type": schemas.constant(*_OTHERS)}, "type"),
)
EFFORT = "output_config.effort is not passed to the model"
SEAL = "wfc-thinking:"
BILLING = "x-anthropic-billing-header:"
_MESSAGE = {
    "role": schemas.constant("user", "assistant", "system"),
    "content": schemas.either(schemas.TEXT, schemas.listed(_BLOCK, least=1)),
    "output_config": schemas.nullable(schemas.record({"effort": _ANY}, closed=True)),
}
_IGNORED_OF_TOOLS = ("defer_loading", "eager_input_streaming", "allowed_callers", "input_examples")
_TOOL = {
    "type": schemas.constant("custom", *NOTHING),
    "name": schemas.TEXT,
    **dict.fromkeys(("description", "input_schema", "strict", *_IGNORED_OF_TOOLS), _ANY),
    **_CACHED,
}
_OWN_TOOL = schemas.record({"type": {**schemas.TEXT, "not": schemas.constant("custom", "")}}, "type")


@described(
    schemas.either(schemas.TEXT, schemas.listed(schemas.record({**_TEXT_BLOCK, **_BLOCKS["text"]}, "text", closed=True)))
)
def _system(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    notes: Notes = {}
    if isinstance(found, str):
        texts = [found]
    elif isinstance(found, list) and all(_is_text(one) for one in found):
        for number, block in enumerate(found):
            _known(block, ("type", *_BLOCKS["text"]), f"{name}[{number}]", notes)
        texts = [one["text"] for one in found]
    else:
        raise wrong(name, "must be a string or a list of text blocks")
    if texts and texts[0].startswith(BILLING):
        # Claude Code's account of itself: its hash changes with each request, so no prompt would begin like one in a cache
        texts[0] = texts[0].partition("\n")[2].lstrip("\n")
        texts = texts if texts[0] else texts[1:]
        notes[f"{BILLING} in the system prompt is not passed to the model"] = None
    return ([{"role": "system", "content": "\n\n".join(texts)}] if texts else []), notes


def sealed(thoughts: str) -> str:
    """Return the signature of a thinking block whose text is not shown: the client returns it with the conversation.

    The service keeps nothing, and models that reason between calls of tools need what they thought before.

    >>> unsealed(sealed("Both files first."))
    'Both files first.'
    """
    return SEAL + base64.b64encode(thoughts.encode("utf-8", "surrogatepass")).decode()


def unsealed(signature: Any) -> str:
    """Return the text of such a signature; that of another service holds none."""
    if not isinstance(signature, str) or not signature.startswith(SEAL):
        return ""
    try:
        return base64.b64decode(signature.removeprefix(SEAL), validate=True).decode("utf-8", "surrogatepass")
    except ValueError:
        return ""


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type", "text") == "text" and isinstance(block.get("text"), str)


def _known(found: Mapping[str, Any], names: Collection[str], place: str, notes: Notes) -> None:
    """Refuse unknown fields of a block or tool; warn about known ones that cannot change the response."""
    for name, value in found.items():
        if name not in names and value is not None:
            raise wrong(f"{place}.{name}", "is not supported", code=UNSUPPORTED)
    if found.get("cache_control") is not None:
        notes[CACHE] = None


@described(schemas.listed(schemas.record(_MESSAGE, "role", "content", closed=True), least=1))
def _messages(name: str, found: Any) -> tuple[list[dict[str, Any]], Notes]:
    if not field_checks.items(name, found):
        raise wrong(name, _NO_MESSAGES)
    notes: Notes = {}
    return [one for number, message in enumerate(found) for one in _message(message, f"{name}[{number}]", notes)], notes


def _message(message: Any, place: str, notes: Notes) -> list[dict[str, Any]]:
    """Translate a message to OpenAI's format; tool results become separate messages, before the rest."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
        raise wrong(f"{place}.role", "must be user, assistant or system")
    _known(message, _MESSAGE, place, notes)
    if (output := message.get("output_config")) is not None:  # the effort from this message on
        if not isinstance(output, dict) or not output.keys() <= {"effort"}:
            raise wrong(f"{place}.output_config", "must be an object with nothing but effort", code=UNSUPPORTED)
        notes[EFFORT] = None
    # A system's message may stand anywhere here, as developers' messages may in OpenAI's format.
    role, content = message["role"].replace("system", "developer"), message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not content or not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise wrong(f"{place}.content", "must be a string or a list of at least one block")
    turn = _SpokenTurn(notes)
    for number, block in enumerate(content):
        where = f"{place}.content[{number}]"
        turn.add(block, where)
    rest: dict[str, Any] = {"role": role, "content": _content(turn.parts)}
    if turn.thoughts and role == "assistant":
        rest["reasoning_content"] = "\n\n".join(turn.thoughts)
        rest["content"] = rest["content"] or ("" if not turn.calls else None)
    if turn.calls:
        rest["tool_calls"] = turn.calls
    return [*turn.results, *([rest] if turn.parts or turn.calls or "reasoning_content" in rest else [])]


class _SpokenTurn:
    """What the blocks of one message become."""

    def __init__(self, notes: Notes) -> None:
        self.parts: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.thoughts: list[str] = []
        self._notes = notes

    def add(self, block: Mapping[str, Any], place: str) -> None:
        """Add one block. Raises `HttpFailure`."""
        kind = block.get("type")
        if kind in _OTHERS:
            self._notes[f"blocks of type {kind} are left out: they belong to tools that this service does not run"] = None
            return
        if not isinstance(kind, str) or kind not in _BLOCKS:
            names = ", ".join(_BLOCKS)
            raise wrong(place, f"must be a block of one of the types {names}", code=UNSUPPORTED)
        if kind in _SHOWN:
            self.parts += _shown(block, place)
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            self.thoughts += filter(None, [block["thinking"] or unsealed(block.get("signature"))])
        elif kind == "redacted_thinking":
            self._notes["redacted_thinking is left out: only the model that wrote it can read it"] = None
        elif kind == "tool_use" and isinstance(block.get("id"), str) and isinstance(block.get("name"), str):
            arguments = json.dumps(block.get("input") or {})
            function = {"name": block["name"], "arguments": arguments}
            self.calls.append({"id": block["id"], "type": "function", "function": function})
        elif kind == "tool_result" and isinstance(block.get("tool_use_id"), str):
            self._result(block, place)
        else:
            raise wrong(place, f"lacks {' or '.join(_NEEDED[kind])}, or it is not a string", code=UNSUPPORTED)
        _known(block, ("type", *_BLOCKS[kind]), place, self._notes)

    def _result(self, block: Mapping[str, Any], place: str) -> None:
        """Add a tool's result: its text as the tool's message, what is no text as parts of the user's message after it."""
        content = block.get("content")
        if isinstance(content, list) and all(isinstance(one, dict) for one in content):
            made = []
            for number, one in enumerate(content):
                where = f"{place}.content[{number}]"
                if not isinstance(one.get("type"), str) or one["type"] not in _SHOWN:
                    raise wrong(where, f"must be a block of one of the types {', '.join(_SHOWN)}", code=UNSUPPORTED)
                _known(one, ("type", *_SHOWN[one["type"]]), where, self._notes)
                made += _shown(one, where)
            text, others = told_by_tool(block["tool_use_id"], made)
            self.parts += others
        elif content is None or isinstance(content, str):
            text = content or ""
        else:
            raise wrong(f"{place}.content", "must be a string or a list of blocks")
        if block.get("is_error"):
            self._notes["tool_result.is_error is not passed to the model; state the error in the content"] = None
        self.results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})


def _shown(block: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Return a block that shows something as parts of a message."""
    kind = block["type"]
    if kind == "text" and isinstance(block.get("text"), str):
        return [{"type": "text", "text": block["text"]}]
    if kind == "image" and isinstance(block.get("source"), dict):
        return [{"type": "image_url", "image_url": {"url": _image(block["source"], place)}}]
    if kind == "document" and isinstance(block.get("source"), dict):
        return _document(block, block["source"], place)
    if kind == "search_result" and all(isinstance(block.get(name), str) for name in ("source", "title")):
        content = field_checks.items(f"{place}.content", block.get("content"))
        text = _joined(content, f"{place}.content")
        return [{"type": "text", "text": f"{block['title']} ({block['source']})\n{text}"}]
    if kind == "tool_reference" and isinstance(block.get("tool_name"), str):
        return [{"type": "text", "text": block["tool_name"]}]
    raise wrong(place, f"lacks {' or '.join(_NEEDED[kind])}, or it has another type", code=UNSUPPORTED)


def _document(block: Mapping[str, Any], source: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    for name in ("title", "context"):
        if block.get(name) is not None:
            field_checks.text(f"{place}.{name}", block[name])
    head = [block[name] for name in ("title", "context") if block.get(name)]
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return [{"type": "text", "text": "\n".join([*head, source["data"]])}]
    if source.get("type") == "content":
        return [{"type": "text", "text": "\n".join([*head, _joined(source.get("content"), f"{place}.source.content")])}]
    if source.get("type") == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        data = f"data:{source['media_type']};base64,{source['data']}"
        return [{"type": "file", "file": {"file_data": data, "filename": block.get("title") or "document"}}]
    raise wrong(f"{place}.source", "must be text, a list of text blocks, or base64 data with a media_type", code=UNSUPPORTED)


def _joined(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(_is_text(one) for one in content):
        raise wrong(place, "must be a list of text blocks", code=UNSUPPORTED)
    return "\n".join(one["text"] for one in content)


def _content(parts: list[dict[str, Any]]) -> Any:
    if not parts:
        return None
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _image(source: Mapping[str, Any], place: str) -> str:
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if source.get("type") == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        return f"data:{source['media_type']};base64,{source['data']}"
    raise wrong(f"{place}.source", "must be a URL, or base64 data with a media_type")


@described(schemas.listed(schemas.either(schemas.record(_TOOL, "name", closed=True), _OWN_TOOL)))
def _tools(name: str, found: Any) -> tuple[tuple[dict[str, Any], ...] | None, Notes]:
    notes: Notes = {}
    made = [_tool(tool, f"{name}[{number}]", notes) for number, tool in enumerate(field_checks.items(name, found))]
    return tuple(tool for tool in made if tool is not None) or None, notes


def _tool(tool: Any, place: str, notes: Notes) -> dict[str, Any] | None:
    """Return a tool in OpenAI's format; None for one of Anthropic's own, which no other model knows how to use."""
    kind = (tool.get("type") or "custom") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "custom":
        notes[f"tools of type {kind[:100]} are left out: they are Anthropic's own"] = None
        return None
    if kind is None or not isinstance(tool.get("name"), str):
        raise wrong(place, "must be an object with a name")
    if kind != "custom":
        raise wrong(f"{place}.type", "must be a string")
    _known(tool, _TOOL, place, notes)
    for name in _IGNORED_OF_TOOLS:
        if tool.get(name) not in NOTHING:
            notes[f"tools: {name} is ignored"] = None
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
    """Return the tool choice and the setting for parallel calls."""
    choice = field_checks.mapping(name, found)
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    for part, value in choice.items():
        if part != "type" and part not in _CHOICE and value is not None:
            raise wrong(f"{name}.{part}", "is not supported", code=UNSUPPORTED)
    kind = choice.get("type")
    if kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}, parallel
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise wrong(f"{name}.type", "must be auto, any, none or tool")
    return _CHOICES[kind], parallel


_THINKING = {
    "type": field_checks.one_of("disabled", "enabled", "adaptive", message="must be disabled, enabled or adaptive"),
    "budget_tokens": field_checks.whole(least=0),
    "display": field_checks.one_of("summarized", "omitted", "full", message="must be summarized, omitted or full"),
}


@described(
    schemas.record(
        {name: part.schema if name == "type" else schemas.nullable(part.schema) for name, part in _THINKING.items()},
        "type",
        closed=True,
    )
)
def _thinking(name: str, found: Any) -> dict[str, Any]:
    checked = _thinking_parts(name, found)
    if "type" not in checked:
        raise wrong(f"{name}.type", "must be disabled, enabled or adaptive")
    return checked


_thinking_parts = field_checks.record(_THINKING)
_FORMAT = {"type": schemas.constant("json_schema"), "schema": schemas.OBJECT}


@described(schemas.record(_FORMAT, "type", "schema"))
def _format(name: str, found: Any) -> dict[str, Any]:
    """Return what an answer must be as OpenAI's ``response_format``."""
    form = field_checks.mapping(name, found)
    if form.get("type") != "json_schema":
        raise wrong(f"{name}.type", "must be json_schema", code=UNSUPPORTED)
    schema = field_checks.mapping(f"{name}.schema", form.get("schema"))
    strict = {"strict": True} if schema.get("additionalProperties") is False else {}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **strict}}


FORM = Form(
    {
        **COMMON,
        "messages": Field(_messages, required=_NO_MESSAGES),
        "system": Field(_system),
        "max_tokens": Field(TOKENS, "max_tokens", required="is required"),
        "stop_sequences": Field(field_checks.texts, "stop"),
        "tools": Field(_tools),
        "tool_choice": Field(_tool_choice),
        "thinking": Field(_thinking, note="A model that thinks does so by itself; its thinking is returned in blocks"),
        "output_config": Field(field_checks.record({"format": _format, "effort": field_checks.text})),
        "output_format": Field(_format, note="The older name of `output_config.format`"),
        "cache_control": Field(field_checks.mapping, note=f"Ignored: {CACHE}"),
        "service_tier": left_out("not supported"),
        "context_management": left_out("the client's conversation is sent as it is"),
        "inference_geo": left_out("the profile decides where models are"),
        "speed": left_out("not supported"),
        "container": refused("is not supported"),
        "mcp_servers": refused("is not supported"),
        "n": refused("must be 1 in this API; use /v1/chat/completions for more"),
    },
    translated=True,
    example={"model": "auto", "max_tokens": 256, "messages": [{"role": "user", "content": "What is 2 + 2?"}]},
)


def asked_of(body: bytes | bytearray, headers: Mapping[str, str], form: Form = FORM) -> Asked:
    """Parse a request body. Raises `HttpFailure`."""
    fields, own, extra, warnings = form.read(body)
    (system, notes), (messages, more) = own.get("system", ([], {})), own["messages"]
    notes = {**notes, **more}
    if fields.get("metadata", EMPTY).get("user_id") is not None:
        notes["metadata.user_id is not passed to the model"] = None
    if own.get("cache_control"):
        notes[CACHE] = None
    tools, more = own.get("tools", (None, {}))
    choice, parallel = own.get("tool_choice", (None, {}))
    if choice is not None and more and not _can_choose(choice, tools):
        choice, parallel = None, {}
        more = {**more, "tool_choice is left out with the tools that it chooses from": None}
    thinking, output = own.get("thinking", {}), own.get("output_config", {})
    if thinking.get("budget_tokens") and thinking["type"] != "disabled":
        notes["thinking.budget_tokens is not passed to the model"] = None
    if output.get("effort"):
        notes[EFFORT] = None
    told = fields.get("metadata", EMPTY).get("task_type")
    if extra:
        renamed(extra, warnings)
    fields.update(
        address_of(own.get("model"), told, *map(headers.get, ADDRESS_HEADERS)),
        messages=(*system, *messages),
        tools=tools,
        tool_choice=choice,
        response_format=output.get("format") or own.get("output_format"),
        extra={**parallel, **_going_on(messages), **extra},
    )
    found = Asked(fields, own.get("stream", False), warnings=(*warnings, *{**notes, **more}))
    found.quiet = thinking.get("display") == "omitted"
    return found


def _can_choose(choice: str | Mapping[str, Any], tools: tuple[dict[str, Any], ...] | None) -> bool:
    """Whether a tool choice still makes sense after some tools were left out."""
    if not tools:
        return False
    return isinstance(choice, str) or any(tool["function"]["name"] == choice["function"]["name"] for tool in tools)


def _going_on(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields with which vLLM and SGLang go on with the last message, if the client began the answer; a server
    without them refuses them by name.
    """
    if not messages or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}
