"""Lookup of context templates. A reference is a name or a path, optionally pinned to a version and a digest.

Examples: ``file-formats``, ``file-formats@1``, ``file-formats@1#2f0c9a7be410``, ``./mine.md``. Names are searched like those
of profiles: in ``config/contexts/`` of the working directory, in the user's configuration directory, in the package.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_composer.errors import ContextError, nearest

# ---------------------------------------------------------------------------------------------------------------- template
#
# A context template: a Markdown file with YAML front matter.
#
# The text depends on the file alone: line ends become line feeds and surrounding blank lines are removed. Dates, locales and
# settings do not affect it, because prefix caching requires identical tokens.


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


_REFERENCE = re.compile(r"(?P<place>.+?)(?:@(?P<version>[A-Za-z0-9._-]+))?(?:#(?P<digest>[0-9a-f]{8,64}))?", re.DOTALL)


def search_path(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the folders to search for a template, in order: working directory, user, package."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # no error without a home
    return (Path("config/contexts"), Path(home) / "workflow-composer" / "contexts", shipped())


def shipped() -> Path:
    """Return the folder of the templates shipped with the package."""
    return Path(__file__).parent / "shipped"


class Library:
    """Templates by reference. Each file is read once, so a reference gives the same text for the life of the library.

    ``search`` replaces the folders of `search_path`; relative paths are relative to ``base``.
    """

    def __init__(
        self,
        search: Sequence[Path] | None = None,
        *,
        base: Path = Path(),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._search = tuple(search_path(environ) if search is None else search)
        self._base = base
        self._read: dict[Path, Template] = {}

    def get(self, reference: str) -> Template:
        """Return the template of a reference.

        Raises `ContextError` if it is missing or faulty, or if its version or digest differs from the pinned one.
        """
        place, version, digest = _split(reference)
        found = self._at(place)
        if version is not None and version != found.version:
            raise ContextError(
                f"context {reference!r} is pinned to version {version}, but {found.source} is version {found.version}",
                hint=f"pin {found.pin}, or put version {version} before it in the search order",
            )
        if digest is not None and not found.digest.startswith(digest):
            raise ContextError(
                f"context {reference!r}: the text of {found.source} has changed; its digest is now {found.digest[:12]}",
                hint="give a changed text a new version",
            )
        return found

    def pins(self, references: Iterable[str]) -> tuple[str, ...]:
        """Return the references, each pinned to its current text. Raises `ContextError`."""
        return tuple(self.get(reference).pin for reference in references)

    def files(self) -> dict[str, list[Path]]:
        """Map every available name to its files; the first file is used and hides the others."""
        found: dict[str, list[Path]] = {}
        for folder in self._search:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                found.setdefault(path.stem, []).append(path)
        return dict(sorted(found.items()))

    def _at(self, place: str) -> Template:
        named = not _is_path(place)
        path = self._find(place) if named else self._base / os.path.expanduser(place)  # noqa: PTH111  # no error without a home
        if path not in self._read:
            self._read[path] = Template.read(path, "" if named else str(path))
        found = self._read[path]
        if named and found.name != place:
            raise ContextError(
                f"{found.source}: the front matter has name {found.name!r}, but the file is named {place!r}",
                hint="use the same name for both",
            )
        return found

    def _find(self, name: str) -> Path:
        paths = [folder / f"{name}{SUFFIX}" for folder in self._search] if name.isprintable() else []
        for path in paths:
            if os.path.exists(path):  # noqa: PTH110  # unlike Path.exists, False for a name too long and a closed folder
                return path
        known = self.files()
        hint = nearest(name, known) or f"available: {', '.join(known) or 'none'}"
        raise ContextError(f"no context named {name!r} in {', '.join(map(str, self._search))}", hint=hint)


def _split(reference: str) -> tuple[str, str | None, str | None]:
    """Split a reference into name or path, version and digest. A path that contains ``@`` is not split."""
    if not isinstance(reference, str) or not reference.strip() or reference.endswith(SUFFIX):
        return str(reference), None, None
    match = _REFERENCE.fullmatch(reference)
    assert match is not None  # the first group accepts any text
    return match["place"], match["version"], match["digest"]


def _is_path(place: str) -> bool:
    return place.endswith(SUFFIX) or "/" in place or os.sep in place
