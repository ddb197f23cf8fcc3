"""Reads the steps of a workflow's file: each key by itself. What the names in them mean is checked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from workflow_composer.answers.extraction import modules_beside
from workflow_composer.answers.form import OutputForm
from workflow_composer.answers.output_form import output_form
from workflow_composer.config.yaml_source import KeyPath
from workflow_composer.errors import WorkflowComposerError, nearest
from workflow_composer.types import EMPTY
from workflow_composer.workflows.definition.model import (
    AnswerCheck,
    Body,
    CommandBody,
    ForEach,
    HumanBody,
    NestedBody,
    OnError,
    ProgramLimits,
    PromptBody,
    PythonBody,
    Reading,
    Reduce,
    Release,
    Step,
    Until,
    Waits,
    Workflow,
)
from workflow_composer.workflows.definition.readings import read_expression, read_template, read_value
from workflow_composer.workflows.definition.source import FileFaults, Word, as_plain
from workflow_composer.workflows.definition.syntax import SyntaxFault
from workflow_composer.workflows.step_kinds import StepKind

KINDS = ("prompt", "command", "python", "workflow", "human")
_ALL = ("when", "for_each", "at_most", "answer", "on_error", "timeout", "share")
_OVER_ROWS = ("reduce", "group_by", "keep", "fold")
_PROGRAM = ("with", "files", "limits", "trusted", "release", "until", *_OVER_ROWS)
KEYS: Mapping[str, Sequence[str]] = {
    "prompt": (
        *("prompt", "task", "model", "context", "system", "tools", "temperature", "tokens", "retries", "accept"),
        *("release", "until", *_OVER_ROWS, *_ALL),
    ),
    "command": ("command", *_PROGRAM, *_ALL),
    "python": ("python", *_PROGRAM, *_ALL),
    "workflow": ("workflow", "with", "release", *_ALL),
    "human": ("human", "waits", "release", *_ALL),
    "steps": ("steps", "for_each", "at_most", "when", "on_error", "timeout"),
}
EVERY_KEY = tuple(dict.fromkeys(key for keys in KEYS.values() for key in keys))
RESERVED = frozenset(
    {"rows", "parts", "loop", "row", "true", "false", "none", "null", "and", "or", "not", "in", "is", "if", "else"}
)
MOST_ITEMS, MOST_RETRIES, MOST_ROUNDS = 10_000_000, 100, 10_000
_DEEPEST = 4

Nested = Callable[[Word, KeyPath], Workflow | None]
"""Loads another workflow by the path that a step names; reports its faults."""


class StepReader:
    """Reads steps; faults are reported to ``faults``. ``columns_of_row``: ``row["…"]`` names an input.

    ``kinds`` are those of plugins, by name.
    """

    def __init__(
        self,
        faults: FileFaults,
        folder: Any,
        nested: Nested,
        *,
        columns_of_row: bool = True,
        kinds: Mapping[str, StepKind] = EMPTY,
    ) -> None:
        self.faults, self.folder, self.nested, self.columns_of_row = faults, folder, nested, columns_of_row
        self.kinds = kinds
        self._keys = {**KEYS, **{name: (name, *_PROGRAM, *_ALL) for name in kinds}}
        self._named = (*KINDS, *kinds)

    # ---------------------------------------------------------------------------------------------------------- texts

    def template(self, value: Any, path: KeyPath) -> Reading | None:
        """Read a template."""
        return self._reading(read_template, value, path, "a text, in which {{ name }} stands for a value")

    def expression(self, value: Any, path: KeyPath) -> Reading | None:
        """Read an expression."""
        return self._reading(read_expression, value, path, 'an expression, such as kind == "case"')

    def value(self, value: Any, path: KeyPath) -> Reading | None:
        """Read an expression or a text."""
        return self._reading(read_value, value, path, "an expression, or a text with {{ name }}")

    def _reading(self, read: Callable[..., Reading], value: Any, path: KeyPath, what: str) -> Reading | None:
        text = self.faults.text(value, path, what)
        if text is None:
            return None
        if text.quoted and read is read_value and "{{" not in text and "{%" not in text and not text.strip():
            return read_template(text, text.line)
        try:
            return read(str(text), text.line, columns_of_row=self.columns_of_row)
        except SyntaxFault as fault:
            self.faults.at(path, fault.line, fault.message, fault.hint)
            return None

    def values(self, value: Any, path: KeyPath, what: str, read: Any = None) -> Mapping[str, Reading]:
        """Read a mapping of names to expressions or texts."""
        found = {
            name: (read or self.value)(part, (*path, name)) for name, part in self.faults.mapping(value, path, what).items()
        }
        return {name: part for name, part in found.items() if part is not None}

    # ---------------------------------------------------------------------------------------------------------- steps

    def steps(self, tree: Any, path: KeyPath, depth: int = 0) -> dict[str, Step]:
        """Read the steps of a workflow, or those within a step."""
        if depth > _DEEPEST:
            self.faults.add(
                path, f"steps are nested more than {_DEEPEST} times", "put the inner ones into a workflow of their own"
            )
            return {}
        found = self.faults.mapping(tree, path, "steps by name, such as extract: {prompt: …}")
        if not found and not self.faults.source.faulty:
            self.faults.add(path, "found no steps", "write at least one, such as extract: {prompt: …}")
        made = {name: self._step(name, part, (*path, name), depth) for name, part in found.items()}
        return {name: step for name, step in made.items() if step is not None}

    def _step(self, name: str, tree: Any, path: KeyPath, depth: int) -> Step | None:
        self._name(name, path)
        if not isinstance(tree, Mapping):
            self.faults.add(path, "is no mapping", f"a step has exactly one of: {', '.join(self._named)}")
            return None
        kinds = [kind for kind in (*self._named, "steps") if kind in tree]
        if len(kinds) != 1:
            self._no_kind(tree, path, kinds)
            return None
        kind = kinds[0]
        for key in tree:
            if key not in self._keys[kind]:
                used = [other for other in self._keys if key in self._keys[other]]
                found = f"a step with {kind} has no {key!r}" if used else "unknown key"
                hint = f"it belongs to {', '.join(used)}" if used else nearest(key, self._keys[kind])
                self.faults.add((*path, key), found, f"allowed: {', '.join(self._keys[kind])}", hint=hint)
        return self._of_kind(name, kind, tree, path, depth)

    def _no_kind(self, tree: Mapping[str, Any], path: KeyPath, kinds: Sequence[str]) -> None:
        what = f"has {' and '.join(kinds)}" if kinds else "has none of them"
        unknown = [key for key in tree if key not in EVERY_KEY]
        near = "; ".join(filter(None, (nearest(key, (*self._named, "steps")) for key in unknown)))
        if unknown and not kinds and not near:
            near = f"if a plugin offers {' or '.join(map(repr, unknown))}, install it, or name its file (plugins:, --plugin)"
        self.faults.add(path, f"a step has exactly one of {', '.join(self._named)}; this one {what}", hint=near)
        self.faults.only(tree, path, (*EVERY_KEY, *self.kinds))

    def _name(self, name: str, path: KeyPath) -> None:
        if not name.isidentifier() or name.startswith("_"):
            self.faults.add(path, f"{name!r} is no name of a step", "use letters, digits and _, and begin with a letter")
        elif name in RESERVED or name.lower() in ("true", "false", "none"):
            self.faults.add(path, f"the name {name!r} means something else in expressions", "choose another name")

    def _of_kind(self, name: str, kind: str, tree: Mapping[str, Any], path: KeyPath, depth: int) -> Step:
        for_each = self._for_each(tree, path, depth)
        form = self._form(tree.get("answer"), (*path, "answer")) if "answer" in tree else self._usual_form(kind)
        until = self._until(tree, path)
        if for_each is None and until is None and "at_most" in tree and "for_each" not in tree and "until" not in tree:
            self.faults.add((*path, "at_most"), "bounds nothing", "it belongs to for_each or until")
        if for_each is not None and until is not None:
            self.faults.add(
                (*path, "until"), "a step cannot both go over a list and repeat", "put it into `steps` of the for_each"
            )
        if "reduce" in tree and "for_each" in tree:
            self.faults.add(
                (*path, "for_each"), "a step over all rows has no list", "make a further step that reads this one"
            )
        when = self.expression(tree["when"], (*path, "when")) if "when" in tree else None
        return Step(
            name=name,
            line=self.faults.source.line(path) or 1,
            body=self._body(kind, tree, path),
            form=form,
            when=when,
            per_item=when is not None and for_each is not None and for_each.item in when.reads,
            for_each=for_each,
            until=until,
            reduce=self._reduce(tree, path),
            on_error=self._on_error(tree, path, form),
            release=self._release(tree, path, form),
            waits=self._waits(tree["waits"], (*path, "waits"), form) if "waits" in tree else None,
            **self._plain_keys(tree, path),
        )

    def _usual_form(self, kind: str) -> OutputForm | None:
        return self.kinds[kind].form if kind in self.kinds else None

    def _plain_keys(self, tree: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        faults = self.faults
        rules: dict[str, Callable[[Any, KeyPath], Any]] = {
            "task": lambda value, at: faults.text(value, at, "the name of a task"),
            "model": lambda value, at: faults.text(value, at, "the name of a model, role or tier, or a routing string"),
            "temperature": lambda value, at: faults.number(value, at, 0, 2),
            "tokens": lambda value, at: faults.count(value, at, 1, 10_000_000),
            "retries": lambda value, at: faults.count(value, at, 0, MOST_RETRIES),
            "timeout": faults.seconds,
            "trusted": faults.truth,
            "share": faults.truth,
            "limits": self._limits,
            "accept": self._accept,
            "files": lambda value, at: self.values(value, at, "file names with their texts", self.template),
        }
        read = {key: rule(tree[key], (*path, key)) for key, rule in rules.items() if key in tree}
        made = {key: str(value) if isinstance(value, Word) else value for key, value in read.items() if value is not None}
        for name in made.get("files", ()):
            if name.startswith(("/", "~")) or ".." in name.split("/"):
                faults.add((*path, "files", name), f"{name!r} lies outside the program's folder", "give a relative name")
        if "with" in tree:
            made["given"] = self.values(tree["with"], (*path, "with"), "names with expressions, such as {text: note}")
        return made

    # --------------------------------------------------------------------------------------------------------- bodies

    def _body(self, kind: str, tree: Mapping[str, Any], path: KeyPath) -> Body | None:
        here = (*path, kind)
        if kind == "command":
            argv = self.faults.words(tree[kind], here, "a list of the program and its arguments, such as [python, check.py]")
            return CommandBody(argv=argv) if argv else None
        if kind == "workflow":
            named = self.faults.text(tree[kind], here, "the path of a workflow's file")
            workflow = None if named is None else self.nested(named, here)
            return None if workflow is None else NestedBody(workflow=workflow)
        if kind == "python":
            return self._python(tree[kind], here)
        if kind in self.kinds:
            return self._of_plugin(self.kinds[kind], tree, here)
        return None if kind == "steps" else self._question(kind, tree, path)

    def _question(self, kind: str, tree: Mapping[str, Any], path: KeyPath) -> PromptBody | HumanBody | None:
        prompt = self.template(tree[kind], (*path, kind))
        if prompt is None:
            return None
        if not prompt.text.strip():
            self.faults.add((*path, kind), "is empty", "write what is asked, in which {{ name }} stands for a value")
        if kind == "human":
            return HumanBody(prompt=prompt)
        system = self.template(tree["system"], (*path, "system")) if "system" in tree else None
        return PromptBody(prompt=prompt, system=system, context=self._context(tree, path), tools=self._tools(tree, path))

    def _python(self, value: Any, path: KeyPath) -> PythonBody | None:
        target = self.faults.text(value, path, "module:function, such as names:merge")
        if target is None:
            return None
        module, _, function = target.partition(":")
        if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            self.faults.add(path, f"found {str(target)!r}", "allowed: module:function, such as names:merge")
            return None
        return PythonBody(target=str(target))

    def _of_plugin(self, kind: StepKind, tree: Mapping[str, Any], path: KeyPath) -> PythonBody:
        """Read a step of a plugin's kind, and let the plugin check it."""
        settings = as_plain(tree[kind.name])
        if any("{{" in text or "{%" in text for text in _texts_in(settings)):
            remedy = f"give what varies by with: {{NAME: EXPRESSION}}, which {kind.name} gets as NAME"
            self.faults.add(path, "its settings are not filled in", remedy)
        given = tree["with"] if isinstance(tree.get("with"), Mapping) else {}
        made = {} if settings is None else settings
        for key, problem in kind.problems(made, list(given)):
            self.faults.add((*path, key) if key else path, problem)
        return PythonBody(target=kind.target, plugin=kind, settings=made)

    def _context(self, tree: Mapping[str, Any], path: KeyPath) -> tuple[str, ...] | None:
        if "context" not in tree:
            return None
        value = tree["context"]
        return self.faults.words(
            (value,) if isinstance(value, Word) else value, (*path, "context"), "names of context templates"
        )

    def _tools(self, tree: Mapping[str, Any], path: KeyPath) -> tuple[Mapping[str, Any], ...] | None:
        if "tools" not in tree:
            return None
        value = tree["tools"]
        if not isinstance(value, tuple) or not value or not all(isinstance(one, Mapping) for one in value):
            self.faults.add(
                (*path, "tools"), "is no list of tools", "give each as in a request: {type: function, function: {…}}"
            )
            return None
        return tuple(as_plain(value))

    # ----------------------------------------------------------------------------------------------------------- flow

    def _for_each(self, tree: Mapping[str, Any], path: KeyPath, depth: int) -> ForEach | None:
        here = (*path, "for_each")
        if "for_each" not in tree:
            if "steps" in tree:
                self.faults.add((*path, "steps"), "steps within a step need a list to go over", "add for_each: item in list")
            return None
        text = self.faults.text(tree["for_each"], here, "NAME in EXPRESSION, such as v in extract.variants")
        if text is None:
            return None
        item, word, listed = text.partition(" in ")
        item = item.strip()
        if not word or not item.isidentifier() or item.startswith("_") or item in RESERVED:
            self.faults.add(here, f"found {str(text)!r}", "allowed: NAME in EXPRESSION, such as v in extract.variants")
            return None
        items = self.expression(Word.at(listed.strip(), text.line), here)
        steps = self.steps(tree["steps"], (*path, "steps"), depth + 1) if "steps" in tree else EMPTY
        most = (
            self.faults.count(tree["at_most"], (*path, "at_most"), 1, MOST_ITEMS)
            if "at_most" in tree and "until" not in tree
            else None
        )
        return None if items is None else ForEach(item, items, most or 10_000, steps)

    def _until(self, tree: Mapping[str, Any], path: KeyPath) -> Until | None:
        if "until" not in tree:
            return None
        condition = self.expression(tree["until"], (*path, "until"))
        if "at_most" not in tree:
            self.faults.add((*path, "until"), "has no bound", "add at_most: 5, the most rounds")
            return None
        rounds = self.faults.count(tree["at_most"], (*path, "at_most"), 1, MOST_ROUNDS)
        return None if condition is None or rounds is None else Until(condition, rounds)

    def _reduce(self, tree: Mapping[str, Any], path: KeyPath) -> Reduce | None:
        if "reduce" not in tree:
            for key in ("group_by", "keep", "fold"):
                if key in tree:
                    self.faults.add((*path, key), "belongs to a step over all rows", "add reduce: rows")
            return None
        self.faults.one_of(tree["reduce"], (*path, "reduce"), ("rows",))
        group, keep = (self.expression(tree[key], (*path, key)) if key in tree else None for key in ("group_by", "keep"))
        fold = self.template(tree["fold"], (*path, "fold")) if "fold" in tree else None
        if fold is not None and "prompt" not in tree:
            self.faults.add((*path, "fold"), "only a prompt can be folded", "let the program read all rows")
        return Reduce(group, keep, fold)

    # -------------------------------------------------------------------------------------------- answers and trouble

    def _form(self, value: Any, path: KeyPath) -> OutputForm:
        """Read the form of an answer; after a fault, one of which nothing is known."""
        if isinstance(value, Word) and self.faults.text(value, path, "a form, such as text or [yes, no]") is None:
            return output_form({"json_schema": {}})
        try:
            with modules_beside(self.folder):
                return output_form(as_plain(value, as_written=True), folder=self.folder)
        except WorkflowComposerError as error:
            self.faults.at(path, self.faults.source.line(path) or 1, error.message, error.hint)
        except (ImportError, AttributeError, OSError, TypeError, ValueError) as error:
            self.faults.at(path, self.faults.source.line(path) or 1, f"the form cannot be made: {error}")
        return output_form({"json_schema": {}})

    def _on_error(self, tree: Mapping[str, Any], path: KeyPath, form: OutputForm | None) -> OnError:
        value, here = tree.get("on_error"), (*path, "on_error")
        if value is None:
            return OnError()
        if not isinstance(value, Mapping):
            found = self.faults.one_of(value, here, ("row", "skip", "stop"))
            return OnError(found or "row")  # type: ignore[arg-type]  # one of the three
        self.faults.only(value, here, ("default",))
        if "default" not in value:
            return OnError()
        return OnError("default", self._valid(value["default"], (*here, "default"), form))

    def _valid(self, value: Any, path: KeyPath, form: OutputForm | None) -> Any:
        """Return a value as data; a fault if the step's form would not allow it as an answer."""
        from workflow_composer.answers.schema import JsonSchema

        made = as_plain(value)
        if form is None or made is None:
            return made
        schema = JsonSchema(form.json_schema())
        problem = schema.problem(made)
        if problem is not None and isinstance(value, Word) and schema.problem(str(value)) is None:
            return str(value)
        if problem is not None:
            self.faults.add(path, "does not fit the answer's form", problem)
        return made

    def _waits(self, value: Any, path: KeyPath, form: OutputForm | None) -> Waits | None:
        found = self.faults.mapping(value, path, "{at_most: 7d, then: VALUE or fail}")
        self.faults.only(found, path, ("at_most", "then"))
        if "at_most" not in found or "then" not in found:
            self.faults.add(path, "needs at_most and then", "such as {at_most: 7d, then: fail}")
            return None
        longest, then = self.faults.seconds(found["at_most"], (*path, "at_most")), found["then"]
        fails = isinstance(then, Word) and then == "fail" and not then.quoted
        return (
            None if longest is None else Waits(longest, None if fails else self._valid(then, (*path, "then"), form), fails)
        )

    def _limits(self, value: Any, path: KeyPath) -> ProgramLimits:
        found = self.faults.mapping(value, path, "{time: 10s, memory: 512M, network: none}")
        self.faults.only(found, path, ("time", "memory", "network"))
        seconds = self.faults.seconds(found["time"], (*path, "time")) if "time" in found else None
        memory = self.faults.memory(found["memory"], (*path, "memory")) if "memory" in found else None
        network = self.faults.one_of(found["network"], (*path, "network"), ("none", "any")) if "network" in found else None
        usual = ProgramLimits()
        return ProgramLimits(seconds or usual.seconds, memory or usual.memory, network == "any")

    def _accept(self, value: Any, path: KeyPath) -> AnswerCheck | None:
        """Read a check of an answer."""
        found = self.faults.mapping(value, path, "{command: […]}, {python: module:function} or {judge: MODEL, ask: …}")
        kinds = [kind for kind in ("command", "python", "judge") if kind in found]
        if len(kinds) != 1:
            self.faults.add(
                path, "a check has exactly one of command, python, judge", f"found: {', '.join(found) or 'nothing'}"
            )
            return None
        keys = ("judge", "ask") if kinds[0] == "judge" else (kinds[0], "files", "with", "limits")
        self.faults.only(found, path, keys)
        if kinds[0] == "judge":
            return self._judge(found, path)
        body = self._body(kinds[0], found, path)
        files = (
            self.values(found["files"], (*path, "files"), "file names with their texts", self.template)
            if "files" in found
            else EMPTY
        )
        given = self.values(found["with"], (*path, "with"), "names with expressions") if "with" in found else EMPTY
        limits = self._limits(found["limits"], (*path, "limits")) if "limits" in found else ProgramLimits()
        if not isinstance(body, (CommandBody, PythonBody)):
            return None
        return AnswerCheck(body=body, files=files, given=given, limits=limits)

    def _judge(self, found: Mapping[str, Any], path: KeyPath) -> AnswerCheck | None:
        model = self.faults.text(found["judge"], (*path, "judge"), "the name of a model")
        if "ask" not in found:
            self.faults.add(path, "a judge needs a question", "add ask: Is this right? {{ answer }}")
            return None
        ask = self.template(found["ask"], (*path, "ask"))
        return None if ask is None or model is None else AnswerCheck(body=PromptBody(prompt=ask), model=str(model))

    def _release(self, tree: Mapping[str, Any], path: KeyPath, form: OutputForm | None) -> Release | None:
        if "release" not in tree:
            return None
        value, here = tree["release"], (*path, "release")
        if isinstance(value, Word):
            how = self.faults.one_of(value, here, ("choices", "human"))
            return None if how is None else Release(how=how)  # type: ignore[arg-type]  # one of the two
        found = self.faults.mapping(value, here, "choices, human, {check: …} or {declared: why}")
        self.faults.only(found, here, ("check", "declared"))
        if len(found) != 1:
            self.faults.add(here, "a release needs one reason", "write choices, human, {check: …} or {declared: why}")
            return None
        if "check" in found:
            check = self._accept(found["check"], (*here, "check"))
            return None if check is None else Release(how="check", check=check)
        why = self.faults.text(found.get("declared"), (*here, "declared"), "the reason, in words") if found else None
        if found and (why is None or not why.strip()):
            self.faults.add(here, "a release needs a reason", "write {declared: why}, or release by a check")
        return None if why is None else Release(how="declared", why=str(why))


def _texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)
