"""What a person can use from here: model servers of this machine, registered ones, and cloud models whose key is set.

`look_around` sends no prompt. It asks the servers on the usual ports of this machine for their models, and leaves alone
those that another person runs: on a shared machine anybody may listen on a free port. A server that a system user runs, as
the packages of ollama do, is asked; the profile must then name that user (`local_users`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from workflow_composer.backends.catalogue import CATALOGUE, find
from workflow_composer.backends.http.client import Client
from workflow_composer.backends.http.egress import EgressPolicy, endpoint_of, literal_address
from workflow_composer.backends.http.listeners import owners
from workflow_composer.backends.replicas.observer import api_url, shown_url
from workflow_composer.backends.replicas.registry import Entry, ServerRegistry, SigningKey, registry_directory
from workflow_composer.config.own_machines import is_near, own_users, user_id, user_name
from workflow_composer.config.profile_models import REGISTRY
from workflow_composer.errors import ConfigError, EgressDenied
from workflow_composer.fleet.launch.hardware import find_gpus
from workflow_composer.runtime.resources import embedded_available, slurm_controller
from workflow_composer.runtime.servers_found import ServedModel, ServerFound, inspect_server

if TYPE_CHECKING:
    from workflow_composer.backends.catalogue import CloudModel

USUAL_PORTS = {
    11434: "ollama",
    8080: "llama.cpp",
    1234: "LM Studio",
    8000: "vLLM",
    8001: "vLLM",
    8002: "vLLM",
    8003: "vLLM",
    8004: "vLLM",
    30000: "SGLang",
    1337: "Jan",
    4891: "GPT4All",
    5000: "text-generation-webui",
    5001: "KoboldCpp",
    23333: "LMDeploy",
}
"""Port -> the server that listens there unless it is told otherwise."""

_USUAL_KEYS = {"vLLM": "VLLM_API_KEY", "llama.cpp": "LLAMA_API_KEY", "LM Studio": "LM_API_TOKEN"}
"""The variable from which each kind of server reads the key that it requires, where there is one."""

LOOK_SECONDS = 10.0
"""Most seconds for all that one server is asked."""
_OWN_SERVICE = "auto"
"""The first model that this package's own service lists; a profile that sends prompts there may send them in a circle."""
_SYSTEM_USERS = range(1, 1000)
"""Numbers of the users that packages make for services; persons have higher ones."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that could answer: one that a server has, or (``cloud``) one of a cloud whose key is set.

    ``place`` is the server's address up to ``/v1``, or ``registry:ROLE``. ``user`` is the system user who runs the server.
    """

    model: str
    place: str
    kind: str
    served: ServedModel | None = None
    cloud: CloudModel | None = None
    user: str = ""
    key_env: str | None = None

    @property
    def host(self) -> str:
        """Host and port, or the role in the registry."""
        return self.place if self.place.startswith(REGISTRY) else urlsplit(self.place).netloc.rpartition("@")[2]

    @property
    def thinks(self) -> bool:
        """Whether the model is known to think before it answers."""
        return self.served is not None and bool(self.served.thinks)

    def named(self, name: str) -> bool:
        """Whether this is one of the model's names."""
        if self.cloud is not None:
            return name in (self.cloud.name, self.cloud.model, *self.cloud.aliases)
        return name == self.model or (self.served is not None and self.served.named(name))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is here but cannot answer a question now: a server, a model or a key, and why."""

    what: str
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found. ``offers``: the models that could answer, best first. ``embeddings``: the models that make vectors."""

    offers: tuple[Offer, ...] = ()
    embeddings: tuple[Offer, ...] = ()
    servers: tuple[ServerFound, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    keys: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    slurm: bool = False
    engine: bool = False

    @property
    def own(self) -> tuple[Offer, ...]:
        """The models of one's own servers."""
        return tuple(offer for offer in self.offers if offer.cloud is None)

    @property
    def clouds(self) -> tuple[Offer, ...]:
        """The cloud models."""
        return tuple(offer for offer in self.offers if offer.cloud is not None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person adds to what is looked for: servers by URL, with the variable of their key; users and networks.

    ``users`` and ``networks`` are one's own although nothing here says so; they come into the profile.
    """

    servers: Sequence[str] = ()
    key_env: str | None = None
    users: Sequence[str] = ()
    networks: Sequence[str] = ()
    usual: bool = True


@dataclass(frozen=True, slots=True)
class _Spot:
    """An address to look at. ``why``: whether it was named, usual or registered."""

    url: str
    why: Literal["named", "usual", "registered"]
    user: str = ""
    entry: Entry | None = None
    key_env: str | None = None


@dataclass(slots=True)
class _Gathered:
    """What the look has gathered so far."""

    offers: list[Offer] = field(default_factory=list)
    embeddings: list[Offer] = field(default_factory=list)
    servers: list[ServerFound] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


async def look_around(environ: Mapping[str, str], wanted: Wanted | None = None) -> Surroundings:
    """Look for models. Takes as long as the slowest server, at most about `LOOK_SECONDS`. Never raises."""
    wanted = wanted or Wanted()
    found = _Gathered()
    spots = list(_spots(environ, wanted, found))
    hardware = asyncio.to_thread(find_gpus, environ)
    (gpus, _), servers, no_slurm = await asyncio.gather(
        hardware, _inspected(spots, environ, wanted), slurm_controller(environ)
    )
    for spot, server in zip(spots, servers, strict=True):
        _take(found, spot, server, _key_of(spot, environ) is not None)
    clouds = [*_clouds(environ)]
    return Surroundings(
        offers=(*sorted(found.offers, key=_rank), *clouds),
        embeddings=tuple(found.embeddings),
        servers=tuple(found.servers),
        left_out=tuple(found.left_out),
        keys=tuple(dict.fromkeys(model.api_key_env for model in CATALOGUE.values() if environ.get(model.api_key_env))),
        gpus=tuple(gpu.name for gpu in gpus),
        slurm=not no_slurm,
        engine=embedded_available(),
    )


def _rank(offer: Offer) -> tuple[bool, bool, bool]:
    """Order the models: those first that answer without thinking, that are in memory, and that are known to chat."""
    served = offer.served
    return (offer.thinks, served is not None and served.loaded is False, served is None or not served.chats)


# ------------------------------------------------------------------------------------------------------------- addresses


def _spots(environ: Mapping[str, str], wanted: Wanted, found: _Gathered) -> Iterator[_Spot]:
    """Yield the addresses to look at, each once; note the servers of strangers."""
    seen: set[tuple[str, int]] = set()
    for entry in _registered(environ, wanted, found):
        seen |= {("localhost", entry.port)} if entry.node == os.uname().nodename else set()
        yield _Spot(entry.url, "registered", entry=entry)
    named = [("named", url if "://" in url else f"http://{url}") for url in wanted.servers]
    usual = [("usual", url) for url in _usual(environ)] if wanted.usual else []
    for why, url in (*named, *usual):
        try:
            host, port = endpoint_of(url)
        except EgressDenied as error:
            if why == "named":
                found.left_out.append(LeftOut(shown_url(url), error.message, error.hint))
            continue
        place = ("localhost" if _is_here(host) else host, port)
        if place in seen:
            continue
        seen.add(place)
        yield from _unless_a_strangers(url, why, place, wanted, found)


def _unless_a_strangers(url: str, why: str, place: tuple[str, int], wanted: Wanted, found: _Gathered) -> Iterator[_Spot]:
    """Yield the address unless another person's server listens there."""
    users = _listening(place[1]) if place[0] == "localhost" else set()
    strangers = users - own_users(wanted.users)
    persons = [user for user in strangers if user not in _SYSTEM_USERS]
    if persons:
        who = user_name(min(persons))
        name = who.removeprefix("uid ")
        remedy = f"if it is yours, add --local-user {name}"
        found.left_out.append(LeftOut(f"{place[0]}:{place[1]}", f"a server of {who}, another user of this machine", remedy))
        return
    known = {user for name in wanted.users if (user := user_id(name)) is not None}
    named = min(strangers | (users & known) - own_users(), default=None)
    who = "" if named is None else _spelled(named)
    if why == "named":
        yield _Spot(api_url(url), "named", who, key_env=wanted.key_env)
    else:
        yield _Spot(api_url(url), "usual", who, key_env=_USUAL_KEYS.get(USUAL_PORTS.get(place[1], "")))


def _spelled(user: int) -> str:
    """Return a user as `local_users` takes it: its name, or its number if it has none."""
    return user_name(user).removeprefix("uid ")


def _listening(port: int) -> set[int]:
    return owners("127.0.0.1", port, 0) | owners("::1", port, 0)


def _is_here(host: str) -> bool:
    address = literal_address(host)
    return host == "localhost" or (address is not None and (address.is_loopback or address.is_unspecified))


def _usual(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the usual addresses, and those that the environment names for ollama and for clients of OpenAI's API."""
    if place := environ.get("OLLAMA_HOST", "").strip():
        yield _ollama_url(place)
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        url = environ.get(variable, "").strip()
        if url and _is_own(url):
            yield url
    yield from (f"http://localhost:{port}/v1" for port in USUAL_PORTS)


def _ollama_url(place: str) -> str:
    """Return the address that ollama's clients make of ``OLLAMA_HOST``: scheme and port may be missing.

    >>> _ollama_url("0.0.0.0"), _ollama_url("gpu:11435"), _ollama_url("https://models.example")
    ('http://localhost:11434', 'http://gpu:11435', 'https://models.example:443')
    """
    scheme, separated, rest = place.partition("://")
    scheme, rest = (scheme, rest) if separated else ("http", place)
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port or {"http": 80 if separated else 11434, "https": 443}.get(scheme, 11434)
        host = parts.hostname or "localhost"
    except ValueError:
        return place
    host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104  # to connect to
    return f"{scheme}://{host}:{port}"


def _is_own(url: str) -> bool:
    """Whether an address of OpenAI's API is on one's own machines, as far as it says without resolving names."""
    try:
        host = endpoint_of(url)[0]
    except EgressDenied:
        return False
    address = literal_address(host)
    return host == "localhost" if address is None else is_near(address)


def _registered(environ: Mapping[str, str], wanted: Wanted, found: _Gathered) -> list[Entry]:
    """Return the servers that the registry lists as ready, one for each role; note why its key is unusable."""
    folder = registry_directory(environ)
    try:
        registry = ServerRegistry(folder, own_users(wanted.users), SigningKey.read(environ))
        ready = [entry for entry in registry.entries() if entry.state == "ready"]
    except ConfigError as error:
        found.left_out.append(LeftOut(f"registry {folder}", error.message, error.hint))
        return []
    except OSError:
        return []
    return list({entry.role: entry for entry in ready}.values())


# -------------------------------------------------------------------------------------------------------------- servers


async def _inspected(spots: Sequence[_Spot], environ: Mapping[str, str], wanted: Wanted) -> list[ServerFound]:
    """Ask all servers at once."""
    policy = EgressPolicy(
        allow_cloud=False,
        local=frozenset(endpoint_of(spot.url) for spot in spots),
        networks=tuple(ipaddress.ip_network(network) for network in wanted.networks),
        users=own_users([*wanted.users, *(spot.user for spot in spots if spot.user)]),
    )

    async def one(client: Client, spot: _Spot) -> ServerFound:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await inspect_server(spot.url, client=client, api_key=_key_of(spot, environ))
        except TimeoutError:
            return ServerFound(spot.url, "openai-compatible", error=f"no answer within {LOOK_SECONDS:g} s")

    async with Client(policy) as client:
        return list(await asyncio.gather(*(one(client, spot) for spot in spots)))


def _take(found: _Gathered, spot: _Spot, server: ServerFound, with_key: bool) -> None:
    """Note a server's models, or why it cannot answer. Nothing listens at most of the usual ports: that is no news.

    ``with_key``: it was asked with a key.
    """
    place = urlsplit(spot.url).netloc.rpartition("@")[2]
    if server.error is not None:
        if spot.why != "usual" or not _is_no_news(server.error):
            remedy = ""
            if "requires a key" in server.error:
                remedy = f"add --server {shown_url(spot.url)} --api-key-env with the name of the variable that holds the key"
            found.left_out.append(LeftOut(place, server.error.partition("; name its variable")[0], remedy))
        return
    if any(model.name == _OWN_SERVICE for model in server.models):
        found.left_out.append(LeftOut(place, "a service of workflow_composer, which routes and has no model of its own"))
        return
    found.servers.append(server)
    if not server.models:
        found.left_out.append(LeftOut(place, f"{shown_kind(server.kind)} has no model", _load(server.kind)))
    where = f"{REGISTRY}{spot.entry.role}" if spot.entry is not None else server.base_url
    key_env = spot.key_env if with_key or spot.why == "named" else None
    for model in server.models:
        if "${" in model.name:
            continue  # a profile would read the name of a variable in it
        offer = Offer(model.name, where, server.kind, model, user=spot.user, key_env=key_env)
        if why := _leaves(model, server, spot):
            found.left_out.append(LeftOut(model.name, why))
        elif model.embedding:
            found.embeddings.append(offer)
        elif model.chats is False:
            found.left_out.append(LeftOut(model.name, "no model that chats"))
        else:
            found.offers.append(offer)


def _leaves(model: ServedModel, server: ServerFound, spot: _Spot) -> str:
    """Say why prompts to a model would leave one's own machines although its server is here; empty if nothing says so."""
    if model.remote:
        return f"{shown_kind(server.kind)} sends its prompts on to a cloud, which a profile cannot prevent"
    known = find(model.name.rpartition("/")[2]) if server.kind == "openai-compatible" and spot.why == "usual" else None
    if known is not None:
        return f"{spot.url} seems to send its prompts on to {known.host}; if you want that, name the server with --server"
    return ""


def _key_of(spot: _Spot, environ: Mapping[str, str]) -> str | None:
    key = environ.get(spot.key_env, "").strip() if spot.key_env else ""
    return key if key.isascii() and key.isprintable() and key else None


_NO_NEWS = (
    "connection refused",
    "no answer within",
    "the connection broke",
    "status 404",
    "status 405",
    "the response has no list",
)


def _is_no_news(error: str) -> bool:
    """Whether this is what a usual port answers where no model server listens, or another program does."""
    return error.startswith(_NO_NEWS)


def shown_kind(kind: str) -> str:
    """Return the name of a kind of server as its makers write it."""
    return {"vllm": "vLLM", "lm-studio": "LM Studio", "sglang": "SGLang", "openai-compatible": "a server like OpenAI's"}.get(
        kind, kind
    )


def _load(kind: str) -> str:
    return {
        "ollama": "ollama pull llama3.2",
        "lm-studio": "download a model in LM Studio, or `lms get`",
    }.get(kind, "load a model into it")


# --------------------------------------------------------------------------------------------------------------- clouds


def _clouds(environ: Mapping[str, str]) -> Iterator[Offer]:
    """Yield one model of each cloud whose key is set: the one that `cloud` means, else the cheapest that chats."""
    ready = [
        model
        for model in CATALOGUE.values()
        if environ.get(model.api_key_env, "").strip()
        and not model.is_retired()
        and "chat" in (model.capabilities or ("chat",))
    ]
    first: dict[str, CloudModel] = {}
    for model in sorted(ready, key=lambda model: (not model.cloud, model.input_price + model.output_price)):
        first.setdefault(model.api_key_env, model)
    for model in ready:
        if first[model.api_key_env] is model:
            yield Offer(model.name, model.base_url, "cloud", cloud=model, key_env=model.api_key_env)
