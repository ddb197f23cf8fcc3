"""The file of a workflow as YAML: every scalar is the text that was written, with its line.

YAML reads ``no`` as false, ``1.10`` as 1.1 and ``0042`` as 34; a workflow says where a number is wanted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow_composer.config.yaml_source import KeyPath, Problems, SourceText, Values, read_profile
from workflow_composer.errors import InputError, nearest
from workflow_composer.metrics.summary import parse_duration

__all__ = ["FileFaults", "Word", "as_plain", "read_source"]

_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")
_DOLLARS = re.compile(r"\$\s*(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)(?:\s*(?:\$|USD|usd|dollars?))?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


_NOTHING = ("", "~", "null")


class Word(str):
    """A scalar as it was written: ``line`` is that of its first character, ``quoted`` whether it surely is text."""

    __slots__ = ("line", "quoted")
    line: int
    quoted: bool

    @classmethod
    def at(cls, text: str, line: int, quoted: bool = True) -> Word:
        """Return a word with its line."""
        made = cls(text)
        made.line, made.quoted = line, quoted
        return made


class _Written(Values):
    """Converts scalars to words."""

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        """Return the text of a scalar, whatever YAML would read it as."""
        if node.tag == "!alias" or not str(node.tag).startswith("tag:yaml.org,2002:"):
            return super().scalar(node, path)
        if node.style is None and node.start_mark.index != node.end_mark.index and node.tag.endswith(":binary"):
            return super().scalar(node, path)
        block = node.style in ("|", ">")
        return Word.at(str(node.value), node.start_mark.line + 1 + block, node.style is not None)


_REMEDIES = (
    (r"mapping values are not allowed", "put the text in quotes, or write it below its key after |"),
    (r"a key is a list, a mapping", "put a text that begins with {{ or [ in quotes"),
    (r"expected <block end>, but found '<scalar>'", "put all of it in quotes, such as '\"a\" in done(b)'"),
    (r"cannot start any token", "put the text in quotes"),
    (r"expected ',' or '[}\]]'", "put a text with commas, braces or colons in quotes"),
)


def with_remedies(problems: Sequence[str]) -> tuple[str, ...]:
    """Return the faults, those of YAML with what is usually meant."""
    return tuple(
        problem + next((f"; {remedy}" for sign, remedy in _REMEDIES if re.search(sign, problem)), "") for problem in problems
    )


class FileFaults(Problems):
    """Faults of a workflow's file, each with its line, what was found, what is allowed, and the remedy."""

    def lines(self) -> tuple[str, ...]:
        """Return every fault once, in the order of the file."""
        return with_remedies(super().lines())

    def at(self, path: KeyPath, line: int, found: str, hint: str = "") -> None:
        """Add a fault of a key, in a line within its value."""
        key = self.source.where(path).removeprefix(self.source.label)
        key = re.sub(r"\A:\d+: ", "", key)
        self.at_line(line, "; ".join(part for part in (f"{key}: {found}", hint) if part))

    # ------------------------------------------------------------------------------------------------ values by type

    def text(self, value: Any, path: KeyPath, what: str = "text") -> Word | None:
        """Return a text; None, after a fault, for anything else."""
        if isinstance(value, Word) and (value.quoted or value.lower() not in _NOTHING):
            return value
        self.add(path, f"found {_kind(value)}", f"allowed: {what}")
        return None

    def mapping(self, value: Any, path: KeyPath, what: str) -> Mapping[str, Any]:
        """Return a mapping; an empty one, after a fault, for anything else."""
        if isinstance(value, Mapping):
            return value
        self.add(path, f"found {_kind(value)}", f"allowed: {what}")
        return {}

    def words(self, value: Any, path: KeyPath, what: str) -> tuple[str, ...]:
        """Return a list of texts; empty, after a fault, for anything else."""
        if (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(isinstance(one, Word) for one in value)
            and value
        ):
            return tuple(map(str, value))
        self.add(path, f"found {_kind(value)}", f"allowed: {what}")
        return ()

    def one_of(self, value: Any, path: KeyPath, allowed: Sequence[str]) -> str | None:
        """Return one of some words; None, after a fault, for anything else."""
        if isinstance(value, Word) and value in allowed:
            return str(value)
        near = nearest(value, allowed) if isinstance(value, Word) else ""
        self.add(path, f"found {_kind(value)}", f"allowed: {', '.join(allowed)}", hint=near)
        return None

    def number(self, value: Any, path: KeyPath, least: float, most: float, *, whole: bool = False) -> float | None:
        """Return a number within bounds; None, after a fault, for anything else."""
        found = float(value) if isinstance(value, Word) and not value.quoted and _NUMBER.fullmatch(value) else math.nan
        if least <= found <= most and (not whole or found.is_integer()):
            return found
        bounds = f"{least:g} to {most:g}" if math.isfinite(most) else f"at least {least:g}"
        self.add(path, f"found {_kind(value)}", f"allowed: a {'whole ' * whole}number, {bounds}")
        return None

    def count(self, value: Any, path: KeyPath, least: int, most: int) -> int | None:
        """Return a whole number within bounds; None, after a fault, for anything else."""
        found = self.number(value, path, least, most, whole=True)
        return None if found is None else int(found)

    def truth(self, value: Any, path: KeyPath) -> bool:
        """Return true or false; false, after a fault, for anything else."""
        if isinstance(value, Word) and not value.quoted and value.lower() in _TRUTHS:
            return _TRUTHS[value.lower()]
        self.add(path, f"found {_kind(value)}", "allowed: true, false")
        return False

    def dollars(self, value: Any, path: KeyPath) -> float | None:
        """Return an amount of dollars; None, after a fault, for anything else."""
        match = _DOLLARS.fullmatch(value.strip()) if isinstance(value, Word) else None
        if match is not None and float(match[1] or match[2]) > 0:
            return float(match[1] or match[2])
        self.add(path, f"found {_kind(value)}", "allowed: dollars, more than 0, such as $20 or $0.05")
        return None

    def seconds(self, value: Any, path: KeyPath) -> float | None:
        """Return a duration in seconds; None, after a fault, for anything else."""
        if isinstance(value, Word):
            try:
                found = parse_duration(value).total_seconds()
            except InputError:
                found = 0.0
            if found > 0:
                return found
        self.add(path, f"found {_kind(value)}", "allowed: a number with its unit, such as 60s, 10m, 6h or 7d")
        return None

    def memory(self, value: Any, path: KeyPath) -> int | None:
        """Return an amount of memory in bytes; None, after a fault, for anything else."""
        match = _MEMORY.fullmatch(value.strip()) if isinstance(value, Word) else None
        if match is not None and float(match[1]) > 0:
            return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))
        self.add(path, f"found {_kind(value)}", "allowed: an amount with its unit, such as 512M or 2G")
        return None

    def only(self, value: Mapping[str, Any], path: KeyPath, allowed: Sequence[str]) -> None:
        """Add a fault for each key that is not allowed."""
        for key in value:
            if key not in allowed:
                self.add((*path, key), "unknown key", f"allowed: {', '.join(allowed)}", hint=nearest(key, allowed))


def _kind(value: Any) -> str:
    if isinstance(value, Word):
        return repr(str(value)) if value.quoted or value.lower() not in _NOTHING else "nothing"
    return "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, (list, tuple)) else "nothing"


def as_plain(value: Any, *, as_written: bool = False) -> Any:
    """Return data as YAML 1.2 reads it: numbers, true, false and null where they are not quoted; ``no`` is a word.

    ``as_written``: a number that would print otherwise, such as ``1.10``, is a word, too, and so is null: a choice.
    """
    if isinstance(value, Mapping):
        return {key: as_plain(part, as_written=as_written) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part, as_written=as_written) for part in value]
    if not isinstance(value, Word) or value.quoted:
        return str(value) if isinstance(value, str) else value
    return _scalar(value, as_written)


def _scalar(value: Word, as_written: bool) -> Any:
    known = {"true": True, "false": False, "null": None, "~": None, "": None}
    if value and as_written and known.get(value.lower(), ...) is None:
        return str(value)
    if value.lower() in known:
        return known[value.lower()]
    if not _NUMBER.fullmatch(value):
        return str(value)
    number: float = int(value) if re.fullmatch(r"[-+]?\d+", value) else float(value)
    return str(value) if as_written and str(number) != value else number


def read_source(path: Path) -> tuple[Mapping[str, Any], SourceText, FileFaults]:
    """Read the file. Raises `ProfileNotFound`, or `ProfileError` if it is not a readable YAML mapping."""
    tree, source, problems = read_profile(path, values=_Written, kind="workflow", example="workflow: my_workflow")
    faults = FileFaults(source)
    faults.take(problems)
    return tree, source, faults
