"""Reads a profile's YAML into plain values and records the line of each.

Stricter than YAML where YAML surprises: duplicate keys, aliases, tags, dates, ``1:30`` (90) and ``010`` (8) are faults.
The meaning of the keys is checked elsewhere.
"""

from __future__ import annotations

import codecs
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workflow_composer.config.redaction import HIDDEN, looks_like_secret, names_a_secret, scrub
from workflow_composer.errors import ProfileError, ProfileNotFound

KeyPath = tuple[str | int, ...]

LIMIT = 1 << 20
"""Maximum size of a profile in bytes; real profiles have a few thousand."""
MAX_NODES = 20_000
"""Maximum number of keys and values; real profiles have a few hundred. The parser takes about 0.1 ms for each."""
MAX_DEPTH = 24
"""Maximum depth of nesting; real profiles have four levels."""

_DECIMAL = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})(?:\.\d*)?(?:[eE][-+]?\d{1,3})?|[-+]?\.\d+(?:[eE][-+]?\d{1,3})?")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class SourceText:
    """Where a profile was read from: ``label`` names the file, and its paths are relative to ``directory``.

    ``lines`` maps each key to its line (counted from 1), ``written`` maps each scalar that YAML does not read as text to its
    text, and ``faulty`` holds the keys whose value was dropped because its fault is already reported. ``kind`` is the word
    for the file in messages, ``example`` a line of such a file. ``found``: nobody has named the file by its path; it was
    found in the working directory.
    """

    label: str
    directory: Path
    lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    faulty: set[KeyPath] = field(default_factory=set)
    kind: str = "profile"
    example: str = "profile_name: my_cluster"
    found: bool = False

    def line(self, path: KeyPath) -> int | None:
        """Return the line of this key or of its nearest parent; None if neither is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def same(self, path: KeyPath, other: KeyPath) -> None:
        """Give ``path`` the line of ``other``."""
        if other in self.lines:
            self.lines[path] = self.lines[other]

    def where(self, path: KeyPath) -> str:
        """Return ``file:line: key.path``, the start of every message about this key."""
        line = self.line(path)
        place = self.label if line is None else f"{self.label}:{line}"
        return f"{place}: {dotted(path)}" if path else place


class Problems:
    """Collects faults, one line each; `lines` returns them in the order of the file."""

    def __init__(self, source: SourceText) -> None:
        self.source = source
        self._found: list[tuple[int, str]] = []

    def add(self, path: KeyPath, found: str, allowed: str = "", *, hint: str = "") -> None:
        """Add a fault: ``found`` is the value found, ``allowed`` what is valid, ``hint`` the nearest valid name."""
        text = scrub("; ".join(part for part in (found, allowed, hint) if part))
        self._found.append((self.source.line(path) or 0, f"{self.source.where(path)}: {text}"))

    def at_line(self, line: int, found: str) -> None:
        """Add a fault in a line of the file that cannot be assigned to a key."""
        self._found.append((line, f"{self.source.label}:{line}: {scrub(found)}"))

    def of_file(self, found: str) -> None:
        """Add a fault of the file as a whole."""
        self._found.append((0, f"{self.source.label}: {scrub(found)}"))

    def take(self, other: Problems) -> None:
        """Add the faults of another collection."""
        self._found += other._found

    def lines(self) -> tuple[str, ...]:
        """Return every fault once, in the order of the file."""
        ordered = sorted(self._found, key=lambda item: item[0])
        return tuple(dict.fromkeys(" ".join(text.splitlines()) for _, text in ordered))

    def raise_if_any(self) -> None:
        """Raise `ProfileError` with all faults, if there are any."""
        if self._found:
            raise ProfileError(self.lines())


def dotted(path: KeyPath) -> str:
    """Return the path as ``models.small.path`` or ``fallback[0]``; secrets are hidden, unprintable text is escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = HIDDEN if looks_like_secret(part) else part if part.isprintable() and part else repr(part)
            text += f".{name}" if text else name
    return text


def shown(value: object, path: KeyPath = (), written: str | None = None) -> str:
    """Describe the value found; a value that is or could be a secret is not repeated.

    ``written`` is the text of a scalar that should be text but that YAML reads as another type.
    """
    if isinstance(value, str):
        if (path and any(names_a_secret(part) for part in path)) or looks_like_secret(value):
            return "found a value (not shown, because it could be a secret)"
        return f"found {value if len(value) <= 60 else value[:57] + '...'!r}"
    if not isinstance(value, (bool, int, float)):
        words = {"NoneType": "nothing", "dict": "a mapping", "tuple": "a list", "list": "a list"}
        return f"found {words.get(type(value).__name__, 'a ' + type(value).__name__)}"
    if written is None:
        return f"found {str(value).lower()[:60]}"
    return f"found {written}, which YAML reads as {'true or false' if isinstance(value, bool) else 'a number'}"


def one_of(names: Any, limit: int = 12) -> str:
    """List the valid names."""
    valid = [str(name) for name in names]
    if not valid:
        return "no valid value exists"
    more = f" and {len(valid) - limit} more" if len(valid) > limit else ""
    return f"allowed: {', '.join(valid[:limit])}{more}"


# ------------------------------------------------------------------------------------------------------------- reading


def read_profile(
    path: Path, *, values: type[Values] | None = None, **named: Any
) -> tuple[dict[str, Any], SourceText, Problems]:
    """Read the file; ``named`` sets `SourceText.kind`, `SourceText.example` and `SourceText.found`.

    Raises `ProfileNotFound`, or `ProfileError` if it is not a readable YAML mapping.
    """
    source = SourceText(str(path), path.parent, **named)
    problems = Problems(source)
    text = _text(path, problems)
    problems.raise_if_any()
    tree = parse(text, source, problems, values)
    if not isinstance(tree, dict):
        if not problems.lines():
            what = "is empty" if tree is None else f"{shown(tree)} at the top".replace("found", "has", 1)
            problems.of_file(f"{what}; a {source.kind} must be a mapping of keys, such as {source.example!r}")
        problems.raise_if_any()
    return tree, source, problems


def _text(path: Path, problems: Problems) -> str:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            problems.of_file(f"is a directory; a {problems.source.kind} must be a YAML file")
            return ""
        if not stat.S_ISREG(status.st_mode):
            problems.of_file(f"is not a regular file; a {problems.source.kind} must be a YAML file")
            return ""
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError:
        raise ProfileNotFound(f"no {problems.source.kind} at {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        problems.of_file(f"cannot be read: {reason.lower()}")
        return ""
    return decode(data, problems)


def decode(data: bytes, problems: Problems) -> str:
    """Decode UTF-8; report anything else as a fault."""
    if len(data) > LIMIT:
        problems.of_file(f"is larger than the limit of {LIMIT:,} bytes for a {problems.source.kind}")
        return ""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        problems.of_file("is encoded in UTF-16; save it as UTF-8")
        return ""
    if b"\0" in data:
        problems.of_file(f"is a binary file; a {problems.source.kind} must be YAML text in UTF-8")
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.at_line(line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")
        return ""


def parse(text: str, source: SourceText, problems: Problems, values: type[Values] | None = None) -> Any:
    """Parse YAML text into plain values; fills ``source`` and ``problems``. ``values`` converts the nodes."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.at_line(line, f"character U+{int(error.character):04X} is not allowed in YAML")
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        problems.at_line(mark.line + 1 if mark else 1, f"invalid YAML: {what}")
        return None
    except (RecursionError, ValueError, OverflowError):  # the scanner's own int() and chr() of malformed escapes
        problems.of_file("invalid YAML: malformed escape, or nesting too deep")
        return None
    return None if node is None else (values or Values)(source, problems).of(node, ())


class _Loader(yaml.SafeLoader):
    """Composes nodes. Rejects deep nesting and aliases, which could make a small file huge."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; the composer calls this for each."""
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
            return yaml.ScalarNode("!alias", "", event.start_mark, event.end_mark)
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            what = "nested too deeply" if self.depth > MAX_DEPTH else f"more than {MAX_NODES:,} keys and values"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # see above
            raise yaml.composer.ComposerError(None, None, what, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Invalid:
    """Marks a value whose fault is already reported."""


_INVALID = _Invalid()


class Values:
    """Converts nodes to values. A faulty value is dropped with its key, so that it is reported once."""

    def __init__(self, source: SourceText, problems: Problems) -> None:
        self.source = source
        self.problems = problems

    def of(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the value of a node at ``path``."""
        if not path:
            self.source.lines.setdefault((), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return self._list(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        return self.fault(path, f"the YAML tag {node.tag} is not allowed")

    def fault(self, path: KeyPath, found: str, allowed: str = "") -> Any:
        """Report a fault, and return what stands for its value."""
        self.problems.add(path, found, allowed)
        self.source.faulty.add(path)
        return _INVALID

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TEXT_TAGS:
                self._bad_key(key_node, path, line)
                continue
            here = (*path, key)
            if here in self.source.lines:
                first = self.source.lines[here]
                self.source.lines[here] = line
                self.problems.add(here, f"duplicate key, first in line {first}", "give each key once")
                self.source.lines[here] = first
                continue
            self.source.lines[here] = line
            value = self.of(value_node, here)
            if value is not _INVALID:
                values[key] = value
        return values

    def _bad_key(self, node: yaml.Node, path: KeyPath, line: int) -> None:
        if isinstance(node, yaml.ScalarNode) and node.tag != "!alias":
            here = (*path, str(node.value))
            self.source.lines.setdefault(here, line)
            self.problems.add(here, "YAML does not read this key as text", "put it in quotes")
            self.source.faulty.add(here)
        else:
            self.problems.at_line(
                line, f"{dotted(path) or 'the profile'}: a key is a list, a mapping or an alias; keys must be text"
            )

    def _list(self, node: yaml.SequenceNode, path: KeyPath) -> tuple[Any, ...] | _Invalid:
        items = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self.source.lines[here] = item.start_mark.line + 1
            items.append(self.of(item, here))
        if any(item is _INVALID for item in items):
            self.source.faulty.add(path)
            return _INVALID
        return tuple(items)

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        """Return the value of a scalar."""
        text, tag = str(node.value), node.tag.removeprefix(_TAG)
        if tag == "!alias":
            return self.fault(path, "YAML aliases are not allowed", "repeat the value instead")
        if tag == "timestamp":
            return self.fault(path, f"{shown(text, path)}, which YAML reads as a date", "put it in quotes")
        if node.tag in _TEXT_TAGS and not (node.style is None and _DECIMAL.fullmatch(text)):
            return text
        if node.tag in _TEXT_TAGS or tag in {"int", "float"}:  # 1e-3 is text in YAML 1.1, but everyone means the number
            return self._number(text, path)
        if tag not in {"bool", "null"}:
            return self.fault(path, f"the YAML tag {node.tag} is not allowed")
        self.source.written[path] = text
        return None if tag == "null" else text.lower() in {"yes", "true", "on"}

    def _number(self, text: str, path: KeyPath) -> Any:
        self.source.written[path] = text
        if text.lower().lstrip("+-") in {".inf", ".nan"}:
            return float(text.replace(".", ""))
        if not _DECIMAL.fullmatch(text):
            return self.fault(
                path,
                f"{shown(text, path)}, which YAML reads as a number",
                "put text in quotes; write numbers as 1500 or 0.25",
            )
        return float(text) if set(text) & set(".eE") else int(text)


_TEXT_TAGS = frozenset({_TAG + "str", _TAG + "merge", _TAG + "value"})
