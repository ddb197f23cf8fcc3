"""Every command in the README is run, and prints what the README says."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT

README = (ROOT / "README.md").read_text()
TEST_COMMAND = "<!-- test command -->"
EQUATION = re.compile(r"(?<![\d.])(\d+) ([-+*/]) (\d+) = (\d+)(?!\.?\d)")


@dataclass(frozen=True)
class Step:
    """One command and what stands below it."""

    command: str
    expected: str


def steps():
    """The commands of the README's console blocks, but for the one that runs these tests."""
    found = []
    for match in re.finditer(r"(<!-- [^>]* -->\n)?```console\n(.*?)^```$", README, re.S | re.M):
        if (match[1] or "").strip() == TEST_COMMAND:
            continue
        for part in re.split(r"^\$ ", match[2], flags=re.M)[1:]:
            command, _, expected = part.partition("\n")
            while command.endswith("\\"):
                line, _, expected = expected.partition("\n")
                command = command[:-1] + line.strip()
            found.append(Step(command, expected.strip("\n")))
    return found


def matches(expected, printed):
    """Whether the output is as promised; ``...`` stands for anything, and for the end where it is the last line."""
    pattern = re.escape(expected).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, printed.strip("\n"), re.S) is not None


def untrue(text):
    """The equations in a text that do not hold."""
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: b and a / b}
    return [
        found[0] for found in EQUATION.finditer(text) if results[found[2]](int(found[1]), int(found[3])) != int(found[4])
    ]


def test_wrong_sums_are_seen_and_right_ones_are_not():
    """In an answer with steps, at the end of a sentence, and beside numbers that are no whole ones."""
    assert untrue("12 + 30 = 32. 32 - 7 = 25. #### 25") == ["12 + 30 = 32"]
    assert untrue("6 * 7 = 42. 42 / 2 = 20") == ["42 / 2 = 20"]
    assert untrue("4 / 0 = 1") == ["4 / 0 = 1"]
    assert untrue("12 + 30 = 42. 42 - 7 = 35. 0.5 * 2 = 1.0; 39 / 3 = 13") == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_every_sum_on_a_page_is_right(page):
    """An answer that is shown is one to be proud of."""
    assert untrue(page.read_text()) == []


def test_the_readme_names_the_test_command_once():
    """It is what continuous integration runs, word for word."""
    assert README.count(TEST_COMMAND) == 1
    block = README.split(TEST_COMMAND, 1)[1]
    assert re.match(r"\n```console\n\$ .*pytest.*\n```", block)


@pytest.mark.slow
@pytest.mark.embedded
def test_every_command_does_what_the_readme_says(tmp_path):
    """From a clean copy of the checkout: the first command sets everything up, the rest follow in one session."""
    copy = tmp_path / "workflow_composer"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WORKFLOW_COMPOSER", "BIOPIPELINES", "VIRTUAL_ENV"))}
    environ["PATH"] = f"{copy}/.venv/bin:{Path(sys.executable).parent}:{environ['PATH']}"
    environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "110", "NO_COLOR": "1"}
    environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    found = steps()
    assert len(found) >= 8
    for block in re.findall(r"^```python\n(.*?)^```$", README, re.S | re.M):
        found.append(Step(f"python - <<'END'\n{block}END", "..."))
    for step in found:
        done = subprocess.run(
            ["bash", "-c", step.command], cwd=copy, capture_output=True, text=True, check=False, env=environ, timeout=600
        )
        printed = done.stdout if step.expected else ""
        assert done.returncode == 0, f"$ {step.command}\n{done.stdout}{done.stderr}"
        assert matches(step.expected, printed), f"$ {step.command}\nexpected:\n{step.expected}\nprinted:\n{printed}"
        assert not untrue(done.stdout), f"$ {step.command}\nanswers wrongly:\n{done.stdout}"
