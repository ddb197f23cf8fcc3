"""``models``: the built-in catalogue of cloud models, and the models of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from workflow_composer.cli.options import common_options, examples
from workflow_composer.cli.output import print_json, print_table
from workflow_composer.cli.state import State

if TYPE_CHECKING:
    from workflow_composer.config.catalogue import CloudModel
    from workflow_composer.config.strategy import ModelSpec


@click.group(
    invoke_without_command=True,
    epilog=examples("models list", "models list --json", "-s t4_hybrid models list", "models show claude"),
)
@common_options
@click.pass_context
def models(context: click.Context) -> None:
    """List the cloud models that a profile may name, with prices, and the models of a profile."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@models.command("list", epilog=examples("models list", "models list --json", "-s t4_hybrid models list"))
@common_options
@click.pass_obj
def list_(state: State) -> None:
    """List the built-in catalogue: price, key, retirement; with --strategy, the models of that profile as they apply.

    Prices are dollars per million tokens, as the provider's page showed them on the day in the column `priced on`. Sends
    nothing.
    """
    if state.strategy is not None:
        _list_profile(state)
        return
    from workflow_composer.config.catalogue import CATALOGUE

    found = {name: entry(model, state.environ) for name, model in CATALOGUE.items()}
    if state.json:
        print_json(found)
        return
    head = ("model", "also", "host", "input", "output", "context", "priced on", "key", "retired")
    print_table(head, [_row(model, state.environ) for model in CATALOGUE.values()])


@models.command(epilog=examples("models show claude", "models show gpt-4o --json"))
@click.argument("name", metavar="NAME")
@common_options
@click.pass_obj
def show(state: State, name: str) -> None:
    """Show a model of the catalogue as an entry for a profile, to copy and to change; with the source of its prices."""
    import yaml

    from workflow_composer.config.catalogue import find, names
    from workflow_composer.errors import InputError, nearest

    model = find(name)
    if model is None:
        raise InputError(
            f"the catalogue has no model {name!r}", hint=nearest(name, names()) or "`models list` shows what it has"
        )
    if state.json:
        print_json(entry(model, state.environ))
        return
    click.echo(f"# Prices of {model.priced_on}: {model.source}")
    if model.retired_on is not None:
        click.echo(f"# {_retirement(model)}: use {model.successor or 'another model'} instead")
    text = {key: list(value) if isinstance(value, tuple) else value for key, value in model.keys().items()}
    click.echo(yaml.safe_dump({"models": {model.name: text}}, sort_keys=False, width=120), nl=False)


def entry(model: CloudModel, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return a model of the catalogue as plain data; ``key_set`` says whether its key is in ``environ``."""
    return {
        **model.keys(),
        "aliases": model.aliases,
        "key_set": bool(environ.get(model.api_key_env)),
        "priced_on": model.priced_on.isoformat(),
        "source": model.source,
        "retired_on": None if model.retired_on is None else model.retired_on.isoformat(),
        "successor": model.successor,
    }


def _row(model: CloudModel, environ: Mapping[str, str]) -> tuple[object, ...]:
    key = model.api_key_env + ("" if environ.get(model.api_key_env) else " (not set)")
    price = (f"{model.input_price:g}", f"{model.output_price:g}")
    context = f"{model.context_length:,}"
    return (model.name, ", ".join(model.aliases), model.host, *price, context, model.priced_on, key, _retirement(model))


def _retirement(model: CloudModel) -> str:
    if model.retired_on is None:
        return ""
    return f"retired {model.retired_on}" if model.is_retired() else f"will be retired {model.retired_on}"


def _list_profile(state: State) -> None:
    """List the models of the named profile with the addresses and prices that apply, the catalogue's filled in."""
    from workflow_composer.config.strategy import StrategyConfig

    config = StrategyConfig.load(state.strategy or "", environ=state.environ)
    found = config.backend_specs()
    if state.json:
        print_json({name: _of_profile(spec, state.environ) for name, spec in found.items()})
        return
    rows = []
    for name, spec in found.items():
        prices = ["" if price is None else f"{price:g}" for price in (spec.input_price, spec.output_price)]
        gpu = "" if spec.gpu_hour_price is None else f"{spec.gpu_hour_price:g}"
        where = ", ".join(config.servers_of(spec.endpoint)) or urlsplit(spec.base_url or "").netloc or spec.path or ""
        key = spec.api_key_env or ""
        key += " (not set)" if key and not state.environ.get(key) else ""
        rows.append((name, spec.backend, spec.model or "", where, *prices, gpu, key))
    print_table(("model", "backend", "asked for", "where", "input", "output", "GPU hour", "key"), rows)
    for note in config.notes:
        click.echo(f"note: {note}", err=True)


def _of_profile(spec: ModelSpec, environ: Mapping[str, str]) -> dict[str, Any]:
    named = ("backend", "model", "endpoint", "input_price", "output_price", "cached_input_price", "gpu_hour_price")
    found = {key: getattr(spec, key) for key in (*named, "context_length", "capabilities", "api_key_env")}
    key_set = None if spec.api_key_env is None else bool(environ.get(spec.api_key_env))
    return {**found, "local": spec.local, "key_set": key_set}
