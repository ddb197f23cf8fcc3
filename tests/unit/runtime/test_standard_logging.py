"""Decisions and warnings go where the program's own log goes: structlog, `logging`, or standard error."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import structlog

from tests.paths import ROOT
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import MemorySink

PROFILE = {"profile_name": "p", "models": {"a": {"backend": "fake"}}, "task_routing": {"*": "a"}, "debug_routing": True}


@pytest.fixture(autouse=True)
def _unconfigured():
    """A service that ran in this process before has configured structlog."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


def asked(log=None):
    """One request with debugging on, its prompt a secret."""
    config = StrategyConfig(**PROFILE)
    with ModelOrchestrator(config, metrics=MemorySink(), environ={}, log=log) as orchestrator:
        return orchestrator.generate("a private question").request_id


def test_a_program_that_has_configured_logging_finds_decisions_there(caplog, capsys):
    """On one line, with its fields on the record; without the prompt, and nowhere else."""
    caplog.set_level(logging.INFO, logger="workflow_composer")
    request_id = asked()
    (record,) = [one for one in caplog.records if one.name == "workflow_composer"]
    assert record.levelname == "INFO"
    assert record.getMessage().startswith("routed ")
    assert f"request_id={request_id}" in record.getMessage()
    assert (record.fields["task"], record.fields["plan"]) == ("*", "a")
    assert "private" not in record.getMessage()
    assert capsys.readouterr().err == ""


def test_the_level_of_the_logger_holds(caplog):
    """As of any other library."""
    caplog.set_level(logging.WARNING, logger="workflow_composer")
    asked()
    assert caplog.records == []


def test_an_explicit_stream_and_structlog_go_before(caplog):
    """In this order."""
    caplog.set_level(logging.INFO, logger="workflow_composer")
    stream = io.StringIO()
    asked(log=stream)
    assert "event=routed" in stream.getvalue()
    with structlog.testing.capture_logs() as heard:
        structlog.configure(processors=structlog.get_config()["processors"])
        try:
            asked()
        finally:
            structlog.reset_defaults()
    assert [one["event"] for one in heard] == ["routed"]
    assert caplog.records == []


@pytest.mark.parametrize("configured", [True, False])
def test_a_plain_program_has_them_in_its_own_format_or_on_standard_error(configured):
    """Without a line of configuration nothing is lost."""
    program = f"""
import logging
if {configured}:
    logging.basicConfig(level=logging.INFO, format="MINE %(name)s %(levelname)s %(message)s")
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import MemorySink
with ModelOrchestrator(StrategyConfig(**{PROFILE!r}), metrics=MemorySink(), environ={{}}) as orchestrator:
    orchestrator.generate("q")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    start = "MINE workflow_composer INFO routed request_id=" if configured else "timestamp="
    (line,) = [line for line in done.stderr.splitlines() if "routed" in line]
    assert line.startswith(start)
