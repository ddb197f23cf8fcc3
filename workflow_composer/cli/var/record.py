"""``var record``: record the routes of a model on a text."""

from __future__ import annotations

from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json
from workflow_composer.cli.state import State
from workflow_composer.cli.var.group import libraries
from workflow_composer.errors import InputError


@click.command(epilog=examples("var record logs/tiny-olmoe docs/*.md -o routes.jsonl"))
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("texts", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Recording to write (JSON lines)."
)
@click.option(
    "--length",
    type=click.IntRange(2),
    default=256,
    show_default=True,
    help="Tokens per piece; each piece is processed as a separate text.",
)
@common_options
@click.pass_context
def record(context: click.Context, model: Path, texts: tuple[Path, ...], output: Path, length: int) -> None:
    """Run a mixture-of-experts MODEL of transformers on TEXTS and record the experts that its gates choose for each token.

    MODEL is a local directory; nothing is downloaded. Exit codes: 0 done; 2 wrong usage or input, or torch is not installed.
    """
    with libraries("moe"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from workflow_composer.moe.models.recording import RouteRecorder
    try:
        network = AutoModelForCausalLM.from_pretrained(model, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load a model from {model}: {str(error).splitlines()[0]}") from None
    with RouteRecorder(network) as recorder, torch.inference_mode():
        for text in texts:
            ids = tokenizer(_read(text), add_special_tokens=False)["input_ids"]
            for start in range(0, len(ids), length):
                network(input_ids=torch.tensor([ids[start : start + length]]), use_cache=False)
    routes = recorder.routes()
    routes.write(output)
    if context.ensure_object(State).json:
        print_json({"tokens": len(routes), "layers": list(routes.layers), "output": str(output)})
    else:
        click.echo(f"{output}: {len(routes)} tokens, layers {', '.join(map(str, routes.layers))}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
