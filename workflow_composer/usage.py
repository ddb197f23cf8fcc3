"""What a call has used: as the server counts it, as far as it has got, what has arrived of its answer; and its relay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from workflow_composer.support.fast_dataclass import quick

MOST_TOKENS = 2**40
"""No call uses more tokens; a larger count is an error of the server."""


@quick
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or the sum of several; prompt tokens count once per call, whatever the number of samples.

    ``cached_tokens`` of the ``prompt_tokens`` were read from the server's cache, and ``reasoning_tokens`` of the
    ``completion_tokens`` were spent on reasoning; 0 if the server does not say. ``estimated``: a count is missing or
    invalid, or the call was broken off, and the tokens are what was probably used.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def can_be(self) -> bool:
        """Whether one call can have used this many tokens: servers and plugins may report nonsense."""
        counts = (self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)
        return all(type(count) is int and 0 <= count <= MOST_TOKENS for count in counts)


NO_USAGE = Usage()


class Metered(Protocol):
    """Measures the busy time of an endpoint's GPUs (`backends.pricing.GpuMeter`)."""

    def start(self) -> float:
        """Begin to work for a call."""
        ...

    def stop(self, token: float, /) -> float:
        """End it; return its share in seconds."""
        ...


class WorkClock:
    """The GPU time of one call: its share of the busy time of ``meter`` while a request of it is at the server.

    A context manager around each request, from its first byte to the last one of the response or the abort. Requests of one
    call that overlap count once. ``seconds`` is the time so far.
    """

    def __init__(self, meter: Metered) -> None:
        self.seconds = 0.0
        self._meter = meter
        self._begun = 0
        self._token = 0.0

    def __enter__(self) -> None:
        if not self._begun:
            self._token = self._meter.start()
        self._begun += 1

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self._begun -= 1
            if not self._begun:
                self.seconds += self._meter.stop(self._token)

    def stop(self) -> float:
        """Stop for good, whatever still runs; return the time in seconds."""
        if self._begun:
            self._begun = 1
            self.__exit__()
        return self.seconds


class Sending:
    """What a backend with ``tells_sending`` reports of a call while it runs: when its server works for it.

    ``sent`` counts the HTTP requests that were sent and not refused: the server works on them, or has. ``ended`` is the
    usage of each of those that have ended while others of the same call still run; None if the call makes one request.
    ``clock`` measures the GPU time, if that has a price.
    """

    # Defaults of the class, because an object without __init__ costs a request no call.
    clock: WorkClock | None = None
    sent = 0
    ended: list[Usage] | None = None

    def clear(self) -> None:
        """Forget everything, for another attempt."""
        self.clock, self.sent, self.ended = None, 0, None


@dataclass(slots=True, eq=False)
class Delivered:
    """What has arrived of a streamed answer.

    ``pieces`` have content for the client. ``counted`` tokens came with log-probabilities; the ``uncounted`` pieces came
    without, and have this many ``characters``. ``usage`` is the server's last count, None before there is one; it came with
    or after piece number ``usage_at``.
    """

    pieces: int = 0
    counted: int = 0
    uncounted: int = 0
    characters: int = 0
    usage: Usage | None = None
    usage_at: int = 0

    def take(self, usage: Usage) -> None:
        """Take the server's count; a count without the prompt's tokens keeps those of an earlier one."""
        earlier = self.usage
        if earlier is not None and not usage.prompt_tokens:
            usage = replace(usage, prompt_tokens=earlier.prompt_tokens, cached_tokens=earlier.cached_tokens)
        self.usage, self.usage_at = usage, self.pieces


# ------------------------------------------------------------------------------------------------------------------- relay
#
# Relay: passes a model server's response bytes unchanged to a caller that uses the same API.
#
# Most requests of a service are answered by one model whose answer is returned unchanged. Decoding and re-encoding it would
# be most of the service's work, and could lose fields that only the server and the client know. The caller therefore
# attaches a `Relay` to its request: a backend that can pass on the raw bytes does so; any other backend ignores it and
# returns the answer as usual.


class RelaySource(Protocol):
    """The source of a relayed stream."""

    def pause(self) -> None:
        """Stop reading from the server, because the client reads too slowly."""
        ...

    def resume(self) -> None:
        """Resume reading."""
        ...


@dataclass(slots=True, eq=False)
class Relay:
    """Receives the bytes of one answer.

    A whole answer is stored in ``body``. With ``write`` the answer is streamed: ``write`` gets complete server-sent events
    as they arrive, and ``begun`` is True once some were delivered, so that no other model may take over. ``usage``: the
    client requested the usage at the end of the stream; otherwise that event is dropped. ``continuous``: and with every
    piece, from a server that can. ``keep``: the service also needs
    the answer's text; otherwise a stream's text is not collected. ``source`` is set while a stream runs, and ``delivery``
    says what has arrived of it. ``heard`` is when its last event came (`time.perf_counter`); infinite while its client takes
    no more.
    """

    write: Callable[[bytes], None] | None = None
    usage: bool = False
    keep: bool = False
    continuous: bool = False
    body: bytes | bytearray | None = None
    begun: bool = False
    source: RelaySource | None = None
    heard: float = 0.0
    delivery: Delivered | None = None
