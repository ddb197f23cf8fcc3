"""A conversation at a terminal: ``--strategy NAME`` without a command.

Every question is sent with what was said before. What was said under a profile that keeps data local is never sent under
one that may use the cloud: a switch to such a profile begins a new conversation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.answering import show_stream
from workflow_composer.cli.line_editor import LineEditor, history_file
from workflow_composer.cli.output import cost_text, dollars, percent, printable
from workflow_composer.cli.state import State
from workflow_composer.errors import WorkflowComposerError, nearest

if TYPE_CHECKING:
    from workflow_composer.config.strategy import ModelSpec, StrategyConfig
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.plan import Plan
    from workflow_composer.runtime.resources import OrchestratorStatus
    from workflow_composer.types import Attempt, EndpointStatus, LLMResponse, Message

_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Told:
    """How the last question went: its plan if a router had one, and the answer or the error."""

    plan: Plan | None
    response: LLMResponse | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command of the prompt: what it does, its argument as shown by ``/help`` (empty: none), and its meaning."""

    do: Callable[[Chat, str], None]
    argument: str
    meaning: str


def chat(state: State) -> None:
    """Talk to the strategy until the end of the input (Ctrl-D). Raises `ConfigError` for a profile that is invalid."""
    with state.orchestrator() as orchestrator:
        talk = Chat(orchestrator, state.environ, debug=state.debug)
        talk.run(LineEditor(history_file(state.environ), talk.completions))


class Chat:
    """A conversation under an orchestrator's strategy. ``debug``: errors come with a traceback."""

    def __init__(self, orchestrator: ModelOrchestrator, environ: Mapping[str, str], *, debug: bool = False) -> None:
        self.orchestrator = orchestrator
        self.messages: list[Message] = []
        self.model: str | None = None
        self.told: Told | None = None
        self._environ = environ
        self._debug = debug
        self._over = False

    def run(self, lines: LineEditor) -> None:
        """Read and answer until the end of the input."""
        click.echo("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.")
        self._tell_single()
        while not self._over:
            try:
                self.hear(lines.read(f"{self.orchestrator.strategy}> "))
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D ends)")
            except UnicodeDecodeError as error:
                click.echo(f"error: not UTF-8: byte {error.start}; set the terminal to UTF-8")

    def hear(self, line: str) -> None:
        """Answer a line, or do what its command says; errors are printed."""
        text = line.strip()
        if not text:
            return
        found = _COMMAND.fullmatch(text) if line.startswith("/") else None
        try:
            if found is None:
                self._ask(text)
            elif (command := COMMANDS.get(found[1].lower())) is not None:
                command.do(self, (found[2] or "").strip())
            else:
                near = nearest(f"/{found[1]}", (f"/{name}" for name in COMMANDS)) or "/help lists the commands"
                click.echo(f"error: no such command: /{found[1]}; {near} (a space before it makes it a question)")
        except KeyboardInterrupt:
            click.echo("(stopped)")
        except Exception as error:  # noqa: BLE001  # the conversation goes on after any error
            self._report(error)

    def completions(self, text: str) -> Iterator[str]:
        """Yield the ways to complete a line: commands, and the names that they take."""
        name, space, begun = text.partition(" ")
        if not space:
            yield from (f"/{command}" for command in COMMANDS if text and f"/{command}".startswith(text))
        elif name == "/strategy":
            yield from (f"{name} {known}" for known in _profiles() if known.startswith(begun))
        elif name == "/model":
            yield from (
                f"{name} {known}" for known in self.orchestrator.status(probe=False).models if known.startswith(begun)
            )

    # ---------------------------------------------------------------------------------------------------------- asking

    def _ask(self, text: str) -> None:
        text.encode()  # a lone surrogate: half a character, which no server could read
        asked = [*self._said(), {"role": "user", "content": text}]
        heard: list[str] = []
        plan = None
        try:
            with self.orchestrator.stream(asked, **self._fields()) as stream:
                try:
                    show_stream(stream, heard.append)
                finally:
                    plan = stream.plan
            response = stream.response
            assert response is not None  # a stream that ends without an error has one
            self.told = Told(plan, response)
            heard = [response.text]
            self._print_foot(response)
        except BaseException as error:
            self.told = Told(plan, error=error)
            raise
        finally:
            if said := "".join(heard):
                self.messages = [*asked, {"role": "assistant", "content": said}]

    def _said(self) -> list[Message]:
        """Return what is sent with the next question of what was said before."""
        return [] if _reads_single_questions(self.orchestrator.config) else self.messages

    def _fields(self) -> dict[str, Any]:
        return {} if self.model is None else {"model": self.model}

    def _tell_single(self) -> None:
        if _reads_single_questions(self.orchestrator.config):
            click.echo("Each question stands alone: the models that come with the package were trained on single questions.")

    def _print_foot(self, response: LLMResponse) -> None:
        if not response.text.strip():
            thought = bool(response.samples and response.samples[0].reasoning)
            click.echo(f"(the answer is empty{': the model only thought' if thought else ''})")
        if response.warning:
            click.echo(f"warning: {printable(response.warning)}")
        made, seconds = response.decision, response.latency_ms / 1000.0
        foot = f"[{made.candidate}, {response.usage.total_tokens} tokens, {_cost(response)}, {seconds:.1f} s; /why]"
        click.echo(click.style(foot, dim=True))

    def _report(self, error: Exception) -> None:
        if self._debug:
            import traceback

            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        if not isinstance(error, WorkflowComposerError):
            click.echo(f"error: {_one_line(f'{type(error).__name__}: {error}')}")
            return
        for line in getattr(error, "problems", ()) or [error.message]:
            click.echo(f"error: {_one_line(line)}")
        if error.hint:
            click.echo(f"hint: {_one_line(error.hint)}")

    # -------------------------------------------------------------------------------------------------------- commands

    def show_help(self, _: str) -> None:
        """List the commands."""
        named = ((f"/{name} {command.argument}".rstrip(), command.meaning) for name, command in COMMANDS.items())
        _print_columns(named)
        click.echo('Several lines: paste them, or begin and end with a line of """. Tab completes, the arrow keys recall.')

    def switch(self, name: str) -> None:
        """Switch the strategy, or list the profiles."""
        from workflow_composer.runtime.destinations import where_prompts_go

        current = self.orchestrator.strategy
        if not name:
            _print_columns((known, "in use" if known == current else "") for known in _profiles())
            return
        kept_local = not self.orchestrator.config.allow_cloud
        self.orchestrator.switch_strategy(name)
        self.model = None
        config = self.orchestrator.config
        click.echo(where_prompts_go(config, self._environ))
        if self.messages and kept_local and config.allow_cloud:
            self.messages = []
            click.echo("a new conversation begins, because the last one was to stay on your own machines")
        self._tell_single()

    def why(self, _: str) -> None:
        """Show how the last answer came about, or why there is none."""
        if self.told is None:
            click.echo("nothing was asked yet")
            return
        told = self.told
        rows = list(_of_plan(told.plan))
        if told.response is not None:
            rows += _of_response(told.response)
        attempts = told.response.attempts if told.response is not None else getattr(told.error, "attempts", ())
        rows += [("call", _call(attempt)) for attempt in attempts]
        if told.error is not None:
            stopped = isinstance(told.error, KeyboardInterrupt)
            rows.append(
                ("answer", "stopped by Ctrl-C" if stopped else f"none: {getattr(told.error, 'summary', told.error)}")
            )
        _print_columns(rows)

    def route(self, text: str) -> None:
        """Show where a question would go: this one, or the last one."""
        from workflow_composer.cli.commands.route import print_plan, servers_of

        if not text and not self.messages:
            click.echo("give a question: /route QUESTION")
            return
        prompt = [*self._said(), {"role": "user", "content": text}] if text else self.messages
        request, plan = self.orchestrator.prepare(prompt, **self._fields())
        servers = servers_of(plan, self.orchestrator.config, self._environ)
        print_plan(self.orchestrator.strategy, request, plan, servers)

    def models(self, _: str) -> None:
        """List the models, where they run, and whether they can be reached."""
        found = self.orchestrator.status()
        specs = self.orchestrator.config.backend_specs()
        _print_columns((name, *_model(specs[name], found)) for name in found.models if name in specs)
        if self.model is not None:
            click.echo(f"/model {self.model} is in use; /model alone returns to the strategy's choice")

    def use(self, name: str) -> None:
        """Use one model, tier or routing string instead of the strategy's choice."""
        if name:
            self.orchestrator.plan("", model=name)
        self.model = name or None
        click.echo(f"asking {name}" if name else "the strategy chooses the model")

    def forget(self, _: str) -> None:
        """Begin a new conversation."""
        self.messages = []
        click.echo("a new conversation")

    def leave(self, _: str) -> None:
        """End."""
        self._over = True


COMMANDS: Mapping[str, SlashCommand] = {
    "help": SlashCommand(Chat.show_help, "", "show this list"),
    "strategy": SlashCommand(Chat.switch, "[NAME]", "switch to another strategy, or list them"),
    "why": SlashCommand(Chat.why, "", "why this answer: decision, cost, calls"),
    "route": SlashCommand(Chat.route, "[QUESTION]", "where a question would go; sends nothing"),
    "models": SlashCommand(Chat.models, "", "list the models and whether they can be reached"),
    "model": SlashCommand(Chat.use, "[NAME]", "ask this model, tier or routing string; alone: the strategy chooses"),
    "new": SlashCommand(Chat.forget, "", "begin a new conversation"),
    "quit": SlashCommand(Chat.leave, "", "end, as Ctrl-D does"),
}


# ------------------------------------------------------------------------------------------------------------- in words


def _reads_single_questions(config: StrategyConfig) -> bool:
    """Whether all models are checkpoints of the package, which take earlier questions for a part of the last one."""
    specs = config.backend_specs().values()
    return bool(specs) and all(
        spec.backend == "embedded" and "/" not in (spec.path or spec.model or spec.name) for spec in specs
    )


def _print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of texts in columns; the last one may be of any length."""
    texts = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True))
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def _one_line(text: str) -> str:
    return _CONTROLS.sub("", " ".join(text.split()))


def _profiles() -> list[str]:
    from workflow_composer.config.strategy import profiles

    return sorted(profiles())


def _cost(response: LLMResponse) -> str:
    cost = cost_text(response.cost, not response.cost_known).partition(" (")[0]
    return f"{cost} (estimated)" if response.cost_estimated else cost


def _of_plan(plan: Plan | None) -> Iterator[tuple[str, str]]:
    if plan is None:
        yield "plan", "none"
        return
    from workflow_composer.runtime.decision_text import describe

    yield "router", plan.router
    yield "reason", plan.reason
    yield "plan", describe(plan)
    yield from (("left out", reason) for reason in plan.left_out)
    yield from (("note", note) for note in plan.notes)


def _of_response(response: LLMResponse) -> Iterator[tuple[str, str]]:
    made, usage = response.decision, response.usage
    for result in response.climbed:
        verdict = result.verdict
        votes = ", ".join(f"{answer} x{count}" for answer, count in verdict.votes[:4])
        found = "accepted" if verdict.accepted else "not accepted"
        yield f"tier {result.tier + 1}", "; ".join(filter(None, [f"{result.candidate}: {found}", verdict.reason, votes]))
    place = "local" if made.local else "cloud"
    model = "" if made.model == made.candidate else f" ({made.model})"
    yield "answer", f"by {made.candidate}{model}, {place}{'' if response.accepted else '; not accepted, but the last one'}"
    if response.confidence is not None:
        yield "confidence", percent(response.confidence)
    yield "tokens", f"{usage.prompt_tokens} prompt, {usage.completion_tokens} completion"
    yield "cost", _cost(response)
    yield "time", f"{response.latency_ms / 1000.0:.2f} s, {response.overhead_ms:.1f} ms of it in the orchestrator"
    yield "request", response.request_id


def _call(attempt: Attempt) -> str:
    cost = dollars(attempt.cost) if attempt.priced else "cost unknown"
    return f"{attempt.name}: {attempt.error or 'ok'}, {attempt.latency_ms:.0f} ms, {cost}"


def _model(spec: ModelSpec, found: OrchestratorStatus) -> tuple[str, str]:
    resources = found.resources
    if not spec.local:
        keyed = resources.cloud_apis.get(spec.name)
        return "cloud", "" if keyed is None else "key set" if keyed else f"no key: set {spec.api_key_env}"
    server: EndpointStatus | None = resources.endpoints.get(spec.endpoint or spec.name)
    if server is None:
        return "local", "in this process" if spec.name in found.in_process else ""
    return "local", f"{'up' if server.healthy else 'down'}: {server.detail or server.url}"
