"""Which of several servers gets a request: the one whose cache is probably warm, unless it has too much to do.

A server that has just read a long context answers the next question about it without reading it again, so requests with the
same beginning should meet. Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the servers for each beginning: every
client ranks them alike without talking to the others, and a server that comes or goes moves only the beginnings that it
takes or leaves. A bound on the load (after Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads",
2018) passes a request on to the next in rank where the first has more than its share, so that one popular context warms a
second server instead of queueing at the first. Pure functions; ``benchmarks/balancing.py`` compares.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence

from workflow_composer.types import Message, texts

WORTH = 256
"""Characters from which a beginning is worth keeping together: four blocks of vLLM's cache, of 16 tokens each."""
CONTEXT = 4096
"""Characters of the system messages that tell contexts apart."""
BEGINNING = 1024
"""Characters that tell conversations apart where no system message is worth it."""
FACTOR = 1.25
"""Share of the mean load up to which a server keeps its own."""
SLACK = 4.0
"""Calls that any server may have, whatever the others have: a batch of a few costs hardly more than one call."""


def prefix_key(messages: Sequence[Message]) -> bytes | None:
    """A digest of what requests that should share a cache have in common; None where that is too short to matter.

    The leading system messages, where they are long enough to be a context; else they and the first message after them,
    which is what the turns of a conversation share, and the questions about a text that is quoted first.

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
    """The servers in their order for this key, best first."""
    return sorted(servers, key=lambda server: (_weight(key, server), server), reverse=True)


def _weight(key: bytes, server: str) -> bytes:
    return hashlib.blake2b(server.encode(), key=key, digest_size=8).digest()


def bound(loads: Iterable[float]) -> float:
    """The load up to which a server takes one more call. The least loaded one never exceeds it.

    >>> bound([0.0, 1.0]), bound([30.0, 10.0])
    (4.0, 25.0)
    """
    known = list(loads)
    return max(SLACK, FACTOR * sum(known) / len(known))


def choose(key: bytes | None, loads: Mapping[str, float]) -> str:
    """The server for a request. ``loads``: calls that each has, at least one server.

    The first in the key's order whose load is not above the bound; without a key the least loaded, any of several.
    """
    if key is not None:
        limit = bound(loads.values())
        for server in preference(key, loads):
            if loads[server] <= limit:
                return server
    least = min(loads.values())
    return random.choice([server for server, load in loads.items() if load <= least])
