"""The exceptions and the tree in which they are drawn."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import workflow_composer
from workflow_composer import errors
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import WorkflowComposerError

LINE = re.compile(r"^    ((?:[│ ]   )*)[├└]── (\w+)", re.MULTILINE)


def drawn() -> dict[str, str]:
    """Every class of the tree, and the one above it."""
    above, found = ["WorkflowComposerError"], {}
    for match in LINE.finditer(errors.__doc__ or ""):
        depth = len(match[1]) // 4
        found[match[2]] = above[depth]
        above[depth + 1 :] = [match[2]]
    return found


def test_the_tree_shows_every_exception_where_it_belongs():
    defined = {
        name: kind.__mro__[1].__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, WorkflowComposerError) and kind is not WorkflowComposerError
    }
    assert drawn() == defined


def test_no_exception_of_the_package_s_own_is_defined_elsewhere():
    """One file shows them all, those of the service included."""
    for module in pkgutil.walk_packages(workflow_composer.__path__, "workflow_composer."):
        if module.name.startswith("workflow_composer.server"):
            importlib.import_module(module.name)
    waiting, seen = [WorkflowComposerError], set()
    while waiting:
        kind = waiting.pop()
        seen.add(kind)
        waiting += kind.__subclasses__()
    elsewhere = {f"{kind.__module__}.{kind.__name__}" for kind in seen if kind.__module__.startswith("workflow_composer")}
    assert {name for name in elsewhere if not name.startswith("workflow_composer.errors.")} == set()


def test_what_callers_catch_without_knowing_the_package_is_caught():
    """An unknown profile is a wrong value; that nothing can answer is a condition of the running program."""
    with pytest.raises(ValueError, match="no profile named 'nowhere'"):
        StrategyConfig.load("nowhere")
    for kind in (errors.RoutingError, errors.NoStrategy, errors.AllCandidatesFailed, errors.LocalModelUnavailable):
        assert issubclass(kind, RuntimeError)
    assert not issubclass(errors.ProfileError, ValueError)
