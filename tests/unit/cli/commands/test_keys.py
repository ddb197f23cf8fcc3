"""``keys``: made once, listed with what they have used, revoked."""

from __future__ import annotations

import time

import pytest

from workflow_composer.server.auth.history import UsageHistory, UsageRow
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


def test_budgets_of_several_periods(keys, tmp_path):
    made = keys(
        "new", "alice", "--budget", "5/day", "--budget", "50", "--tokens-per-day", "9", "--concurrent", "3", "--json"
    ).json
    key = read_keys(tmp_path / "keys.json")[made["id"]]
    assert dict(key.limits) == {"day": 5.0, "month": 50.0}
    assert (key.tokens_per_day, key.concurrent) == (9, 3)
    assert "5.00 per day, $50.00 per month" in keys("list").out.replace("\n", " ")


@pytest.mark.parametrize("budgets", [["5/day", "6/day"], ["5/year"], ["5/"], ["5", "6"], ["x/day"]])
def test_budgets_that_contradict_each_other_or_mean_nothing(keys, budgets):
    done = keys("new", "a", *(part for budget in budgets for part in ("--budget", budget)))
    assert (done.code, "Traceback" in done.err) == (2, False)


PEOPLE = "name;team;budget;expires;models\nÄnne;genomics;5/day 50/month;30d;small large\nbob;;;;\n\n"


@pytest.mark.parametrize(("mark", "start"), [(";", ""), (",", "\ufeff"), ("\t", "")])
def test_a_table_of_people_becomes_keys(keys, tmp_path, mark, start):
    """As spreadsheets write it; the options stand for what a row does not say."""
    (tmp_path / "people.csv").write_text(start + PEOPLE.replace(";", mark), encoding="utf-8")
    done = keys("new", "--from", "people.csv", "--budget", "1", "--team", "others")
    rows = [line.split(",") for line in done.out.splitlines()]
    assert rows[0] == ["name", "user", "team", "id", "key"]
    ring = KeyRing(tmp_path / "keys.json")
    anne, bob = (ring.identify(row[4]) for row in rows[1:])
    assert (anne.name, anne.team, dict(anne.limits), anne.models) == (
        "Änne",
        "genomics",
        {"day": 5.0, "month": 50.0},
        ("small", "large"),
    )
    assert (bob.team, dict(bob.limits), bob.expires) == ("others", {"month": 1.0}, None)
    again = keys("new", "--from", "people.csv")
    assert (again.code, "line 2" in again.err, len(read_keys(tmp_path / "keys.json"))) == (2, True, 2)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name,budget\nann,much\n", "line 2"),
        ("name,budget\nann,1\nann,2\n", "line 3"),
        ("name,budget\nann\n", "line 2"),
        ("name,colour\nann,red\n", "colour"),
        ("user\nann\n", "name"),
        ("name,tokens_per_day\nann,-1\n", "tokens_per_day"),
        ("name,expires\nann,soon\n", "soon"),
        ("name\n", "no rows"),
        ("", "name"),
    ],
)
def test_a_faulty_table_makes_no_key_at_all(keys, tmp_path, text, place):
    (tmp_path / "people.csv").write_text(text)
    done = keys("new", "--from", "people.csv")
    assert (done.code, place in done.err, "Traceback" in done.err) == (2, True, False)
    assert not (tmp_path / "keys.json").exists()


def test_a_key_is_changed_and_stays_the_same_key(keys, tmp_path):
    secret = keys("new", "alice", "--budget", "5/day", "--concurrent", "2", "--team", "x").out.strip()
    assert keys("edit", "alice", "--budget", "7", "--no", "concurrent", "--user", "Alice A.", "--name", "al").code == 0
    key = KeyRing(tmp_path / "keys.json").identify(secret)
    assert (key.name, dict(key.limits), key.concurrent, key.user, key.team) == ("al", {"month": 7.0}, None, "Alice A.", "x")
    for wrong in (["nobody", "--team", "y"], ["al"], ["al", "--budget", "0"], ["al", "--no", "colour"]):
        done = keys("edit", *wrong)
        assert (done.code, "Traceback" in done.err) == (2, False)


def test_a_name_of_two_keys_does_not_say_which(keys):
    keys("new", "a")
    keys("new", "a")
    assert "2 keys" in keys("edit", "a", "--team", "x").err


def test_who_used_what_is_told_by_key_user_and_team(keys, tmp_path):
    ids = [keys("new", name, "--team", team, "--json").json["id"] for name, team in (("a", "x"), ("b", "x"))]
    known = read_keys(tmp_path / "keys.json")
    history = UsageHistory(tmp_path / "state" / "usage.jsonl")
    (tmp_path / "state").mkdir()
    for user, cost in (("=cmd()", 0.25), ("", 0.5)):
        history.row(known[ids[0]], user).add(UsageRow("", "", "", "", "", 1, 10, 2, cost))
    history.row(known[ids[1]], "u").add(UsageRow("", "", "", "", "", 1, 10, 2, 1.0))
    history.save(history.take(at_once=True))
    assert [(row["key"], row["cost"]) for row in keys("usage", "--json").json] == sorted([(ids[0], 0.75), (ids[1], 1.0)])
    assert [(row["team"], row["cost"], row["requests"]) for row in keys("usage", "--by", "team", "--json").json] == [
        ("x", 1.75, 3)
    ]
    text = keys("usage", "--by", "user", "--csv").out
    assert "'=cmd()" in text  # a spreadsheet must not run it
    assert len(text.splitlines()) == 4
    assert keys("usage").code == 0
    assert keys("usage", "--since", "soon").code == 2
