"""A desk with a workflow's file, a table, three models and a shell."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.integration.workflows.scripted import Model
from tests.paths import ROOT

DONE, SOME_FAILED, WRONG, STOPPED, WAITING, CANCELLED = 0, 1, 2, 6, 8, 130
PATIENCE = 300.0
OUT = "out.jsonl"


@dataclass(frozen=True)
class Ran:
    """A command's end."""

    code: int
    out: str
    err: str
    output: Path

    @property
    def said(self) -> str:
        return self.out + self.err

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        return self.summary["steps"]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table that was written."""
        if self.output.suffix == ".csv":
            with self.output.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        return [json.loads(line) for line in self.output.read_text("utf-8").splitlines()]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    @property
    def states(self) -> list[str]:
        return self.column("_state")

    def errors(self, row: int) -> str:
        """What is wrong with a row, counted from 1."""
        return "\n".join(self.rows[row - 1]["_errors"])

    def ended(self, code: int) -> Ran:
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


class Desk:
    """A folder with a profile for ``small``, ``large`` (own machines) and ``remote`` (a cloud model)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.small, self.large, self.remote = Model("small-1b"), Model("large-70b"), Model("remote-x")
        self.profile()

    @property
    def models(self) -> tuple[Model, Model, Model]:
        return self.small, self.large, self.remote

    @property
    def calls(self) -> int:
        """Calls that reached any server."""
        return sum(model.count() for model in self.models)

    @property
    def draws(self) -> int:
        return sum(model.draws() for model in self.models)

    def reset(self) -> None:
        """Forget which calls were made."""
        for model in self.models:
            model.reset()

    def close(self) -> None:
        for model in self.models:
            model.close()

    def profile(
        self, *, small: Mapping[str, Any] | None = None, large: Mapping[str, Any] | None = None, **keys: Any
    ) -> None:
        """Write the profile: prices in dollars per million tokens, one try per call, no breaker in the way."""
        price = {"input_price": 0, "output_price": 1.0}
        value = {
            "profile_name": "desk",
            "models": {
                "small": {"backend": "vllm", "base_url": self.small.url, **price, **(small or {})},
                "large": {"backend": "vllm", "base_url": self.large.url, **price, **(large or {})},
                "remote": {
                    "backend": "openai",
                    "base_url": self.remote.url,
                    "model": "remote-x",
                    "api_key_env": "REMOTE_KEY",
                    **price,
                },
            },
            "tiers": {"small": {"model": "small", "cost": 1.0}, "large": {"model": "large", "cost": 9.0}},
            "task_routing": {"*": "small"},
            "routers": [{"cascade": {"stopping": "fixed"}}, "cascading_provider"],
            "retries": {"attempts": 1},
            "circuit_breaker": {"failures": 1000, "cooldown": 1},
            **keys,
        }
        (self.folder / "profile.yaml").write_text(json.dumps(value, indent=1))

    def file(self, text: str, name: str = "flow.yaml") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text).lstrip("\n"), "utf-8")
        return path

    def edit(self, old: str, new: str, name: str = "flow.yaml") -> None:
        """Change one place of a file."""
        path = self.folder / name
        text = path.read_text("utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), "utf-8")

    def table(self, rows: Sequence[Mapping[str, Any]], name: str = "in.jsonl") -> Path:
        path = self.folder / name
        if path.suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    def environ(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "REMOTE_KEY": "key-of-the-test",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
        }

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command of the package in the folder."""
        command = [sys.executable, "-m", "workflow_composer", "-s", "profile.yaml", *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(command, cwd=self.folder, env=self.environ(), text=True, **streams)

    def does(self, *arguments: str | Path, output: str = OUT) -> Ran:
        """Do a command to its end."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"{arguments} did not end\n" + "\n".join(process.communicate()))
        assert "Traceback (most recent call last)" not in err, err
        return Ran(process.returncode, out, err, self.folder / output)

    @staticmethod
    def arguments(*more: str, file: str = "flow.yaml", table: str = "in.jsonl", output: str = OUT) -> list[str]:
        return ["workflow", "run", file, "--input", table, "-o", output, "--yes", "--json", *more]

    def run(self, *more: str, file: str = "flow.yaml", table: str = "in.jsonl", output: str = OUT) -> Ran:
        return self.does(*self.arguments(*more, file=file, table=table, output=output), output=output)

    def running(self, *more: str, **names: str) -> subprocess.Popen[str]:
        """Start a run."""
        return self.start(*self.arguments(*more, **names))

    def check(self, file: str = "flow.yaml", *more: str) -> Ran:
        return self.does("workflow", "check", file, *more)

    def answer(self, row: str, step: str, value: str) -> Ran:
        """Answer a person's question of a row."""
        return self.does("workflow", "answer", OUT, "--row", row, "--step", step, "--value", value)

    def lineage(self) -> dict[int, dict[str, dict[str, Any]]]:
        """What `show` tells of each row's steps."""
        shown = self.does("workflow", "show", OUT, "--json").ended(DONE)
        return {row["row"]: row["steps"] for row in json.loads(shown.out)["rows"]}

    def refused(self, *words: str | int, line: int | None = None, name: str = "flow.yaml") -> Ran:
        """A file that is wrong: the run says where and what, and nothing is called."""
        ran = self.run().ended(WRONG)
        assert self.calls == 0
        for word in words:
            assert str(word) in ran.said, f"{word!r} is not in {ran.said!r}"
        if line is not None:
            assert f"{name}:{line}" in ran.said, f"line {line} is not in {ran.said!r}"
        return ran

    def journal(self, output: str = OUT) -> Path:
        return self.folder / f"{output}.journal"

    def kept(self, texts: Sequence[str]) -> int:
        """How many of these texts have reached the journal."""
        journal = self.journal()
        data = journal.read_bytes() if journal.exists() else b""
        return sum(text.encode() in data for text in texts)

    def wait_until_kept(self, texts: Sequence[str], count: int, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 60
        while self.kept(texts) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, f"{self.kept(texts)} of {count} are in the journal"
            time.sleep(0.01)

    def copy(self, name: str) -> Desk:
        """A desk in another folder with the same files, in front of the same models."""
        other = object.__new__(Desk)
        other.folder = self.folder.parent / name
        shutil.copytree(self.folder, other.folder)
        other.small, other.large, other.remote = self.models
        return other


def killed(process: subprocess.Popen[str]) -> None:
    """End a process at once, as a machine that fails does."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def line_of(path: Path, needle: str) -> int:
    """The number of the first line with a text."""
    return next(n for n, line in enumerate(path.read_text("utf-8").splitlines(), 1) if needle in line)


def rows_of(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows with a number ``n`` from 1 and a text ``t`` that names it."""
    return [{"n": number, "t": f"row-{number};", **columns} for number in range(1, count + 1)]


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
