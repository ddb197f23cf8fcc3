"""README's and docs/python.md's Python in a real Jupyter kernel: it runs, answers rightly, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests.integration.test_readme import untrue
from tests.paths import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="pip install ipykernel nbclient"),
    pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="pip install ipykernel nbclient"),
    pytest.mark.skipif(importlib.util.find_spec("mistralrs") is None, reason="pip install '.[embedded]'"),
    pytest.mark.embedded,
    pytest.mark.slow,
]


def blocks(page):
    """The page's Python, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.S | re.M)


@pytest.fixture
def notebook(tmp_path):
    """Runs cells in an empty folder, and returns what each printed; the notebook's folder stays empty."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WORKFLOW_COMPOSER", "BIOPIPELINES"))}
    own = {
        name: str(tmp_path / "state") for name in ("XDG_STATE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")
    }
    environ = kept | own | {"PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"}  # a socket's path may have 100 characters

    def run(*cells):
        command = [sys.executable, str(ROOT / "tests" / "integration" / "notebook.py")]
        options = {"cwd": folder, "env": environ, "input": json.dumps(cells), "timeout": 500}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr[-4000:]
        assert list(folder.iterdir()) == []
        return json.loads(done.stdout)

    return run


def test_the_readmes_python_runs_in_a_kernel_and_answers_rightly(notebook, tmp_path):
    """A cell needs no await; both answers are the right ones, and the metrics are in the state folder."""
    session, plugin = blocks("README.md")
    said, _ = notebook(session, plugin)
    assert re.findall(r"#### (\d+)", said) == ["26", "35"]
    assert not untrue(said)
    (metrics,) = (tmp_path / "state").rglob("routing_metrics.jsonl")
    assert metrics.read_bytes().count(b"\n") == 2


def test_the_python_of_its_page_runs_in_a_kernel_and_answers_rightly(notebook):
    """With an `await` beside it, which a notebook allows; values show themselves shortly."""
    cells = blocks("docs/python.md")
    question = "Hugo has 3 baskets with 10 tubes in each. He uses 4 tubes at school. How many tubes are left?"
    awaited = f"o = ModelOrchestrator('development')\nawait o.agenerate({question!r})"
    *said, response, orchestrator = notebook(*cells, awaited, "o")
    text = "\n".join(said)
    assert not untrue(text)
    assert re.findall(r"^\d+ .*#### (\d+)$", text, re.M)[1:] == [str(n + 23) for n in range(12, 18)]
    assert "#### 22" in text  # 5 * 6 - 8
    assert response.startswith("LLMResponse('3 * 10 = 30. 30 - 4 = 26. #### 26', model=")
    assert "development" in orchestrator
