"""A workflow as a picture: lines for a terminal, Mermaid, and SVG. Each step stands in a column after all that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from workflow_composer.workflows.definition.model import (
    CommandBody,
    HumanBody,
    NestedBody,
    PromptBody,
    PythonBody,
    Step,
    Workflow,
)
from workflow_composer.workflows.definition.routes import models_for

if TYPE_CHECKING:
    from workflow_composer.config.strategy import StrategyConfig

_WIDTH, _HEIGHT, _APART, _GAP = 190, 54, 74, 26
_PRIVATE, _OPEN, _INPUT, _LINE = "#f6dfd0", "#dfe9f5", "#efefef", "#667"


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """A box: its name, its second line, the names from which arrows lead to it, and how it is marked.

    ``column`` is 0 for inputs, and for a step one more than the largest of those that it reads.
    """

    name: str
    told: str
    reads: tuple[str, ...]
    private: bool
    of_run: bool
    column: int


def drawn(workflow: Workflow, config: StrategyConfig | None = None) -> tuple[DrawnStep, ...]:
    """Return the boxes of a workflow's inputs and top-level steps, in their order."""
    boxes = {name: DrawnStep(name, kind, (), kind == "private", False, 0) for name, kind in workflow.inputs.items()}
    for name in workflow.order:
        step = workflow.steps[name]
        reads = tuple(one for one in (*workflow.inputs, *workflow.order) if one in step.reads or one in _of_rows(step))
        column = 1 + max((boxes[one].column for one in reads if one in boxes), default=0)
        boxes[name] = DrawnStep(name, described(step, config), reads, step.labels.private, step.level == "run", column)
    return tuple(boxes.values())


def _of_rows(step: Step) -> Sequence[str]:
    return () if step.reduce is None else step.reduce.rows


def described(step: Step, config: StrategyConfig | None = None) -> str:
    """Return in a few words what a step does: its kind, its models, and what surrounds it."""
    kinds = {PromptBody: "prompt", CommandBody: "command", PythonBody: "python", NestedBody: "workflow", HumanBody: "person"}
    words = [kinds.get(type(step.body), "steps")]
    if isinstance(step.body, PythonBody):
        words = [step.body.plugin.name] if step.body.plugin is not None else [*words, step.body.target]
    if isinstance(step.body, PromptBody):
        words.append(step.model or _models(step, config))
    if isinstance(step.body, NestedBody):
        words.append(step.body.workflow.name)
    if isinstance(step.body, CommandBody):
        words.append(step.body.argv[0])
    marks = [
        f"for each {step.for_each.item}" if step.for_each is not None else "",
        "over all rows" if step.reduce is not None and step.reduce.group_by is None else "",
        "for each group" if step.reduce is not None and step.reduce.group_by is not None else "",
        "if" if step.when is not None else "",
        f"until, at most {step.until.at_most}" if step.until is not None else "",
    ]
    return " ".join(filter(None, words)) + "".join(f", {mark}" for mark in marks if mark)


def _models(step: Step, config: StrategyConfig | None) -> str:
    if config is None:
        return step.task or ""
    found = [spec.name for spec in models_for(config, None, step.task) if spec.local or not step.labels.private]
    return " or ".join(found[:3]) or (step.task or "")


def as_lines(workflow: Workflow, config: StrategyConfig | None = None) -> Iterator[str]:
    """Yield a line for each step, in the order in which they may run."""
    boxes = drawn(workflow, config)
    wide = max((len(box.name) for box in boxes), default=0)
    for box in boxes:
        if box.column:
            marks = [" (private: own machines only)" * box.private, " (once per run)" * box.of_run]
            reads = f" <- {', '.join(box.reads)}" if box.reads else ""
            yield f"{box.name:<{wide}}  {box.told}{reads}{''.join(marks)}"


def as_mermaid(workflow: Workflow, config: StrategyConfig | None = None) -> str:
    """Return a flowchart in Mermaid's language."""
    lines = ["flowchart LR"]
    boxes = drawn(workflow, config)
    number = {box.name: f"n{at}" for at, box in enumerate(boxes)}
    for box in boxes:
        text = _quoted(f"{box.name}<br/>{_quoted(box.told)}") if box.column else _quoted(f"{box.name}: {box.told}")
        left, right = ("([", "])") if not box.column else ("[[", "]]") if box.of_run else ("[", "]")
        lines.append(f'    {number[box.name]}{left}"{text}"{right}')
    for box in boxes:
        lines += [f"    {number[one]} --> {number[box.name]}" for one in box.reads if one in number]
    private = [number[box.name] for box in boxes if box.private]
    if private:
        lines += [f"    classDef private fill:{_PRIVATE}", f"    class {','.join(private)} private"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "&lt;").replace("&lt;br/>", "<br/>")


@dataclass(frozen=True, slots=True)
class FlowDrawing:
    """Boxes with the places of their upper left corners, and arrows as SVG paths; lengths in pixels."""

    wide: int
    high: int
    boxes: tuple[tuple[DrawnStep, int, int], ...]
    arrows: tuple[str, ...]

    @property
    def data(self) -> dict[str, Any]:
        """The same as JSON data, for who draws it elsewhere."""
        boxes = [
            {
                "name": box.name,
                "told": box.told,
                "private": box.private,
                "of_run": box.of_run,
                "input": not box.column,
                "x": x,
                "y": y,
            }
            for box, x, y in self.boxes
        ]
        size = {"wide": self.wide, "high": self.high, "box": [_WIDTH, _HEIGHT]}
        return {**size, "boxes": boxes, "arrows": list(self.arrows)}


def picture(workflow: Workflow, config: StrategyConfig | None = None) -> FlowDrawing:
    """Return where the boxes and arrows of a workflow are."""
    boxes = drawn(workflow, config)
    places = _places(boxes)
    return FlowDrawing(
        max((x for x, _ in places.values()), default=0) + _WIDTH + _GAP,
        max((y for _, y in places.values()), default=0) + _HEIGHT + _GAP,
        tuple((box, *places[box.name]) for box in boxes),
        tuple(_arrow(places[one], places[box.name]) for box in boxes for one in box.reads if one in places),
    )


def as_svg(workflow: Workflow, config: StrategyConfig | None = None) -> str:
    """Return a picture without scripts and without anything to fetch."""
    found = picture(workflow, config)
    wide, high = found.wide, found.high
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'font-family="sans-serif" role="img"><title>{escape(workflow.name)}</title>',
        f'<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{_LINE}"/></marker></defs>',
    ]
    parts += [f'<path d="{one}" fill="none" stroke="{_LINE}" marker-end="url(#end)"/>' for one in found.arrows]
    parts += [_box(box, x, y) for box, x, y in found.boxes]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _places(boxes: Sequence[DrawnStep]) -> Mapping[str, tuple[int, int]]:
    rows: dict[int, int] = {}
    places = {}
    for box in boxes:
        row = rows.get(box.column, 0)
        rows[box.column] = row + 1
        places[box.name] = (_GAP + box.column * (_WIDTH + _APART), _GAP + row * (_HEIGHT + _GAP))
    return places


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] + _WIDTH, start[1] + _HEIGHT // 2
    to_x, to_y = end[0], end[1] + _HEIGHT // 2
    bend = (x + to_x) // 2
    return f"M{x},{y} C{bend},{y} {bend},{to_y} {to_x},{to_y}"


def _box(box: DrawnStep, x: int, y: int) -> str:
    fill = _PRIVATE if box.private else _OPEN if box.column else _INPUT
    edge = ' stroke-dasharray="5 3"' if box.of_run else ""
    told = f"{box.name}: {box.told}" + (" (private)" if box.private else "")
    return (
        f'<g><title>{escape(told)}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{_LINE}"{edge}/><text x="{x + 10}" y="{y + 22}" font-size="14" font-weight="bold">'
        f'{escape(_cut(box.name, 22))}</text><text x="{x + 10}" y="{y + 41}" font-size="11">{escape(_cut(box.told, 32))}'
        "</text></g>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
