"""Channels of alerts: what each sends, and how each fails."""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
import time

import pytest

from tests.unit.fleet.stub_vllm import StubVLLM, serving
from workflow_composer.config.profile_models import Expanded
from workflow_composer.fleet.monitor import alerts
from workflow_composer.fleet.monitor.alerts import Alert, AlertFailed, CommandChannel, MailChannel, WebhookChannel, channels
from workflow_composer.fleet.settings import AlertSettings

ALERT = Alert(
    kind="down",
    server="coder",
    role="coder",
    model="Qwen/Coder",
    where="127.0.0.1:8002",
    reason="port 8002 is open, but no response within 30 s: it hangs",
    action="restarting",
    time=1.7e9,
    since=1.7e9,
    monitor="login1",
)


def script(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_fleet_file_names_the_channels():
    assert channels(AlertSettings(), {}) == ()
    found = channels(AlertSettings(command=("x",), webhook="http://h/", email=("a@b.c",)), {})
    assert [channel.name for channel in found] == ["command", "webhook", "email"]


def test_an_alert_says_in_one_line_what_a_person_needs():
    assert ALERT.line == (
        "coder is down (Qwen/Coder on 127.0.0.1:8002): port 8002 is open, but no response within 30 s: it hangs; restarting"
    )


def test_a_command_gets_the_alert_as_json(tmp_path):
    command = script(tmp_path / "tell", f"import sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read())")
    CommandChannel((command,), os.environ).send(ALERT)
    got = json.loads((tmp_path / "got").read_text())
    assert (got["kind"], got["server"], got["reason"]) == ("down", "coder", ALERT.reason)
    assert got["text"] == ALERT.line


def test_a_commands_arguments_are_no_shell(tmp_path):
    command = script(tmp_path / "tell", f"import sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.argv[1])")
    CommandChannel((command, "; rm -rf $HOME"), os.environ).send(ALERT)
    assert (tmp_path / "got").read_text() == "; rm -rf $HOME"


def test_a_command_that_is_not_there_or_fails_says_so(tmp_path):
    with pytest.raises(AlertFailed, match="nowhere cannot be run: No such file"):
        CommandChannel((str(tmp_path / "nowhere"),), os.environ).send(ALERT)
    failing = script(tmp_path / "failing", "import sys; sys.exit('no\\nroute')")
    with pytest.raises(AlertFailed, match="failed with exit code 1: no route"):
        CommandChannel((failing,), os.environ).send(ALERT)


def test_a_command_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "SECONDS", 0.5)
    slow = script(tmp_path / "slow", "import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(AlertFailed, match=r"did not finish within 0\.5 s"):
        CommandChannel((slow,), os.environ).send(ALERT)
    assert time.monotonic() - begun < 10


@pytest.fixture
def hook():
    stub = StubVLLM(answers={"/hook?key=sesame": (204, b""), "/moved": (302, b""), "/broken": (500, b"")})
    with serving(stub) as made:
        yield made


def test_a_webhook_gets_the_alert_as_json(hook):
    WebhookChannel(f"http://127.0.0.1:{hook.port}/hook?key=sesame").send(ALERT)
    ((method, _, got),) = hook.asked
    assert method == "POST"
    assert (got["kind"], got["text"]) == ("down", ALERT.line)


def test_a_webhook_is_not_redirected(hook):
    with serving(StubVLLM()) as elsewhere:
        hook.headers["Location"] = f"http://127.0.0.1:{elsewhere.port}/hook"
        with pytest.raises(AlertFailed, match="returned status 302"):
            WebhookChannel(f"http://127.0.0.1:{hook.port}/moved").send(ALERT)
        assert elsewhere.asked == []


def test_a_webhook_has_taken_an_alert_when_its_status_says_so(hook):
    """Whatever it says besides, without end, is not read, and makes no failure a success."""
    hook.body = lambda: itertools.repeat(b"x" * 65536)
    WebhookChannel(f"http://127.0.0.1:{hook.port}/hook?key=sesame").send(ALERT)
    with pytest.raises(AlertFailed, match="returned status 500"):
        WebhookChannel(f"http://127.0.0.1:{hook.port}/broken").send(ALERT)


def test_a_webhook_that_fails_does_not_show_its_secret(hook, monkeypatch):
    monkeypatch.setattr(alerts, "SECONDS", 0.5)
    hook.hang.add("/broken")
    for address in (f"http://127.0.0.1:{hook.port}/broken", "http://127.0.0.1:1/sesame", "ftp://sesame/", "http://"):
        with pytest.raises(AlertFailed) as failed:
            WebhookChannel(address).send(ALERT)
        assert "sesame" not in str(failed.value)


def test_a_webhook_from_the_environment_is_used_and_not_shown(hook):
    address = Expanded(f"http://127.0.0.1:{hook.port}/hook?key=sesame", "${HOOK}")
    WebhookChannel(address).send(ALERT)
    assert len(hook.asked) == 1
    with pytest.raises(AlertFailed) as failed:
        WebhookChannel(Expanded("http://127.0.0.1:1/sesame", "${HOOK}")).send(ALERT)
    assert str(failed.value) == "the webhook cannot be reached (ConnectionError)"


@pytest.fixture
def sendmail(tmp_path):
    """A sendmail that keeps what it is given."""
    code = f"import json, sys; open({str(tmp_path / 'mail')!r}, 'wb').write(sys.stdin.buffer.read())"
    script(tmp_path / "sendmail", f"{code}; open({str(tmp_path / 'args')!r}, 'w').write(json.dumps(sys.argv[1:]))")
    return tmp_path


def test_mail_goes_through_the_hosts_sendmail(sendmail):
    MailChannel(("ops@lab.example", "ann@lab.example"), {"PATH": str(sendmail)}).send(ALERT)
    assert json.loads((sendmail / "args").read_text()) == ["-t", "-i"]
    head, _, body = (sendmail / "mail").read_text().partition("\n\n")
    assert "To: ops@lab.example, ann@lab.example" in head.splitlines()
    assert "Subject: [fleet] coder is down" in head.splitlines()
    assert "it hangs; restarting" in " ".join(body.split())


def test_no_header_can_be_slipped_into_a_mail(sendmail):
    """Neither by what a server says nor by an address."""
    from dataclasses import replace

    evil = replace(ALERT, reason="x\nBcc: evil@example.org\n\n.\nmore", model="m\r\nCc: evil@example.org")
    MailChannel(("ops@lab.example",), {"PATH": str(sendmail)}).send(evil)
    head = (sendmail / "mail").read_text().partition("\n\n")[0]
    assert "evil" not in head
    with pytest.raises(AlertFailed, match="invalid e-mail address"):
        MailChannel(("ops@lab.example\nBcc: evil@example.org",), {"PATH": str(sendmail)}).send(ALERT)


def test_a_host_without_sendmail_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "SENDMAIL_FOLDERS", str(tmp_path))
    with pytest.raises(AlertFailed, match="sendmail not found on this host"):
        MailChannel(("a@b.c",), {"PATH": str(tmp_path)}).send(ALERT)
