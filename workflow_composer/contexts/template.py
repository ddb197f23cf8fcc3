"""A context template: a Markdown file with YAML front matter.

The text depends on the file alone: line ends become line feeds and surrounding blank lines are removed. Dates, locales and
settings do not affect it, because prefix caching requires identical tokens.
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
"""Maximum size in bytes: far beyond any model's context, and it keeps a wrong file out of memory."""

_KEYS = ("name", "version", "description")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,30}[A-Za-z0-9])?")
_HEAD = "---\nname: my-context\nversion: 1\ndescription: What it is for.\n---"
_CHARACTERS_PER_TOKEN = 4.0
_PIN_DIGITS = 12


@dataclass(frozen=True)
class Template:
    """A template as read. ``reference`` is its name, or its path if it was given by path."""

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
        """``name@version#digest``: a reference to exactly this text."""
        return f"{self.reference}@{self.version}#{self.digest[:_PIN_DIGITS]}"

    @property
    def tokens(self) -> int:
        """Estimated number of tokens, at four characters each; the exact number depends on the model's tokenizer."""
        return round(len(self.text) / _CHARACTERS_PER_TOKEN)

    @classmethod
    def read(cls, path: Path, reference: str = "") -> Template:
        """Read a file. Raises `ContextError` with its path if it is missing or not a template."""
        head, text = _parts(_content(path), path)
        found = _head(head, path)
        if not text:
            raise ContextError(f"{path}: no text after the front matter", hint="write what the models should know")
        return cls(**found, text=text, source=path, reference=reference or found["name"])


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with invalid characters
        reason = getattr(error, "strerror", None) or error
        raise ContextError(f"cannot read {str(path)!r}: {reason}", hint="see `contexts list`") from None
    if len(data) > LARGEST:
        raise ContextError(f"{path} has more than {LARGEST} bytes", hint="keep a context to a page or two of text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContextError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            hint="convert it, for example with: iconv -f LATIN1 -t UTF-8",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parts(content: str, path: Path) -> tuple[str, str]:
    """Split the content into front matter and text, without surrounding blank lines."""
    match = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", content, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ContextError(
            f"{path}:1: the file does not start with front matter between two --- lines", hint=f"write\n{_HEAD}"
        )
    return match[1], re.sub(r"\A(?:[ \t]*\n)+", "", content[match.end() :]).rstrip()


def _head(text: str, path: Path) -> dict[str, str]:
    """Parse name, version and description. Raises `ContextError` for missing, unknown or malformed keys."""
    import yaml

    try:
        # Every scalar stays text: version 1.10 is not 1.1.
        head: Any = yaml.load(text, yaml.BaseLoader)  # noqa: S506  # it makes only text, lists and mappings
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark is not None else 1
        raise ContextError(f"{path}:{line}: the front matter is not valid YAML", hint=f"write\n{_HEAD}") from None
    if not isinstance(head, dict) or any(not isinstance(head.get(key), str) or not head[key].strip() for key in _KEYS):
        raise ContextError(f"{path}: the front matter must have {', '.join(_KEYS)}, each as text", hint=f"write\n{_HEAD}")
    if unknown := sorted(str(key) for key in head if key not in _KEYS):
        raise ContextError(f"{path}: unknown key {unknown[0]!r} in the front matter", hint=f"allowed: {', '.join(_KEYS)}")
    for key, form in (("name", _NAME), ("version", _VERSION)):
        if not form.fullmatch(head[key]):
            raise ContextError(f"{path}: {key} {head[key]!r} contains characters that are not allowed")
    return {"name": head["name"], "version": head["version"], "description": " ".join(head["description"].split())}
