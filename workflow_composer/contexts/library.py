"""Lookup of context templates. A reference is a name or a path, optionally pinned to a version and a digest.

Examples: ``file-formats``, ``file-formats@1``, ``file-formats@1#2f0c9a7be410``, ``./mine.md``. Names are searched like those
of profiles: in ``config/contexts/`` of the working directory, in the user's configuration directory, in the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from workflow_composer.contexts.template import SUFFIX, Template
from workflow_composer.errors import ContextError
from workflow_composer.names import nearest

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
