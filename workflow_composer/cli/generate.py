"""``generate``: answer a prompt, or every row of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from workflow_composer.cli.options import (
    common_options,
    context_option,
    examples,
    finite,
    run_budget_option,
    strategy_option,
)
from workflow_composer.cli.state import State


@click.command(
    epilog=examples(
        'generate "What is 30 + 12?"',
        "generate --task code_generation --max-tokens 500 < prompt.txt",
        'generate --context file-formats --context house-style "Filter this VCF by depth: ..."',
        'generate --model mv_cascade_small_k4_t0.7_large_k1_t0.0 "What is 30 + 12?"',
        "generate --input questions.jsonl --output answers.jsonl --concurrency 32",
        "generate --input questions.jsonl.gz --limit 100 --json | jq .text",
        "generate --input questions.jsonl --output answers.jsonl --budget 0.01 --run-budget 5",
    )
)
@click.argument("prompt", required=False)
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), help="JSONL file of rows (may be gzip).")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="JSONL file for the answers.")
@click.option("-t", "--task", "task_type", metavar="TASK", help="Task type, as in the profile's task_routing.")
@click.option("-m", "--model", metavar="NAME", help="A role, tier, model or routing string instead of the task's.")
@context_option
@click.option("--system", metavar="TEXT", help="System message, put in front of the prompt and behind the context.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Most tokens of an answer.")
@click.option("--temperature", type=click.FloatRange(min=0), callback=finite, metavar="T", help="0 is greedy.")
@click.option("--logprobs", is_flag=True, default=None, help="Give the tokens' log-probabilities, too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="SECONDS",
    help="Most time for a prompt or row, with retries and all.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    metavar="DOLLARS",
    help="Most for a prompt or row.",
)
@run_budget_option
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N", help="Rows at a time; default: adapts, to 512.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N rows.")
@strategy_option
@common_options
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    source: Path | None,
    target: Path | None,
    concurrency: int | None,
    budget: float | None,
    run_budget: float | None,
    limit: int | None,
    contexts: tuple[str, ...],
    **fields: Any,
) -> None:
    """Answer a prompt, or every row of a file.

    The prompt is the argument, or standard input. On a terminal the answer appears as it is written; with --json it comes
    at the end, with everything that led to it.

    With --input every row is a JSON object with `question`, `prompt` or `messages`, and if wanted `id`, `task_type`,
    `model`, `context` (a name or a list of names) and `answer`, the right answer, by which answers are graded. Rows with the
    same context are sent one after the other, so that servers find it in their caches. The rows of the answer carry `index`,
    `id`, `text`, `model`, `candidate`, `tier`, `fallback_depth`, `cost`, `tokens`, `latency_ms` and `confidence`, or
    `error`; graded ones also `answer` (what was read in the text; null where nothing could be), `finish_reason` and
    `correct`. They are in the order in which they were answered.

    Run the same command again after an interruption: it goes on where it stopped, and tries rows with errors again. While
    it runs, a row that failed has a line for each try, of which the last counts. The whole input is checked before the first
    row is sent. Without --output the answers go to standard output. A summary goes to standard error (with --json and
    --output: as JSON to standard output); `sha256` in it is the digest of the rows that were read.

    Exit codes: 0 done; 1 some rows failed; 2 wrong usage or input; 6 the budget of the run is used up: run the same command
    with a higher --run-budget to go on.
    """
    state = context.ensure_object(State)
    given = {name: value for name, value in fields.items() if value is not None}
    if contexts:
        given["context"] = contexts
    if source is None:
        if target is not None or limit is not None or run_budget is not None:
            raise click.UsageError("--output, --limit and --run-budget need --input")
        from workflow_composer.cli.single import answer_prompt

        answer_prompt(state, prompt, given if budget is None else given | {"budget": budget})
        return
    if prompt is not None:
        raise click.UsageError("give a prompt or --input, not both")
    from workflow_composer.batch.run.budget import Budget
    from workflow_composer.cli.file_run import answer_file

    limits = Budget(budget, run_budget)
    context.exit(answer_file(state, source, target, given, concurrency=concurrency, limit=limit, budget=limits))
