"""``workflow graph``: the steps of a workflow and what they read, as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.state import State

_FORMATS = {".mmd": "mermaid", ".mermaid": "mermaid", ".md": "mermaid", ".svg": "svg"}


@click.command(
    "graph", epilog=examples("workflow graph triage.yaml", "workflow graph triage.yaml --as mermaid", "-o triage.svg")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "form", type=click.Choice(["text", "mermaid", "svg"]), help="The form; default: by OUTPUT, else text.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
@strategy_option
@common_options
@click.pass_obj
def graph_command(state: State, /, file: Path, form: str | None, output: Path | None) -> int:
    """Draw a workflow: as lines for a terminal, in Mermaid's language, or as SVG. Private steps are marked.

    Exit codes: 0 done; 2 something is wrong in the file.
    """
    from workflow_composer.cli.output import print_json
    from workflow_composer.cli.workflow.check import loaded_for, profile_of
    from workflow_composer.workflows.definition import drawing

    config, kinds = profile_of(state)
    made = loaded_for(file, None, config, kinds)
    if state.json:
        boxes = drawing.drawn(made, config)
        print_json([{"name": box.name, "does": box.told, "reads": box.reads, "private": box.private} for box in boxes])
        return 0
    form = form or (_FORMATS.get(output.suffix.lower()) if output is not None else None) or "text"
    if form == "text":
        text = "".join(f"{line}\n" for line in drawing.as_lines(made, config))
    else:
        text = drawing.as_mermaid(made, config) if form == "mermaid" else drawing.as_svg(made, config)
    if output is None:
        click.echo(text, nl=False)
    else:
        from workflow_composer.storage.replacing import replace_file

        replace_file(output, text)
    return 0
