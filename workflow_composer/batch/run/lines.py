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

from workflow_composer.batch.run.records import Head, RowRecord, TierRecord
from workflow_composer.errors import InputError

VERSION = 1
_HEAD = Head._fields
_REST = tuple(name for name in RowRecord.__slots__ if name not in (*_HEAD, "tiers"))
_TIER = tuple(TierRecord.__slots__)
_LATER = {"cut_off": 0, "fixed": False, "priced": True}
"""Columns of a tier that journals of earlier versions lack, with their default values."""
_LATER_HEAD = Head._field_defaults
"""The same for the head."""
_COUNTED = ("deciding", "unreadable", "cut_off")
"""Fields of the head that follow from the others."""
_MISSING = tuple(_LATER.get(name) for name in _TIER)
COLUMNS = {"head": list(_HEAD), "rest": list(_REST), "tiers": list(_TIER)}

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
    if columns != COLUMNS and (to_go_on or not _known(columns)):
        raise InputError(
            f"{path} was written by another version of this program",
            hint="resume with that version, or choose another output folder",
        )
    run: Mapping[str, Any] = found["run"]
    return run


def _known(columns: Any) -> bool:
    """Whether a journal has these columns, possibly without the later ones."""
    if not isinstance(columns, dict) or not isinstance(columns.get("tiers"), list):
        return False
    head, tiers = _HEAD[: len(columns.get("head", ()))], _TIER[: len(columns["tiers"])]
    missing = set(_TIER[len(tiers) :]) <= _LATER.keys() and set(_HEAD[len(head) :]) <= _LATER_HEAD.keys()
    return missing and columns == {**COLUMNS, "head": list(head), "tiers": list(tiers)}


def head_of(line: Line) -> Head:
    """Return the head of a record."""
    row, error, *rest = _decode(line.text[_START:].decode())[0]
    return Head(row, error and (error[0], error[1]), *rest)


def fields_of(text: bytes) -> dict[str, Any]:
    """Return a record's line as plain data: `RowRecord.to_dict` plus ``deciding``, ``unreadable`` and ``cut_off``."""
    _, head, rest, tiers = json.loads(text)
    fields = {**_LATER_HEAD, **dict(zip(_HEAD, head, strict=False))}  # an earlier version's head is shorter
    fields.update(zip(_REST, rest, strict=True))
    fields["tiers"] = [dict(zip(_TIER, (*tier, *_MISSING[len(tier) :]), strict=True)) for tier in tiers]
    return fields


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
