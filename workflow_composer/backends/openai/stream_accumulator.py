"""Joins the pieces of a stream to an answer; the only module that does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workflow_composer.types import Chunk, Delivered, Sample, TokenLogprob

# -------------------------------------------------------------------------------------------------------------- tool calls
#
# Joins the pieces of streamed tool calls, for the many ways in which servers split them.
#
# A piece is matched to its call by id, else by index, else by position. Servers omit the index (SGLang), give every call
# the index 0, repeat the id or generate a new one for each piece, send the name after the id, or send arguments as an object
# (TGI).


class ToolDelta(NamedTuple):
    """What a piece adds to a call whose name is known. ``begins``: this is the first delta of the call."""

    number: int
    id: str
    name: str
    arguments: str
    begins: bool


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    told: int = -1


class ToolCalls:
    """The tool calls of one answer so far."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def hear(self, pieces: Iterable[Mapping[str, Any]], *, last: bool = False) -> Iterator[ToolDelta]:
        """Add the pieces of one event and yield what they add; ``last``: no more follow."""
        event = tuple(pieces)
        for position, piece in enumerate(event):
            number = self._number(piece, position if len(event) > 1 else None)
            call = self._calls[number]
            function = piece.get("function") or {}
            call.id = call.id or _text(piece.get("id"))
            call.name = call.name or _text(function.get("name"))
            if arguments := _arguments(function.get("arguments")):
                call.arguments.append(arguments)
            yield from self._told(number, call, last=False)
        if last:
            for number, call in enumerate(self._calls):
                yield from self._told(number, call, last=True)

    def whole(self) -> tuple[Mapping[str, Any], ...]:
        """Return the calls in OpenAI's form; a call without an id gets one."""
        return tuple(
            {
                "id": _id(call, number),
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for number, call in enumerate(self._calls)
        )

    def _told(self, number: int, call: _Call, *, last: bool) -> Iterator[ToolDelta]:
        """Yield the new part of a call. Waits for its name, which every API requires first, and for its id if one comes
        before the arguments.
        """
        ready = last or (call.name and (call.id or call.arguments))
        if not ready or call.told == len(call.arguments):
            return
        begins = call.told < 0
        new = "".join(call.arguments[max(0, call.told) :])
        call.told = len(call.arguments)
        yield ToolDelta(number, _id(call, number), call.name, new, begins)

    def _number(self, piece: Mapping[str, Any], position: int | None) -> int:
        identity, index = _text(piece.get("id")), piece.get("index")
        named = bool(_text((piece.get("function") or {}).get("name")))
        known = self._by_id.get(identity) if identity else None
        if known is None and isinstance(index, int):
            known = self._by_index.get(index)
            if known is not None and identity and named and self._calls[known].id and self._calls[known].name:
                known = None  # another call with the same index
        elif known is None and not identity:
            known = self._at(position, named=named)
        if known is None:
            known = len(self._calls)
            self._calls.append(_Call())
        if identity:
            self._by_id.setdefault(identity, known)
        if isinstance(index, int):
            self._by_index[index] = known
        return known

    def _at(self, position: int | None, *, named: bool) -> int | None:
        """Return the call that a piece without id and index continues; None if the piece names a function itself.

        ``position``: the piece's place among several pieces of one event, each of which continues the call of its place.
        """
        if not self._calls or (named and self._calls[-1].name):
            return None
        last = len(self._calls) - 1
        return last if position is None else min(position, last)


def _id(call: _Call, number: int) -> str:
    return call.id or f"call_{number}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


class StreamAccumulator:
    """The part of an answer that a stream has delivered so far; ``delivery`` counts it."""

    def __init__(self) -> None:
        self.delivery = Delivered()
        self.finish_reason: str | None = None
        self.stop = ""
        self.model: str | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls = ToolCalls()
        self._logprobs: list[TokenLogprob] = []

    @property
    def pieces(self) -> int:
        """Number of pieces with content."""
        return self.delivery.pieces

    @property
    def tokens(self) -> int:
        """Tokens received, as far as they can be counted."""
        return len(self._logprobs) or self.delivery.pieces

    def add(self, chunk: Chunk) -> None:
        """Add one piece."""
        delivery, characters = self.delivery, 0
        delivery.pieces += chunk.carries_content
        if chunk.text:
            self._texts.append(chunk.text)
            characters = len(chunk.text)
        if chunk.reasoning:
            self._reasoning.append(chunk.reasoning)
            characters += len(chunk.reasoning)
        if chunk.tool_calls:
            for _ in self._tool_calls.hear(chunk.tool_calls):
                pass
            characters += sum(map(_length, chunk.tool_calls))
        if chunk.logprobs:
            self._logprobs.extend(chunk.logprobs)
            delivery.counted += len(chunk.logprobs)
        elif characters:
            delivery.uncounted += 1
            delivery.characters += characters
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.stop = chunk.stop or self.stop
        self.model = chunk.model or self.model
        if chunk.usage is not None:
            delivery.take(chunk.usage)

    def sample(self) -> Sample:
        """Return the whole answer."""
        return Sample(
            "".join(self._texts),
            self.finish_reason,
            self._tool_calls.whole(),
            tuple(self._logprobs) or None,
            reasoning="".join(self._reasoning),
            stop=self.stop,
        )


def _length(piece: Mapping[str, Any]) -> int:
    """Return the characters that a model has written of a piece of a tool call."""
    function = piece.get("function") or {}
    return len(_text(function.get("name"))) + len(_arguments(function.get("arguments")))
