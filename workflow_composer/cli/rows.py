"""Reading a JSONL file of prompts, row by row; every fault names file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from workflow_composer.errors import ContextError, InputError
from workflow_composer.types import Message

_GZIP = b"\x1f\x8b"
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_FORM = 'one JSON object per line, for example {"question": "What is 2 + 2?", "answer": "4"}'


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input. ``index`` counts rows from 0, ``line`` lines from 1; ``key`` stands for the row's content."""

    index: int
    line: int
    key: str
    prompt: str | tuple[Message, ...]
    id: Any = None
    task_type: str | None = None
    model: str | None = None
    label: str | None = None
    context: tuple[str, ...] | None = None


class RowFile:
    """A JSONL file, plain or gzip. It is read anew by every iteration, one line at a time.

    ``salt`` is what else the answers depend on (the options of the run): another salt gives other keys. ``pins``
    makes of the contexts that a row names references to exactly their present texts; they go into the row's key, too.
    Iterating raises `InputError` at the first fault.
    """

    def __init__(
        self,
        path: Path,
        *,
        salt: str = "",
        limit: int | None = None,
        pins: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda names: names,
    ) -> None:
        self.path = path
        self.have_contexts = False  # as far as `count` has seen
        self._pins = pins
        self._salt = salt.encode()
        self._limit = limit

    def __iter__(self) -> Iterator[Row]:
        return islice(self._rows(), self._limit)

    def only(self, wanted: Callable[[int], bool]) -> Iterator[Row]:
        """The rows whose index is wanted; the others are not taken apart."""
        return self._rows(wanted)

    def count(self) -> int:
        """Read every row, so that a fault shows before anything is paid for; return how many there are.

        Raises `InputError` where there is none.
        """
        rows = 0
        for row in self:
            rows += 1
            self.have_contexts = self.have_contexts or row.context is not None
        if not rows:
            raise InputError(f"{self.path} has no rows", hint=f"it should have {_FORM}")
        return rows

    def _rows(self, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[Row]:
        index = 0
        for number, line in enumerate(self._lines(), 1):
            if line.strip():
                if wanted(index):
                    yield self._row(index, number, line.strip())
                index += 1

    def _lines(self) -> Iterator[bytes]:
        try:
            with closing(_open(self.path)) as lines:
                for number, line in enumerate(lines):
                    yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path} is damaged: {error}", hint="unpack it by hand to see how far it goes") from None
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}", hint=_remedy(error)) from None

    def _row(self, index: int, number: int, line: bytes) -> Row:
        where = f"{self.path}:{number}"
        found = _object(line, where)
        context = self._context(found, where)
        salt = self._salt + ("\0" + " ".join(context)).encode() if context else self._salt
        key = hashlib.blake2b(line, key=hashlib.blake2b(salt, digest_size=16).digest(), digest_size=8).hexdigest()
        return Row(
            index,
            number,
            key,
            _prompt(found, where),
            found.get("id"),
            _text(found, "task_type", where),
            _text(found, "model", where),
            _label(found.get("answer")),
            context,
        )

    def _context(self, found: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
        """The contexts that the row names, pinned; empty: it wants none; None: it does not say."""
        value = found.get("context")
        names = [value] if isinstance(value, str) else value
        if names is None:
            return None
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            hint = 'write a name, or a list of names such as ["file-formats"]'
            raise InputError(f"{where}: 'context' is {_kind(value)}, not a name or a list of names", hint=hint)
        try:
            return self._pins(tuple(names))
        except ContextError as error:
            raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path} is not a regular file, and rows are read twice: once to check them all", hint="write it to a file first"
        )
    lines = path.open("rb")
    if lines.peek(2)[:2] == _GZIP:
        lines.close()
        return gzip.open(path, "rb")  # type: ignore[return-value]  # GzipFile is iterated and closed like any file
    return lines


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is the path right?"
    if isinstance(error, IsADirectoryError):
        return "name a file in it"
    return "allow this user to read it: chmod u+r" if isinstance(error, PermissionError) else ""


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        coding = _MARKS.get(line[:2], "LATIN1")
        raise InputError(
            f"{where}: not UTF-8: byte {error.start + 1} of the line is {line[error.start]:#04x}",
            hint=f"convert the file, for example with: iconv -f {coding} -t UTF-8",
        ) from None
    except json.JSONDecodeError as error:
        hint = "turn an array into lines with: jq -c '.[]'" if line.startswith(b"[") else f"the file should have {_FORM}"
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}", hint=hint) from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: not valid JSON: {error}", hint=f"the file should have {_FORM}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: this is {_kind(found)}, not an object", hint=f"the file should have {_FORM}")
    return found


def _prompt(found: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    for name in ("question", "prompt"):
        if (text := found.get(name)) is not None:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {name!r} is {_kind(text)}, not a text", hint="write the prompt as a string")
            return text
    messages = found.get("messages")
    if messages is None:
        names = ", ".join(map(repr, list(found)[:8])) or "no fields"
        raise InputError(
            f"{where}: no 'question', 'prompt' or 'messages'; the row has {names}", hint="rename the field with the prompt"
        )
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError(
            f"{where}: 'messages' is not a list of messages", hint='write [{"role": "user", "content": "What is 2 + 2?"}]'
        )
    return tuple(messages)


def _text(found: Mapping[str, Any], name: str, where: str) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is {_kind(value)}, not a text", hint="write it as a string, or leave it out")
    return value


def _label(value: Any) -> str | None:
    """Labels are texts or numbers; what is neither (a list of choices) cannot be graded."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "empty" if not value.strip() else "a text"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else "a number"
