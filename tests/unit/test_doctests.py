"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import workflow_composer

MODULES = [
    module.name
    for module in pkgutil.walk_packages(workflow_composer.__path__, "workflow_composer.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_what_it_says(name):
    """Modules without an example are imported, at least."""
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_there_are_examples():
    """The check above would pass on nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = map(importlib.import_module, MODULES)
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 20
