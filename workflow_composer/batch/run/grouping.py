"""Rows with the same context next to each other, so that a server's cache still has it when the next of them comes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workflow_composer.batch.run.rows import InputRow, RowFile

if TYPE_CHECKING:
    from workflow_composer.contexts.applying import Contexts

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
