"""Reading CSV files record by record: every fault becomes an `InputError` that names the file and the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from workflow_composer.errors import InputError
from workflow_composer.storage.lines import LONGEST, decoded, lines


def records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file (RFC 4180; the first is the header), each with the number of its first line.

    Blank lines are left out. Raises `InputError`, also for a quote that is never closed and for a record with more or
    fewer fields than the header.
    """
    csv.field_size_limit(LONGEST)  # the csv module's own limit, 128 KiB, is one for the whole process
    reader = csv.reader((decoded(line, f"{path}:{n}") for n, line in enumerate(lines(path), 1)), strict=True)
    width = 0
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            hint = "a quote within a quoted field is written twice; a field with a line break or a comma is quoted"
            raise InputError(f"{path}:{number}: not valid CSV: {error}", hint=hint) from None
        if record is None:
            return
        if not record:
            continue
        width = width or len(record)
        if len(record) != width:
            raise InputError(
                f"{path}:{number}: {len(record)} fields, and the header has {width}",
                hint="quote a field that holds a comma or a line break",
            )
        yield number, record
