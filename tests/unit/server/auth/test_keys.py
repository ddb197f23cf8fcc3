"""API keys: what is on disk, who is let in, and how changes are taken up."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import pytest

from workflow_composer.errors import ConfigError
from workflow_composer.server.auth.keys import Key, KeyRing, change_keys, read_keys
from workflow_composer.server.failures import HttpFailure


class Clock:
    """A clock that is set by hand."""

    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def add(path, name="ann", **limits):
    """A new key in the file: its record and the key itself."""
    key, secret = Key.new(name, **limits)
    change_keys(path, lambda known: known.update({key.id: key}))
    return key, secret


def refused(ring, presented):
    """The failure with which a key is refused."""
    with pytest.raises(HttpFailure) as caught:
        ring.identify(presented)
    return caught.value


def test_the_file_holds_no_key_and_only_its_owner_may_read_it(path):
    _, secret = add(path)
    assert secret.split("-", 2)[2] not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_key_is_known_and_no_other_is(path):
    key, secret = add(path)
    ring = KeyRing(path)
    assert ring.identify(secret) == key
    assert ring.identify(secret) == key  # remembered
    for wrong in (None, "", "x", secret[:-1], secret + "x", f"wfc-{key.id}-", f"wfc-000000000000-{secret[17:]}", "\ud800"):
        failure = refused(ring, wrong)
        assert (failure.status, failure.code) == (401, "invalid_api_key")


def test_an_unknown_id_takes_the_same_way_as_a_wrong_secret(path, monkeypatch):
    """Both are hashed and compared, so that times tell nothing."""
    key, _ = add(path)
    compared = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(1) or real(a, b))
    ring = KeyRing(path)
    refused(ring, f"wfc-{key.id}-wrong")
    refused(ring, "wfc-ffffffffffff-wrong")
    assert len(compared) == 2


def test_a_key_ends_when_it_expires(path, clock):
    _, secret = add(path, expires=clock.now + 60)
    ring = KeyRing(path, clock=clock)
    ring.identify(secret)
    clock.now += 60
    assert "expired" in refused(ring, secret).message


def test_a_revoked_key_is_refused_within_a_second(path, clock):
    key, secret = add(path)
    ring = KeyRing(path, clock=clock)
    ring.identify(secret)
    change_keys(path, lambda known: known.update({key.id: replace(key, revoked=True)}))
    clock.now += 1.0
    assert refused(ring, secret).status == 401


def test_a_key_made_while_the_service_runs_is_let_in_within_a_second(path, clock):
    add(path)
    ring = KeyRing(path, clock=clock)
    _, fresh = add(path, "bob")
    clock.now += 1.0
    assert ring.identify(fresh).name == "bob"


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 9, "keys": []}', b'{"version": 1, "keys": [{"id": 3}]}', None])
def test_a_file_that_breaks_while_the_service_runs_shuts_nobody_out_and_is_reported_once(path, clock, damage):
    _, secret = add(path)
    told = []
    ring = KeyRing(path, clock=clock, report=told.append)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    for _ in range(3):
        clock.now += 1.0
        assert ring.identify(secret).name == "ann"
    assert len(told) == 1
    assert "previous keys stay" in told[0]


@pytest.mark.parametrize(
    "record",
    [
        {"colour": "red"},
        {"budget": -1},
        {"budget": 0},
        {"requests_per_minute": 0},
        {"period": "year"},
        {"budget": "much"},
        {"id": ""},
        {"id": "a" * 33},
        {"id": "a-b"},
        {"salt": "\ud800"},
        {"digest": "ä" * 64},
        {"strategies": "abc"},
        {"models": [1]},
        {"revoked": "no"},
    ],
)
def test_a_damaged_record_is_named_at_the_start(path, record):
    add(path)
    data = json.loads(path.read_text())
    data["keys"][0].update(record)
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"keys\[0\]"):
        KeyRing(path)


def test_a_missing_file_says_how_to_make_one(path):
    with pytest.raises(ConfigError, match="keys new"):
        KeyRing(path)


def test_changes_at_the_same_time_all_stay(path):
    threads = [threading.Thread(target=lambda n=n: [add(path, f"k{n}") for _ in range(5)]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_keys(path)) == 40
    assert not list(path.parent.glob("*.new"))


def test_a_key_may_use_only_its_strategies(path):
    key, _ = add(path, strategies=("a",))
    key.check("a")
    with pytest.raises(HttpFailure) as caught:
        key.check("b")
    assert (caught.value.status, caught.value.code) == (403, "strategy_not_allowed")


def test_a_new_key_has_the_rights_that_it_was_given_and_one_from_before_may_grade(path):
    """Its record has no such field; once it is written again, it has."""
    add(path)
    add(path, "bob", rights=("admin", "feedback"))
    assert sorted(key.rights for key in read_keys(path).values()) == [(), ("admin", "feedback")]
    data = json.loads(path.read_text())
    for record in data["keys"]:
        del record["rights"]
    path.write_text(json.dumps(data))
    assert {key.rights for key in read_keys(path).values()} == {("feedback",)}
    add(path, "eve")
    assert sorted(key.rights for key in read_keys(path).values()) == [(), ("feedback",), ("feedback",)]


@pytest.mark.parametrize("rights", [["root"], "admin", [1], {"admin": True}])
def test_rights_that_there_are_not_are_refused(path, rights):
    add(path)
    data = json.loads(path.read_text())
    data["keys"][0]["rights"] = rights
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="right"):
        read_keys(path)


def test_a_clock_that_is_set_back_keeps_no_revoked_key_alive(path, clock):
    key, secret = add(path)
    ring = KeyRing(path, clock=clock)
    change_keys(path, lambda known: known.update({key.id: replace(key, revoked=True)}))
    clock.now -= 3600.0
    assert refused(ring, secret).status == 401


def test_a_change_that_keeps_date_and_size_is_taken_up(path, clock):
    """As a copy with its old date is, or a file that may be read again since its mode was put right."""
    _, secret = add(path)
    was, ring = path.stat(), KeyRing(path, clock=clock)
    ring.identify(secret)
    path.write_bytes(path.read_bytes().replace(b'"revoked": false', b'"revoked":  true'))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (was.st_size, was.st_ino)
    clock.now += 1.0
    assert refused(ring, secret).status == 401


@pytest.mark.parametrize("limits", [{"budget": float("nan")}, {"period": "year"}, {"expires": -1.0}])
def test_what_could_not_be_read_again_is_not_written(path, limits):
    """One bad record would shut everybody out."""
    add(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"keys\[1\]"):
        add(path, "bob", **limits)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.new"))
