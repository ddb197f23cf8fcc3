"""status: the line about the day's requests."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tests.unit.metrics.examples import metric


@pytest.fixture
def written(command):
    """Writes the metrics of past requests."""
    path = command.folder / "metrics.jsonl"
    command.environ["WORKFLOW_COMPOSER_METRICS"] = str(path)

    def write(*metrics):
        path.write_bytes(b"".join(one.to_json() for one in metrics))

    return write


def today(**fields):
    """The metric of a request of this moment."""
    return metric(timestamp=datetime.now(UTC).isoformat(timespec="milliseconds"), **fields)


@pytest.mark.parametrize("arguments", [("status", "--no-probe"), ()])
def test_the_day_is_on_one_line(command, written, arguments):
    """Requests, failures, cost, and the models that answered, the most frequent first."""
    old = metric(timestamp="2020-01-01T12:00:00.000+00:00", cost=99.0)
    written(old, *[today(model_used="small", cost=0.25)] * 3, today(model_used="large", cost=1.25, success=False))

    assert "today:     4 requests, 1 failed, cost $2.00; small 3, large 1\n" in command(*arguments).out


def test_json_has_the_day_as_numbers(command, written):
    """With the rest of the status."""
    written(today(model_used="small", cost=0.25))
    found = json.loads(command("status", "--no-probe", "--json").out)["today"]

    assert (found["requests"], found["failed"], found["cost"], found["by_model"]) == (1, 0, 0.25, {"small": 1})


def test_no_request_and_no_readable_file_are_told(command):
    """Neither is an error of the status."""
    command.environ["WORKFLOW_COMPOSER_METRICS"] = str(command.folder / "none.jsonl")
    assert "today:     no requests\n" in command("status", "--no-probe").out
    (command.folder / "none.jsonl").mkdir()
    done = command("status", "--no-probe")
    assert done.code == 0
    assert "today:     cannot read" in done.out
