"""`fleet fetch` downloads what servers without network read; here by a stand-in for the hub's library."""

from __future__ import annotations

import pytest

from workflow_composer.errors import FleetError
from workflow_composer.fleet.launch.preparation import fetch

LIBRARY = """
import os
def snapshot_download(model):
    assert "HF_HUB_OFFLINE" not in os.environ, "offline"
    print("Fetching 3 files")
    if model == "acme/gated":
        raise RuntimeError("401 Client Error: this repository is gated")
    return os.environ["HF_HOME"] + "/hub/models--" + model.replace("/", "--")
"""


@pytest.fixture
def fleet(folder):
    """Its Python finds the stand-in; its role has a model of a hub."""
    (folder.path / "library" / "huggingface_hub").mkdir(parents=True)
    (folder.path / "library" / "huggingface_hub" / "__init__.py").write_text(LIBRARY)
    folder.environ |= {"PYTHONPATH": str(folder.path / "library"), "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}
    roles = {"small": {"model": "acme/m"}, "gated": {"model": "acme/gated", "port": 2}, "local": {"port": 3}}
    return folder.fleet(roles)


def test_a_model_is_downloaded_although_servers_are_offline(fleet):
    said = []
    assert fetch(fleet, fleet.role("small"), said.append) == "/nowhere/hub/models--acme--m"
    assert said[0] == "Fetching 3 files"


def test_the_cache_is_that_of_the_role(folder, fleet):
    made = folder.fleet({"small": {"model": "acme/m", "environment": {"HF_HOME": "/of-the-role"}}})
    assert fetch(made, made.role("small"), print).startswith("/of-the-role/")


def test_a_model_that_may_not_be_had_is_said_with_what_to_do(fleet):
    with pytest.raises(FleetError, match="acme/gated cannot be downloaded: access to the model is denied") as caught:
        fetch(fleet, fleet.role("gated"), lambda line: None)
    assert "HF_TOKEN" in str(caught.value)


def test_a_folder_needs_no_download(folder, fleet):
    assert fetch(fleet, fleet.role("local"), print) == str(folder.model)
