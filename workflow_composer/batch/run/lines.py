"""The lines of a journal: a record as one line with a checksum, and reading them back with every kind of damage found.

A line is a JSON array and ends in a newline::

    ["8-digit CRC-32 of all that follows the comma", ...]

The first line's second value says what the journal is of; that of every other line is the head of a record (what counting
needs, so that a long journal is gone through without reading the rest), followed by the other fields and the tiers', in the
order of `COLUMNS`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from workflow_composer.batch.run.records import Head, RowRecord, TierRecord
from workflow_composer.errors import InputError

VERSION = 1
_HEAD = ("row", "error", "deciding", "correct", "cost")
_REST = tuple(name for name in RowRecord.__slots__ if name not in (*_HEAD, "tiers"))
_TIER = tuple(TierRecord.__slots__)
_LATER = {"cut_off": 0}
"""Columns of a tier that journals of earlier versions lack, and what they stand for there."""
_MISSING = tuple(_LATER.get(name) for name in _TIER)
COLUMNS = {"head": list(_HEAD), "rest": list(_REST), "tiers": list(_TIER)}

_head_of, _rest_of, _tier_of = attrgetter(*_HEAD), attrgetter(*_REST), attrgetter(*_TIER)
_START = len('["01234567",')
_FORM = b'["########",'
_HEX = b"0123456789abcdef"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


class Line(NamedTuple):
    """A whole line of a journal: where it begins, how long it is (bytes), and what it holds."""

    number: int
    offset: int
    text: bytes

    @property
    def end(self) -> int:
        """Where the next line begins."""
        return self.offset + len(self.text)


def sealed(*values: Any) -> bytes:
    """Values as a line with its checksum. What is no JSON raises TypeError."""
    text = _encode(values)
    try:
        body = text[1:].encode()
    except UnicodeEncodeError:  # half a surrogate pair: JSON can say it, UTF-8 cannot
        body = json.dumps(values, separators=(",", ":"))[1:].encode()
    return b'["%08x",%s\n' % (zlib.crc32(body), body)


def header_line(run: Mapping[str, Any]) -> bytes:
    """The first line of a journal."""
    return sealed({"journal": VERSION, "columns": COLUMNS, "run": run})


def record_line(record: RowRecord) -> bytes:
    """The line of a finished row."""
    return sealed(_head_of(record), _rest_of(record), [_tier_of(tier) for tier in record.tiers])


def header_of(line: Line, path: Path, *, to_go_on: bool = False) -> Mapping[str, Any]:
    """What the journal is of. Raises `InputError` where another version of this program wrote it.

    Some earlier versions' journals can be read, but not gone on with: answers were read in another way then.
    """
    (found,) = json.loads(line.text)[1:]
    columns = found.get("columns") if isinstance(found, dict) and found.get("journal") == VERSION else None
    if columns != COLUMNS and (to_go_on or not _known(columns)):
        raise InputError(
            f"{path} was written by another version of this program",
            hint="go on with that version, or name another output folder",
        )
    run: Mapping[str, Any] = found["run"]
    return run


def _known(columns: Any) -> bool:
    """Whether a journal has our columns, of a tier perhaps without those that came later."""
    if not isinstance(columns, dict) or not isinstance(columns.get("tiers"), list):
        return False
    begun = _TIER[: len(columns["tiers"])]
    missing = set(_TIER[len(begun) :])
    return missing <= _LATER.keys() and columns == {**COLUMNS, "tiers": list(begun)}


def head_of(line: Line) -> Head:
    """The head of a record."""
    row, error, deciding, correct, cost = _decode(line.text[_START:].decode())[0]
    return Head(row, error and (error[0], error[1]), deciding, correct, cost)


def fields_of(text: bytes) -> dict[str, Any]:
    """All of a record's line as plain data: as `RowRecord.to_dict` gives it, and ``deciding`` besides."""
    _, head, rest, tiers = json.loads(text)
    fields = dict(zip(_HEAD, head, strict=True))
    fields.update(zip(_REST, rest, strict=True))
    fields["tiers"] = [dict(zip(_TIER, (*tier, *_MISSING[len(tier) :]), strict=True)) for tier in tiers]
    return fields


def record_of(text: bytes) -> RowRecord:
    """The record of a whole line."""
    fields = fields_of(text)
    del fields["deciding"]
    return RowRecord.from_dict(fields)


def whole_lines(file: BinaryIO, path: Path) -> Iterator[Line]:
    """Lines whose checksum is right, from the first. A last line that was only half written ends the reading.

    Raises `InputError` at a line that is damaged or none of a journal.
    """
    offset = 0
    for number, text in enumerate(file, 1):
        if not text.endswith(b"\n") and _half_written(text):
            return  # nothing follows it: it has no end
        if not _is_whole(text):
            raise _damaged(path, number)
        yield Line(number, offset, text)
        offset += len(text)


def _is_whole(text: bytes) -> bool:
    framed = text[:2] == b'["' and text[10:_START] == b'",' and text[-2:] == b"]\n"
    return framed and text[2:10] == b"%08x" % zlib.crc32(text[_START:-1])


def _half_written(text: bytes) -> bool:
    """Whether this is what a crash leaves: the beginning of a line, or of one block of which only zeros came."""
    begun = text[:_START].rstrip(b"\0")
    return all(a == b or (b == ord("#") and a in _HEX) for a, b in zip(begun, _FORM, strict=False))


def _damaged(path: Path, number: int) -> InputError:
    if number == 1:
        return InputError(f"{path} is no journal of a batch", hint="name another output folder, or move the file away")
    return InputError(
        f"{path}:{number}: the line is damaged: its checksum does not fit",
        hint=f"see whether the disk is well; then take the line out (sed -i {number}d), and its row is answered again",
    )
