"""Load balancing with prefix affinity: a request goes to the server that probably caches its prefix, unless overloaded.

A server that has cached a long context answers the next question about it without prefilling it again, so requests with
the same prefix should go to the same server. Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the servers for each
prefix: all clients compute the same ranking without communication, and adding or removing a server moves only the prefixes
of that server. A bound on the load (after Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads",
2018) sends a request to the next server in rank if the first has more than its share, so that a popular context is cached
on a second server instead of queueing at the first. Pure functions; ``benchmarks/balancing.py`` compares alternatives.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence

from workflow_composer.types import Message, texts

WORTH = 256
"""Minimum length in characters of a prefix that is worth affinity: four blocks of vLLM's cache, of 16 tokens each."""
CONTEXT = 4096
"""Characters of the system messages that identify a context."""
BEGINNING = 1024
"""Characters that identify a conversation if the system messages are too short."""
FACTOR = 1.25
"""Multiple of the mean load up to which a server keeps its own prefixes."""
SLACK = 4.0
"""Calls that any server may have regardless of the others: a small batch costs hardly more than one call."""


def prefix_key(messages: Sequence[Message]) -> bytes | None:
    """Return a digest of the prefix that requests sharing a cache have in common; None if it is too short to matter.

    The prefix is the leading system messages if they are long enough to be a context; otherwise it includes the first
    message after them, which the turns of a conversation share, as do questions about a text quoted first.

    >>> context = {"role": "system", "content": "The rules of the house. " * 20}
    >>> asked = [prefix_key([context, {"role": "user", "content": question}]) for question in ("Why?", "When?")]
    >>> asked[0] == asked[1], prefix_key([{"role": "user", "content": "Why?"}])
    (True, None)
    """
    leading: list[str] = []
    for message in messages:
        if message.get("role") not in ("system", "developer"):
            break
        leading.extend(texts(message))
    context = "\n".join(leading)
    if len(context) >= WORTH:
        return _digest("system", context[:CONTEXT])
    first = next((message for message in messages if message.get("role") not in ("system", "developer")), None)
    beginning = "\n".join([context, *(() if first is None else texts(first))])[:BEGINNING]
    return _digest("first", beginning) if len(beginning) >= WORTH else None


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind}\n{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def preference(key: bytes, servers: Iterable[str]) -> list[str]:
    """Return the servers ranked for this key, best first."""
    return sorted(servers, key=lambda server: (_weight(key, server), server), reverse=True)


def _weight(key: bytes, server: str) -> bytes:
    return hashlib.blake2b(server.encode(), key=key, digest_size=8).digest()


def bound(loads: Iterable[float]) -> float:
    """Return the load up to which a server accepts another call. The least loaded server never exceeds it.

    >>> bound([0.0, 1.0]), bound([30.0, 10.0])
    (4.0, 25.0)
    """
    known = list(loads)
    return max(SLACK, FACTOR * sum(known) / len(known))


def choose(key: bytes | None, loads: Mapping[str, float]) -> str:
    """Return the server for a request. ``loads`` maps each server (at least one) to its number of calls.

    It is the first in the key's ranking whose load is within the bound; without a key, a random one of the least loaded.
    """
    if key is not None:
        limit = bound(loads.values())
        for server in preference(key, loads):
            if loads[server] <= limit:
                return server
    least = min(loads.values())
    return random.choice([server for server, load in loads.items() if load <= least])
