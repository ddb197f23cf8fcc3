"""OpenAI's embeddings: ``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from sys import byteorder
from typing import Any

from workflow_composer.server.addressing import address_of
from workflow_composer.server.checks import wrong
from workflow_composer.server.wire import Fields, encode
from workflow_composer.types import Embeddings

MOST_TEXTS = 2048
MOST_DIMENSIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class AskedEmbeddings:
    """Texts, and how their vectors are wanted. ``address`` says where they go, as fields of a request."""

    texts: tuple[str, ...]
    address: Mapping[str, Any]
    base64: bool = False
    dimensions: int | None = None
    warnings: tuple[str, ...] = ()


def read_embeddings(data: Mapping[str, Any], headers: Mapping[str, str]) -> AskedEmbeddings:
    """Read a body. Raises `HttpFailure`."""
    fields = Fields(data)
    found = fields.take("input")
    texts = (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise wrong("input", "must be a text or a list of texts, none of them empty (tokens are not taken)")
    if len(texts) > MOST_TEXTS:
        raise wrong("input", f"must have at most {MOST_TEXTS} texts")
    form = fields.text("encoding_format") or "float"
    if form not in {"float", "base64"}:
        raise wrong("encoding_format", "must be float or base64")
    dimensions = fields.whole("dimensions", least=1, most=MOST_DIMENSIONS)
    address = address_of(fields.text("model"), headers, fields.mapping("metadata") or {})
    warnings = fields.leave_out({"user": "says nothing to a model"})
    if address.pop("budget", None) is not None:
        warnings += ("the budget is not heeded: vectors come from one model, whatever they cost",)
    fields.nothing_else("cannot be honoured here")
    return AskedEmbeddings(texts, address, form == "base64", dimensions, warnings)


def written_embeddings(asked: AskedEmbeddings, found: Embeddings) -> bytes:
    """The list of vectors; base64 is of little-endian 32-bit floats."""
    rows = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if asked.base64 else vector}
        for index, vector in enumerate(found.vectors)
    ]
    tokens = found.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": found.usage.total_tokens}
    return encode({"object": "list", "data": rows, "model": found.model, "usage": usage})


def _packed(vector: tuple[float, ...]) -> str:
    numbers = array("f", vector)
    if byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
