"""Alerts on their way: written down, struck off, sent, and tried once more where a channel failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from workflow_composer.fleet.alerts import Alert, AlertFailed, Channel
from workflow_composer.fleet.memory import MonitorFiles, Remembered, Unsent


class Delivery:
    """Sends alerts through every channel. ``say`` is the one that always works: the log."""

    def __init__(self, files: MonitorFiles, channels: tuple[Channel, ...], say: Callable[[str], None]) -> None:
        self._files = files
        self._channels = {channel.name: channel for channel in channels}
        self._say = say

    def remember(self, server: str, remembered: Remembered, alerts: Iterable[Alert]) -> None:
        """Write down what is known of a server, and which alerts are due. Raises `WorkflowComposerError`."""
        due = tuple(Unsent(name, alert) for alert in alerts for name in self._channels)
        self._files.save(server, replace(remembered, unsent=(*remembered.unsent, *due)))

    def tell(self, server: str, alerts: Iterable[Alert]) -> None:
        """Log the alerts, in the words that are right by now, and send those that are due."""
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
        """Send what an earlier round has left: what it did not come to, and what failed once."""
        self._send(server, lambda _: True)

    def _send(self, server: str, wanted: Callable[[Unsent], bool]) -> None:
        for unsent in self._files.load(server).unsent:
            if not wanted(unsent):
                continue
            self._strike(server, unsent)
            channel = self._channels.get(unsent.channel)
            if channel is None:
                continue  # the fleet file does not name it any more
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
        again = "" if unsent.failed else "; tried once more in the next round"
        self._say(f"{server}: the alert by {unsent.channel} failed: {reason}{again}")
        if not unsent.failed:
            remembered = self._files.load(server)
            self._files.save(server, replace(remembered, unsent=(*remembered.unsent, replace(unsent, failed=True))))
