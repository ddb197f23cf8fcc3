"""``serve``: what its options come to, and what is refused before anything listens."""

from __future__ import annotations

import json

import pytest

from workflow_composer.server import service
from workflow_composer.server.settings import ServerSettings, state_directory


@pytest.fixture
def serve(command, monkeypatch):
    """Runs the command up to the point where the service would begin; the settings with which it would."""
    begun = []
    monkeypatch.setattr(service, "serve", lambda settings, environ: begun.append(settings))

    def run(*arguments):
        done = command("-s", "development", "serve", *arguments)
        return done, begun.pop() if begun else None

    return run


def test_by_default_it_listens_on_this_machine_only_and_asks_for_no_key(serve):
    done, settings = serve()
    assert done.code == 0
    assert (settings.strategy, settings.host, settings.port, settings.workers) == ("development", "127.0.0.1", 8080, 1)
    assert (settings.keys_file, settings.admin_token, settings.watch, settings.debug) == (None, None, True, False)


def test_every_option_reaches_the_settings(serve, command, tmp_path):
    command.environ |= {"WORKFLOW_COMPOSER_ADMIN_TOKEN": " secret ", "WORKFLOW_COMPOSER_SERVE_STATE": str(tmp_path / "s")}
    options = "--host 0.0.0.0 --port 0 --workers 3 --keys k.json --max-body 500k --concurrency 7 --queue 0 --drain 1.5"
    _, settings = serve(*options.split(), "--no-watch", "--access-log", "--explain", "--json")
    assert (settings.host, settings.port, settings.workers, str(settings.keys_file)) == ("0.0.0.0", 0, 3, "k.json")
    assert (settings.max_body, settings.concurrency, settings.queue, settings.drain_seconds) == (500 * 1024, 7, 0, 1.5)
    assert (settings.watch, settings.access_log, settings.debug, settings.json) == (False, True, True, True)
    assert settings.admin_token == "secret"
    assert settings.state_directory == tmp_path / "s"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7"])
def test_what_others_can_reach_wants_keys(serve, host):
    done, settings = serve("--host", host)
    assert done.code == 2
    assert settings is None
    assert "keys new" in done.err


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("500k", 512_000), ("32M", 2**25), ("1GiB", 2**30), ("2MB", 2**21)])
def test_sizes_are_written_as_people_write_them(serve, text, size):
    assert serve("--max-body", text)[1].max_body == size


@pytest.mark.parametrize(
    "options",
    [
        *(["--max-body", text] for text in ("", "0", "-1", "much", "1.5M", "k", "²", "1T")),
        ["--port", "65536"],
        ["--workers", "0"],
        ["--concurrency", "0"],
        ["--queue", "-1"],
        ["--cors", "chat.example"],
        ["--cors", "https://chat.example/path"],
        ["--cors", "*"],  # every page, and no keys
        ["--trusted-proxy", "proxy.example"],
    ],
    ids=" ".join,
)
def test_what_is_no_size_or_number_is_refused(serve, options):
    done, settings = serve(*options)
    assert (done.code, settings) == (2, None)
    assert "Traceback" not in done.err


def test_settings_reach_another_process_as_they_were_the_token_apart(serve):
    pages = ("--cors", "http://a.example", "--cors", "*", "--trusted-proxy", "10.0.0.0/24", "--trusted-proxy", "::1")
    _, settings = serve("--keys", "k.json", "--port", "9", *pages)
    assert (settings.cors, settings.trusted_proxies) == (("*", "http://a.example"), ("10.0.0.0/24", "::1/128"))
    told = json.loads(json.dumps(settings.to_dict()))
    assert "admin_token" not in told
    assert ServerSettings.from_dict(told, admin_token=settings.admin_token) == settings


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WORKFLOW_COMPOSER_SERVE_STATE": "/a", "XDG_STATE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_STATE_HOME": "/b", "HOME": "/c"}, "/b/workflow-composer/serve"),
        ({"HOME": "/c"}, "/c/.local/state/workflow-composer/serve"),
    ],
)
def test_what_the_service_keeps_is_in_the_state_directory(environ, expected):
    assert str(state_directory(environ)) == expected
