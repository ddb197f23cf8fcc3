"""What responses may be continued by ``previous_response_id``: conversations, in the memory of the one worker.

Bounded in number and size; the oldest are forgotten first. A response's ID shows whose it is (`is_own`), so nobody continues
the conversation of another key.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from workflow_composer.server.auth.callers import is_own
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import LLMRequest, Message, Sample

if TYPE_CHECKING:
    from workflow_composer.server.auth.keys import Key

START = "resp_"
"""How the ID of a response begins; the ID of its request follows."""
_MOST, _MOST_CHARACTERS, _LONGEST = 10_000, 64 * 2**20, 8 * 2**20
"""Conversations, their characters together, and those of one. A turn shares its earlier turns' messages, so that less memory
is used than is counted.
"""
_OVERHEAD = 500
"""Characters that a message counts beside its text."""
FIELD = "previous_response_id"


class Conversations:
    """Conversations by the ID of the response that ended them."""

    def __init__(self, most: int = _MOST, characters: int = _MOST_CHARACTERS) -> None:
        self._kept: OrderedDict[str, tuple[int, tuple[Message, ...]]] = OrderedDict()
        self._most = most
        self._room = characters

    def keep(self, request: LLMRequest, sample: Sample, *, instructed: bool) -> None:
        """Keep what was said, with its answer; ``instructed``: the first message is for this turn only."""
        answer: dict[str, object] = {"role": "assistant", "content": sample.text or None}
        if sample.tool_calls:
            answer["tool_calls"] = [dict(call) for call in sample.tool_calls]
        elif not sample.text:
            answer["content"] = ""
        if sample.reasoning:
            answer["reasoning_content"] = sample.reasoning
        messages = (*request.messages[1 if instructed else 0 :], answer)
        said = len(sample.text) + len(sample.reasoning or "") + sum(len(str(call)) for call in sample.tool_calls)
        size = request.bulk + said + _OVERHEAD * len(messages)
        if size > _LONGEST:
            return
        self._kept[request.request_id] = (size, messages)
        self._room -= size
        while self._room < 0 or len(self._kept) > self._most:
            _, (freed, _) = self._kept.popitem(last=False)
            self._room += freed

    def of(self, identity: str, key: Key | None) -> tuple[Message, ...]:
        """Return the messages up to a response. Raises `HttpFailure` 404 if it is unknown, forgotten or another key's."""
        request_id = identity.removeprefix(START)
        found = self._kept.get(request_id)
        if found is None or not identity.startswith(START) or (key is not None and not is_own(key, request_id)):
            message = (
                f"previous response {identity[:80]!r} is not known here (any more): responses are kept in memory, "
                "unless store is false; send the whole conversation as input"
            )
            raise HttpFailure(404, message, code="previous_response_not_found", param=FIELD)
        self._kept.move_to_end(request_id)
        return found[1]
