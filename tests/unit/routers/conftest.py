"""Certified orchestrators over scripted models."""

from __future__ import annotations

import json

import pytest

from tests.unit.calibration.certificates import certificate
from tests.unit.routers.scripted import NAMES, identified, orchestrating, profile


@pytest.fixture
def certified(tmp_path):
    """Make an orchestrator that a certificate decides for; its audits lie beside it."""

    def make(made=None, settings=None, *, audit=None, fields=None, **scripts):
        path = tmp_path / "certificate.json"
        identified(made or certificate(NAMES)).save(path)
        audits = {"rate": 0.0, "file": str(tmp_path / "audits.jsonl"), **(audit or {})}
        return orchestrating(
            profile({"certificate": str(path), "audit": audits, **(settings or {})}, **(fields or {})), **scripts
        )

    return make


@pytest.fixture
def audits(tmp_path):
    """The events on file."""
    path = tmp_path / "audits.jsonl"
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
