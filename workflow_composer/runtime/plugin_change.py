"""What follows from a new generation of plugins for one orchestrator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workflow_composer.runtime.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class PluginChange:
    """A snapshot of the active profile with other plugins, ready to be published."""

    snapshot: Snapshot
    publish: Callable[[], None]
    retire: Callable[[Snapshot], None]

    def discard(self) -> None:
        """Close the snapshot unused."""
        self.retire(self.snapshot)
