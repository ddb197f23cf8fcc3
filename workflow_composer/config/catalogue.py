"""The built-in catalogue of cloud models: where each is reached, what it costs as of a written date, when it was retired.

The data are in ``catalogue.toml`` beside this module, with their sources. A profile may name these models, and overrides
what it writes itself (`workflow_composer.config.cloud_names`).
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

FILE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True, slots=True)
class CloudModel:
    """A cloud model that profiles may name.

    ``model`` is its id at ``base_url``, ``api_key_env`` the environment variable with the key. Prices are dollars per
    million tokens, as ``source`` (a page of the provider) showed them on ``priced_on``. From ``retired_on`` on, the provider
    no longer answers; it recommends ``successor``, another model of the catalogue. ``aliases`` are further names of it. With
    ``cloud``, it is one of the models that the target ``cloud`` means in a profile that names no cloud model.
    """

    name: str
    model: str
    base_url: str
    api_key_env: str
    input_price: float
    output_price: float
    context_length: int
    priced_on: datetime.date
    retired_on: datetime.date | None
    source: str
    aliases: tuple[str, ...]
    cached_input_price: float | None = None
    capabilities: tuple[str, ...] = ()
    successor: str | None = None
    cloud: bool = False
    provider: str = ""

    @property
    def host(self) -> str:
        """The host of its API."""
        return urlsplit(self.base_url).hostname or ""

    def is_retired(self, today: datetime.date | None = None) -> bool:
        """Whether the provider no longer answers it on this day (default: today)."""
        return self.retired_on is not None and (today or datetime.date.today()) >= self.retired_on

    def in_service(self, today: datetime.date | None = None) -> CloudModel:
        """Return itself, or the model that has taken its place; itself too if none has."""
        found: CloudModel = self
        while found.successor is not None and found.is_retired(today):
            found = CATALOGUE[found.successor]
        return found

    def keys(self) -> dict[str, Any]:
        """Return the keys and values of a profile's entry in ``models``."""
        found: dict[str, Any] = {
            "backend": "openai",
            "model": self.model,
            "base_url": self.base_url,
            "api_key_env": self.api_key_env,
            "input_price": self.input_price,
            "output_price": self.output_price,
            "cached_input_price": self.cached_input_price,
            "context_length": self.context_length,
            "capabilities": self.capabilities,
        }
        return {key: value for key, value in found.items() if value is not None}


def _read(path: Path = FILE) -> Iterator[CloudModel]:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, entry in data["models"].items():
        merged: dict[str, Any] = {"model": name, "aliases": (), "retired_on": None} | data["providers"][entry["provider"]]
        merged |= entry
        values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()}
        yield CloudModel(name, **values)


CATALOGUE: Mapping[str, CloudModel] = MappingProxyType({model.name: model for model in _read()})
"""Name -> model, in the order of the file."""

_PROVIDERS = frozenset(model.provider for model in CATALOGUE.values())
_BY_NAME = {
    **{model.model: model for model in CATALOGUE.values()},
    **{alias: model for model in CATALOGUE.values() for alias in model.aliases},
    **CATALOGUE,
}


def find(name: str) -> CloudModel | None:
    """Return the model of this name, alias or provider's id; None if the catalogue has none.

    Capitals do not matter, and the provider may stand before the name.

    >>> find("claude").name, find("deepseek-chat").name, find("unheard-of")
    ('claude-sonnet-5-5', 'deepseek-v3', None)
    >>> find("openai/GPT-4o").name
    'gpt-4o'
    """
    bare = name.lower()
    provider, _, rest = bare.partition("/")
    return _BY_NAME.get(rest if rest and provider in _PROVIDERS else bare)


def clouds() -> tuple[CloudModel, ...]:
    """Return what the target ``cloud`` means where a profile names no cloud model, in the catalogue's order."""
    return tuple(model for model in CATALOGUE.values() if model.cloud)


def names() -> tuple[str, ...]:
    """Return every name that `find` knows."""
    return tuple(_BY_NAME)
