"""Batches: reading data sets, planning routes, running rows, reporting results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.columns import Columns
    from workflow_composer.batch.datasets.dataset import find
    from workflow_composer.batch.planning.probe import Probe
    from workflow_composer.batch.planning.probe_training import evaluate, train
    from workflow_composer.batch.report.report import build_report
    from workflow_composer.batch.run.records import RowRecord

__all__ = ["Columns", "Probe", "RowRecord", "build_report", "evaluate", "find", "train"]

_HOMES = {
    "Columns": "datasets.columns",
    "Probe": "planning.probe",
    "RowRecord": "run.records",
    "build_report": "report.report",
    "evaluate": "planning.probe_training",
    "find": "datasets.dataset",
    "train": "planning.probe_training",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
