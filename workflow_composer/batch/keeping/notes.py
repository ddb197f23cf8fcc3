"""The note beside a file of answers: which settings, profile and rows its answers rest on.

``answers.jsonl`` has the note ``answers.jsonl.run.json``. Without it, answers are matched to rows and options together, as
earlier versions did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_composer.answers.form import as_data
from workflow_composer.batch.keeping.identity import differences
from workflow_composer.errors import InputError
from workflow_composer.storage.lines import unreadable
from workflow_composer.storage.replacing import replace_file

NOTE = ".run.json"
_FORM = 1
_BY_NAME = ("models", "tiers", "task_routing")
"""Parts of a profile of which only the names in use are noted, so that a new name is no change."""


def note_beside(path: Path) -> Path:
    """Return the path of a file's note."""
    return path.with_name(path.name + NOTE)


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the note of a file of answers; None if it has none. Raises `InputError` if it is damaged."""
    beside = note_beside(path)
    try:
        found = json.loads(beside.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(beside, error) from None
    except ValueError as error:
        raise InputError(f"{beside} is damaged: {error}", hint=_restore(path)) from None
    if not isinstance(found, dict) or found.get("run") != _FORM:
        raise InputError(f"{beside} was written by another version of this program", hint=_restore(path))
    return found


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write the note of a file of answers, readable by its owner only. Raises OSError."""
    text = json.dumps({"run": _FORM, **note}, indent=1, default=as_data)
    replace_file(note_beside(path), text + "\n", mode=0o600)


def refuse_other_settings(path: Path, what: str, then: Mapping[str, Any], now: Mapping[str, Any], *, other: str) -> None:
    """Raise `InputError` that names the differences, if the answers rest on other settings."""
    if told := differences(then, now):
        raise InputError(
            f"{path}: {what} changed since it was begun: {'; '.join(told)}",
            hint=f"restore the earlier settings, or choose {other} for the new ones",
        )


def in_common(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two meanings of a profile without the names of models, tiers and tasks that only one of them uses."""
    before, after = dict(then), dict(now)
    for part in _BY_NAME:
        one, other = before.get(part) or {}, after.get(part) or {}
        before[part] = {name: one[name] for name in one if name in other}
        after[part] = {name: other[name] for name in other if name in one}
    return before, after


def joined(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return a meaning of a profile with the names of both."""
    return {**then, **now, **{part: {**(then.get(part) or {}), **(now.get(part) or {})} for part in _BY_NAME}}


def _restore(path: Path) -> str:
    return f"restore it, or choose another file than {path} for the new run"
