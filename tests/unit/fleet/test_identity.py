"""A fleet is known by an id of its own, whatever its servers are called and wherever its file is copied."""

from __future__ import annotations

import shutil
import time

import pytest

from workflow_composer.backends.replicas.registry import Entry
from workflow_composer.errors import WorkflowComposerError
from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.identity import fleet_id


def a_fleet(folder, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{key}: {value}\n" for key, value in {"registry": "registry", "state": "state", **keys}.items())
    (folder / "fleet.yaml").write_text(f"{lines}roles:\n  coder: {{model: m, port: 8002}}\n")
    return load_fleet(folder / "fleet.yaml", {"PATH": "/nonexistent"})


def entry_of(made, **fields):
    known = {"server": "coder", "role": "coder", "host": "127.0.0.1", "port": 8002, "model": "m", "started": time.time()}
    return Entry(**{**known, "updated": 0.0, "fleet": made.id, "fleet_file": str(made.path), **fields})


def test_an_id_is_made_once_and_kept(tmp_path):
    """By the first command that needs it; one that only looks makes none."""
    fleet = a_fleet(tmp_path)
    assert fleet.known_id == ""
    assert not (tmp_path / "state").exists()
    made = fleet.id
    assert made
    assert (a_fleet(tmp_path).id, a_fleet(tmp_path).known_id) == (made, made)


def test_a_copied_file_makes_another_fleet(tmp_path):
    """Also with the whole folder, state included; and where both files name one state folder."""
    one = a_fleet(tmp_path / "one")
    known = one.id
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shared = {"state": tmp_path / "one" / "state", "registry": tmp_path / "one" / "registry"}
    others = [a_fleet(tmp_path / "two"), a_fleet(tmp_path / "three", **shared)]
    assert len({known, *(other.id for other in others)}) == 3
    assert one.id == known


def test_another_path_to_the_same_file_is_the_same_fleet(tmp_path):
    """A home directory often has two names."""
    known = a_fleet(tmp_path / "home").id
    (tmp_path / "users").symlink_to(tmp_path / "home")
    assert load_fleet(tmp_path / "users" / "fleet.yaml", {}).id == known


def test_a_deleted_state_folder_is_found_again_in_the_registry(tmp_path):
    """By the entries of this file alone."""
    fleet = a_fleet(tmp_path)
    known = fleet.id
    fleet.registry.publish(entry_of(fleet, port=1, fleet="another", fleet_file="/elsewhere/fleet.yaml"))
    fleet.registry.publish(entry_of(fleet))
    shutil.rmtree(tmp_path / "state")
    assert (a_fleet(tmp_path).known_id, a_fleet(tmp_path).id) == (known, known)


def test_an_id_that_cannot_be_recorded_is_said(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(WorkflowComposerError, match=r"the fleet's state in .* cannot be written") as caught:
        fleet_id(tmp_path / "state", tmp_path / "fleet.yaml", tuple)
    assert "state" in caught.value.hint
