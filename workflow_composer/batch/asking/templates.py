"""Prompt templates: Jinja2 over plain data, tamed.

Jinja2's syntax leaves JSON in a prompt alone, and its defaults spoil prompts. What is different here:

- ``{{ x.items }}`` is the field ``items``, never a method: fields come first, and plain data have no methods. There are no
  globals, so that a column may be named ``range``; calls, imports, macros and assignments are errors.
- Every name is checked when the template is read, also in branches that are not taken.
- A value prints as a person would write it: texts as they are, numbers and truth values as JSON, lists and objects as JSON
  without escapes. A missing value is an error that names the expression and the row.
- A value is inserted once and never compiled. The length of a prompt is limited, and no expression can multiply a text.

Importing this module imports Jinja2.
"""

from __future__ import annotations

import json
import math
import operator as operators
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.visitor import NodeTransformer

from workflow_composer.errors import InputError, nearest

LONGEST = 4_000_000
"""Most characters of a prompt: more than any model's context, and little enough memory for hundreds of rows in flight."""

ROW = "row"
"""The name of the row itself, for columns whose names are no identifiers: ``row["Article Title"]``."""

_DEEPEST = 100
_SELF = "self"


class TemplateFault(Exception):
    """What is wrong with an expression, and how to write it; `PromptTemplate` adds where."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class Reference(NamedTuple):
    """A value that a template uses: its path, such as ``("meta", "journal")``, and its line."""

    path: tuple[str, ...]
    line: int


# ------------------------------------------------------------------------------------------------------------- values
#
# How values print, and the filters. Each raises `TemplateFault`.


def is_missing(value: Any) -> bool:
    """Whether a value is null, or the NaN that stands for it in numeric columns."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def printed(value: Any, expression: str) -> str:
    """Return the text that a value prints as; ``expression`` names it in errors."""
    if isinstance(value, str):
        return value
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, jinja2.Undefined) or is_missing(value):
        what = "is null" if is_missing(value) else "has no value"
        raise TemplateFault(f"{{{{ {expression} }}}} {what}", f"write {{{{ {expression} | default('') }}}} to allow it")
    if isinstance(value, (list, tuple)) and any(isinstance(item, jinja2.Undefined) or is_missing(item) for item in value):
        raise TemplateFault(f"{{{{ {expression} }}}} is a list with a null in it", "remove it from the list")
    return as_json(value)


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON: no escapes for accents or for HTML, dates in ISO 8601, decimals as they are."""
    if isinstance(value, Decimal):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)
    except (TypeError, ValueError, RecursionError):
        raise TemplateFault(
            f"a value of type {type(value).__name__} cannot be printed", "convert it to text first"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(type(value).__name__)


def _items(value: Any, expression: str) -> Sequence[Any]:
    """Return what a loop visits. A text is not a list: a loop over it would visit its letters."""
    if isinstance(value, Mapping):
        return list(value)
    if isinstance(value, (list, tuple)):
        return value
    found = "missing" if isinstance(value, jinja2.Undefined) else _named(value)
    raise TemplateFault(f"{expression} is {found}, not a list to loop over", "a text would be visited letter by letter")


def _joined(values: Any, separator: str = "", attribute: str | None = None) -> str:
    items = list(_items(values, "the value before | join"))
    if attribute is not None:
        items = [_field(item, attribute) for item in items]
    return separator.join(printed(item, "an item of join") for item in items)


def _default(value: Any, other: Any = "", empty: bool = False) -> Any:
    given = not isinstance(value, jinja2.Undefined) and not is_missing(value)
    return value if given and (value or not empty) else other


def _ends(name: str, at: int) -> Callable[[Any], Any]:
    def end(value: Any) -> Any:
        if not isinstance(value, (str, list, tuple)):
            raise TemplateFault(f"{name} needs a list or a text")
        return value[at] if value else jinja2.StrictUndefined(name=f"the {name} of an empty list")

    return end


def _text(name: str, change: Callable[[str], str]) -> Callable[[Any], str]:
    return lambda value: change(printed(value, f"the value before | {name}"))


def _length(value: Any) -> int:
    if not isinstance(value, (str, list, tuple, Mapping)):
        raise TemplateFault("length needs a text, a list or an object")
    return len(value)


def _round(value: Any, digits: int = 0) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise TemplateFault(f"round needs a number, not {value[:40]!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise TemplateFault("round needs a number")
    return round(value, digits) if digits else round(value)


def _truncate_words(value: Any, words: int, end: str = "…") -> str:
    text = printed(value, "the value before | truncate_words")
    if isinstance(words, bool) or not isinstance(words, int) or words < 1:
        raise TemplateFault("truncate_words needs a number of words", "write {{ abstract | truncate_words(200) }}")
    found = re.match(rf"\s*(?:\S+\s+){{{words}}}(?=\S)", text) if words <= len(text) else None
    return text if found is None else found[0].rstrip() + end


FILTERS: dict[str, Callable[..., Any]] = {
    "join": _joined,
    "tojson": as_json,
    "default": _default,
    "length": _length,
    "first": _ends("first", 0),
    "last": _ends("last", -1),
    "upper": _text("upper", str.upper),
    "lower": _text("lower", str.lower),
    "trim": _text("trim", str.strip),
    "round": _round,
    "truncate_words": _truncate_words,
}
"""The filters of templates by name."""

_TESTS: tuple[str, ...] = (
    "boolean",
    "defined",
    "divisibleby",
    "even",
    "false",
    "float",
    "in",
    "integer",
    "mapping",
    "none",
    "number",
    "odd",
)
_TESTS += ("sequence", "string", "true", "undefined", "eq", "ne", "lt", "le", "gt", "ge")
_LOOP = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length"})


def _given(value: Any) -> bool:
    return not isinstance(value, jinja2.Undefined) and not is_missing(value)


# -------------------------------------------------------------------------------------------------------- environment


def _field(holder: Any, key: Any) -> Any:
    """Return an item of plain data; undefined if it has none."""
    if isinstance(holder, LoopContext) and key in _LOOP:
        return getattr(holder, key)
    if isinstance(holder, jinja2.Undefined):
        raise jinja2.UndefinedError(holder._undefined_message)
    what = f"no field {key!r} in {_named(holder)}"
    usable = isinstance(holder, Mapping) if isinstance(key, str) else isinstance(holder, (str, list, tuple))
    if usable and not isinstance(key, bool):
        try:
            return holder[key]
        except (KeyError, IndexError, TypeError):
            pass
    return jinja2.StrictUndefined(what)


def _named(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    if is_missing(value):
        return "null"
    if isinstance(value, Mapping):
        return "an object with " + (", ".join(map(repr, list(value)[:8])) or "no fields")
    return "a list" if isinstance(value, (list, tuple)) else "a text" if isinstance(value, str) else "a number"


_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operators.add,
    "-": operators.sub,
    "*": operators.mul,
    "/": operators.truediv,
    "//": operators.floordiv,
    "%": operators.mod,
}


class _Tamed(jinja2.Environment):
    """Items first, never methods; arithmetic on numbers only."""

    sandboxed = True  # sends operators to `call_binop` and `call_unop`
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})
    intercepted_unops = frozenset({"+", "-"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute``."""
        return _field(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return ``obj[argument]``."""
        return _field(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with two numbers."""
        self._check_numbers(operator, left, right)
        return _ARITHMETIC[operator](left, right)

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:
        """Return a number or its negative."""
        self._check_numbers(operator, arg)
        return -arg if operator == "-" else arg

    @staticmethod
    def _check_numbers(operator: str, *values: Any) -> None:
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                hint = "to join texts, write them one after another, or use ~"
                raise TemplateFault(f"{operator} needs numbers, not {type(value).__name__}", hint)


def tamed_environment() -> jinja2.Environment:
    """Return an environment without globals, whose fields are items of plain data."""
    made = _Tamed(undefined=jinja2.StrictUndefined, autoescape=False, cache_size=0)
    made.globals.clear()
    given = {name: test for name, test in made.tests.items() if name in _TESTS}
    made.tests = {**given, "given": _given}
    made.filters = {**FILTERS, _PRINTED: printed, _ITEMS: _items}
    return made


_PRINTED, _ITEMS = "__printed", "__items"  # names that a template cannot spell by accident; harmless if it does


# ----------------------------------------------------------------------------------------------------------- reading

_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.For,
    nodes.If,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.CondExpr,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
)
_REFUSED = {
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Include: "include",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.FilterBlock: "filter",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.With: "with",
    nodes.Pow: "**",
}


def written(node: nodes.Node) -> str:
    """Return an expression as a person would write it, for messages."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Const):
        return repr(node.value)
    if isinstance(node, nodes.Getattr):
        return f"{written(node.node)}.{node.attr}"
    if isinstance(node, nodes.Getitem):
        return f"{written(node.node)}[{written(node.arg)}]"
    if isinstance(node, nodes.Filter) and node.node is not None:
        return f"{written(node.node)} | {node.name}"
    return "…"


class _Wrapped(NodeTransformer):
    """Prints outputs, joined texts and loops by our rules: each becomes a filter that knows the expression."""

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        if node.name != _SELF:  # which Jinja2 reserves
            return node
        return nodes.Getitem(nodes.Name(ROW, "load", lineno=node.lineno), nodes.Const(_SELF), "load", lineno=node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        node.nodes = [part if isinstance(part, nodes.TemplateData) else _through(_PRINTED, part) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        node.nodes = [_through(_PRINTED, part) for part in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # the name that the visitor calls
        self.generic_visit(node)
        node.iter = _through(_ITEMS, node.iter)
        return node


def _through(name: str, node: Any) -> nodes.Expr:
    told = nodes.Const(written(node), lineno=node.lineno)
    return nodes.Filter(node, name, [told], [], None, None, lineno=node.lineno)


class PromptTemplate:
    """A prompt with places for the values of a row.

    Args:
        text: the template. One newline at its end is removed, as Jinja2 does.
        name: names the template in errors, such as an option or a file.

    Raises `InputError` with the line for a syntax error, an unknown filter, or a construct that is not allowed.
    """

    def __init__(self, text: str, *, name: str = "the template") -> None:
        self.text, self.name = text, name
        environment = tamed_environment()
        try:
            tree = environment.parse(text)
            check_tree(tree)
            self.references = tuple(_references(tree))
            code = environment.compile(_Wrapped().visit(tree))
        except jinja2.TemplateSyntaxError as error:
            raise self._syntax(error) from None
        except RecursionError:
            raise InputError(f"{name}: the template is nested too deeply", hint="make it simpler") from None
        self._template = jinja2.Template.from_code(environment, code, {})

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it uses, in order of appearance."""
        return tuple(dict.fromkeys(reference.path[0] for reference in self.references))

    def check(self, columns: Sequence[str]) -> None:
        """Raise `InputError` if it uses a name that is no column, or none at all; the hint lists near candidates."""
        for reference in self.references:
            path = reference.path
            if path[0] == ROW and ROW not in columns:
                path = path[1:]
            if path and path[0] not in columns:
                dotted = ".".join(path)  # a column of a flattened table, such as meta.journal
                if dotted in columns:
                    hint = f"write {usage(dotted)}"
                    raise InputError(f"{self.name}:{reference.line}: {dotted!r} is one column", hint=hint)
                inner = next((name for name in path[1:] if name in columns), None)  # as in {{ input.title }}
                hint = f"did you mean {usage(inner)}?" if inner is not None else near_columns(path[0], columns)
                raise InputError(f"{self.name}:{reference.line}: no column {path[0]!r}", hint=hint)
        if not self.references:
            single = next((column for column in columns if f"{{{column}}}" in self.text), None)
            hint = f"write {{{{ {single or (columns[0] if columns else 'column')} }}}} where its value belongs"
            raise InputError(f"{self.name} uses no column: every row would get the same prompt", hint=hint)

    def render(self, values: Mapping[str, Any], where: str) -> str:
        """Return the prompt of a row. Columns that the row lacks are null; ``where`` names the row in errors.

        Raises `InputError` for a null or missing value, a wrong type, or a prompt longer than `LONGEST`.
        """
        row = {ROW: values, **{name: values.get(name) for name in self.names if name != ROW or ROW in values}}
        try:
            return "".join(_limited(self._template.generate(row)))
        except TemplateFault as fault:
            raise InputError(f"{where}: {fault.message}", hint=fault.hint) from None
        except jinja2.UndefinedError as error:
            hint = "write {{ … | default('') }} where a value may be missing"
            raise InputError(f"{where}: {self.name}: {error.message}", hint=hint) from None
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise InputError(
                f"{where}: {self.name} cannot be filled in: {error}", hint="check the types of the values"
            ) from None

    def _syntax(self, error: jinja2.TemplateSyntaxError) -> InputError:
        hint = getattr(error, "hint", "see the page on ask for the syntax")
        message = str(error.message)
        if message.startswith("expected token 'end of print statement'"):
            hint = 'a column whose name is no identifier is written row["Article Title"]'
        elif "end of comment" in message:
            hint = "{# begins a comment; write {{ '{#' }} for these characters"
        return InputError(f"{self.name}:{error.lineno}: {message}", hint=hint)


class NotAllowed(jinja2.TemplateSyntaxError):
    """A construct that these templates do not have."""

    def __init__(self, message: str, line: int, hint: str) -> None:
        super().__init__(message, line)
        self.hint = hint


def _limited(pieces: Iterable[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > LONGEST:
            raise TemplateFault(f"the prompt is longer than {LONGEST:,} characters", "shorten values with truncate_words")
        yield piece


def check_tree(
    node: nodes.Node, depth: int = 0, *, filters: Iterable[str] = FILTERS, tests: Iterable[str] = (*_TESTS, "given")
) -> None:
    """Raise `NotAllowed` for whatever a template does not have, also in branches that are not taken."""
    if depth > _DEEPEST:
        raise NotAllowed("the template is nested too deeply", node.lineno, "make it simpler")
    if isinstance(node, nodes.Call):
        called = written(node.node)
        hint = f"available filters: {', '.join(filters)}"
        if called.endswith((".items", ".keys", ".values")):
            hint = "loop over the object itself: {% for key in meta %}{{ key }}: {{ meta[key] }}{% endfor %}"
        raise NotAllowed(f"{called}(…): calls are not allowed", node.lineno, hint)
    if not isinstance(node, _ALLOWED) or (isinstance(node, nodes.For) and node.recursive):
        word = _REFUSED.get(type(node), type(node).__name__.lower())
        raise NotAllowed(f"{word!r} is not allowed in a prompt", node.lineno, "use if, for, and the filters")
    if isinstance(node, nodes.Filter) and node.name not in filters:
        _unknown("filter", node.name, filters, node.lineno)
    if isinstance(node, nodes.Test) and node.name not in tests:
        _unknown("test", node.name, tests, node.lineno)
    for child in node.iter_child_nodes():
        check_tree(child, depth + 1, filters=filters, tests=tests)


def _unknown(what: str, name: str, known: Iterable[str], line: int) -> None:
    known = list(known)
    hint = nearest(name, known) or f"available: {', '.join(known)}"
    raise NotAllowed(f"no {what} named {name!r}", line, hint)


def _references(node: nodes.Node, bound: frozenset[str] = frozenset()) -> Iterator[Reference]:
    """Yield the values that are used and not bound by a loop, in order of appearance."""
    if isinstance(node, nodes.For):
        yield from _references(node.iter, bound)
        targets = [node.target, *node.target.find_all(nodes.Name)]
        inner = bound | {"loop", *(target.name for target in targets if isinstance(target, nodes.Name))}
        for part in (*([node.test] if node.test is not None else []), *node.body):
            yield from _references(part, inner)
        for part in node.else_:
            yield from _references(part, bound)
        return
    path = _path(node)
    if path is None:
        for child in node.iter_child_nodes():
            yield from _references(child, bound)
        return
    if path[0] not in bound:
        yield Reference(path, node.lineno)
    while isinstance(node, (nodes.Getattr, nodes.Getitem)):
        if isinstance(node, nodes.Getitem):
            yield from _references(node.arg, bound)
        node = node.node


def _path(node: nodes.Node) -> tuple[str, ...] | None:
    """Return the names that lead to a value, as far as they are constant texts; None for other expressions."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if not isinstance(node, (nodes.Getattr, nodes.Getitem)):
        return None
    base = _path(node.node)
    if base is None:
        return None
    key = node.attr if isinstance(node, nodes.Getattr) else node.arg.value if isinstance(node.arg, nodes.Const) else None
    return (*base, key) if isinstance(key, str) else base


def near_columns(name: str, columns: Sequence[str], shown: int = 8) -> str:
    """Return a hint with the columns that may be meant: by other case or separators, or by similar spelling."""
    plain = {re.sub(r"\W|_", "", column).lower(): column for column in reversed(columns)}
    same = plain.get(re.sub(r"\W|_", "", name).lower())
    near = [same] if same is not None else [plain[key] for key in get_close_matches(name.lower(), plain, n=3, cutoff=0.6)]
    if near:
        return f"did you mean {' or '.join(map(usage, near))}?"
    listed = ", ".join(map(repr, columns[:shown])) + (f" and {len(columns) - shown} more" if len(columns) > shown else "")
    return f"the table has {listed or 'no columns'}"


def usage(column: str) -> str:
    """Return how a template names a column."""
    return column if column.isidentifier() and column not in _RESERVED else f'row["{column}"]'


_RESERVED = frozenset({"true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else"})
