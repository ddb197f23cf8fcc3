"""Translates pydantic's errors into the terms of a profile: the value found and the values allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from workflow_composer.config.normalize import MODEL_KEYS
from workflow_composer.config.profile_models import ModelSpec
from workflow_composer.config.yaml_source import KeyPath, Problems, one_of, shown
from workflow_composer.errors import nearest

_KINDS = {
    "string_type": "text; in quotes if YAML reads it as something else",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "the name of an environment variable in capitals, such as DEEPSEEK_API_KEY",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than_equal": ("le", "of at most"),
}


def add_faults(error: ValidationError, model: type[BaseModel], tree: Mapping[str, Any], problems: Problems) -> None:
    """Add every error of ``error`` to ``problems``, one line each."""
    for detail in error.errors(include_url=False, include_input=False, include_context=True):
        path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
        if path in problems.source.faulty:
            continue
        if detail["type"] == "extra_forbidden":
            _unknown_key(path, model, problems)
        elif detail["type"] == "missing":
            problems.add(path[:-1] or path, f"the key {path[-1]!r} is missing", _meaning(path, model))
        elif detail["type"] == "literal_error":
            found = _at(tree, path)
            allowed = _words(path, model)
            problems.add(path, shown(found, path, None), one_of(allowed), hint=nearest(str(found), allowed))
        else:
            written = problems.source.written.get(path) if detail["type"] == "string_type" else None
            problems.add(path, shown(_at(tree, path), path, written), _allowed(detail))


def _unknown_key(path: KeyPath, model: type[BaseModel], problems: Problems) -> None:
    owner = _owner(path, model)
    # The name of a part is its key in the profile.
    keys = (*MODEL_KEYS, "api_key") if owner is ModelSpec else tuple(key for key in owner.model_fields if key != "name")
    problems.add(path, "unknown key", one_of(keys, limit=25), hint=nearest(str(path[-1]), keys))


def _meaning(path: KeyPath, model: type[BaseModel]) -> str:
    field = _owner(path, model).model_fields.get(str(path[-1]))
    return (field.description or "").rstrip(".").replace("`", "") if field else ""


def _words(path: KeyPath, model: type[BaseModel]) -> list[str]:
    """Return the words allowed at ``path``, or in the list at ``path``."""
    while isinstance(path[-1], int):
        path = path[:-1]
    return _literals(_owner(path, model).model_fields[str(path[-1])].annotation)


def _literals(annotation: Any) -> list[str]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(word) for word in arguments]
    return [word for argument in arguments for word in _literals(argument)]


def _owner(path: KeyPath, model: type[BaseModel]) -> type[BaseModel]:
    """Return the part that has, or should have, the last key of ``path``."""
    owner, keys = model, list(path[:-1])
    while keys:
        field = owner.model_fields.get(str(keys.pop(0)))
        parts = _parts(field.annotation) if field else []
        if not field or not parts:
            break
        owner = parts[0]
        if field.annotation is not owner:
            keys = keys[1:]  # a mapping or a list of parts: this key names one of them
    return owner


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """Return the models within a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts(argument)]


def _allowed(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"allowed: a number {words} {detail['ctx'][key]:g}"
    return f"allowed: {_KINDS[kind]}" if kind in _KINDS else detail["msg"]


def _at(tree: Any, path: KeyPath) -> Any:
    """Return the value at ``path`` in the tree as it was read; None if there is none."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
