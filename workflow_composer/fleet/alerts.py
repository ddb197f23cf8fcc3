"""Telling people: a line in the log always; a command, a webhook and e-mail where the fleet file names them.

An alert says what happened to which server, never what anybody asked it. A channel that fails is reported to its caller and
stops nothing.
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

from workflow_composer.fleet.incidents import Kind
from workflow_composer.fleet.settings import AlertSettings
from workflow_composer.profiles.models import as_written

SECONDS = 20.0
"""Seconds that one channel has."""
CONNECT = 5.0
"""Seconds in which a webhook's connection must stand."""
SENDMAIL_FOLDERS = "/usr/sbin:/usr/lib"
"""Where sendmail lies besides the folders of PATH; cron's PATH lacks them."""

_WORDS: Mapping[str, str] = {
    "overloaded": "is overloaded",
    "down": "is down",
    "person": "stays down: a person must look",
    "recovered": "is well again",
    "ended": "was stopped on purpose; its incident is over",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What is told. ``action``: what is done about it. ``time`` and ``since`` (the incident's) are seconds since 1970."""

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
        """One line with everything that a person needs first."""
        parts = [f"{self.subject} ({self.model} on {self.where or 'no node yet'})", self.reason, self.action]
        return ": ".join(filter(None, parts[:2])) + (f"; {self.action}" if self.action else "")

    def json(self) -> str:
        """All of it, for programs."""
        return json.dumps(asdict(self) | {"subject": self.subject, "text": self.line})


class AlertFailed(Exception):
    """A channel could not send; says why in one line."""


class Channel(Protocol):
    """One way to tell people."""

    name: str

    def send(self, alert: Alert) -> None:
        """Send it within `SECONDS`. Raises `AlertFailed`."""
        ...


def channels(settings: AlertSettings, environ: Mapping[str, str]) -> tuple[Channel, ...]:
    """Those that the fleet file names."""
    found: list[Channel] = []
    if settings.command:
        found.append(CommandChannel(settings.command, environ))
    if settings.webhook:
        found.append(WebhookChannel(settings.webhook))
    if settings.email:
        found.append(MailChannel(settings.email, environ))
    return tuple(found)


class CommandChannel:
    """Runs a command, the alert as JSON on its standard input."""

    name = "command"

    def __init__(self, command: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._command = [os.path.expanduser(command[0]), *command[1:]]  # noqa: PTH111  # a bare name must stay one
        self._environ = dict(environ)

    def send(self, alert: Alert) -> None:
        """Run it; it must end with exit code 0 within `SECONDS`, and is killed with its children where it does not."""
        _run(self._command, alert.json().encode(), self._environ)


class MailChannel:
    """Hands a message to the host's sendmail."""

    name = "email"

    def __init__(self, addresses: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._environ = dict(environ)

    def send(self, alert: Alert) -> None:
        """Send it to all addresses."""
        path = f"{self._environ.get('PATH', '')}:{SENDMAIL_FOLDERS}"
        program = shutil.which("sendmail", path=path)
        if program is None:
            raise AlertFailed("this host has no sendmail")
        _run([program, "-t", "-i"], self.message(alert).as_bytes(), self._environ)

    def message(self, alert: Alert) -> EmailMessage:
        """The message. Header fields take no line ends: whatever a server says cannot add one. Raises `AlertFailed`."""
        message = EmailMessage()
        try:
            message["To"] = ", ".join(self._addresses)
            message["Subject"] = f"[fleet] {alert.subject}"
            message["Auto-Submitted"] = "auto-generated"
        except ValueError as error:
            raise AlertFailed(f"an address is no address: {error}") from None
        when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(alert.time))
        message.set_content(f"{alert.line}\n\nSeen at {when} by the monitor on {alert.monitor}.\n")
        return message


class WebhookChannel:
    """Posts the alert as JSON, to the address as the fleet file has it: no redirect, no proxy."""

    name = "webhook"

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, alert: Alert) -> None:
        """Post it; any status of the 200s will do."""
        import requests

        parts = urlsplit(self._address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AlertFailed("its address is no http or https address")
        try:
            status = _posted(str(self._address), json.loads(alert.json()))
        except TimeoutError:
            raise AlertFailed(f"{self._shown} gave no answer within {SECONDS:g} s") from None
        except (requests.RequestException, ValueError) as error:
            raise AlertFailed(f"{self._shown} cannot be reached ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise AlertFailed(f"{self._shown} answers with status {status}")

    @property
    def _shown(self) -> str:
        """The address without what may be secret in it: path and query are how webhooks tell their users apart."""
        written = urlsplit(str(as_written(self._address)))
        return written.hostname or "the webhook"


def _posted(address: str, data: Mapping[str, Any]) -> int:
    """The status by which a webhook takes what is posted; what it says besides is not read.

    Only here does the fleet go out into the world, which `requests` is made for. Raises TimeoutError, and what that raises.
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
        process = subprocess.Popen(  # noqa: S603  # the fleet file's owner names the command
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
            raise AlertFailed(f"{command[0]} did not end within {SECONDS:g} s") from None
    if process.returncode:
        last = " ".join(said.decode("utf-8", "replace").split())[-200:]
        raise AlertFailed(f"{command[0]} ended with exit code {process.returncode}: {last}".rstrip(": "))
