"""One tier's threshold: the numbers it is built from, and that it keeps its target."""

from __future__ import annotations

import numpy as np

from workflow_composer.calibration.risk import fixed_grid, select


def test_a_useless_score_is_accepted_nowhere():
    """Three answers in ten are wrong, whatever the score says."""
    rng = np.random.default_rng(0)
    found = select(rng.random(2_000), rng.random(2_000) < 0.7, fixed_grid(), alpha=0.1, delta=0.1)
    assert found.threshold is None
    assert (found.accepted, found.wrong, found.bound, found.labels_needed) == (0, 0, 1.0, None)
