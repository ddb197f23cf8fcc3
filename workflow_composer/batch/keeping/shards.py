"""Shards: the parts of a run that separate processes answer, such as the tasks of a SLURM job array."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from workflow_composer.errors import InputError

_ENV_ID = "SLURM_ARRAY_TASK_ID"
_ENV_COUNT, _ENV_LEAST, _ENV_MOST = "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"
_WRITTEN = re.compile(r"(\d+)/(\d+)")
_NAMED = re.compile(r"(?:^|\.)shard-(\d+)-of-(\d+)$")
MOST = 10_000
HOW = "write i/n, such as 2/8 for the second of eight shards, or `slurm` in a job array"


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Shard ``number`` (from 1) of ``of``: it has every ``of``-th row, beginning with row ``number`` - 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str]) -> Self | None:
        """Return the shard that ``i/n``, ``slurm`` or ``auto`` names; None for ``auto`` outside a job array.

        Raises `InputError`.
        """
        if text in ("slurm", "auto"):
            if _ENV_ID not in environ and text == "auto":
                return None
            return cls.of_array(environ)
        found = _WRITTEN.fullmatch(text.strip())
        if found is None:
            raise InputError(f"invalid shard {text!r}", hint=HOW)
        number, of = int(found[1]), int(found[2])
        if not 1 <= number <= of <= MOST:
            raise InputError(f"invalid shard {text!r}: shards of {of} are 1/{of} to {of}/{of}", hint=HOW)
        return cls(number, of)

    @classmethod
    def of_array(cls, environ: Mapping[str, str]) -> Self:
        """Return the shard of this task of a SLURM job array. Raises `InputError` if its indices have gaps."""
        if _ENV_ID not in environ:
            raise InputError(
                f"--shard slurm needs a job array, but ${_ENV_ID} is not set", hint="submit with sbatch --array=1-8"
            )
        task, of = _whole(environ, _ENV_ID), _whole(environ, _ENV_COUNT)
        least = _whole(environ, _ENV_LEAST)
        most = _whole(environ, _ENV_MOST) if _ENV_MOST in environ else least + of - 1
        step, rest = divmod(most - least, of - 1) if of > 1 else (1, most - least)
        place, odd = divmod(task - least, step) if step else (0, 1)
        if rest or odd or not 0 <= place < of <= MOST:
            raise InputError(
                f"task {task} of {of} tasks from {least} to {most} is no place in an evenly spaced job array",
                hint="use --array=1-8 or 0-7; to run single tasks again, name their shard: --shard 3/8",
            )
        return cls(place + 1, of)

    def holds(self, row: int) -> bool:
        """Whether the row (from 0) belongs to this shard."""
        return row % self.of == self.number - 1

    def rows_of(self, total: int) -> int:
        """Return how many of ``total`` rows belong to this shard.

        >>> [Shard(number, 4).rows_of(10) for number in (1, 2, 3, 4)]
        [3, 3, 2, 2]
        """
        return max(0, (total - self.number) // self.of + 1)

    @property
    def name(self) -> str:
        """Its name in files and folders."""
        return f"shard-{self.number}-of-{self.of}"

    def beside(self, target: Path) -> Path:
        """Return the path of the shard of a file: ``answers.shard-2-of-8.jsonl`` of ``answers.jsonl``."""
        return target.with_name(f"{target.stem}.{self.name}{target.suffix}")


def shard_named(name: str) -> Shard | None:
    """Return the shard that the end of a stem or a folder's name tells; None if it is no shard's name.

    >>> shard_named("answers.shard-2-of-8"), shard_named("answers")
    (Shard(number=2, of=8), None)
    """
    found = _NAMED.search(name)
    return None if found is None else Shard(int(found[1]), int(found[2]))


def shards_of(target: Path) -> dict[Shard, Path]:
    """Return the shards of a file that exist, in order."""
    found: dict[Shard, Path] = {}
    if target.parent.is_dir():
        for path in target.parent.glob(f"{_literal(target.stem)}.shard-*{_literal(target.suffix)}"):
            shard = shard_named(path.stem)
            if shard is not None and shard.beside(target) == path:
                found[shard] = path
    return dict(sorted(found.items()))


def shard_folders(folder: Path) -> dict[Shard, Path]:
    """Return the folders of a run's shards, in order."""
    found = {shard: path for path in folder.glob("shard-*-of-*") if (shard := shard_named(path.name)) is not None}
    return dict(sorted(found.items()))


def refuse_other_counts(mine: Shard, found: Mapping[Shard, Path]) -> None:
    """Raise `InputError` if there are shards of another number, because their rows would be answered twice."""
    for shard, path in found.items():
        if shard.of != mine.of:
            raise InputError(
                f"{path} is a shard of {shard.of}, but this run has {mine.of} shards",
                hint=f"run single tasks again as --shard i/{shard.of}; or merge the shards first, with --remove-shards",
            )


def _whole(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdecimal():
        raise InputError(f"${name} is {value!r}, not a number", hint="name the shard instead: --shard 2/8")
    return int(value)


def _literal(text: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", text)
