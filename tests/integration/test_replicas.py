"""A role with several servers, which die, hang, drain, come and go while requests are under way."""

import asyncio
import io
import time

import pytest

from tests.integration.replica_profile import CONTEXT, asked, entry, orchestrator, profile, publish
from tests.integration.stub_server import MODEL, Reply, StubServer
from workflow_composer.backends.base import BackendContext
from workflow_composer.backends.http.egress import EgressPolicy
from workflow_composer.backends.openai.backend import OpenAICompatibleBackend
from workflow_composer.backends.replicas import backend as replicas_module
from workflow_composer.backends.replicas import replica_set
from workflow_composer.backends.replicas.backend import vllm_backend
from workflow_composer.backends.replicas.registry import ServerRegistry
from workflow_composer.backends.replicas.replica import Standing
from workflow_composer.errors import AllCandidatesFailed, StreamInterrupted
from workflow_composer.types import LLMRequest

SOON = 3.0
"""Seconds in which a change of the registry is seen."""
PATIENCE = 20.0
"""Seconds in which it is seen by a machine that is busy."""


@pytest.fixture
def servers():
    """Two servers."""
    with StubServer() as first, StubServer() as second:
        yield [first, second]


def places(servers):
    """Their addresses."""
    return [server.url for server in servers]


async def until(condition, limit=60.0):
    """Wait for a condition."""
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        await asyncio.sleep(0.01)


async def preferred(models, servers, context=CONTEXT):
    """The server that gets the questions behind this context, and the others."""
    before = [len(asked(server)) for server in servers]
    await models.agenerate("Which?", system=context)
    first = next(s for s, n in zip(servers, before, strict=True) if len(asked(s)) > n)
    return first, [server for server in servers if server is not first]


# -------------------------------------------------------------------------------------------------------- the balance


async def test_questions_behind_one_context_meet_one_server(servers):
    """Twenty questions, one after the other; another context may meet another server."""
    async with orchestrator(profile(places(servers))) as models:
        first, (other,) = await preferred(models, servers)
        for number in range(20):
            await models.agenerate(f"Question {number}?", system=CONTEXT)
        assert (len(asked(first)), len(asked(other))) == (21, 0)
        contexts = [f"Project {n}. {CONTEXT}" for n in range(12)]
        assert len({(await preferred(models, servers, context))[0].port for context in contexts}) == 2


async def test_votes_stay_with_the_server_that_knows_the_prompt(servers):
    """Samples that are drawn as calls of their own share a prompt, and so a cache."""
    config = profile(places(servers), routers=["cascade", "provider"])
    async with orchestrator(config) as models:
        first, (other,) = await preferred(models, servers)
        await models.agenerate(LLMRequest.of("Vote!", system=CONTEXT, model="mv_coder_k4_t0.7"))
        assert asked(first).count("Vote!") >= 1
        assert asked(other) == []


async def known(models, servers):
    """Ask until every server has been asked for its metrics, so that something is known of each."""
    ends = time.monotonic() + 60
    while not all(any(request.path == "/metrics" for request in server.requests) for server in servers):
        await models.agenerate("Who is there?")
        assert time.monotonic() < ends
    while len(set(standings(models))) > 1 or Standing.GOOD not in standings(models):
        await models.agenerate("Who is there?")
        assert time.monotonic() < ends


def load_of(models, server):
    """How busy the orchestrator thinks that a server is."""
    return next(r.load(time.monotonic()) for r in replicas(models) if r.place.url == server.url)


def standings(models):
    """What speaks for each server of the role."""
    return [replica.standing(time.monotonic()) for replica in replicas(models)]


def replicas(models):
    """The servers that the orchestrator knows."""
    (endpoint,) = models._active.endpoints.values()
    return endpoint.backend._set.replicas


async def test_a_slow_server_gets_less_work(servers):
    """Sixteen workers share two hundred questions; the quick server answers most of them."""
    slow, quick = servers
    async with orchestrator(profile(places(servers))) as models:
        await known(models, servers)
        before = [len(asked(slow)), len(asked(quick))]
        slow.answer = lambda request: Reply.chat("slow", delay=1.0)
        questions = iter(range(200))

        async def work():
            for number in questions:
                await models.agenerate(f"{number}?")

        await asyncio.gather(*(work() for _ in range(16)))
        by_slow, by_quick = len(asked(slow)) - before[0], len(asked(quick)) - before[1]
    assert by_slow + by_quick == 200
    assert by_quick > 2 * by_slow > 0


async def test_a_server_that_others_keep_busy_gets_less_work(servers):
    """By its own metrics: sixty requests of somebody else's; the other server answers all of these."""
    busy, free = servers
    busy.metrics = 'vllm:num_requests_running{engine="0"} 40.0\nvllm:num_requests_waiting{engine="0"} 20.0\n'
    free.metrics = 'vllm:num_requests_running{engine="0"} 0.0\n'
    async with orchestrator(profile(places(servers))) as models:
        await known(models, servers)
        ends = time.monotonic() + 60
        while load_of(models, busy) < 50:
            await models.agenerate("Who is busy?")
            assert time.monotonic() < ends
        before = len(asked(busy))
        for _ in range(10):
            await models.agenerate("Short?")
            await models.agenerate("Long?", system=CONTEXT)
        assert len(asked(busy)) == before


async def test_metrics_are_asked_for_once_a_second_at_most_and_only_in_use(servers):
    """Two and a half seconds of requests, then silence."""
    async with orchestrator(profile(places(servers))) as models:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < 2.5:
            await models.agenerate("Hello?")
        count = [sum(r.path == "/metrics" for r in server.requests) for server in servers]
        assert all(2 <= n <= seconds + 2 for n in count)
        await asyncio.sleep(1.5)  # that nothing comes cannot be waited for otherwise
        assert [sum(r.path == "/metrics" for r in server.requests) for server in servers] == count


# -------------------------------------------------------------------------------------------------------- the failures


@pytest.mark.parametrize(
    "reply",
    [
        Reply.chat("cut", die_after=1),
        Reply.error(500, "the engine is dead"),
        Reply.error(404, "The model does not exist."),
        Reply.error(401, "who are you?"),
        Reply.error(429, "the queue is full"),
    ],
    ids=["cut", "500", "404", "401", "429"],
)
async def test_a_request_that_one_server_fails_is_answered_by_the_other(servers, reply):
    """It is one request with one answer; the failed call is on its record, and is nobody's to retry."""
    async with orchestrator(profile(places(servers))) as models:
        first, _ = await preferred(models, servers)
        first.script(reply)
        response = await models.agenerate("Again?", system=CONTEXT)
    assert response.text == "an answer"
    assert [attempt.error_type is None for attempt in response.attempts] == [False, True]
    assert f":{first.port}" in response.attempts[0].error
    assert response.decision.fallback_depth == 0


async def test_a_faulty_request_is_not_asked_elsewhere(servers):
    """The server is right."""
    async with orchestrator(profile(places(servers))) as models:
        first, (other,) = await preferred(models, servers)
        first.script(Reply.error(400, "temperature must be non-negative"))
        with pytest.raises(Exception, match="temperature"):
            await models.agenerate("Again?", system=CONTEXT)
        assert asked(other) == []


async def test_a_request_that_breaks_two_servers_is_not_given_to_a_third():
    """It may be what is wrong."""
    with StubServer() as a, StubServer() as b, StubServer() as c:
        for server in (a, b, c):
            server.answer = lambda request: Reply.error(500, "boom")
        async with orchestrator(profile(places([a, b, c]))) as models:
            with pytest.raises(AllCandidatesFailed) as caught:
                await models.agenerate("Boom?")
        assert sum(len(asked(server)) for server in (a, b, c)) == 2
        assert [attempt.error_type for attempt in caught.value.attempts] == ["ServerFailed", "ServerFailed"]


async def test_a_stream_fails_over_before_its_first_piece_and_never_after_it(servers):
    """What a client has been sent is not silently replaced."""
    async with orchestrator(profile(places(servers))) as models:
        first, (other,) = await preferred(models, servers)
        first.script(Reply.stream("never", "seen", die_after=0))
        stream = models.astream("Again?", system=CONTEXT)
        assert "".join([chunk.text async for chunk in stream]) == "an answer"
        assert [attempt.error_type for attempt in stream.response.attempts] == ["ServerUnreachable", None]
        other.script(Reply.stream("half ", "an answer", die_after=2))
        for server in servers:
            server.answer = lambda request: Reply.stream("half ", "an answer", die_after=2)
        text = []
        with pytest.raises(StreamInterrupted):
            async for chunk in models.astream("Once more?", system=CONTEXT):
                text.append(chunk.text)
        assert "".join(text) == "half "


async def test_vectors_come_from_the_server_that_answers(servers, unused_tcp_port):
    """Embeddings fail over as answers do; a port without a server costs one failed connection."""
    dead = f"http://127.0.0.1:{unused_tcp_port}/v1"
    async with orchestrator(profile([dead, servers[0].url])) as models:
        for _ in range(20):
            assert len((await models.aembed(["a", "b"], model="coder")).vectors) == 2
        attempts = [metric.attempts for metric in models._sinks[0].metrics]
    assert sum(attempts) <= 21


async def test_a_dead_server_in_the_list_costs_one_failed_connection_in_many_requests(servers, unused_tcp_port):
    """And opens no breaker: a hundred requests, one after the other, all answered at the first attempt but one."""
    dead = f"http://127.0.0.1:{unused_tcp_port}/v1"
    async with orchestrator(profile([dead, servers[0].url], circuit_breaker={"failures": 1})) as models:
        responses = [await models.agenerate(f"{number}?") for number in range(100)]
    assert sum(len(response.attempts) for response in responses) <= 101


async def test_a_hanging_server_is_noticed_by_its_silence(servers):
    """SIGSTOP: it accepts connections and answers nothing; after two seconds no request goes there."""
    hanging = servers[0]
    async with orchestrator(profile(places(servers))) as models:
        await asyncio.gather(*(models.agenerate(f"{n}?") for n in range(4)))
        hanging.freeze()
        stuck = []
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            task = asyncio.ensure_future(models.agenerate("Hello?"))
            done, _ = await asyncio.wait({task}, timeout=0.5)
            if not done:
                stuck.append(task)
        for _ in range(20):
            await asyncio.wait_for(models.agenerate("Hello?"), 20)
        hanging.thaw()
        await asyncio.gather(*stuck)  # none is lost, if the server goes on


@pytest.mark.parametrize("streamed", [False, True])
async def test_servers_whose_engines_hang_are_left_alone_after_some_calls(servers, streamed):
    """They answer for their metrics and nothing else; then calls are refused at once, and a fallback would be quick."""
    for server in servers:
        server.answer = lambda request: Reply(hang=True)
        server.metrics = 'vllm:num_requests_running{engine="0"} 1.0\n'
    limits = {"first_token": 0.2, "total": 0.2 if not streamed else 60.0}
    config = profile(places(servers), timeouts=limits, circuit_breaker={"failures": 2, "cooldown": 600})
    async with orchestrator(config) as models:
        errors = []
        while "CircuitOpen" not in errors:
            with pytest.raises(AllCandidatesFailed) as caught:
                if streamed:
                    await anext(models.astream("Anyone?"))
                else:
                    await models.agenerate("Anyone?")
            errors.append(caught.value.attempts[-1].error_type)
            assert len(errors) < 30
    assert set(errors[:-1]) == {"CallTimeout"}
    assert len(errors) >= 5


async def test_without_any_server_the_error_says_what_to_do(tmp_path):
    """The role, and the commands; in a moment another attempt may succeed."""
    async with orchestrator(profile("registry:coder", tmp_path)) as models:
        with pytest.raises(AllCandidatesFailed, match=r"no server of coder is ready.*fleet submit coder") as caught:
            await models.agenerate("Anyone?")
    assert [attempt.error_type for attempt in caught.value.attempts] == ["ServerUnreachable"]


async def test_the_fallback_answers_while_no_server_is_there(tmp_path):
    """Every request, at once; and the first server to come is used within seconds, whatever failed before."""
    models_of = {"spare": {"backend": "fake"}}
    config = profile(
        "registry:coder", tmp_path, models=models_of, fallback=["spare"], circuit_breaker={"failures": 1, "cooldown": 3600}
    )
    async with orchestrator(config) as models:
        for _ in range(10):
            assert (await models.agenerate("Anyone?")).decision.candidate == "spare"
        with StubServer() as server:
            publish(tmp_path, server)
            started = time.monotonic()
            while (await models.agenerate("Anyone?")).decision.candidate != "coder":
                assert time.monotonic() - started < PATIENCE
                await asyncio.sleep(0.02)


# -------------------------------------------------------------------------------------------------------- come and go


async def test_a_new_server_is_used_and_a_draining_one_left_alone_within_seconds(tmp_path, servers):
    """By what the registry says; the call that a draining server has is finished there."""
    old, new = servers
    publish(tmp_path, old)
    async with orchestrator(profile("registry:coder", tmp_path)) as models:
        old.script(Reply.chat("the last one", delay=2.5))
        last = asyncio.ensure_future(models.agenerate("Slow?"))
        await until(lambda: asked(old) == ["Slow?"])
        publish(tmp_path, old, state="draining")
        publish(tmp_path, new, "coder-2")
        started = time.monotonic()
        while not asked(new):
            await models.agenerate("Quick?")
            await asyncio.sleep(0.02)
            assert time.monotonic() - started < PATIENCE
        before = len(asked(old))
        await asyncio.gather(*(models.agenerate("Quick?") for _ in range(20)))
        assert len(asked(old)) == before
        assert (await last).text == "the last one"


async def test_the_connections_of_a_server_that_has_gone_are_closed(tmp_path, servers):
    """After its last call."""
    old, new = servers
    gone = publish(tmp_path, old)
    publish(tmp_path, new, "coder-2")
    async with orchestrator(profile("registry:coder", tmp_path)) as models:
        await asyncio.gather(*(models.agenerate(f"{n}?") for n in range(10)))
        assert old.open
        ServerRegistry(tmp_path).withdraw(gone)
        ends = time.monotonic() + 60
        while old.open:
            await models.agenerate("Hello?")
            await asyncio.sleep(0.05)
            assert time.monotonic() < ends


async def test_connections_that_are_about_to_be_closed_are_closed_by_the_end(tmp_path, servers, monkeypatch):
    """A server has gone, and the end comes before the task that closes its connections has taken its first step."""
    monkeypatch.setattr(replica_set, "GONE", 0.0)
    monkeypatch.setattr(replicas_module, "ASK_EVERY", 0.0)
    old, new = servers
    gone = publish(tmp_path, old)
    publish(tmp_path, new, "coder-2")
    async with orchestrator(profile("registry:coder", tmp_path)) as models:
        await asyncio.gather(*(models.agenerate(f"{n}?", system=f"{n} {CONTEXT}") for n in range(20)))
        assert old.open
        ServerRegistry(tmp_path).withdraw(gone)
        kept = replicas(models)  # held, so that no garbage collection closes what nobody else does
        (endpoint,) = models._active.endpoints.values()
        backend = endpoint.backend
        started = time.monotonic()
        while len(replicas(models)) == 2:
            assert time.monotonic() - started < PATIENCE
            await asyncio.sleep(0.01)
            await backend._look_around()
        await backend.close()
        assert old.wait_for(lambda stub: not stub.open, 10)
    assert len(kept) == 2


async def test_a_server_that_changed_its_model_is_asked_for_the_new_one(tmp_path):
    """The registry names the model that requests must name."""
    with StubServer(models=["old", "new"]) as server:
        publish(tmp_path, server, model="old")
        async with orchestrator(profile("registry:coder", tmp_path)) as models:
            assert (await models.agenerate("Who?")).model == "old"
            publish(tmp_path, server, model="new")
            started = time.monotonic()
            while (await models.agenerate("Who?")).model != "new":
                assert time.monotonic() - started < PATIENCE
                await asyncio.sleep(0.02)
        assert all(not request.path.endswith("/models") for request in server.requests)


def shortly(request):
    """An answer, or a stream, after 20 ms: long enough to be cut down in its midst."""
    if b'"stream"' in request.body:
        return Reply.stream("an ", "answer", first=0.02)
    return Reply.chat("an answer", delay=0.02)


async def test_no_request_is_lost_while_servers_are_killed_drained_and_started(tmp_path):
    """24 clients ask without a pause. One server stays; others are started, cut down, drained and replaced in a loop."""
    over, answered = asyncio.Event(), []
    registry, limit = ServerRegistry(tmp_path), time.monotonic() + 60

    async def client(models, number):
        while not over.is_set():
            if number % 4:
                answered.append((await models.agenerate(f"{number}?", system=f"{number % 5} {CONTEXT}")).text)
            else:
                answered.append("".join([chunk.text async for chunk in models.astream(f"{number}?", system=CONTEXT)]))

    async def cut(models):
        return any(metric.attempts > 1 for metric in models._sinks[0].metrics)

    async def upheaval(models):
        killed = 0
        while killed < 4 or len(answered) <= 200 or not await cut(models):
            assert time.monotonic() < limit
            with StubServer() as victim:
                victim.answer = shortly
                here = publish(tmp_path, victim, f"victim-{killed}")
                await until(lambda server=victim: len(asked(server)) > 10, limit=30)
                if killed % 2:
                    here = publish(tmp_path, victim, f"victim-{killed}", state="draining")
                    await asyncio.sleep(SOON)
                    late = len(asked(victim))
                    await asyncio.sleep(0.3)
                    assert len(asked(victim)) == late
                await asyncio.to_thread(victim.close)  # whatever is under way there is cut
            killed += 1
            registry.withdraw(here)
        over.set()

    with StubServer() as stays:
        stays.answer = shortly
        publish(tmp_path, stays, "stays")
        async with orchestrator(profile("registry:coder", tmp_path)) as models:
            await asyncio.gather(upheaval(models), *(client(models, number) for number in range(24)))
            metrics = models._sinks[0].metrics
    assert set(answered) == {"an answer"}
    assert all(metric.success for metric in metrics)


# ----------------------------------------------------------------------------------------------------- what is reported


async def test_the_status_shows_each_server(tmp_path, servers, unused_tcp_port):
    """How many of how many are up, each with its address, and what the others do."""
    publish(tmp_path, servers[0])
    publish(tmp_path, servers[1], "coder-2", state="draining")
    config = profile([f"http://127.0.0.1:{unused_tcp_port}/v1", "registry:coder"], tmp_path)
    async with orchestrator(config) as models:
        found = (await models.astatus()).resources.endpoints["coder"]
    assert found.healthy
    assert found.detail == "1 of 2 up; coder-2 is draining"
    assert [(replica.url, replica.healthy) for replica in found.replicas] == [
        (f"http://127.0.0.1:{unused_tcp_port}/v1", False),
        (servers[0].url, True),
    ]


async def test_the_backend_itself_says_how_many_of_its_servers_are_up(servers, unused_tcp_port):
    """As the status does."""
    config = profile([servers[0].url, f"http://127.0.0.1:{unused_tcp_port}/v1"])
    backend = vllm_backend(config.backend_specs()["coder"], BackendContext(config, EgressPolicy.of(config), {}))
    found = await backend.health(timeout=60)
    await backend.close()
    assert (found.healthy, found.detail) == (True, "1 of 2 up")
    assert found.models == (MODEL,)


async def test_a_model_at_one_url_is_spoken_to_directly(servers):
    """Nothing stands between, and a call costs what it did."""
    for places_of in (servers[0].url, [servers[0].url]):
        config = profile(places_of)
        backend = vllm_backend(config.backend_specs()["coder"], BackendContext(config, EgressPolicy.of(config), {}))
        assert type(backend) is OpenAICompatibleBackend
        await backend.close()


async def test_a_registered_server_with_another_model_is_not_up(tmp_path):
    """Something else has taken the port."""
    with StubServer(models=["intruder"]) as server:
        publish(tmp_path, server, model="expected")
        async with orchestrator(profile("registry:coder", tmp_path)) as models:
            found = (await models.astatus()).resources.endpoints["coder"]
    assert not found.healthy
    assert "not expected" in found.replicas[0].detail


async def test_a_server_that_begins_to_fail_is_in_the_log(servers):
    """Once, without the prompt."""
    log = io.StringIO()
    async with orchestrator(profile(places(servers)), log=log) as models:
        first, _ = await preferred(models, servers)
        first.script(Reply.error(500, "the engine is dead"))
        await models.agenerate("A secret?", system=CONTEXT)
    assert log.getvalue().count("a server of coder failed") == 1
    assert "the engine is dead" in log.getvalue()
    assert "secret" not in log.getvalue()


async def test_an_entry_out_in_the_world_is_refused_and_reported_once(tmp_path, servers):
    """The others are used; with none left the reason is named, and nothing was sent."""
    log = io.StringIO()
    far = ServerRegistry(tmp_path).publish(entry(servers[0], "far", host="8.8.8.8"))
    near = publish(tmp_path, servers[1], "near")
    config = profile("registry:coder", tmp_path)
    async with orchestrator(config, log=log) as models:
        for number in range(10):
            assert (await models.agenerate(f"{number}?")).text == "an answer"
        ServerRegistry(tmp_path).withdraw(near)
        ServerRegistry(tmp_path).publish(far)
        await asyncio.sleep(SOON)
        with pytest.raises(AllCandidatesFailed, match=r"public address 8\.8\.8\.8"):
            for _ in range(3):
                await models.agenerate("Anyone?")
                await asyncio.sleep(1)
    assert log.getvalue().count("is rejected") == 1


async def test_two_gpus_at_work_cost_twice_as_much_as_one(servers):
    """The GPU time of each server counts, however the calls are spread."""
    models_of = {"m": {"backend": "vllm", "endpoint": "coder", "gpu_hour_price": 3600.0}}
    for server in servers:
        server.answer = lambda request: Reply.chat("an answer", delay=0.5)
    async with orchestrator(profile(places(servers), models=models_of)) as models:
        await known(models, servers)
        before = [len(asked(server)) for server in servers]
        started = time.monotonic()
        responses = await asyncio.gather(*(models.agenerate(f"{n}?") for n in range(4)))
        seconds = time.monotonic() - started
        used = sum(len(asked(s)) > n for s, n in zip(servers, before, strict=True))
    assert used == 2
    assert 0.99 < sum(response.cost for response in responses) < 2 * seconds
