"""The values of the common options, and how commands get an orchestrator."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig
    from workflow_composer.metrics.sink import MetricsSink
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.runtime.decision_log import LogStream


OpenOrchestrator = Callable[["State", "MetricsSink | None"], "ModelOrchestrator"]


def open_orchestrator(state: State, metrics: MetricsSink | None) -> ModelOrchestrator:
    """Return the orchestrator of the named, or else detected, strategy. Raises `ConfigError`, `NoStrategy`."""
    from workflow_composer.orchestrator import ModelOrchestrator

    orchestrator = ModelOrchestrator(state.strategy, metrics=metrics, environ=state.environ, log=state.log or sys.stderr)
    state.tell_where(orchestrator.config)
    return orchestrator


@dataclass
class State:
    """The common options. ``open`` creates an orchestrator and can be replaced in tests; ``log`` receives decisions.

    ``arguments`` are those of the command line. ``told_where``: `tell_where` has printed its line, or has none to print.
    ``json_is_fields``: the command's ``--json`` names fields, so that it does not ask for JSON output.
    """

    strategy: str | None = None
    json: bool = False
    debug: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    open: OpenOrchestrator = open_orchestrator
    log: LogStream | None = None
    arguments: tuple[str, ...] = ()
    json_is_fields: bool = False
    told_where: bool = False

    def tell_where(self, config: StrategyConfig) -> None:
        """On a terminal, say once on standard error where prompts go."""
        if not (self.told_where or self.json):
            from workflow_composer.runtime.destinations import tell_where

            self.told_where = True
            tell_where(config, self.environ)

    @property
    def named(self) -> str:
        """The profile that the command line or the environment names; empty for none."""
        from workflow_composer.support.places import STRATEGY_VARIABLE

        return self.strategy or self.environ.get(STRATEGY_VARIABLE, "").strip()

    def profile(self) -> StrategyConfig | None:
        """Load the named profile without building its routers, which may need files that do not exist yet.

        Return None if no profile is named. Raises `ConfigError`.
        """
        if not (named := self.named):
            return None
        from workflow_composer.config.strategy import StrategyConfig

        return StrategyConfig.load(named, environ=self.environ)

    def log_file(self, name: str) -> Path:
        """Return where a log is: in the named profile's folder ``logs``, else in the user's state folder."""
        from workflow_composer.support.places import log_file

        profile = self.profile()
        return log_file(self.environ, name, None if profile is None else profile.logs)

    def metrics_file(self) -> Path:
        """Return the metrics file, of earlier requests if metrics are off now."""
        from workflow_composer.metrics.sink import METRICS_FILE, METRICS_VARIABLE, metrics_file

        named = self.environ.get(METRICS_VARIABLE, "").strip()
        return (metrics_file(self.environ) if named else None) or self.log_file(METRICS_FILE)

    @contextmanager
    def orchestrator(self, metrics: MetricsSink | None = None) -> Iterator[ModelOrchestrator]:
        """Yield an orchestrator and close it at the end. After Ctrl-C the process ends soon, even if closing takes long."""
        orchestrator = self.open(self, metrics)
        try:
            yield orchestrator
        except KeyboardInterrupt:
            from workflow_composer.cli.interrupt import INTERRUPTED, leave_soon

            leave_soon(INTERRUPTED)
            raise
        finally:
            orchestrator.close()
