"""Finding context templates: a reference is a name or a path, and may be pinned to a version and to a digest.

``file-formats``, ``file-formats@1``, ``file-formats@1#2f0c9a7be410``, ``./mine.md``. Names are looked for as profiles' are:
in ``config/contexts/`` of the working directory, then in the user's configuration directory, then in the package.
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
    """Folders that are searched for a template's name, in order: the working directory's, the user's, the package's."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  # no error without a home
    return (Path("config/contexts"), Path(home) / "workflow-composer" / "contexts", shipped())


def shipped() -> Path:
    """The folder of the templates that come with the package."""
    return Path(__file__).parent / "shipped"


class Library:
    """Templates by reference. Each file is read once, so that a library gives the same text for as long as it lives.

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
        """The template of a reference.

        Raises `ContextError` where there is none, where it is faulty, and where what lies there is not what is pinned.
        """
        place, version, digest = _split(reference)
        found = self._at(place)
        if version is not None and version != found.version:
            raise ContextError(
                f"context {reference!r} is pinned to version {version}, and {found.source} is version {found.version}",
                hint=f"pin {found.pin}, or put version {version} in front of it in the search order",
            )
        if digest is not None and not found.digest.startswith(digest):
            raise ContextError(
                f"context {reference!r}: the text of {found.source} has changed since; its digest is {found.digest[:12]}",
                hint="a text that changes needs a new version",
            )
        return found

    def pins(self, references: Iterable[str]) -> tuple[str, ...]:
        """The references, each pinned to the text that it stands for now. Raises `ContextError`."""
        return tuple(self.get(reference).pin for reference in references)

    def files(self) -> dict[str, list[Path]]:
        """Every name that can be used, and its files; the first is the one that is taken, the others are hidden by it."""
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
                f"{found.source}: the head names it {found.name!r}, and the file {place!r}", hint="use one name for both"
            )
        return found

    def _find(self, name: str) -> Path:
        paths = [folder / f"{name}{SUFFIX}" for folder in self._search] if name.isprintable() else []
        for path in paths:
            if os.path.exists(path):  # noqa: PTH110  # unlike Path.exists, False for a name too long and a closed folder
                return path
        known = self.files()
        hint = nearest(name, known) or f"there are: {', '.join(known) or 'none'}"
        raise ContextError(f"no context named {name!r} in {', '.join(map(str, self._search))}", hint=hint)


def _split(reference: str) -> tuple[str, str | None, str | None]:
    """Place, version and digest. A path that has an ``@`` in it is not taken apart."""
    if not isinstance(reference, str) or not reference.strip() or reference.endswith(SUFFIX):
        return str(reference), None, None
    match = _REFERENCE.fullmatch(reference)
    assert match is not None  # the place takes whatever the rest does not
    return match["place"], match["version"], match["digest"]


def _is_path(place: str) -> bool:
    return place.endswith(SUFFIX) or "/" in place or os.sep in place
