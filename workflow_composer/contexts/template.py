"""One context template: a Markdown file with a small head, and the text that is made of it.

The text depends on nothing but the file's own: line ends become line feeds, blank lines around it go, and that is all. No
date, no locale, no setting touches it, for a server recognises a prompt's beginning by its exact tokens.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_composer.errors import ContextError

SUFFIX = ".md"
LARGEST = 1 << 20
"""Bytes; far more than any model reads, and what keeps a file named by mistake out of memory."""

_KEYS = ("name", "version", "description")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?")
_HEAD = "---\nname: my-context\nversion: 1\ndescription: What it is for.\n---"
_CHARACTERS_PER_TOKEN = 4.0
_PIN_DIGITS = 12


@dataclass(frozen=True)
class Template:
    """A template as it was read. ``reference`` is what finds it again: its name, or its path where it was named by path."""

    name: str
    version: str
    description: str
    text: str
    source: Path
    reference: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def pin(self) -> str:
        """``name@version#digest``: a reference that stands for exactly this text, or for nothing."""
        return f"{self.reference}@{self.version}#{self.digest[:_PIN_DIGITS]}"

    @property
    def tokens(self) -> int:
        """Roughly how many tokens the text has, at four characters each; a model's own tokenizer decides."""
        return round(len(self.text) / _CHARACTERS_PER_TOKEN)

    @classmethod
    def read(cls, path: Path, reference: str = "") -> Template:
        """Read a file. Raises `ContextError`, naming the place, where it is missing or is no template."""
        head, text = _parts(_content(path), path)
        found = _head(head, path)
        if not text:
            raise ContextError(f"{path}: there is no text below the head", hint="write what the models should know")
        return cls(**found, text=text, source=path, reference=reference or found["name"])


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with characters that none can have
        reason = getattr(error, "strerror", None) or error
        raise ContextError(f"cannot read {str(path)!r}: {reason}", hint="see `contexts list`") from None
    if len(data) > LARGEST:
        raise ContextError(f"{path} has more than {LARGEST} bytes", hint="a context is a page or two of text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContextError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            hint="convert it, for example with: iconv -f LATIN1 -t UTF-8",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parts(content: str, path: Path) -> tuple[str, str]:
    """The head and the text, without blank lines around either."""
    match = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", content, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ContextError(f"{path}:1: the file does not begin with a head between two lines ---", hint=f"write\n{_HEAD}")
    return match[1], re.sub(r"\A(?:[ \t]*\n)+", "", content[match.end() :]).rstrip()


def _head(text: str, path: Path) -> dict[str, str]:
    """Name, version and description. Raises `ContextError` for what is missing, unknown or of another form."""
    import yaml

    try:
        # Every scalar stays the text that it is written as: 1.10 is a version of its own, not 1.1.
        head: Any = yaml.load(text, yaml.BaseLoader)  # noqa: S506  # it makes nothing but texts, lists and mappings
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark is not None else 1
        raise ContextError(f"{path}:{line}: the head is not valid YAML", hint=f"write\n{_HEAD}") from None
    if not isinstance(head, dict) or any(not isinstance(head.get(key), str) or not head[key].strip() for key in _KEYS):
        raise ContextError(f"{path}: the head must have {', '.join(_KEYS)}, each a text", hint=f"write\n{_HEAD}")
    if unknown := sorted(str(key) for key in head if key not in _KEYS):
        raise ContextError(f"{path}: the head has an unknown key {unknown[0]!r}", hint=f"allowed: {', '.join(_KEYS)}")
    for key, form in (("name", _NAME), ("version", _VERSION)):
        if not form.fullmatch(head[key]):
            raise ContextError(f"{path}: {key} {head[key]!r} has other characters than letters, digits, - and _")
    return {"name": head["name"], "version": head["version"], "description": " ".join(head["description"].split())}
