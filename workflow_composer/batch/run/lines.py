"""The lines of a journal: each record is one line with a checksum; reading detects every kind of damage.

A line is a JSON array and ends in a newline::

    ["8-digit CRC-32 of all that follows the comma", ...]

The second value of the first line identifies the run. In every other line it is the head of a record (the fields that are
counted, so that scanning a long journal does not parse the rest), followed by the other fields and those of the tiers, in
the order of `COLUMNS`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from workflow_composer.batch.run.records import Head, RowRecord, TierRecord, defaults
from workflow_composer.errors import InputError

VERSION = 1
_HEAD = ("row", "error", "deciding", "correct", "cost", "key", "served", "priced", "unreadable", "cut_off")
_REST = tuple(name for name in RowRecord.__slots__ if name not in (*_HEAD, "tiers"))
_TIER = tuple(TierRecord.__slots__)
_COUNTED = ("deciding", "served", "unreadable", "cut_off")
"""Fields of the head that follow from the others."""
COLUMNS = {"head": list(_HEAD), "rest": list(_REST), "tiers": list(_TIER)}

_LATER: Mapping[str, Mapping[str, Any]] = {
    "head": {"key": "", "served": (), "priced": True, "unreadable": False, "cut_off": False},
    "rest": defaults(RowRecord, ("question", "label", "columns", "read_by")),
    "tiers": defaults(TierRecord, ("cut_off", "candidate", "said", "fixed", "priced")),
}
"""Columns that journals of earlier versions lack, with the values that stand for them. Each part ends with them."""
_UNMIXED = frozenset({"cut_off"})
"""Columns of a tier without which a journal is not resumed, because its answers were read in another way."""
_MISSING: dict[str, tuple[Any, ...]] = {
    part: tuple(_LATER[part].get(name) for name in names)
    for part, names in {"head": _HEAD, "rest": _REST, "tiers": _TIER}.items()
}

_head_of, _rest_of, _tier_of = attrgetter(*_HEAD), attrgetter(*_REST), attrgetter(*_TIER)
_START = len('["01234567",')
_FORM = b'["########",'
_HEX = b"0123456789abcdef"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


class Line(NamedTuple):
    """A complete line of a journal: its number (from 1), its offset (bytes) and its text."""

    number: int
    offset: int
    text: bytes

    @property
    def end(self) -> int:
        """The offset of the next line (bytes)."""
        return self.offset + len(self.text)


def sealed(*values: Any) -> bytes:
    """Return values as a line with its checksum. Raises TypeError if a value is not JSON-serializable."""
    text = _encode(values)
    try:
        body = text[1:].encode()
    except UnicodeEncodeError:  # a lone surrogate: valid in JSON, not in UTF-8
        body = json.dumps(values, separators=(",", ":"))[1:].encode()
    return b'["%08x",%s\n' % (zlib.crc32(body), body)


def header_line(run: Mapping[str, Any]) -> bytes:
    """Return the first line of a journal."""
    return sealed({"journal": VERSION, "columns": COLUMNS, "run": run})


def record_line(record: RowRecord) -> bytes:
    """Return the line of a finished row."""
    return sealed(_head_of(record), _rest_of(record), [_tier_of(tier) for tier in record.tiers])


def header_of(line: Line, path: Path, *, to_go_on: bool = False) -> Mapping[str, Any]:
    """Return the identity of the run. Raises `InputError` if another version of this program wrote the journal.

    Journals of some earlier versions can be read but not resumed (``to_go_on``), because they read answers differently.
    """
    (found,) = json.loads(line.text)[1:]
    columns = found.get("columns") if isinstance(found, dict) and found.get("journal") == VERSION else None
    missing = _missing(columns)
    if missing is None or (to_go_on and not missing["tiers"].isdisjoint(_UNMIXED)):
        raise InputError(
            f"{path} was written by another version of this program",
            hint="resume with that version, or choose another output folder",
        )
    run: Mapping[str, Any] = found["run"]
    return run


def has_keys(line: Line) -> bool:
    """Whether the journal with this first line knows rows by their content; earlier ones know them by their place."""
    (found,) = json.loads(line.text)[1:]
    return "key" in found["columns"]["head"]


def _missing(columns: Any) -> dict[str, set[str]] | None:
    """Return the later columns that a journal lacks; None if its columns are not those of this or an earlier version."""
    if not isinstance(columns, dict) or columns.keys() != COLUMNS.keys():
        return None
    missing: dict[str, set[str]] = {}
    for part, names in COLUMNS.items():
        held = columns[part]
        if not isinstance(held, list) or held != names[: len(held)] or not set(names[len(held) :]) <= _LATER[part].keys():
            return None
        missing[part] = set(names[len(held) :])
    return missing


def head_of(line: Line) -> Head:
    """Return the head of a record."""
    head = dict(zip(_HEAD, _whole("head", _decode(line.text[_START:].decode())[0]), strict=True))
    error = head["error"]
    head["error"] = error and (error[0], error[1])
    head["served"] = tuple((candidate, model) for candidate, model in head["served"])
    return Head(**head)


def moved(line: Line, row: int) -> bytes:
    """Return the line of a record with another row number."""
    text = line.text[_START:].decode()
    head, end = _decode(text)
    head[0] = row
    body = (json.dumps(head, separators=(",", ":")) + text[end:].rstrip("\n")).encode()
    return b'["%08x",%s\n' % (zlib.crc32(body), body)


def fields_of(text: bytes) -> dict[str, Any]:
    """Return a record's line as plain data: `RowRecord.to_dict` plus the fields of the head that follow from others."""
    _, head, rest, tiers = json.loads(text)
    fields = dict(zip(_HEAD, _whole("head", head), strict=True))
    fields.update(zip(_REST, _whole("rest", rest), strict=True))
    fields["tiers"] = [dict(zip(_TIER, _whole("tiers", tier), strict=True)) for tier in tiers]
    return fields


def _whole(part: str, values: list[Any]) -> tuple[Any, ...]:
    return (*values, *_MISSING[part][len(values) :])


def record_of(text: bytes) -> RowRecord:
    """Return the record of a complete line."""
    fields = fields_of(text)
    for name in _COUNTED:
        del fields[name]
    return RowRecord.from_dict(fields)


def whole_lines(file: BinaryIO, path: Path) -> Iterator[Line]:
    """Yield the lines after checking their checksums. An incomplete last line is skipped.

    Raises `InputError` at a damaged line, or if the file is not a journal.
    """
    offset = 0
    for number, text in enumerate(file, 1):
        if not text.endswith(b"\n") and _half_written(text):
            return  # it has no newline, so it is the last line
        if not _is_whole(text):
            raise _damaged(path, number)
        yield Line(number, offset, text)
        offset += len(text)


def _is_whole(text: bytes) -> bool:
    framed = text[:2] == b'["' and text[10:_START] == b'",' and text[-2:] == b"]\n"
    return framed and text[2:10] == b"%08x" % zlib.crc32(text[_START:-1])


def _half_written(text: bytes) -> bool:
    """Whether a crash left this: the beginning of a line, or an unwritten block of zeros."""
    begun = text[:_START].rstrip(b"\0")
    return all(a == b or (b == ord("#") and a in _HEX) for a, b in zip(begun, _FORM, strict=False))


def _damaged(path: Path, number: int) -> InputError:
    if number == 1:
        return InputError(f"{path} is not the journal of a batch", hint="choose another output folder, or move the file")
    return InputError(
        f"{path}:{number}: damaged line: wrong checksum",
        hint=f"check the disk; then delete the line (sed -i {number}d), and its row is answered again",
    )
