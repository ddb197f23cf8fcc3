"""From the text of an expression or a template to its tree: Jinja2's parser, and what of it is allowed.

`len(x)` and `done(x)` are other writings of ``x | len`` and ``x | done``, and ``row["Some column"]`` is a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from workflow_composer.batch.asking.templates import FILTERS, ROW, NotAllowed, TemplateFault, check_tree, tamed_environment
from workflow_composer.errors import nearest

FACTS = ("_state", "_attempts", "_error", "_model", "_cost")
"""What is known of every step besides its value."""
STATES = ("done", "skipped", "failed", "waiting", "withheld", "not_run")
"""Tests of a step's state."""
GIVEN = ("given", "defined", "undefined", "none")
"""Tests that a missing value may take."""


class SyntaxFault(Exception):
    """What is wrong in a text, in which line of the file, and the remedy."""

    def __init__(self, message: str, line: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.hint = message, line, hint


def _done(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise TemplateFault("done needs a list")
    return [item for item in value if item is not None]


def _extreme(name: str, choose: Callable[..., Any]) -> Callable[..., Any]:
    def found(value: Any, *more: Any) -> Any:
        values = [value, *more] if more else value
        if not isinstance(values, (list, tuple)):
            raise TemplateFault(f"{name} needs a list, or two numbers or more")
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
        if not numbers and not all(isinstance(one, str) for one in values):
            raise TemplateFault(f"{name} needs numbers only, or texts only")
        return choose(values, default=None)

    return found


ALL_FILTERS: Mapping[str, Callable[..., Any]] = {
    **FILTERS,
    "len": FILTERS["length"],
    "done": _done,
    "min": _extreme("min", min),
    "max": _extreme("max", max),
}
FUNCTIONS = ("len", "min", "max", "done", "default")

_ENVIRONMENT = tamed_environment()
TESTS: Mapping[str, Any] = dict(_ENVIRONMENT.tests)
_ALL_TESTS = (*TESTS, *STATES)
_SIGNS = (
    (r"&&", "write `and`"),
    (r"\|\|", "write `or`"),
    (r"(?<![=!<>])=(?!=)", "write == to compare"),
    (r"===", "write == to compare"),
    (r"!(?!=)", "write `not`"),
    (r"\bis\s+not\s+(?:null|empty|None)\b", "write `is given`"),
)


class _Plain(NodeTransformer):
    """Functions become filters, and columns of ``row`` names."""

    def __init__(self, columns_of_row: bool) -> None:
        self.columns_of_row = columns_of_row

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        return nodes.Const(None, lineno=node.lineno) if node.name in ("null", "Null", "NULL") else node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        function = node.node.name if isinstance(node.node, nodes.Name) else None
        if function not in FUNCTIONS or not node.args or node.dyn_args is not None or node.dyn_kwargs is not None:
            if isinstance(node.node, nodes.Name):
                hint = nearest(function or "", FUNCTIONS) or f"functions: {', '.join(FUNCTIONS)}"
                raise NotAllowed(f"{function}(…) is no function, or has no argument", node.lineno, hint)
            return node
        return nodes.Filter(node.args[0], function, node.args[1:], node.kwargs, None, None, lineno=node.lineno)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        return self._column(node, node.attr)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        return self._column(node, node.arg.value if isinstance(node.arg, nodes.Const) else None)

    def _column(self, node: Any, key: Any) -> nodes.Node:
        if not self.columns_of_row or not isinstance(node.node, nodes.Name) or node.node.name != ROW:
            return node  # type: ignore[no-any-return]  # it is one
        if not isinstance(key, str):
            raise NotAllowed(f"{ROW}[…] needs the name of a column in quotes", node.lineno, 'such as row["Article Title"]')
        return nodes.Name(key, "load", lineno=node.lineno)


def expression_tree(text: str, line: int, *, columns_of_row: bool = True) -> nodes.Expr:
    """Return the tree of an expression. Raises `SyntaxFault`; ``line`` is that of its first character."""
    if re.search(r"\{\{|\{%", text):
        raise SyntaxFault("an expression is written without {{ }}", line, "remove the braces")
    if not text.strip():
        raise SyntaxFault("the expression is empty", line, 'write a name, or a condition such as kind == "case"')
    try:
        return _checked(_parsed(text), columns_of_row)  # type: ignore[return-value]  # an expression stays one
    except jinja2.TemplateSyntaxError as error:
        raise _fault(error, text, line) from None
    except RecursionError:
        raise SyntaxFault("the expression is nested too deeply", line, "make it simpler") from None


def _parsed(text: str) -> nodes.Expr:
    parser = Parser(_ENVIRONMENT, text, state="variable")
    tree = parser.parse_expression()
    if not parser.stream.eos:
        raise jinja2.TemplateSyntaxError(f"unexpected {parser.stream.current.value!r}", parser.stream.current.lineno)
    return tree


def template_tree(text: str, line: int, *, columns_of_row: bool = True) -> nodes.Template:
    """Return the tree of a template. Raises `SyntaxFault`; ``line`` is that of its first character."""
    try:
        return _checked(_ENVIRONMENT.parse(text), columns_of_row)  # type: ignore[return-value]  # as above
    except jinja2.TemplateSyntaxError as error:
        raise _fault(error, text, line) from None
    except RecursionError:
        raise SyntaxFault("the template is nested too deeply", line, "make it simpler") from None


def _checked(tree: nodes.Node, columns_of_row: bool) -> nodes.Node:
    made: nodes.Node = _Plain(columns_of_row).visit(tree)
    check_tree(made, filters=ALL_FILTERS, tests=_ALL_TESTS)
    return made


def _fault(error: jinja2.TemplateSyntaxError, text: str, line: int) -> SyntaxFault:
    hint = getattr(error, "hint", "")
    message = str(error.message)
    if not hint and "{{" not in text and "{%" not in text:
        hint = next((remedy for sign, remedy in _SIGNS if re.search(sign, text)), "")
    if not hint and message.startswith("expected token 'end of print statement'"):
        hint = 'a column whose name is no identifier is written row["Article Title"]'
    if not hint or "{{" in text or "{%" in text or "{#" in text:
        if "end of comment" in message:
            hint = "{# begins a comment; write {{ '{#' }} for these characters"
        elif "{{" in text or "{%" in text:
            mark, end = ("{%", "%}") if "statement block" in message or "{{" not in text else ("{{", "}}")
            hint = hint or f"close {mark} with {end}; write {{{{ '{mark}' }}}} for these characters themselves"
    return SyntaxFault(message, line + max(error.lineno, 1) - 1, hint or "see the page on workflows for the syntax")


def only_expression(tree: nodes.Template) -> nodes.Expr | None:
    """Return the expression of a template that is one ``{{ … }}`` and nothing else; None for others."""
    body = tree.body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return None
    only = body[0].nodes[0]
    return None if isinstance(only, nodes.TemplateData) else only
