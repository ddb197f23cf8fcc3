"""OpenAI's embeddings: ``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import byteorder
from typing import Any

from workflow_composer.server.api import field_checks, schemas
from workflow_composer.server.api.field_checks import UNSUPPORTED, described, wrong
from workflow_composer.server.api.forms import ADDRESS_HEADERS, Field, Form, address_of, left_out, metadata, model_name
from workflow_composer.server.api.json_wire import encode
from workflow_composer.types import EMPTY, Embeddings

MOST_TEXTS = 2048


@dataclass(frozen=True, slots=True)
class AskedEmbeddings:
    """A parsed embeddings request. ``address`` has the routing fields of an `LLMRequest`, ``labels`` those for accounts."""

    texts: tuple[str | list[int], ...]
    address: Mapping[str, Any]
    base64: bool = False
    dimensions: int | None = None
    warnings: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_embeddings(body: bytes | bytearray, headers: Mapping[str, str]) -> AskedEmbeddings:
    """Parse a request body. Raises `HttpFailure`."""
    _, own, _, warnings = FORM.read(body)
    told = own.get("metadata", EMPTY).get("task_type")
    address = dict(address_of(own.get("model"), told, *map(headers.get, ADDRESS_HEADERS)))
    if address.pop("budget", None) is not None:
        warnings.append("the budget is ignored: embeddings come from one model, whatever they cost")
    wanted = own.get("encoding_format") == "base64"
    extra = {name: own[name] for name in _PASSED if name in own}
    return AskedEmbeddings(own["input"], address, wanted, own.get("dimensions"), tuple(warnings), own, extra)


_NO_TEXTS = "must be a non-empty string, a list of tokens, or a list of either"
_PASSED = ("truncate_prompt_tokens", "truncation_side", "add_special_tokens", "input_type", "priority")
_FILLED = {**schemas.TEXT, "minLength": 1}


@described(
    schemas.either(
        _FILLED,
        schemas.listed(_FILLED, least=1, most=MOST_TEXTS),
        schemas.TOKEN_LIST,
        schemas.listed(schemas.TOKEN_LIST, least=1, most=MOST_TEXTS),
    )
)
def _texts(name: str, found: Any) -> tuple[str | list[int], ...]:
    tokens = field_checks.tokens(found)
    texts = (found,) if isinstance(found, str) else (tokens,) if tokens is not None else found
    if not texts or not isinstance(texts, (list, tuple)):
        raise wrong(name, _NO_TEXTS)
    if len(texts) > MOST_TEXTS:
        raise wrong(name, f"must have at most {MOST_TEXTS} strings or lists of tokens")
    if all(isinstance(text, str) and text for text in texts):
        return tuple(texts)
    lists = [field_checks.tokens(text) for text in texts]
    if None in lists:
        raise wrong(name, _NO_TEXTS)
    return tuple(one for one in lists if one is not None)


FORM = Form(
    {
        "model": Field(model_name),
        "metadata": Field(metadata),
        "input": Field(_texts, required=_NO_TEXTS),
        "encoding_format": Field(field_checks.one_of("float", "base64", "", message="must be float or base64")),
        "dimensions": Field(field_checks.whole(least=1, most=1_000_000)),
        **{name: Field(field_checks.anything, note="Passed on to the model's server") for name in _PASSED},
        "client_metadata": left_out("what a client tells of itself is not passed on"),
        "user": left_out("no effect on embeddings"),
    },
    closed="is not supported",
    code=UNSUPPORTED,
    example={"model": "auto", "input": ["a text", "another"]},
)


def written_embeddings(asked: AskedEmbeddings, found: Embeddings) -> bytes:
    """Return the list of embeddings as JSON; base64 encodes little-endian 32-bit floats."""
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
