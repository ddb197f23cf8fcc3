"""The document model of a report: sections of paragraphs, tables and figures, written as Markdown or as one HTML page.

The page is self-contained: it has no scripts and loads no fonts or images. This module escapes all text, in one place for
each of the two formats.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

Cell = str | tuple[str, str]
"""A text, or a text with a detail in small type, such as an interval."""


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table. ``numbers``: positions of right-aligned columns; ``name``: position of the column that names the rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: frozenset[int] = frozenset()
    name: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure (SVG) for the page. ``alt`` describes it; its numbers are also in a table."""

    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


Block = str | ReportTable | Figure | Bullets
"""A string is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part with a heading."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """The anchor of the section within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Document:
    """A report. ``summary`` comes first."""

    title: str
    subtitle: str
    summary: tuple[str, ...]
    sections: Sequence[Section]


# ------------------------------------------------------------------------------------------------------------ Markdown


def as_markdown(document: Document) -> str:
    """Return the document as Markdown (GitHub tables), without figures: their numbers are in tables."""
    parts = [f"# {_plain(document.title)}", _plain(document.subtitle)]
    parts.append("\n".join(f"- {_plain(line)}" for line in document.summary))
    for section in document.sections:
        parts.append(f"## {_plain(section.title)}")
        parts.extend(filter(None, map(_markdown, section.blocks)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case ReportTable():
            return _markdown_table(block)
        case Bullets():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Figure():
            return ""
        case _:
            return _plain(block)


def _markdown_table(table: ReportTable) -> str:
    rule = ["---:" if at in table.numbers else "---" for at in range(len(table.head))]
    lines = [[_plain(name) for name in table.head], rule]
    lines += [[_plain(_joined(cell)) for cell in row] for row in table.rows]
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join(filter(None, [f"**{_plain(table.caption)}**", drawn, _plain(table.note)]))


def _joined(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def _plain(text: str) -> str:
    """Return the text on one line with all Markdown and HTML markup escaped."""
    text = html.escape(one_line(text), quote=False)
    text = re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", text)
    return re.sub(r"^([-+]|\d+[.)])(?=\s)", r"\\\1", text)


def one_line(text: str) -> str:
    """Return the text without line breaks and control characters, which would break a table."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# ---------------------------------------------------------------------------------------------------------------- HTML


def as_html(document: Document) -> str:
    """Return the document as one self-contained page with light and dark colours."""
    style = (files("workflow_composer.batch.report") / "report.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{section.anchor}">{_text(section.title)}</a></li>' for section in document.sections)
    summary = "".join(f"<li>{_text(line)}</li>" for line in document.summary)
    body = "\n".join(
        f'<section id="{section.anchor}"><h2>{_text(section.title)}</h2>\n{"".join(_html(section))}</section>'
        for section in document.sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_text(document.title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{_text(document.title)}</h1><p>{_text(document.subtitle)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
<ul class="summary">{summary}</ul>
{body}
</main>
</body>
</html>
"""


def _html(section: Section) -> Iterator[str]:
    for number, block in enumerate(section.blocks):
        match block:
            case ReportTable():
                yield _html_table(block)
            case Bullets():
                yield f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in block.items)}</ul>\n"
            case Figure():
                caption = f"<figcaption>{_text(block.caption)}</figcaption>" if block.caption else ""
                yield f"<figure>{_inline(block, f'{section.anchor}-{number}')}{caption}</figure>\n"
            case _:
                yield f"<p>{_text(block)}</p>\n"


def _html_table(table: ReportTable) -> str:
    classes = ["number" if at in table.numbers else "" for at in range(len(table.head))]
    heads = zip(table.head, classes, strict=True)
    head = "".join(f'<th scope="col" role="columnheader"{_class(c)}>{_text(name)}</th>' for name, c in heads)
    classes[table.name] += " name" if classes[table.name] else "name"
    rows = []
    for row in table.rows:
        cells = []
        for at, (cell, name) in enumerate(zip(row, classes, strict=True)):
            tag, scope = ("th", ' scope="row"') if at == table.name else ("td", "")
            role = "rowheader" if at == table.name else "cell"
            label = f' role="{role}" data-label="{_text(table.head[at])}"'
            cells.append(f"<{tag}{scope}{label}{_class(name)}>{_cell(cell)}</{tag}>")
        rows.append(f'<tr role="row">{"".join(cells)}</tr>\n')
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.caption)}"><table role="table">'
        f'<caption>{_text(table.caption)}</caption>\n<thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>{note}\n'
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cell(cell: Cell) -> str:
    """Return a cell's HTML; long routing strings may break after underscores."""
    text, detail = (cell, "") if isinstance(cell, str) else cell
    shown = _text(text).replace("_", "_<wbr>")
    return f"{shown} <small>{_text(detail)}</small>" if detail else shown


def _text(text: str) -> str:
    return html.escape(one_line(text))


def _inline(figure: Figure, prefix: str) -> str:
    """Return the drawing with its accessible name, and with ids that are unique on the page."""
    drawing = figure.svg[figure.svg.index("<svg") :]
    drawing = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{prefix}-", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{_text(figure.alt)}" ', 1)
