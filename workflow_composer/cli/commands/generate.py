"""``generate``: answer a prompt, or every row of a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.batch.run.answer_file import logprobs_of
from workflow_composer.batch.run.file_run import FileRun, Printed
from workflow_composer.batch.run.runner import RunBudget
from workflow_composer.cli.interrupt import run_stoppable
from workflow_composer.cli.options import (
    column_options,
    columns_of,
    common_options,
    context_option,
    examples,
    finite,
    keep_option,
    read_prompt,
    run_budget_option,
    shard_option,
    stop_option,
    strategy_option,
    vote_by_option,
)
from workflow_composer.cli.output import (
    ENDING,
    code_of,
    cost_text,
    known_cost,
    percent,
    print_json,
    printable,
    tell_no_price,
    tell_unread,
)
from workflow_composer.cli.progress import (
    DecisionLog,
    Warned,
    doubting,
    part_of_budget,
    progress_for,
    raise_if_over,
    shard_of,
    tell_spent_before,
    tell_unlimited,
)
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.batch.datasets.columns import Columns
    from workflow_composer.batch.run.answer_file import AnswerFile
    from workflow_composer.orchestrator import ModelOrchestrator
    from workflow_composer.types import LLMResponse


# ---------------------------------------------------------------------------------------------------------------- file run
#
# ``generate --input``: answering the rows of a file, and the printed summary.


def answer_file(
    state: State,
    source: Path,
    target: Path | None,
    fields: Mapping[str, Any],
    *,
    concurrency: int | None,
    limit: int | None,
    budget: RunBudget,
    columns: Columns | None = None,
    keep: tuple[str, ...] = (),
    shard: str | None = None,
    no_texts: bool = False,
) -> int:
    """Answer the rows of ``source``; return the exit code. Raises `InputError` for invalid rows, before any is sent."""
    part = shard_of(shard, state.environ)
    run = FileRun(
        source, fields, limit=limit, environ=state.environ, columns=columns, keep=keep, shard=part, keep_texts=not no_texts
    )
    if not state.json:
        click.echo(f"{source}: {run.rows.table.describe()}", err=True)
    if target is None:
        _answer(state, run, Printed(sys.stdout.buffer, "standard output"), None, concurrency, budget)
    else:
        budget = part_of_budget(budget, part)
        with run.opened(target) as file:
            tell_spent_before(budget, run.tally.cost)
            if not run.is_done:
                _answer(state, run, file, target, concurrency, budget)
            if not run.tally.stopped_by:
                asyncio.run(run.finish(file))
        target = run.target_of(target)
    _sum_up(state, run, target)
    tell_unlimited(budget, run.tally)
    raise_if_over(budget, run.tally)
    return code_of([run.tally])


def _answer(
    state: State,
    run: FileRun,
    file: AnswerFile | Printed,
    target: Path | None,
    concurrency: int | None,
    budget: RunBudget,
) -> None:
    state.log = log = DecisionLog(state.log_file)
    orchestrator, tally = state.open(state, None), run.tally
    if target is not None:
        try:
            run.bind(orchestrator.config, target)
        except BaseException:
            orchestrator.close()
            raise
    contexts = None
    if run.rows.have_contexts or orchestrator.config.task_contexts:
        from workflow_composer.runtime.snapshot import contexts_of

        contexts = contexts_of(orchestrator.config, state.environ)

    warned = Warned(orchestrator.agenerate)

    async def work(stop: asyncio.Event) -> None:
        async with orchestrator:
            await run.answer(
                warned,
                file,
                contexts=contexts,
                concurrency=concurrency,
                budget=budget,
                progress=progress,
                stop=stop,
                go_on=doubting(progress, ENDING),
            )

    def told() -> str:
        how = "use --output to be able to resume" if isinstance(file, Printed) else "run the same command again to resume"
        spent = cost_text(tally.cost_now, tally.unpriced_now)
        return f"{tally.done} of {tally.total} rows done, cost {spent}; {how}"

    with log, progress_for(tally) as progress:
        run_stoppable(work, told)
    warned.tell()


def _sum_up(state: State, run: FileRun, target: Path | None) -> None:
    tally = run.tally
    if state.json:
        summary = {
            "rows": tally.total,
            "columns": run.rows.table.describe(),
            "sha256": run.rows.sha256,
            "answered": tally.answered,
            "earlier": tally.earlier,
            "errors": tally.errors,
            "graded": tally.graded,
            "accuracy": tally.accuracy,
            "unreadable": tally.unreadable,
            "cut_off": tally.cut_off,
            "cost": known_cost(tally.cost_now, tally.unpriced_now),
            "cost_unknown_rows": tally.unpriced_now,
            "seconds": round(tally.seconds, 3),
        }
        print_json(summary, err=target is None)
        return
    parts = [f"{tally.total} rows"]
    if tally.earlier:
        parts.append(f"{tally.earlier} answered earlier")
    parts.append(f"{tally.errors} errors")
    if tally.accuracy is not None:
        parts.append(f"accuracy {percent(tally.accuracy)} of {tally.graded}")
    parts += [f"cost {cost_text(tally.cost_now, tally.unpriced_now)}", f"{tally.seconds:.1f} s"]
    click.echo(", ".join(parts), err=True)
    tell_no_price(tally.cost_now, tally.unpriced_now)
    tell_unread(tally.unreadable, tally.graded, cut_off=tally.cut_off, remedy=ENDING)
    if tally.errors and target is not None:
        click.echo("hint: run the same command again to retry the failed rows", err=True)


# ------------------------------------------------------------------------------------------------------------------ single
#
# Answering one prompt.


def answer_prompt(state: State, argument: str | None, fields: Mapping[str, Any]) -> None:
    """Print the answer: streamed on a terminal, at the end otherwise, or as JSON."""
    prompt = read_prompt(argument)
    with state.orchestrator() as orchestrator:
        if state.json:
            print_json(to_dict(orchestrator.generate(prompt, **fields)))
        elif sys.stdout.isatty() and not fields.get("logprobs"):
            _stream(orchestrator, prompt, fields)
        else:
            _print_whole(orchestrator.generate(prompt, **fields), fields)


def _print_whole(response: LLMResponse, fields: Mapping[str, Any]) -> None:
    click.echo(printable(response.text) if sys.stdout.isatty() else response.text)
    if fields.get("logprobs"):
        for token, logprob in logprobs_of(response) or ():
            click.echo(f"{logprob:10.4f}  {token!r}")
    _print_foot(response)


def _stream(orchestrator: ModelOrchestrator, prompt: str, fields: Mapping[str, Any]) -> None:
    ended = True
    try:
        with orchestrator.stream(prompt, **fields) as stream:
            for chunk in stream:
                if text := printable(chunk.text):
                    click.echo(text, nl=False)
                    ended = text.endswith("\n")
    finally:
        if not ended:
            click.echo()
    if stream.response is not None:
        _print_foot(stream.response)


def _print_foot(response: LLMResponse) -> None:
    """Print what the caller should know about the answer; and candidate, tokens, cost and time, on a terminal only."""
    if response.warning:
        click.echo(f"warning: {printable(response.warning)}", err=True)
    if sys.stderr.isatty():
        seconds, tokens = response.latency_ms / 1000.0, response.usage.total_tokens
        cost = cost_text(response.cost, not response.cost_known).partition(" (")[0]
        foot = f"[{response.decision.candidate}, {tokens} tokens, {cost}, {seconds:.1f} s]"
        click.echo(click.style(foot, dim=True), err=True)


def to_dict(response: LLMResponse) -> dict[str, Any]:
    """Return the response as plain data; times in milliseconds, cost in dollars."""
    from dataclasses import asdict

    found: dict[str, Any] = {
        "text": response.text,
        "model": response.model,
        "decision": {**asdict(response.decision), "escalated": response.decision.escalated},
        "finish_reason": response.samples[0].finish_reason if response.samples else None,
        "tool_calls": [dict(call) for call in response.tool_calls],
        "confidence": response.confidence,
        "accepted": response.accepted,
        "warning": response.warning,
        "usage": asdict(response.usage),
        "cost": known_cost(response.cost, not response.cost_known),
        "cost_known": response.cost_known,
        "latency_ms": response.latency_ms,
        "overhead_ms": response.overhead_ms,
        "attempts": [asdict(attempt) for attempt in response.attempts],
        "request_id": response.request_id,
    }
    if (logprobs := logprobs_of(response)) is not None:
        found["logprobs"] = logprobs
    return found


_OF_FILE = ("concurrency", "limit", "run_budget", "shard", "no_texts", "keep")
"""Options that concern the rows of a file."""


@click.command(
    epilog=examples(
        'generate "What is 30 + 12?"',
        "generate --task code_generation --max-tokens 500 < prompt.txt",
        'generate --context file-formats --context house-style "Filter this VCF by depth: ..."',
        'generate --model mv_cascade_small_k4_t0.7_large_k1_t0.0 "What is 30 + 12?"',
        'generate --model mv_small_k5_t0.7 --vote-by embedding "Why is the sky blue?"',
        "generate --input questions.jsonl --output answers.jsonl --concurrency 32",
        "generate --input cases.csv --question-column Problem --label-column Gold --output answers.jsonl",
        "generate --input batch_requests.jsonl --model small --output batch_output.jsonl",
        "generate --input questions.jsonl.gz --limit 100 --json | jq .text",
        "generate --input questions.jsonl --output answers.jsonl --budget 0.01 --run-budget 5",
    )
)
@click.argument("prompt", required=False)
@click.option(
    "-i", "--input", "source", type=click.Path(path_type=Path), help="Table of rows: JSONL, JSON, CSV, TSV, Parquet, ..."
)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="JSONL file for the answers.")
@column_options("question", "label", "choices", "id")
@click.option("-t", "--task", "task_type", metavar="TASK", help="Task type, as in the profile's task_routing.")
@click.option("-m", "--model", metavar="NAME", help="Role, tier, model or routing string to use instead of the task's.")
@context_option
@click.option("--system", metavar="TEXT", help="System message; follows the context.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Token limit of an answer.")
@stop_option
@click.option(
    "--temperature", type=click.FloatRange(min=0), callback=finite, metavar="T", help="Sampling temperature; 0 is greedy."
)
@vote_by_option
@click.option("--logprobs", is_flag=True, default=None, help="Also print the tokens' log-probabilities.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="SECONDS",
    help="Time limit of a prompt or row, including retries.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="DOLLARS",
    help="Budget of a prompt or row.",
)
@run_budget_option
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Rows in flight. Default: adaptive, up to 512."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@shard_option
@keep_option
@click.option("--no-texts", is_flag=True, help="Omit the questions, labels and the votes' samples from the answers.")
@strategy_option
@common_options
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    source: Path | None,
    target: Path | None,
    contexts: tuple[str, ...],
    **options: Any,
) -> None:
    """Answer a prompt, or every row of a file.

    The prompt is the argument, or standard input. On a terminal the answer is streamed; with --json it is printed at the
    end, with the routing decision, usage and attempts.

    With --input the rows are those of a table (docs/datasets.md): JSON lines, JSON, CSV, Parquet and others, with a column
    of questions or messages, and optionally of right answers (for grading), choices and ids; one line on standard error says
    which were taken. Further columns that count are `task_type`, `model`, `context` (a name or a list of names), and fields
    of the request, such as `max_tokens`. Requests of the OpenAI Batch API (`custom_id` and `body`) are answered in its
    output form; --model replaces their model.

    Rows with the same context are sent one after another, so that servers can reuse their caches. Output rows have `index`,
    `id`, `text`, `model`, `candidate`, `tier`, `fallback_depth`, `cost`, `tokens`, `latency_ms` and `confidence`, or
    `error`; graded rows also have `answer` (the extracted final answer, or null), `finish_reason` and `correct`. They are in
    order of completion.

    After an interruption, run the same command again: it resumes and retries failed rows. Until a run ends, a row that was
    retried has a line for each try; the last one counts. The whole input is checked before the first row is sent. Without
    --output the answers go to standard output. A summary goes to standard error (with --json and --output: as JSON to
    standard output); its `sha256` is the digest of the input rows.

    Exit codes: 0 done; 1 some rows failed; 2 wrong usage or input; 6 the run budget is used up: run the same command with a
    higher --run-budget to resume; 7 more than 5 % of the graded answers could not be read.
    """
    state = context.ensure_object(State)
    columns = columns_of(options)
    of_file = {name: options.pop(name) for name in _OF_FILE}
    given = {name: value for name, value in options.items() if value is not None}
    if contexts:
        given["context"] = contexts
    if source is None:
        named = target is not None or any(columns.given)
        if named or any(of_file[name] is not None for name in ("limit", "run_budget", "shard")):
            raise click.UsageError("--output, --limit, --shard, --run-budget and the columns need --input")
        answer_prompt(state, prompt, given)
        return
    if prompt is not None:
        raise click.UsageError("give a prompt or --input, not both")
    if of_file["shard"] is not None and target is None:
        raise click.UsageError("--shard needs --output: each shard has a file of its own beside it")
    limits = RunBudget(given.pop("budget", None), of_file.pop("run_budget"))
    context.exit(answer_file(state, source, target, given, budget=limits, columns=columns, **of_file))
