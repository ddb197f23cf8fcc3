"""docs/watching.md says what the code does."""

import math
import re

from tests.paths import ROOT
from workflow_composer.calibration.monitoring.audits import AUDITS_FILE, AUDITS_VARIABLE
from workflow_composer.calibration.monitoring.error_monitor import RiskMonitor
from workflow_composer.cli.commands.feedback import feedback

DOCS = (ROOT / "docs" / "watching.md").read_text(encoding="utf-8")


def test_every_option_in_the_text_exists():
    """And the file and the variable are called so."""
    options = {name for parameter in feedback.params for name in parameter.opts}
    in_commands = re.findall(r"feedback (--[a-z]+)|`(--[a-z]+)`|(--json)", DOCS)
    assert {name for found in in_commands for name in found if name} <= options
    assert AUDITS_FILE in DOCS
    assert f"${AUDITS_VARIABLE}" in DOCS


def test_the_stated_numbers_of_audits_are_those_that_the_monitor_states():
    """Twelve rows: alpha, error, then stated, median and 95 % behind 0, 200 and 1,000 audits."""
    rows = [list(map(float, row.split("|")[1:-1])) for row in re.findall(r"^\|(?: [\d.]+ \|){11}$", DOCS, re.MULTILINE)]
    assert len(rows) == 12
    for alpha, error, *found in rows:
        monitor = RiskMonitor(alpha)
        assert found[::3] == [math.ceil(monitor.audits_to_alarm(error, after)) for after in (0, 200, 1000)]
