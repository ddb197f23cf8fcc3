"""``doctor``: each fault is planted, and found with its remedy; where nothing is wrong, nothing is found."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import errno
import json
import os
import shutil
import socket
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.integration.local_servers import VLLM, LlamaCpp, LMStudio, Model, Ollama
from tests.integration.stranger import UID, stranger
from tests.integration.stub_server import Reply, StubServer, silent_sockets
from workflow_composer.backends.catalogue import CATALOGUE
from workflow_composer.backends.replicas.registry import Entry, ServerRegistry
from workflow_composer.config.own_machines import user_name
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import NoStrategy
from workflow_composer.plugins.host import plugin_host
from workflow_composer.runtime import resources
from workflow_composer.runtime.doctor import clouds, machine, servers
from workflow_composer.runtime.doctor.examination import examine
from workflow_composer.storage import locks

KEY = "sk-" + "0123456789abcdef" * 2
PRICED = {"input_price": 1.0, "output_price": 2.0}


@pytest.fixture(autouse=True)
def healthy_machine(monkeypatch):
    """A machine with room, whatever this one has; servers that are silent are not waited for."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 0, 10**12))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (65536, 65536))
    monkeypatch.setattr(servers, "LIMIT", 1.0)
    monkeypatch.setattr(servers, "_CONTAINER", ())


@pytest.fixture
def doctor(command, tmp_path):
    """Examine a profile of these keys, and return its findings by kind; the key's text is in no output."""
    programs = tmp_path / "programs"
    programs.mkdir()
    command.environ |= {"HOME": str(tmp_path), "PATH": str(programs)}

    def examine(*options, models=None, endpoints=None, routes=None, allow_cloud=False, **keys):
        data = {"profile_name": "mine", "allow_cloud": allow_cloud}
        data |= {"models": models or {}, "vllm_endpoints": endpoints or {}}
        first = next(iter(data["models"] or data["vllm_endpoints"]), None)
        data |= {"task_routing": routes or ({"*": first} if first else {})} | keys
        path = tmp_path / "mine.yaml"
        path.write_text(json.dumps(data, indent=1))
        path.chmod(0o600)
        return run("-s", str(path), *options)

    def run(*options):
        done = command("doctor", "--json", *options, real=True)
        assert KEY not in done.out + done.err
        report = done.json
        assert report["errors"] == sum(finding["level"] == "error" for finding in report["findings"])
        assert done.code == min(report["errors"], 1) or done.code in (2, 3)
        examine.code, examine.report = done.code, report
        return {finding["kind"]: finding for finding in report["findings"]}

    examine.run, examine.environ, examine.programs, examine.folder = run, command.environ, programs, tmp_path
    return examine


def own(url, **more):
    """The models of a profile with one server of one's own."""
    return {"m": {"backend": "vllm", "base_url": url, **more}}


def far(stub, **more):
    """The models of a profile with one cloud model, whose cloud is this stand-in."""
    return {"m": {"backend": "openai", "model": "big", "base_url": stub.url, "api_key_env": "THE_KEY", **PRICED, **more}}


def closed_port():
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# ------------------------------------------------------------------------------------------------------ nothing is wrong


def test_where_all_is_well_nothing_is_found(doctor, command):
    """Servers of several makes, a cloud model with its key, an alias, an embedding model for embeddings."""
    doctor.environ["THE_KEY"] = KEY
    with (
        Ollama("nomic-embed-text:latest=embedding", "llama3.2:latest") as ollama,
        LlamaCpp("model.gguf") as llama,
        VLLM(Model("Qwen/Qwen2.5-7B"), Model("Qwen2.5-7B")) as vllm,
        StubServer(models=["big"]) as cloud,
    ):
        models = {
            "chat": {"backend": "vllm", "base_url": ollama.url, "model": "llama3.2"},
            "vectors": {"backend": "vllm", "base_url": ollama.url, "model": "nomic-embed-text"},
            "any": {"backend": "vllm", "base_url": llama.url, "model": "whatever", "context_length": 8192},
            "short": {"backend": "vllm", "base_url": vllm.url, "model": "Qwen2.5-7B"},
            "unnamed": {"backend": "vllm", "endpoint": "role"},
            "big": far(cloud)["m"],
        }
        routes = {"*": "chat", "embeddings": "vectors", "hard": "big", "code": "any"}
        profile = {"models": models, "routes": routes, "endpoints": {"role": vllm.url}, "allow_cloud": True}
        assert doctor(**profile) == {}
        assert not cloud.connections
        assert doctor("--cloud", **profile) == {}
        assert [(request.method, request.path) for request in cloud.requests] == [("GET", "/v1/models")]
        for server in (ollama, llama, vllm):
            assert {request.path for request in server.requests if request.method == "POST"} <= {"/api/show"}
        done = command("doctor", "-s", str(doctor.folder / "mine.yaml"), real=True)
        assert (done.code, "nothing is wrong" in done.out, "--cloud" in done.out) == (0, True, True)


def test_a_person_reads_place_and_remedy(doctor, command):
    """Without JSON, in lines."""
    doctor(models=own(f"http://127.0.0.1:{closed_port()}/v1"))
    done = command("doctor", "-s", str(doctor.folder / "mine.yaml"), real=True)
    assert done.code == 1
    for text in ("[server-down]", "where:  ", "mine.yaml:", "remedy: start it", "errors"):
        assert text in done.out


# --------------------------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize(
    ("url", "kind", "remedy"),
    [
        ("http://127.0.0.1:CLOSED/v1", "server-down", "vllm serve"),
        ("http://localhost:CLOSED", "server-down", "start it"),
        ("http://127.0.0.1:SILENT/v1", "server-silent", "restart it"),
        ("http://no-such-host.invalid:8001/v1", "unknown-host", "getent hosts no-such-host.invalid"),
    ],
)
def test_a_server_that_does_not_answer(doctor, url, kind, remedy):
    """Down, silent, or of no address; and the task has no model then."""
    (silent,) = silent_sockets(1)
    url = url.replace("CLOSED", str(closed_port())).replace("SILENT", str(silent.getsockname()[1]))
    found = doctor(models=own(url))
    silent.close()
    assert found[kind]["level"] == "error"
    assert remedy in found[kind]["remedy"]
    assert found[kind]["where"].endswith("models.m.base_url")
    assert found["task-without-model"]["level"] == "error"


def test_a_role_is_told_how_to_be_started_and_a_container_what_localhost_is(doctor, monkeypatch):
    """By the fleet's commands."""
    monkeypatch.setattr(servers, "_CONTAINER", (doctor.folder,))
    found = doctor(endpoints={"coder": f"http://localhost:{closed_port()}/v1"})
    assert "fleet up coder" in found["server-down"]["remedy"]
    assert "host.docker.internal" in found["server-down"]["remedy"]


@pytest.mark.parametrize(
    ("listing", "kind", "remedy"),
    [
        (Reply(body=b"<html>hello</html>"), "not-an-api", "address and port"),
        (Reply.error(404), "not-an-api", "address and port"),
        (Reply.redirect("https://elsewhere.example/v1"), "redirect", "redirects"),
        (Reply.error(503, "Loading model"), "server-loading", "wait"),
        (Reply.error(500), "server-failed", "log"),
        (Reply.of({"data": []}), "no-model", "ollama pull"),
        (Reply.of({"object": "list", "data": None}), "no-model", "ollama pull"),
    ],
)
def test_a_server_that_answers_something_else(doctor, server, listing, kind, remedy):
    """In words, with what to do."""
    server.listing = listing
    found = doctor(models=own(server.url))
    assert remedy in found[kind]["remedy"]


@pytest.mark.parametrize("path", ["/", "/api", "/v1/chat"])
def test_an_address_beside_the_api_is_corrected(doctor, path):
    """The API is looked for where servers have it."""
    with VLLM("a") as server:
        root = server.url.removesuffix("/v1")
        found = doctor(models=own(root + path)) if path != "/" else doctor(models=own(root))
        if path == "/":
            assert found == {}
        else:
            assert found["wrong-path"]["remedy"] == f"write {server.url}"


def test_tls_where_there_is_none(doctor, server):
    """`https` to a server without TLS: some say so, and some wait for the rest of a line."""
    found = doctor(models=own(server.url.replace("http:", "https:")))
    assert "write http://" in found["server-silent"]["remedy"]
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer():
            with plain.accept()[0] as one:
                one.recv(1000)
                one.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        found = doctor(models=own(f"https://127.0.0.1:{plain.getsockname()[1]}/v1"))
    assert "write http://" in found["tls"]["remedy"]


@pytest.mark.parametrize(
    ("named", "value", "remedy"),
    [(None, "", "api_key_env"), ("THE_KEY", "", "export THE_KEY"), ("THE_KEY", KEY, "set THE_KEY")],
)
def test_a_server_that_requires_a_key(doctor, named, value, remedy):
    """None is named, none is set, or another one is."""
    doctor.environ["THE_KEY"] = value
    with VLLM("a", key="another") as server:
        found = doctor(models=own(server.url, **({"api_key_env": named} if named else {})))
    assert remedy in found["server-key"]["remedy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_server_of_another_user(doctor):
    """The user is named, and the key of the profile that admits it."""
    with stranger() as port:
        found = doctor(models=own(f"http://127.0.0.1:{port}/v1"))
        who = user_name(UID)
        assert f"add {who} to local_users" in found["other-user"]["remedy"]
        assert doctor(models=own(f"http://127.0.0.1:{port}/v1"), local_users=[who]) == {}


def test_an_engine_that_has_failed_behind_its_list_of_models(doctor):
    """VLLM's health check fails if its engine is dead, and its list of models does not."""

    class Sick(VLLM):
        def _reply(self, request):
            return Reply.error(503) if request.path == "/health" else super()._reply(request)

    with Sick("a") as server:
        found = doctor(models=own(server.url, model="a"))
    assert "log" in found["unhealthy"]["remedy"]


def test_a_server_whose_clock_is_wrong(doctor, server):
    """By the time of its response."""
    listing = Reply.of({"data": [{"id": "a"}]}, headers={"Date": email.utils.formatdate(time.time() - 7200, usegmt=True)})
    server.listing = listing
    found = doctor(models=own(server.url))
    assert "2 h behind" in found["clock"]["problem"]
    assert "chrony" in found["clock"]["remedy"]


def test_one_of_two_replicas_that_is_down_costs_no_task(doctor, server):
    """It is a warning only."""
    found = doctor(endpoints={"role": [server.url, f"http://127.0.0.1:{closed_port()}/v1"]})
    assert {kind: finding["level"] for kind, finding in found.items()} == {"server-down": "warning"}
    assert doctor.code == 0


# ---------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [("lama3.2", "write model: llama3.2"), ("gpt-oss:20b", "write one of these"), ("llama3.2:1b", "write model: llama3.2")],
)
def test_a_model_that_is_not_served(doctor, wanted, remedy):
    """With the names that are, and the nearest."""
    with Ollama("llama3.2:latest", "qwen3:8b") as server:
        found = doctor(models=own(server.url, model=wanted))["model-not-served"]
    assert "llama3.2:latest" in found["problem"]
    assert "qwen3:8b" in found["problem"]
    assert found["remedy"].startswith(remedy)
    assert found["where"].endswith("models.m.model")


def test_several_models_of_which_none_is_named(doctor):
    """The first is asked, so one is to be named; an embedding model is not proposed."""
    with LMStudio("bge-m3=embedding", "qwen3-8b", "gemma-3") as server:
        found = doctor(models=own(server.url))
        assert found["model-not-named"]["remedy"] == "add model: qwen3-8b"
        assert found["embedding-as-chat"]["level"] == "error"
    with VLLM(Model("a"), Model("b")) as server:  # two names of one model
        assert doctor(models=own(server.url)) == {}


def test_a_model_whose_server_sends_prompts_on_to_a_cloud(doctor):
    """Its address is local, and its prompts are not."""
    with Ollama("gpt-oss:120b-cloud", "qwen3:8b") as server:
        found = doctor(models=own(server.url, model="gpt-oss:120b-cloud"))["model-elsewhere"]
        assert (found["level"], found["remedy"]) == ("error", "write model: qwen3:8b")
        assert "model-elsewhere" not in doctor(models=own(server.url, model="qwen3:8b"))


@pytest.mark.parametrize("make", [Ollama, LMStudio])
def test_an_embedding_model_that_is_to_chat(doctor, make):
    """The chat models of the server are proposed."""
    with make("qwen3:8b", "nomic-embed-text:latest=embedding") as server:
        found = doctor(models=own(server.url, model="nomic-embed-text:latest"))
        assert found["embedding-as-chat"]["remedy"] == "write model: qwen3:8b"
        found = doctor(models=own(server.url, model="qwen3:8b"), routes={"embeddings": "m"})
        assert found["chat-as-embedding"]["remedy"] == "write model: nomic-embed-text:latest"


@pytest.mark.parametrize("server", [VLLM(Model("a", context=4096)), LlamaCpp(Model("a", context=4096))])
def test_a_context_longer_than_the_servers(doctor, server):
    """Longer prompts would fail, or be cut."""
    with server:
        found = doctor(models=own(server.url, context_length=32768))["context-too-long"]
        assert (found["level"], "write context_length: 4096" in found["remedy"]) == ("error", True)
        assert doctor(models=own(server.url, context_length=4096)) == {}


def test_a_context_that_ollama_does_not_tell(doctor):
    """It cuts longer prompts without a word, at 4096 tokens unless it was told otherwise; a loaded model's is known."""
    with Ollama(Model("a:latest")) as server:
        found = doctor(models=own(server.url, model="a", context_length=32768))["context-unknown"]
        assert (found["level"], "OLLAMA_CONTEXT_LENGTH=32768" in found["remedy"]) == ("warning", True)
        assert doctor(models=own(server.url, model="a", context_length=4096)) == {}
    with Ollama(Model("a:latest", context=65536, loaded=True)) as server:
        assert doctor(models=own(server.url, model="a", context_length=32768)) == {}


@pytest.mark.parametrize(
    ("model", "kind", "level"),
    [("a=thinking", "no-answer", "error"), ("a=wrong", "wrong-answer", "warning"), ("a", None, None)],
)
def test_a_model_that_is_listed_and_does_not_answer(doctor, model, kind, level):
    """Only `--ask` finds it, by a question of which the answer is known."""
    with LlamaCpp(model) as server:
        assert doctor(models=own(server.url)) == {}
        assert not [request for request in server.requests if request.method == "POST"]
        found = doctor("--ask", models=own(server.url))
    assert list(found) == ([] if kind is None else [kind])
    assert kind is None or (found[kind]["level"], bool(found[kind]["remedy"])) == (level, True)


def test_the_question_goes_to_ones_own_machines_only(doctor):
    """A cloud model costs money, and may not be meant; models that fail anyway are not asked."""
    doctor.environ["THE_KEY"] = KEY
    with Ollama("e:latest=embedding", "c:latest") as server, StubServer(models=["big"]) as cloud:
        models = far(cloud) | {"gone": {"backend": "vllm", "base_url": server.url, "model": "gone"}}
        models |= {"vectors": {"backend": "vllm", "base_url": server.url, "model": "e"}}
        profile = {"models": models, "routes": {"*": "m", "embeddings": "vectors"}, "allow_cloud": True}
        found = doctor("--ask", "--cloud", **profile)
        assert set(found) == {"model-not-served", "no-answer"}  # the stand-in has no path for embeddings
        assert found["no-answer"]["models"] == ["vectors"]
        assert not [request for request in cloud.requests if request.method == "POST"]


# ---------------------------------------------------------------------------------------------------------------- clouds


def test_a_key_that_is_missing(doctor, server):
    """An error for the task's own model, and a warning for a fallback, which is skipped."""
    found = doctor(models=far(server), allow_cloud=True)
    assert (found["key-missing"]["level"], "export THE_KEY" in found["key-missing"]["remedy"]) == ("error", True)
    assert found["task-without-model"]["level"] == "error"
    models = {"here": {"backend": "vllm", "base_url": server.url}} | far(server)
    found = doctor(models=models, routes={"*": "here"}, fallback=["m"], allow_cloud=True)
    assert {kind: finding["level"] for kind, finding in found.items()} == {"key-missing": "warning"}
    found = doctor(models=far(server, api_key_env=None), allow_cloud=True)
    assert "api_key_env" in found["key-not-named"]["remedy"]


@pytest.mark.parametrize(
    "key", [f'"{KEY}"', f"Bearer {KEY}", "sk-...", "your-api-key", "<key>", "two words", "schlüssel", "$KEY"]
)
def test_a_key_that_can_be_none(doctor, server, key):
    """Its value is not shown."""
    doctor.environ["THE_KEY"] = key
    found = doctor(models=far(server), allow_cloud=True)
    assert "copy the key into THE_KEY" in found["key-malformed"]["remedy"]
    assert not server.connections


def test_a_key_of_another_provider(doctor, server):
    """Its beginning says whose it is."""
    doctor.environ["THE_KEY"] = "sk-ant-" + KEY
    found = doctor(models=far(server, base_url="https://api.openai.com/v1"), allow_cloud=True)
    assert "a key of anthropic.com" in found["key-malformed"]["problem"]
    assert "sk-ant-0" not in json.dumps(found)


@pytest.mark.parametrize(
    ("listing", "kind", "remedy"),
    [
        (Reply.error(401), "key-refused", "make a new key"),
        (Reply.error(402), "quota", "credit"),
        (Reply.of({"data": [{"id": "bigger"}]}), "model-not-listed", "did you mean 'bigger'?"),
    ],
)
def test_what_a_cloud_server_says(doctor, server, listing, kind, remedy):
    """Only if it may be asked."""
    doctor.environ["THE_KEY"] = KEY
    server.listing = listing
    assert doctor(models=far(server), allow_cloud=True) == {}
    assert not server.connections
    assert remedy in doctor("--cloud", models=far(server), allow_cloud=True)[kind]["remedy"]


def test_a_cloud_server_that_cannot_be_reached(doctor, server):
    """With a proxy, it is the proxy that is to be looked at."""
    doctor.environ["THE_KEY"] = KEY
    models = far(server, base_url=f"http://127.0.0.1:{closed_port()}/v1")
    assert "HTTPS_PROXY" in doctor("--cloud", models=models, allow_cloud=True)["cloud-unreachable"]["remedy"]
    doctor.environ |= {"http_proxy": f"http://127.0.0.1:{closed_port()}", "no_proxy": "localhost"}
    found = doctor("--cloud", models=models, allow_cloud=True)["proxy"]
    assert ("check the proxy" in found["remedy"], found["where"], found["level"]) == (True, "http_proxy", "error")


def test_a_profile_without_the_cloud_asks_nobody_there(doctor, server):
    """Whatever the command line says."""
    with StubServer() as elsewhere:
        doctor.environ |= {"THE_KEY": KEY, "https_proxy": elsewhere.url}
        assert doctor("--cloud", models=own(server.url)) == {}
        assert not elsewhere.connections


def catalogued(monkeypatch, **fields):
    """Put a model named `big` into the catalogue."""
    entry = dataclasses.replace(
        next(iter(CATALOGUE.values())),
        **{
            "name": "big",
            "model": "big",
            "input_price": 1.0,
            "output_price": 2.0,
            "context_length": 1000,
            "priced_on": datetime.datetime.now(datetime.UTC).date(),
            "retired_on": None,
            "source": "https://prices.example",
            "base_url": "http://127.0.0.1/v1",
            **fields,
        },
    )
    monkeypatch.setattr(clouds, "find", lambda name: entry if name == "big" else None)


def ago(days):
    return datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days)


@pytest.mark.parametrize(
    ("entry", "model", "kind", "level", "remedy"),
    [
        ({}, {"input_price": None}, "price-missing", "warning", "https://prices.example"),
        ({"input_price": 3.0}, {}, "price-differs", "warning", "https://prices.example"),
        ({"priced_on": ago(400)}, {}, "prices-old", "warning", "https://prices.example"),
        ({"retired_on": ago(1)}, {}, "model-retired", "error", "models list"),
        ({"retired_on": ago(-30)}, {}, "model-retired", "warning", "models list"),
        ({}, {"context_length": 2000}, "context-too-long", "warning", "context_length: 1000"),
    ],
)
def test_what_the_catalogue_says(doctor, server, monkeypatch, entry, model, kind, level, remedy):
    """Of prices, their date, retirement and context length; without asking anybody."""
    doctor.environ["THE_KEY"] = KEY
    catalogued(monkeypatch)
    assert doctor(models=far(server), allow_cloud=True) == {}
    catalogued(monkeypatch, **entry)
    found = doctor(models=far(server, **model), allow_cloud=True)
    assert (found[kind]["level"], remedy in found[kind]["remedy"]) == (level, True)
    assert not server.connections


def test_a_price_that_nobody_knows(doctor, server):
    """Neither the profile nor the catalogue."""
    doctor.environ["THE_KEY"] = KEY
    found = doctor(models=far(server, input_price=None, output_price=None), allow_cloud=True)
    assert "input_price" in found["price-missing"]["remedy"]


def test_the_catalogue_says_nothing_of_another_providers_model_of_the_same_name(doctor, server, monkeypatch):
    """Prices and dates are the provider's."""
    doctor.environ["THE_KEY"] = KEY
    catalogued(monkeypatch, base_url="https://api.example/v1", input_price=3.0, retired_on=ago(1))
    assert doctor(models=far(server), allow_cloud=True) == {}


def test_a_date_before_the_catalogues(doctor, server, monkeypatch):
    """A machine whose clock was never set."""
    doctor.environ["THE_KEY"] = KEY
    monkeypatch.setattr(clouds, "_today", lambda subject: datetime.date(2020, 1, 1))
    found = doctor(models=far(server), allow_cloud=True)["clock"]
    assert ("2020-01-01" in found["problem"], "timedatectl" in found["remedy"]) == (True, True)


def test_a_budget_that_limits_nothing(doctor, server):
    """Without a price, nothing is spent."""
    tiers = {"one": {"model": "m", "budget": 0.1}}
    found = doctor(models=own(server.url), tiers=tiers)["price-missing"]
    assert (found["level"], found["where"].endswith("tiers.one.budget")) == ("warning", True)
    assert doctor(models=own(server.url, gpu_hour_price=0.5), tiers=tiers) == {}


# -------------------------------------------------------------------------------------------------- the fleet, and SLURM


def entry(**fields):
    """A server of the registry, as its node wrote it."""
    now = time.time()
    known = {"server": "coder", "role": "coder", "host": "127.0.0.1", "port": 8002, "model": "a", "state": "ready"}
    return Entry(**({**known, "node": "node3", "started": now, "updated": now} | fields))


def write(folder, one):
    folder.mkdir(exist_ok=True)
    (folder / one.file_name).write_text(one.text())
    (folder / one.file_name).chmod(0o644)


def test_a_role_of_which_no_server_is_registered(doctor):
    """With the fleet's commands."""
    found = doctor(endpoints={"coder": "registry:coder"}, registry=str(doctor.folder / "registry"))
    assert "fleet up coder" in found["role-without-server"]["remedy"]
    assert found["task-without-model"]["level"] == "error"


@pytest.mark.parametrize(("text", "remedy"), [(None, "did you mean 'coder'?"), ("roles: {}", "correct the fleet file")])
def test_a_role_that_no_fleet_has(doctor, text, remedy):
    """`fleet up` would not know it."""
    if text is not None:
        Path("config").mkdir()
        Path("config/fleet.yaml").write_text(text)
    found = doctor(endpoints={"code": "registry:coders"}, registry=str(doctor.folder / "registry"))
    assert remedy in found["role-without-server"]["remedy"]


@pytest.mark.parametrize(
    ("fields", "kind", "problem", "remedy"),
    [
        ({"updated": -3600}, "registry-stale", "not renewed for 60 min", "fleet status"),
        ({"updated": -3600, "expires": -600}, "registry-stale", "its job ended 10 min ago", "fleet status"),
        ({"updated": 3600}, "clock", "60 min ahead of", "chrony"),
    ],
)
def test_an_entry_that_is_too_old_or_too_new(doctor, fields, kind, problem, remedy):
    """Its server is ignored, so it is said."""
    folder, now = doctor.folder / "registry", time.time()
    write(folder, entry(**{name: now + seconds for name, seconds in fields.items()}))
    found = doctor(endpoints={"coder": "registry:coder"}, registry=str(folder))
    assert problem in found[kind]["problem"]
    assert remedy in found[kind]["remedy"]


def test_a_registry_that_anybody_may_write_to(doctor, server):
    """It is ignored."""
    folder = doctor.folder / "registry"
    ServerRegistry(folder).publish(entry(port=server.port, model="stub-model", node=""))
    profile = {"endpoints": {"coder": "registry:coder"}, "registry": str(folder)}
    assert doctor(**profile) == {}
    folder.chmod(0o777)
    assert doctor(**profile)["registry"]["remedy"] == f"chmod o-w {folder}"


def test_a_registry_whose_key_is_open_or_lost(doctor, server):
    """Nothing else is hidden by it."""
    key, folder = doctor.folder / "key", doctor.folder / "registry"
    profile = {"endpoints": {"coder": "registry:coder"}, "registry": str(folder)}
    doctor.environ["WORKFLOW_COMPOSER_REGISTRY_KEY"] = str(key)
    assert "openssl rand" in doctor(**profile)["registry-key"]["remedy"]
    key.write_text("k" * 32)
    key.chmod(0o644)
    assert f"chmod 600 {key}" in doctor(**profile)["registry-key"]["remedy"]
    key.chmod(0o600)
    write(folder, entry(port=server.port, model="stub-model", node=""))
    assert "WORKFLOW_COMPOSER_REGISTRY_KEY" in doctor(**profile)["registry"]["remedy"]
    assert "role-without-server" in doctor(**profile)


def test_a_slurm_whose_controller_is_silent(doctor, server):
    """Its commands alone run no job."""
    for name, text in {"sbatch": "", "scontrol": "echo Slurmctld\\(primary\\) at head is DOWN"}.items():
        (doctor.programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (doctor.programs / name).chmod(0o755)
    found = doctor(endpoints={"coder": "registry:coder"}, registry=str(doctor.folder / "registry"))["slurm-silent"]
    assert (found["level"], "scontrol ping" in found["remedy"]) == ("warning", True)
    assert "slurm-silent" not in doctor(models=own(server.url)), "a profile whose servers run elsewhere needs no SLURM"


# ----------------------------------------------------------------------------------------------------------- the machine


def test_a_file_system_without_locks(doctor, server, monkeypatch):
    """As NFS is without its lock daemon."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    found = doctor(models=own(server.url))["no-locks"]
    assert "nolock" in found["remedy"]
    assert not list(doctor.folder.glob(".doctor*"))


def test_a_folder_that_cannot_be_written_to(doctor, server):
    """A file is where the folder of the state should be."""
    (doctor.folder / "file").write_text("")
    doctor.environ["XDG_STATE_HOME"] = str(doctor.folder / "file")
    assert "ls -ld" in doctor(models=own(server.url))["not-writable"]["remedy"]


def test_a_disk_that_is_full(doctor, server, monkeypatch):
    """Journals and metrics would be lost."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 10**6))
    assert "du -xh" in doctor(models=own(server.url))["disk-full"]["remedy"]


def test_a_file_server_with_another_time(doctor, server, monkeypatch):
    """By the time that it gives a new file."""
    monkeypatch.setattr(machine, "_touched", lambda path: time.time() - 400)
    assert "7 min behind" in doctor(models=own(server.url))["clock"]["problem"]


def test_few_open_files(doctor, server, monkeypatch):
    """As macOS has by default."""
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (256, 256))
    assert "ulimit -n" in doctor(models=own(server.url))["open-files"]["remedy"]


@pytest.mark.parametrize(("mode", "level"), [(0o666, "error"), (0o644, None)])
def test_a_profile_that_anybody_may_change(doctor, server, mode, level):
    """Whoever does so redirects prompts."""
    doctor(models=own(server.url))
    path = doctor.folder / "mine.yaml"
    path.chmod(mode)
    found = doctor.run("-s", str(path))
    assert found.get("rights", {}).get("level") == level
    assert level is None or found["rights"]["remedy"] == f"chmod o-w {path}"


def test_metrics_that_anybody_may_read(doctor, server):
    """They may hold prompts."""
    file = doctor.folder / "metrics.jsonl"
    file.write_text("")
    doctor.environ["WORKFLOW_COMPOSER_METRICS"] = str(file)
    file.chmod(0o644)
    assert doctor(models=own(server.url))["rights"]["remedy"] == f"chmod o-rwx {file}"
    file.chmod(0o600)
    assert doctor(models=own(server.url)) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_profile_of_another_user(doctor, server):
    """Who can change it at any time."""
    doctor(models=own(server.url))
    path = doctor.folder / "mine.yaml"
    os.chown(path, UID, -1)
    assert user_name(UID) in doctor.run("-s", str(path))["rights"]["problem"]


@pytest.mark.parametrize("excluded", ["", "localhost,127.0.0.1"])
def test_a_proxy_between_this_machine_and_itself(doctor, server, excluded):
    """Not for this program, but for the others."""
    doctor.environ |= {"HTTP_PROXY": "http://proxy.example:3128", "NO_PROXY": excluded}
    found = doctor(models=own(server.url))
    assert ("proxy" in found) == (not excluded)
    assert excluded or "NO_PROXY=localhost" in found["proxy"]["remedy"]


@pytest.mark.parametrize(
    ("proxy", "remedy"), [("socks5://p.example:1080", "socksio"), ("ftp://p.example", "http://HOST:PORT")]
)
def test_a_proxy_that_cannot_be_used(doctor, server, proxy, remedy, monkeypatch):
    """SOCKS needs a library of its own."""
    monkeypatch.setattr(clouds.importlib.util, "find_spec", lambda name: None)
    doctor.environ |= {"THE_KEY": KEY, "http_proxy": proxy, "no_proxy": "localhost"}
    found = doctor(models=far(server), allow_cloud=True)
    assert (found["proxy"]["level"], remedy in found["proxy"]["remedy"]) == ("error", True)


REQUIRED = ["click>=99", "no-such-library>=1,<2", "mistralrs<0.0.1; extra == 'embedded'", 'pluggy<0.1; extra == "serve"']


def test_versions_of_libraries(doctor, server, monkeypatch):
    """Those that the package or the profile needs are errors, those of other extras warnings, if installed."""
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: [*REQUIRED, "not-here; extra == 'ray'"])
    monkeypatch.setattr(machine.importlib.metadata, "version", _version)
    doctor(models=own(server.url))
    seen = [(f["kind"], f["level"], f["remedy"].rpartition(" ")[2]) for f in doctor.report["findings"]]
    assert seen == [
        ("library-version", "error", "'click>=99'"),
        ("library-missing", "error", "'no-such-library>=1,<2'"),
        ("library-version", "warning", "'mistralrs<0.0.1'"),
        ("library-version", "warning", "'pluggy<0.1'"),
    ]
    doctor(models={"m": {"backend": "embedded", "path": "small"}})
    levels = {f["remedy"].rpartition(" ")[2]: f["level"] for f in doctor.report["findings"]}
    assert levels["'mistralrs<0.0.1'"] == "error"


def _version(name):
    known = {"click": "8.1.7", "mistralrs": "0.9.1", "pluggy": "1.7.0"}
    if name not in known:
        raise machine.importlib.metadata.PackageNotFoundError(name)
    return known[name]


# --------------------------------------------------------------------------------------------------------------- profile


def test_a_profile_that_does_not_load(doctor):
    """Every fault with its place; and this machine is looked at all the same."""
    path = doctor.folder / "bad.yaml"
    path.write_text("profile_name: bad\nalow_cloud: false\nmodels:\n  m: {backend: vllm}\n")
    doctor.run("-s", str(path))
    assert doctor.code == 2
    places = [finding["where"] for finding in doctor.report["findings"]]
    assert places == [f"{path}:2: alow_cloud", f"{path}:4: models.m"]
    assert all(finding["remedy"] for finding in doctor.report["findings"])


def test_a_part_of_the_profile_that_is_not_installed(doctor, server):
    """A router of a plugin that is missing."""
    found = doctor(models=own(server.url), routers=["no_such_router"])
    assert "no_such_router" in found["profile"]["problem"]
    assert found["profile"]["remedy"]


async def test_a_plugin_that_is_broken(server):
    """It cannot provide what a profile may name."""
    host = plugin_host(discover=False)
    host.discover([EntryPoint("lost", "no_such_module:plugin", "workflow_composer")])
    config = StrategyConfig(profile_name="p", models=own(server.url), task_routing={"*": "m"})
    found = await examine(config, {}, host=host)
    (one,) = [finding for finding in found if finding.kind == "plugin"]
    assert "no_such_module" in one.problem
    assert "uninstall" in one.remedy


def test_no_profile_and_none_found(doctor, monkeypatch):
    """What to do is said as by every other command."""

    async def detect(environ):
        raise NoStrategy("no strategy was named", hint="start a server, or name a strategy")

    monkeypatch.setattr(resources, "detect_strategy", detect)
    found = doctor.run()
    assert (doctor.code, found["no-profile"]["remedy"]) == (3, "start a server, or name a strategy")
    assert doctor.report["profile"] is None


@pytest.mark.parametrize("target", ["m", "cascade", "mv_cascade_m_k2_t0.7_m_k1_t0.0"])
def test_a_task_whose_every_model_fails(doctor, target):
    """Through roles, tiers and routing strings; those that are answered are not named."""
    with VLLM("a") as server:
        models = own(f"http://127.0.0.1:{closed_port()}/v1") | {"n": {"backend": "vllm", "base_url": server.url}}
        tiers = {"m": {"model": "m"}}
        found = doctor(models=models, tiers=tiers, routes={"x": target, "y": "n"}, routers=["cascade", "provider"])
    problem = found["task-without-model"]["problem"]
    assert ("task x" in problem, " y" in problem) == (True, False)
