"""Kinds of workflow steps that plugins offer: a function that runs in a process of its own, and what is checked at load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workflow_composer.errors import PluginError, WorkflowComposerError, nearest
from workflow_composer.types import EMPTY

if TYPE_CHECKING:
    from workflow_composer.answers.form import OutputForm

StepCheckFunction = Callable[[Any, Sequence[str]], str | Mapping[str, str] | None]
"""``(settings, names of with) -> what is wrong``: a text, or texts by keys of the settings; None or nothing: all is well."""

Modules = Mapping[str, tuple[str, bool, bytes]]
"""Modules by name: path, whether it is a package, and source text."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, eq=False)
class StepKind:
    """A kind of step. ``run`` is called as ``run(settings, **given)`` in a process of its own, and returns JSON data.

    ``settings`` is what the workflow's file says under the kind's name, ``given`` the values of the step's ``with``.
    ``form`` is that of its answers where the file has no ``answer``. ``modules`` are those that run, and ``digest`` is
    what changes with their code, wherever it lies; empty: whatever is installed when it runs.
    """

    name: str
    plugin: str
    run: Callable[..., Any]
    check: StepCheckFunction | None = None
    form: OutputForm | None = None
    modules: Modules = field(default_factory=lambda: EMPTY)
    digest: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        run: Any,
        *,
        plugin: str,
        modules: Modules,
        digest: str,
        check: Any = None,
        answer: Any = None,
    ) -> StepKind:
        """Return the kind that a plugin registers. Raises `PluginError` if it could never run."""
        where = f"plugin {plugin!r} registers the kind of step {name!r}"
        place = getattr(run, "__qualname__", "<")
        if "<" in place or not getattr(run, "__module__", None) or inspect.isclass(run):
            hint = "it runs in a process of its own, which finds it by name: write def at the top level of a module"
            raise PluginError(f"{where} with no function of a module's top level", hint=hint)
        try:
            inspect.signature(run).bind_partial(None)
        except TypeError:
            raise PluginError(
                f"{where}, whose function takes no settings", hint=f"write def {place}(settings, ...)"
            ) from None
        except ValueError:
            pass  # compiled: its parameters are not known
        if check is not None and not callable(check):
            raise PluginError(f"{where} with a check that is no function", hint="write def check(settings, given)")
        if run.__module__ not in modules:  # the plugin offers a function of somebody else's
            modules, digest = EMPTY, ""
        return cls(name, plugin, run, check, _form(where, answer), modules, digest)

    @property
    def target(self) -> str:
        """Where the function is, as ``module:name``."""
        return f"{self.run.__module__}:{self.run.__qualname__}"

    def problems(self, settings: Any, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return what is wrong with a step of a file, as pairs of a key of the settings (empty: all of them) and a text."""
        found = [("", problem) for problem in self._of_names(given)]
        if self.check is None:
            return found
        try:
            told = self.check(settings, tuple(given))
        except WorkflowComposerError as error:
            told = error.message + (f"; {error.hint}" if error.hint else "")
        except ValueError as error:
            told = str(error) or "its settings are wrong"
        except Exception as error:  # noqa: BLE001  # a plugin's fault must be told as one of the file's, with its place
            told = f"plugin {self.plugin!r} could not check it: {type(error).__name__}: {error}"
        if isinstance(told, Mapping):
            return found + [(str(key), str(problem)) for key, problem in told.items()]
        return found + ([("", told if isinstance(told, str) else f"its check returned {told!r}")] if told else [])

    def _of_names(self, given: Sequence[str]) -> list[str]:
        """Say which names of ``with`` the function does not take, and which it lacks."""
        try:
            first, *rest = inspect.signature(self.run).parameters.values()
        except ValueError:
            return []
        named = {one.name: one for one in rest if one.kind in _NAMED}
        any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in (first, *rest))
        listed = f"it takes: {', '.join(named) or 'nothing'}"
        told = [
            f"{self.name} takes no {name!r} in with; {nearest(name, named) or listed}"
            for name in given
            if name not in named and not any_name
        ]
        lacking = [name for name, one in named.items() if one.default is one.empty and name not in given]
        return told + [f"{self.name} needs {name!r}; add it to with: {{{name}: …}}" for name in lacking]


def _form(where: str, answer: Any) -> OutputForm | None:
    if answer is None:
        return None
    from workflow_composer.answers.output_form import output_form

    try:
        return output_form(answer)
    except WorkflowComposerError as error:
        raise PluginError(f"{where} with an answer of no form: {error.message}", hint=error.hint) from None
