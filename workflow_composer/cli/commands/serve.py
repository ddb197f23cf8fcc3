"""``serve``: run the HTTP service."""

from __future__ import annotations

from pathlib import Path

import click

from workflow_composer.cli.options import common_options, examples, strategy_option
from workflow_composer.cli.state import State
from workflow_composer.errors import ConfigError
from workflow_composer.support.installing import install_command

_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def _size(context: click.Context, parameter: click.Parameter, text: str) -> int:
    number, unit = text.strip().lower().rstrip("ib"), 1
    if number and number[-1] in _SIZES:
        number, unit = number[:-1], _SIZES[number[-1]]
    if not number.isdecimal() or not int(number):
        raise click.BadParameter(f"invalid size {text!r}; write a size such as 32M or 500k")
    return int(number) * unit


@click.command(
    epilog=examples(
        "-s t4_hybrid serve",
        "-s t4_hybrid serve --host 0.0.0.0 --port 8000 --workers 2 --keys keys.json",
        "-s development serve --port 8080 --most-calls 128 --debug",
        "-s t4_hybrid serve --cors https://chat.example --keys keys.json",
        "-s t4_hybrid serve --keys keys.json --keep-files 7",
    )
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any other than loopback requires --keys."
)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free port.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes; one per core.")
@click.option("--keys", type=click.Path(path_type=Path), help="Keys file (see `keys new`). Default: no keys are required.")
@click.option("--max-body", default="32M", show_default=True, callback=_size, help="Largest request body.")
@click.option(
    "--concurrency", default=512, show_default=True, type=click.IntRange(1), help="Concurrent requests per worker."
)
@click.option("--queue", default=1024, show_default=True, type=click.IntRange(0), help="Queued requests per worker.")
@click.option(
    "--most-calls",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Calls to models that one request may make, each sample counted as one. A key may have its own limit.",
)
@click.option(
    "--drain", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds to finish requests on shutdown."
)
@click.option(
    "--keep-files",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, 3650),
    metavar="DAYS",
    help="Days for which uploaded files and batches are kept; 0: none are taken.",
)
@click.option("--watch/--no-watch", default=True, show_default=True, help="Reload the profile when its file changes.")
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Web origin, such as https://chat.example, whose pages may use the service; may be repeated. Default: none.",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Address or network of a proxy whose X-Forwarded-For is believed; may be repeated. Default: none.",
)
@click.option("--access-log", is_flag=True, help="Log one line per request.")
@click.option("--explain", is_flag=True, help="Log full decisions and prompts (keys in prompts are redacted).")
@strategy_option
@common_options
@click.pass_obj
def serve(
    state: State,
    host: str,
    port: int,
    workers: int,
    keys: Path | None,
    max_body: int,
    concurrency: int,
    queue: int,
    most_calls: int,
    drain: float,
    keep_files: float,
    watch: bool,
    cors: tuple[str, ...],
    trusted_proxies: tuple[str, ...],
    access_log: bool,
    explain: bool,
) -> None:
    """Serve OpenAI's API over the strategy, with a dashboard.

    As the model, clients send `auto` (the strategy decides), a task (`task:code_generation`), a tier, a model or a routing
    string. SIGTERM or Ctrl-C stop the service after the requests in flight are answered. SIGHUP, a change of the profile's
    file, or PUT /admin/strategy (with the token in $WORKFLOW_COMPOSER_ADMIN_TOKEN) switch the strategy without a restart.

    The dashboard is at /dashboard, metrics at /metrics (which require the token in $WORKFLOW_COMPOSER_METRICS_TOKEN, if
    that is set), the API description at /openapi.json.
    """
    try:
        from workflow_composer.server.service import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", hint=install_command("serve")) from error
    from workflow_composer.server.gate import read_origins, read_proxies
    from workflow_composer.server.settings import ADMIN_VARIABLE, METRICS_VARIABLE, ServerSettings, state_directory

    settings = ServerSettings(
        strategy=state.strategy,
        host=host,
        port=port,
        workers=workers,
        state_directory=state_directory(state.environ),
        keys_file=keys,
        admin_token=state.environ.get(ADMIN_VARIABLE, "").strip() or None,
        metrics_token=state.environ.get(METRICS_VARIABLE, "").strip() or None,
        max_body=max_body,
        concurrency=concurrency,
        queue=queue,
        most_calls=most_calls,
        drain_seconds=drain,
        keep_files=keep_files,
        watch=watch,
        debug=explain,
        access_log=access_log,
        json=state.json,
        cors=tuple(sorted(read_origins(cors, keyless=keys is None))),
        trusted_proxies=tuple(map(str, read_proxies(trusted_proxies))),
    )
    if settings.open_to_others and keys is None:
        raise _open_to_all(host)
    run(settings, state.environ)


def _open_to_all(host: str) -> ConfigError:
    return ConfigError(
        f"{host} is reachable from other machines, and without --keys anyone could use the models",
        hint="create a key (keys new NAME --file keys.json) and serve with --keys keys.json; or listen on 127.0.0.1",
    )
