"""Which web pages may use the service: checks of Host, Origin and content type; CORS; forwarded addresses.

A service without keys listens on this machine only, but every web page that a person of this machine opens can send
requests to it. A page cannot choose two headers, so they decide: ``Origin`` names the page's own server, and ``Host`` the
name by which the browser found the service (that of a stranger's domain pointed at this machine, for example). What a page
can send without asking first (a *simple* request) is never JSON, so bodies of another type are refused as well. With keys,
a page would need one; only the headers of CORS are left to do.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from workflow_composer.errors import ConfigError
from workflow_composer.server.exchange import Fields
from workflow_composer.server.failures import PERMISSION, HttpFailure

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._~%-]+)(?::(\d{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_READS = frozenset({"GET", "HEAD"})
_PREFLIGHT_SECONDS = "600"
_MULTIPART = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class WebGate:
    """Checks the headers of a request, before its body is needed.

    ``origins`` are the web origins that may use the service from a browser (`read_origins`). ``keyless``: no key is
    required, so only pages of this machine and of ``origins`` may send requests. ``files`` are the paths that take multipart
    bodies.
    """

    origins: frozenset[str] = frozenset()
    keyless: bool = False
    files: Collection[str] = ()

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> Fields:
        """Return the CORS headers of the reply. Raises `HttpFailure` 403 (Host, Origin) or 415 (content type)."""
        origin = headers.get("origin")
        allowed = origin is not None and self._allows(origin)
        if self.keyless:
            self._check_page(method, headers, origin, allowed=allowed)
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                self._check_type(path, headers.get("content-type", ""))
        return _cors(method, origin or "", headers) if allowed else ()

    def _allows(self, origin: str) -> bool:
        return bool(self.origins) and (ANY_ORIGIN in self.origins or _plain(origin) in self.origins)

    def _check_page(self, method: str, headers: Mapping[str, str], origin: str | None, *, allowed: bool) -> None:
        host = headers.get("host")
        if host is not None and not is_own_host(host) and not self._named(host):
            what = "without keys, this service answers requests to localhost only"
            raise _refused(what, "host_not_allowed", "serve with --keys, or with --cors for the origin of a proxy's pages")
        if allowed:
            return
        foreign = origin is not None and not is_own_host(_host_of(origin))
        if foreign or (headers.get("sec-fetch-site") == "cross-site" and not _is_a_link(method, headers)):
            remedy = "serve with --cors ORIGIN to allow it"
            raise _refused("web pages of this origin may not use the service", "origin_not_allowed", remedy)

    def _named(self, host: str) -> bool:
        """Whether an allowed origin has this host: its pages may use the service under their own name, too."""
        name = _without_port(host)
        return any(_without_port(_host_of(origin)) == name for origin in self.origins)

    def _check_type(self, path: str, content_type: str) -> None:
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
            return
        if kind == _MULTIPART and path in self.files:
            return
        message = "the request's content type is not JSON; send the header content-type: application/json"
        raise HttpFailure(415, message, code="unsupported_media_type")


def _is_a_link(method: str, headers: Mapping[str, str]) -> bool:
    """Whether the browser follows a link from another site, to the dashboard for example; that page cannot see where to."""
    return method in _READS and headers.get("sec-fetch-mode") == "navigate"


def _refused(message: str, code: str, remedy: str) -> HttpFailure:
    return HttpFailure(403, f"{message} ({remedy})", type=PERMISSION, code=code)


def _cors(method: str, origin: str, headers: Mapping[str, str]) -> Fields:
    found = [
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", "*"),
        ("vary", "Origin"),
    ]
    if method == "OPTIONS" and (wanted := headers.get("access-control-request-method")):
        found += [
            ("access-control-allow-methods", wanted),
            ("access-control-allow-headers", headers.get("access-control-request-headers", "content-type")),
            ("access-control-max-age", _PREFLIGHT_SECONDS),
        ]
        if headers.get("access-control-request-private-network") == "true":
            found.append(("access-control-allow-private-network", "true"))
    return found


def read_origins(texts: Collection[str], *, keyless: bool) -> frozenset[str]:
    """Return the origins of ``--cors`` in normal form. Raises `ConfigError` with the one that is none.

    >>> sorted(read_origins(["https://Chat.example:443", "http://localhost:3000"], keyless=True))
    ['http://localhost:3000', 'https://chat.example']
    """
    found = [text.strip() for given in texts for text in given.split(",")]
    for text in found:
        if text == ANY_ORIGIN and keyless:
            what = "without keys, --cors '*' would let every web page use the models"
            raise ConfigError(what, hint="name the origins, or serve with --keys")
        if text != ANY_ORIGIN and _ORIGIN.fullmatch(text.lower()) is None:
            raise ConfigError(
                f"--cors {text!r} is not an origin", hint="write scheme://host or scheme://host:port, without a path"
            )
    return frozenset(map(_plain, found))


@functools.lru_cache(maxsize=64)
def _plain(origin: str) -> str:
    """Return an origin in lower case without its scheme's default port, as browsers send it."""
    lower = origin.lower()
    scheme, _, place = lower.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return lower.removesuffix(f":{port}") if port and not place.endswith("]") else lower


def _host_of(origin: str) -> str:
    """Return host and port of an origin; empty for ``null`` and for anything that is no origin of the web."""
    found = _ORIGIN.fullmatch(origin.lower())
    return "" if found is None or found[1] not in _DEFAULT_PORTS else origin.partition("://")[2]


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host.strip().lower())


@functools.lru_cache(maxsize=64)
def is_own_host(host: str) -> bool:
    """Whether a Host header or an origin's host names this machine: ``localhost`` or a loopback address, with any port.

    >>> [is_own_host(host) for host in ("localhost:8080", "127.0.0.1", "[::1]:80", "rebound.example", "127.0.0.1.nip.io")]
    [True, True, True, False, False]
    """
    name = _without_port(host).removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# ------------------------------------------------------------------------------------------------------------- addresses


def read_proxies(texts: Collection[str]) -> tuple[Network, ...]:
    """Return the networks of ``--trusted-proxy``. Raises `ConfigError` with the one that is none.

    >>> [str(network) for network in read_proxies(["10.0.0.7", "fd00::/8"])]
    ['10.0.0.7/32', 'fd00::/8']
    """
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            hint = "write an address or a network, such as 10.0.0.7 or 10.0.0.0/24"
            raise ConfigError(f"--trusted-proxy {text!r} is not an address: {error}", hint=hint) from None
    return tuple(found)


def sender(client: str, headers: Mapping[str, str], proxies: Collection[Network]) -> str:
    """Return the address that a request came from: behind trusted proxies, the last address that none of them has.

    ``client`` is the address of the connection. Without trusted proxies, ``X-Forwarded-For`` is a stranger's word.
    """
    told = headers.get("x-forwarded-for", "").split(",") if proxies else []
    found = client
    while told and _trusted(found, proxies):
        forwarded = _address(told.pop())
        if forwarded is None:
            break
        found = str(forwarded)
    return found


def _trusted(client: str, proxies: Collection[Network]) -> bool:
    address = _address(client)
    return address is not None and any(address in network for network in proxies)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address that a proxy forwarded, which may be in brackets or with a port; None if it is none."""
    name = text.strip()
    if name.startswith("[") or name.count(":") == 1:
        name = _without_port(name).strip("[]")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def whole_client(address: str) -> str:
    """Return what one client can hold of an address: an IPv6 client has a whole /64 network.

    >>> whole_client("2001:db8::1:2"), whole_client("10.0.0.7")
    ('2001:db8::/64', '10.0.0.7')
    """
    found = _address(address)
    if found is None or found.version == 4:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False))
