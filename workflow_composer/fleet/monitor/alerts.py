"""Alert channels: a command, a webhook and e-mail, as configured in the fleet file; the log always gets a line, too.

An alert says what happened to which server and never contains request data. If a channel fails, its caller is told; the
other channels still send.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Any, Protocol
from urllib.parse import urlsplit

from workflow_composer.config.profile_models import as_written
from workflow_composer.fleet.monitor.incidents import Kind
from workflow_composer.fleet.settings import AlertSettings

SECONDS = 20.0
"""Time limit for one channel, in seconds."""
CONNECT = 5.0
"""Connect timeout of a webhook, in seconds."""
SENDMAIL_FOLDERS = "/usr/sbin:/usr/lib"
"""Folders searched for sendmail after PATH; cron's PATH lacks them."""

_WORDS: Mapping[str, str] = {
    "overloaded": "is overloaded",
    "down": "is down",
    "person": "stays down: manual action required",
    "recovered": "has recovered",
    "ended": "was stopped on purpose; its incident is closed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert. ``action``: what the monitor does about it. ``time`` and ``since`` (incident start) are Unix times."""

    kind: Kind
    server: str
    role: str
    model: str
    where: str
    reason: str
    action: str
    time: float
    since: float
    monitor: str

    @property
    def subject(self) -> str:
        """One line without details."""
        return f"{self.server} {_WORDS[self.kind]}"

    @property
    def line(self) -> str:
        """One line with server, model, location, reason and action."""
        parts = [f"{self.subject} ({self.model} on {self.where or 'no node yet'})", self.reason, self.action]
        return ": ".join(filter(None, parts[:2])) + (f"; {self.action}" if self.action else "")

    def json(self) -> str:
        """The whole alert as JSON, for programs."""
        return json.dumps(asdict(self) | {"subject": self.subject, "text": self.line})


class AlertFailed(Exception):
    """A channel could not send the alert; the message gives the reason in one line."""


class AlertChannel(Protocol):
    """One way to send alerts."""

    name: str

    def send(self, alert: Alert) -> None:
        """Send the alert within `SECONDS`. Raises `AlertFailed`."""
        ...


def channels(settings: AlertSettings, environ: Mapping[str, str]) -> tuple[AlertChannel, ...]:
    """Return the channels configured in the fleet file."""
    found: list[AlertChannel] = []
    if settings.command:
        found.append(CommandChannel(settings.command, environ))
    if settings.webhook:
        found.append(WebhookChannel(settings.webhook))
    if settings.email:
        found.append(MailChannel(settings.email, environ))
    return tuple(found)


class CommandChannel:
    """Runs a command with the alert as JSON on its standard input."""

    name = "command"

    def __init__(self, command: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._command = [os.path.expanduser(command[0]), *command[1:]]  # noqa: PTH111  # a bare name must stay one
        self._environ = dict(environ)

    def send(self, alert: Alert) -> None:
        """Run the command. It must exit with code 0 within `SECONDS`; otherwise it is killed with its children."""
        _run(self._command, alert.json().encode(), self._environ)


class MailChannel:
    """Sends e-mail through the host's sendmail."""

    name = "email"

    def __init__(self, addresses: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._environ = dict(environ)

    def send(self, alert: Alert) -> None:
        """Send the alert to all addresses."""
        path = f"{self._environ.get('PATH', '')}:{SENDMAIL_FOLDERS}"
        program = shutil.which("sendmail", path=path)
        if program is None:
            raise AlertFailed("sendmail not found on this host")
        _run([program, "-t", "-i"], self.message(alert).as_bytes(), self._environ)

    def message(self, alert: Alert) -> EmailMessage:
        """Build the message; a line break in a header field raises `AlertFailed`, so a server cannot inject headers."""
        message = EmailMessage()
        try:
            message["To"] = ", ".join(self._addresses)
            message["Subject"] = f"[fleet] {alert.subject}"
            message["Auto-Submitted"] = "auto-generated"
        except ValueError as error:
            raise AlertFailed(f"invalid e-mail address: {error}") from None
        when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(alert.time))
        message.set_content(f"{alert.line}\n\nSeen at {when} by the monitor on {alert.monitor}.\n")
        return message


class WebhookChannel:
    """Posts the alert as JSON to the configured URL, without redirects or proxies."""

    name = "webhook"

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, alert: Alert) -> None:
        """Post the alert; any 2xx status counts as success."""
        import requests

        parts = urlsplit(self._address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AlertFailed("the webhook URL must start with http:// or https://")
        try:
            status = _posted(str(self._address), json.loads(alert.json()))
        except TimeoutError:
            raise AlertFailed(f"{self._shown} did not respond within {SECONDS:g} s") from None
        except (requests.RequestException, ValueError) as error:
            raise AlertFailed(f"{self._shown} cannot be reached ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise AlertFailed(f"{self._shown} returned status {status}")

    @property
    def _shown(self) -> str:
        """The host of the URL; path and query are left out because they often contain the webhook's secret."""
        written = urlsplit(str(as_written(self._address)))
        return written.hostname or "the webhook"


def _posted(address: str, data: Mapping[str, Any]) -> int:
    """Post the data to a webhook and return the response's status; the body is not read.

    The only place where the fleet connects to the internet, hence `requests`. Raises TimeoutError and `requests` exceptions.
    """
    import requests

    with requests.Session() as session:
        session.trust_env = False  # neither proxies nor ~/.netrc
        limits = (min(CONNECT, SECONDS), SECONDS)
        try:
            with session.post(address, json=data, timeout=limits, allow_redirects=False, stream=True) as response:
                return response.status_code
        except requests.exceptions.Timeout as error:
            raise TimeoutError(str(error)) from error


def _run(command: list[str], given: bytes, environ: Mapping[str, str]) -> None:
    try:
        process = subprocess.Popen(  # noqa: S603  # the owner of the fleet file configures the command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise AlertFailed(f"{command[0]} cannot be run: {getattr(error, 'strerror', None) or error}") from None
    with process:
        try:
            _, said = process.communicate(given, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise AlertFailed(f"{command[0]} did not finish within {SECONDS:g} s") from None
    if process.returncode:
        last = " ".join(said.decode("utf-8", "replace").split())[-200:]
        raise AlertFailed(f"{command[0]} failed with exit code {process.returncode}: {last}".rstrip(": "))
