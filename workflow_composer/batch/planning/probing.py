"""The predictions of adaptive policies: a saved probe, or one trained on the probing data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflow_composer.batch.planning.plan_table import TokenAssumption, plan
from workflow_composer.batch.planning.probe import Probe
from workflow_composer.batch.planning.probe_training import samples_of, train
from workflow_composer.batch.run.planned_run import JOURNAL
from workflow_composer.batch.run.preparation import Everywhere, Preparation, limited
from workflow_composer.errors import InputError

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.recorded_answers import RecordedAnswers
    from workflow_composer.batch.planning.plan_table import PlanTable
    from workflow_composer.batch.planning.policies import Floats, PlanningContext, PlanningTier, Predictor, Questions

    Answer = Callable[[Any, PlanTable, Path, str], None]

SAMPLES = 4
"""Samples per question and tier for training a probe: a trade-off between information and cost."""


class Uninformed:
    """The prediction without a probe: every tier answers half of the questions correctly."""

    def success(self, questions: Questions, tier: str) -> Floats:
        """Return 0.5 for each question."""
        return np.full(len(questions), 0.5)


def predictor_of(
    preparation: Preparation, context: PlanningContext, answer: Answer, tell: Callable[[str], None]
) -> tuple[Predictor, TokenAssumption]:
    """Return the predictor for the plans and its token averages; pass a summary of its quality to ``tell``, line by line.

    A probe in the output folder that was trained on the same rows, tiers and models is reused. Otherwise training needs
    samples: from a recording, or from models by ``answer`` (rows, plan, folder, label), which draws every vote to its end.
    A dry run calls no model: it uses `Uninformed` instead and says so.
    """
    options = preparation.options
    names = [tier.name for tier in context.tiers]
    models = {name: str(preparation.config.resolve(name)[0].model) for name in names}
    if options.probe is not None:
        probe = Probe.load(options.probe)
        probe.check(names, models)
        preparation.has_probe = True
        return probe, TokenAssumption.of_probe(probe)
    rows = _rows(preparation)
    what = hashlib.sha256(repr((rows.sha256(), models, options.probing_rows, SAMPLES)).encode()).hexdigest()
    path = options.output / "probes" / f"{rows.name}-{what[:12]}.json"
    if path.exists():
        probe = Probe.load(path)
        probe.check(names, models)
    elif options.dry_run and preparation.recorded is None:
        tell(
            f"note: no probe has been trained on {rows.name} for these tiers yet. The plan below assumes that every tier "
            "answers half of the questions correctly; without --dry-run the probe is trained first."
        )
        return Uninformed(), TokenAssumption()
    elif options.shard is not None and preparation.recorded is None:
        raise InputError(
            f"no probe has been trained on {rows.name} for these tiers yet, and each shard would train one",
            hint="train it first: the same command with --train-probe instead of --shard",
        )
    else:
        samples = _recorded(preparation.recorded, rows, models, options.probing_rows)
        if samples is None:
            samples = _drawn(options.probing_rows, context, rows, path.with_suffix(""), answer)
        probe = train(samples, names, dataset=rows.name, digest=rows.sha256(), models=models)
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.save(path)
    preparation.has_probe = True
    tell(f"probe: {path}, trained on {probe.training.rows} rows of {probe.training.dataset}")
    for name, predictor in probe.tiers.items():
        tell(f"  {name}: {_scores(predictor)}")
    return probe, TokenAssumption.of_probe(probe)


def _rows(preparation: Preparation) -> Any:
    """Return the probing data set: the recording itself if it is named, else a file of the data folder."""
    from workflow_composer.batch.datasets.dataset import find

    name = preparation.options.probing_dataset
    assert name is not None  # the caller has checked
    if preparation.recorded is not None and name == preparation.recorded.name:
        return preparation.recorded
    return find(name, preparation.options.data_dir, columns=preparation.options.columns)


def _recorded(recorded: RecordedAnswers | None, rows: Any, models: dict[str, str], limit: int) -> Any:
    """Return graded samples from the recording if it is the probing data set, else None. Raises `InputError`."""
    if recorded is None or rows is not recorded:
        return None
    import pandas as pd

    questions = {row.question for row in islice(recorded.rows(), limit)}
    tiers = {model: name for name, model in models.items()}
    found = [
        (answer.question.strip(), tiers[answer.model], answer.correct, answer.tokens, answer.prompt_tokens)
        for answer in recorded.answers()
        if answer.model in tiers and answer.correct is not None and answer.question.strip() in questions
    ]
    if not found:
        raise InputError(f"{recorded.path}: no graded answers", hint="use a recording with grades to train a probe")
    return pd.DataFrame(found, columns=["question", "model", "correct", "tokens", "prompt_tokens"])


def _drawn(limit: int, context: PlanningContext, rows: Any, folder: Path, answer: Answer) -> Any:
    """Draw samples of every tier on the first rows of the data set, resumable like every batch."""
    from workflow_composer.batch.planning.policies import PlanningContext
    from workflow_composer.batch.report.results import records

    questions = {row.row: row.question for row in islice(rows.rows(), limit)}
    found: list[Any] = []
    for tier in context.tiers:
        own = PlanningContext(context.tiers, parse=context.parse)
        table = plan(limited(rows.chunks(), limit), Everywhere(_route(context, tier)), own, name=tier.name)
        place = folder / tier.name.replace("/", "_")
        answer(rows, table, place, f"probing {rows.name}, {tier.name}")
        found += records(place / JOURNAL)
    return samples_of(found, questions.__getitem__)


def _route(context: PlanningContext, tier: PlanningTier) -> str:
    return context.route([(tier, SAMPLES)])


def _scores(predictor: Any) -> str:
    if predictor.scores is None:
        return predictor.note or "a constant"
    auroc = predictor.scores.auroc
    own, length = auroc["probe"], auroc.get("length")
    beside = "" if length is None else f" (by question length alone {length.value:.2f})"
    return f"{predictor.scores.right:.1%} right, out-of-sample AUROC {own.value:.2f}{beside}"
