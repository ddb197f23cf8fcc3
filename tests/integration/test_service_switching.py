"""Switching strategies all the time under load: no request fails, hangs, or sees half of each; memory stays flat."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from tests.integration.service import PATIENCE, Service, chat, post, streamed, write_profile
from tests.integration.stub_server import Reply, Request, StubServer

CLIENTS = 64
EVERY = 0.1
"""Seconds between two switches."""
GROWTH = 12 * 2**20
"""Bytes by which a worker may grow after its warm-up; without a leak it is a fraction of this."""


def marked(mark: str) -> StubServer:
    """A server that says its mark in every word, and takes a moment for its streams."""
    stub = StubServer()

    def answer(request: Request) -> Reply:
        if request.json.get("stream"):
            return replace(Reply.stream(*[f"{mark} "] * 8), gap=0.01)
        return Reply.chat(f"{mark} " * 8)

    stub.answer = answer
    return stub


@dataclass
class Tally:
    """What became of all requests."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Client:
    """One kept connection, on which one request follows the other."""

    def __init__(self, service: Service, number: int, tally: Tally) -> None:
        self._service = service
        self._number = number
        self._tally = tally

    async def run(self, over: asyncio.Event) -> None:
        """Ask until it is over; every other client for streams."""
        reader, writer = await asyncio.open_connection(self._service.host, self._service.port)
        turn = self._number
        while not over.is_set():
            turn += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    writer.write(post(chat("who are you?", stream=bool(turn % 2))))
                    status, headers, body = await read_answer(reader)
            except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._tally.faults.append(f"client {self._number}: {error!r}")
                break
            self._judge(status, headers, body)
        writer.close()
        await writer.wait_closed()

    def _judge(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if status != 200:
            self._tally.faults.append(f"{status} {body[:200]!r}")
            return
        if "event-stream" in headers["content-type"]:
            text, errors = streamed(body)
            if errors or not body.endswith(b"data: [DONE]\n\n"):
                self._tally.faults.append(f"an unfinished stream: {body[-200:]!r}")
        else:
            text = json.loads(body)["choices"][0]["message"]["content"]
        strategy = headers["x-workflow-composer-strategy"]
        if text != f"{strategy} " * 8 or headers["x-workflow-composer-model"] != f"{strategy}-0":
            self._tally.faults.append(f"mixed: {headers} {text}")
        self._tally.answers[strategy] += 1


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer, whole or in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "content-length" in headers:
        return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while (await reader.readuntil(b"\r\n")) != b"\r\n":  # trailers
        pass
    return int(first.split()[1]), headers, body


async def switch_to_and_fro(service: Service, count: int, tally: Tally) -> list[int]:
    """So many switches, one every tenth of a second where the machine is quick enough; each must succeed.

    Returns the memory after every fifth switch of the second half.
    """
    memory, began = [], time.monotonic()
    for turn in range(1, count + 1):
        status, _, body = await asyncio.to_thread(service.switch, ("two", "one")[turn % 2])
        if status != 200:
            tally.faults.append(f"switch: {status} {body!r}")
        if turn > count / 2 and turn % 5 == 0:
            memory.append(service.resident())
        await asyncio.sleep(max(0.0, began + turn * EVERY - time.monotonic()))
    return memory


async def soak(service: Service, switches: int) -> tuple[Tally, list[int]]:
    """The load while strategies are switched; what became of it, and the memory in the second half."""
    tally, over = Tally(), asyncio.Event()
    tasks = [asyncio.create_task(Client(service, number, tally).run(over)) for number in range(CLIENTS)]
    memory = await switch_to_and_fro(service, switches, tally)
    over.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks)
    return tally, memory


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("switches", [60, pytest.param(600, marks=pytest.mark.slow)])
async def test_a_switch_every_tenth_of_a_second_disturbs_nobody(tmp_path, switches, workers):
    """64 clients, half of their requests streams; each answer comes whole from the strategy that its header names."""
    with marked("one") as one, marked("two") as two:
        write_profile(tmp_path, "two", two.url)
        profile = write_profile(tmp_path, "one", one.url)
        with Service(profile, "--workers", str(workers)) as service:
            tally, memory = await soak(service, switches)
            versions = await asyncio.to_thread(service.request, "GET", "/metrics")
            assert versions[0] == 200
        assert tally.faults == []
        assert min(tally.answers["one"], tally.answers["two"]) > 2 * switches
        early, late = memory[: len(memory) // 2], memory[len(memory) // 2 :]
        assert sum(late) / len(late) - sum(early) / len(early) < GROWTH * workers
        for stub in (one, two):
            assert stub.wait_for(lambda found: found.open == 0)


async def test_a_switch_while_a_worker_starts_reaches_it(tmp_path):
    """Workers are killed while strategies are switched; once both have settled, all answer under the last strategy."""
    with marked("one") as one, marked("two") as two:
        write_profile(tmp_path, "two", two.url)
        profile = write_profile(tmp_path, "one", one.url)
        with Service(profile, "--workers", "2") as service:
            last = "one"
            for turn in range(4):
                os.kill(service.workers[turn % 2], signal.SIGKILL)
                ends = time.monotonic() + 1.2
                while time.monotonic() < ends:
                    last = {"one": "two", "two": "one"}[last]
                    status, _, body = await asyncio.to_thread(patient_switch, service, last)
                    assert status == 200, body
                answers = await asyncio.gather(*(asyncio.to_thread(service.ask, "who?") for _ in range(24)))
                assert {headers["x-workflow-composer-strategy"] for _, headers, _ in answers} == {last}


def patient_switch(service: Service, strategy: str) -> tuple[int, object, bytes]:
    """Switch; the worker that was asked may be the one that was killed in that moment."""
    while True:
        try:
            return service.switch(strategy)
        except OSError:
            time.sleep(0.01)
