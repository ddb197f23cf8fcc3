"""Record, calibrate and run through the real command line: one half of the problems certifies, the other is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.paths import CHECKPOINTS

ALPHA = DELTA = 0.1


@dataclass
class CertifiedRun:
    """A folder with a profile. ``models`` and ``tiers`` as profiles write them; ``rows`` of each half."""

    folder: Path
    models: dict[str, Any]
    tiers: dict[str, Any]
    rows: int

    def __post_init__(self) -> None:
        lines = (CHECKPOINTS / "problems.jsonl").read_text().splitlines(keepends=True)
        half = len(lines) // 2
        data = self.folder / "data"
        data.mkdir()
        (data / "first.jsonl").write_text("".join(lines[:half][: self.rows]))
        (data / "second.jsonl").write_text("".join(lines[half:][: self.rows]))

    def profile(self, name: str, **settings: Any) -> Path:
        """A profile file with the execution-feedback router first; ``settings`` are the router's."""
        path = self.folder / f"{name}.yaml"
        content = {
            "profile_name": name,
            "allow_cloud": False,
            "models": self.models,
            "tiers": self.tiers,
            "routers": [{"execution_feedback": settings}, "provider"],
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def command(self, profile: Path, *arguments: str, code: int = 0) -> Any:
        """Run a command of the command line; its JSON."""
        command = [sys.executable, "-m", "workflow_composer", "-s", str(profile), "--json", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout if code == 0 else done.stderr)

    def certify(self) -> dict[str, Any]:
        """Record every tier on the first half and calibrate on that; the certificate."""
        rules = self.profile("rules")
        self.command(rules, "record", "--datasets", "first", "--data-dir", "data", "-o", "first-answers.jsonl")
        levels = ("--alpha", str(ALPHA), "--delta", str(DELTA))
        self.command(rules, "calibrate", "--replay", "first-answers.jsonl", *levels, "-o", "certificate.json")
        return json.loads((self.folder / "certificate.json").read_text())

    def execute(self, profile: Path, *routes: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """Answer the second half by these routes: summaries and rows, by route."""
        where = ("--datasets", "second", "--data-dir", "data")
        summaries = self.command(profile, "execute", "--routes", *routes, *where)
        rows = {}
        for route in routes:
            lines = (self.folder / "results" / "second" / route / "results.jsonl").read_text().splitlines()
            rows[route] = [json.loads(line) for line in lines]
        return {summary["policy"]: summary for summary in summaries}, rows


def error_of_accepted(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """How many answers were accepted, and how many of them are wrong."""
    accepted = [row for row in rows if row["accepted"]]
    return len(accepted), sum(not row["correct"] for row in accepted)
