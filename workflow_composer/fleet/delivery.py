"""Delivery of alerts: save them, remove each one before it is sent, retry once if a channel failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from workflow_composer.fleet.alerts import Alert, AlertFailed, Channel
from workflow_composer.fleet.memory import MonitorFiles, Remembered, Unsent


class Delivery:
    """Sends alerts through every channel. ``say`` writes a line to the log."""

    def __init__(self, files: MonitorFiles, channels: tuple[Channel, ...], say: Callable[[str], None]) -> None:
        self._files = files
        self._channels = {channel.name: channel for channel in channels}
        self._say = say

    def remember(self, server: str, remembered: Remembered, alerts: Iterable[Alert]) -> None:
        """Save a server's monitor state and the alerts that are due. Raises `WorkflowComposerError`."""
        due = tuple(Unsent(name, alert) for alert in alerts for name in self._channels)
        self._files.save(server, replace(remembered, unsent=(*remembered.unsent, *due)))

    def tell(self, server: str, alerts: Iterable[Alert]) -> None:
        """Log the alerts and send the due ones, with the action updated to what was done."""
        alerts = list(alerts)
        for alert in alerts:
            self._say(alert.line)
        newer = {(alert.kind, alert.time): alert for alert in alerts}
        remembered = self._files.load(server)
        due = tuple(
            replace(unsent, alert=newer.get((unsent.alert.kind, unsent.alert.time), unsent.alert))
            for unsent in remembered.unsent
        )
        self._files.save(server, replace(remembered, unsent=due))
        self._send(server, lambda unsent: not unsent.failed)

    def flush(self, server: str) -> None:
        """Send what an earlier round left over: alerts not yet tried, and alerts that failed once."""
        self._send(server, lambda _: True)

    def _send(self, server: str, wanted: Callable[[Unsent], bool]) -> None:
        for unsent in self._files.load(server).unsent:
            if not wanted(unsent):
                continue
            self._strike(server, unsent)
            channel = self._channels.get(unsent.channel)
            if channel is None:
                continue  # the channel was removed from the fleet file
            try:
                channel.send(unsent.alert)
            except AlertFailed as error:
                self._failed(server, unsent, str(error))

    def _strike(self, server: str, unsent: Unsent) -> None:
        remembered = self._files.load(server)
        left = list(remembered.unsent)
        left.remove(unsent)
        self._files.save(server, replace(remembered, unsent=tuple(left)))

    def _failed(self, server: str, unsent: Unsent, reason: str) -> None:
        again = "" if unsent.failed else "; retrying once in the next round"
        self._say(f"{server}: alert by {unsent.channel} failed: {reason}{again}")
        if not unsent.failed:
            remembered = self._files.load(server)
            self._files.save(server, replace(remembered, unsent=(*remembered.unsent, replace(unsent, failed=True))))
