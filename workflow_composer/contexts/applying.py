"""Putting a context first in a request.

There is one system message, the context first in it and the caller's own words after it: many chat templates know a
system message only in the first place, and drop or refuse a second one. What stands first is byte-identical for all requests
with the same set of templates, however the set was written down, so a server with prefix caching computes it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow_composer.contexts.library import Library
from workflow_composer.contexts.template import Template
from workflow_composer.errors import ContextError
from workflow_composer.types import ANY_TASK, LLMRequest, Message

BETWEEN = "\n\n"
"""Between two templates, and between the last of them and the caller's system message."""

_SYSTEM = ("system", "developer")
_MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class Context:
    """Templates in their fixed order, combined. ``pins`` say which, ``text`` is what stands first; both empty for none."""

    pins: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, templates: Iterable[Template]) -> Context:
        """Combine templates, in the order of their names, each once.

        Raises `ContextError` where two different ones have the same name.
        """
        found: dict[str, Template] = {}
        for template in templates:
            other = found.setdefault(template.name, template)
            if other.digest != template.digest:
                raise ContextError(
                    f"two different contexts are named {template.name!r}: {other.source} and {template.source}",
                    hint="name one of them, or rename one",
                )
        ordered = [found[name] for name in sorted(found)]
        return cls(tuple(template.pin for template in ordered), BETWEEN.join(template.text for template in ordered))

    def system(self, text: str | None) -> str | None:
        """The system message of a request that has this context, and whose own system message is ``text``."""
        return BETWEEN.join(part for part in (self.text, text) if part) or None

    def applied(self, request: LLMRequest) -> LLMRequest:
        """The request with the text first, its ``context`` pinned; unchanged where it begins with it already."""
        if not self.pins:
            return request
        return replace(request, messages=_first(self, request.messages), context=self.pins)


NONE = Context((), "")


class Contexts:
    """The contexts that a profile's tasks have, and those that requests name. Templates are read once."""

    def __init__(self, library: Library, tasks: Mapping[str, Context] | None = None) -> None:
        self._library = library
        self.tasks = dict(tasks or {})
        self._known: dict[tuple[str, ...], Context] = {}

    @classmethod
    def of(
        cls, tasks: Mapping[str, tuple[str, ...]], *, base: Path = Path(), environ: Mapping[str, str] | None = None
    ) -> Contexts:
        """For a profile's ``task_contexts``, in which paths are relative to ``base``.

        Raises `ContextError`, its ``task`` naming the one at fault.
        """
        of_profile, found = Library(base=base, environ=environ), {}
        for task, references in tasks.items():
            try:
                found[task] = Context.of(map(of_profile.get, references))
            except ContextError as error:
                error.task = task
                raise
        return cls(Library(environ=environ), found)

    def of_request(self, context: str | Iterable[str] | None, task: str) -> Context:
        """What a request has first: its own context (none at all where that is empty), else its task's.

        Raises `ContextError`.
        """
        if context is None:
            return self.tasks.get(task, self.tasks.get(ANY_TASK, NONE))
        references = (context,) if isinstance(context, str) else tuple(context)
        found = self._known.get(references)
        if found is None:
            found = Context.of(map(self._library.get, references))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[references] = found
        return found

    def applied(self, request: LLMRequest) -> LLMRequest:
        """The request as it will be sent. Vectors are made of the caller's text alone. Raises `ContextError`."""
        if request.kind != "chat" or (request.context is None and not self.tasks):
            return request
        return self.of_request(request.context, request.task_type).applied(request)


def _first(context: Context, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    own = messages[0] if messages else {}
    content = own.get("content") or ""
    if own.get("role") not in _SYSTEM or not isinstance(content, (str, list, tuple)):
        return ({"role": "system", "content": context.text}, *messages)
    if _begins(content, context.text):
        return messages
    whole: Any = context.system(content) if isinstance(content, str) else [_part(context.text), *content]
    return ({**own, "content": whole}, *messages[1:])


def _begins(content: Any, text: str) -> bool:
    if isinstance(content, str):
        return content == text or content.startswith(text + BETWEEN)
    return bool(content) and content[0] == _part(text)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
