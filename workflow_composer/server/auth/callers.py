"""Who asks: anybody on this machine, the owner of an API key, or an operator; and which requests and models are a key's own.

An operator has the admin token or a key with the right ``admin``. Without keys, everybody is on this machine (`WebGate`) and
sees everything; the admin API requires the token then, too.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import MarkerError, RoutingError
from workflow_composer.markers import is_routing_string, parse_route
from workflow_composer.server.auth.keys import ADMIN, PREFIX, Key, KeyRing, presented
from workflow_composer.server.exchange import Exchange
from workflow_composer.server.failures import PERMISSION, HttpFailure
from workflow_composer.server.gate import Network, sender, whole_client
from workflow_composer.server.settings import ADMIN_VARIABLE

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

_REFUSALS_PER_MINUTE = 30
"""Wrong tokens per address before further ones get 429. The right token always passes: guesses lock no operator out."""
_MOST_ADDRESSES = 4096
MARK_BYTES = 6
"""Bytes of a request ID that show whose request it is."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``name`` is for logs; ``key`` is None without one; an ``operator`` may see and grade all requests."""

    name: str
    key: Key | None = None
    operator: bool = True

    def models(self, config: StrategyConfig) -> frozenset[str] | None:
        """Return the models of the profile that the caller may use; None: all."""
        if self.operator or self.key is None or not self.key.models or "auto" in self.key.models:
            return None
        return frozenset(name for entry in self.key.models for name in _models(config, entry))

    def owns(self, request_id: str) -> bool:
        """Whether the caller may see and grade this request."""
        return self.operator or (self.key is not None and is_own(self.key, request_id))

    def require(self, right: str) -> None:
        """Raise `HttpFailure` 403 unless the caller is an operator or has this right."""
        if not (self.operator or (self.key is not None and right in self.key.rights)):
            message = f"this API key does not have the right {right!r}; it is given with `keys new NAME --right {right}`"
            raise HttpFailure(403, message, type=PERMISSION, code=f"{right}_not_allowed")


class Callers:
    """Tells who sent a request. ``told`` gets every refused token for the audit log: name, outcome and path."""

    def __init__(
        self,
        keys: KeyRing | None,
        token: str | None = None,
        proxies: Collection[Network] = (),
        told: Callable[[str, str, str], None] = lambda who, outcome, path: None,
    ) -> None:
        self._keys = keys
        self._token = token
        self._proxies = proxies
        self._told = told
        self._refused: dict[str, list[float]] = {}
        self._owned: dict[str, str] = {}

    @property
    def keyless(self) -> bool:
        """Whether no key is required."""
        return self._keys is None

    @property
    def switching(self) -> bool:
        """Whether anybody may switch strategies over the network."""
        return self._token is not None or not self.keyless

    def of(self, exchange: Exchange) -> Caller:
        """Return who asks. Raises `HttpFailure` 401 or 429 if keys are required and what was sent is not valid."""
        token = exchange.headers.get("x-admin-token") or presented(exchange.headers)
        if token is not None and self._fits(token):
            return Caller(self._operator(exchange))
        if self._keys is None:
            return Caller("anybody")
        if token is not None and not token.startswith(PREFIX) and self._token is not None:
            raise self._wrong(exchange)
        key = self._keys.identify(token)
        return Caller(f"key {key.id}", key, ADMIN in key.rights)

    def owners(self, request_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of the keys that made these requests, by request ID; without those of nobody's key.

        Compares every new ID with every key: for a thread.
        """
        keys = () if self._keys is None else tuple(self._keys.keys)
        found = {one: self._owned[one] for one in request_ids if one in self._owned}
        for request_id in request_ids:
            name = None if request_id in found else next((key.name for key in keys if is_own(key, request_id)), None)
            if name is not None:
                found[request_id] = name
        self._owned = found
        return found

    def known(self, exchange: Exchange) -> Caller | None:
        """Return who asks, or None for a stranger, who may still learn whether the service is up."""
        if not self.keyless and presented(exchange.headers) is None and "x-admin-token" not in exchange.headers:
            return None
        try:
            return self.of(exchange)
        except HttpFailure:
            return None

    def operator(self, exchange: Exchange) -> str:
        """Return an operator's name. Raises `HttpFailure` if the token is missing or wrong, or the key lacks the right."""
        token = exchange.headers.get("x-admin-token") or presented(exchange.headers) or ""
        if self._fits(token):
            return self._operator(exchange)
        if self._keys is not None and token.startswith(PREFIX):
            caller = self.of(exchange)
            caller.require(ADMIN)
            return caller.name
        if self._token is None:
            message = f"the admin API is off; set {ADMIN_VARIABLE} and restart the service"
            raise HttpFailure(403, message, type=PERMISSION, code="admin_disabled")
        raise self._wrong(exchange)

    def _operator(self, exchange: Exchange) -> str:
        return f"admin from {sender(exchange.client, exchange.headers, self._proxies) or 'here'}"

    def _fits(self, token: str) -> bool:
        """Whether this is the admin token; compares in constant time."""
        return self._token is not None and hmac.compare_digest(
            token.encode("utf-8", "surrogatepass"), self._token.encode("utf-8", "surrogatepass")
        )

    def _wrong(self, exchange: Exchange) -> HttpFailure:
        """Count a wrong token and return its failure."""
        address, now = whole_client(sender(exchange.client, exchange.headers, self._proxies)), time.monotonic()
        refused = [at for at in self._refused.get(address, ()) if now - at < 60.0]
        if len(refused) >= _REFUSALS_PER_MINUTE:
            return HttpFailure(429, "too many wrong tokens", type="rate_limit_error", retry_after=60.0 - (now - refused[0]))
        if address not in self._refused and len(self._refused) >= _MOST_ADDRESSES:
            self._refused.pop(next(iter(self._refused)))
        self._refused[address] = [*refused, now]
        self._told(self._operator(exchange), "refused: wrong token", exchange.path)
        return HttpFailure(
            401, "the admin token is missing or wrong", type="authentication_error", code="invalid_admin_token"
        )


# ------------------------------------------------------------------------------------------------------------ own requests
# A request's ID ends with a hash of its start under the secret salt of its key. So every worker can tell whose request it
# was, also after a restart, and nothing is stored.


def marked(key: Key, request_id: str) -> str:
    """Return the ID of a request of this key."""
    mark = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), key=key.salt.encode()[:64], digest_size=MARK_BYTES)
    return f"{request_id}-{mark.hexdigest()}"


def is_own(key: Key, request_id: str) -> bool:
    """Whether a request with this ID was made with this key.

    >>> ann, _ = Key.new("ann")
    >>> bob, _ = Key.new("bob")
    >>> own = marked(ann, "req-6b1f0c5ad2e94c3f8f0a1b2c")
    >>> is_own(ann, own), is_own(bob, own), is_own(ann, "req-6b1f0c5ad2e94c3f8f0a1b2c")
    (True, False, False)
    """
    start = request_id.rpartition("-")[0]
    own, given = marked(key, start), request_id
    return hmac.compare_digest(own.encode("utf-8", "surrogatepass"), given.encode("utf-8", "surrogatepass"))


# -------------------------------------------------------------------------------------------------------------- own models


def reachable(key: Key, config: StrategyConfig, model: str | None, task: str | None) -> frozenset[str] | None:
    """Return the models that a request of this key may call, however it reaches them; None: all.

    A key that lists models may call these, by name or through a task, tier or routing string. ``auto`` in its list allows
    whatever the profile chooses for a request that names no model, ``task:NAME`` the same for this task, and a router's name
    whatever this router chooses.
    """
    allowed = key.models
    if not allowed:
        return None
    if model is None:
        if "auto" in allowed or f"task:{task}" in allowed:
            return None
    elif model in allowed and not _models(config, model):
        return None
    return frozenset(name for entry in allowed for name in _models(config, entry))


def namable(key: Key, config: StrategyConfig, names: Sequence[str]) -> list[str]:
    """Return those values of ``model`` that a request of a key with a list of models may name and be answered."""
    own = frozenset(name for entry in key.models for name in _models(config, entry))
    found = []
    for name in names:
        models = _models(config, name)
        if name in key.models or (models and models <= own):
            found.append(name)
    return found


def _models(config: StrategyConfig, entry: str) -> frozenset[str]:
    """Return the models behind a role, model, tier or routing string; empty for anything else."""
    names = [entry]
    if is_routing_string(entry):
        try:
            tiers = parse_route(entry).tiers
            names = [tier.name if tier.name in config.tiers else tier.members[0].candidates[0].name for tier in tiers]
        except (MarkerError, RoutingError):
            return frozenset()
    try:
        return frozenset(spec.name for name in names for spec in config.resolve(name))
    except RoutingError:
        return frozenset()


# ------------------------------------------------------------------------------------------------- people behind a key


_USER_HEADERS = ("x-openwebui-user-email", "x-openwebui-user-name", "x-openwebui-user-id")
USER_HEADERS = frozenset(_USER_HEADERS)
_LONGEST_USER = 100


def user_of(headers: Mapping[str, str], fields: Mapping[str, Any]) -> str:
    """Return the label of the person for whom a request was made, as a front end names it; empty if it does not."""
    for name in _USER_HEADERS:
        if (found := headers.get(name)) is not None:
            return _label(found)
    extra, metadata = fields.get("extra"), fields.get("metadata")
    named = extra.get("user") if extra else None
    if named is None and metadata:
        named = metadata.get("user_id")
    return _label(named) if isinstance(named, str) else ""


def _label(text: str) -> str:
    return "".join(character for character in text[:_LONGEST_USER] if character.isprintable()).strip()
