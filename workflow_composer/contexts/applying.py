"""Prepends a context to a request.

A request has one system message: the context, then the caller's own system text. Many chat templates accept a system
message only in first position, and drop or reject a second one. The prefix is byte-identical for all requests with the same
set of templates, in whatever order they are given, so a server with prefix caching computes it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow_composer.contexts.library import Library, Template
from workflow_composer.errors import ContextError
from workflow_composer.types import ANY_TASK, LLMRequest, Message

BETWEEN = "\n\n"
"""Separates templates from each other and from the caller's system message."""

_SYSTEM = ("system", "developer")
_MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class Context:
    """Combined templates, sorted by name: their ``pins`` and their ``text``; both are empty if there are none."""

    pins: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, templates: Iterable[Template]) -> Context:
        """Combine templates, sorted by name, each once.

        Raises `ContextError` if two different templates have the same name.
        """
        found: dict[str, Template] = {}
        for template in templates:
            other = found.setdefault(template.name, template)
            if other.digest != template.digest:
                raise ContextError(
                    f"two different contexts are named {template.name!r}: {other.source} and {template.source}",
                    hint="use only one of them, or rename one",
                )
        ordered = [found[name] for name in sorted(found)]
        return cls(tuple(template.pin for template in ordered), BETWEEN.join(template.text for template in ordered))

    def system(self, text: str | None) -> str | None:
        """Return the system message for a request whose own system message is ``text``."""
        return BETWEEN.join(part for part in (self.text, text) if part) or None

    def applied(self, request: LLMRequest) -> LLMRequest:
        """Return the request with the text prepended, unless it is already there, and its ``context`` pinned."""
        if not self.pins:
            return request
        return replace(request, messages=_first(self, request.messages), context=self.pins)


NONE = Context((), "")


class Contexts:
    """The contexts of a profile's tasks and of requests. Each template is read once."""

    def __init__(self, library: Library, tasks: Mapping[str, Context] | None = None) -> None:
        self._library = library
        self.tasks = dict(tasks or {})
        self._known: dict[tuple[str, ...], Context] = {}

    @classmethod
    def of(
        cls, tasks: Mapping[str, tuple[str, ...]], *, base: Path = Path(), environ: Mapping[str, str] | None = None
    ) -> Contexts:
        """Read the contexts of a profile's ``task_contexts``; paths are relative to ``base``.

        Raises `ContextError` with the faulty ``task``.
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
        """Return the request's own context (none if it is empty), else the context of its task.

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
        """Return the request as it will be sent. Embedding requests get no context. Raises `ContextError`."""
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
