"""Which names an expression uses, which of them it needs, and what of it cannot be right: a walk over its tree.

The walk goes through branches that are not taken as well. A name is *needed* unless a default is written for it, only its
state is asked, or the place is reached only where the name has a value (``a is done and a.x == 1``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jinja2 import nodes

from workflow_composer.batch.asking.templates import written
from workflow_composer.errors import nearest
from workflow_composer.workflows.definition.shapes import NUMBER, TEXT, TRUTH, UNKNOWN, Shape, list_of
from workflow_composer.workflows.definition.syntax import FACTS, STATES

_NUMBERS = ("length", "len", "round")
_TEXTS = ("upper", "lower", "trim", "join", "tojson", "truncate_words")
_ITEMS = ("first", "last", "min", "max")
_MISSING_ASKED = ("given", "defined", "undefined", "none")


class NameFault(NamedTuple):
    """What is wrong with a name or a field, in which line of the text (counted from 1), and the remedy."""

    line: int
    message: str
    hint: str = ""


class KnownNames(NamedTuple):
    """The names that may be used: their shapes, which of them are steps, and which would be there if they were not hidden.

    ``hidden`` maps names to the reason why they cannot be used here.
    """

    shapes: Mapping[str, Shape]
    steps: Collection[str] = ()
    hidden: Mapping[str, str] = {}


class _Point(NamedTuple):
    """Where in a tree the walk is: names of loops, names that surely have a value, and whether a missing one is allowed."""

    bound: Mapping[str, Shape] = {}
    safe: frozenset[str] = frozenset()
    lenient: bool = False


class Survey:
    """Walks over a tree once. ``known``: None to collect names only.

    ``reads`` and ``needs`` are names in order of appearance, ``values`` those of which more than the state is asked,
    ``facts`` those of which it is asked what it took to answer, ``of_rows`` the fields of rows that are used (None: all,
    since a row is used as a whole), ``faults`` what is wrong.
    """

    def __init__(self, tree: nodes.Node, known: KnownNames | None = None) -> None:
        self.known = known
        self.reads: dict[str, None] = {}
        self.needs: dict[str, None] = {}
        self.values: dict[str, None] = {}
        self.facts: dict[str, None] = {}
        self.of_rows: dict[str, None] | None = {}
        self.faults: list[NameFault] = []
        self.shape = UNKNOWN
        if isinstance(tree, nodes.Template):
            self._body(tree.body, _Point())
            self.shape = TEXT
        else:
            self.shape = self._whole(tree, _Point())

    # ------------------------------------------------------------------------------------------------------ templates

    def _body(self, body: list[nodes.Node], place: _Point) -> None:
        for node in body:
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    self._whole(part, place)
            elif isinstance(node, nodes.If):
                self._branches(node, place)
            elif isinstance(node, nodes.For):
                self._loop(node, place)

    def _branches(self, node: nodes.If, place: _Point) -> None:
        for part in (node, *node.elif_):
            self._whole(part.test, place)
            self._body(part.body, place._replace(safe=place.safe | _safe_if(part.test, True)))
            place = place._replace(safe=place.safe | _safe_if(part.test, False))
        self._body(node.else_, place)

    def _loop(self, node: nodes.For, place: _Point) -> None:
        items = self._of(node.iter, place)
        item = _first(items)
        targets = [node.target, *node.target.find_all(nodes.Name)]
        names = [one.name for one in targets if isinstance(one, nodes.Name)]
        bound = {
            **place.bound,
            "loop": UNKNOWN,
            **dict.fromkeys(names, item if isinstance(node.target, nodes.Name) else UNKNOWN),
        }
        inner = place._replace(bound=bound)
        if node.test is not None:
            self._whole(node.test, inner)
            inner = inner._replace(safe=inner.safe | _safe_if(node.test, True))
        self._body(node.body, inner)
        self._body(node.else_, place)

    # ----------------------------------------------------------------------------------------------------- expressions

    def _whole(self, node: nodes.Node, place: _Point) -> Shape:
        """Walk over an expression whose value is used as it is."""
        shape = self._of(node, place)
        if shape.role in ("rows", "row"):
            self.of_rows = None
        return shape

    def _of(self, node: nodes.Node, place: _Point) -> Shape:
        rule = _RULES.get(type(node))
        if rule is not None:
            return rule(self, node, place)
        for child in node.iter_child_nodes():
            self._whole(child, place)
        if isinstance(node, nodes.Not):
            return TRUTH
        if isinstance(node, nodes.Concat):
            return TEXT
        return NUMBER if isinstance(node, (nodes.BinExpr, nodes.UnaryExpr)) else UNKNOWN

    def _constant(self, node: nodes.Const, place: _Point) -> Shape:
        if node.value is None:
            return UNKNOWN
        return TRUTH if isinstance(node.value, bool) else TEXT if isinstance(node.value, str) else NUMBER

    def _junction(self, node: nodes.And | nodes.Or, place: _Point) -> Shape:
        left = self._whole(node.left, place)
        safe = _safe_if(node.left, isinstance(node, nodes.And))
        right = self._whole(node.right, place._replace(safe=place.safe | safe))
        return left if left.kind == right.kind else UNKNOWN

    def _name(self, node: nodes.Name, place: _Point) -> Shape:
        name = node.name
        if name in place.bound:
            return place.bound[name]
        self.reads[name] = self.values[name] = None
        if not place.lenient and name not in place.safe:
            self.needs[name] = None
        if self.known is None:
            return Shape(role="rows") if name == "rows" else UNKNOWN
        if name in self.known.shapes:
            return self.known.shapes[name]
        if name in self.known.hidden:
            self._fault(node, f"{name!r} cannot be used here: {self.known.hidden[name]}")
        else:
            listed = ", ".join(map(repr, list(self.known.shapes)[:12])) or "none"
            near = _in_a_name(name, self.known.shapes) or nearest(name, self.known.shapes)
            self._fault(node, f"there is no input or step {name!r}", "; ".join(filter(None, (f"there are: {listed}", near))))
        return UNKNOWN

    def _fault(self, node: nodes.Node, message: str, hint: str = "") -> None:
        self.faults.append(NameFault(node.lineno, message, hint))

    def _field(self, node: nodes.Getattr | nodes.Getitem, place: _Point) -> Shape:
        key = node.attr if isinstance(node, nodes.Getattr) else None
        if isinstance(node, nodes.Getitem):
            self._whole(node.arg, place._replace(lenient=False) if isinstance(node.arg, nodes.Slice) else place)
            key = node.arg.value if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str) else None
        if key in FACTS and isinstance(node.node, nodes.Name) and node.node.name not in place.bound:
            self._fact(node.node, of_value=key != "_state")
            return NUMBER if key in ("_attempts", "_cost") else TEXT
        holder = self._of(node.node, place)
        if key is None:
            return self._item(node, holder)
        if holder.role == "row" and self.of_rows is not None:
            self.of_rows[key] = None
        if holder.role == "fan":
            node.over_items = True  # type: ignore[union-attr]  # a mark for the evaluator
            return list_of(self._known_field(node, holder.item, key))
        return self._known_field(node, holder, key)

    def _item(self, node: nodes.Getattr | nodes.Getitem, holder: Shape) -> Shape:
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return holder
        return _first(holder)

    def _known_field(self, node: nodes.Node, holder: Shape, key: str) -> Shape:
        if self.known is None or holder.kind == "":
            return holder.fields.get(key, UNKNOWN)
        told = written(node.node) if isinstance(node, (nodes.Getattr, nodes.Getitem)) else written(node)
        if holder.kind != "object":
            what = {"text": "a text", "number": "a number", "truth": "true or false", "list": "a list"}[holder.kind]
            hint = f"take an item, such as {told}[0].{key}, or loop over it" if holder.kind == "list" else f"write {told}"
            self._fault(node, f"{told} is {what}, and has no field {key!r}", hint)
            return UNKNOWN
        if key in holder.fields:
            return holder.fields[key]
        if holder.closed:
            listed = "it has: " + ", ".join(map(repr, list(holder.fields)[:12]))
            self._fault(node, f"{told} has no field {key!r}", "; ".join(filter(None, (listed, nearest(key, holder.fields)))))
            return UNKNOWN
        return holder.item

    def _fact(self, node: nodes.Name, *, of_value: bool = False) -> None:
        """A fact of a step reads the step, and does not need its value.

        ``of_value``: it tells more of the value than whether there is one.
        """
        self.reads[node.name] = None
        if of_value:
            self.values[node.name] = self.facts[node.name] = None
        if self.known is None or node.name in self.known.steps:
            return
        if node.name in self.known.shapes:
            steps = ", ".join(map(repr, self.known.steps)) or "none"
            self._fault(node, f"{node.name!r} is no step, and only steps have a state", f"steps: {steps}")
        else:
            self._name(node, _Point(lenient=True))

    def _filter(self, node: nodes.Filter, place: _Point) -> Shape:
        assert node.node is not None  # only a filter block, which is refused, has none
        if node.name == "default":
            before = self._whole(node.node, place._replace(lenient=True))
            given = [self._whole(one, place._replace(lenient=True)) for one in node.args]
            return before if not given or given[0].kind in ("", before.kind) else UNKNOWN
        before = (
            self._of(node.node, place)
            if node.name in ("length", "len", *_ITEMS[:2], "done")
            else self._whole(node.node, place)
        )
        for one in (*node.args, *(pair.value for pair in node.kwargs)):
            self._whole(one, place)
        if node.name == "done":
            return before
        if node.name in _ITEMS:
            return _first(before)
        return NUMBER if node.name in _NUMBERS else TEXT if node.name in _TEXTS else UNKNOWN

    def _test(self, node: nodes.Test, place: _Point) -> Shape:
        if node.name in STATES and isinstance(node.node, nodes.Name) and node.node.name not in place.bound:
            self._fact(node.node)
            return TRUTH
        lenient = place._replace(lenient=True) if node.name in (*_MISSING_ASKED, *STATES) else place
        self._of(node.node, lenient)
        for one in node.args:
            self._whole(one, place)
        return TRUTH

    def _choice(self, node: nodes.CondExpr, place: _Point) -> Shape:
        self._whole(node.test, place)
        one = self._whole(node.expr1, place._replace(safe=place.safe | _safe_if(node.test, True)))
        if node.expr2 is None:
            return one
        other = self._whole(node.expr2, place._replace(safe=place.safe | _safe_if(node.test, False)))
        return one if one.kind == other.kind and one.role == other.role == "" else UNKNOWN

    def _comparison(self, node: nodes.Compare, place: _Point) -> Shape:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        shapes = [self._whole(side, place) for side in sides]
        if self.known is not None:
            for at, operand in enumerate(node.ops):
                if operand.op in ("eq", "ne"):
                    self._is_a_choice(sides[at], shapes[at], sides[at + 1])
                    self._is_a_choice(sides[at + 1], shapes[at + 1], sides[at])
                elif operand.op in ("in", "notin") and isinstance(operand.expr, (nodes.List, nodes.Tuple)):
                    for one in operand.expr.items:
                        self._is_a_choice(sides[at], shapes[at], one)
        return TRUTH

    def _is_a_choice(self, node: nodes.Node, shape: Shape, other: nodes.Node) -> None:
        """A word that a step can never answer is compared with in vain."""
        if (
            not isinstance(other, nodes.Const)
            or not isinstance(other.value, str)
            or shape.kind != "text"
            or not shape.choices
        ):
            return
        if other.value not in shape.choices:
            listed = "allowed: " + ", ".join(map(repr, shape.choices[:12]))
            hint = "; ".join(filter(None, (listed, nearest(other.value, map(str, shape.choices)))))
            self._fault(other, f"{written(node)} is never {other.value!r}", hint)


def _in_a_name(name: str, known: Collection[str]) -> str:
    """Return how a column is named of whose name this is a part, as of ``pub-date``; empty if there is none."""
    found = next((one for one in known if not one.isidentifier() and name in re.split(r"\W+", one)), None)
    return "" if found is None else f'write row["{found}"]'


def _first(shape: Shape) -> Shape:
    return replace(shape.item, role="row") if shape.role == "rows" else shape.item


def _safe_if(node: nodes.Node, holds: bool) -> frozenset[str]:
    """Return the names that have a value if a condition holds, or does not."""
    return frozenset(_having(node, holds))


def _having(node: nodes.Node, holds: bool) -> Iterator[str]:
    if isinstance(node, nodes.Not):
        yield from _having(node.node, not holds)
    elif isinstance(node, nodes.And if holds else nodes.Or):
        yield from _having(node.left, holds)
        yield from _having(node.right, holds)
    elif isinstance(node, nodes.Test) and node.name in ("done", "given") and holds:
        inner = node.node
        while isinstance(inner, (nodes.Getattr, nodes.Getitem)):
            inner = inner.node
        if isinstance(inner, nodes.Name):
            yield inner.name
    elif isinstance(node, nodes.Test) and node.name == "none" and not holds and isinstance(node.node, nodes.Name):
        yield node.node.name


_RULES: Mapping[type, Callable[[Survey, Any, _Point], Shape]] = {
    nodes.Name: Survey._name,
    nodes.Getattr: Survey._field,
    nodes.Getitem: Survey._field,
    nodes.Const: Survey._constant,
    nodes.Filter: Survey._filter,
    nodes.Test: Survey._test,
    nodes.And: Survey._junction,
    nodes.Or: Survey._junction,
    nodes.CondExpr: Survey._choice,
    nodes.Compare: Survey._comparison,
}
