"""``generate``: answer a prompt, or every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

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
from workflow_composer.cli.state import State

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
    columns = {name: options.pop(name) for name in [*options] if name.endswith("_column")}
    of_file = {name: options.pop(name) for name in _OF_FILE}
    given = {name: value for name, value in options.items() if value is not None}
    if contexts:
        given["context"] = contexts
    if source is None:
        named = target is not None or any(value is not None for value in columns.values())
        if named or any(of_file[name] is not None for name in ("limit", "run_budget", "shard")):
            raise click.UsageError("--output, --limit, --shard, --run-budget and the columns need --input")
        from workflow_composer.cli.answering import answer_prompt

        answer_prompt(state, read_prompt(prompt), given)
        return
    if prompt is not None:
        raise click.UsageError("give a prompt or --input, not both")
    if of_file["shard"] is not None and target is None:
        raise click.UsageError("--shard needs --output: each shard has a file of its own beside it")
    from workflow_composer.batch.run.runner import RunBudget
    from workflow_composer.cli.commands.generate_run import answer_file

    limits = RunBudget(given.pop("budget", None), of_file.pop("run_budget"))
    context.exit(answer_file(state, source, target, given, budget=limits, columns=columns_of(columns), **of_file))
