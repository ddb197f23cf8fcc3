"""Thresholds with a guarantee: scores, certificates, and the watch over them in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow_composer.calibration.certify.assessment import assess
    from workflow_composer.calibration.certify.calibrate import calibrate
    from workflow_composer.calibration.certify.certificate import Certificate
    from workflow_composer.calibration.certify.pairs import from_pairs, from_records
    from workflow_composer.calibration.scores.offline import cascade_of
    from workflow_composer.calibration.scores.signals import FeedbackRules

__all__ = ["Certificate", "FeedbackRules", "assess", "calibrate", "cascade_of", "from_pairs", "from_records"]

_HOMES = {
    "Certificate": "certify.certificate",
    "FeedbackRules": "scores.signals",
    "assess": "certify.assessment",
    "calibrate": "certify.calibrate",
    "cascade_of": "scores.offline",
    "from_pairs": "certify.pairs",
    "from_records": "certify.pairs",
}


def __getattr__(name: str) -> Any:
    from workflow_composer.support.lazy_names import lift

    return lift(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
