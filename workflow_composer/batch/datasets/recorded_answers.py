"""Recorded answers as a data set with grades: cascades over real models' answers, without the models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow_composer.backends.recordings import Recorded, Recording, open_recording
from workflow_composer.batch.datasets.dataset import Row
from workflow_composer.config.strategy import StrategyConfig, TierSpec
from workflow_composer.errors import InputError, ModelError, nearest

if TYPE_CHECKING:
    import pyarrow as pa


_CHUNK = 65_536


class RecordedAnswers:
    """The distinct questions of a recording in file order, and the grades of its answers.

    It has the interface of `workflow_composer.batch.datasets.dataset.DataSet`; its rows have no labels. Raises `InputError`
    if the file is missing or damaged.
    """

    split = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = (path,)
        self.name = path.name.partition(".")[0] or path.name
        try:
            self._recording: Recording = open_recording(path)
        except ModelError as error:
            raise InputError(error.message, hint="docs/recordings.md describes the file format") from None
        if not self._recording.models:
            raise InputError(f"{path}: no answers", hint="docs/recordings.md describes the file format")
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
        """The recorded models, in file order."""
        return tuple(self._recording.models)

    def samples(self, model: str) -> int:
        """Return the smallest number of answers that this model has to a question."""
        return min(len(grades) for (name, _), grades in self._right.items() if name == model)

    def count(self) -> int:
        """Return the number of questions."""
        return len(self._questions)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yield the questions, beginning at number ``start``."""
        for number in range(start, len(self._questions)):
            yield Row(number, str(number), self._questions[number], None)

    def chunks(self, size: int = _CHUNK) -> Iterator[pa.Table]:
        """Yield the same as tables with the columns ``question`` and ``label`` (null)."""
        import pyarrow as pa

        for first in range(0, len(self._questions), size):
            questions = pa.array(self._questions[first : first + size], pa.string())
            yield pa.table({"question": questions, "label": pa.nulls(len(questions), pa.string())})

    def answers(self) -> Iterator[Recorded]:
        """Yield every recorded answer, in file order."""
        return self._recording.records()

    def sha256(self) -> str:
        """Return the SHA-256 digest (hex) of the file."""
        return self.digest

    def check(self) -> None:
        """Do nothing: the recording keeps its file open."""

    def right(self, model: str, question: str, sample: int) -> bool | None:
        """Whether this answer is correct; None if it was not graded."""
        number = self._numbers.get(question.strip())
        grades = self._right.get((model, -1 if number is None else number), [])
        return grades[sample] if sample < len(grades) else None


# ---------------------------------------------------------------------------------------------------------- replay profile
#
# The profile of an ``execute`` run: the active one with the voting options applied, or one made for a recording.


CASCADE = "cascade"


def with_votes(config: StrategyConfig, votes: Mapping[str, Any]) -> StrategyConfig:
    """Return the profile with the cascade router first and its settings overridden by ``votes``."""
    routers = [_named(router) for router in config.to_dict()["routers"]]
    own = next((settings for name, settings in routers if name == CASCADE), {})
    others = [{name: settings} for name, settings in routers if name != CASCADE]
    return config.replaced(routers=[{CASCADE: {**own, **votes}}, *others])


def of_recording(path: Path, models: tuple[str, ...], config: StrategyConfig | None) -> StrategyConfig:
    """Return a profile in which recorded answers replace the models.

    Tiers and prices are those of ``config``, for models that were recorded (under the tier's or the model's name). Without
    ``config`` every recorded model is a tier, in file order. Raises `InputError` if no tier of ``config`` was recorded.
    """
    tiers: dict[str, Any] = {}
    catalogue: dict[str, Any] = {name: _replayed(path, name) for name in models}
    for name, spec in (config.tiers if config else {}).items():
        assert config is not None
        recorded = next((known for known in (name, spec.model, _model_of(config, spec)) if known in catalogue), None)
        if recorded is None:
            continue
        target = config.resolve(name)[0]
        catalogue[recorded] |= {"input_price": target.input_price, "output_price": target.output_price}
        data = spec.model_dump(exclude={"model", "cost"}, exclude_none=True)
        tiers[name] = {**data, "model": recorded}
    if config is not None and config.tiers and not tiers:
        near = nearest(next(iter(config.tiers)), list(models))
        raise InputError(
            f"{path} has no answers of the tiers of {config.profile_name!r}, only of {', '.join(models)}", hint=near
        )
    if not tiers:
        tiers = {name: {"model": name} for name in models}
    settings = next((spec.settings for spec in config.routers if spec.name == CASCADE), {}) if config else {}
    return StrategyConfig(
        profile_name=f"{config.profile_name}-replayed" if config else "replayed",
        allow_cloud=False,
        models=catalogue,
        tiers=tiers,
        routers=[{CASCADE: dict(settings)}, "provider"],
    )


def _replayed(path: Path, model: str) -> dict[str, Any]:
    return {"backend": "replay", "path": str(path.resolve()), "model": model}


def _model_of(config: StrategyConfig, spec: TierSpec) -> str | None:
    return config.resolve(spec.model)[0].model


def _named(router: Any) -> tuple[str, dict[str, Any]]:
    return (router, {}) if isinstance(router, str) else next(iter(router.items()))
