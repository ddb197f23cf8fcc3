"""One's own servers: do they answer, and do they serve what the profile says?"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.connection import Answer, Bounds, Broken, Sink
from workflow_composer.backends.http.egress import EgressPolicy, is_unknown_name
from workflow_composer.backends.replicas.discovery import Finder
from workflow_composer.backends.replicas.observer import Late, Listing, ServerObserver, api_url, shown_url
from workflow_composer.config.strategy import ModelSpec, StrategyConfig
from workflow_composer.errors import EgressDenied, nearest
from workflow_composer.runtime.doctor.clocks import of_server
from workflow_composer.runtime.doctor.finding import Finding, Level, Subject, named, place_of
from workflow_composer.runtime.doctor.fleet import of_fleet_file
from workflow_composer.runtime.servers_found import ServedModel, ServerFound, inspect_server

LIMIT = 3.0
"""Seconds for each question to a server."""
_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


@dataclass(slots=True)
class ServerPlace:
    """A server and the models of the profile behind it; ``registered``: it is known from the registry, with its model.

    ``made_key`` is the key that the fleet has made for it.
    """

    url: str
    specs: list[ModelSpec]
    model: str | None = None
    registered: bool = False
    made_key: str = field(default="", repr=False)


@dataclass(slots=True)
class Met:
    """What came of a server: its list of models, or why there is none. ``ahead``: seconds of its clock before ours."""

    place: ServerPlace
    listing: Listing | None = None
    error: Exception | None = None
    date: str = ""
    health: int = 200
    found: ServerFound | None = None
    instead: str = ""
    ours: float = field(default=0.0)


async def check_servers(subject: Subject) -> list[Finding]:
    """Ask every own server of the profile, all at once, and return what is wrong."""
    places, found = await _places(subject)
    egress = EgressPolicy.of(subject.config)
    for place in places:
        if place.registered:
            egress = egress.admitting(place.url)
    async with Client(egress) as client:
        met = await asyncio.gather(*(_meet(subject, client, place) for place in places))
    judged = [(one, list(_judged(subject, one))) for one in met]
    # A model that one of several servers answers for is not lost.
    working = {
        spec.name
        for one, trouble in judged
        for spec in one.place.specs
        if not any(spec.name in finding.models and finding.level == "error" for finding in trouble)
    }
    for _, trouble in judged:
        for finding in trouble:
            spared = bool(finding.models) and finding.level == "error" and set(finding.models) <= working
            found.append(replace(finding, level="warning", models=()) if spared else finding)
    return found


async def _places(subject: Subject) -> tuple[list[ServerPlace], list[Finding]]:
    """Return every server once, with the models behind it, and report roles for which none is known."""
    config, found = subject.config, []
    specs = config.backend_specs().values()
    places: dict[tuple[str, str | None], ServerPlace] = {}
    for role in config.vllm_endpoints:
        behind = [spec for spec in specs if spec.endpoint == role]
        finder = Finder(config, role, subject.environ)
        known = await finder.places() or ()
        for one in known:
            key = behind[0].api_key_env if behind else None
            place = places.setdefault((one.url, key), ServerPlace(one.url, [], one.model, one.registered, one.key))
            place.specs += behind
        if not known:
            names = tuple(spec.name for spec in behind)
            where = config.where("vllm_endpoints", role)
            how = of_fleet_file(config.servers_of(role), subject.environ) or finder.hint
            found.append(Finding("error", "role-without-server", where, finder.nobody(()), how, names))
    for spec in specs:
        if spec.backend == "vllm" and spec.endpoint is None and spec.base_url:
            url = api_url(spec.base_url)
            places.setdefault((url, spec.api_key_env), ServerPlace(url, [])).specs.append(spec)
    return list(places.values()), found


async def _meet(subject: Subject, client: Client, place: ServerPlace) -> Met:
    met, key = Met(place), _key(subject, place)
    bearer = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Answer:
        headers = bearer if url.startswith(place.url) else {}
        answer = await client.ask(url, content, headers=headers, connect=connect, sink=sink, bounds=bounds)
        met.date, met.ours = answer.headers.get("date", ""), subject.now()
        return answer

    observer = ServerObserver(ask, place.url)
    try:
        met.listing = await observer.models(LIMIT)
    except Exception as error:  # noqa: BLE001  # every kind of failure is judged below
        met.error = error
        return met
    if met.listing.models:
        met.found = await inspect_server(place.url, client=client, api_key=key)
        if met.found.kind in ("vllm", "sglang"):
            with suppress(Exception):
                met.health = await observer.health(LIMIT)
    elif met.listing.status in (200, 404):
        met.instead = await _api_elsewhere(client, place.url, key)
    return met


def _key(subject: Subject, place: ServerPlace) -> str | None:
    if place.made_key:
        return place.made_key
    variable = next((spec.api_key_env for spec in place.specs if spec.api_key_env), None)
    return subject.environ.get(variable, "").strip() or None if variable else None


async def _api_elsewhere(client: Client, url: str, key: str | None) -> str:
    """Return where the server has its API if not at this address; empty if nowhere."""
    parts = urlsplit(url)
    root = f"{parts.scheme}://{parts.netloc}"
    for other in (f"{url}/v1", f"{root}/v1", f"{root}/api/v1", f"{root}/openai/v1"):
        if other == url:
            continue
        with suppress(Exception):
            if (await ServerObserver.over(client, other, key).models(LIMIT)).models:
                return shown_url(other)
    return ""


# ------------------------------------------------------------------------------------------------------------- judgement


def _judged(subject: Subject, met: Met) -> Iterator[Finding]:
    place, specs = met.place, met.place.specs
    names = tuple(spec.name for spec in specs)
    where = " and ".join(dict.fromkeys(_where(subject, spec) for spec in specs[:3]))
    shown = shown_url(place.url)
    if met.date:
        yield from of_server(shown, met.date, met.ours)
    trouble = _of_error(subject, met) if met.error is not None else _of_listing(subject, met)
    if trouble is not None:
        kind, problem, remedy = trouble
        yield Finding("error", kind, where, f"{shown}: {problem}", remedy, names)
        return
    if met.health >= 500:
        problem = f"{shown}: its health check answers with status {met.health}: the engine may be starting, or has failed"
        yield Finding("error", "unhealthy", where, problem, "see the server's log; restart it if it does not recover", names)
    assert met.listing is not None  # without an error there is one
    for spec in specs:
        yield from _of_model(subject, met, met.listing, spec)


def _where(subject: Subject, spec: ModelSpec) -> str:
    if spec.endpoint is not None:
        return subject.config.where("vllm_endpoints", spec.endpoint)
    return place_of(subject.config, spec, "base_url")


def _of_error(subject: Subject, met: Met) -> tuple[str, str, str]:
    """Return kind, problem and remedy of a server of which nothing was learnt."""
    error = met.error
    if isinstance(error, EgressDenied):
        return "other-user" if "local_users" in error.hint else "address-refused", error.message, error.hint
    if isinstance(error, Late):
        what = "it takes connections, but does not answer" if error.connected else "no connection"
        how = "see its log, and restart it; a model that is loading answers later" if error.connected else _UNREACHED
        how += "; write http:// if it has no TLS" if met.place.url.startswith("https:") else ""
        return "server-silent", f"{what} within {LIMIT:g} s", how
    if isinstance(error, OSError):
        return _of_connection(subject, met, error)
    what = f"the response is not HTTP: {error}" if isinstance(error, Broken) else str(error)
    return "not-an-api", what, "check the port; write https:// if the server uses TLS"


def _of_connection(subject: Subject, met: Met, error: OSError) -> tuple[str, str, str]:
    if is_unknown_name(error):
        host = urlsplit(met.place.url).hostname
        how = f"correct the name (`getent hosts {host}`), or give an address"
        return "unknown-host", f"the name {host} has no address", how
    if isinstance(error, ssl.SSLError):
        how = "write http:// if the server has no TLS; else give it a certificate that this machine trusts (SSL_CERT_FILE)"
        return "tls", f"no TLS connection: {getattr(error, 'verify_message', '') or error.reason or error}", how
    reason = "connection refused" if isinstance(error, ConnectionRefusedError) else str(error)
    return "server-down", f"{reason}: no server is running there", _start(subject, met.place)


_UNREACHED = "check that the host is up, and the firewall and the route to it"


def _start(subject: Subject, place: ServerPlace) -> str:
    """Say how a server at this address is usually started."""
    parts = urlsplit(place.url)
    role = next((spec.endpoint for spec in place.specs if spec.endpoint), None)
    usual = {11434: "`ollama serve`", 1234: "LM Studio's server (`lms server start`)", 8080: "`llama-server -m MODEL.gguf`"}
    start = usual.get(parts.port or 0, f"`fleet up {role}` or `fleet submit {role}`" if role else "`vllm serve MODEL`")
    inside = ""
    if parts.hostname in ("localhost", "127.0.0.1", "::1") and any(path.exists() for path in _CONTAINER):
        inside = "; in a container localhost is the container itself, so name the host, such as host.docker.internal"
    return f"start it: {start}, or correct the address{inside}"


def _of_listing(subject: Subject, met: Met) -> tuple[str, str, str] | None:
    """Return kind, problem and remedy of a server that answers without a list of models; None if it has one."""
    listing, place = met.listing, met.place
    assert listing is not None  # there was no error
    if listing.status in (401, 403):
        return _of_key(subject, place, listing.status)
    if met.instead:
        return "wrong-path", "the API is not at this address", f"write {met.instead}"
    if listing.models is not None:
        how = "load one: `ollama pull NAME`, or in LM Studio, or restart the server with one"
        return None if listing.models else ("no-model", "it serves no model", how)
    return _of_status(listing.status)


def _of_status(status: int) -> tuple[str, str, str]:
    """Return kind, problem and remedy of an answer that is no list of models."""
    if 300 <= status < 400:
        return "redirect", f"status {status}: redirects are not followed", "write the address to which it redirects"
    if status == 503:
        return "server-loading", "status 503: it is loading, or overloaded", "wait a minute, and see its log"
    if status >= 500:
        return "server-failed", f"status {status}", "see the server's log"
    what = "no list of models" if status == 200 else f"status {status} instead of a list of models"
    how = "correct address and port, up to and including /v1"
    return "not-an-api", f"{what}: another kind of server, or another path", how


def _of_key(subject: Subject, place: ServerPlace, status: int) -> tuple[str, str, str]:
    variable = next((spec.api_key_env for spec in place.specs if spec.api_key_env), None)
    if variable is None:
        name = place.specs[0].name if place.specs else "NAME"
        how = f"add api_key_env: VARIABLE to models.{name}, and export the variable"
        return "server-key", f"status {status}: it requires a key, and the profile names none", how
    if not subject.environ.get(variable, "").strip():
        return "server-key", f"status {status}: it requires a key, and {variable} is not set", f"export {variable}=..."
    return "server-key", f"status {status}: it refuses the key in {variable}", f"set {variable} to the key of this server"


# ---------------------------------------------------------------------------------------------------------------- models


def _of_model(subject: Subject, met: Met, listing: Listing, spec: ModelSpec) -> Iterator[Finding]:
    """Report what is wrong with one model of the profile on a server that has some."""
    config, shown = subject.config, shown_url(met.place.url)
    served = met.found.models if met.found is not None else ()
    wanted = met.place.model or spec.model
    if wanted is not None and not listing.serves(wanted):
        where = place_of(config, spec, "model")
        yield Finding("error", "model-not-served", where, *_not_served(shown, wanted, listing, served), (spec.name,))
        return
    answering = _answering(wanted, served)
    if wanted is None and len(served) > 1 and met.found is not None and met.found.kind not in ("vllm", "sglang"):
        names = [model.name for model in served]
        best = next((model.name for model in served if not model.embedding), names[0])
        problem = f"{shown} serves {named(names)}; the profile names none of them, so the first is asked: {names[0]}"
        yield Finding("warning", "model-not-named", place_of(config, spec), problem, f"add model: {best}")
    if answering is not None:
        yield from _of_use(subject, shown, spec, answering, served)
        if answering.remote:
            yield _elsewhere(config, shown, spec, answering, served)
        ollama = met.found is not None and met.found.kind == "ollama"
        yield from _of_length(subject, shown, spec, answering, usual=_OLLAMA_CONTEXT if ollama else None)


def _elsewhere(
    config: StrategyConfig, shown: str, spec: ModelSpec, answering: ServedModel, served: Iterable[ServedModel]
) -> Finding:
    """Report a model that its server does not run itself: an error where prompts must stay on one's own machines."""
    own = [model.name for model in served if not model.remote and not model.embedding]
    level: Level = "warning" if config.allow_cloud else "error"
    problem = f"{shown} does not run {answering.name} itself: it sends its prompts on to a cloud"
    how = f"write model: {own[0]}" if len(own) == 1 else f"write one of these as model: {named(own)}"
    where = place_of(config, spec, "model")
    return Finding(
        level, "model-elsewhere", where, problem, how if own else "load a model that it runs itself", (spec.name,)
    )


def _not_served(shown: str, wanted: str, listing: Listing, served: Sequence[ServedModel]) -> tuple[str, str]:
    """Return problem and remedy of a model that its server does not know."""
    names = [name for model in served for name in (model.name, *model.aliases)] or list(listing.models or ())
    near = nearest(wanted, names)
    best = near.removeprefix("did you mean ").rstrip("?").strip("'\"") if near else ""
    chosen = best or next((model.name for model in served if not model.embedding), names[0])
    how = f"write model: {chosen}" if len(names) == 1 or best else f"write one of these as model, or load {wanted}"
    return f"{shown} does not serve {wanted!r}; it serves {named(names)}", how


def _answering(wanted: str | None, served: Sequence[ServedModel]) -> ServedModel | None:
    """Return the served model that answers; without a name the server's first, as `OpenAIServer` takes it."""
    if wanted is None or len(served) == 1:
        return served[0] if served else None
    return next((model for model in served if {wanted, f"{wanted}:latest"} & {model.name, *model.aliases}), None)


def _of_use(
    subject: Subject, shown: str, spec: ModelSpec, answering: ServedModel, served: Iterable[ServedModel]
) -> Iterator[Finding]:
    config = subject.config
    if answering.embedding and subject.chats(spec.name):
        others = [model.name for model in served if not model.embedding]
        where = place_of(config, spec, "model")
        problem = f"{shown}: {answering.name} is an embedding model and cannot chat, but the profile asks it for answers"
        how = f"write model: {others[0]}" if len(others) == 1 else f"write one of these as model: {named(others)}"
        how = how if others else "load a chat model on this server; route only the task embeddings to this one"
        yield Finding("error", "embedding-as-chat", where, problem, how, (spec.name,))
    elif answering.embedding is False and subject.embeds(spec.name):
        others = [model.name for model in served if model.embedding]
        problem = f"{shown}: {answering.name} is no embedding model, but the profile asks it for embeddings"
        how = f"write model: {others[0]}" if others else "serve an embedding model, such as BAAI/bge-m3, and route to it"
        yield Finding("error", "chat-as-embedding", place_of(config, spec, "model"), problem, how, (spec.name,))


_OLLAMA_CONTEXT = 4096
"""Tokens that ollama gives a model unless it is told otherwise; it silently cuts longer prompts."""


def _of_length(
    subject: Subject, shown: str, spec: ModelSpec, answering: ServedModel, *, usual: int | None
) -> Iterator[Finding]:
    """Compare context lengths; ``usual`` is the server's if it does not tell that of the model."""
    said, real = spec.context_length, answering.context_length
    where = place_of(subject.config, spec, "context_length")
    if said is not None and real is not None and said > real:
        problem = f"the profile says {said} tokens of context, but {shown} takes {real}: longer prompts fail or are cut off"
        how = f"write context_length: {real}, or restart the server with more"
        yield Finding("error", "context-too-long", where, problem, how)
    elif said is not None and real is None and usual is not None and said > usual:
        problem = f"the profile says {said} tokens of context; {shown} cuts prompts at {usual} unless it was set to more"
        yield Finding("warning", "context-unknown", where, problem, f"start it with OLLAMA_CONTEXT_LENGTH={said}")
