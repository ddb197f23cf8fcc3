"""Probe of a server: its models, and its state in words."""

from __future__ import annotations

import time

from workflow_composer.backends.observer import Listing, Observer
from workflow_composer.backends.resolving import is_unknown_name
from workflow_composer.errors import EgressDenied
from workflow_composer.types import EndpointStatus


def api_url(url: str) -> str:
    """Return the base URL of ``/models`` and ``/chat/completions``; a URL without a path gets ``/v1``."""
    bare = url.rstrip("/")
    has_path = "/" in bare.partition("://")[2]
    return bare if has_path else bare + "/v1"


def shown_url(url: str) -> str:
    """Return ``url`` without user and password."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


async def probe(observer: Observer, name: str, *, limit: float, model: str | None = None) -> EndpointStatus:
    """Ask a server for its models, within ``limit`` seconds. Never raises.

    ``model`` is the expected id; a server without it is unhealthy.
    """
    started = time.perf_counter()
    models: tuple[str, ...] = ()
    try:
        found = await observer.models(limit)
        detail = _fault(found)
        models = found.models or ()
    except EgressDenied as error:
        detail = str(error)
    except Exception as error:  # noqa: BLE001 - a broken server must not hide the others
        detail = _reason(error, limit)
    latency = (time.perf_counter() - started) * 1000
    served = _listed(models)
    if not detail and (not models or model not in (None, *models)):
        detail = f"serves {served}" + (f", not {model}" if model else "")
    url = shown_url(observer.api)
    if detail:
        return EndpointStatus(name, url, healthy=False, models=models, detail=detail)
    detail = f"serves {served}; answered in {latency:.0f} ms"
    return EndpointStatus(name, url, healthy=True, models=models, latency_ms=latency, detail=detail)


def _listed(models: tuple[str, ...]) -> str:
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return (", ".join(models[:5]) or "no model") + more


def _fault(found: Listing) -> str:
    status = found.status
    if status in (401, 403):
        return f"answers {status}: it requires a key; name its variable in the model's api_key_env"
    if 300 <= status < 400:
        return f"answers {status}: redirects are not followed"
    if status != 200:
        return f"answers {status} instead of a list of models"
    return "" if found.models is not None else "answers without a list of models; is it an OpenAI-compatible server?"


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {limit:g} s"
    if is_unknown_name(error):
        return "unknown host name"
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections; is it running?"
    return f"the connection broke: {error}"
