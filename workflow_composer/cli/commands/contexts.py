"""``contexts``: list, show and copy the templates that can precede a request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table, printable
from workflow_composer.cli.state import State
from workflow_composer.errors import ContextError, InputError

if TYPE_CHECKING:
    from workflow_composer.contexts.library import Template


@click.group(
    invoke_without_command=True,
    epilog=examples("contexts list", "contexts show file-formats", "contexts copy house-style config/contexts"),
)
@common_options
@click.pass_context
def contexts(context: click.Context) -> None:
    """List, show and copy context templates."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@contexts.command("list", epilog=examples("contexts list", "contexts list --json"))
@common_options
@click.pass_obj
def list_(state: State) -> None:
    """List the available templates of the working directory, the user, and the package."""
    from workflow_composer.contexts.library import Library

    library = Library(environ=state.environ)
    found = {name: _entry(library, name, files) for name, files in library.files().items()}
    if state.json:
        print_json(found)
        return
    rows = [
        (
            name,
            e.get("version", ""),
            e.get("tokens", ""),
            e.get("digest", "")[:12],
            e.get("error") or e["description"],
            e["file"],
        )
        for name, e in found.items()
    ]
    print_table(("context", "version", "~tokens", "digest", "description", "file"), rows)
    for name, entry in found.items():
        if note := entry.get("note"):
            click.echo(f"note: {name}: {note}", err=True)


def _entry(library: Any, name: str, files: list[Path]) -> dict[str, Any]:
    from workflow_composer.contexts.library import Template

    try:
        found = library.get(name)
    except ContextError as error:
        return {"file": str(files[0]), "error": f"invalid: {error.message}"}
    entry = to_dict(found)
    for path in files[1:]:
        try:
            hidden = Template.read(path)
        except ContextError:
            continue
        if hidden.version == found.version and hidden.digest != found.digest:
            entry["note"] = f"it hides {path}, which has the same version but a different text: change the version of one"
    return entry


@contexts.command(epilog=examples("contexts show file-formats", "contexts show file-formats house-style --json"))
@click.argument("names", metavar="NAME|PATH...", nargs=-1, required=True)
@common_options
@click.pass_obj
def show(state: State, names: tuple[str, ...]) -> None:
    """Show the text that precedes a request with these contexts; size and digest go to standard error.

    The text is printed exactly as it is sent. It does not depend on the order of the names.
    """
    from workflow_composer.contexts.applying import Context
    from workflow_composer.contexts.library import Library

    library = Library(environ=state.environ)
    templates = [library.get(name) for name in names]
    combined = Context.of(templates)
    if state.json:
        print_json({"contexts": [to_dict(template) for template in templates], "pins": combined.pins, "text": combined.text})
        return
    click.echo(printable(combined.text) if sys.stdout.isatty() else combined.text)
    for template in templates:
        characters = f"{len(template.text)} characters, about {template.tokens} tokens"
        click.echo(f"{template.pin}: {characters}; SHA-256 {template.digest}; {template.source}", err=True)


@contexts.command(
    epilog=examples("contexts copy file-formats", "contexts copy house-style ~/.config/workflow-composer/contexts")
)
@click.argument("name", metavar="NAME|PATH")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path("config/contexts"))
@common_options
@click.pass_obj
def copy(state: State, name: str, folder: Path) -> None:
    """Copy a template into DIR (default: config/contexts) for editing; nothing is overwritten.

    In config/contexts of the working directory, or in the user's configuration directory, the copy overrides the original.
    Change its version when you change its text: requests that pin the old version then fail instead of getting another text.
    """
    from workflow_composer.contexts.library import SUFFIX, Library

    found = Library(environ=state.environ).get(name)
    target = folder / f"{found.name}{SUFFIX}"
    _write(found.source.read_bytes(), target)
    if state.json:
        print_json({"context": found.pin, "file": str(target)})
        return
    click.echo(f"{target}: {found.name}, version {found.version}. Change the version when you change the text.")


def _write(data: bytes, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise InputError(f"{target} already exists", hint="choose another folder, or remove the file first") from None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}", hint="choose another folder") from None


def to_dict(template: Template) -> dict[str, Any]:
    """Return a template's metadata as plain data, without its text."""
    return {
        "name": template.name,
        "version": template.version,
        "description": template.description,
        "characters": len(template.text),
        "tokens": template.tokens,
        "digest": template.digest,
        "pin": template.pin,
        "file": str(template.source),
    }
