"""Rows to answer, from a JSONL file or from Python: every fault names the row."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import ContextError, InputError
from workflow_composer.storage.lines import kind, lines, parsed, unreadable
from workflow_composer.types import LLMRequest, Message

if TYPE_CHECKING:
    from workflow_composer.contexts.applying import Contexts


# ---------------------------------------------------------------------------------------------------------------- grouping
#
# Rows with the same context next to each other, so that a server's cache still has it when the next of them comes.


pass  # MERGED

_MOST_GROUPS = 1 << 16


def together(rows: RowFile, contexts: Contexts, fields: Mapping[str, Any]) -> Iterator[InputRow]:
    """The rows of a file, those with one context after the other; within a context in the order of the file.

    Contexts come in the order in which the file first has them. ``fields`` are those of all rows. The file is
    read once more for each context, two bytes per row are kept, and only what is wanted is taken apart.
    """
    groups: dict[Hashable, int] = {}
    group_of = array("H")
    for row in rows:
        context = row.context if row.context is not None else fields.get("context")
        task = row.task_type or fields.get("task_type") or "*"
        pins = contexts.of_request(context, task).pins
        # Beyond so many different ones, which no set of templates has, the rest stays in the order of the file.
        group_of.append(min(groups.setdefault(pins, len(groups)), _MOST_GROUPS - 1))
    for group in range(min(len(groups), _MOST_GROUPS)):
        yield from rows.only(_is_in(group, group_of))


def _is_in(group: int, group_of: array[int]) -> Callable[[int], bool]:
    return lambda index: index < len(group_of) and group_of[index] == group


FORM = 'one JSON object per line, for example {"question": "What is 2 + 2?", "answer": "4"}'
_UNBOUND = frozenset({"request_id", "relay", "timeout", "budget", "metadata"})
"""Fields of a request on which its answer does not depend."""

Pins = Callable[[tuple[str, ...]], tuple[str, ...]]
"""Makes of the contexts that a row names references to exactly their present texts."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row: the caller's prompt, and what else was said of it. ``where`` names it in errors.

    ``index`` counts rows from 0; ``key`` stands for the row's content and for the options that its answer depends on.
    """

    index: int
    where: str
    key: str
    prompt: str | tuple[Message, ...] | LLMRequest
    id: Any = None
    task_type: str | None = None
    model: str | None = None
    label: str | None = None
    context: tuple[str, ...] | None = None


def row_of(index: int, where: str, found: Mapping[str, Any], key: Callable[[InputRow], str], pins: Pins) -> InputRow:
    """The row that a mapping describes. Raises `InputError`."""
    row = InputRow(
        index,
        where,
        "",
        _prompt(found, where),
        found.get("id"),
        _text(found, "task_type", where),
        _text(found, "model", where),
        _label(found.get("answer")),
        _context(found, where, pins),
    )
    return _keyed(row, key)


def _keyed(row: InputRow, key: Callable[[InputRow], str]) -> InputRow:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return InputRow(**{**values, "key": key(row)})


def digest_of(content: bytes, salt: str) -> str:
    """What stands for a row's content under the options that ``salt`` describes."""
    key = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    return hashlib.blake2b(content, key=key, digest_size=8).hexdigest()


# ----------------------------------------------------------------------------------------------------------- of a file


class RowFile:
    """A JSONL file, plain or packed. It is read anew by every iteration, one line at a time.

    ``salt`` is what else the answers depend on (the options of the run): another salt gives other keys; contexts that a
    row names go into its key, too. Iterating raises `InputError` at the first fault, and where the file has changed since
    it was counted.
    """

    def __init__(self, path: Path, *, salt: str = "", limit: int | None = None, pins: Pins = lambda names: names) -> None:
        self.path = path
        self.have_contexts = False  # as far as `count` has seen
        self.sha256 = ""
        self._pins = pins
        self._salt = salt
        self._limit = limit
        self._stamp: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[InputRow]:
        return islice(self._rows(), self._limit)

    def only(self, wanted: Callable[[int], bool]) -> Iterator[InputRow]:
        """The rows whose index is wanted; the others are not taken apart."""
        return self._rows(wanted)

    def count(self) -> int:
        """Read every row, so that a fault shows before anything is paid for; return how many there are.

        ``sha256`` is then the digest (hex) of their lines. Raises `InputError` where there is none.
        """
        self._stamp = self._now()
        rows, digest = 0, hashlib.sha256()
        for row in islice(self._rows(each=digest.update), self._limit):
            rows += 1
            self.have_contexts = self.have_contexts or row.context is not None
        if not rows:
            raise InputError(f"{self.path} has no rows", hint=f"it should have {FORM}")
        self.check()
        self.sha256 = digest.hexdigest()
        return rows

    def check(self) -> None:
        """Raise `InputError` where the file has changed since it was counted."""
        if self._stamp is not None and self._stamp != self._now():
            raise InputError(f"{self.path} has changed since the run began", hint="run the same command again")

    def _now(self) -> tuple[int, int]:
        try:
            if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
                raise InputError(
                    f"{self.path} is not a regular file, and rows are read twice: once to check them all",
                    hint="write it to a file first",
                )
            found = self.path.stat()
        except OSError as error:
            raise unreadable(self.path, error) from None
        return found.st_size, found.st_mtime_ns

    def _rows(
        self, wanted: Callable[[int], bool] = lambda index: True, each: Callable[[bytes], None] = lambda line: None
    ) -> Iterator[InputRow]:
        index = 0
        try:
            for number, line in enumerate(lines(self.path), 1):
                if content := line.strip():
                    if wanted(index):
                        each(content + b"\n")
                        yield self._row(index, number, content)
                    index += 1
        except InputError:
            self.check()  # where the file has changed, that is the fault to tell of
            raise
        self.check()

    def _row(self, index: int, number: int, line: bytes) -> InputRow:
        where = f"{self.path}:{number}"

        def key(row: InputRow) -> str:
            return digest_of(line, self._salt + (("\0" + " ".join(row.context)) if row.context else ""))

        return row_of(index, where, parsed(line, where, form=FORM), key, self._pins)


# --------------------------------------------------------------------------------------------------------- from Python


class PythonRows:
    """Rows given as Python values: texts, mappings with the fields of a `RowFile`'s rows, or requests.

    What has a length and can be read again is counted and checked before the first row is sent (`check`); an iterator is
    read as far as rows are sent, and ``total`` is None. Ids must differ; a row without one has its index for id. Iterating
    raises `InputError` at the first fault. 8-byte digests of all ids are kept in memory.
    """

    def __init__(self, rows: Iterable[Any], *, salt: str = "", pins: Pins = lambda names: names) -> None:
        self._rows = _checked(rows)
        self._salt = salt
        self._pins = pins
        self._again = isinstance(rows, Sized)
        self.total: int | None = len(rows) if isinstance(rows, Sized) else None
        self.seen = 0

    def check(self) -> None:
        """Read what can be read again. Raises `InputError`, also where there are no rows."""
        if self._again:
            for _ in self:
                pass

    def __iter__(self) -> Iterator[InputRow]:
        ids: set[int] = set()
        self.seen = 0
        for index, value in enumerate(self._rows):
            row = self._row(index, value)
            known = len(ids)
            ids.add(int(digest_of(repr(row.id).encode(errors="surrogatepass"), ""), 16))
            if len(ids) == known:
                raise InputError(f"row {index}: its id {row.id!r} is that of an earlier row", hint="ids must differ")
            self.seen += 1
            yield row
        if not self.seen:
            raise InputError("there are no rows", hint='give a list such as [{"id": 1, "prompt": "What is 2 + 2?"}]')

    def _row(self, index: int, value: Any) -> InputRow:
        where = f"row {index}"
        if isinstance(value, LLMRequest):
            return _keyed(InputRow(index, where, "", value, index, label=None), self._key)
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, Mapping):
            wanted = "a text, a mapping or an LLMRequest"
            raise InputError(f"{where}: this is {type(value).__name__}, not {wanted}", hint='{"prompt": "What is 2 + 2?"}')
        found = {**value, "id": index if value.get("id") is None else value["id"]}
        if isinstance(found["id"], bool) or not isinstance(found["id"], (str, int)):
            raise InputError(f"{where}: 'id' is {kind(found['id'])}, not a text or a whole number", hint="or leave it out")
        return row_of(index, where, found, self._key, self._pins)

    def _key(self, row: InputRow) -> str:
        prompt: Any = row.prompt
        if isinstance(prompt, LLMRequest):
            every = (field.name for field in fields(prompt))
            prompt = {name: getattr(prompt, name) for name in every if name not in _UNBOUND}
        content = [prompt, row.id, row.task_type, row.model, row.label, row.context]
        try:
            return digest_of(json.dumps(content, sort_keys=True, default=dict).encode(), self._salt)
        except (TypeError, ValueError) as error:
            raise InputError(f"{row.where}: this is no JSON: {error}", hint="requests hold texts, numbers, lists") from None


def _checked(rows: Any) -> Iterable[Any]:
    """Rows, and none of what can be iterated over and is something else."""
    if isinstance(rows, (str, bytes, Mapping, LLMRequest)):
        raise InputError(f"the rows are {type(rows).__name__}, not a list of rows", hint="put it into a list: [...]")
    if hasattr(rows, "columns"):
        raise InputError("the rows are a table", hint='give its rows: frame.to_dict("records")')
    if not isinstance(rows, Iterable):
        raise InputError(f"the rows are {type(rows).__name__}, not a list of rows", hint="give a list or an iterator")
    return rows


# -------------------------------------------------------------------------------------------------------------- fields


def _context(found: Mapping[str, Any], where: str, pins: Pins) -> tuple[str, ...] | None:
    """The contexts that the row names, pinned; empty: it wants none; None: it does not say."""
    value = found.get("context")
    names = [value] if isinstance(value, str) else value
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        hint = 'write a name, or a list of names such as ["file-formats"]'
        raise InputError(f"{where}: 'context' is {kind(value)}, not a name or a list of names", hint=hint)
    try:
        return pins(tuple(names))
    except ContextError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def _prompt(found: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    for name in ("question", "prompt"):
        if (text := found.get(name)) is not None:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {name!r} is {kind(text)}, not a text", hint="write the prompt as a string")
            return text
    messages = found.get("messages")
    if messages is None:
        names = ", ".join(map(repr, list(found)[:8])) or "no fields"
        raise InputError(
            f"{where}: no 'question', 'prompt' or 'messages'; the row has {names}", hint="rename the field with the prompt"
        )
    listed = isinstance(messages, (list, tuple)) and all(isinstance(m, Mapping) and "role" in m for m in messages)
    if not listed or not messages:
        raise InputError(
            f"{where}: 'messages' is not a list of messages", hint='write [{"role": "user", "content": "What is 2 + 2?"}]'
        )
    return tuple(messages)


def _text(found: Mapping[str, Any], name: str, where: str) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is {kind(value)}, not a text", hint="write it as a string, or leave it out")
    return value


def _label(value: Any) -> str | None:
    """Labels are texts or numbers; what is neither (a list of choices) cannot be graded."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    return None
