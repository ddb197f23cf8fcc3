"""Where a table lies: a path to a file or folder, a pattern of paths, or a data set's name on the Hugging Face hub.

``docs/datasets.md`` describes what is searched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.formats import SUFFIXES, is_table
from workflow_composer.errors import InputError

SPLITS = ("test", "validation", "train", "data")
"""The search order of splits if none is named."""

KNOWN = {
    "openai_gsm8k": Columns("question", "answer"),
    "DigitalLearningGmbH_MATH-lighteval": Columns("problem", "solution"),
    "HuggingFaceH4_MATH-500": Columns("problem", "answer", "unique_id"),
    "gneubig_aime-1983-2024": Columns("Question", "Answer", "ID"),
}
"""Columns of known data sets of the hub; they take precedence over the usual names."""

CONFIGURATIONS = ("", "data", "default", "main", "all")
"""Configurations (folders) in order of preference, if several hold the split."""

_SAME = {
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
}
_WORDS = frozenset((*SPLITS, *_SAME))
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_PART = re.compile(r"(part-?|chunk-?|shard-?)?\d+(-.*)?$")
_SPLIT_END = re.compile(f"_({'|'.join(SPLITS)})$")
_AROUND = re.compile(r"[-_.]")
_MOST_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Located:
    """The files of a table in order; ``split`` is None if the file names do not contain it."""

    name: str
    split: str | None
    paths: tuple[Path, ...]
    known: Columns = field(default_factory=Columns)


def locate(source: str | Path, data_dir: Path | None, split: str | None = None) -> Located:
    """Return the files of a path, a pattern or a name, ``SOURCE:SPLIT``. Raises `InputError` with near candidates.

    A name is searched for in ``data_dir``, then in the cache of the hub.
    """
    if isinstance(source, Path):
        return _of_path(source, split, str(source))
    text, split = _split_off(source, split)
    path = Path(text).expanduser()
    if text.startswith(("/", "./", "../", "~")) or has_magic(text) or is_table(text):
        if _is_there(path) or has_magic(text):
            return _of_path(path, split, text)
        if data_dir is not None and is_table(text) and _is_there(data_dir / text):
            return _of_path(data_dir / text, split, text)
        if not _NAME.fullmatch(text) or is_table(text) or data_dir is None:
            raise InputError(f"no file {text!r}", hint=near_paths(path, data_dir))
    elif data_dir is None:
        return _of_path(path, split, text)
    return _of_name(text, data_dir, split)


def _split_off(text: str, split: str | None) -> tuple[str, str | None]:
    """Return the source and the split of ``SOURCE:SPLIT``."""
    head, colon, named = text.rpartition(":")
    if not colon or _is_there(Path(text)) or "\\" in named or not head:  # C:\... is a path
        return text, split
    if "/" in named and not _is_there(Path(head)):
        raise InputError(f"invalid data set name {text!r}", hint="for example openai_gsm8k or openai_gsm8k:train")
    if split and split != named:
        raise InputError(f"{text} and the split {split!r} contradict each other", hint="give the split once")
    return head, named


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------------------------------------------------- paths


def _of_path(path: Path, split: str | None, text: str) -> Located:
    if has_magic(text) and not _is_there(path):
        matching = sorted(Path(each) for each in glob(str(path), recursive=True) if Path(each).is_file())  # noqa: PTH207  # the pattern may be absolute
        if not matching:
            raise InputError(f"no file matches {text!r}", hint=near_paths(path, None))
        return Located(_stem(path.parent.name or "table"), split, _complete(matching))
    if not path.is_dir() or is_table(path.name):
        return Located(_stem(path.name), split, (path,))
    found = _in_folder(path, path.resolve().name, split)
    if found is None:
        listed = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        which = f" of the split {split!r}" if split else ""
        raise InputError(f"no table{which} in {path}; it holds {listed}", hint="name one of its files")
    return found


def near_paths(path: Path, data_dir: Path | None) -> str:
    """Return a hint with names near a path that leads nowhere."""
    folders = [folder for folder in (path.parent, data_dir) if folder is not None and folder.is_dir()]
    there = {entry.name: entry for folder in folders for entry in folder.iterdir()}
    near = get_close_matches(path.name, there, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(str(there[name]) for name in near)}?"
    return "check the path" if path.parent.is_dir() else f"there is no folder {path.parent}"


# ---------------------------------------------------------------------------------------------------------------- names


def _of_name(name: str, folder: Path, split: str | None) -> Located:
    if not _NAME.fullmatch(name) or (split is not None and not re.fullmatch(r"\w[\w.-]*", split)):
        named = name if split is None else f"{name}:{split}"
        raise InputError(f"invalid data set name {named!r}", hint="for example openai_gsm8k or openai_gsm8k:train")
    if not folder.is_dir():
        if _is_there(Path(name)):
            return _of_path(Path(name), split, name)
        raise InputError(f"no folder {folder}", hint="set --data-dir to the folder of the data sets, or give a path")
    known = KNOWN.get(name, Columns())
    for base, called in _bases(name, folder):
        if found := _under(base, called, split):
            return Located(name, found.split, found.paths, known)
    if _is_there(Path(name)):
        return _of_path(Path(name), split, name)
    named = name if split is None else f"{name}:{split}"
    raise InputError(f"no data set {named!r} in {folder}", hint=_hint(name, split, folder))


def _bases(name: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield folders and the name of the data set in them: the data folder, and the caches of the hub."""
    yield folder, name
    if "/" in name:
        yield folder, name.replace("/", "_")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    for cache, separator, begin in ((folder, "--", "datasets--"), (hub, "--", "datasets--"), (prepared, "___", "")):
        if cache.is_dir():
            for entry in sorted(cache.iterdir()):
                if entry.is_dir() and entry.name.startswith(begin) and separator in entry.name:
                    hub_name = entry.name.removeprefix(begin).replace(separator, "/", 1)
                    if name in (hub_name, hub_name.replace("/", "_")):
                        yield _snapshot(entry).parent, _snapshot(entry).name


def _snapshot(entry: Path) -> Path:
    """Return the files of a data set in the hub's cache: those of its branch main, or else the newest."""
    kept = entry / "snapshots"
    if not kept.is_dir():
        return entry
    main = entry / "refs" / "main"
    if main.is_file() and (kept / main.read_text().strip()).is_dir():
        return kept / main.read_text().strip()
    return max((each for each in kept.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime, default=entry)


def _under(folder: Path, name: str, split: str | None) -> Located | None:
    """Return the files of a name in a folder: a file of that name, or files in a folder of that name."""
    if split is None:
        for end in SUFFIXES:
            if _is_there(folder / (name + end)):
                return Located(name, None, (folder / (name + end),))
    found = _in_folder(folder / name, name, split) if (folder / name).is_dir() else None
    for each in (split,) if split else SPLITS:
        if found and found.split == each:
            return found
        for end in SUFFIXES:
            if _is_there(folder / f"{name}_{each}{end}"):
                return Located(name, each, (folder / f"{name}_{each}{end}",))
    return found


def _hint(name: str, split: str | None, folder: Path) -> str:
    there = {
        _SPLIT_END.sub("", entry.name.partition(".")[0]) if entry.is_file() else entry.name for entry in folder.iterdir()
    }
    flat = name.replace("/", "_")
    if split and flat in there:
        splits = sorted({each.split for each in _entries(folder / flat) if each.split}) if (folder / flat).is_dir() else []
        return f"it has the splits {', '.join(splits)}" if splits else "it has no splits: omit the split"
    if near := get_close_matches(flat, there, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return f"give a path, or put {flat}.jsonl (or .csv, .parquet, ...) or a folder {flat} there"


# -------------------------------------------------------------------------------------------------------------- folders


@dataclass(frozen=True, slots=True)
class _Entry:
    """A table in a folder: its configuration (the folders above it, but for its split) and its split."""

    path: Path
    configuration: str
    split: str | None

    @property
    def end(self) -> int:
        """The position of its ending in the search order."""
        name = self.path.name.lower()
        return next((at for at, end in enumerate(SUFFIXES) if name.endswith(end)), len(SUFFIXES))


def _in_folder(folder: Path, name: str, split: str | None) -> Located | None:
    """Return the files of a split in a folder. Raises `InputError` if several configurations or files could be meant."""
    entries = _entries(folder)
    if not entries:
        return None
    wanted = _SAME.get(split, split) if split else None
    splits = {entry.split for entry in entries}
    if wanted is None:
        named = [each for each in SPLITS if each in splits]
        others = sorted(each for each in splits if each and each not in SPLITS)
        if not named and len(others) > 1:
            raise InputError(
                f"{name!r} has several splits", hint=f"choose one: {', '.join(f'{name}:{each}' for each in others)}"
            )
        chosen = next(iter((*named, *others)), None)
    elif wanted in splits or split in splits:
        chosen = wanted if wanted in splits else split
    else:
        return None
    found = _of_configuration([entry for entry in entries if entry.split == chosen], name, chosen)
    return Located(name, chosen, _complete(found))


def _of_configuration(entries: list[_Entry], name: str, split: str | None) -> list[Path]:
    configurations = list(dict.fromkeys(entry.configuration for entry in entries))
    chosen = next((each for each in CONFIGURATIONS if each in configurations), None)
    if chosen is None and len(configurations) > 1:
        listed = ", ".join(f"{name}/{each}" for each in configurations[:8])
        raise InputError(f"{name!r} has several configurations with this split", hint=f"choose one: {listed}")
    own = [entry for entry in entries if entry.configuration == (configurations[0] if chosen is None else chosen)]
    first = min(entry.end for entry in own)
    found = [entry.path for entry in own if entry.end == first]
    whole = [path for path in found if not _SHARD.search(_stem(path.name))]
    if len(whole) > 1 and not all(_PART.fullmatch(_stem(path.name)) for path in whole):
        listed = ", ".join(path.name for path in whole[:8])
        raise InputError(
            f"{name!r} has several files{f' of the split {split!r}' if split else ''}: {listed}", hint="give the path of one"
        )
    return whole or found


def _entries(folder: Path) -> list[_Entry]:
    """Return the tables below a folder. Names with a split come before folders with one."""
    if listed := _of_card(folder):
        return listed
    named = _splits_of_dict(folder)
    found = []
    for path in sorted(_files(folder)):
        inner = path.relative_to(folder)
        split = _split_of(path, named)
        folders = list(inner.parts[:-1])
        above = next((at for at, part in enumerate(folders) if part in named or (part in _WORDS and part != "data")), None)
        if above is not None:
            part = folders.pop(above)
            split = split if split not in (None, "data") else part if part in named else _SAME.get(part, part)
        found.append(_Entry(path, "/".join(folders), split))
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield the tables below a folder, without hidden files and the caches of `datasets`."""
    for count, (place, folders, names) in enumerate(os.walk(folder)):
        if count > _MOST_FILES:
            return
        folders[:] = [each for each in folders if not each.startswith((".", "__"))]
        for name in names:
            if is_table(name) and not name.startswith((".", "cache-", "tmp")) and not _is_about(name):
                yield Path(place, name)


def _is_about(name: str) -> bool:
    """Whether a file describes a data set instead of holding its rows."""
    return name in {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"} or (
        name.lower().startswith(("readme", "license", "requirements"))
    )


def _split_of(path: Path, named: Iterable[str]) -> str | None:
    stem = _stem(path.name)
    if shard := _SHARD.search(stem):
        stem = stem[: shard.start()]
        last = stem.rpartition("-")[2]
        return _SAME.get(last, last) if last in _WORDS or last in named else _SAME.get(stem, stem)
    if stem in _WORDS:
        return _SAME.get(stem, stem)
    parts = _AROUND.split(stem.lower())
    word = next((part for part in (parts[-1], parts[0]) if part in _WORDS), None)
    return None if word is None else _SAME.get(word, word)


def _splits_of_dict(folder: Path) -> tuple[str, ...]:
    """Return the splits of a `DatasetDict` that was saved to a folder."""
    try:
        found = json.loads((folder / "dataset_dict.json").read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(found)


def _of_card(folder: Path) -> list[_Entry]:
    """Return the tables that the head of a data set's card (README.md) lists; none without such a list."""
    found = []
    for configuration in _configurations(folder / "README.md"):
        files = configuration.get("data_files")
        listed = files if isinstance(files, list) else [{"split": "train", "path": files}]
        for item in listed:
            each = item if isinstance(item, Mapping) else {"split": "train", "path": item}
            patterns = each.get("path")
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                if not isinstance(pattern, str) or pattern.startswith(("/", "..")) or "://" in pattern:
                    continue
                for path in sorted(folder.glob(pattern)):
                    if path.is_file() and is_table(path.name):
                        name = str(each.get("split", "train"))
                        found.append(_Entry(path, str(configuration.get("config_name", "default")), _SAME.get(name, name)))
    return found


def _configurations(card: Path) -> list[Mapping[str, object]]:
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if not text.startswith("---"):
        return []
    import yaml

    try:
        head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---"))
    except yaml.YAMLError:
        return []
    found = head.get("configs") if isinstance(head, Mapping) else None
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def _stem(name: str) -> str:
    """Return a file's name without its endings."""
    lower = name.lower()
    for end in sorted(SUFFIXES, key=len, reverse=True):
        if lower.endswith(end):
            return name[: -len(end)]
    return name.partition(".")[0] or name


def _complete(paths: list[Path]) -> tuple[Path, ...]:
    """Return shards in order. Raises `InputError` if one is missing."""
    numbers = [(int(found[1]), int(found[2])) for path in paths if (found := _SHARD.search(_stem(path.name)))]
    if not numbers:
        return tuple(sorted(paths))
    there = {number for number, _ in numbers}
    of = max(count for _, count in numbers)
    missing = [number for number in range(of) if number not in there]
    if missing or len(numbers) != of:
        first = paths[0]
        example = first.name.replace(
            _stem(first.name), _SHARD.sub(f"-{(missing or [0])[0]:05d}-of-{of:05d}", _stem(first.name))
        )
        what = f"{example} is missing" if missing else "the shards belong to several versions"
        raise InputError(f"{first.parent}: {len(paths)} of {of} shards: {what}", hint="download the split again")
    return tuple(sorted(paths))
