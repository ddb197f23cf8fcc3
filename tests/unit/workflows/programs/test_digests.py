"""What a changed program is noticed by."""

from __future__ import annotations

import pytest

from workflow_composer.workflows.definition.model import CommandBody, PythonBody
from workflow_composer.workflows.programs.digests import ProgramSources

FILES = {
    "check.py": "import rules\nfrom package import part\nprint(rules, part)\n",
    "rules.py": "import json\nfrom deeper import more\n",
    "deeper.py": "def more(): import rules\n",
    "package/__init__.py": "",
    "package/part.py": "from . import other\n",
    "package/other.py": "x = 1\n",
    "alone.py": "y = 1\n",
    "data.csv": "a,b\n",
    "tests/test_it.py": "import alone\n",
    "tool.sh": "echo 1\n",
}
CHECK = {"check.py", "rules.py", "deeper.py", "package/__init__.py", "package/part.py", "package/other.py"}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (CommandBody(argv=("python", "check.py")), CHECK),
        (CommandBody(argv=("python", "-m", "check")), CHECK),
        (CommandBody(argv=("tool.sh", "--rows=data.csv", "alone.py")), {"tool.sh", "data.csv", "alone.py"}),
        (CommandBody(argv=("python", "-m", "pytest", "tests")), {"tests/test_it.py"}),
        (PythonBody(target="check:main"), CHECK),
        (PythonBody(target="package.part:f"), {"package/__init__.py", "package/part.py", "package/other.py"}),
    ],
)
def test_what_is_seen(folder, body, seen):
    sources = ProgramSources(folder)
    assert set(sources(body)) == seen
    assert sources.unseen == []


def test_a_changed_line_anywhere_counts_and_other_files_do_not(folder):
    body = PythonBody(target="check:main")
    before = ProgramSources(folder)(body)
    (folder / "alone.py").write_text("y = 2\n")
    assert ProgramSources(folder)(body) == before
    (folder / "package" / "other.py").write_text("x = 2\n")
    after = ProgramSources(folder)(body)
    assert {name for name in after if after[name] != before[name]} == {"package/other.py"}


def test_where_the_folder_lies_does_not_matter(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "alone.py").write_text("y = 1\n")
    body = PythonBody(target="alone:f")
    assert ProgramSources(other)(body) == ProgramSources(folder)(body)


def test_what_is_not_seen_is_said_once(folder):
    (folder / "quick.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")
    sources = ProgramSources(folder)
    for _ in range(2):
        assert set(sources(PythonBody(target="quick:f"))) == {"quick.cpython-311-x86_64-linux-gnu.so"}
        assert sources(CommandBody(argv=("samtools", "view"))) == {}
        assert sources(PythonBody(target="no_such_module:f")) == {}
    assert [what.split(":")[0].split(",")[0] for what in sources.unseen] == [
        "the text of quick",
        "what the program samtools does",
        "the text of no_such_module",
    ]


def test_an_installed_function_counts_by_its_file(folder):
    (path,) = ProgramSources(folder)(PythonBody(target="json.decoder:JSONDecoder"))
    assert path.endswith("json/decoder.py")
