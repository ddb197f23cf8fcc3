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


OPTIONAL = {"torch", "transformers", "safetensors"}
"""Brought by the extra ``moe`` alone; where they are not installed, modules that need them cannot be looked at."""


def imported(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return None


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_what_it_says(name):
    """Modules without an example are imported, at least."""
    module = imported(name)
    if module is None:
        pytest.skip("pip install '.[moe]'")
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_there_are_examples():
    """The check above would pass on nothing."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = filter(None, map(imported, MODULES))
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 20
