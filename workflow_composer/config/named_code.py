"""Keys of a file that name code or programs, and which files may have them.

They run if a person has named the file by its path, or if it is shipped or lies in the user's own configuration folder. A
file that was found in the working directory by its bare name may have come with a download: its code needs ``--allow-code``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from workflow_composer.config.yaml_source import KeyPath, Problems, SourceText
from workflow_composer.errors import ConfigError

ALLOW_CODE_VARIABLE = "WORKFLOW_COMPOSER_ALLOW_CODE"
"""Environment variable that allows code in files found in the working directory, as ``--allow-code`` does."""

_PYTHON = "python"
_OR_NONE = re.compile(r"\A(.*\S)\s+or\s+none\s*\Z", re.IGNORECASE | re.DOTALL)
_DEEPEST = 32


def code_allowed(environ: Mapping[str, str]) -> bool:
    """Whether the environment allows the code of every file."""
    return environ.get(ALLOW_CODE_VARIABLE, "").strip().lower() in {"1", "true", "yes", "on"}


def named_code(value: Any, path: KeyPath = (), depth: int = 0) -> Iterator[KeyPath]:
    """Yield the keys that name a function or a type of Python: ``python:MODULE:NAME`` or ``{python: MODULE:NAME}``.

    A text may be a form of an answer in YAML's short spelling, and is read as one.

    >>> list(named_code({"by": "python:judges:strict", "accept": ["{python: forms:Variant} or none"], "rate": 0.1}))
    [('by',), ('accept', 0)]
    """
    if depth > _DEEPEST:
        yield path
    elif isinstance(value, Mapping):
        if set(value) == {_PYTHON} and isinstance(value[_PYTHON], str):
            yield (*path, _PYTHON)
            return
        for key, item in value.items():
            yield from named_code(item, (*path, key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from named_code(item, (*path, index), depth + 1)
    elif isinstance(value, str) and _text_names_code(value, depth):
        yield path


def _text_names_code(text: str, depth: int) -> bool:
    word = text.strip()
    if word.partition(":")[0].strip().lower() == _PYTHON and ":" in word:
        return True
    inner = form_in_text(word)
    return inner is not word and next(named_code(inner, (), depth + 1), None) is not None


def form_in_text(text: str) -> Any:
    """Return the form that a text in YAML's short spelling is, without its ``or none``; any other text unchanged."""
    word = text.strip()
    while (optional := _OR_NONE.match(word)) is not None:
        word = optional[1].strip()
    if word[:1] not in ("[", "{"):
        return text
    import yaml

    try:
        return yaml.load(word, Loader=yaml.BaseLoader)  # noqa: S506  # BaseLoader makes texts only
    except (yaml.YAMLError, RecursionError):
        return text  # no form: reported where it is read


def check_code(tree: Mapping[str, Any], problems: Problems, environ: Mapping[str, str]) -> SourceText:
    """Return the source of a profile, as one that a person has named if code is allowed.

    Raises `ProfileError` for each key that names code in a file that was only found.
    """
    source = problems.source
    if not source.found:
        return source
    if code_allowed(environ):
        return replace(source, found=False)
    for section in ("tiers", "routers"):
        for path in named_code(tree.get(section), (section,)):
            refuse(path, problems, "-s")
    for key in ("plugins", "workflows"):
        if tree.get(key):
            refuse((key,), problems, "-s")
    problems.raise_if_any()
    return source


def refuse(path: KeyPath, problems: Problems, option: str) -> None:
    """Report a key that names code, with the remedies."""
    source = problems.source
    place = source.label if source.label.startswith(("/", ".")) else f"./{source.label}"
    problems.add(
        path,
        f"names code to run, but the {source.kind} was only found in the working directory",
        f"if you trust it, name it by its path ({option} {place}), or add --allow-code",
    )


def check_code_of(value: Any, what: str, environ: Mapping[str, str]) -> None:
    """Raise `ConfigError` if data that was read from ``what`` names code, unless the environment allows it."""
    path = None if code_allowed(environ) else next(named_code(value), None)
    if path is not None:
        raise ConfigError(
            f"{what} names code to run ({'.'.join(map(str, path))})",
            hint="if you trust it, add --allow-code",
        )
