"""What `.ci/run` starts: reads `suites.toml`, asks git what has changed, and prints words for the shell.

python3 .ci/suites.py environment [SUITE]  what a suite needs, or all of them do
python3 .ci/suites.py outside              pytest's arguments for the tests that belong to no suite
python3 .ci/suites.py suite SUITE          pytest's arguments for a whole suite
python3 .ci/suites.py due                  the suites that a change touches
python3 .ci/suites.py suites               pytest's arguments for these, and for one test of each other
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = "WORKFLOW_COMPOSER_CI_BASE"
"""The commit to compare with, where git's own history does not say it: the last one that was tested."""


@dataclass(frozen=True)
class Suite:
    """One row of the table; paths are relative to the checkout."""

    name: str
    environment: tuple[str, ...]
    always: str
    folders: tuple[str, ...]

    def tests(self, root: Path = ROOT) -> list[str]:
        """The test files that carry the suite's marker."""
        mark = f"pytest.mark.{self.name}"
        files = sorted((root / "tests").rglob("test_*.py"))
        return [str(file.relative_to(root)) for file in files if mark in file.read_text(encoding="utf-8")]

    def touched(self, changed: Iterable[str], root: Path = ROOT) -> str | None:
        """The first of the changed paths that the suite is about; None if there is none."""
        own = [Path(name) for name in (*self.folders, *self.tests(root))]
        return next((name for name in changed if any(Path(name).is_relative_to(one) for one in own)), None)


def load(file: Path = ROOT / ".ci" / "suites.toml") -> dict[str, Suite]:
    """Read the table."""
    rows = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: Suite(name, tuple(row["environment"]), row["always"], tuple(row["folders"])) for name, row in rows.items()}


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails, or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def base(root: Path, environ: Mapping[str, str]) -> str | None:
    """The commit that was tested before; None if history does not reach back to it.

    On a branch that is where the branch left ``origin/main``. On ``origin/main`` itself, as in a fresh clone, it is the
    first parent: after a merge, everything that the merge brought counts as changed.
    """
    if given := environ.get(BASE):
        if git(root, "rev-parse", "--verify", "--quiet", f"{given}^{{commit}}") is None:
            raise SystemExit(f"{BASE}: {given} is not a commit of this clone")
        return given
    fork = git(root, "merge-base", "origin/main", "HEAD")
    if fork is None or fork == git(root, "rev-parse", "HEAD"):
        fork = git(root, "rev-parse", "--verify", "--quiet", "HEAD~1")
    return fork.strip() if fork else None


def changed(root: Path, since: str) -> list[str]:
    """Paths that differ from a commit, uncommitted and new ones among them; of a moved file, both."""
    differing = git(root, "diff", "--name-only", "--no-renames", "-z", since) or ""
    new = git(root, "ls-files", "--others", "--exclude-standard", "-z") or ""
    return [name for name in (differing + new).split("\0") if name]


def due(suites: Mapping[str, Suite], root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The suites to run whole, and why: something that they are about has changed, or nobody knows what has."""
    since = base(root, environ)
    if since is None:
        return dict.fromkeys(suites, f"no earlier commit to compare with; {BASE} can name one")
    paths = changed(root, since)
    reasons = {name: suite.touched(paths, root) for name, suite in suites.items()}
    return {name: f"{path} has changed since {since[:12]}" for name, path in reasons.items() if path}


def whole(*suites: Suite) -> list[str]:
    """The test files of suites, each once."""
    return [test for suite in suites for test in suite.tests()]


def words(suites: Mapping[str, Suite], command: str, *names: str) -> Iterable[str]:
    """The words that a command prints."""
    if unknown := [name for name in names if name not in suites]:
        raise SystemExit(f"unknown suite: {', '.join(unknown)}; suites: {', '.join(suites)}")
    any_of = " or ".join(suites)
    match command, names:
        case "environment", _:
            return dict.fromkeys(need for name in names or suites for need in suites[name].environment)
        case "outside", ():
            return ["-m", f"not ({any_of})"]
        case "suite", (name,):
            return ["-m", name, *whole(suites[name])]
        case "due", ():
            return due(suites)
        case "suites", ():
            found = due(suites)
            for name, why in found.items():
                print(f"the whole suite {name}: {why}", file=sys.stderr)
            single = [suite.always for suite in suites.values() if suite.name not in found]
            return ["-m", any_of, *whole(*(suites[name] for name in found)), *single]
    raise SystemExit(__doc__)


if __name__ == "__main__":
    print(shlex.join(words(load(), *(sys.argv[1:] or [""]))))
