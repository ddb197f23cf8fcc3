"""Lines typed at a terminal: edited and completed by readline where Python has it, and kept for the next session."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

from workflow_composer.config.redaction import looks_like_secret
from workflow_composer.storage.appending import open_for_appending
from workflow_composer.support.places import state_folder

HISTORY_VARIABLE = "WORKFLOW_COMPOSER_HISTORY"
_MOST_LINES = 1000
"""Lines of the history that are read at the start; the file is cut to them then."""
_FENCE = '"""'


def history_file(environ: Mapping[str, str]) -> Path | None:
    """Return the file of the history: the one that the environment names, else the user's; None if it says ``off``."""
    named = environ.get(HISTORY_VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    if named:
        return Path(named).expanduser()
    return state_folder(environ) / "history"


class LineEditor:
    """Reads lines. ``completions`` returns the ways to complete a line that begins so.

    The history is a file of mode 0600; lines with what looks like a key are not written to it. Without readline, or if the
    file cannot be written, there is no history, and everything else works.
    """

    def __init__(self, history: Path | None, completions: Callable[[str], Iterable[str]]) -> None:
        self._readline = _readline()
        self._history = history
        self._completions = completions
        self._found: list[str] = []
        if self._readline is not None:
            self._set_up(self._readline)

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_auto_history(False)
        readline.set_completer_delims("")
        readline.set_completer(self._complete)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        if self._history is None:
            return
        with contextlib.suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(open_for_appending(self._history))  # creates it, because readline would let others read it
            readline.read_history_file(self._history)
            if readline.get_current_history_length() > _MOST_LINES:
                readline.set_history_length(_MOST_LINES)
                readline.write_history_file(self._history)

    def read(self, prompt: str) -> str:
        """Return one line, or several: a pasted text, or the lines between two lines of three quotation marks.

        Raises `EOFError` at the end of the input, `KeyboardInterrupt`, and UnicodeDecodeError.
        """
        text = input(prompt)
        if text.strip() == _FENCE:
            lines: list[str] = []
            while (line := input("... ")).strip() != _FENCE:
                lines.append(line)
            text = "\n".join(lines)
        if text.strip():
            self._remember(" ".join(text.split("\n")))
        return text

    def _remember(self, line: str) -> None:
        if self._readline is None or self._last() == line:
            return
        self._readline.add_history(line)
        if self._history is not None and not looks_like_secret(line):
            with contextlib.suppress(OSError):
                self._readline.append_history_file(1, self._history)

    def _last(self) -> str | None:
        assert self._readline is not None  # the caller has checked
        last: str | None = self._readline.get_history_item(self._readline.get_current_history_length())
        return last

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = sorted(self._completions(text))
        return self._found[state] if state < len(self._found) else None


def _readline() -> ModuleType | None:
    try:
        return importlib.import_module("readline")
    except ImportError:
        return None
