"""GSM8K's 1,319 test questions, answered by recorded systems through the command line: the published accuracies come out."""

import json
import subprocess
import sys

import pytest

from tests.paths import DATA, ROOT

COLLECTION = DATA / "openai+grade-school-math"
QUESTIONS = COLLECTION / "grade_school_math" / "data" / "test.jsonl"
PUBLISHED = {"6b_finetuning": 0.2168, "6b_verification": 0.3904, "175b_finetuning": 0.3472, "175b_verification": 0.5625}

pytestmark = pytest.mark.skipif(not QUESTIONS.is_file(), reason=f"no recorded answers in {DATA}")


def call(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recording and a profile that plays it."""
    made = tmp_path_factory.mktemp("recorded")
    script = ROOT / "scripts" / "convert_recordings.py"
    call(str(script), "gsm8k", "--data", str(DATA), "--output", "gsm8k.jsonl", cwd=made)
    models = {name: {"backend": "replay", "path": "gsm8k.jsonl"} for name in PUBLISHED}
    profile = {"profile_name": "recorded", "allow_cloud": False, "models": models, "routers": ["provider"]}
    (made / "recorded.yaml").write_text(json.dumps(profile))
    return made


@pytest.mark.parametrize("system", PUBLISHED)
def test_a_recorded_system_has_its_published_accuracy(folder, system):
    """Every question is answered, graded against its label, and none is an error."""
    command = ["-m", "workflow_composer", "-s", "recorded.yaml", "generate", "--model", system]
    command += ["--input", str(QUESTIONS), "--output", f"{system}.jsonl", "--json"]
    summary = json.loads(call(*command, cwd=folder))
    assert (summary["rows"], summary["errors"], summary["graded"]) == (1319, 0, 1319)
    assert round(summary["accuracy"], 4) == PUBLISHED[system]
