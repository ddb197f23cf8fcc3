"""Which suites `.ci/run` starts whole, and that its table agrees with the tests and the folders that there are."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest

from tests.paths import ROOT

ENVIRONMENTS = re.compile(r"\b(vllm_python|VLLMServer|clients_python|SlurmCluster)\b")
"""What a test uses that cannot run without the environment of a suite."""


def loaded():
    """The script, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("suites", ROOT / ".ci" / "suites.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


suites = loaded()
TABLE = suites.load()
NAMES = list(TABLE)


class Clone:
    """A small checkout with a history, and a table of one suite about the folder `engine`."""

    def __init__(self, path):
        self.path = path
        self.suites = {"gpu": suites.Suite("gpu", ("gpu",), "tests/test_gpu.py::test_one", ("engine",))}
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("engine/server.py", "docs/page.md")
        self.commit("docs/page.md")

    def git(self, *arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", self.path, *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def write(self, *names, text=None):
        for name in names:
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text or (file.read_text() if file.exists() else "") + "another line\n")

    def commit(self, *names):
        self.write(*names)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=a change")

    def pushed(self):
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")

    def due(self, **environ):
        return suites.due(self.suites, self.path, environ)


@pytest.fixture
def clone(tmp_path):
    """A clone whose last commit, which is pushed, changed a page."""
    made = Clone(tmp_path)
    made.pushed()
    return made


# ------------------------------------------------------------------------------------------------------------ what is due


def test_a_change_outside_of_its_folders_starts_no_suite(clone):
    clone.commit("docs/page.md", "engineering/plan.md")

    assert clone.due() == {}


@pytest.mark.parametrize("name", ["engine/server.py", "engine/deep/new.py"])
def test_a_commit_in_a_suite_s_folder_starts_it_and_says_which_file_it_was(clone, name):
    clone.commit(name)
    clone.commit("docs/page.md")

    assert name in clone.due()["gpu"]


def test_a_test_with_the_suite_s_marker_belongs_to_it(clone):
    clone.write("tests/test_gpu.py", text="pytestmark = pytest.mark.gpu\n")
    clone.write("tests/test_other.py", text="pytestmark = pytest.mark.other\n")

    assert clone.suites["gpu"].tests(clone.path) == ["tests/test_gpu.py"]
    assert "tests/test_gpu.py" in clone.due()["gpu"]


def test_changes_that_are_not_committed_count(clone):
    clone.write("engine/server.py")
    assert "engine/server.py" in clone.due()["gpu"]

    clone.git("checkout", "--quiet", "engine/server.py")
    assert clone.due() == {}

    clone.write("engine/new.py")
    assert "engine/new.py" in clone.due()["gpu"]


def test_a_file_that_was_moved_out_of_the_folder_counts(clone):
    clone.git("mv", "engine/server.py", "docs/server.py")

    assert "engine/server.py" in clone.due()["gpu"]


def test_on_a_branch_everything_since_it_left_main_counts_and_nothing_that_main_did_meanwhile(clone):
    clone.git("checkout", "--quiet", "-b", "branch")
    clone.commit("docs/page.md")
    clone.git("checkout", "--quiet", "main")
    clone.commit("engine/server.py")
    clone.pushed()
    clone.git("checkout", "--quiet", "branch")
    assert clone.due() == {}

    clone.commit("engine/other.py")
    clone.commit("docs/page.md")
    assert "engine/other.py" in clone.due()["gpu"]


def test_on_main_itself_the_last_commit_counts(clone):
    assert clone.due() == {}

    clone.commit("engine/server.py")
    clone.pushed()
    assert "engine/server.py" in clone.due()["gpu"]


def test_on_main_all_that_the_last_merge_brought_counts(clone):
    clone.git("checkout", "--quiet", "-b", "branch")
    clone.commit("engine/server.py")
    clone.commit("docs/other.md")
    clone.git("checkout", "--quiet", "main")
    clone.git("merge", "--quiet", "--no-ff", "--message=a merge", "branch")
    clone.pushed()

    assert "engine/server.py" in clone.due()["gpu"]


def test_the_commit_to_compare_with_can_be_named(clone):
    clone.commit("engine/server.py")
    clone.commit("docs/page.md")

    assert clone.due(WORKFLOW_COMPOSER_CI_BASE="HEAD~1") == {}
    assert "engine/server.py" in clone.due(WORKFLOW_COMPOSER_CI_BASE="HEAD~2")["gpu"]


def test_a_named_commit_that_is_not_there_is_an_error(clone):
    with pytest.raises(SystemExit, match="0123abc is not a commit"):
        clone.due(WORKFLOW_COMPOSER_CI_BASE="0123abc")


def test_where_history_says_nothing_every_suite_is_due(clone, tmp_path_factory):
    shallow = tmp_path_factory.mktemp("shallow")
    clone.git("clone", "--quiet", "--depth=1", clone.path.as_uri(), str(shallow))

    for path in (shallow, tmp_path_factory.mktemp("exported")):
        assert "no earlier commit" in suites.due(clone.suites, path, {})["gpu"]


# -------------------------------------------------------------------------------------------------------- what is started


def test_a_suite_is_run_whole_by_its_name():
    expression, *tests = suites.words(TABLE, "suite", "slurm")[1:]

    assert expression == "slurm"
    assert tests == TABLE["slurm"].tests()


def test_of_a_suite_that_is_not_due_one_test_is_run(monkeypatch):
    monkeypatch.setattr(suites, "due", lambda _: {"slurm": "why"})

    words = suites.words(TABLE, "suites")

    assert set(TABLE["slurm"].tests()) < set(words)
    assert TABLE["slurm"].always not in words
    assert {TABLE["vllm"].always, TABLE["clients"].always} < set(words)
    assert not set(TABLE["vllm"].tests()) & set(words)


def test_an_unknown_suite_is_named_with_those_that_there_are():
    with pytest.raises(SystemExit, match=r"unknown suite: gpu; suites: .*slurm"):
        suites.words(TABLE, "suite", "gpu")


# -------------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("suite", TABLE.values(), ids=NAMES)
def test_every_path_of_the_table_exists(suite):
    assert [name for name in suite.folders if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("suite", TABLE.values(), ids=NAMES)
def test_the_one_test_of_a_suite_is_one_of_its_tests(suite):
    file, name = suite.always.split("::")
    functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")}

    assert file in suite.tests()
    assert name in functions


def test_every_test_that_needs_the_environment_of_a_suite_is_in_exactly_one():
    of_file = {}
    for suite in TABLE.values():
        for file in suite.tests():
            of_file.setdefault(file, []).append(suite.name)
    needy = [file for file in (ROOT / "tests").rglob("test_*.py") if ENVIRONMENTS.search(file.read_text())]
    needy = {str(file.relative_to(ROOT)) for file in needy} - {"tests/unit/test_suites.py"}

    assert needy <= set(of_file)
    assert {file: names for file, names in of_file.items() if len(names) > 1} == {}
    assert {name for names in of_file.values() for name in names} == set(TABLE)


def test_what_a_suite_needs_is_made_by_a_function_of_the_script(pytestconfig):
    made = set(re.findall(r"^environment_(\w+)\(\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    marked = {line.partition(":")[0] for line in pytestconfig.getini("markers") if ": suite;" in line}

    assert {need for suite in TABLE.values() for need in suite.environment} == made
    assert marked == set(TABLE)


def test_the_script_has_no_fault_that_shellcheck_finds():
    try:
        done = subprocess.run(["shellcheck", ROOT / ".ci" / "run"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("shellcheck is not installed")
    assert done.stdout == ""
