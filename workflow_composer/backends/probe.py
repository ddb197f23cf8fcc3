"""Ask a server what it serves. Plain HTTP: `status` must not load a client library to find that nothing answers."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable

from workflow_composer.backends.http.connection import Answer
from workflow_composer.backends.openai_wire import Malformed, model_ids
from workflow_composer.errors import EgressDenied
from workflow_composer.types import EndpointStatus

Ask = Callable[[str], Awaitable[Answer]]
"""Sends a GET to a URL."""


def api_url(url: str) -> str:
    """The address below which ``/models`` and ``/chat/completions`` lie; a bare server address gets ``/v1``."""
    bare = url.rstrip("/")
    has_path = "/" in bare.partition("://")[2]
    return bare if has_path else bare + "/v1"


def shown_url(url: str) -> str:
    """``url`` without user and password."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


async def probe(ask: Ask, name: str, url: str, *, limit: float, model: str | None = None) -> EndpointStatus:
    """Ask for the models below ``url`` (from `api_url`) and wait ``limit`` seconds at most. Never raises.

    ``ask`` sends a question (GET). ``model``: the id that is expected; a server without it is not healthy.
    """
    started = time.perf_counter()
    models: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(limit):
            answer = await ask(f"{url}/models")
        detail = _fault(answer.status)
        models = () if detail else model_ids(json.loads(answer.body))
    except EgressDenied as error:
        detail = str(error)
    except (Malformed, ValueError):
        detail = "answers, but not with a list of models; is this an OpenAI-compatible server?"
    except Exception as error:  # noqa: BLE001 - whatever a dead server does, the others are still to be reported
        detail = _reason(error, limit)
    latency = (time.perf_counter() - started) * 1000
    served = _listed(models)
    if not detail and (not models or model not in (None, *models)):
        detail = f"serves {served}" + (f", not {model}" if model else "")
    url = shown_url(url)
    if detail:
        return EndpointStatus(name, url, healthy=False, models=models, detail=detail)
    detail = f"serves {served}; answered in {latency:.0f} ms"
    return EndpointStatus(name, url, healthy=True, models=models, latency_ms=latency, detail=detail)


def _listed(models: tuple[str, ...]) -> str:
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    return (", ".join(models[:5]) or "no model") + more


def _fault(status: int) -> str:
    if status in (401, 403):
        return f"answers {status}: it wants a key; name its variable in the model's api_key_env"
    if 300 <= status < 400:
        return f"answers {status}: it redirects, which is not followed"
    return f"answers {status} instead of a list of models" if status != 200 else ""


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {limit:g} s"
    if isinstance(error, socket.gaierror) or "host name" in str(error):
        return "its name is unknown"
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections; is it running?"
    return f"the connection broke: {error}"
