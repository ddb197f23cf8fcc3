"""Recorded answers as a data set and as its grader: cascades over real models' answers, without the models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workflow_composer.backends.recordings import Recorded, Recording, open_recording
from workflow_composer.batch.datasets import Row
from workflow_composer.errors import InputError, ModelError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 65_536


class RecordedAnswers:
    """The questions of a recording in the order of the file, each once; and whether its answers are right.

    It can be read as a data set is (`workflow_composer.batch.datasets.DataSet`); its rows have no labels.
    Raises `InputError` where the file is missing or damaged.
    """

    split = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = (path,)
        self.name = path.name.removesuffix(".gz").removesuffix(".jsonl")
        try:
            self._recording: Recording = open_recording(path)
        except ModelError as error:
            raise InputError(error.message, hint="docs/recordings.md says what the file holds") from None
        if not self._recording.models:
            raise InputError(f"{path}: no answers", hint="docs/recordings.md says what the file holds")
        self._questions: list[str] = []
        self._numbers: dict[str, int] = {}
        self._right: dict[tuple[str, int], list[bool | None]] = {}
        for record in self._recording.records():
            question = record.question.strip()
            number = self._numbers.setdefault(question, len(self._questions))
            if number == len(self._questions):
                self._questions.append(question)
            grades = self._right.setdefault((record.model, number), [])
            grades += [None] * (record.sample + 1 - len(grades))
            grades[record.sample] = record.correct
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def models(self) -> tuple[str, ...]:
        """The models that were recorded, in the order in which the file names them."""
        return tuple(self._recording.models)

    def samples(self, model: str) -> int:
        """The fewest answers that this model has to any of its questions."""
        return min(len(grades) for (name, _), grades in self._right.items() if name == model)

    def count(self) -> int:
        """How many questions there are."""
        return len(self._questions)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The questions from number ``start`` on."""
        for number in range(start, len(self._questions)):
            yield Row(number, str(number), self._questions[number], None)

    def chunks(self, size: int = _CHUNK) -> Iterator[pa.Table]:
        """The same as tables with the columns ``question`` and ``label``, which is null."""
        import pyarrow as pa

        for first in range(0, len(self._questions), size):
            questions = pa.array(self._questions[first : first + size], pa.string())
            yield pa.table({"question": questions, "label": pa.nulls(len(questions), pa.string())})

    def answers(self) -> Iterator[Recorded]:
        """Every recorded answer, in the order of the file."""
        return self._recording.records()

    def sha256(self) -> str:
        """A digest (hex) of the file."""
        return self.digest

    def check(self) -> None:
        """Nothing to check: the recording holds its file open."""

    def right(self, model: str, question: str, sample: int) -> bool | None:
        """Whether this answer is right; None where nobody graded it."""
        number = self._numbers.get(question.strip())
        grades = self._right.get((model, -1 if number is None else number), [])
        return grades[sample] if sample < len(grades) else None
