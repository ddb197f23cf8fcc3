"""Output forms: what an answer must be (one of some words, a number, a list, fields, JSON Schema, a pydantic type).

A form says what the model is told (`OutputForm.instructions`), reads a reply (`OutputForm.read`), mends what loses nothing
(fences, talk around, "12" for 12, case and final point of a word, a bare list) and names what is wrong otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow_composer.answers.choices import CASE, Choices, number_in
from workflow_composer.answers.extraction import function_at
from workflow_composer.answers.form import EMPTY_REPLY, Formed, OutputForm
from workflow_composer.answers.json_text import FENCES, TALK, JsonValue, blocks, canonical, json_values, plain
from workflow_composer.answers.reasoning import without_reasoning
from workflow_composer.answers.schema import DROP, LISTED, NONE_WORDS, JsonSchema
from workflow_composer.errors import ConfigError

__all__ = ["GRAMMAR", "Formed", "OutputForm", "output_form", "with_form"]

WORDS = ("text", "number", "truth", "code")
GRAMMAR = (
    "a form is text, number, truth, code, a list of two or more words (choices), [FORM] (a list), {field: FORM}, "
    "{json_schema: SCHEMA or FILE}, {python: module:Type}, or any of these with `or none`"
)
_OR_NONE = re.compile(r"\A(.*\S)\s+or\s+none\s*\Z", re.IGNORECASE | re.DOTALL)
_BULLET = re.compile(r"^[ \t]*(?:[-*\u2022\u2013]|\d{1,4}[.)])[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}
_FENCE = re.compile(r"\A(?:```|~~~)[^\n]*\n\s*")
_DEEPEST = 32


class TextForm(OutputForm):
    """Any text, or code: the content of the only fenced block, else the whole text."""

    def __init__(self, kind: str) -> None:
        self.spec = kind
        self._code = kind == "code"

    def _read(self, text: str) -> Formed:
        if not self._code:
            return Formed(text)
        found = blocks(text)
        if len(found) > 1:
            return Formed(problem=f"the reply has {len(found)} code blocks; write one, with all of the code")
        if not found:
            return Formed(text)
        whole = text.startswith(("```", "~~~")) and text.endswith(("```", "~~~"))
        return Formed(found[0], (FENCES,) if whole else (FENCES, TALK)) if found[0].strip() else Formed(problem=EMPTY_REPLY)

    def instructions(self) -> str:
        """Ask for code only."""
        return "Answer with the code only, in one code block." if self._code else ""

    def json_schema(self) -> dict[str, Any]:
        """Return the schema of a string."""
        return {"type": "string"}

    @property
    def is_text(self) -> bool:
        """Return True."""
        return True


class NumberForm(OutputForm):
    """One number."""

    spec = "number"

    def _read(self, text: str) -> Formed:
        found = number_in(text)
        return Formed(problem="the reply is not one number") if found is None else Formed(*found)

    def instructions(self) -> str:
        """Ask for the number only."""
        return "Answer with one number only, without a unit."

    def json_schema(self) -> dict[str, Any]:
        """Return the schema of a number."""
        return {"type": "number"}


class ChoiceForm(OutputForm):
    """One of some words; or a truth value, for which yes and no are understood."""

    def __init__(self, words: Mapping[str, Any], spec: Any) -> None:
        self.spec = spec
        self._choices = Choices(words, mentions=spec != "truth")

    def _read(self, text: str) -> Formed:
        found = self._choices.read(text)
        if found is None:
            return Formed(problem=f"the reply is not one of: {', '.join(self._named)}")
        return Formed(self._choices.values[found[0]], found[1])

    @property
    def _named(self) -> Sequence[str]:
        return ("true", "false") if self.spec == "truth" else tuple(self._choices.values)

    def instructions(self) -> str:
        """List the words."""
        return f"Answer with exactly one of the following, and nothing else: {', '.join(self._named)}"

    def json_schema(self) -> dict[str, Any]:
        """Return the schema of an enumeration or a truth value."""
        return {"type": "boolean"} if self.spec == "truth" else {"enum": list(self._choices.values.values())}


class OrNone(OutputForm):
    """Another form, or none."""

    def __init__(self, inner: OutputForm) -> None:
        self.spec = f"{inner.spec} or none" if isinstance(inner.spec, str) else {"form": inner.spec, "none": True}
        self.inner = inner

    def _read(self, text: str) -> Formed:
        short = text.strip(" \t\r\n.*_`'\"").lower()
        if short in NONE_WORDS:
            return Formed(None, () if text in ("none", "null") else (CASE,))
        return self.inner.read(text)

    def instructions(self) -> str:
        """Allow none."""
        said = self.inner.instructions()
        return f"{said} If there is none, answer with: none".strip()

    def json_schema(self) -> dict[str, Any]:
        """Allow null."""
        return {"anyOf": [self.inner.json_schema(), {"type": "null"}]}

    def plain(self, value: Any) -> Any:
        """Return the inner form's data."""
        return None if value is None else self.inner.plain(value)

    @property
    def is_text(self) -> bool:
        """Whether the inner form is."""
        return self.inner.is_text


class JsonForm(OutputForm):
    """A JSON value of a schema: a list, an object with fields, any JSON Schema, or what a pydantic type accepts."""

    def __init__(self, spec: Any, schema: Mapping[str, Any], made: Any = None) -> None:
        self.spec = spec
        self._schema = JsonSchema(schema)
        self._type = made

    def _read(self, text: str) -> Formed:
        found = json_values(text)
        exact = self._distinct([one for one in found if self._schema.problem(one.value) is None])
        if len(exact) == 1:
            return self._typed(exact[0])
        tried = [JsonValue(*self._mended(one)) for one in (*found, *self._bare_lists(text, found))]
        mended = exact or self._distinct([one for one in tried if self._schema.problem(one.value) is None])
        if len(mended) > 1:
            return Formed(problem=f"the reply has {len(mended)} different JSON values of this form; write only one")
        if mended:
            return self._typed(mended[0])
        if (scalar := self._scalar(text)) is not None:
            return self._typed(scalar)
        if not tried:
            return Formed(problem="the reply has no JSON that can be read")
        nearest = max(tried, key=lambda one: len(str(one.value)))
        return Formed(problem=f"the JSON does not fit: {self._schema.problem(nearest.value)}")

    def read_whole(self, text: str) -> Formed | None:
        """Read an object or a list that the reply begins with and ends, whatever follows it."""
        said = _FENCE.sub("", without_reasoning(text).strip())
        try:
            value, end = json.JSONDecoder().raw_decode(said)
        except (ValueError, RecursionError):
            return None
        found = self.read(said[:end]) if isinstance(value, (dict, list)) else None
        return None if found is None or found.problem is not None or LISTED in found.mended else found

    def _mended(self, found: JsonValue) -> tuple[Any, tuple[str, ...]]:
        value, notes = self._schema.mended(found.value)
        return value, (*found.mended, *notes)

    @staticmethod
    def _distinct(found: Sequence[JsonValue]) -> list[JsonValue]:
        if len(found) < 2:
            return list(found)
        return list({canonical(one.value): one for one in reversed(found)}.values())

    @property
    def _kind(self) -> Any:
        top = self._schema.resolved(self._schema.schema)
        return top.get("type") if isinstance(top, Mapping) else None

    def _bare_lists(self, text: str, found: Sequence[JsonValue]) -> list[JsonValue]:
        """Return the lists that several objects, or the lines of a bulleted list, mean."""
        if self._kind != "array":
            return []
        if len(found) > 1 and all(isinstance(one.value, dict) for one in found):
            return [JsonValue([one.value for one in found], (*found[0].mended, LISTED))]
        lines = [] if found else [match[1] for match in _BULLET.finditer(text)]
        return [JsonValue(lines, (LISTED,))] if lines else []

    def _scalar(self, text: str) -> JsonValue | None:
        """Read a reply that should be a JSON text, number, truth value or enumeration, and is none."""
        top = self._schema.resolved(self._schema.schema)
        top = top if isinstance(top, Mapping) else {}
        read: Formed | None = None
        if all(isinstance(one, str) for one in top.get("enum") or (0,)):
            read = ChoiceForm({one: one for one in top["enum"]}, top["enum"]).read(text)
        elif self._kind in ("number", "integer"):
            read = NumberForm().read(text)
        elif self._kind == "boolean":
            read = ChoiceForm(_TRUTHS, "truth").read(text)
        elif self._kind == "string":
            read = Formed(text, ())
        if read is None or read.problem is not None or self._schema.problem(read.value) is not None:
            return None
        return JsonValue(read.value, read.mended)

    def _typed(self, found: JsonValue) -> Formed:
        """Return the value, as an instance of the pydantic type if there is one."""
        value = plain(found.value)
        if self._type is None:
            return Formed(value, found.mended)
        from pydantic import ValidationError

        try:
            return Formed(self._type.validate_json(json.dumps(value)), found.mended)
        except ValidationError as error:
            said = (f"{'.'.join(map(str, one['loc'])) or 'the value'}: {one['msg']}" for one in error.errors()[:4])
            return Formed(problem="the JSON does not fit: " + "; ".join(said))

    def instructions(self) -> str:
        """Ask for JSON and show the schema."""
        return self._instructions

    @cached_property
    def _instructions(self) -> str:
        shown = json.dumps(_without_marks(self._schema.schema), ensure_ascii=False)
        return f"Answer with JSON only, without any other text. It must conform to this JSON Schema:\n{shown}"

    def json_schema(self) -> dict[str, Any]:
        """Return the schema."""
        return dict(_without_marks(self._schema.schema))

    def plain(self, value: Any) -> Any:
        """Return JSON data."""
        return value if self._type is None else self._type.dump_python(value, mode="json")

    @property
    def marked_schema(self) -> Mapping[str, Any]:
        """The schema with the marks of forms, for a form that contains this one."""
        return self._schema.schema if isinstance(self._schema.schema, Mapping) else {}


def _without_marks(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {name: _without_marks(part) for name, part in schema.items() if name != DROP}
    return [_without_marks(part) for part in schema] if isinstance(schema, (list, tuple)) else schema


def output_form(spec: Any, *, folder: str | Path = ".") -> OutputForm:
    """Return the form that ``spec`` describes: see `GRAMMAR`; also a JSON Schema, or a pydantic type or annotation.

    A form is returned unchanged. Files are relative to ``folder``. Raises `ConfigError` with the faulty part.

    >>> output_form(["case", "trial"]).read("**Trial.**"), output_form({"n": "number"}).read('Sure: {"n": "12"}')
    (Formed(value='trial', mended=('case and punctuation',), problem=None), \
Formed(value={'n': 12}, mended=('talk around', 'number as text'), problem=None))
    """
    return _made(spec, Path(folder), 0)


def with_form(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a request with ``form``, or ``schema``, in any writing, as an `OutputForm`.

    Raises `ConfigError` for an invalid form, and TypeError for both.
    """
    others = {name: value for name, value in fields.items() if name not in ("schema", "form")}
    given = [fields[name] for name in ("schema", "form") if fields.get(name) is not None]
    if len(given) > 1:
        raise TypeError("give schema or form, not both")
    return others | {"form": output_form(given[0]) if given else None}


def _made(spec: Any, folder: Path, depth: int) -> OutputForm:
    if depth > _DEEPEST:
        raise ConfigError(f"the form is nested more than {_DEEPEST} times", hint=GRAMMAR)
    if isinstance(spec, OutputForm):
        return spec
    if isinstance(spec, str):
        return _named(spec, folder, depth)
    if isinstance(spec, Mapping):
        return _mapping(spec, folder, depth)
    if isinstance(spec, (list, tuple)):
        return _list(spec, folder, depth)
    return _of_type(spec)


def _named(spec: str, folder: Path, depth: int) -> OutputForm:
    word = spec.strip()
    if (optional := _OR_NONE.match(word)) is not None:
        return OrNone(_made(optional[1], folder, depth + 1))
    if word in ("text", "code"):
        return TextForm(word)
    if word == "number":
        return NumberForm()
    if word == "truth":
        return ChoiceForm(_TRUTHS, "truth")
    if word[:1] in ("[", "{"):
        import yaml

        try:
            inner = yaml.load(word, Loader=yaml.BaseLoader)  # noqa: S506  # BaseLoader makes texts only
        except yaml.YAMLError as error:
            raise ConfigError(f"the form {spec!r} cannot be read: {str(error).splitlines()[0]}", hint=GRAMMAR) from None
        return _made(inner, folder, depth + 1)
    raise ConfigError(f"unknown form {spec!r}", hint=GRAMMAR)


def _list(spec: Sequence[Any], folder: Path, depth: int) -> OutputForm:
    if len(spec) == 1:
        if (
            isinstance(spec[0], str)
            and spec[0] not in WORDS
            and not _OR_NONE.match(spec[0])
            and spec[0][:1] not in ("[", "{")
        ):
            raise ConfigError(f"[{spec[0]}] is one choice, and no list of a form", hint=GRAMMAR)
        inner = _made(spec[0], folder, depth + 1)
        return JsonForm([inner.spec], {"type": "array", "items": _schema_within(inner)})
    if len(spec) > 1 and all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in spec):
        words = {str(one).strip(): one.strip() if isinstance(one, str) else one for one in spec}
        if "" in words or len(words) < len(spec):
            raise ConfigError(f"choices must be different words, not {list(spec)!r}", hint=GRAMMAR)
        return ChoiceForm(words, list(words.values()))
    what = "write true and false, or yes and no, in quotes" if any(isinstance(one, bool) for one in spec) else GRAMMAR
    raise ConfigError(f"{list(spec)!r} is no form", hint=what)


def _mapping(spec: Mapping[str, Any], folder: Path, depth: int) -> OutputForm:
    if set(spec) == {"json_schema"}:
        return JsonForm(dict(spec), _schema_at(spec["json_schema"], folder))
    if set(spec) == {"python"}:
        return _of_type(function_at(str(spec["python"])), dict(spec))
    if set(spec) == {"form", "none"}:
        return OrNone(_made(spec["form"], folder, depth + 1))
    if _is_schema(spec):
        return JsonForm({"json_schema": dict(spec)}, spec)
    if not spec or not all(isinstance(name, str) and name for name in spec):
        raise ConfigError("a form with fields needs at least one, each with a name", hint=GRAMMAR)
    fields = {name: _made(part, folder, depth + 1) for name, part in spec.items()}
    schema = {
        "type": "object",
        "properties": {name: _schema_within(form) for name, form in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
        DROP: True,
    }
    return JsonForm({name: form.spec for name, form in fields.items()}, schema)


def _schema_within(form: OutputForm) -> Mapping[str, Any]:
    if isinstance(form, OrNone):
        return {"anyOf": [_schema_within(form.inner), {"type": "null"}]}
    return form.marked_schema if isinstance(form, JsonForm) else form.json_schema()


def _is_schema(spec: Mapping[str, Any]) -> bool:
    """Whether a mapping is a JSON Schema and not a form with fields."""
    if "$schema" in spec or "$defs" in spec or "$ref" in spec:
        return True
    kind = spec.get("type")
    if isinstance(kind, str) and kind in ("object", "array", "string", "integer", "boolean", "null"):
        return True
    return isinstance(spec.get("properties"), Mapping) or any(isinstance(spec.get(one), list) for one in ("anyOf", "oneOf"))


def _schema_at(schema: Any, folder: Path) -> Mapping[str, Any]:
    """Return a schema, read from a JSON or YAML file if its path is given."""
    if isinstance(schema, (str, Path)):
        path = folder / schema
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the JSON Schema {path}: {error}") from None
        import yaml

        try:
            schema = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} is no JSON Schema: {str(error).splitlines()[0]}") from None
    if not isinstance(schema, Mapping):
        raise ConfigError(f"a JSON Schema is a mapping, not {type(schema).__name__}")
    return schema


def _of_type(spec: Any, written: Any = None) -> OutputForm:
    """Return the form of a type that pydantic knows."""
    from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

    simple = {str: "text", int: "number", float: "number", bool: "truth"}
    if isinstance(spec, type) and spec in simple and spec is not int:
        return _named(simple[spec], Path(), 0)
    try:
        adapter = TypeAdapter(spec)
        schema = adapter.json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as error:
        raise ConfigError(f"{spec!r} is no form: {str(error).splitlines()[0]}", hint=GRAMMAR) from None
    name = getattr(spec, "__qualname__", None) or str(spec)
    return JsonForm(written or {"python": f"{getattr(spec, '__module__', '')}:{name}"}, schema, adapter)
