"""A model on a server of its own that answers by a script: what a prompt contains decides, and how often it was asked.

::

    with Model("small") as small:
        small.says("describe", "first reply", "second reply and every later one")
        small.says("broken", Said(status=500))
        small.says("", lambda call: call.prompt.upper())
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.integration.stub_server import Reply, Request, StubServer


@dataclass(frozen=True)
class Call:
    """A request for an answer. ``prompt`` is the question, without what was said about refused replies to it."""

    body: dict[str, Any]
    headers: dict[str, str]
    raw: bytes
    number: int
    at: float

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Roles and texts."""
        return [(message["role"], _text(message.get("content"))) for message in self.body["messages"]]

    @property
    def prompt(self) -> str:
        """The first message of the user."""
        return next((text for role, text in self.messages if role == "user"), "")

    @property
    def text(self) -> str:
        """All that is said, with earlier replies and what is wrong with them."""
        return "\n".join(text for _, text in self.messages)

    @property
    def limit(self) -> int | None:
        """The most tokens that the answer may have."""
        return self.body.get("max_tokens") or self.body.get("max_completion_tokens")

    @property
    def draws(self) -> int:
        """How many samples are asked for."""
        return int(self.body.get("n") or 1)


@dataclass(frozen=True)
class Said:
    """A reply: a text, a value to be written as JSON, or an error. ``delay`` in seconds; ``tokens`` are the answer's; it
    waits ``until`` the test has set an event.
    """

    text: Any = ""
    finish: str = "stop"
    tokens: int | None = None
    delay: float = 0.0
    hang: bool = False
    until: threading.Event | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    error: str = "scripted"


Scripted = Any
"""A text, a value for JSON, a `Said`, or a function of the `Call` that returns one of these."""


class Model:
    """A server with one model.

    ``calls`` are those that reached it, refused ones included; ``refused`` counts those that were answered 429 because more
    than ``most`` were under way. ``delay`` holds for every reply that has none of its own. ``served`` is the model's name as
    replies and the listing tell it. ``unanswered`` counts the questions that `hold` has let wait.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.refused: list[int] = []
        self.most: int | None = None
        self.retry_after = "1"
        self.delay = 0.0
        self.tokens: int | None = None
        self._rules: list[tuple[Callable[[Call], bool], list[Scripted], list[int]]] = []
        self._until: list[float] = []
        self._held = threading.Event()
        self.unanswered = 0
        self.server = StubServer(models=[name])
        self.server.answer = self._answer

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def served(self) -> str:
        return self.server.models[0]

    @served.setter
    def served(self, name: str) -> None:
        self.server.models[:] = [name]

    def says(self, needle: str | Callable[[Call], bool], *replies: Scripted) -> Self:
        """Answer questions that contain a text with these replies in turn; the last one holds from then on."""
        fits = needle if callable(needle) else lambda call: needle in call.prompt
        self._rules.append((fits, list(replies), [0]))
        return self

    def forget(self) -> Self:
        """Have no script and no record any more."""
        self._rules.clear()
        return self.reset()

    def reset(self) -> Self:
        """Have no record any more."""
        self.calls.clear()
        self.refused.clear()
        return self

    def hold(self) -> None:
        """Let every later question wait for ever."""
        self._held.set()

    def release(self) -> None:
        """Answer later questions again; those that wait are lost."""
        self._held.clear()

    def asked(self, needle: str = "") -> list[Call]:
        """The calls whose question contains a text."""
        return [call for call in self.calls if needle in call.prompt]

    def count(self, needle: str = "") -> int:
        return len(self.asked(needle))

    def prompts(self, needle: str = "") -> list[str]:
        return [call.prompt for call in self.asked(needle)]

    def draws(self, needle: str = "") -> int:
        return sum(call.draws for call in self.asked(needle))

    def wait_for(self, count: int, needle: str = "", seconds: float = 60.0) -> None:
        """Wait until so many calls have come."""
        assert self.server.wait_for(lambda _: self.count(needle) >= count, seconds), f"{self.count(needle)} of {count} calls"

    def wait_until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something holds that a call may change."""
        assert self.server.wait_for(lambda _: holds(), seconds)

    @contextmanager
    def gone(self, seconds: float) -> Iterator[threading.Timer]:
        """Answer 503 to everything for so long, from now on."""
        healthy, self.server.answer = self.server.answer, lambda _: Reply.error(503, "starting")
        timer = threading.Timer(seconds, lambda: setattr(self.server, "answer", healthy))
        timer.start()
        try:
            yield timer
        finally:
            timer.join()

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: Request) -> Reply:
        if not request.path.endswith("/chat/completions"):
            return Reply.error(404, f"nothing is scripted at {request.path}")
        now = time.monotonic()
        call = Call(request.json, dict(request.headers), request.body, len(self.calls), now)
        self.calls.append(call)
        if self._held.is_set():
            self.unanswered += 1
            return Reply(hang=True)
        self._until = [until for until in self._until if until > now]
        if self.most is not None and len(self._until) >= self.most:
            self.refused.append(call.number)
            return Reply.error(429, "too many at once", headers={"Retry-After": self.retry_after})
        said = self._said(call)
        reply = self._written(said, call)
        self._until.append(now + reply.delay)
        return reply

    def _said(self, call: Call) -> Said:
        for fits, replies, used in self._rules:
            if fits(call):
                found = replies[min(used[0], len(replies) - 1)]
                used[0] += 1
                break
        else:
            found = f"{self.name} has heard: {call.prompt}"
        while callable(found):
            found = found(call)
        return found if isinstance(found, Said) else Said(found)

    def _written(self, said: Said, call: Call) -> Reply:
        delay = said.delay or self.delay
        if said.hang:
            return Reply(hang=True)
        if said.status != 200:
            return Reply.error(said.status, said.error, headers=said.headers, delay=delay)
        text = said.text if isinstance(said.text, str) else json.dumps(said.text, ensure_ascii=False)
        tokens = said.tokens if said.tokens is not None else self.tokens
        made = len(text) // 4 + 1 if tokens is None else tokens
        usage = {"prompt_tokens": len(call.text) // 4 + 1, "completion_tokens": made * call.draws}
        usage["total_tokens"] = sum(usage.values())
        if call.body.get("stream"):
            return Reply.stream(
                *([text[:3], text[3:]] if len(text) > 3 else [text]), finish=said.finish, delay=delay, until=said.until
            )
        message = {"role": "assistant", "content": text}
        choices = [
            {"index": index, "message": message, "finish_reason": said.finish, "logprobs": None}
            for index in range(call.draws)
        ]
        model = said.model or self.served
        body = {"id": "c", "object": "chat.completion", "model": model, "choices": choices, "usage": usage}
        return Reply.of(body, headers=said.headers, delay=delay, until=said.until)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""
