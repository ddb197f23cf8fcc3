"""API keys with budgets, rate limits and permissions. Only their hashes are stored on disk.

A key is ``wfc-ID-SECRET``. The secret has 256 random bits, so a fast keyed hash suffices: dictionary attacks are infeasible.
The public ID locates the record; a key with an unknown ID is hashed and compared as well, to take the same time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from workflow_composer.errors import ConfigError
from workflow_composer.server.failures import PERMISSION, HttpFailure
from workflow_composer.storage.locks import locked
from workflow_composer.storage.replacing import replace_file

Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = ("day", "month", "total")

PREFIX = "wfc-"
FEEDBACK, ADMIN = "feedback", "admin"
RIGHTS = (FEEDBACK, ADMIN)
"""``feedback``: grade answers to one's own requests. ``admin``: all that the admin token allows."""
VERSION = 1
LONGEST_ID = 32
"""Bytes reserved for an ID in a ledger record."""
_LOOK_EVERY = 1.0
"""Seconds between checks of the file for changes."""
_MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record.

    ``budget`` is in dollars per ``period`` (UTC); ``budgets`` are further ones, each a period and dollars. None or empty: no
    limit. ``concurrent`` limits the requests in progress, ``most_calls`` the calls of one request to models (None: as the
    service's settings say). ``user`` and ``team`` are labels for reports. Times are epoch seconds. ``rights`` are some of
    `RIGHTS`; a record without the field is from before there were any, and keeps the right to grade.
    """

    id: str
    name: str
    salt: str
    digest: str
    created: float
    budget: float | None = None
    period: Period = "month"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    most_calls: int | None = None
    strategies: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    expires: float | None = None
    revoked: bool = False
    budgets: tuple[tuple[Period, float], ...] = ()
    tokens_per_day: int | None = None
    concurrent: int | None = None
    user: str = ""
    team: str = ""
    rights: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[tuple[Period, float], ...]:
        """All budgets: periods and dollars."""
        return self.budgets if self.budget is None else ((self.period, self.budget), *self.budgets)

    @classmethod
    def new(cls, name: str, *, now: float | None = None, **limits: Any) -> tuple[Key, str]:
        """Return a new record, and the key itself, which is not stored."""
        identity, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
        created = time.time() if now is None else now
        return cls(identity, name, salt, _digest(salt, secret), created, **limits), f"{PREFIX}{identity}-{secret}"

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Key:
        """Return a record from file data. Raises ValueError, TypeError."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
        lists = {name: tuple(_names(name, data.get(name))) for name in ("strategies", "models")}
        lists["rights"] = tuple(_names("rights", data.get("rights", [FEEDBACK])))
        if unknown := set(lists["rights"]).difference(RIGHTS):
            raise ValueError(f"unknown right {sorted(unknown)[0]!r}; rights are {', '.join(RIGHTS)}")
        key = cls(**{**data, **lists, "budgets": _budgets(data.get("budgets"))})
        if not all(isinstance(value, str) and value for value in (key.id, key.name, key.salt, key.digest)):
            raise ValueError("id, name, salt and digest must be strings")
        if not key.id.isalnum() or len(key.id) > LONGEST_ID or not f"{key.id}{key.salt}{key.digest}".isascii():
            raise ValueError(f"id must be at most {LONGEST_ID} letters and digits; id, salt and digest must be ASCII")
        if not all(isinstance(label, str) for label in (key.user, key.team)):
            raise TypeError("user and team must be strings")
        if not isinstance(key.revoked, bool):
            raise TypeError("revoked must be true or false")
        if key.period not in {"day", "month", "total"}:
            raise ValueError("period must be day, month or total")
        counts = (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day, key.concurrent, key.most_calls)
        money = [dollars for _, dollars in key.limits]
        numbers = (key.created, key.expires, *money, *counts)
        if not all(value is None or (isinstance(value, (int, float)) and value >= 0) for value in numbers):
            raise ValueError("limits and times must be non-negative numbers")
        if 0 in (*money, *counts):  # 0 would be read as no limit
            raise ValueError("limits must be greater than 0; revoke the key to block it")
        return key

    def check(self, strategy: str) -> None:
        """Check that the key may use the strategy. Raises `HttpFailure` 403."""
        if self.strategies and strategy not in self.strategies:
            message = f"this API key is not allowed to use the strategy {strategy!r}"
            raise HttpFailure(403, message, type=PERMISSION, code="strategy_not_allowed")


def _budgets(found: Any) -> tuple[tuple[Period, float], ...]:
    pairs = [] if found is None else list(found.items()) if isinstance(found, dict) else found
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise ValueError("budgets must be pairs of a period and dollars")
    if not all(period in PERIODS for period, _ in pairs):
        raise ValueError("the period of a budget must be day, month or total")
    return tuple((period, dollars) for period, dollars in pairs)


def _names(name: str, found: Any) -> list[str]:
    names = [] if found is None else found
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"{name} must be a list of strings")
    return names


def _digest(salt: str, secret: str) -> str:
    return hmac.new(salt.encode(), secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


_NOBODY = Key("", "", "0" * 32, "0" * 64, 0.0)


# ------------------------------------------------------------------------------------------------------------ the file


def read_keys(path: Path) -> dict[str, Key]:
    """Return all records by ID. Raises `ConfigError` with the location of the error, also if the file is missing."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"keys file {path} not found", hint=f"create a key: keys new NAME --file {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return _parsed(text, path)


def _parsed(text: bytes, path: Path) -> dict[str, Key]:
    hint = "restore it from a backup, or create new keys in another file"
    try:
        data = json.loads(text)
        records, version = data["keys"], data["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"{path}: not a keys file{place}", hint=hint) from None
    if version != VERSION or not isinstance(records, list):
        raise ConfigError(f"{path}: unsupported version {version!r} of the keys file", hint=hint)
    found: dict[str, Key] = {}
    for number, record in enumerate(records):
        try:
            key = Key.read(record)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: keys[{number}]: {error}", hint=hint) from None
        if key.id in found:
            raise ConfigError(f"{path}: keys[{number}]: duplicate id {key.id!r}", hint=hint)
        found[key.id] = key
    return found


def change_keys(path: Path, change: Callable[[dict[str, Key]], None]) -> None:
    """Read, change and atomically replace the file under a lock.

    Raises `ConfigError`, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        keys = read_keys(path) if path.exists() else {}
        change(keys)
        text = json.dumps({"version": VERSION, "keys": [asdict(key) for key in keys.values()]}, indent=1) + "\n"
        _parsed(text.encode(), path)  # an unreadable file would lock out every key
        replace_file(path, text, mode=0o600)


# ----------------------------------------------------------------------------------------------------------- the ring


class KeyRing:
    """The keys of a file, reloaded when it changes. Raises `ConfigError` if it is missing or damaged.

    If it is damaged while the service runs, the last valid keys stay in use, and ``report`` is called once.
    """

    def __init__(
        self, path: Path, *, report: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._report = report
        self._clock = clock
        self._stamp = (
            self._look() if path.exists() else (0, 0, 0)
        )  # before reading, so that a concurrent change is noticed later
        self._keys = read_keys(path)
        self._looked_at = clock()
        self._pepper = secrets.token_bytes(32)
        self._known: dict[bytes, Key] = {}

    @property
    def any_budget(self) -> bool:
        """Whether a key has a budget in dollars."""
        return any(key.limits for key in self._keys.values())

    @property
    def keys(self) -> Collection[Key]:
        """All keys of the file, as last read; revoked and expired ones, too."""
        return self._keys.values()

    def identify(self, presented: str | None) -> Key:
        """Return the record of a key. Raises `HttpFailure` 401 if it is missing, invalid, revoked or expired."""
        now = self._clock()
        if not 0.0 <= now - self._looked_at < _LOOK_EVERY:  # a clock set back must not keep revoked keys valid
            self._looked_at = now
            self._refresh()
        if not presented:
            raise _refused("the API key is missing; send it as Authorization: Bearer wfc-...")
        seen = hashlib.blake2b(presented.encode("utf-8", "surrogatepass"), digest_size=16, key=self._pepper).digest()
        key = self._known.get(seen)
        if key is None:
            key = self._checked(presented)
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[seen] = key
        if key.expires is not None and key.expires <= now:
            raise _refused("the API key has expired")
        return key

    def known(self, identity: str) -> Key:
        """Return the record of a key by its ID, for work that goes on without the key itself. Raises as `identify`."""
        now = self._clock()
        if not 0.0 <= now - self._looked_at < _LOOK_EVERY:
            self._looked_at = now
            self._refresh()
        key = self._keys.get(identity)
        if key is None or key.revoked:
            raise _refused("the API key is not valid any more")
        if key.expires is not None and key.expires <= now:
            raise _refused("the API key has expired")
        return key

    def _checked(self, presented: str) -> Key:
        identity, _, secret = presented.removeprefix(PREFIX).partition("-")
        key = self._keys.get(identity, _NOBODY) if presented.startswith(PREFIX) else _NOBODY
        fits = hmac.compare_digest(_digest(key.salt, secret), key.digest)
        if not fits or key is _NOBODY or key.revoked:
            raise _refused("the API key is not valid")
        return key

    def _look(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_ctime_ns, found.st_size, found.st_ino  # chmod changes ctime too: the file may now be readable

    def _refresh(self) -> None:
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = read_keys(self._path)
        except (OSError, ConfigError) as error:
            said = error.message if isinstance(error, ConfigError) else (error.strerror or str(error))
            if self._stamp != (0, 0, 0):
                self._report(f"cannot read the keys file, the previous keys stay in use: {said}")
            self._stamp = self._stamp if isinstance(error, ConfigError) else (0, 0, 0)
        else:
            self._known.clear()


def presented(headers: Mapping[str, str]) -> str | None:
    """Return the API key of a request: its bearer token or ``x-api-key``."""
    given = headers.get("authorization")
    if given is not None and given[:7].lower() == "bearer ":
        return given[7:].strip()
    return headers.get("x-api-key")


def _refused(message: str) -> HttpFailure:
    return HttpFailure(401, message, type="authentication_error", code="invalid_api_key")
