"""What a model server is, and which models it serves: vLLM, ollama, llama.cpp, LM Studio, SGLang, or a server like OpenAI's.

A list of models (``GET /v1/models``) says little: most servers name embedding models among the others, and the same model
under several names. What else is known is asked where each kind of server says it: ollama (``/api/show``, ``/api/ps``), LM
Studio (``/api/v0/models``), SGLang (``/get_model_info``), vLLM (the paths of ``/openapi.json``). None of these queries
carries a prompt, loads a model or changes anything.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from workflow_composer.backends.http.client import Client, Limit
from workflow_composer.backends.http.connection import Bounds
from workflow_composer.backends.openai.wire import encode, shown_name
from workflow_composer.backends.replicas.observer import api_url, reason_of, status_fault
from workflow_composer.errors import EgressDenied

Kind = Literal["vllm", "ollama", "llama.cpp", "lm-studio", "sglang", "openai-compatible"]

QUERY_SECONDS = 2.0
"""Time limit of each query."""
_BOUNDS = Bounds(whole=1 << 23, answer=1 << 23, decoded=1 << 23)
"""Bytes of an answer; ollama's description of a model includes its license."""
_DESCRIBED = 64
"""Most models of one server that are asked about one by one."""
_AT_ONCE = 8

_EMBEDS = re.compile(
    r"embed|(?:^|[/_.:-])(?:bge|gte|e5|minilm|all-mpnet|colbert|rerank(?:er)?|contriever|sentence-t5|nomic-bert|bert|specter2?"
    r"|stella|instructor)(?:$|[/_.:@-]|v\d)|rerank",
    re.IGNORECASE,
)
_NO_TEXT = re.compile(
    r"whisper|parakeet|(?:^|[/_.:-])(?:tts|stt|clip|siglip|flux|sdxl)(?:$|[/_.:-]|\d)|stable-diffusion|kokoro|llama-guard"
    r"|prompt-guard|shieldgemma|nemotron-parse|dall-e|text-moderation",
    re.IGNORECASE,
)
_OF_OLLAMAS_CLOUD = re.compile(r":(?:[^/:]*-)?cloud$")
"""Tags of models that ollama does not run itself but in its makers' cloud; newer versions say so (``remote_host``)."""
_BERTS = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "xlm-roberta", "jina-bert-v2", "roberta", "modernbert"})
"""Architectures, as ollama names them, of models that only embed."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of a server: the name to write in requests, and further names for the same model.

    ``embedding``: whether it makes vectors and does not chat; None: the server does not say, and neither does the name.
    ``context_length``: the tokens of prompt and answer together that the server takes now; None: unknown (of ollama, while
    the model is not loaded and its Modelfile has no ``num_ctx``). ``thinks``: whether it may think before it answers.
    ``loaded``: whether it is in memory. ``remote``: the server sends its prompts on to a cloud. ``chats`` is False if it is
    known to be made for something else than chatting.
    """

    name: str
    aliases: tuple[str, ...] = ()
    embedding: bool | None = None
    context_length: int | None = None
    thinks: bool | None = None
    loaded: bool | None = None
    chats: bool | None = None
    remote: bool = False

    def named(self, name: str) -> bool:
        """Whether this is one of its names."""
        return name == self.name or name in self.aliases


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server at an address (up to and including ``/v1``), and its models; ``error`` says why they are not known."""

    base_url: str
    kind: Kind
    models: tuple[ServedModel, ...] = ()
    error: str | None = None


async def inspect_server(base_url: str, *, client: Client, api_key: str | None = None) -> ServerFound:
    """Ask a server what it is and which models it serves. Never raises; ``error`` describes a problem.

    Each query may take `QUERY_SECONDS`. The egress policy of ``client`` must admit the address. The key goes to this server
    only.
    """
    asking = _Asking(api_url(base_url), client, api_key)
    try:
        status, data = await asking.get(f"{asking.api}/models")
    except EgressDenied as error:
        return ServerFound(asking.api, "openai-compatible", error=str(error))
    except Exception as error:  # noqa: BLE001 - a broken server must not hide the others
        return ServerFound(asking.api, "openai-compatible", error=reason_of(error, QUERY_SECONDS))
    rows = _rows(data) if status == 200 else None
    if rows is None:
        return ServerFound(asking.api, "openai-compatible", error=_fault(status, data))
    return await _described(asking, rows)


class _Asking:
    """Small queries to one server."""

    def __init__(self, api: str, client: Client, key: str | None) -> None:
        self.api = api
        self.root = api.removesuffix("/v1")
        self._client = client
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def get(self, url: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Return status and JSON (None if it is none) of a GET, or a POST of ``body``. Raises as `Client.ask`."""
        content = None if body is None else encode(dict(body))
        with Limit(QUERY_SECONDS):
            answer = await self._client.ask(url, content, headers=self._headers, connect=QUERY_SECONDS, bounds=_BOUNDS)
        try:
            return answer.status, json.loads(answer.body)
        except (ValueError, RecursionError):
            return answer.status, None

    async def said(self, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the JSON object that the server answers at a path beside its API; empty if there is none."""
        try:
            status, data = await self.get(self.root + path, body)
        except Exception:  # noqa: BLE001 - what is not known is left out
            return {}
        return data if status == 200 and isinstance(data, Mapping) else {}


def _fault(status: int, data: Any) -> str:
    """Describe an answer that is no list of models; servers that are not ready say why."""
    error = data.get("error") if isinstance(data, Mapping) else None
    said = error.get("message") if isinstance(error, Mapping) else error
    more = f": {said[:200]}" if isinstance(said, str) and said.isprintable() and status not in (401, 403) else ""
    return status_fault(status) + more


def _rows(data: Any) -> list[Mapping[str, Any]] | None:
    """Return the rows of a list of models, without those whose name cannot be shown; None if it is no such list.

    ollama without models answers ``"data": null``.
    """
    if not isinstance(data, Mapping) or "data" not in data:
        return None
    rows = data["data"]
    if rows is None:
        return []
    return (
        [row for row in rows if isinstance(row, Mapping) and shown_name(row.get("id"))] if isinstance(rows, list) else None
    )


async def _described(asking: _Asking, rows: list[Mapping[str, Any]]) -> ServerFound:
    """Find out the kind of server by who owns its models, or else by what only that kind answers."""
    owners = {owner for row in rows if isinstance(owner := row.get("owned_by"), str)}
    if "vllm" in owners:
        return ServerFound(asking.api, "vllm", await _of_vllm(asking, rows))
    if "llamacpp" in owners:
        return ServerFound(asking.api, "llama.cpp", await _of_llama_cpp(asking, rows))
    if "sglang" in owners:
        return ServerFound(asking.api, "sglang", await _of_sglang(asking, rows))
    if isinstance((await asking.said("/api/version")).get("version"), str):
        return ServerFound(asking.api, "ollama", await _of_ollama(asking, rows))
    known = _rows(await asking.said("/api/v0/models"))
    if known is not None and all(isinstance(row.get("type"), str) for row in known):
        return ServerFound(asking.api, "lm-studio", _of_lm_studio(rows, known))
    return ServerFound(asking.api, "openai-compatible", tuple(map(_by_name, rows)))


# ------------------------------------------------------------------------------------------------------------- the kinds


def _by_name(row: Mapping[str, Any]) -> ServedModel:
    """Describe a model of which the server says no more than its row."""
    name = str(row["id"])
    length = _positive(row, "max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens")
    embeds = True if _EMBEDS.search(name) else None
    return ServedModel(
        name, embedding=embeds, context_length=length, chats=False if embeds or _NO_TEXT.search(name) else None
    )


def _positive(row: Mapping[str, Any], *keys: str) -> int | None:
    values = (row.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)


def _merged(rows: list[Mapping[str, Any]]) -> Iterator[ServedModel]:
    """Yield one model for all rows of the same weights (``root``): their further names are aliases. Adapters stay apart."""
    groups: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: bool(row.get("parent"))):
        root, parent = row.get("root"), row.get("parent")
        same = (root, "base") if isinstance(root, str) and not parent else (str(row["id"]), "")
        groups.setdefault(same, []).append(str(row["id"]))
        first.setdefault(same, row)
    for same, names in groups.items():
        aliases = tuple(dict.fromkeys(name for name in names if name != names[0]))
        yield replace(_by_name(first[same]), aliases=aliases)


async def _of_vllm(asking: _Asking, rows: list[Mapping[str, Any]]) -> tuple[ServedModel, ...]:
    """With vLLM there are the paths of what its model can do; older versions have all, whatever the model."""
    paths = (await asking.said("/openapi.json")).get("paths")
    chats: bool | None = None
    if isinstance(paths, Mapping) and "/v1/models" in paths:
        generates, embeds = "/v1/chat/completions" in paths, "/v1/embeddings" in paths or "/pooling" in paths
        chats = None if generates and embeds else generates
    return tuple(_known(model, chats) for model in _merged(rows))


async def _of_sglang(asking: _Asking, rows: list[Mapping[str, Any]]) -> tuple[ServedModel, ...]:
    said = await asking.said("/get_model_info") or await asking.said("/model_info")
    generates = said.get("is_generation")
    return tuple(_known(model, generates if isinstance(generates, bool) else None) for model in _merged(rows))


def _known(model: ServedModel, chats: bool | None) -> ServedModel:
    """Add what the server says about all its models; None: what the name says counts."""
    return replace(model, loaded=True) if chats is None else replace(model, loaded=True, chats=chats, embedding=not chats)


async def _of_llama_cpp(asking: _Asking, rows: list[Mapping[str, Any]]) -> tuple[ServedModel, ...]:
    """llama.cpp serves one model, whose context is divided among its slots; as a router it lists all that it can load."""
    settings = (await asking.said("/props")).get("default_generation_settings") if len(rows) == 1 else None
    length = _positive(settings, "n_ctx") if isinstance(settings, Mapping) else None
    return tuple(_of_gguf(row, length) for row in rows)


def _of_gguf(row: Mapping[str, Any], length: int | None) -> ServedModel:
    meta, status, aliases = row.get("meta"), row.get("status"), row.get("aliases")
    known = meta if isinstance(meta, Mapping) else {}
    state = status.get("value") if isinstance(status, Mapping) else None
    others = tuple(name for name in aliases if shown_name(name)) if isinstance(aliases, list) else ()
    return replace(
        _by_name(row),
        aliases=tuple(dict.fromkeys(name for name in others if name != row["id"])),
        context_length=length or _positive(known, "n_ctx"),
        loaded=state in (None, "loaded"),
    )


async def _of_ollama(asking: _Asking, rows: list[Mapping[str, Any]]) -> tuple[ServedModel, ...]:
    running = (await asking.said("/api/ps")).get("models")
    loaded = {row.get("name"): row for row in running if isinstance(row, Mapping)} if isinstance(running, list) else {}
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(row: Mapping[str, Any]) -> ServedModel:
        async with turn:
            shown = await asking.said("/api/show", {"model": row["id"]})
        return _of_modelfile(row, shown, loaded.get(row["id"]))

    described = await asyncio.gather(*(one(row) for row in rows[:_DESCRIBED]))
    return (*described, *(_of_modelfile(row, {}, loaded.get(row["id"])) for row in rows[_DESCRIBED:]))


def _of_modelfile(row: Mapping[str, Any], shown: Mapping[str, Any], running: Mapping[str, Any] | None) -> ServedModel:
    """Describe a model of ollama. Before 0.6.4 it told no capabilities, but always the architecture."""
    model = _by_name(row)
    said, details = shown.get("capabilities"), shown.get("details")
    can = {one for one in said if isinstance(one, str)} if isinstance(said, list) else set()
    family = details.get("family") if isinstance(details, Mapping) else None
    parameters = shown.get("parameters")
    fixed = re.search(r"(?m)^num_ctx\s+(\d{1,9})\s*$", parameters) if isinstance(parameters, str) else None
    length = _positive(running, "context_length") if running else None
    if can:
        chats: bool | None = "completion" in can or "chat" in can
        model = replace(model, chats=chats, embedding="embedding" in can and not chats, thinks="thinking" in can)
    elif isinstance(family, str):
        bert = family in _BERTS
        model = replace(model, chats=False if bert else model.chats, embedding=bert or model.embedding)
    return replace(
        model,
        remote=bool(shown.get("remote_host")) or bool(_OF_OLLAMAS_CLOUD.search(model.name)),
        aliases=(short,) if (short := model.name.removesuffix(":latest")) != model.name else (),
        context_length=length or (int(fixed[1]) or None if fixed else None),
        loaded=running is not None,
    )


def _of_lm_studio(rows: list[Mapping[str, Any]], known: list[Mapping[str, Any]]) -> tuple[ServedModel, ...]:
    """LM Studio says which of its models are embedding models; a loaded one has a context of its own."""
    types = {row["id"]: row for row in known}
    return tuple(_of_catalogue(row, types.get(row["id"], {})) for row in rows)


def _of_catalogue(row: Mapping[str, Any], known: Mapping[str, Any]) -> ServedModel:
    model, kind = _by_name(row), known.get("type")
    if isinstance(kind, str):
        chats = kind in ("llm", "vlm")
        model = replace(model, chats=chats, embedding=kind.startswith("embedding"))
    length = _positive(known, "loaded_context_length", "max_context_length") or model.context_length
    return replace(model, context_length=length, loaded=known.get("state") == "loaded" if known else None)
