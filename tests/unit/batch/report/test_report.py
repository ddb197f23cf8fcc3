"""The report: the same numbers in Markdown and HTML, readable by everybody, and nothing that data could smuggle in."""

import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.batch.finished import cascade, failed, greedy, row, tier
from workflow_composer.batch.report.document import Bullets, Document, Figure, ReportTable, Section, as_html, as_markdown
from workflow_composer.batch.report.report import build_report
from workflow_composer.errors import InputError

CASCADE = "mv_cascade_small_k3_t0.7_large_k1_t0.0"
HOSTILE = "<script>alert('x')</script> | [a](javascript:b) `c` $d$ \x1b[31m \n## e & \" <!-- ]]>"
OURS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "h1",
    "h2",
    "p",
    "nav",
    "ul",
    "li",
    "a",
    "main",
    "section",
}
OURS |= {"div", "table", "caption", "thead", "tr", "th", "tbody", "td", "small", "figure", "svg", "figcaption", "wbr"}
VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


def given_runs(**runs):
    return {name: partial(iter, rows) for name, rows in runs.items()}


@pytest.fixture(scope="module")
def built():
    """Two tiers alone, a vote and a cascade, over 120 questions."""
    hard = range(0, 120, 3)
    runs = {
        "small": greedy(120, "small", lambda n: n not in hard, cost=0.001),
        "large": greedy(120, "large", lambda n: n % 20 != 0, cost=0.01),
        "mv_small_k3_t0.7": [
            row(n, tier("small", *[n not in hard] * 3, cost=0.003), correct=n not in hard, route="mv_small_k3_t0.7")
            for n in range(120)
        ],
        CASCADE: cascade(120, lambda n: n in hard, lambda n: n not in hard, lambda n: n % 20 != 0, route=CASCADE),
    }
    return build_report(
        {name: partial(iter, rows) for name, rows in runs.items()}, title="problems", tiers=("small", "large")
    )


class Page(HTMLParser):
    """What is on a page: elements with their attributes, ids, text, cells by table; and tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.texts, self.tables, self.open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if "id" in dict(attributes):
            self.ids.append(dict(attributes)["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def markdown_tables(text):
    """Tables of cells, the rules left out."""
    tables, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|") and not lines[number - 1].startswith("|"):
            tables.append([])
        if line.startswith("|") and not line.startswith(("| ---", "| ---:")):
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return tables


class TestContent:
    def test_it_says_in_a_sentence_what_the_cascade_is_worth(self, built):
        """Accuracy, cost, and both beside the reference."""
        markdown, _ = built
        line = next(line for line in markdown.splitlines() if line.startswith("- mv"))
        assert ": 98.3% (" in line
        assert "right at $2,333 for 1,000 questions, 3.3 points more than large (95 % interval -0.6 to +7.2)" in line
        assert "at 233.33 times its cost." in line

    def test_the_table_has_every_run_with_its_numbers(self, built):
        """As counted by hand."""
        table = markdown_tables(built[0])[0]
        assert [cell.split(" (")[0] for cell in table[1][:6]] == ["1", "small", "66.7%", "$1.00", "-28.3", "0.10"]
        assert [cell.split(" (")[0] for cell in table[2][:6]] == ["2", "large", "95.0%", "$10.0", "-", "-"]
        assert table[2][1] == "large (single tier, reference)"

    def test_what_the_escalation_bought_is_counted(self, built):
        """Forty passed on, none right before."""
        table = next(table for table in markdown_tables(built[0]) if table[0][1] == "step")
        assert [cell.split(" (")[0] for cell in table[1][:5]] == ["4", "small to large", "40", "0.0%", "95.0%"]
        assert "40 (33.3%: " in table[1][2]

    def test_accepted_answers_are_told_from_those_that_were_only_taken(self):
        """Of 40 rows that reach the last tier, those that it is wrong about are not accepted."""
        rows = cascade(120, lambda n: n % 3 == 0, lambda n: n % 10 != 1, lambda n: n % 20 != 0, route="execution_feedback")
        doubted = [replace(one, accepted=False) if n % 20 == 0 and n % 3 == 0 else one for n, one in enumerate(rows)]
        markdown, _ = build_report(given_runs(execution_feedback=doubted), title="problems")
        table = next(table for table in markdown_tables(markdown) if table[0][2] == "accepted")
        assert [cell.split(" (")[0] for cell in table[1]] == ["1", r"execution\_feedback", "98.3%", "6.8%", "2"]
        assert r"execution\_feedback (cascade)" in markdown

    def test_markdown_and_html_have_the_same_tables(self, built):
        """Cell by cell, apart from how they are set."""
        markdown, html = built

        def bare(cell):
            return re.sub(r"[\\()\s]", "", cell)

        ours = [[[bare(cell) for cell in line] for line in table] for table in markdown_tables(markdown)]
        page = [[[bare(cell) for cell in line] for line in table] for table in Page(html).tables]
        assert ours == page

    def test_it_says_what_intervals_are_and_what_they_do_not_cover(self, built):
        """In both forms."""
        for text in (built[0], Page(built[1]).text):
            assert "1,000 data sets resampled from these questions with replacement" in text
            assert "They do not cover" in text

    def test_the_same_runs_give_the_same_report(self):
        """To the last character: figures and intervals too."""
        runs = given_runs(small=greedy(60, "small", lambda n: n % 3 > 0), large=greedy(60, "large", bool, cost=3.0))
        assert build_report(runs, title="t") == build_report(runs, title="t")

    def test_errors_are_listed_with_the_first_of_each_kind(self):
        """And rows without a readable answer are counted."""
        rows = [
            *greedy(4, "small", bool),
            failed(4, "CallTimeout", "too slow"),
            row(5, tier("small", False), correct=False, answer=None),
        ]
        markdown, html = build_report(given_runs(small=rows), title="t")
        for text in (markdown, Page(html).text):
            assert "CallTimeout" in text
            assert "row 4: too slow" in text
        counts = next(table for table in markdown_tables(markdown) if table[0][2] == "failed rows")
        assert [cell.split(" (")[0] for cell in counts[1][2:5]] == ["1", "1", "0"]

    def test_without_labels_it_says_so_and_speaks_of_costs(self):
        """No figure of accuracy, no pass@k."""
        rows = [row(n, tier("small", cost=2.0), correct=None) for n in range(5)]
        markdown, html = build_report(given_runs(small=rows), title="t")
        assert "no labels" in markdown
        assert "$2,000" in markdown
        assert "pass@" not in markdown
        assert "points" not in Page(html).text


class TestRows:
    def test_only_rows_that_all_runs_have_are_compared(self):
        """And the report says how many are left out."""
        runs = given_runs(small=greedy(10, "small", lambda n: n < 5), large=greedy(8, "large", lambda n: True, cost=2.0))
        markdown, _ = build_report(runs, title="t")
        assert "8 questions, 2 runs" in markdown
        assert "2 rows missing in some runs are left out" in markdown
        assert markdown_tables(markdown)[0][1][2].startswith("62.5%")

    def test_runs_without_a_common_row_cannot_be_compared(self):
        """An error that says so, and so is no run at all."""
        with pytest.raises(InputError, match="no rows in common"):
            build_report(given_runs(one=[failed(0)], other=[failed(1)]), title="t")
        with pytest.raises(InputError, match="needs at least one run"):
            build_report({}, title="t")
        with pytest.raises(InputError, match="no row"):
            build_report(given_runs(one=[]), title="t")

    def test_one_row_is_enough_for_a_report(self):
        """Without intervals that would mean anything, but without an error."""
        markdown, html = build_report(given_runs(one=greedy(1, "small", lambda n: True)), title="t")
        assert "100.0%" in markdown
        Page(html)


class TestPage:
    def test_it_needs_nothing_from_a_network(self, built):
        """No script, no frame, no address but those of XML's namespaces; and it forbids itself to load anything."""
        page = Page(built[1])
        assert not {"script", "iframe", "link", "object", "img"} & {tag for tag, _ in page.elements}
        policy = next(
            found["content"] for tag, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'" in policy
        addresses = set(re.findall(r"[a-z]+://[^\"' )<]+", built[1]))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert not any(name.startswith("on") for _, found in page.elements for name in found)

    def test_every_id_is_there_once_and_every_reference_has_its_target(self, built):
        """Drawings on one page must not borrow from each other."""
        page = Page(built[1])
        assert len(page.ids) == len(set(page.ids))
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', built[1])
        assert references
        assert set(references) <= set(page.ids)

    def test_figures_have_a_name_and_their_colours_follow_the_page(self, built):
        """No stand-in is left, and nothing is drawn in a colour of its own but pure black outlines that are not shown."""
        page = Page(built[1])
        drawings = [found for tag, found in page.elements if tag == "svg"]
        assert len(drawings) >= 4
        assert all(found["role"] == "img" and len(found["aria-label"]) > 30 for found in drawings)
        assert "#010a" not in built[1]
        assert "prefers-color-scheme: dark" in built[1]
        assert 'lang="en"' in built[1]

    def test_tables_have_captions_and_headed_rows(self, built):
        """For those who hear them."""
        page = Page(built[1])
        tags = [tag for tag, _ in page.elements]
        assert tags.count("caption") == tags.count("table") > 4
        body_rows = sum(len(table) - 1 for table in page.tables)
        assert sum(tag == "th" and found.get("scope") == "row" for tag, found in page.elements) == body_rows

    def test_contrast_is_enough_in_both_colour_schemes(self, built):
        """Text at least 4.5 to 1 against page and card, marks at least 3 to 1 against the card (WCAG 2)."""
        light, dark = (
            dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in built[1].split("prefers-color-scheme")[:2]
        )
        for scheme in (light, dark):
            for text in ("ink", "soft", "accent"):
                assert min(_contrast(scheme[text], scheme[ground]) for ground in ("page", "card")) >= 4.5
            for mark in ("single", "vote", "cascade"):
                assert _contrast(scheme[mark], scheme["card"]) >= 3


def _contrast(one, other):
    """WCAG's contrast ratio of two colours."""

    def luminance(colour):
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


class TestHostileData:
    def test_nothing_of_the_data_becomes_markup(self):
        """Names of data sets, runs, tiers and routes, kinds and messages of errors."""
        rows = [
            row(0, tier(HOSTILE, False), tier(HOSTILE + "2", True), route=HOSTILE),
            row(1, tier(HOSTILE, True), correct=False, route="mv_" + HOSTILE),
            failed(2, HOSTILE, HOSTILE),
        ]
        markdown, html = build_report({HOSTILE: partial(iter, rows)}, title=HOSTILE, notes=[HOSTILE])
        page = Page(html)
        assert "script" not in {tag for tag, _ in page.elements}
        assert "alert('x')" in page.text
        assert "<script" not in html
        assert "<script" not in markdown
        assert "\x1b" not in html + markdown
        assert not re.search(r"(?<!\\)`c", markdown)
        assert not re.search(r"(?<!\\)\[a", markdown)
        tables = markdown_tables(markdown)
        assert all(len({len(line) for line in table}) == 1 for table in tables)

    @settings(deadline=None, max_examples=50)
    @given(st.text(), st.text(), st.text(min_size=1))
    def test_any_text_stays_text(self, title, cell, alt):
        """In paragraphs, lists, tables and attributes."""
        table = ReportTable(cell, ("a", cell), ((cell, (cell, cell)),), frozenset({0}), 1, cell)
        section = Section("Part", (cell, Bullets((cell,)), table, Figure('<svg id="a"></svg>', alt, cell)))
        document = Document(title, cell, (cell,), [section])
        page = Page(as_html(document))
        tags = {tag for tag, _ in page.elements}
        assert tags <= OURS
        markdown = as_markdown(document)
        assert all(line.count("|") - line.count(r"\|") in {0, 3} for line in markdown.splitlines())
