"""``keys``: made once, listed with what they have used, revoked."""

from __future__ import annotations

import time

import pytest

from workflow_composer.server.auth.keys import KeyRing, read_keys
from workflow_composer.server.auth.ledger import Ledger


@pytest.fixture
def keys(command, tmp_path):
    """The commands, over keys.json in the working directory and a state directory beside it."""
    command.environ["WORKFLOW_COMPOSER_SERVE_STATE"] = str(tmp_path / "state")
    return lambda *arguments: command("keys", *arguments)


def test_a_new_key_is_printed_once_and_opens(keys, tmp_path):
    done = keys("new", "alice")
    secret = done.out.strip()
    assert KeyRing(tmp_path / "keys.json").identify(secret).name == "alice"
    assert secret not in done.err
    assert secret.split("-", 2)[2] not in (tmp_path / "keys.json").read_text()
    assert secret not in keys("list").out


def test_every_option_reaches_the_record(keys, tmp_path):
    options = ["--budget", "5", "--per", "day", "--requests-per-minute", "60", "--tokens-per-minute", "9000"]
    options += ["--strategy", "a", "--strategy", "b", "--model", "auto", "--expires", "2h", "--file", "other.json"]
    made = keys("new", "alice", *options, "--json").json
    key = read_keys(tmp_path / "other.json")[made["id"]]
    assert made["key"].startswith(f"wfc-{key.id}-")
    assert (key.budget, key.period, key.requests_per_minute, key.tokens_per_minute) == (5.0, "day", 60, 9000)
    assert (key.strategies, key.models) == (("a", "b"), ("auto",))
    assert key.expires == pytest.approx(time.time() + 7200, abs=60)


@pytest.mark.parametrize(
    "options",
    [
        ["--budget", "nan"],
        ["--budget", "inf"],
        ["--budget", "0"],
        ["--budget", "-1"],
        ["--per", "year"],
        ["--requests-per-minute", "0"],
        ["--expires", "soon"],
    ],
)
def test_a_limit_without_sense_is_refused_and_no_key_is_made(keys, tmp_path, options):
    """Least of all one that would make the file unreadable for all the others."""
    assert keys("new", "alice", *options).code == 2
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a" * 101])
def test_a_name_is_a_short_text(keys, name):
    assert keys("new", name).code == 2


def test_the_list_says_what_was_used_and_which_keys_are_over(keys, tmp_path):
    ids = [keys("new", name, *more, "--json").json["id"] for name, *more in (("a", "--budget", "9"), ("b",), ("c",))]
    known = read_keys(tmp_path / "keys.json")
    ledger = Ledger(tmp_path / "state" / "ledger.bin")
    ledger.charge(known[ids[0]], cost=1.5, tokens=40)
    ledger.charge(known[ids[1]], cost=0.5, tokens=2)
    ledger.close()
    keys("revoke", ids[1])
    found = {row["name"]: row for row in keys("list", "--json").json}
    assert (found["a"]["spent"], found["a"]["tokens"], found["a"]["requests"], found["a"]["state"]) == (1.5, 40, 1, "valid")
    assert (found["b"]["spent"], found["b"]["state"]) == (0.5, "revoked")
    assert (found["c"]["spent"], found["c"]["state"]) == (0.0, "valid")
    text = keys("list").out
    assert "9.00 per month" in text
    assert "revoked" in text


def test_an_expired_key_is_shown_as_such(keys):
    keys("new", "a", "--expires", "0s")
    assert keys("list", "--json").json[0]["state"] == "expired"


@pytest.mark.parametrize("content", [b"x", b"something that is longer than the mark of a ledger by far" * 4])
def test_a_ledger_that_is_none_is_an_error_with_its_place(keys, tmp_path, content):
    keys("new", "a")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.bin").write_bytes(content)
    done = keys("list")
    assert done.code == 2
    assert "ledger.bin is not a ledger" in done.err
    assert "Traceback" not in done.err


def test_revoking_what_is_not_there_changes_nothing(keys, tmp_path):
    assert "does not exist" in keys("revoke", "0123").err
    assert not (tmp_path / "keys.json").exists()
    keys("new", "a")
    done = keys("revoke", "0123")
    assert done.code == 2
    assert "keys list" in done.err


def test_a_damaged_file_is_not_written_over(keys, tmp_path):
    (tmp_path / "keys.json").write_text('{"version": 1, "keys": [')
    assert keys("new", "a").code == 2
    assert (tmp_path / "keys.json").read_text() == '{"version": 1, "keys": ['
