"""The run behind ``record``: questions of data sets, asked of every tier, appended to a recording as they are answered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.backends.recordings import Recorded
from workflow_composer.batch.locking import open_own, unwritable
from workflow_composer.cli.batch import Batch, Record, Tally, graded
from workflow_composer.cli.decisions import DecisionLog
from workflow_composer.cli.interrupt import Stopped
from workflow_composer.cli.journal import OTHER
from workflow_composer.cli.output import dollars, percent, print_json
from workflow_composer.cli.progress import progress_for
from workflow_composer.cli.rows import Row
from workflow_composer.cli.state import State
from workflow_composer.cli.unread import ENDING, tell_unread
from workflow_composer.errors import ConfigError, InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.storage.lines import encoded

if TYPE_CHECKING:
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.types import LLMResponse, TokenLogprob

SOME_FAILED = 1
_LEAST = -9999.0
"""What servers write for minus infinity, which JSON has no word for."""


class Recorder:
    """One ``record``; the options are those of the command."""

    def __init__(self, state: State, **options: Any) -> None:
        self._state = state
        self._options = options
        self._output: Path = options["output"]
        self._done: set[bytes] = set()
        self._first_error = ""

    def run(self) -> int:
        """Record what is not recorded yet; the exit code."""
        self._state.log = log = DecisionLog()
        with self._appending() as file:
            orchestrator = self._open()
            try:
                rows = self._rows(self._tiers(orchestrator))
            except BaseException:
                orchestrator.close()
                raise
            todo = [row for row in rows if _key(row.model, row.prompt) not in self._done]
            tally = Tally(len(rows), len(rows) - len(todo), len(rows) - len(todo))
            try:
                with log, progress_for(tally) as progress:
                    batch = _Answers(orchestrator, tally, self._writer(file), progress, **self._fields())
                    batch.run(iter(todo), self._options["in_flight"])
            except (KeyboardInterrupt, Stopped):
                click.echo(f"{tally.done} of {tally.total} answers recorded; run the same command again to go on", err=True)
                raise
        return self._sum_up(tally)

    def _open(self) -> ModelOrchestrator:
        """One that asks each model by its name; other routers may want the certificate that is yet to be made."""
        from workflow_composer.orchestrator import ModelOrchestrator

        state = self._state
        config = state.profile()
        if config is None:
            return state.open(state, None)
        return ModelOrchestrator(config.replaced(routers=["provider"]), environ=state.environ, log=state.log)

    def _tiers(self, orchestrator: ModelOrchestrator) -> tuple[str, ...]:
        config = orchestrator.config
        tiers: tuple[str, ...] = self._options["tiers"] or tuple(config.tiers)
        if not tiers:
            raise ConfigError(f"profile {config.profile_name!r} has no tiers", hint="add tiers to it, or name --tiers")
        for tier in tiers:
            orchestrator.plan("?", model=tier)  # what cannot run is an error before anything is paid for
        return tiers

    def _rows(self, tiers: tuple[str, ...]) -> list[Row]:
        """Every question for every tier, each once. Raises `InputError` where a question has no label."""
        from workflow_composer.batch.datasets import find

        first, limit = self._options["skip"], self._options["limit"]
        found: list[Row] = []
        seen: set[str] = set()
        for name in self._options["datasets"]:
            for row in islice(find(name, self._options["data_dir"]).rows(), first, None if limit is None else first + limit):
                if row.label is None:
                    hint = "a recording that is learned from must say what is right: name a data set with answers"
                    raise InputError(f"{name}: row {row.row} has no label", hint=hint)
                if row.question.strip() not in seen:
                    seen.add(row.question.strip())
                    found += [Row(row.row, row.row, "", row.question, row.id, None, tier, row.label) for tier in tiers]
        if not found:
            raise InputError("there are no rows to record", hint="lower --skip")
        return found

    def _fields(self) -> dict[str, Any]:
        options = self._options
        fields = {name: options[name] for name in ("system", "max_tokens", "timeout") if options[name] is not None}
        if options["contexts"]:
            fields["context"] = options["contexts"]
        fields["temperature"] = options["temperature"]
        if not options["no_logprobs"]:
            fields |= {"logprobs": True, "top_logprobs": options["top_logprobs"]}
        return fields

    # -------------------------------------------------------------------------------------------------- the recording

    @contextmanager
    def _appending(self) -> Iterator[OwnFile]:
        """The recording, locked, behind its last whole line; what it holds already is remembered."""
        file = open_own(self._output, other=OTHER)
        try:
            whole = 0
            with self._output.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):  # a run was killed while it wrote
                        break
                    whole += len(line)
                    self._remember(line, number)
            file.cut(whole)
            yield file
        finally:
            file.close()

    def _remember(self, line: bytes, number: int) -> None:
        try:
            recorded = Recorded.parse(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self._output}:{number}: {error}", hint="name another --output, or take the line out"
            ) from None
        self._done.add(_key(recorded.model, recorded.question))

    def _writer(self, file: OwnFile) -> Any:
        def write(record: Record) -> None:
            if "error" in record:
                self._first_error = self._first_error or record["error"]["message"]
                return
            try:
                file.append(encoded(record["recorded"]))
            except OSError as error:
                raise unwritable(self._output, error, other=OTHER) from error

        return write

    def _sum_up(self, tally: Tally) -> int:
        found = {
            "recording": str(self._output),
            "answers": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "first_error": self._first_error or None,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": tally.cost,
            "seconds": round(tally.seconds, 3),
        }
        if self._state.json:
            print_json(found)
        else:
            earlier = f" ({tally.earlier} before)" if tally.earlier else ""
            accuracy = "" if tally.accuracy is None else f", accuracy {percent(tally.accuracy)}"
            parts = f"{tally.answered} answers{earlier}, {tally.errors} errors{accuracy}, cost {dollars(tally.cost)}"
            click.echo(f"{self._output}: {parts}, {tally.seconds:.1f} s", err=True)
            tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
            if tally.errors:
                click.echo(f"the first error: {' '.join(self._first_error.split())}", err=True)
                click.echo("hint: run the same command again to try what failed again", err=True)
        return SOME_FAILED if tally.errors else 0


class _Answers(Batch):
    """A batch whose records carry the line of a recording."""

    async def _made(self, row: Row, response: LLMResponse) -> Mapping[str, Any]:
        sample = response.samples[0]
        assert row.label is not None  # rows without one are refused
        grade = await graded(sample, row.label)
        line: dict[str, Any] = {
            "question": row.prompt,
            "model": row.model,
            "sample": 0,
            "answer": sample.text,
            "correct": grade["correct"],
            "tokens": response.usage.completion_tokens,
            "prompt_tokens": response.usage.prompt_tokens,
            "cost": response.cost,
        }
        if sample.logprobs is not None:
            line["logprobs"] = [_token(token) for token in sample.logprobs]
        return {"cost": response.cost, **grade, "recorded": line}


def _token(token: TokenLogprob) -> dict[str, Any]:
    top = [[text, max(_LEAST, value)] for text, value in token.top]
    return {"token": token.token, "logprob": max(_LEAST, token.logprob), "top": top}


def _key(model: str | None, question: Any) -> bytes:
    return hashlib.blake2b(f"{model}\0{str(question).strip()}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
