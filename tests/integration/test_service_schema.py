"""The service does what its own description says, whatever is sent to it: fuzzed by schemathesis."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.clients import VARIABLE, clients_python, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]

TOKEN = "the-operators-token"
MAY_BE_REFUSED = "positive_data_acceptance"
"""A model may refuse what the description allows: this one has no tools, no bare completions, and no embeddings."""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The URL and a key of a service with an operator's token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKFLOW_COMPOSER_ADMIN_TOKEN", TOKEN)
        with serving(tmp_path_factory.mktemp("service"), "development") as found:
            yield found


@pytest.mark.parametrize(
    ("part", "examples"), [(("--exclude-path-regex", "^/admin"), 200), (("--include-path-regex", "^/admin"), 100)]
)
def test_it_keeps_to_its_description(service, part, examples, tmp_path):
    """No 500, no undocumented status or type, no body that breaks its schema, nothing wrong accepted, no key ignored."""
    url, key = service
    shown = TOKEN if part[0].startswith("--include") else key
    command = [str(Path(clients_python() or "python").parent / "schemathesis"), "run", f"{url}/openapi.json", *part]
    options = ("--checks", "all", "--exclude-checks", MAY_BE_REFUSED, "--seed", "1", "--continue-on-failure", "--no-color")
    header = ("-H", f"Authorization: Bearer {shown}")
    done = subprocess.run(
        [*command, *options, *header, "--max-examples", str(examples)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout or "generated" in done.stdout
