"""Rows to answer, from a table or from Python: every error names the row."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, fields, replace
from functools import cached_property
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.answers.form import as_data
from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.content import RowContent
from workflow_composer.batch.datasets.formats import ParsedLine
from workflow_composer.batch.datasets.request_fields import CHAT, own_fields
from workflow_composer.batch.datasets.table import Table, TableRow, read_table
from workflow_composer.batch.datasets.values import as_json, is_missing, labels_of, literal, question_of, whole_id
from workflow_composer.errors import ContextError, InputError
from workflow_composer.storage.lines import encoded, kind
from workflow_composer.types import LLMRequest, Message

if TYPE_CHECKING:
    from workflow_composer.contexts.applying import Contexts


# ---------------------------------------------------------------------------------------------------------------- grouping
#
# Grouping rows by context, so that a server's prefix cache still holds the context for the next row.


_MOST_GROUPS = 1 << 16


def together(rows: RowFile, contexts: Contexts, fields: Mapping[str, Any]) -> Iterator[InputRow]:
    """Yield the rows of a file grouped by context; within a context, in the order of the file.

    Contexts are in order of first occurrence. ``fields`` apply to all rows. Reads the file once more for each context, keeps
    two bytes per row, and parses each row only when it is yielded.
    """
    groups: dict[Hashable, int] = {}
    group_of = array("H")
    for row in rows:
        context = row.context if row.context is not None else fields.get("context")
        task = row.task_type or fields.get("task_type") or "*"
        pins = contexts.of_request(context, task).pins
        # More contexts than this do not occur in practice; the rest keep the order of the file.
        group_of.append(min(groups.setdefault(pins, len(groups)), _MOST_GROUPS - 1))
    for group in range(min(len(groups), _MOST_GROUPS)):
        yield from rows.only(_is_in(group, group_of))


def _is_in(group: int, group_of: array[int]) -> Callable[[int], bool]:
    return lambda index: index < len(group_of) and group_of[index] == group


UNBOUND = frozenset(
    {"request_id", "relay", "timeout", "budget", "metadata", "query_length", "bulk", "most_calls", "purse", "allowed"}
    | {"adapts", "check", "headers", "left_out", "replies"}
)
"""Fields of a request that do not affect its answer, or that others determine."""
_LATER = {"form": None, "form_retries": 2, "vote_by": None, "private": False}
"""Later fields of a request and their defaults, with which the digests in earlier journals remain valid."""

Pins = Callable[[tuple[str, ...]], tuple[str, ...]]
"""Resolves context names to references that pin their current texts."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row: the caller's prompt and its other fields. ``where`` names the row in errors.

    ``index`` counts rows from 0; ``key`` is a digest of the row's content and of the options that affect its answer.
    ``others`` are further right answers besides the label; ``own`` are the row's own fields of `LLMRequest`; ``columns`` are
    those that are kept with the answer. ``batch_url`` is the address of a request of the OpenAI Batch API.
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
    others: tuple[str, ...] | None = None
    own: Mapping[str, Any] | None = None
    columns: Mapping[str, Any] | None = None
    batch_url: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """All right answers; none without a label."""
        return () if self.label is None else (self.label, *(self.others or ()))


def row_of(index: int, where: str, found: Mapping[str, Any], content: RowContent, pins: Pins, **more: Any) -> InputRow:
    """Return a row without its key, from a mapping and what was taken from it. Raises `InputError`."""
    label, *others = content.labels or (None,)
    own = dict(content.own)
    model = own.pop("model", None)
    return InputRow(
        index,
        where,
        "",
        content.prompt,
        task_type=_text(found, "task_type", where),
        model=model or _text(found, "model", where),
        label=label,
        context=_context(found, where, pins),
        others=tuple(filter(None, others)) or None,
        own=own or None,
        **more,
    )


def _keyed(row: InputRow, key: Callable[[InputRow], str]) -> InputRow:
    return replace(row, key=key(row))


def digest_of(content: bytes, salt: str) -> str:
    """Return a digest (hex) of a row's content under the options in ``salt``."""
    key = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    return hashlib.blake2b(content, key=key, digest_size=8).hexdigest()


# ----------------------------------------------------------------------------------------------------------- of a file


class RowFile:
    """The rows of a table. Every iteration reads it again, in memory for one row.

    ``salt`` describes the options that affect answers; it is part of every key, as are the contexts that a row names.
    ``columns`` names columns, the others are found; ``keep`` are columns that rows carry along. ``keeps_model``: requests
    of the OpenAI Batch API keep their own model. Iterating raises `InputError` at the first invalid row, and if the file has
    changed since `count`.
    """

    def __init__(
        self,
        path: Path,
        *,
        salt: str = "",
        limit: int | None = None,
        pins: Pins = lambda names: names,
        columns: Columns | None = None,
        keep: Sequence[str] = (),
        keeps_model: bool = True,
    ) -> None:
        self.path = path
        self.have_contexts = False  # as far as `count` has seen
        self.sha256 = ""
        self._pins = pins
        self._salt = salt
        self._limit = limit
        self._columns = columns
        self._keep = tuple(keep)
        self._keeps_model = keeps_model

    @cached_property
    def table(self) -> Table:
        """The table, opened at its first use. Raises `InputError`."""
        folder = str(self.path).rpartition(":")[0]
        has_split = bool(folder) and not self.path.exists() and Path(folder).is_dir()
        source = str(self.path) if has_split or has_magic(str(self.path)) else self.path
        table = read_table(source, columns=self._columns)
        table.require(self._keep)
        return table

    def __iter__(self) -> Iterator[InputRow]:
        return islice(self._rows(), self._limit)

    def only(self, wanted: Callable[[int], bool]) -> Iterator[InputRow]:
        """Yield the rows whose index is wanted; of JSON lines the others are not parsed."""
        return self._rows(wanted)

    def count(self) -> int:
        """Read every row, so that errors show before any call is paid for; return the number of rows.

        Sets ``sha256`` to the digest (hex) of their lines. Raises `InputError` for an invalid row or an empty file.
        """
        rows, digest = 0, hashlib.sha256()
        for row in islice(self._rows(each=digest.update), self._limit):
            rows += 1
            self.have_contexts = self.have_contexts or row.context is not None
        self.check()
        self.sha256 = digest.hexdigest()
        return rows

    def check(self) -> None:
        """Raise `InputError` if the file has changed since `count`."""
        self.table.check()

    def _rows(
        self, wanted: Callable[[int], bool] | None = None, each: Callable[[bytes], None] = lambda line: None
    ) -> Iterator[InputRow]:
        table = self.table
        try:
            for row in table.rows(wanted=wanted, every=bool(self._keep)):
                content = row.values.line if isinstance(row.values, ParsedLine) else _content(row.values)
                each(content + b"\n")
                yield self._row(row, content)
        except InputError:
            table.check()  # if the file has changed, report that instead
            raise
        table.check()

    def _row(self, row: TableRow, line: bytes) -> InputRow:
        taken = self.table.taking.take(row.values, row.where)
        values: Mapping[str, Any] = row.values
        if self.table.is_batch:
            values = {}
            if not self._keeps_model:
                taken = replace(taken, own={name: value for name, value in taken.own.items() if name != "model"})
        elif self.table.taking.found.before == "context":
            values = {name: value for name, value in values.items() if name != "context"}
        url = str(row.values.get("url", CHAT)) if self.table.is_batch else None
        columns = {name: as_json(row.values.get(name)) for name in self._keep} or None
        key = taken.id if self.table.is_batch else whole_id(taken.id)
        found = row_of(row.number, row.where, values, taken, self._pins, id=key, columns=columns, batch_url=url)
        contexts = ("\0" + " ".join(found.context)) if found.context else ""
        return replace(found, key=digest_of(line, self._salt + contexts))


def _content(values: Mapping[str, Any]) -> bytes:
    """Return a row that is no line of JSON as one; dates and the like as texts."""
    return encoded(as_json(dict(values))).rstrip()


# --------------------------------------------------------------------------------------------------------- from Python


class PythonRows:
    """Rows given as Python values: texts, mappings with the fields of a `RowFile`'s rows, or requests.

    A collection with a length is counted and checked before the first row is sent (`check`); an iterator is read as rows are
    sent, and ``total`` is None. Ids must be unique; the default id is the row's index. Iterating raises `InputError` at the
    first invalid row. Keeps 8-byte digests of all ids in memory.
    """

    def __init__(self, rows: Iterable[Any], *, salt: str = "", pins: Pins = lambda names: names) -> None:
        self._rows = _checked(rows)
        self._salt = salt
        self._pins = pins
        self._again = isinstance(rows, Sized)
        self.total: int | None = len(rows) if isinstance(rows, Sized) else None
        self.seen = 0

    def check(self) -> None:
        """Check all rows of a collection. Raises `InputError` for an invalid row or if there are no rows."""
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
                raise InputError(f"row {index}: duplicate id {row.id!r}", hint="give every row its own id, or omit all ids")
            self.seen += 1
            yield row
        if not self.seen:
            raise InputError("no rows", hint='give a list such as [{"id": 1, "prompt": "What is 2 + 2?"}]')

    def _row(self, index: int, value: Any) -> InputRow:
        where = f"row {index}"
        if isinstance(value, LLMRequest):
            return _keyed(InputRow(index, where, "", value, index, label=None), self._key)
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, Mapping):
            wanted = "a string, a mapping or an LLMRequest"
            hint = 'for example {"prompt": "What is 2 + 2?"}'
            raise InputError(f"{where}: the row is {type(value).__name__}, not {wanted}", hint=hint)
        key = index if value.get("id") is None else value["id"]
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            hint = "give a string or an integer, or omit it"
            raise InputError(f"{where}: 'id' is {kind(key)}, not a string or an integer", hint=hint)
        return _keyed(row_of(index, where, value, _content_of(value, where), self._pins, id=key), self._key)

    def _key(self, row: InputRow) -> str:
        prompt: Any = row.prompt
        if isinstance(prompt, LLMRequest):
            every = (field.name for field in fields(prompt))
            prompt = {name: getattr(prompt, name) for name in every if name not in UNBOUND}
            prompt = {name: value for name, value in prompt.items() if _LATER.get(name, _LATER) != value}
        content = [prompt, row.id, row.task_type, row.model, row.label, row.context]
        content += [value for value in (row.others, row.own) if value is not None]
        try:
            return digest_of(json.dumps(content, sort_keys=True, default=as_data).encode(), self._salt)
        except (TypeError, ValueError) as error:
            hint = "use only strings, numbers, lists and mappings"
            raise InputError(f"{row.where}: not JSON-serializable: {error}", hint=hint) from None


def _checked(rows: Any) -> Iterable[Any]:
    """Return the rows. Raises `InputError` for values that are not a collection of rows."""
    if isinstance(rows, (str, bytes, Mapping, LLMRequest)):
        raise InputError(f"rows is {type(rows).__name__}, not a list of rows", hint="put it into a list: [...]")
    if hasattr(rows, "columns"):
        raise InputError("rows is a table, not a list of rows", hint='convert it: frame.to_dict("records")')
    if not isinstance(rows, Iterable):
        raise InputError(f"rows is {type(rows).__name__}, not a list of rows", hint="give a list or an iterator")
    return rows


# -------------------------------------------------------------------------------------------------------------- fields


def _context(found: Mapping[str, Any], where: str, pins: Pins) -> tuple[str, ...] | None:
    """Return the row's contexts, pinned; empty: no context; None: not specified."""
    value = found.get("context")
    if isinstance(value, str):
        value = literal(value) or None
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


def _content_of(found: Mapping[str, Any], where: str) -> RowContent:
    """Return what a mapping from Python asks. Raises `InputError`."""
    prompt = _prompt(found, where)
    messages = None if isinstance(prompt, str) else prompt
    own = own_fields(found, where, frozenset({"n"}) if messages is None else frozenset())
    labels = labels_of(found.get("answer"), "answer", where)
    return RowContent(None, "" if messages else str(prompt), labels, messages, own)


def _prompt(found: Mapping[str, Any], where: str) -> str | tuple[Message, ...]:
    for name in ("question", "prompt"):
        if found.get(name) is not None:
            return question_of(found[name], name, where)
    messages = found.get("messages")
    if messages is None:
        names = ", ".join(map(repr, list(found)[:8])) or "no fields"
        raise InputError(
            f"{where}: no 'question', 'prompt' or 'messages'; the row has {names}", hint="rename the prompt's field"
        )
    listed = isinstance(messages, (list, tuple)) and all(isinstance(m, Mapping) and "role" in m for m in messages)
    if not listed or not messages:
        raise InputError(
            f"{where}: 'messages' is not a list of messages", hint='write [{"role": "user", "content": "What is 2 + 2?"}]'
        )
    return tuple(messages)


def _text(found: Mapping[str, Any], name: str, where: str) -> str | None:
    value = found.get(name)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise InputError(f"{where}: {name!r} is {kind(value)}, not a string", hint="write it as a string, or omit it")
    return value
