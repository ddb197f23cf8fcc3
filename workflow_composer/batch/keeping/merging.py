"""``merge``: join the shards of a run into one, in the order of the input.

Nothing is written before every shard has been checked, and the joined file replaces the earlier one in one step, so that a
merge that was killed can be run again.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workflow_composer.batch.keeping.identity import differences
from workflow_composer.batch.keeping.notes import in_common, joined, note_beside, read_note, write_note
from workflow_composer.batch.keeping.shards import Shard, shard_folders, shards_of
from workflow_composer.batch.run.journal import open_own, unwritable
from workflow_composer.batch.run.lines import head_of, header_line, header_of, moved, whole_lines
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile

JOURNAL = "journal.jsonl"
_OTHER = "another output"
_LINE = re.compile(rb'\{"index":(\d+),"key":"([0-9a-f]{1,16})"(?:,"content":"([0-9a-f]{16})")?')
_FAILED = re.compile(rb'"error":\{"type":')


@dataclass(frozen=True, slots=True)
class Merged:
    """A joined run: its file, and the numbers of shards, of rows, and of rows without an answer."""

    path: Path
    shards: int
    rows: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True)
class _KeptLine:
    """A line of a file: its row, its offset (bytes), the digest of its row's content, and whether its row failed."""

    row: int
    offset: int
    content: str
    failed: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """How to read and write lines of one form of file."""

    entries: Callable[[Path], Iterator[_KeptLine]]
    placed: Callable[[bytes, int], bytes]
    first: Callable[[Path, int], bytes]


def merge_answers(target: Path, *, partial: bool = False, remove: bool = False) -> Merged:
    """Join ``answers.shard-1-of-8.jsonl`` and the others into ``answers.jsonl``; see `merge_journals`."""
    return _merge(target, shards_of(target), _ANSWERS, partial=partial, remove=remove)


def merge_journals(folder: Path, *, partial: bool = False, remove: bool = False) -> Merged:
    """Join the journals of a run's shards into the run's own journal.

    Answers that the run's own file has besides are kept. ``partial`` joins shards that have not finished; ``remove`` deletes
    the shards' files afterwards. Raises `InputError` if a shard is missing, belongs to another run, or has not finished.
    """
    found = {shard: place / JOURNAL for shard, place in shard_folders(folder).items()}
    return _merge(folder / JOURNAL, found, _JOURNALS, partial=partial, remove=remove)


def sharded_folders(folder: Path) -> list[Path]:
    """Return the folders below (or the folder itself) that have folders of shards."""
    return sorted({place.parent for place in folder.glob("**/shard-*-of-*") if place.is_dir()})


# --------------------------------------------------------------------------------------------------------------- merging


def _merge(target: Path, found: Mapping[Shard, Path], form: _Form, *, partial: bool, remove: bool) -> Merged:
    shards = _complete(target, found)
    notes = _notes(shards, target)
    total = int(notes[0]["input"]["rows"])
    with ExitStack() as stack:
        for path in shards.values():
            stack.callback(open_own(path, other=_OTHER).close)
        entries = {shard: list(form.entries(path)) for shard, path in shards.items()}
        failed, missing = _check(shards, entries, total, partial=partial)
        own = open_own(target, other=_OTHER)  # after the checks, because it creates the file
        stack.callback(own.close)
        rest = _others(target, form, entries, total)
        _note_of_all(target, notes)
        try:
            _write(own, form, shards, entries, rest, total)
        except OSError as error:
            raise unwritable(target, error, other=_OTHER) from error
        if remove and not missing:
            _remove(shards)
    return Merged(target, len(shards), total, failed, missing)


def _complete(target: Path, found: Mapping[Shard, Path]) -> dict[Shard, Path]:
    """Return all shards in order. Raises `InputError` that names those that are missing."""
    if not found:
        raise InputError(f"{target} has no shards", hint="run the shards first: --shard 1/8, ..., or --shard slurm")
    counts = sorted({shard.of for shard in found})
    if len(counts) > 1:
        raise InputError(
            f"{target} has shards of {' and of '.join(map(str, counts))}: they belong to several runs",
            hint="move the shards of one of them away: " + ", ".join(str(p) for s, p in found.items() if s.of == counts[0]),
        )
    every = {Shard(number, counts[0]): found.get(Shard(number, counts[0])) for number in range(1, counts[0] + 1)}
    absent = [shard for shard, path in every.items() if path is None or not path.exists()]
    if absent:
        named = ", ".join(map(str, absent))
        raise InputError(f"{target}: shard {named} is missing", hint=f"run it: --shard {absent[0]}")
    return {shard: path for shard, path in every.items() if path is not None}


def _notes(shards: Mapping[Shard, Path], target: Path) -> list[dict[str, Any]]:
    """Return the shards' notes. Raises `InputError` that names a shard of another run."""
    notes: list[dict[str, Any]] = []
    for shard, path in shards.items():
        note = read_note(path)
        if note is None or note.get("shard") != str(shard):
            told = "has no note" if note is None else f"is noted as shard {note.get('shard')}"
            raise InputError(
                f"{path} {told}, so it may belong to another run", hint=f"run it again: --shard {shard}, after removing it"
            )
        if notes and (told := _differ(notes[0], note)):
            raise InputError(
                f"{path} belongs to another run than {next(iter(shards.values()))}: {told}",
                hint=f"run that shard again with the settings of the others: --shard {shard}",
            )
        notes.append(note)
    own = read_note(target)
    if own is not None and target.exists() and target.stat().st_size and (told := _differ(own, notes[0], rows=False)):
        raise InputError(f"{target} belongs to another run than its shards: {told}", hint="move it away, then merge again")
    return notes


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], *, rows: bool = True) -> str:
    both = [
        name for name in ("options", "votes", "run_of") if name in one and name in other
    ]  # a shard without rows has none
    before, after = ({name: note[name] for name in both} for note in (one, other))
    if one.get("profile") and other.get("profile"):
        before["profile"], after["profile"] = in_common(one["profile"], other["profile"])
    if rows:
        before["input"], after["input"] = ({n: note["input"][n] for n in ("rows", "sha256")} for note in (one, other))
    return "; ".join(differences(before, after))


def _check(
    shards: Mapping[Shard, Path], entries: Mapping[Shard, Sequence[_KeptLine]], total: int, *, partial: bool
) -> tuple[int, int]:
    """Return how many rows failed and how many are missing. Raises `InputError` at a foreign row and an unfinished shard."""
    failed = missing = 0
    for shard, path in shards.items():
        rows: dict[int, bool] = {}
        for entry in entries[shard]:
            if entry.row < total:
                if not shard.holds(entry.row):
                    raise InputError(
                        f"{path} answers row {entry.row}, which is no row of shard {shard}",
                        hint=f"run that shard again: --shard {shard}",
                    )
                rows[entry.row] = entry.failed
        left = shard.rows_of(total) - len(rows)
        if left and not partial:
            raise InputError(
                f"{path} has {len(rows)} of {shard.rows_of(total)} rows: the shard has not finished",
                hint=f"run it again: --shard {shard}; or join what there is: merge --partial",
            )
        failed, missing = failed + sum(rows.values()), missing + left
    return failed, missing


def _others(
    target: Path, form: _Form, entries: Mapping[Shard, Sequence[_KeptLine]], total: int
) -> list[tuple[_KeptLine, int]]:
    """Return the lines of the run's own file that no shard has, each with its new row: a later limit may need them."""
    if not target.exists() or not target.stat().st_size:
        return []
    known = {entry.content for found in entries.values() for entry in found}
    beyond = 1 + max([total - 1, *(entry.row for found in entries.values() for entry in found)])
    rest = [entry for entry in form.entries(target) if entry.content not in known]
    return [(entry, beyond + at) for at, entry in enumerate(rest)]


def _write(
    own: OwnFile,
    form: _Form,
    shards: Mapping[Shard, Path],
    entries: Mapping[Shard, Sequence[_KeptLine]],
    rest: Sequence[tuple[_KeptLine, int]],
    total: int,
) -> None:
    every = list(shards)
    places = array("Q", bytes(8 * total))
    beyond: list[tuple[int, int, int]] = []
    for at, shard in enumerate(every):
        for entry in entries[shard]:
            if entry.row < total:
                places[entry.row] = entry.offset + 1  # a later line of a row replaces an earlier one
            else:
                beyond.append((entry.row, at, entry.offset))
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in shards.values()]
        old = stack.enter_context(own.path.open("rb")) if rest else None
        with own.rewriting() as copy:
            copy.write(form.first(next(iter(shards.values())), total))
            for row, place in enumerate(places):
                if place:
                    copy.write(_line_at(files[row % len(files)], place - 1))
            used = total
            for _, at, offset in sorted(beyond):  # rows that are not in the input now, but may be with a higher limit
                copy.write(form.placed(_line_at(files[at], offset), used))
                used += 1
            for entry, row in rest:
                assert old is not None  # opened above
                copy.write(form.placed(_line_at(old, entry.offset), max(row, used)))


def _line_at(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.readline()


def _note_of_all(target: Path, notes: Sequence[Mapping[str, Any]]) -> None:
    note: dict[str, Any] = {}
    for other in reversed(notes):
        profile = joined(note.get("profile") or {}, other.get("profile") or {})
        note |= other
        if "profile" in note:
            note["profile"] = profile
    del note["run"]
    try:
        write_note(target, {**note, "shard": None})
    except OSError as error:
        raise unwritable(target, error, other=_OTHER) from error


def _remove(shards: Mapping[Shard, Path]) -> None:
    for path in shards.values():
        for each in (path, note_beside(path)):
            each.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------- forms of files


def _answers(path: Path) -> Iterator[_KeptLine]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            found = _LINE.match(line)
            if not line.endswith(b"\n"):
                return  # a run was killed while it wrote
            if found is None:
                raise InputError(f"{path}:{number}: not a line of an answer file", hint="delete the line, then merge again")
            content = (found[3] or found[2]).decode()
            yield _KeptLine(int(found[1]), offset, content, _FAILED.search(line) is not None)
            offset += len(line)


def _placed_answer(line: bytes, row: int) -> bytes:
    found = _LINE.match(line)
    assert found is not None  # `_answers` has read it
    return b'{"index":%d%s' % (row, line[found.end(1) :])


def _journal(path: Path) -> Iterator[_KeptLine]:
    with path.open("rb") as file:
        for line in whole_lines(file, path):
            if line.number > 1:
                head = head_of(line)
                yield _KeptLine(head.row, line.offset, head.key[:16], head.error is not None)


def _placed_record(line: bytes, row: int) -> bytes:
    from workflow_composer.batch.run.lines import Line

    return moved(Line(0, 0, line), row)


def _header(path: Path, total: int) -> bytes:
    with path.open("rb") as file:
        first = next(whole_lines(file, path))
        return header_line({**header_of(first, path, to_go_on=True), "rows": total})


_ANSWERS = _Form(_answers, _placed_answer, lambda path, total: b"")
_JOURNALS = _Form(_journal, _placed_record, _header)
