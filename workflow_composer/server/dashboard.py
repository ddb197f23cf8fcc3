"""The dashboard's routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workflow_composer.calibration.audits import AuditLog
from workflow_composer.metrics.live_files import SharedMetrics
from workflow_composer.server.exchange import Handler
from workflow_composer.server.observing import Observing
from workflow_composer.server.settings import ServerSettings
from workflow_composer.server.strategies import Switchboard

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator


class Dashboard:
    """Handlers of the page and of what it shows."""

    def __init__(
        self,
        orchestrator: ModelOrchestrator,
        metrics: SharedMetrics,
        observing: Observing,
        strategies: Switchboard,
        audits: AuditLog,
        settings: ServerSettings,
    ) -> None:
        self._orchestrator = orchestrator

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Paths and their handlers."""
        return {}
