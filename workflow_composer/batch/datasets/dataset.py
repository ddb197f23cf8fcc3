"""Data sets: found by their name on the Hugging Face hub, read row by row in constant memory.

In names, write ``_`` for ``/`` (``openai_gsm8k``); ``NAME:SPLIT`` selects a split. ``docs/datasets.md`` describes the file
names that are searched and the columns that are read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.formats import BATCH, FORMATS, Format
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import opened, unreadable
from workflow_composer.support.fast_dataclass import quick

if TYPE_CHECKING:
    import pyarrow as pa


# ----------------------------------------------------------------------------------------------------------------- finding
#
# The file names of a data set, in search order, and the error if none exists.


SPLITS = ("test", "validation", "train", "data")
"""The search order of splits if none is named."""

KNOWN = {
    "openai_gsm8k": Columns("question", "answer"),
    "DigitalLearningGmbH_MATH-lighteval": Columns("problem", "solution"),
    "HuggingFaceH4_MATH-500": Columns("problem", "answer", "unique_id"),
    "gneubig_aime-1983-2024": Columns("Question", "Answer", "ID"),
}
"""Columns of known data sets of the hub; they take precedence over the usual names."""

_CONFIGURATIONS = ("", "data", "default", "main")
"""Configurations (folders) in order of preference, if several hold the split."""

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_SPLIT_END = re.compile(f"_({'|'.join(SPLITS)})$")
_ANY_SHARD = "-?????-of-?????"


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a data set in order, all of one format; ``split`` is None if the file names do not contain it."""

    name: str
    split: str | None
    paths: tuple[Path, ...]
    format: Format
    known: Columns


def look_for(name: str, folder: Path, split: str | None) -> Found:
    """Return the first files found in search order. Raises `InputError` that lists all searched names if none exists."""
    if not _NAME.fullmatch(name) or (split is not None and not re.fullmatch(r"\w[\w.-]*", split)):
        named = name if split is None else f"{name}:{split}"
        raise InputError(f"invalid data set name {named!r}", hint="for example openai_gsm8k or openai_gsm8k:train")
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", hint="set --data-dir to the folder of the data sets")
    looked: list[list[str]] = []
    known = KNOWN.get(name, Columns())
    for stem, found_split in _stems(name, split):
        looked.append([stem + end for end in FORMATS])
        for end, form in FORMATS.items():
            if paths := _matching(folder, name, stem + end):
                return Found(name, found_split, paths, form, known)
    if split is None and (only := _only_file(folder / name)):
        path, form = only
        return Found(name, None, (path,), form, known)
    raise InputError(_nothing(name, split, folder, looked), hint=_hint(name, folder))


def _stems(name: str, split: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield file names without suffix in search order, each with its split."""
    if split is None:
        yield name, None
    for each in SPLITS if split is None else (split,):
        yield f"{name}/{each}", each
        yield f"{name}_{each}", each
        yield f"{name}/**/{each}{_ANY_SHARD}", each


def _matching(folder: Path, name: str, pattern: str) -> tuple[Path, ...]:
    """Return the file of that name, or all shards of one folder in order."""
    if _ANY_SHARD not in pattern:
        path = folder / pattern
        return (path,) if path.exists() or path.is_symlink() else ()
    folders: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(pattern)):
        folders.setdefault(path.parent.relative_to(folder / name).as_posix().removeprefix("."), []).append(path)
    if not folders:
        return ()
    chosen = next((each for each in _CONFIGURATIONS if each in folders), None)
    if chosen is None and len(folders) > 1:
        listed = ", ".join(f"{name}/{each}" for each in folders)
        raise InputError(f"{name!r} has several configurations with this split", hint=f"choose one: {listed}")
    return _complete(folders[next(iter(folders)) if chosen is None else chosen])


def _complete(shards: list[Path]) -> tuple[Path, ...]:
    numbers = [tuple(map(int, found.groups())) for shard in shards if (found := _SHARD.search(shard.name))]
    there = {number for number, _ in numbers}
    of = max(count for _, count in numbers)
    missing = [number for number in range(of) if number not in there]
    if missing or len(numbers) != of:
        example = _SHARD.sub(f"-{(missing or [0])[0]:05d}-of-{of:05d}.", shards[0].name)
        what = f"{example} is missing" if missing else "the shards belong to several versions"
        raise InputError(f"{shards[0].parent}: {len(shards)} of {of} shards: {what}", hint="download the split again")
    return tuple(shards)


def _only_file(folder: Path) -> tuple[Path, Format] | None:
    """Return the only data file of a folder, whatever its name (AIME's file is named after its years); None if several."""
    found = [
        (path, form)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        for end, form in FORMATS.items()
        if path.name.endswith(end) and path.is_file()
    ]
    return found[0] if len(found) == 1 else None


def _nothing(name: str, split: str | None, folder: Path, looked: list[list[str]]) -> str:
    rows = [", ".join(names) for names in looked]
    if split is None:
        rows.append(f"{name}/*, if it is the only data file in that folder")
    named = name if split is None else f"{name}:{split}"
    return f"no data set {named!r} in {folder}; searched for\n  " + "\n  ".join(rows)


def _hint(name: str, folder: Path) -> str:
    there = {
        _SPLIT_END.sub("", entry.name.partition(".")[0]) if entry.is_file() else entry.name for entry in folder.iterdir()
    }
    near = get_close_matches(name.replace("/", "_"), there, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "add one of these files; write / in the hub's name as _"


_CHUNK = 1 << 20


@quick
@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number in the data set from 0, its id (by default the number), question and label."""

    row: int
    id: str
    question: str
    label: str | None


def find(name: str, data_dir: Path, split: str | None = None, *, columns: Columns | None = None) -> DataSet:
    """Return the data set ``name`` (or ``NAME:SPLIT``) from the files of a folder.

    ``columns`` names columns that do not have their usual names. Raises `InputError` if no file exists (listing the
    searched names), or if the first rows are invalid.
    """
    name, _, named = name.partition(":")
    if split and named and split != named:
        raise InputError(f"{name}:{named} and the split {split!r} contradict each other", hint="give the split once")
    return DataSet(look_for(name, data_dir, split or named or None), columns or Columns())


class DataSet:
    """The rows of a data set's files, in order. Every iteration reads the files again.

    ``name``; ``split`` (None: the only one); ``paths`` in order; ``columns`` with resolved names; ``digest`` (hex) of the
    files' names, sizes and modification times at construction. Reading raises `InputError` at the first invalid row, and
    if a file has changed since construction.
    """

    def __init__(self, found: Found, columns: Columns) -> None:
        self.name = found.name
        self.split = found.split
        self.paths = found.paths
        self._format = found.format
        self._stamps = {path: _stamp(path) for path in self.paths}
        self.digest = hashlib.sha256(repr([(p.name, *self._stamps[p]) for p in self.paths]).encode()).hexdigest()
        self.columns = self._settled(columns, found.known)

    def __repr__(self) -> str:
        return f"DataSet({self.name}{':' + self.split if self.split else ''}, {len(self.paths)} files)"

    def count(self) -> int:
        """Return the number of rows. Raises `InputError` if a file is damaged."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(self._counts)

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(self._format.count(path) for path in self.paths)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows in order, beginning at number ``start``."""
        first = 0
        for position, path in enumerate(self.paths):
            if start > first and start >= first + self._counts[position]:
                first += self._counts[position]
                continue
            self._check(path)
            number = max(start, first)
            for key, question, label in self._format.rows(path, self.columns, number - first):
                yield Row(number, str(number) if key is None else key, question, label)
                number += 1
            self._check(path)
            first = number

    def chunks(self, size: int = BATCH) -> Iterator[pa.Table]:
        """Yield the same rows as tables of at most ``size`` rows with the columns ``question`` and ``label`` (string).

        A missing label is null. Raises `ConfigError` if pyarrow is not installed.
        """
        for path in self.paths:
            self._check(path)
            for table in self._format.tables(path, self.columns):
                for first in range(0, table.num_rows, size):
                    yield table.slice(first, size)
            self._check(path)

    def sha256(self) -> str:
        """Return a SHA-256 digest (hex) of the files' uncompressed bytes and the columns. Reads every file once."""
        total = hashlib.sha256(repr(self.columns).encode())
        for path in self.paths:
            self._check(path)
            of_file = hashlib.sha256()
            with opened(path) as file:
                while block := file.read(_CHUNK):
                    of_file.update(block)
            total.update(of_file.digest())
        return total.hexdigest()

    def check(self) -> None:
        """Raise `InputError` if a file has changed since construction."""
        for path in self.paths:
            self._check(path)

    def _check(self, path: Path) -> None:
        if _stamp(path) != self._stamps[path]:
            raise InputError(f"{path} has changed since the run was planned", hint="run the command again")

    def _settled(self, wanted: Columns, known: Columns) -> Columns:
        """Return the resolved column names; all files must have the same."""
        settled = None
        for path in self.paths:
            if (names := self._format.names(path)) is not None:
                settled = (settled or wanted).among(names, str(path), known)
        if settled is None:
            raise InputError(f"{', '.join(map(str, self.paths))}: no rows", hint="check that the file is complete")
        return settled


def _stamp(path: Path) -> tuple[int, int]:
    """Return size (bytes) and modification time (ns)."""
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return found.st_size, found.st_mtime_ns
