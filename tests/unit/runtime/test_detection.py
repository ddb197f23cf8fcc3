"""Which strategy is used where none is named: always one that stays on one's own machines."""

import itertools
import re

import pytest

from tests.integration.stub_server import MODEL, StubServer
from tests.paths import PROFILES
from workflow_composer import ModelOrchestrator
from workflow_composer.backends.replicas.registry import REGISTRY_VARIABLE, Entry, ServerRegistry
from workflow_composer.errors import NoStrategy
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.runtime.resources import detect_strategy

KEYS = ("DEEPSEEK_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")


class Machine:
    """What detection sees: the shipped profiles with nothing behind their ports, the user's own before them, a registry."""

    def __init__(self, folder):
        self.own, self.shipped, self.registry = (folder / name for name in ("own", "shipped", "registry"))
        for made in (self.own, self.shipped, self.registry):
            made.mkdir()
        for path in PROFILES.glob("*.yaml"):
            (self.shipped / path.name).write_text(re.sub(r"localhost:800\d", "127.0.0.1:9", path.read_text()))
        self.environ = {REGISTRY_VARIABLE: str(self.registry)}
        self.said = []

    def serve(self, stub):
        """Let the fleet have this server for its coder."""
        place = {"host": stub.host, "port": stub.port, "model": MODEL}
        ServerRegistry(self.registry).publish(
            Entry(server="coder", role="coder", state="ready", started=1.0, updated=0.0, **place)
        )

    async def detect(self, *, embedded=True, **environ):
        search = [self.own, self.own, self.shipped]
        found = {**self.environ, **environ}
        return await detect_strategy(found, search=search, embedded=lambda: embedded, report=self.said.append)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("servers", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("keys", [keys for n in range(len(KEYS) + 1) for keys in itertools.combinations(KEYS, n)])
async def test_whatever_is_there_nothing_may_leave(machine, servers, embedded, keys):
    """Own servers, the embedded engine, keys in any combination: a profile that forbids the cloud, or none at all."""
    with StubServer() as stub:
        if servers:
            machine.serve(stub)
        if not servers and not embedded:
            with pytest.raises(NoStrategy):
                await machine.detect(embedded=embedded, **dict.fromkeys(keys, "k"))
            return
        found = await machine.detect(embedded=embedded, **dict.fromkeys(keys, "k"))
    assert found.profile_name == ("t4_local_only" if servers else "development")
    assert not found.allow_cloud
    assert all(spec.local for spec in found.backend_specs().values())
    assert machine.said == []


@pytest.mark.parametrize("key", KEYS)
async def test_a_key_alone_is_an_error_that_says_how_to_use_it(machine, key):
    """The variable is named, and the strategy to ask for; the value is not repeated."""
    with pytest.raises(NoStrategy) as caught:
        await machine.detect(embedded=False, **{key: "sk-its-value"})
    assert f"{key} is set; `-s cloud_only` uses it" in caught.value.message
    assert "-s cloud_only sends every prompt to the cloud" in caught.value.hint
    assert isinstance(caught.value, RuntimeError)
    assert "sk-its-value" not in str(caught.value)
    assert not [other for other in KEYS if other != key and other in str(caught.value)]


async def test_an_empty_key_is_none(machine):
    """A variable that is set to nothing does not count."""
    with pytest.raises(NoStrategy) as caught:
        await machine.detect(embedded=False, OPENAI_API_KEY="")
    assert "is set" not in str(caught.value)


async def test_with_nothing_the_error_says_what_was_looked_for_and_what_to_do(machine):
    """Places, variables, and the extra to install."""
    with pytest.raises(NoStrategy) as caught:
        await machine.detect(embedded=False)
    for word in ("127.0.0.1:9", *KEYS, "-s cloud_only", "BIOPIPELINES_STRATEGY", "[embedded]"):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["t4_local_only", "development"])
async def test_a_profile_that_does_not_load_is_passed_over_with_one_warning(machine, name):
    """The warning names file and reason, and the next profile of that name is taken."""
    (machine.own / f"{name}.yaml").write_text("profile_name: mine\nalow_cloud: false\nand: more\n")
    with StubServer() as stub:
        if name == "t4_local_only":
            machine.serve(stub)
        found = await machine.detect()
    assert (found.profile_name, found.directory) == (name, machine.shipped)
    (said,) = machine.said
    assert str(machine.own / f"{name}.yaml") in said
    assert "alow_cloud: unknown key" in said
    assert "(and 1 more)" in said


@pytest.mark.parametrize("name", ["t4_local_only", "development"])
async def test_an_own_profile_that_may_use_the_cloud_is_passed_over_with_one_warning(machine, name):
    """Also where it says nothing about the cloud, which then is allowed; the shipped one is taken."""
    (machine.own / f"{name}.yaml").write_text(f"profile_name: {name}\nmodels: {{m: {{backend: fake}}}}\n")
    with StubServer() as stub:
        machine.serve(stub)
        if name == "development":
            (machine.shipped / "t4_local_only.yaml").unlink()
        found = await machine.detect()
    assert (found.profile_name, found.directory, found.allow_cloud) == (name, machine.shipped, False)
    (said,) = machine.said
    assert str(machine.own / f"{name}.yaml") in said
    assert "allow_cloud is not false" in said


async def test_an_own_profile_that_stays_is_taken_before_the_shipped_one(machine):
    """A copy with other servers, under the same name."""
    with StubServer() as stub:
        text = f"profile_name: mine\nallow_cloud: false\nvllm_endpoints: {{coder: {stub.url}}}\n"
        (machine.own / "t4_local_only.yaml").write_text(text)
        assert (await machine.detect(embedded=False)).profile_name == "mine"
    assert machine.said == []


async def test_a_cloud_profile_that_does_not_load_leaves_the_error_as_it_is(machine):
    """The keys are then those of the shipped one."""
    (machine.own / "cloud_only.yaml").write_text("nonsense")
    with pytest.raises(NoStrategy, match="OPENAI_API_KEY is set; `-s cloud_only` uses it"):
        await machine.detect(embedded=False, OPENAI_API_KEY="k")
    assert len(machine.said) == 1


def test_the_orchestrator_says_what_was_passed_over_and_stays_on_its_own_machines(tmp_path, monkeypatch):
    """`ModelOrchestrator()` with a key, a broken profile of the user's, and a server of the fleet."""
    monkeypatch.chdir(tmp_path)  # the checkout has profiles of its own
    own = tmp_path / "workflow-composer" / "strategies"
    own.mkdir(parents=True)
    (own / "t4_local_only.yaml").write_text("nonsense")
    environ = {"XDG_CONFIG_HOME": str(tmp_path), REGISTRY_VARIABLE: str(tmp_path / "registry"), "OPENAI_API_KEY": "k"}
    with StubServer() as stub, (tmp_path / "log").open("w") as log:
        place = {"host": stub.host, "port": stub.port, "model": MODEL}
        ServerRegistry(tmp_path / "registry").publish(
            Entry(server="coder", role="coder", state="ready", started=1.0, updated=0.0, **place)
        )
        with ModelOrchestrator(metrics=MemorySink(), environ=environ, log=log) as orchestrator:
            found = orchestrator.status(probe=False)
    assert (found.strategy, found.chosen_by, found.allow_cloud) == ("t4_local_only", "detection", False)
    assert (tmp_path / "log").read_text().count("in the choice of a strategy") == 1


LOCAL = """
profile_name: local
allow_cloud: {cloud}
vllm_endpoints: {{local: "http://127.0.0.1:9/v1"}}
task_routing: {{"*": local}}
"""


async def test_the_profile_that_init_has_written_is_used_first(machine):
    """Whether its server answers or not; but only if it keeps data local."""
    path = machine.own / "local.yaml"
    path.write_text(LOCAL.format(cloud="false"))
    with StubServer() as stub:
        machine.serve(stub)
        assert (await machine.detect()).profile_name == "local"
        path.write_text(LOCAL.format(cloud="true"))
        assert (await machine.detect()).profile_name == "t4_local_only"
    assert any("may use the cloud" in line for line in machine.said)
