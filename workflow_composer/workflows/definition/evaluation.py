"""The value of an expression and the text of a template: one strict evaluator over their trees.

Values keep their types. What Jinja2 would let pass fails with a `ValueFault`: a missing or null value that is used, a
comparison of different types, and, in expressions, anything but true or false as a condition. Messages name expressions and
types, never values, which may be private.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from workflow_composer.batch.asking.templates import LONGEST, TemplateFault, as_json, is_missing, written
from workflow_composer.workflows.definition.model import Names
from workflow_composer.workflows.definition.syntax import ALL_FILTERS, FACTS, STATES, TESTS
from workflow_composer.workflows.running.results import ValueFault


class Absent(NamedTuple):
    """A value that is not there, and what is missing in words."""

    why: str


Bound = Mapping[str, Any]
"""The names of loops within a template, and what they stand for."""

_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_ARITHMETIC: Mapping[type, Callable[[Any, Any], Any]] = {
    nodes.Add: operator.add,
    nodes.Sub: operator.sub,
    nodes.Mul: operator.mul,
    nodes.Div: operator.truediv,
    nodes.FloorDiv: operator.floordiv,
    nodes.Mod: operator.mod,
}
_DIGITS = 10**300


def kind_of(value: Any) -> str:
    """Return what a value is, in a word of JSON."""
    if isinstance(value, bool):
        return "true or false"
    if is_missing(value):
        return "nothing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "list"
    return "object" if isinstance(value, Mapping) else "number"


def is_unmarked_list(value: Any) -> bool:
    """Whether a value is a list, of which a text is none."""
    return isinstance(value, (list, tuple))


class Evaluator:
    """Evaluates trees with what their names stand for. ``strict``: a condition must be true or false."""

    def __init__(self, names: Names, *, strict: bool) -> None:
        self.names = names
        self.strict = strict

    # ------------------------------------------------------------------------------------------------------- values

    def value(self, node: nodes.Node, bound: Bound) -> Any:
        """Return a value that is there, though it may be null. Raises `ValueFault`."""
        found = self.of(node, bound)
        if isinstance(found, Absent):
            raise ValueFault(found.why, f"write {written(node)} | default(…) where it may be missing")
        return found

    def present(self, node: nodes.Node, bound: Bound) -> Any:
        """Return a value that is there and not null. Raises `ValueFault`."""
        found = self.value(node, bound)
        if is_missing(found):
            raise ValueFault(
                f"{written(node)} is empty", f"write {written(node)} | default(…), or ask whether it `is given`"
            )
        return found

    def of(self, node: nodes.Node, bound: Bound) -> Any:
        """Return the value of a tree, or `Absent`."""
        return _RULES[type(node)](self, node, bound)

    def name(self, node: nodes.Name, bound: Bound) -> Any:
        """Return what a name stands for."""
        return bound[node.name] if node.name in bound else self.names.value(node.name)

    def constant(self, node: nodes.Const, bound: Bound) -> Any:
        """Return a constant."""
        return node.value

    def field(self, node: nodes.Getattr | nodes.Getitem, bound: Bound) -> Any:
        """Return a field or an item of plain data, or a fact of a step."""
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._slice(node, node.arg, bound)
        key = node.attr if isinstance(node, nodes.Getattr) else self._there(node.arg, bound)
        is_written = isinstance(node, nodes.Getattr) or isinstance(node.arg, nodes.Const)
        if is_written and key in FACTS and isinstance(node.node, nodes.Name) and node.node.name not in bound:
            return self.names.fact(node.node.name, key)
        holder = self._there(node.node, bound)
        for one in (key, holder):
            if isinstance(one, Absent):
                return one
        if getattr(node, "over_items", False) and is_unmarked_list(holder):
            return _projected(holder, str(key))
        return _item(holder, key, node)

    def _there(self, node: nodes.Node, bound: Bound) -> Any:
        """Return a value that is not null, or `Absent`."""
        found = self.of(node, bound)
        return Absent(f"{written(node)} is empty") if not isinstance(found, Absent) and is_missing(found) else found

    def _slice(self, node: nodes.Getitem, part: nodes.Slice, bound: Bound) -> Any:
        holder = self.present(node.node, bound)
        ends = [None if end is None else self.value(end, bound) for end in (part.start, part.stop, part.step)]
        if not isinstance(holder, (list, tuple, str)) or not all(end is None or type(end) is int for end in ends):
            raise ValueFault(f"{written(node)}: a part is taken of a list or a text, by whole numbers")
        if ends[2] == 0:
            raise ValueFault(f"{written(node)}: the step is 0")
        return holder[slice(*ends)]

    def listed(self, node: nodes.List | nodes.Tuple, bound: Bound) -> list[Any]:
        """Return a list."""
        return [self.value(item, bound) for item in node.items]

    def mapped(self, node: nodes.Dict, bound: Bound) -> dict[str, Any]:
        """Return an object."""
        return {str(self.value(pair.key, bound)): self.value(pair.value, bound) for pair in node.items}

    # --------------------------------------------------------------------------------------------------- conditions

    def condition(self, node: nodes.Node, bound: Bound) -> bool:
        """Return whether a condition holds. Raises `ValueFault` if it must be, and is not, true or false."""
        found = self.value(node, bound)
        if isinstance(found, bool) or not self.strict:
            return bool(found) and not is_missing(found)
        raise ValueFault(
            f"{written_whole(node)} is {kind_of(found)} where true or false is needed",
            f"compare it: {_compare_hint(node, found)}",
        )

    def both(self, node: nodes.And, bound: Bound) -> Any:
        """Return ``left and right``."""
        if self.strict:
            return self.condition(node.left, bound) and self.condition(node.right, bound)
        found = self.value(node.left, bound)
        return self.value(node.right, bound) if found else found

    def either(self, node: nodes.Or, bound: Bound) -> Any:
        """Return ``left or right``."""
        if self.strict:
            return self.condition(node.left, bound) or self.condition(node.right, bound)
        found = self.value(node.left, bound)
        return found if found else self.value(node.right, bound)

    def negated(self, node: nodes.Not, bound: Bound) -> bool:
        """Return ``not node``."""
        return not self.condition(node.node, bound)

    def chosen(self, node: nodes.CondExpr, bound: Bound) -> Any:
        """Return ``expr1 if test else expr2``."""
        if self.condition(node.test, bound):
            return self.of(node.expr1, bound)
        return (
            Absent(f"{written_whole(node.test)} is false, and there is no else")
            if node.expr2 is None
            else self.of(node.expr2, bound)
        )

    def compared(self, node: nodes.Compare, bound: Bound) -> bool:
        """Return whether a chain of comparisons holds."""
        left_node, left = node.expr, self.value(node.expr, bound)
        for operand in node.ops:
            right = self.value(operand.expr, bound)
            if not _holds(operand.op, left_node, left, operand.expr, right):
                return False
            left_node, left = operand.expr, right
        return True

    def tested(self, node: nodes.Test, bound: Bound) -> bool:
        """Return whether a test holds."""
        if node.name in STATES:
            if isinstance(node.node, nodes.Name) and node.node.name not in bound:
                return bool(self.names.fact(node.node.name, "_state") == node.name)
            found = self.of(node.node, bound)
            return (node.name == "done") == (not isinstance(found, Absent) and not is_missing(found))
        found = self.of(node.node, bound)
        given = not isinstance(found, Absent) and not is_missing(found)
        if node.name in ("given", "defined"):
            return given if node.name == "given" else not isinstance(found, Absent)
        if node.name in ("none", "undefined"):
            return not given if node.name == "none" else isinstance(found, Absent)
        value = self.value(node.node, bound)
        try:
            return bool(TESTS[node.name](value, *(self.value(one, bound) for one in node.args)))
        except (TypeError, ValueError, ArithmeticError):
            raise ValueFault(f"{written(node.node)} is {kind_of(value)}, to which `is {node.name}` does not apply") from None

    # --------------------------------------------------------------------------------------------------- operations

    def filtered(self, node: nodes.Filter, bound: Bound) -> Any:
        """Return the value after a filter."""
        assert node.node is not None  # only a filter block, which is refused, has none
        found = self.of(node.node, bound)
        arguments = [self.value(one, bound) for one in node.args] if node.name != "default" else []
        named = {str(one.key): self.value(one.value, bound) for one in node.kwargs}
        if node.name == "default":
            return self._default(node, found, named, bound)
        if isinstance(found, Absent):
            raise ValueFault(found.why, f"write | default(…) before | {node.name}")
        if is_missing(found) and node.name not in ("done", "tojson"):
            raise ValueFault(f"{written(node.node)} is empty", f"write | default(…) before | {node.name}")
        try:
            made = ALL_FILTERS[node.name](found, *arguments, **named)
        except TemplateFault as fault:
            raise ValueFault(f"{written(node)}: {fault.message}", fault.hint) from None
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            raise ValueFault(f"{written(node)} cannot be computed of {kind_of(found)}") from None
        if isinstance(made, jinja2.Undefined):
            return Absent(f"{written(node)}: the list is empty")
        return made

    def _default(self, node: nodes.Filter, found: Any, named: Mapping[str, Any], bound: Bound) -> Any:
        """The default is evaluated only where it is needed."""
        given = not isinstance(found, Absent) and not is_missing(found)
        also_empty = bool(
            named.get("boolean") or named.get("empty") or (len(node.args) > 1 and self.value(node.args[1], bound))
        )
        if given and (found or not also_empty):
            return found
        return self.of(node.args[0], bound) if node.args else ""

    def computed(self, node: nodes.BinExpr, bound: Bound) -> Any:
        """Return what arithmetic gives; of numbers only."""
        values = [self.present(one, bound) for one in (node.left, node.right)]
        for one, value in zip((node.left, node.right), values, strict=True):
            if kind_of(value) != "number":
                raise ValueFault(
                    f"{written(one)} is {kind_of(value)}, and arithmetic needs numbers", "texts are joined by ~"
                )
        try:
            made = _ARITHMETIC[type(node)](*values)
        except ZeroDivisionError:
            raise ValueFault(f"{written(node.right)} is 0, by which nothing can be divided") from None
        except OverflowError:
            raise ValueFault("the number is too large") from None
        if abs(made) > _DIGITS:
            raise ValueFault("the number is too large")
        return made

    def signed(self, node: nodes.UnaryExpr, bound: Bound) -> Any:
        """Return a number or its negative."""
        value = self.present(node.node, bound)
        if kind_of(value) != "number":
            raise ValueFault(f"{written(node.node)} is {kind_of(value)}, and a sign needs a number")
        return -value if isinstance(node, nodes.Neg) else value

    def joined(self, node: nodes.Concat, bound: Bound) -> str:
        """Return texts one after another."""
        return _limited(self.printed(part, bound) for part in node.nodes)

    # ----------------------------------------------------------------------------------------------------- templates

    def printed(self, node: nodes.Node, bound: Bound) -> str:
        """Return the text as which a value stands in a prompt."""
        value = self.of(node, bound)
        if isinstance(value, str):
            return value
        told = written(node)
        if isinstance(value, Absent) or is_missing(value):
            why = value.why if isinstance(value, Absent) else f"{told} is empty"
            raise ValueFault(why, f"write {{{{ {told} | default('') }}}} to allow it")
        if (place := _gap(value)) is not None:
            raise ValueFault(
                f"{told}: item {place} is missing", f"write {{{{ {told} | done }}}} for those that are there, or | tojson"
            )
        if isinstance(value, (date, time)):
            return value.isoformat()
        try:
            return as_json(value)
        except TemplateFault as fault:
            raise ValueFault(f"{told}: {fault.message}") from None

    def text(self, tree: nodes.Template) -> str:
        """Return the text of a template. Raises `ValueFault`, also for one longer than `LONGEST`."""
        return _limited(self._pieces(tree.body, {}))

    def _pieces(self, body: Sequence[nodes.Node], bound: Bound) -> Iterator[str]:
        for node in body:
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    yield part.data if isinstance(part, nodes.TemplateData) else self.printed(part, bound)
            elif isinstance(node, nodes.If):
                yield from self._branch(node, bound)
            elif isinstance(node, nodes.For):
                yield from self._loop(node, bound)

    def _branch(self, node: nodes.If, bound: Bound) -> Iterator[str]:
        for part in (node, *node.elif_):
            if self.condition(part.test, bound):
                yield from self._pieces(part.body, bound)
                return
        yield from self._pieces(node.else_, bound)

    def _loop(self, node: nodes.For, bound: Bound) -> Iterator[str]:
        found = self.present(node.iter, bound)
        if isinstance(found, Mapping):
            found = list(found)
        if not is_unmarked_list(found):
            raise ValueFault(f"{written(node.iter)}: a list is needed, found {kind_of(found)}")
        inner = [{**bound, **_targets(node.target, item)} for item in found]
        if node.test is not None:
            inner = [one for one in inner if self.condition(node.test, one)]
        for at, one in enumerate(inner):
            yield from self._pieces(node.body, {**one, "loop": _counted(at, len(inner))})
        if not inner:
            yield from self._pieces(node.else_, bound)


# -------------------------------------------------------------------------------------------------------------- helpers


def _item(holder: Any, key: Any, node: nodes.Getattr | nodes.Getitem) -> Any:
    if isinstance(holder, Mapping) and isinstance(key, str) and key in holder:
        return holder[key]
    told, of = written(node), written(node.node)
    if isinstance(holder, Mapping):
        return Absent(f"{told} is missing")
    if is_unmarked_list(holder) and type(key) is int:
        return holder[key] if -len(holder) <= key < len(holder) else Absent(f"{told}: the list has {len(holder)} items")
    if isinstance(key, str):
        return Absent(f"{of} is {kind_of(holder)} and has no fields")
    return Absent(f"{told}: a list is needed, found {kind_of(holder)}")


def _projected(items: Sequence[Any], key: str) -> list[Any]:
    """Return a field of each item of a list; null where an item has none."""
    return [item.get(key) if isinstance(item, Mapping) else None for item in items]


def _holds(op: str, left_node: nodes.Node, left: Any, right_node: nodes.Node, right: Any) -> bool:
    if op in ("in", "notin"):
        return _contains(right_node, right, left_node, left) == (op == "in")
    if op in ("eq", "ne") and any(isinstance(one, nodes.Const) and one.value is None for one in (left_node, right_node)):
        return (is_missing(left) and is_missing(right)) == (op == "eq")
    kinds = kind_of(left), kind_of(right)
    for node, value in ((left_node, left), (right_node, right)):
        if is_missing(value):
            raise ValueFault(
                f"{written(node)} is empty, and cannot be compared", f"ask first: {written(node)} is given and …"
            )
    if kinds[0] != kinds[1]:
        raise ValueFault(
            f"{written(left_node)} is {kinds[0]}, compared with {written(right_node)}, {_a(kinds[1])}: "
            f"{kinds[0]} compared with {_a(kinds[1])}",
            "compare values of one type",
        )
    if op in ("eq", "ne"):
        return bool(left == right) == (op == "eq")
    if kinds[0] not in ("number", "text"):
        raise ValueFault(f"{written(left_node)} is {kinds[0]}, which has no order", "compare numbers, or texts")
    return _COMPARED[op](left, right)


def _a(kind: str) -> str:
    return kind if kind in ("text", "true or false", "nothing") else f"an {kind}" if kind == "object" else f"a {kind}"


def _contains(holder_node: nodes.Node, holder: Any, part_node: nodes.Node, part: Any) -> bool:
    if is_missing(holder):
        raise ValueFault(f"{written(holder_node)} is empty, and nothing can be looked for in it")
    if is_unmarked_list(holder):
        return any(kind_of(one) == kind_of(part) and one == part for one in holder)
    if not isinstance(holder, (str, Mapping)):
        raise ValueFault(f"{written(holder_node)} is {kind_of(holder)}, and nothing can be looked for in it")
    if not isinstance(part, str):
        raise ValueFault(
            f"{written(part_node)} is {kind_of(part)}, and only a text can be looked for in {_a(kind_of(holder))}"
        )
    return part in holder


def _gap(value: Any) -> str | None:
    """Return the place of the first null in a list, or in a list of lists, counted from 1; None if there is none."""
    if not is_unmarked_list(value):
        return None
    for at, item in enumerate(value, 1):
        if is_missing(item):
            return str(at)
        if (inner := _gap(item)) is not None:
            return f"{at}.{inner}"
    return None


def _targets(target: nodes.Node, item: Any) -> dict[str, Any]:
    if isinstance(target, nodes.Name):
        return {target.name: item}
    parts = target.items if isinstance(target, nodes.Tuple) else []
    if not is_unmarked_list(item) or len(item) != len(parts):
        raise ValueFault(f"a loop over {len(parts)} names needs lists of {len(parts)} items")
    made: dict[str, Any] = {}
    for one, value in zip(parts, item, strict=True):
        made |= _targets(one, value)
    return made


def _counted(at: int, length: int) -> dict[str, Any]:
    return {
        "index": at + 1,
        "index0": at,
        "revindex": length - at,
        "revindex0": length - at - 1,
        "first": at == 0,
        "last": at == length - 1,
        "length": length,
    }


def _limited(pieces: Iterator[str]) -> str:
    length, made = 0, []
    for piece in pieces:
        length += len(piece)
        if length > LONGEST:
            raise ValueFault(f"the text is longer than {LONGEST:,} characters", "shorten values with truncate_words")
        made.append(piece)
    return "".join(made)


def written_whole(node: nodes.Node) -> str:
    """Return an expression as a person would write it; conditions are only named."""
    told = written(node)
    return "the condition" if told == "…" else told


def _compare_hint(node: nodes.Node, found: Any) -> str:
    told = written(node)
    if is_missing(found):
        return f"{told} is given"
    return (
        f'{told} == "true"' if isinstance(found, str) else f"len({told}) > 0" if kind_of(found) == "list" else f"{told} > 0"
    )


_RULES: Mapping[type, Callable[[Evaluator, Any, Bound], Any]] = {
    nodes.Name: Evaluator.name,
    nodes.Const: Evaluator.constant,
    nodes.TemplateData: lambda self, node, bound: node.data,
    nodes.Getattr: Evaluator.field,
    nodes.Getitem: Evaluator.field,
    nodes.List: Evaluator.listed,
    nodes.Tuple: Evaluator.listed,
    nodes.Dict: Evaluator.mapped,
    nodes.And: Evaluator.both,
    nodes.Or: Evaluator.either,
    nodes.Not: Evaluator.negated,
    nodes.CondExpr: Evaluator.chosen,
    nodes.Compare: Evaluator.compared,
    nodes.Test: Evaluator.tested,
    nodes.Filter: Evaluator.filtered,
    nodes.Neg: Evaluator.signed,
    nodes.Pos: Evaluator.signed,
    nodes.Concat: Evaluator.joined,
    **dict.fromkeys(_ARITHMETIC, Evaluator.computed),
}
