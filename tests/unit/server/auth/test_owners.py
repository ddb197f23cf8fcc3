"""Whose requests the last ones were: what the dashboard shows an operator."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from workflow_composer.server.auth import callers as module
from workflow_composer.server.auth.callers import Callers, marked
from workflow_composer.server.auth.keys import VERSION, Key, KeyRing


@pytest.fixture
def ring(tmp_path):
    keys = [Key.new(name)[0] for name in ("ann", "bob")]
    (tmp_path / "keys.json").write_text(json.dumps({"version": VERSION, "keys": [asdict(key) for key in keys]}))
    return KeyRing(tmp_path / "keys.json"), keys


def test_requests_are_their_keys_and_those_of_nobody_have_no_name(ring):
    callers, (ann, bob) = Callers(ring[0]), ring[1]
    mine, his = marked(ann, "req-1"), marked(bob, "req-2")
    assert callers.owners([mine, his, "req-3", "req-1"]) == {mine: "ann", his: "bob"}
    assert Callers(None).owners([mine]) == {}


def test_a_request_is_compared_with_the_keys_once(ring, monkeypatch):
    """The dashboard asks every two seconds for the same hundred."""
    compared = []
    monkeypatch.setattr(module, "is_own", lambda key, request_id: compared.append(request_id) or request_id == key.name)
    callers = Callers(ring[0])
    for _ in range(3):
        assert callers.owners(["ann", "bob"]) == {"ann": "ann", "bob": "bob"}
    assert compared == ["ann", "bob", "bob"]
