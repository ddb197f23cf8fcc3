"""The embedded engine, really running, on checkpoints with random weights."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager

import pytest

from tests.paths import ROOT
from tests.unit.backends.tiny_checkpoint import write_chat_model, write_embedding_model
from workflow_composer.backends.base import Backend
from workflow_composer.backends.embedded import backend as embedded
from workflow_composer.backends.embedded import engine as embedded_engine
from workflow_composer.backends.embedded.backend import EmbeddedBackend
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.errors import BadRequest, CallTimeout, ContextOverflow, ModelNotFound, ServerUnreachable, Unsupported
from workflow_composer.types import LLMRequest, ModelCall, Timeouts

# Importing the engine to look for it would be too early: the backend silences it first.
pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(importlib.util.find_spec("mistralrs") is None, reason="pip install '.[embedded]'"),
]

ENDLESS = {"ignore_eos": True}
SOON = 20.0
"""Seconds; the generations that the tests stop would take minutes."""


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A checkpoint that writes random text."""
    return write_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory):
    """A checkpoint that embeds."""
    return write_embedding_model(tmp_path_factory.mktemp("models") / "tiny-embedding")


def backend_of(path, name="tiny"):
    """A backend for a directory or a shipped checkpoint."""
    return EmbeddedBackend(ModelSpec(name=name, backend="embedded", path=str(path)), None)


@pytest.fixture
async def backend(chat_model):
    """The chat model's backend, closed afterwards."""
    made = backend_of(chat_model)
    yield made
    await made.close()


def call(prompt="Hello", *, samples=1, timeouts=None, **fields):
    """One question to the model."""
    return ModelCall(LLMRequest.of(prompt, **fields), samples=samples, timeouts=timeouts or Timeouts())


def endless(samples=1, timeouts=None):
    """A call that would take minutes."""
    return call(samples=samples, timeouts=timeouts, max_tokens=4000, extra=ENDLESS)


async def only(backend, a_call):
    """The single sample of a call."""
    (sample,) = (await backend.complete(a_call)).samples
    return sample


# ---------------------------------------------------------------------------------------------------------- answers


def test_it_is_a_backend(chat_model):
    """The embedded backend offers every method of the seam."""
    assert isinstance(backend_of(chat_model), Backend)


async def test_tokens_of_every_sample_are_counted_and_the_prompt_once(backend):
    """The engine itself counts one choice only; three samples of seven tokens are 21."""
    one = await backend.complete(call(max_tokens=7, extra=ENDLESS))
    three = await backend.complete(call(samples=3, max_tokens=7, extra=ENDLESS, temperature=1.0))
    assert len(three.samples) == 3
    assert three.usage.completion_tokens == 21
    assert three.usage.prompt_tokens == one.usage.prompt_tokens == len("Hello") + 3  # user mark, end, assistant mark
    assert {sample.finish_reason for sample in three.samples} == {"length"}


async def test_without_a_temperature_the_answer_is_greedy(backend):
    """None and 0 both mean the most likely token, every time."""
    calls = [call(max_tokens=20), call(max_tokens=20, temperature=0.0), call(max_tokens=20, seed=7)]
    texts = {(await only(backend, a_call)).text for a_call in calls for _ in range(3)}
    assert len(texts) == 1


async def test_the_tier_s_temperature_goes_before_the_request_s(backend):
    """`ModelCall.temperature` decides; the request's own counts where it is None."""
    request = LLMRequest.of("Hello", max_tokens=12, temperature=0.0)
    hot = {(await only(backend, ModelCall(request, temperature=5.0))).text for _ in range(4)}
    assert len(hot) > 1


@pytest.mark.parametrize("settings", [{}, {"do_sample": False}, {"do_sample": True, "temperature": 0.6}])
async def test_samples_follow_the_model_s_distribution(tmp_path, settings):
    """The frequencies of the first token match softmax(logits / T), also where the checkpoint says ``do_sample: false``."""
    backend = backend_of(write_chat_model(tmp_path / "model", settings=settings))
    greedy = await only(backend, call(max_tokens=1, logprobs=True, top_logprobs=20))
    drawn = await backend.complete(call(samples=600, max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=20))
    await backend.close()
    # Bytes above 127 are all shown as the same character; those that can be told apart are compared.
    counts = Counter(sample.text for sample in drawn.samples)
    expected = {text: math.exp(value) for text, value in greedy.logprobs[0].top if text.isascii() and text.strip()}
    assert len(expected) > 3
    for text, share in expected.items():
        deviation = math.sqrt(share * (1 - share) / 600)
        assert abs(counts[text] / 600 - share) < 5 * deviation, text


async def test_log_probabilities_belong_to_the_tokens(backend):
    """One entry per token, the greedy one on top of its alternatives, and none where none were asked for."""
    assert (await only(backend, call(max_tokens=5))).logprobs is None
    plain = await only(backend, call(max_tokens=6, extra=ENDLESS, logprobs=True))
    assert len(plain.logprobs) == 6
    assert all(token.top == () for token in plain.logprobs)
    rich = await only(backend, call(max_tokens=6, extra=ENDLESS, top_logprobs=4))
    for token in rich.logprobs:
        values = [value for _, value in token.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0] < 0
        assert sum(map(math.exp, values)) < 1


async def test_stop_texts_and_length_end_an_answer(backend):
    """Generation ends before a stop text, or after ``max_tokens``, and says which."""
    whole = await only(backend, call(max_tokens=12, extra=ENDLESS))
    assert whole.finish_reason == "length"
    mark = next(c for c in whole.text[2:] if c.isascii() and c not in whole.text[:2])
    for stop in (mark, (mark, "not there")):
        cut = await only(backend, call(max_tokens=12, extra=ENDLESS, stop=stop))
        assert cut.finish_reason == "stop"
        assert cut.text == whole.text[: whole.text.index(mark)]


async def test_a_biased_token_is_written_or_avoided(backend):
    """``logit_bias`` reaches the sampler, with token ids as JSON writes them."""
    token = ord("Z")  # one token per byte
    loved = await only(backend, call(max_tokens=5, extra={"logit_bias": {str(token): 100}}))
    assert loved.text == "ZZZZZ"
    first = (await only(backend, call(max_tokens=1, extra={"logit_bias": {token: 100}, "frequency_penalty": 0.0}))).text
    assert first == "Z"


async def test_top_k_of_one_is_greedy_at_any_temperature(backend):
    """A request's own ``top_k`` is kept."""
    greedy = await only(backend, call(max_tokens=8))
    hot = await backend.complete(call(samples=4, max_tokens=8, temperature=9.0, extra={"top_k": 1}))
    assert {sample.text for sample in hot.samples} == {greedy.text}


async def test_top_p_cuts_the_tail(backend):
    """A tiny nucleus leaves the most likely token alone."""
    greedy = await only(backend, call(max_tokens=8))
    narrow = await backend.complete(call(samples=4, max_tokens=8, temperature=1.0, top_p=0.001))
    assert {sample.text for sample in narrow.samples} == {greedy.text}


async def test_a_json_schema_binds_even_a_random_model(backend):
    """``response_format`` becomes a grammar: whatever the model wants, the answer fits the schema."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    sample = await only(backend, call(max_tokens=300, response_format=wanted))
    assert 0 <= json.loads(sample.text)["n"] <= 99
    free = await only(backend, call(max_tokens=5, response_format={"type": "json_object"}))
    assert free.text.lstrip().startswith("{")
    assert (await only(backend, call(max_tokens=5, response_format={"type": "text"}))).text


async def test_text_parts_are_read_as_text(backend):
    """OpenAI's list form of a content gives the same answer as its plain text."""
    plain = await only(backend, call("Hello", max_tokens=8))
    parts = ({"role": "user", "content": [{"type": "text", "text": "Hello"}]},)
    assert (await only(backend, ModelCall(LLMRequest(messages=parts, max_tokens=8)))).text == plain.text


# ---------------------------------------------------------------------------------------------- what it does not do


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": ({"type": "function"},)}, "tools"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"seed": 3, "temperature": 0.5}, "seed"),
        ({"extra": {"guided_regex": "a"}}, "guided_regex"),
        ({"extra": {"n": 2, "best_of": 2}}, "best_of, n"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_it_cannot_honour_is_refused_by_name(backend, fields, named, streamed):
    """Nothing is dropped in silence: the error names the field."""
    with pytest.raises(Unsupported, match=named):
        await (anext(backend.stream(call(**fields))) if streamed else backend.complete(call(**fields)))


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ((), BadRequest),
        (({"role": "user"},), BadRequest),
        (({"content": "x"},), BadRequest),
        (({"role": "wizard", "content": "x"},), BadRequest),
        (({"role": "user", "content": 5},), BadRequest),
        (({"role": "user", "content": [{"text": "x"}]},), BadRequest),
        (({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},), Unsupported),
        (({"role": "user", "content": "x", "name": "Ada"},), Unsupported),
        (({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},), Unsupported),
    ],
)
async def test_malformed_messages_are_refused_before_the_engine_sees_them(backend, capfd, messages, error):
    """The engine would panic and print a Rust backtrace."""
    with pytest.raises(error, match="message"):
        await backend.complete(ModelCall(LLMRequest(messages=messages)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"top_logprobs": 21},
        {"stop": ""},
        {"stop": ("a", 3)},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"extra": {"logit_bias": {"999999": 1}}},
        {"extra": {"logit_bias": [1]}},
        {"extra": {"min_p": "much"}},
    ],
)
async def test_values_out_of_range_are_bad_requests(backend, fields):
    """The engine takes most of them without a word; no other model would be right to answer them."""
    with pytest.raises(BadRequest):
        await backend.complete(call(**fields))


async def test_json_is_refused_where_the_vocabulary_has_no_braces(tmp_path):
    """A grammar that the tokenizer cannot follow would end in garbage and a warning on standard error."""
    backend = backend_of(write_chat_model(tmp_path / "model", without="{"))
    with pytest.raises(Unsupported, match="cannot represent JSON"):
        await backend.complete(call(response_format={"type": "json_object"}))
    await backend.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_longer_than_the_context_overflows(backend, streamed):
    """The typed error lets the executor look for a longer context."""
    long = call("x" * 5000)
    with pytest.raises(ContextOverflow, match="4096"):
        await (anext(backend.stream(long)) if streamed else backend.complete(long))


# ----------------------------------------------------------------------------------------------- streams and stopping


async def test_a_stream_says_the_same_as_a_whole_answer(backend):
    """The pieces join to the greedy text; the last one has finish reason and usage."""
    asked = call(max_tokens=40, extra=ENDLESS, logprobs=True)
    whole = await backend.complete(asked)
    chunks = [chunk async for chunk in backend.stream(asked)]
    assert "".join(chunk.text for chunk in chunks) == whole.samples[0].text
    assert [token for chunk in chunks for token in chunk.logprobs] == list(whole.samples[0].logprobs)
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("length", whole.usage)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len(chunks) > 10


async def test_cancelling_ends_the_generations(backend):
    """After a cancellation the next request finds the engine idle, not busy with answers nobody reads."""
    await backend.complete(call(max_tokens=1))
    task = asyncio.create_task(backend.complete(endless(samples=embedded_engine.MAX_SEQUENCES)))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await backend.complete(call(max_tokens=2, timeouts=Timeouts(total=SOON)))


async def test_closing_streams_ends_the_generations(backend):
    """Dropped streams free the engine as well."""
    streams = [backend.stream(endless()) for _ in range(embedded_engine.MAX_SEQUENCES)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    await asyncio.gather(*(stream.aclose() for stream in streams))
    await backend.complete(call(max_tokens=2, timeouts=Timeouts(total=SOON)))


async def test_the_time_limit_ends_the_generations(backend):
    """Past ``total`` a call fails as timed out, and its samples stop."""
    await backend.complete(call(max_tokens=1))
    with pytest.raises(CallTimeout, match=r"0\.2 s \(total\)"):
        await backend.complete(endless(samples=embedded_engine.MAX_SEQUENCES, timeouts=Timeouts(total=0.2)))
    await backend.complete(call(max_tokens=2, timeouts=Timeouts(total=SOON)))


async def test_a_stream_has_limits_for_the_first_token_and_in_total(backend):
    """A stream that has begun may go on past ``first_token``, but not past ``total``."""
    await backend.complete(call(max_tokens=1))
    with backend._engine._sending, pytest.raises(CallTimeout, match="first_token"):  # the engine is not even asked
        await anext(backend.stream(endless(timeouts=Timeouts(first_token=0.05))))
    received = 0
    with pytest.raises(CallTimeout, match="total"):  # the loop is what ends in the error
        async for _ in backend.stream(endless(timeouts=Timeouts(first_token=5.0, total=0.5))):
            received += 1
    assert received > 0


async def test_a_slow_reader_holds_the_reading_thread(chat_model):
    """At most a fixed number of pieces wait in memory; the rest stays in the engine."""
    full, last = threading.Event(), 0

    def pieces():
        nonlocal last
        for last in itertools.count():
            if last >= 10 + embedded._AHEAD:
                full.set()
            yield embedded_engine.Piece(str(last))

    engine = embedded_engine.acquire(chat_model)
    feed = embedded._Feed(asyncio.get_running_loop(), engine)
    filling = engine.pool.submit(feed.fill, pieces())
    for expected in range(10):
        assert (await asyncio.wait_for(feed.get(), 60)).text == str(expected)
    await asyncio.to_thread(full.wait, 5)
    assert last == 10 + embedded._AHEAD
    feed.close()
    await asyncio.wrap_future(filling)
    await asyncio.to_thread(embedded_engine.release, engine)


# ---------------------------------------------------------------------------------------------- loading and sharing


async def test_backends_of_one_directory_share_one_engine(chat_model):
    """A switch of the strategy loads nothing twice, and the old snapshot's end does not take the engine along."""
    old, new = backend_of(chat_model, "old"), backend_of(chat_model.parent / "." / "tiny", "new")
    await asyncio.gather(old.complete(call(max_tokens=1)), new.complete(call(max_tokens=1)))
    assert old._engine is new._engine
    await old.close()
    await old.close()
    assert (await only(new, call(max_tokens=3))).text
    await new.close()
    assert embedded_engine._registry == {}


async def test_closing_ends_threads_and_calls(backend):
    """Calls in flight fail as unreachable, threads end, and later calls say that it is closed."""
    before = threading.active_count()
    await backend.complete(call(max_tokens=1, samples=8))
    running = asyncio.create_task(backend.complete(endless(samples=100)))
    await asyncio.sleep(0.2)
    await asyncio.wait_for(backend.close(), SOON)
    with pytest.raises((ServerUnreachable, embedded_engine.ServerFailed)):
        await running
    assert not [t for t in threading.enumerate() if t.name.startswith("embedded-engine")]
    assert threading.active_count() <= before + 1  # the loop's own helper thread
    with pytest.raises(ServerUnreachable, match="closed"):
        await backend.complete(call())
    assert (await backend.health(timeout=1)).detail == "closed"


def test_one_backend_serves_several_event_loops(chat_model):
    """The synchronous facade and a server may use it from loops of their own, one after another and at once."""
    backend, texts = backend_of(chat_model), []

    def work():
        texts.append(asyncio.run(only(backend, call(max_tokens=5))).text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(backend.close())
    assert len(texts) == 4
    assert len(set(texts)) == 1


async def test_a_missing_checkpoint_is_named_at_the_first_call(tmp_path, capfd, monkeypatch):
    """The constructor does no I/O; the call names the directory, and no engine starts that would ask a hub for it."""
    started = []
    monkeypatch.setattr(embedded_engine, "_runner", started.append)
    backend = backend_of(tmp_path / "nothing" / "here")
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="nothing/here is not a directory"):
            await backend.complete(call())
    assert not (await backend.health(timeout=1)).healthy
    await backend.close()
    assert started == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: (d / "model.safetensors").unlink(), r"no \*.safetensors"),
        (lambda d: (d / "config.json").write_text("{"), "damaged checkpoint"),
        (lambda d: (d / "config.json").write_text('{"architectures": []}'), "damaged checkpoint"),
        (lambda d: (d / "generation_config.json").write_text("[]"), "damaged checkpoint"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x08" + b"\0" * 40), "cannot load the checkpoint"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "cannot load the checkpoint"),
    ],
)
async def test_a_damaged_checkpoint_is_named_and_can_be_repaired(tmp_path, capfd, damage, message):
    """The error says what is wrong with which directory; once it is right, the same backend answers."""
    backend = backend_of(write_chat_model(tmp_path / "broken"))
    damage(tmp_path / "broken")
    with pytest.raises(ModelNotFound, match=message) as caught:
        await backend.complete(call())
    assert str(tmp_path / "broken") in str(caught.value)
    assert "\n" not in str(caught.value)
    write_chat_model(tmp_path / "broken")
    assert (await only(backend, call(max_tokens=3))).text
    await backend.close()
    assert capfd.readouterr() == ("", "")


async def test_without_mistralrs_the_error_says_what_to_install(chat_model, monkeypatch):
    """The extra is named in the error and in the health report."""
    monkeypatch.setitem(sys.modules, "mistralrs", None)
    backend = backend_of(chat_model)
    with pytest.raises(Unsupported, match=r"pip install .*\[embedded\]'"):
        await backend.complete(call())
    status = await backend.health(timeout=1)
    assert not status.healthy
    assert "pip install" in status.detail
    await backend.close()


async def test_health_reads_the_files_and_loads_nothing(backend):
    """A probe of a large checkpoint must not load it."""
    status = await backend.health(timeout=1)
    assert (status.healthy, status.detail, status.models) == (True, "loads on first use", ("tiny",))
    assert backend._engine is None
    await backend.complete(call(max_tokens=1))
    assert (await backend.health(timeout=1)).detail == "loaded"


def test_a_bare_name_is_a_shipped_checkpoint(tmp_path):
    """``small`` lies in the package; anything with a separator is a directory."""
    assert backend_of("small").directory == embedded.CHECKPOINTS / "small"
    assert backend_of(tmp_path / "small").directory == tmp_path / "small"


# -------------------------------------------------------------------------------------------------------- embeddings


async def test_an_embedding_checkpoint_embeds(embedding_model):
    """One normalised vector per text, the same for the same text, with the tokens counted."""
    backend = backend_of(embedding_model)
    found = await backend.embed(["hello", "world", "hello"], timeout=30)
    assert found.vectors[0] == pytest.approx(found.vectors[2], abs=1e-5)
    assert found.vectors[0] != pytest.approx(found.vectors[1], abs=0.1)
    assert [sum(x * x for x in vector) for vector in found.vectors] == pytest.approx([1.0] * 3)
    assert found.usage.prompt_tokens == 15
    assert (await backend.embed([], timeout=30)).vectors == ()
    with pytest.raises(ContextOverflow):
        await backend.embed(["x" * 1000], timeout=30)
    with pytest.raises(Unsupported, match="does not generate text"):
        await backend.complete(call())
    await backend.close()


async def test_a_chat_checkpoint_does_not_embed(backend):
    """The error says which kind of checkpoint would."""
    with pytest.raises(Unsupported, match="Qwen3-Embedding or EmbeddingGemma"):
        await backend.embed(["hello"], timeout=30)


# --------------------------------------------------------------------------------------------------- whole processes

PROGRAM = """
import asyncio, sys, threading
from workflow_composer.backends.embedded.backend import EmbeddedBackend
from workflow_composer.errors import ModelError
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.types import LLMRequest, ModelCall

backend = EmbeddedBackend(ModelSpec(name="m", backend="embedded", path=sys.argv[1]), None)
endless = ModelCall(LLMRequest.of("x", max_tokens=4000, extra={"ignore_eos": True}), samples=500)

async def work():
    await backend.complete(ModelCall(LLMRequest.of("x", max_tokens=3), samples=2))
    async for _ in backend.stream(ModelCall(LLMRequest.of("x", max_tokens=3))):
        pass
    try:
        await backend.complete(ModelCall(LLMRequest.of("x" * 9000)))
    except ModelError:
        pass

async def abandon(started):
    stream = backend.stream(endless)
    await anext(stream)
    running = asyncio.ensure_future(backend.complete(endless))
    await asyncio.sleep(0.2)
    started.set()
    await running
"""


@contextmanager
def running(program, chat_model):
    """A Python of its own, with no engine settings in its environment; killed where the test fails."""
    environ = {key: value for key, value in os.environ.items() if key != "RUST_LOG"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM + program, str(chat_model)]
    with subprocess.Popen(command, env=environ, stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("closing", ["", "; asyncio.run(backend.close())"])
def test_nothing_is_printed_and_the_process_ends(chat_model, closing):
    """Loading, answering, streaming, failing, ending: not a line on standard output or error, closed or not."""
    with running("asyncio.run(work())" + closing, chat_model) as process:
        out, err = process.communicate(timeout=SOON + 20)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_interpreter_ends_while_answers_are_being_generated(chat_model):
    """Whoever leaves without closing does not wait for 500 endless answers; who still listens hears that they broke off."""
    program = """
started = threading.Event()

def listen():
    try:
        asyncio.run(abandon(started))
    except ModelError:
        pass

threading.Thread(target=listen, daemon=True).start()
started.wait()
"""
    with running(program, chat_model) as process:
        _, err = process.communicate(timeout=SOON + 20)
    assert (process.returncode, err) == (0, "")


def test_control_c_ends_a_running_call(chat_model):
    """An interrupt arrives as KeyboardInterrupt, and the process ends without an answer being generated to its end.

    The loop has something to wake up for: `asyncio.run` does not see a signal that comes just before the loop goes to sleep,
    until it wakes. And tests that a shell runs in the background have inherited that it is ignored.
    """
    program = """
import atexit, signal
from workflow_composer.backends.embedded.engine import Engine

signal.signal(signal.SIGINT, signal.default_int_handler)
finished = []
atexit.register(lambda: print(len(finished)))  # which runs when all threads have ended

def noted(self, *args, sample=Engine.sample, **settings):
    finished.append(sample(self, *args, **settings))
    return finished[-1]

Engine.sample = noted

async def tick():
    while True:
        await asyncio.sleep(0.1)

async def announce():
    await work()
    finished.clear()
    ticking = asyncio.ensure_future(tick())
    running = asyncio.ensure_future(backend.complete(endless))
    await asyncio.sleep(0.2)
    print("started", flush=True)
    await running
asyncio.run(announce())
"""
    with running(program, chat_model) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON)
    assert out == "0\n"
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in {-signal.SIGINT, 130, 1}
