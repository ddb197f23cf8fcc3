"""Converts a profile as written into the normal form that the models accept.

Short forms are written out (``fallback`` as a mapping, routers by name, ``api_key``), ``${NAME}`` is expanded and paths
become absolute. A faulty value is reported and dropped, so that each fault is reported once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from workflow_composer.config.profile_models import REGISTERED_ROLE, Expanded, ModelSpec, ProfilePart, RouterSpec, as_written
from workflow_composer.config.redaction import looks_like_secret
from workflow_composer.config.yaml_source import KeyPath, Problems, one_of, shown
from workflow_composer.errors import nearest

VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")
MODEL_KEYS = tuple(key for key in ModelSpec.model_fields if key != "name")
FALLBACK_KEYS = ("primary", "secondary")

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_DROP = object()
_PLACES = "a URL such as http://localhost:8001/v1, registry:ROLE, or a list of them"

Expanding = tuple[Callable[[KeyPath], bool], str]
"""Where ``${NAME}`` is expanded: a predicate on paths, and its description in words."""


def as_tree(value: Any) -> Any:
    """Convert Python values, including parts of a profile, to what the YAML reader returns."""
    if isinstance(value, RouterSpec):
        return {value.name: as_tree(value.settings)} if value.settings else value.name
    if isinstance(value, ProfilePart):
        given = {key: getattr(value, key) for key in type(value).model_fields if key != "name"}
        return {key: as_tree(item) for key, item in given.items() if item is not None}
    if isinstance(value, Mapping):
        return {key: as_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(as_tree(item) for item in value)
    return as_written(value)


# ------------------------------------------------------------------------------------------------------------- secrets


def without_secrets(value: Any, problems: Problems, expanding: Expanding | None = None, path: KeyPath = ()) -> Any:
    """Return the tree without values and keys that look like a secret, and without ``${NAME}`` where it is not expanded.

    ``expanding`` says where it is expanded; default: the rules of a strategy profile.
    """
    expanding = expanding or _IN_PROFILES
    if isinstance(value, Mapping):
        kept = {key: _safe_item(key, item, problems, expanding, path) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not _DROP}
    if isinstance(value, tuple):
        items = tuple(without_secrets(item, problems, expanding, (*path, i)) for i, item in enumerate(value))
        return _drop(problems, path) if _DROP in items else items
    if isinstance(value, str):
        return _safe_text(value, problems, expanding, path)
    return value


def _safe_item(key: Any, value: Any, problems: Problems, expanding: Expanding, path: KeyPath) -> Any:
    here = (*path, key)
    if not isinstance(key, str):
        problems.add(path, f"found the key {key!r}, which is not text", "keys must be text")
        return _DROP
    if looks_like_secret(key):
        problems.add(here, "this key looks like a secret", "keep secrets in environment variables, never in a profile")
        return _drop(problems, here)
    return without_secrets(value, problems, expanding, here)


def _safe_text(value: str, problems: Problems, expanding: Expanding, path: KeyPath) -> Any:
    if path[-1:] == ("api_key",):
        return value  # read, and never repeated, by `_api_key`
    if looks_like_secret(value):
        if "://" in value:
            problems.add(path, "the URL contains a password", "write the password as ${NAME}")
        elif path[-1:] == ("api_key_env",):
            problems.add(
                path, "the value looks like the key itself", "give the name of the environment variable that holds it"
            )
        else:
            problems.add(path, "the value looks like a secret", "keep secrets in environment variables")
        return _drop(problems, path)
    if "${" in value and not expanding[0](path) and path != ("description",):
        problems.add(path, "${NAME} is not expanded here", f"use it only in {expanding[1]}")
        return _drop(problems, path)
    return value


def _expands(path: KeyPath) -> bool:
    if path[:1] == ("models",):
        return path[2:] in {("base_url",), ("path",)}
    return path[:1] in {("vllm_endpoints",), ("registry",), ("plugins",), ("workflows",)}


_IN_PROFILES: Expanding = (_expands, "URLs, paths and api_key")


def _drop(problems: Problems, path: KeyPath) -> Any:
    problems.source.faulty.add(path)
    return _DROP


# ---------------------------------------------------------------------------------------------------------- short forms


class NormalForm:
    """Converts a tree to the data of `StrategyConfig`. ``environ`` gives the values of ``${NAME}``."""

    def __init__(self, problems: Problems, environ: Mapping[str, str]) -> None:
        self.problems = problems
        self.source = problems.source
        self.environ = environ

    def of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data; the models report values of the wrong type."""
        rules: dict[str, Callable[[Any], Any]] = {
            "vllm_endpoints": self._endpoints,
            "registry": lambda value: self._path(value, ("registry",), bare=False),
            "models": self._models,
            "task_contexts": self._contexts,
            "fallback": self._fallback,
            "routers": self._routers,
            "plugins": lambda value: self._files(value, "plugins"),
            "workflows": lambda value: self._files(value, "workflows"),
        }
        found = {key: rules[key](value) if key in rules else value for key, value in tree.items()}
        return {key: value for key, value in found.items() if value is not _DROP}

    def _files(self, value: Any, key: str) -> Any:
        files = (value,) if isinstance(value, str) else value
        if not isinstance(files, tuple):
            return value  # reported by the model
        places = [self._path(place, (key, index), bare=False) for index, place in enumerate(files)]
        return tuple(place for place in places if place is not _DROP)

    def _endpoints(self, value: Any) -> Any:
        return self._each(value, self._servers, ("vllm_endpoints",))

    def _servers(self, value: Any, path: KeyPath) -> Any:
        """Normalize one server or a list of them."""
        if not isinstance(value, tuple):
            return self._server(value, path)
        if not value:
            self.problems.add(path, "the list is empty", "list at least one server, or remove the role")
        places = tuple(self._server(item, (*path, index)) for index, item in enumerate(value))
        return _drop(self.problems, path) if _DROP in places or not places else places

    def _server(self, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, str):
            self.problems.add(path, shown(value, path, self.source.written.get(path)), f"allowed: {_PLACES}")
            return _drop(self.problems, path)
        kind, _, role = value.partition(":")
        near = nearest(kind, ("registry",))
        if kind == "registry" and REGISTERED_ROLE.fullmatch(role):
            return value
        if kind != "registry" and not (near and REGISTERED_ROLE.fullmatch(role) and not role.isdigit()):
            return self._url(value, path)
        fault = f"{role!r} is not a valid role name" if kind == "registry" else "it is neither a URL nor registry:ROLE"
        near = "" if kind == "registry" else near
        self.problems.add(
            path, f"{shown(value, path)}; {fault}", "allowed: registry:ROLE, such as registry:coder", hint=near
        )
        return _drop(self.problems, path)

    def _contexts(self, value: Any) -> Any:
        return self._each(value, lambda names, path: (names,) if isinstance(names, str) else names, ("task_contexts",))

    def _models(self, value: Any) -> Any:
        return self._each(value, self._model, ("models",))

    def _each(self, value: Any, rule: Callable[[Any, KeyPath], Any], path: KeyPath) -> Any:
        if not isinstance(value, Mapping):
            return value
        results = {key: rule(item, (*path, key)) for key, item in value.items()}
        return {key: item for key, item in results.items() if item is not _DROP}

    def _model(self, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, Mapping):
            return value
        data = {key: self._model_key(key, item, value, (*path, key)) for key, item in value.items()}
        if "api_key" in data:
            name = data.pop("api_key")
            if name is not _DROP:
                data["api_key_env"] = name
        return {"name": str(path[-1]), **{key: item for key, item in data.items() if item is not _DROP}}

    def _model_key(self, key: str, value: Any, model: Mapping[str, Any], path: KeyPath) -> Any:
        if key == "name":
            self.problems.add(path, "unknown key", f"the model's name is {path[1]!r}; {one_of(MODEL_KEYS)}")
            return _DROP
        if key == "api_key":
            return self._api_key(value, path)
        if key == "base_url":
            return self._url(value, path)
        if key == "path":
            return self._path(value, path, bare=model.get("backend") == "embedded")
        return value

    def _api_key(self, value: Any, path: KeyPath) -> Any:
        match = VARIABLE.fullmatch(value) if isinstance(value, str) else None
        if match:
            return match[1]
        self.problems.add(
            path, "a profile must not contain the key itself", "write api_key: ${NAME} in capitals, or api_key_env: NAME"
        )
        return _DROP

    def _fallback(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for key in value:
            if key not in FALLBACK_KEYS:
                near = nearest(key, FALLBACK_KEYS)
                self.problems.add(("fallback", key), "unknown key", one_of(FALLBACK_KEYS), hint=near)
        if "secondary" in value and "primary" not in value and ("fallback", "primary") not in self.source.faulty:
            self.problems.add(("fallback",), "secondary is set without primary", "set primary first")
        keys = [key for key in FALLBACK_KEYS if key in value]
        for index, key in enumerate(keys):
            self.source.same(("fallback", index), ("fallback", key))
        return tuple(value[key] for key in keys)

    def _routers(self, value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        specs = [self._router(item, ("routers", index)) for index, item in enumerate(value)]
        return tuple(spec for spec in specs if spec is not None)

    def _router(self, value: Any, path: KeyPath) -> dict[str, Any] | None:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and len(value) == 1:
            name, settings = next(iter(value.items()))
            if settings is None or isinstance(settings, Mapping):
                return {"name": name, "settings": settings or {}}
            self.problems.add((*path, name), shown(settings, (*path, name)), "a router's settings must be a mapping")
            return None
        what = f"found a mapping of {len(value)} keys" if isinstance(value, Mapping) else shown(value)
        self.problems.add(path, what, "write a router as NAME or 'NAME: {SETTINGS}'")
        return None

    # -------------------------------------------------------------------------------------------- URLs, paths, variables

    def _expand(self, value: str, path: KeyPath) -> Any:
        text = filled_in(value, path, self.problems, self.environ)
        return _DROP if text is None else text

    def _url(self, value: Any, path: KeyPath) -> Any:
        if not isinstance(value, str):
            return value
        url = self._expand(value, path)
        if url is _DROP:
            return _DROP
        fault = url_fault(url)
        if fault is None:
            return Expanded(url, value) if url != value else url
        what = "found a URL (not shown)" if "@" in value else shown(value, path)
        after = " (after ${NAME} was expanded)" if url != value else ""
        self.problems.add(path, f"{what}; {fault}{after}", "allowed: a URL such as http://localhost:8001/v1")
        return _drop(self.problems, path)

    def _path(self, value: Any, path: KeyPath, *, bare: bool) -> Any:
        if not isinstance(value, str) or not value:
            return value
        place = self._expand(value, path)
        if place is _DROP:
            return _DROP
        if "\0" in place:
            self.problems.add(path, "the path contains a NUL character", "remove it")
            return _drop(self.problems, path)
        if bare and not re.search(r"[/\\]|^\.", place):
            return Expanded(place, value) if place != value else place  # the name of a shipped checkpoint
        full = os.path.abspath(self.source.directory / os.path.expanduser(place))  # noqa: PTH100, PTH111  # keeps symlinks; no error without a home
        return Expanded(full, value)


def filled_in(value: str, path: KeyPath, problems: Problems, environ: Mapping[str, str]) -> str | None:
    """Return the text with each ``${NAME}`` expanded; report the faults and return None if one cannot be."""
    rest = VARIABLE.sub("", value)
    if "${" in rest:
        problems.add(path, "found '${' without a variable name", "write ${NAME} with capitals, digits and underscores")
    missing = [name for name in dict.fromkeys(VARIABLE.findall(value)) if not environ.get(name)] if "${" not in rest else []
    for name in missing:
        problems.add(path, f"the environment variable {name} is not set", f"set it, or replace ${{{name}}} by its value")
    if missing or "${" in rest:
        problems.source.faulty.add(path)
        return None
    return VARIABLE.sub(lambda match: environ[match[1]], value)


def url_fault(url: str) -> str | None:
    """Return why this is not a valid base URL, without repeating it; None if it is valid."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port is malformed"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "it contains a space or another character that is not allowed in URLs"
    if parts.scheme not in {"http", "https"}:
        return "it does not start with http:// or https://"
    if not host or not (_HOST.fullmatch(host) or ":" in host):
        return "it has no valid host"
    if port == 0:
        return "its port is 0"
    return "it has a query or a fragment" if parts.query or parts.fragment or url[-1] in "?#" else None
