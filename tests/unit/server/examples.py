"""Values that the tests of this folder share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workflow_composer.server.api.json_wire import Asked, Dialect
from workflow_composer.server.exchange import EVENTS, Exchange
from workflow_composer.server.failures import HttpFailure
from workflow_composer.types import LLMRequest, LLMResponse, RoutingDecision, Sample, Usage


def sent(body: Any) -> bytes:
    """A body as it comes over the network."""
    return json.dumps(body).encode()


def read(dialect: Dialect, body: dict[str, Any], headers: dict[str, str] | None = None) -> Asked:
    """What a dialect makes of a body that came over the network."""
    found = dialect.read(sent(body), headers or {})
    found.request = LLMRequest(request_id="", **found.fields)
    return found


def refused(dialect: Dialect, body: dict[str, Any], headers: dict[str, str] | None = None) -> HttpFailure:
    """Why a dialect refuses a body."""
    with pytest.raises(HttpFailure) as caught:
        read(dialect, body, headers)
    return caught.value


def answer(*samples: Sample | str, request_id: str = "req-1", model: str = "small-7b") -> LLMResponse:
    """An answer of the model ``small``."""
    made = tuple(Sample(one, "stop") if isinstance(one, str) else one for one in samples)
    decision = RoutingDecision("mine", "provider", "small", model, True, 0, 0, "*", "named")
    return LLMResponse(made[0].text, decision, made, Usage(7, 3), 0.5, (), request_id, 10.0, 1.0)


def asked(**fields: Any) -> Asked:
    """A question, as a dialect hands it on."""
    wanted = {name: fields.pop(name) for name in ("stream", "include_usage", "warnings") if name in fields}
    made = Asked({}, **wanted)
    made.request = LLMRequest.of("hello", **{"request_id": "req-1", **fields})
    return made


def events(data: bytes) -> list[Any]:
    """The data of server-sent events; ``[DONE]`` as it is."""
    found = []
    for block in filter(None, data.decode().split("\n\n")):
        lines = [line for line in block.split("\n") if line.startswith("data: ")]
        assert len(lines) == 1, block
        text = lines[0].removeprefix("data: ")
        found.append(text if text == "[DONE]" else json.loads(text))
    return found


class Sent(Exchange):
    """A request without a connection, which keeps what is answered piece by piece."""

    def __init__(self, method: str, path: str, body: Any = b"", **fields: Any) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        super().__init__(method, path, **{"headers": {}, "body": text, "request_id": "req-1", **fields})
        self.written = b""
        self.begun: list[tuple[str, str]] | None = None
        self.trailers: tuple[tuple[str, str], ...] | None = None

    def open_stream(self, *, content_type=EVENTS, headers=()):
        self.begun = list(headers)

    def write(self, data):
        self.written += data

    async def drain(self):
        pass

    def close_stream(self, trailers=()):
        self.trailers = tuple(trailers)

    @property
    def opened(self):
        return self.begun is not None
