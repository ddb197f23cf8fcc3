"""The house: what a folder holds, what a name means, and that nothing goes round in circles. Sizes are of code, not of
taste.
"""

import ast
import importlib
import io
import re
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.paths import ROOT

HOUSE = ROOT / "workflow_composer"
FILES = sorted(HOUSE.rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]

MOST_IN_A_FOLDER = 15
MOST_IN_THE_ROOT = 7
MOST_LINES = 600
SMALL = 60
LONGEST_FUNCTION = 60
USUAL_FUNCTION = 20

EXCEPTED_FOLDERS = {"cli/commands"}
"""One command per file, however many commands there are."""

SHARED_NAMES = {"RoutingDecision"}
"""Class names that mean two things because the public ones were fixed before: a request's decision, and a token's."""


def name_of(path):
    """The dotted name of a module or package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text()) for path in FILES}
NAMES = {name_of(path): path for path in FILES}


def imports_of(path):
    """The project's own modules that a module imports, anywhere in it: under ``TYPE_CHECKING`` and in functions too."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


GRAPH = {name: sorted(set(imports_of(path)) - {name}) for name, path in NAMES.items()}


def circles(graph):
    """Groups of modules each of which can be reached from each (Tarjan 1972)."""
    number, low, stack, found = {}, {}, [], []

    def visit(name):
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def test_circles_are_found():
    """Two modules that import each other, beside one that only imports."""
    assert circles({"a": ["b"], "b": ["a"], "c": ["a"]}) == [["a", "b"]]


def test_no_import_goes_in_a_circle():
    """Imports for type checkers and within functions count: whoever reads follows them, too."""
    assert circles(GRAPH) == []


def test_no_folder_stands_empty():
    """A package holds files or packages besides its own ``__init__``."""
    folders = [init.parent for init in HOUSE.rglob("__init__.py")]
    assert [folder for folder in folders if {held.name for held in folder.iterdir()} <= {"__init__.py", "__pycache__"}] == []


def test_a_folder_fits_in_the_head():
    """So many modules at the most, and the root only those to be opened first."""
    held = Counter(path.parent for path in MODULES)
    full = {
        place: count
        for folder, count in held.items()
        if (place := folder.relative_to(HOUSE).as_posix()) not in EXCEPTED_FOLDERS
        and count > (MOST_IN_THE_ROOT if folder == HOUSE else MOST_IN_A_FOLDER)
    }
    assert full == {}


def test_a_class_name_has_one_meaning():
    """Whoever reads a name in one folder may think of it in another."""
    homes = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{path.relative_to(HOUSE)}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1 and name not in SHARED_NAMES} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_a_module_is_one_thing(path):
    """It is not too long, and what was begun in it is finished."""
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|pragma: no cover", text)


def test_a_small_module_that_serves_one_other_stands_in_it():
    """A reader would open two files for one thing."""
    importers = defaultdict(set)
    for name, others in GRAPH.items():
        for other in others:
            importers[other].add(name)
    small = {
        path.relative_to(HOUSE).as_posix()
        for name, path in NAMES.items()
        if path in MODULES and path.read_text().count("\n") < SMALL and len(importers[name]) == 1
    }
    assert small == set()


def test_functions_are_short():
    """Nine in ten fit in a glance, and all on a page. Decorators and docstrings count."""
    lengths = sorted(
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(HOUSE)}:{node.lineno} {node.name}")
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [place for length, place in lengths if length > LONGEST_FUNCTION] == []
    assert lengths[int(len(lengths) * 0.9)][0] <= USUAL_FUNCTION


# ------------------------------------------------------------------------------------------------------------ the wording

WRONG_WORDS = (
    r"(?:an )?onlooker",
    r"a(?:sk|nswer)ed in vain",
    r"anything left to ask",
    r"(?:are|is) told apart",
    r"begins? anew",
    r"behind the call(?:er)?.s back",
    r"cannot be asked",
    r"cannot stand in",
    r"dress taken off",
    r"gave no whole answer",
    r"given up for dead",
    r"ha(?:s|ve) spoken",
    r"heeds? no",
    r"hears? (?:every|of every) answer",
    r"in (?:mid-answer|one word: ask)",
    r"is (?:no cascade|no network|passed over|refused rather)",
    r"is no OpenAI-compatible",
    r"knows? no weights",
    r"lies (?:there|beside)",
    r"looked at at",
    r"looks? after it",
    r"must not stand",
    r"nobody (?:looked|knows which)",
    r"nothing (?:is left to ask|of it can be|says where|to be had)",
    r"of one mind",
    r"out in the world",
    r"papered over",
    r"sees? to it",
    r"speaks? (?:against|no HTTP)",
    r"stands? (?:for no|in the way)",
    r"the (?:dearer|same at once|way up)",
    r"there are to name",
    r"what (?:is there|stands there|there is to run on)",
    r"wherever it stands",
    r"who (?:has looked|knows how|looks after)",
    r"whom to ask",
    r"without a word",
)
"""Phrases that are no plain technical English: each was replaced by one that says who does what."""

WRONG = re.compile(rf"\b(?:{'|'.join(WRONG_WORDS)})\b", re.IGNORECASE)
QUOTES = re.compile(r"""\b[bfru]{1,2}(?=["'])|["'#]""", re.IGNORECASE)


def words_of(path):
    """All strings, docstrings and comments of a Python file, or the whole text of another one, on one line."""
    text = path.read_text()
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = {"COMMENT", "STRING", "FSTRING_MIDDLE"}
        text = " ".join(token.string for token in tokens if tokenize.tok_name[token.type] in kinds)
        text = QUOTES.sub("", text)
    return " ".join(text.split())


def wrong_words_in(paths):
    """The wrong phrases, each with its file and the words around it."""
    return [
        f"{path.name}: {words[max(0, found.start() - 30) : found.end() + 30]}"
        for path in paths
        for words in [words_of(path)]
        for found in WRONG.finditer(words)
    ]


def test_the_texts_are_plain_english():
    """Errors, help, docstrings, comments and pages contain none of the phrases that had to be replaced."""
    assert wrong_words_in([*FILES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comment.py", "x = 1  # what is\n# there"),
        ("docstring.py", '"""Return what\n    stands there."""'),
        ("joined.py", 'x = (f"{x} speaks "\n    f"no HTTP")'),
        ("page.md", "Ask nobody, without a\nword."),
    ],
)
def test_a_wrong_phrase_is_found(tmp_path, name, text):
    """In a comment, over the lines of a docstring, in strings that Python joins, and on a page; but not in code."""
    (tmp_path / name).write_text(text)
    (tmp_path / "code.py").write_text("without = a = word = 1\n")
    assert len(wrong_words_in([tmp_path / name, tmp_path / "code.py"])) == 1


# ------------------------------------------------------------------------------------------- what others may rely on

STABLE = ROOT / "docs" / "imports.md"
IMPORT = re.compile(r"^\s*(?:>>> )?from (workflow_composer[\w.]*) import (\([^)]*\)|[^\n(#]+)", re.MULTILINE)


def imported_in(text):
    """(module, name) of every import from the package."""
    for module, names in IMPORT.findall(text):
        for name in re.sub(r"[()\n]", " ", names).split(","):
            if name.strip():
                yield module, name.split(" as ")[0].strip()


def test_the_stable_imports_are_there():
    """Each line of the page works."""
    listed = list(imported_in(STABLE.read_text()))
    assert len(listed) > 20
    for module, name in listed:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def shown_to_people():
    """Pages, and programs that people copy from."""
    yield ROOT / "README.md"
    yield from (path for path in sorted((ROOT / "docs").glob("*.md")) if path != STABLE)
    yield from sorted((ROOT / "examples").rglob("*.py"))


def test_what_people_are_shown_is_stable():
    """Documentation and examples import nothing that the page does not list."""
    listed = set(imported_in(STABLE.read_text()))
    shown = {(path.name, *found) for path in shown_to_people() for found in imported_in(path.read_text())}
    assert len(shown) > 10
    assert {entry for entry in shown if entry[1:] not in listed} == set()


def test_the_architecture_page_names_files_that_exist():
    """Every path in code marks that could be a file or folder of the project is one."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = {name for name in re.findall(r"`([\w./-]+(?:\.py|/))`", text) if "NAME" not in name}
    assert len(named) > 40
    assert {name for name in named if not ((HOUSE / name).exists() or (ROOT / name).exists())} == set()


def test_the_architecture_page_names_every_folder():
    """A new folder is explained there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.relative_to(HOUSE).as_posix() + "/" for path in MODULES if path.parent != HOUSE}
    assert {folder for folder in folders if f"`{folder}`" not in text} == set()


def test_this_file_reads_the_whole_house():
    """A gate over nothing would be open."""
    assert len(MODULES) > 100
    assert Path(importlib.import_module("workflow_composer").__file__).parent == HOUSE
