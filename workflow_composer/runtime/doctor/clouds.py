"""Cloud models: keys, prices, context lengths, retirement; and with permission their servers, which get no prompt."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from urllib.parse import urlsplit

from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.catalogue import CATALOGUE, CloudModel, find
from workflow_composer.backends.http.client import Origin
from workflow_composer.backends.http.connection import Answer, Bounds, Sink
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.http.proxied import proxy_for
from workflow_composer.backends.openai.server import OpenAIServer
from workflow_composer.backends.replicas.observer import Listing, ServerObserver
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.errors import WorkflowComposerError, nearest
from workflow_composer.runtime.doctor.clocks import REMEDY, of_server
from workflow_composer.runtime.doctor.finding import Finding, Level, Subject, named, place_of
from workflow_composer.support.installing import install_library

LIMIT = 10.0
"""Seconds for the question to a cloud server."""
OLD_PRICES = 180
"""Days after which prices of the catalogue count as old: providers change theirs about twice a year."""
_SOON = 60
"""Days before a model's retirement from which it is reported."""
_PLACEHOLDER = re.compile(
    r"(?i)(?:your|my|the)[-_ ]?.*key|.*(?:key|token)[-_ ]?here|<.*>|\$\{?\w+\}?|x{3,}|\.{3,}|sk-(?:\.{2,}|x+)"
    r"|change[-_]?me|test|todo|empty|none|null"
)
_OWNERS = {
    "sk-ant-": "anthropic.com",
    "sk-or-": "openrouter.ai",
    "sk-proj-": "openai.com",
    "gsk_": "groq.com",
    "AIza": "googleapis.com",
    "xai-": "x.ai",
    "hf_": "huggingface.co",
    "nvapi-": "nvidia.com",
    "pplx-": "perplexity.ai",
}
"""Start of a provider's keys -> the domain that takes them."""


def check_clouds(subject: Subject) -> Iterator[Finding]:
    """Report what the profile, the environment and the catalogue say of the cloud models. Sends nothing."""
    specs = _cloud_models(subject)
    for spec in specs:
        yield from _of_key(subject, spec)
        yield from _of_proxy(subject, spec)
    known = {spec.name: entry for spec in specs if (entry := _entry_of(spec)) is not None}
    today = _today(subject)
    for spec in specs:
        entry = known.get(spec.name)
        if entry is None or not entry.is_retired(today):
            yield from _of_price(subject, spec, entry)
        if entry is not None:
            yield from _of_catalogue(subject, spec, entry)
    newest = max((entry.priced_on for entry in CATALOGUE.values()), default=today)
    if newest > today:
        problem = f"this machine's date is {today}, but the catalogue of cloud models is of {newest}"
        yield Finding("error", "clock", "this machine", problem, REMEDY)
    yield from _of_age(subject, [entry for entry in known.values() if not entry.is_retired(today)])


def _cloud_models(subject: Subject) -> list[ModelSpec]:
    specs = subject.config.backend_specs().values()
    return [spec for spec in specs if spec.backend == "openai"] if subject.config.allow_cloud else []


def _entry_of(spec: ModelSpec) -> CloudModel | None:
    """Return the catalogue's entry of a model, if it is the same provider's: others have other prices and dates."""
    host = urlsplit(spec.base_url or "").hostname
    entries = (find(name) for name in (spec.model, spec.name) if name)
    return next((entry for entry in entries if entry and urlsplit(entry.base_url).hostname == host), None)


def _today(subject: Subject) -> date:
    return datetime.fromtimestamp(subject.now(), UTC).date()


# ------------------------------------------------------------------------------------------------------------------ keys


def _of_key(subject: Subject, spec: ModelSpec) -> Iterator[Finding]:
    """Report a key that is missing or cannot be one. Its value is never shown."""
    variable, where = spec.api_key_env, place_of(subject.config, spec, "api_key_env")
    if variable is None:
        how = f"add api_key_env: VARIABLE to models.{spec.name}, and export the variable"
        yield Finding("warning", "key-not-named", where, f"{spec.name} names no variable with its key", how)
        return
    key = subject.environ.get(variable, "")
    if not key.strip():
        # A fallback without a key is skipped; a task's own model without one is not there.
        level: Level = "error" if subject.tasks_of(spec.name) else "warning"
        problem = f"{variable} is not set, so {spec.name} is not available"
        yield Finding(
            level, "key-missing", where, problem, f"export {variable}=... (the provider's page of keys)", (spec.name,)
        )
    elif fault := _fault_of(key, spec):
        yield Finding(
            "error", "key-malformed", where, f"{variable} {fault}", f"copy the key into {variable} again", (spec.name,)
        )


def _fault_of(key: str, spec: ModelSpec) -> str:
    """Say why a key cannot be right; empty if it may be."""
    bare = key.strip()
    faults = {
        "contains characters that no key has": not bare.isascii() or not bare.isprintable(),
        "is in quotation marks, which are sent with it": bare[0] in "\"'" or bare[-1] in "\"'",
        "begins with 'Bearer', which is added to it": bare.lower().startswith("bearer"),
        "is a placeholder": _PLACEHOLDER.fullmatch(bare) is not None,
        "contains a space": " " in bare,
    }
    host = urlsplit(spec.base_url or "").hostname or ""
    owner = next((domain for start, domain in _OWNERS.items() if bare.startswith(start)), None)
    if owner is not None and not host.endswith(owner) and host.endswith(tuple(_OWNERS.values())):
        faults[f"is a key of {owner}, but is sent to {host}"] = True
    return next((fault for fault, there in faults.items() if there), "")


def _of_proxy(subject: Subject, spec: ModelSpec) -> Iterator[Finding]:
    """Report a proxy of the environment that cannot be used."""
    origin = Origin.of(spec.base_url or "")
    proxy = proxy_for(origin, EgressPolicy.of(subject.config), subject.environ)
    if proxy is None:
        return
    parts = urlsplit(proxy)
    if parts.scheme.startswith("socks"):
        if importlib.util.find_spec("socksio") is None:
            what = f"{spec.name} would be reached through a SOCKS proxy, for which a library is missing"
            how = f"{install_library('socksio')}; or set HTTPS_PROXY to an HTTP proxy"
            yield Finding("error", "proxy", _proxy_variable(subject), what, how, (spec.name,))
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        what = f"the proxy for {spec.name} is no address"
        yield Finding("error", "proxy", _proxy_variable(subject), what, "write http://HOST:PORT, or unset it", (spec.name,))


def _proxy_variable(subject: Subject) -> str:
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY")
    return next((name for name in names if subject.environ.get(name)), "HTTPS_PROXY")


# ---------------------------------------------------------------------------------------------------------------- prices


def _of_price(subject: Subject, spec: ModelSpec, entry: CloudModel | None) -> Iterator[Finding]:
    where = place_of(subject.config, spec, "input_price")
    if not spec.priced or None in (spec.input_price, spec.output_price):
        how = "add input_price and output_price, in dollars per million tokens"
        if entry is not None:
            how += f": {entry.input_price:g} and {entry.output_price:g} on {entry.priced_on} ({entry.source})"
        yield Finding("warning", "price-missing", where, f"{spec.name} has no price: its cost is unknown to budgets", how)
    elif entry is not None and (spec.input_price, spec.output_price) != (entry.input_price, entry.output_price):
        said = f"{spec.input_price:g} and {spec.output_price:g}"
        problem = f"{spec.name} is priced at {said}, but the catalogue says {entry.input_price:g} and {entry.output_price:g}"
        how = f"compare with {entry.source}, and correct the profile"
        yield Finding("warning", "price-differs", where, f"{problem} (of {entry.priced_on})", how)


def _of_age(subject: Subject, entries: list[CloudModel]) -> Iterator[Finding]:
    """Report the catalogue's old prices, once for all models."""
    today = _today(subject)
    old = [entry for entry in entries if (today - entry.priced_on).days > OLD_PRICES]
    if old:
        oldest = min(old, key=lambda entry: entry.priced_on)
        problem = f"the prices of {named([entry.name for entry in old])} are of {oldest.priced_on}"
        how = f"compare them with {oldest.source}, and write input_price and output_price into the profile"
        yield Finding("warning", "prices-old", "the catalogue of cloud models", problem, how)


def _of_catalogue(subject: Subject, spec: ModelSpec, entry: CloudModel) -> Iterator[Finding]:
    config, today = subject.config, _today(subject)
    if entry.retired_on is not None and (entry.retired_on - today).days <= _SOON:
        gone = entry.retired_on <= today
        problem = f"{spec.name} ({entry.model}) {'was' if gone else 'will be'} retired on {entry.retired_on}"
        heir = entry.in_service(today)
        how = f"write model: {heir.model} (its successor; see its price in `models list`)"
        how = how if heir.name != entry.name else "use another model (`models list`)"
        where = place_of(config, spec, "model")
        yield Finding("error" if gone else "warning", "model-retired", where, problem, how, (spec.name,) if gone else ())
    if spec.context_length is not None and entry.context_length is not None and spec.context_length > entry.context_length:
        problem = f"the profile says {spec.context_length} tokens of context, but {spec.name} takes {entry.context_length}"
        where = place_of(config, spec, "context_length")
        yield Finding("warning", "context-too-long", where, problem, f"write context_length: {entry.context_length}")


# --------------------------------------------------------------------------------------------------------------- servers


@dataclass(slots=True)
class _Heard:
    """What a cloud server said."""

    listing: Listing | None = None
    error: Exception | None = None
    date: str = ""
    ours: float = 0.0


async def ask_clouds(subject: Subject) -> list[Finding]:
    """Ask each cloud server for its models, with the key and without a prompt, and report what is wrong."""
    specs = [spec for spec in _cloud_models(subject) if not spec.api_key_env or subject.environ.get(spec.api_key_env)]
    heard = await asyncio.gather(*(_hear(subject, spec) for spec in specs))
    return [finding for spec, one in zip(specs, heard, strict=True) for finding in _of_answer(subject, spec, one)]


async def _hear(subject: Subject, spec: ModelSpec) -> _Heard:
    heard = _Heard()
    server = OpenAIServer(spec, BackendContext(subject.config, EgressPolicy.of(subject.config), subject.environ))

    async def ask(url: str, content: bytes | None, *, connect: float, sink: Sink, bounds: Bounds) -> Answer:
        answer = await server.ask(url, content, connect=connect, sink=sink, bounds=bounds)
        heard.date, heard.ours = answer.headers.get("date", ""), subject.now()
        return answer

    try:
        heard.listing = await ServerObserver(ask, server.url).models(LIMIT)
    except Exception as error:  # noqa: BLE001  # every kind of failure is reported
        heard.error = error
    finally:
        await server.close()
    return heard


def _of_answer(subject: Subject, spec: ModelSpec, heard: _Heard) -> Iterator[Finding]:
    origin, where = Origin.of(spec.base_url or ""), place_of(subject.config, spec, "base_url")
    if heard.date:
        yield from of_server(origin.authority, heard.date, heard.ours)
    if heard.error is not None or heard.listing is None:
        proxied = proxy_for(origin, EgressPolicy.of(subject.config), subject.environ) is not None
        said = heard.error.message if isinstance(heard.error, WorkflowComposerError) else str(heard.error)
        problem = f"{spec.name}: {origin.authority} cannot be reached: {said or type(heard.error).__name__}"
        if proxied:
            how = f"check the proxy in {_proxy_variable(subject)}, through which it is reached"
            yield Finding("error", "proxy", _proxy_variable(subject), problem, how, (spec.name,))
        else:
            how = "check this machine's way to the internet; behind a proxy, set HTTPS_PROXY"
            yield Finding("error", "cloud-unreachable", where, problem, how, (spec.name,))
        return
    status = heard.listing.status
    if status in (401, 403):
        problem = f"{spec.name}: {origin.authority} refuses the key in {spec.api_key_env} (status {status})"
        how = f"make a new key on the provider's page, and export {spec.api_key_env}"
        yield Finding("error", "key-refused", place_of(subject.config, spec, "api_key_env"), problem, how, (spec.name,))
    elif status in (402, 429):
        problem = f"{spec.name}: {origin.authority} answers with status {status}: no credit is left, or its rate is limited"
        yield Finding("warning", "quota", where, problem, "check credit and limits on the provider's page")
    elif heard.listing.models:
        yield from _of_listed(subject, spec, heard.listing.models)


def _of_listed(subject: Subject, spec: ModelSpec, models: tuple[str, ...]) -> Iterator[Finding]:
    """Report a model that the provider does not list. Providers may not list aliases, so that it may still answer."""
    wanted = spec.model or spec.name
    names = {name.removeprefix("models/") for name in models}  # Google's prefix
    if wanted.removeprefix("models/") not in names:
        near = nearest(wanted, sorted(names))
        how = f"{near} Else see `models list` for its successor" if near else "see the provider's list of models"
        problem = f"{spec.name}: the provider does not list {wanted!r}: it may be an alias, retired, or not for this key"
        yield Finding("warning", "model-not-listed", place_of(subject.config, spec, "model"), problem, how)
