"""Calls one function of the user's in a process of its own; `workflow_composer.workflows.programs.function` starts this file
by its path.

Standard input has one line of JSON: where modules are looked for, ``module:name``, the arguments, and perhaps ``modules``:
a plugin's, by name, each with its path, whether it is a package, and its text, whose characters are bytes. Standard output
gets one line of JSON: the value, or what went wrong. What the function prints goes to standard error. It imports nothing
from this package.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
import traceback
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def main() -> None:
    """Read, call, answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(2, 1)  # what the function prints must not be mistaken for its value
    asked = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = asked["path"]
    if asked.get("modules"):
        sys.meta_path.insert(0, _GivenModules(asked["modules"]))
    try:
        told = _called(asked)
    except BaseException as error:  # noqa: BLE001  # also SystemExit: whatever ends the function is told
        told = {"error": type(error).__name__, "said": _said(error)}
    sys.stdout.flush()
    sys.stderr.flush()
    answers.write(told if isinstance(told, str) else json.dumps(told))
    answers.flush()
    os._exit(0)  # threads of the function's own do not keep the row waiting


class _GivenModules:
    """Finds and loads modules of which the text is given, whatever lies at their paths now."""

    def __init__(self, modules: dict[str, tuple[str, bool, str]]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a given module."""
        if name not in self._modules:
            return None
        place, is_package, _ = self._modules[name]
        spec = ModuleSpec(name, self, origin=place, is_package=is_package)  # type: ignore[arg-type]  # a loader by its methods
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [place.rpartition(os.sep)[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the text."""
        place, _, text = self._modules[module.__name__]
        exec(compile(text.encode("latin-1"), place, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # a plugin's


def _called(asked: Any) -> Any:
    module, _, name = asked["target"].partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        return {"error": type(error).__name__, "said": _said(error), "missing": True}
    value = function(*asked["args"], **asked["given"])
    if inspect.isawaitable(value):
        import asyncio

        value = asyncio.run(_awaited(value))
    problem = _problem(value, "the value")
    if problem is not None:
        return {"error": "value", "said": "", "problem": problem}
    return json.dumps({"value": value}, ensure_ascii=False, allow_nan=False)


async def _awaited(value: Any) -> Any:
    return await value


def _problem(value: Any, place: str) -> str | None:
    """Say which part of a value is no JSON data; None: none."""
    if value is None or isinstance(value, (str, bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}, which JSON does not have"
    if isinstance(value, dict):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            return f"{place} has a key that is {type(wrong).__name__}, not a text"
        parts = ((f"{place}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{place}[{at}]", part) for at, part in enumerate(value))
    else:
        return f"{place} is {type(value).__name__}, and not JSON data (text, number, truth, list, dict, None)"
    return next((found for where, part in parts if (found := _problem(part, where)) is not None), None)


def _said(error: BaseException) -> str:
    """Return the traceback, without the lines of this file."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


if __name__ == "__main__":
    main()
