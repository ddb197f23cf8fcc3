"""Many rows whose answers are all kept: what they take grows with their number, and no faster."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

FEW, MANY = 5_000, 20_000


@pytest.mark.slow
def test_memory_and_time_of_kept_answers_grow_with_the_rows_and_no_faster():
    command = [sys.executable, "benchmarks/workflow_scale.py", "--rows", str(FEW), "--rows", str(MANY), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    few, many = json.loads(done.stdout)
    for found, rows in ((few, FEW), (many, MANY)):
        assert (found["done"], found["kept"], found["calls"]) == (rows, 3 * rows, 0)
    assert many["cpu"] / few["cpu"] < 1.5 * MANY / FEW, "of a growth with the square, it would be 16"
    assert many["peak"] - few["peak"] < 25, "MiB; the answers as Python's objects would be more than a hundred"
