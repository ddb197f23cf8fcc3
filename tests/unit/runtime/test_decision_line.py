"""With debugging on, the one line about a request is enough to know what went wrong.

Each fault is injected at a real socket or in the profile; the line must hold what only the fault itself says: a word of the
server, a port, a variable, a limit.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket

import pytest

from tests.integration.stub_server import Reply
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.execution.call import Trace
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.runtime.decision_text import told
from workflow_composer.types import Attempt


class Situation:
    """A profile over one server, `here`, and what is asked of it."""

    def __init__(self, server):
        self.server = server
        self.log = io.StringIO()
        self.metrics = MemorySink()
        self.fields = {
            "models": {"here": {"backend": "vllm", "base_url": server.url, "model": "stub-model", "context_length": 4096}},
            "task_routing": {"*": "here"},
            "routers": ["cascade", "cascading_provider"],
            "retries": {"attempts": 1, "base_delay": 0.001},
            "allow_cloud": False,
            "debug_routing": True,
        }
        self.asked = {}

    def model(self, name, **changes):
        """Add a model, by default like `here`."""
        self.fields["models"][name] = self.fields["models"]["here"] | changes

    async def line(self, times=1, stream=False):
        """Ask; the last line, its metric, and the exception, if there was one."""
        config = StrategyConfig(profile_name="faulty", **self.fields)
        host = plugin_host(discover=False)
        error = None
        async with ModelOrchestrator(config, plugins=host, metrics=self.metrics, environ={}, log=self.log) as orchestrator:
            for _ in range(times):
                try:
                    if stream:
                        async for _chunk in orchestrator.astream("What is 2 + 2?", **self.asked):
                            pass
                    else:
                        await orchestrator.agenerate("What is 2 + 2?", **self.asked)
                except Exception as raised:
                    error = raised
        lines = [line for line in self.log.getvalue().splitlines() if "event=routed" in line]
        assert len(lines) == len(self.metrics.metrics) == times  # one line for each request, answered or not
        return lines[-1], self.metrics.metrics[-1], error


@pytest.fixture
def situation(server):
    return Situation(server)


def unreachable(case):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    case.model("here", base_url=f"http://127.0.0.1:{port}/v1")
    return (f":{port}", "ServerUnreachable")


def out_of_memory(case):
    case.server.script(Reply.error(500, "CUDA out of memory at layer 17"))
    return ("CUDA out of memory at layer 17", "ServerFailed")


def no_such_model(case):
    case.server.script(Reply.error(404, "The model stub-model does not exist; available: qwen-7b"))
    return ("ModelNotFound", "available: qwen-7b")


def refused_key(case):
    case.server.script(Reply.error(401, "Invalid credentials of tenant 4711"))
    return ("AuthenticationFailed", "tenant 4711")


def rate_limit(case):
    case.server.script(Reply.error(429, "60 requests per minute for tier bronze", headers={"Retry-After": "2"}))
    return ("RateLimited", "tier bronze")


def no_answer_in_time(case):
    case.server.script(Reply(hang=True))
    case.fields["timeouts"] = {"first_token": 0.2, "total": 0.3}
    return ("CallTimeout", "within 0.3 s")


def too_long(case):
    text = "This model's maximum context length is 4096 tokens, however you requested 9000 tokens"
    case.server.script(Reply.error(400, text))
    return ("ContextOverflow", "9000 tokens")


def no_json(case):
    case.server.script(Reply(body=b"<html>proxy of building 7 says no</html>"))
    return ("ServerFailed",)


def cut_off_in_the_middle(case):
    case.server.script(Reply.chat("a long answer", die_after=1))
    return ("ServerUnreachable",)


def missing_key(case):
    case.fields |= {"allow_cloud": True, "task_routing": {"*": "far"}}
    case.model("far", backend="openai", base_url="https://api.example.org/v1", api_key_env="PLANTED_KEY")
    return ("RoutingError", "PLANTED_KEY")


def unknown_model(case):
    case.asked = {"model": "heer"}
    return ("RoutingError", "heer", "here")


def no_tools(case):
    case.model("here", capabilities=["chat"])
    case.asked = {"tools": ({"type": "function", "function": {"name": "f", "parameters": {}}},)}
    return ("does not support tools",)


def too_many_calls(case):
    case.asked = {"model": "mv_here_k8_t0.7", "most_calls": 3}
    return ("TooManyCalls", "needs up to 8 calls")


def budget(case):
    case.model("here", input_price=1e6, output_price=1e6)
    case.asked = {"budget": 0.001, "max_tokens": 10}
    return ("BudgetExceeded", "would probably cost")


FAULTS = [unreachable, out_of_memory, no_such_model, refused_key, rate_limit, no_answer_in_time, too_long, no_json,
          cut_off_in_the_middle, missing_key, unknown_model, no_tools, too_many_calls, budget]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
async def test_the_line_alone_names_the_cause(situation, fault):
    causes = fault(situation)
    line, metric, error = await situation.line()
    assert error is not None
    assert "success=false" in line
    assert f"fault={metric.fault}" in line
    assert [cause for cause in causes if cause not in line] == []
    kept = json.loads(metric.to_json())["decision"]
    assert [cause for cause in causes if cause not in json.dumps(kept, ensure_ascii=False)] == []


async def test_an_answer_that_needed_a_fallback_says_why(situation):
    """What was left out, what failed, and who answered."""
    situation.model("far", backend="openai", base_url="https://api.example.org/v1", api_key_env="PLANTED_KEY")
    situation.model("spare")
    situation.fields |= {"allow_cloud": True, "fallback": ["far", "spare"]}
    situation.server.script(Reply.error(500, "worker 12 died"))
    line, metric, error = await situation.line()
    assert error is None
    kept = metric.decision
    assert (kept["plan"], kept["left_out"]) == ("here -> spare", ["far: its key is not set (PLANTED_KEY)"])
    assert [text.split(" in ")[0] for text in kept["attempts"]] == ["here: ServerFailed", "spare: ok"]
    assert [part for part in ("PLANTED_KEY", "worker 12 died", "spare: ok", "success=true") if part not in line] == []


async def test_an_answer_that_was_doubted_says_by_how_much_and_what_became_of_the_next_tier(situation):
    """Each tier with its verdict."""
    situation.model("weak", model="weak-model")
    situation.fields |= {"tiers": {"low": {"model": "weak", "cost": 0.1}, "high": {"model": "here", "cost": 1}}}
    situation.asked = {"model": "mv_cascade_low_k2_t0.7_high_k1_t0.0"}
    count = iter(range(100))

    def answer(request):
        if request.json["model"] == "stub-model":
            return Reply.error(500, "worker 12 died")
        texts = (f"The answer is {next(count)}" for _ in range(request.json.get("n", 1)))
        return Reply.chat(*texts, model="weak-model")

    situation.server.answer = answer
    line, metric, error = await situation.line()
    assert error is None
    low, high = metric.decision["tiers"]
    assert low.startswith("low: not accepted with confidence 0.5: ")
    assert high.startswith("high: no answer")
    assert [part for part in ("weak x2 => here", low, "worker 12 died") if part not in line] == []


async def test_a_stream_that_breaks_off_says_what_broke_it(situation):
    situation.server.script(Reply.stream("one ", "two ", "three", die_after=2))
    line, metric, error = await situation.line(stream=True)
    assert type(error).__name__ == metric.error == "StreamInterrupted"
    assert "ServerUnreachable" in line


async def test_an_open_circuit_breaker_says_what_opened_it(situation):
    situation.fields["circuit_breaker"] = {"failures": 2, "cooldown": 600}
    situation.server.script(Reply.error(500, "no GPU on node 9"), Reply.error(500, "no GPU on node 9"))
    line, metric, _ = await situation.line(times=3)
    assert "CircuitOpen" in line
    assert "no GPU on node 9" in line
    assert len(situation.server.requests) == 2
    assert metric.attempts == 1


async def test_texts_of_servers_are_cut_and_hold_no_key(situation):
    secret = "sk-proj-abcdefghijklmnop0123456789"
    situation.server.script(Reply.error(500, f"bad header {secret} " + "x " * 5000))
    line, metric, _ = await situation.line()
    assert "bad header" in line
    assert secret not in line
    assert secret.encode() not in metric.to_json()
    assert len(line) < 2500


def test_of_a_vote_with_many_calls_the_first_and_the_last_are_listed():
    """A line stays one that can be read."""
    trace = Trace()
    trace.attempts = [Attempt(0, 0, f"m{number}", local=True, latency_ms=1.0) for number in range(64)]
    listed = told(None, trace)["attempts"]
    assert [text.split(":")[0] for text in listed[9:12]] == ["m9", "44 more", "m54"]
    trace.attempts = trace.attempts[:20]
    assert len(told(None, trace)["attempts"]) == 20


async def test_retries_that_failed_alike_are_told_once(situation):
    """With how often, and between which times."""
    situation.fields["retries"] = {"attempts": 3, "base_delay": 0.001}
    situation.server.script(*(Reply.error(500, "no GPU on node 9") for _ in range(3)))
    line, metric, error = await situation.line()
    assert error is not None
    (attempts,) = metric.decision["attempts"]
    assert attempts.startswith("here: ServerFailed in ")
    assert ", 3 times: " in attempts
    assert line.count("no GPU on node 9") == 1


async def test_a_request_that_is_cancelled_has_its_line(situation):
    situation.server.script(Reply(hang=True))
    asking = asyncio.ensure_future(situation.line())
    assert await asyncio.to_thread(situation.server.wait_for, lambda server: server.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (line,) = situation.log.getvalue().splitlines()
    assert "CancelledError" in line
    assert "plan=here" in line
