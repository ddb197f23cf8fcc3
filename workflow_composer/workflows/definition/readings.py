"""Expressions and templates as values: what a file says in a place, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

from workflow_composer.workflows.definition.evaluation import Evaluator
from workflow_composer.workflows.definition.model import Names
from workflow_composer.workflows.definition.shapes import Shape
from workflow_composer.workflows.definition.survey import KnownNames, NameFault, Survey
from workflow_composer.workflows.definition.syntax import (
    SyntaxFault,
    expression_tree,
    only_expression,
    template_tree,
)


class _Read:
    """What expressions and templates have in common; see `workflow_composer.workflows.definition.model.Reading`."""

    def __init__(self, tree: nodes.Node, text: str, line: int) -> None:
        self.tree, self.text, self.line = tree, text, line
        found = Survey(tree)
        self.reads = frozenset(found.reads)
        self.needs = frozenset(found.needs)
        self.values = frozenset(found.values)
        """The names of which more is asked than their state."""
        self.facts = frozenset(found.facts)
        """The names of which it is asked what it took to answer: tries, cost, model, error."""
        self.of_rows = None if found.of_rows is None else frozenset(found.of_rows)
        """The fields of ``rows`` that it uses; None: all of them."""

    def check(self, known: KnownNames) -> tuple[Shape, Iterator[NameFault]]:
        """Return the shape of its value and its faults, with their lines in the file."""
        found = Survey(self.tree, known)
        return found.shape, (fault._replace(line=self.line + max(fault.line, 1) - 1) for fault in found.faults)

    def holds(self, names: Names) -> bool:
        """Return whether a condition holds. Raises `ValueFault` if it is not true or false."""
        return Evaluator(names, strict=True).condition(self.tree, {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"


class Expression(_Read):
    """An expression: its value keeps its type, and conditions in it are strictly true or false."""

    tree: nodes.Expr

    def evaluate(self, names: Names) -> Any:
        """Return the value, which may be null. Raises `ValueFault`."""
        return Evaluator(names, strict=True).value(self.tree, {})


class TextTemplate(_Read):
    """A text with places for values."""

    tree: nodes.Template

    def evaluate(self, names: Names) -> str:
        """Return the text. Raises `ValueFault`."""
        return Evaluator(names, strict=False).text(self.tree)


def read_expression(text: str, line: int = 1, *, columns_of_row: bool = True) -> Expression:
    """Read an expression; ``line`` is that of its first character. Raises `SyntaxFault`."""
    return Expression(expression_tree(text, line, columns_of_row=columns_of_row), text, line)


def read_template(text: str, line: int = 1, *, columns_of_row: bool = True) -> TextTemplate:
    """Read a template, as `read_expression`."""
    return TextTemplate(template_tree(text, line, columns_of_row=columns_of_row), text, line)


def read_value(text: str, line: int = 1, *, columns_of_row: bool = True) -> Expression | TextTemplate:
    """Read an expression, a template, or a plain text.

    One ``{{ … }}`` and nothing else is an expression, as is a text without braces that can be read as one; a text that
    cannot stands for itself. Raises `SyntaxFault`.
    """
    if "{{" in text or "{%" in text or "{#" in text:
        tree = template_tree(text.strip(), line, columns_of_row=columns_of_row)
        only = only_expression(tree)
        return read_template(text, line, columns_of_row=columns_of_row) if only is None else Expression(only, text, line)
    try:
        return read_expression(text, line, columns_of_row=columns_of_row)
    except SyntaxFault:
        return Expression(nodes.Const(text, lineno=1), text, line)
