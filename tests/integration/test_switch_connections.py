"""Switching strategies under load, with real connections: none is lost, none stays open."""

import asyncio
import sys
import threading
from pathlib import Path

from tests.integration.stub_server import StubServer
from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.metrics.sink import MemorySink


def open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def own_threads():
    """Threads, but for the event loop's own pool, which is bounded and lives as long as the loop."""
    return sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_"))


def profile(name, url):
    endpoints, timeouts = {name: url}, {"connect": 30.0}  # client and server share a process that other tests may stall
    return StrategyConfig(
        profile_name=name, vllm_endpoints=endpoints, task_routing={"*": name}, allow_cloud=False, timeouts=timeouts
    )


async def test_a_hundred_switches_leave_no_connection_behind():
    """Sixteen clients ask without a pause; each answer comes from the server of the profile that it names."""
    with StubServer(models=["at-one"]) as one, StubServer(models=["at-two"]) as two:
        configs = {"one": profile("one", one.url), "two": profile("two", two.url)}
        files, threads = open_files(), own_threads()
        sink, answers, stop = MemorySink(), [], asyncio.Event()
        async with ModelOrchestrator(configs["one"], metrics=sink, environ={}) as orchestrator:

            async def client():
                while not stop.is_set():
                    response = await orchestrator.agenerate("hello")
                    answers.append((response.decision.strategy, response.decision.candidate))

            clients = [asyncio.ensure_future(client()) for _ in range(16)]
            for turn in range(100):
                before = len(answers)
                await orchestrator.aswitch_strategy(configs[("two", "one")[turn % 2]])
                while len(answers) < before + 2:
                    await asyncio.sleep(0.001)
            stop.set()
            await asyncio.gather(*clients)
        assert len(answers) >= 200
        assert all(strategy == candidate for strategy, candidate in answers)
        assert {strategy for strategy, _ in answers} == {"one", "two"}
        assert all(metric.success for metric in sink.metrics)
        assert one.wait_for(lambda stub: stub.open == 0)
        assert two.wait_for(lambda stub: stub.open == 0)
        assert (open_files(), own_threads()) == (files, threads)
        assert len([task for task in asyncio.all_tasks() if task is not asyncio.current_task()]) == 0


PLUGIN = """
from workflow_composer import Plan, Tier, hookimpl
from workflow_composer.routers import Router

class Mine(Router):
    name = "mine"
    def plan(self, request, resources):
        return Plan((Tier.of(self.context.candidates("one")),), self.name, "{}")

@hookimpl
def register_routers(register):
    register("mine", Mine)
"""


async def test_fifty_reloads_of_a_plugin_leave_no_module_task_or_connection_behind(tmp_path):
    """Sixteen clients ask without a pause; each answer has one plugin's mark, and the last one's in the end."""
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(0))
    with StubServer(models=["at-one"]) as stub:
        config = profile("one", stub.url).replaced(routers=["mine"], plugins=[str(file)])
        files, threads = open_files(), own_threads()
        sink, reasons, stop = MemorySink(), [], asyncio.Event()
        async with ModelOrchestrator(config, metrics=sink, environ={}) as orchestrator:

            async def client():
                while not stop.is_set():
                    reasons.append((await orchestrator.agenerate("hello")).decision.reason)

            clients = [asyncio.ensure_future(client()) for _ in range(16)]
            modules = None
            for turn in range(1, 51):
                file.write_text(PLUGIN.format(turn))
                before = len(reasons)
                await orchestrator.areload_plugins()
                modules = modules or len(sys.modules)
                while len(reasons) < before + 20:
                    await asyncio.sleep(0.001)
            stop.set()
            await asyncio.gather(*clients)
            assert len(sys.modules) == modules
        assert set(reasons) >= {"1", "50"}
        assert reasons[-1] == "50"
        assert all(metric.success for metric in sink.metrics)
        assert stub.wait_for(lambda one: one.open == 0)
        assert (open_files(), own_threads()) == (files, threads)
        assert len([task for task in asyncio.all_tasks() if task is not asyncio.current_task()]) == 0
