"""Where a data set's files may lie, in which order they are looked for, and what to say where there are none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from workflow_composer.batch.columns import Columns
from workflow_composer.batch.formats import FORMATS, Format
from workflow_composer.errors import InputError

SPLITS = ("test", "validation", "train", "data")
"""The order in which splits are looked for where none is named."""

KNOWN = {
    "openai_gsm8k": Columns("question", "answer"),
    "DigitalLearningGmbH_MATH-lighteval": Columns("problem", "solution"),
    "HuggingFaceH4_MATH-500": Columns("problem", "answer", "unique_id"),
    "gneubig_aime-1983-2024": Columns("Question", "Answer", "ID"),
}
"""Columns that come before the usual names in data sets of the hub."""

_CONFIGURATIONS = ("", "data", "default", "main")
"""Folders of which the first is meant, where several hold the split (the hub's configurations of a data set)."""

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_SPLIT_END = re.compile(f"_({'|'.join(SPLITS)})$")
_ANY_SHARD = "-?????-of-?????"


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a data set in order, all of one format; ``split`` is None where the files do not say."""

    name: str
    split: str | None
    paths: tuple[Path, ...]
    format: Format
    known: Columns


def look_for(name: str, folder: Path, split: str | None) -> Found:
    """The first place that holds the data set. Raises `InputError` that lists all of them where none does."""
    if not _NAME.fullmatch(name) or (split is not None and not re.fullmatch(r"\w[\w.-]*", split)):
        named = name if split is None else f"{name}:{split}"
        raise InputError(f"{named!r} is no name of a data set", hint="write it like openai_gsm8k or openai_gsm8k:train")
    if not folder.is_dir():
        raise InputError(f"no folder {folder}", hint="name the folder that holds the data sets")
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
    """Names of files without their ends, in order, each with the split that it says."""
    if split is None:
        yield name, None
    for each in SPLITS if split is None else (split,):
        yield f"{name}/{each}", each
        yield f"{name}_{each}", each
        yield f"{name}/**/{each}{_ANY_SHARD}", each


def _matching(folder: Path, name: str, pattern: str) -> tuple[Path, ...]:
    """The file of that name, or the shards of one folder, complete and in order."""
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
        raise InputError(f"{name!r} has several parts with this split", hint=f"name one of them: {listed}")
    return _complete(folders[next(iter(folders)) if chosen is None else chosen])


def _complete(shards: list[Path]) -> tuple[Path, ...]:
    numbers = [tuple(map(int, found.groups())) for shard in shards if (found := _SHARD.search(shard.name))]
    there = {number for number, _ in numbers}
    of = max(count for _, count in numbers)
    missing = [number for number in range(of) if number not in there]
    if missing or len(numbers) != of:
        example = _SHARD.sub(f"-{(missing or [0])[0]:05d}-of-{of:05d}.", shards[0].name)
        what = f"{example} is missing" if missing else "shards of several versions lie there"
        raise InputError(f"{shards[0].parent}: {len(shards)} of {of} shards: {what}", hint="fetch the split again")
    return tuple(shards)


def _only_file(folder: Path) -> tuple[Path, Format] | None:
    """The one data file of a folder, whatever its name: AIME's is called after its years."""
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
        rows.append(f"{name}/*, if it is the only data file there")
    named = name if split is None else f"{name}:{split}"
    return f"no data set {named!r} in {folder}; looked there for\n  " + "\n  ".join(rows)


def _hint(name: str, folder: Path) -> str:
    there = {
        _SPLIT_END.sub("", entry.name.partition(".")[0]) if entry.is_file() else entry.name for entry in folder.iterdir()
    }
    near = get_close_matches(name.replace("/", "_"), there, n=3, cutoff=0.6)
    if near:
        return f"is it {' or '.join(near)}?"
    return "put one of these files there; write / in the hub's name as _"
