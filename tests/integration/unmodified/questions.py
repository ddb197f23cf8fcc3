"""What the stand-in's model makes of a question: sums are added up, marked fields are filled, all else has one answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

TEXT = "Anna has 7 pens."
"""What the model says to a question without tools."""

SUM = re.compile(r"(\d+) \+ (\d+)")
ASKED = re.compile(r"Respond with (?:the corresponding output fields|a JSON object)(.*)", re.S)
FIELD = re.compile(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`(?: \(must be formatted as a valid Python (\w+))?")
"""How DSPy asks for fields, at the end of a question, and each of them with its type."""


def plain(message: Mapping[str, Any]) -> str:
    """A message's text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the user said last."""
    return next((plain(message) for message in reversed(messages) if message["role"] == "user"), "")


def answer_to(question: str) -> str:
    """The sum that a question ends with; the fields that it asks for, as DSPy does; else `TEXT`."""
    if asked := ASKED.search(question):
        fields = {name: value_of(name, kind, question) for name, kind in FIELD.findall(asked[1])}
        if "JSON" in asked[0]:
            return json.dumps(fields)
        return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())
    sums = SUM.findall(question)
    return str(sum(map(int, sums[-1]))) if sums else TEXT


def value_of(name: str, kind: str, question: str) -> Any:
    """What the model writes into a field; in DSPy's loop of tools it calls `add` once and ends."""
    over = "observation_0" in question
    filled = {
        "completed": "",
        "next_tool_name": "finish" if over else "add",
        "next_tool_args": "{}" if over else '{"a": 7, "b": 7}',
    }
    return filled.get(name, 7 if kind == "int" else TEXT)


def arguments_of(function: Mapping[str, Any], question: str, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call: the numbers of a sum, where a function takes two; else those of the example."""
    sums = SUM.findall(question)
    kinds = [of.get("type") for of in (function.get("parameters") or {}).get("properties", {}).values()]
    if not sums or kinds != ["integer", "integer"]:
        return example
    return dict(zip(example, map(int, sums[-1]), strict=True))


def text_of(prompt: str | Sequence[int]) -> str:
    """A prompt of a completion as a text: tokens are characters."""
    return prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
