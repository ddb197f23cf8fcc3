"""Whose fault a failure is, and that only a server's own failures count against it, once per request."""

import asyncio
import errno
import time

import pytest

from workflow_composer import errors
from workflow_composer.backends.fake import Delay
from workflow_composer.errors import (
    AllCandidatesFailed,
    AuthenticationFailed,
    BadRequest,
    BudgetExceeded,
    CallTimeout,
    CircuitOpen,
    ContextOverflow,
    DeadlineExceeded,
    ModelNotFound,
    OutOfResources,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
    StreamInterrupted,
    Unsupported,
)
from workflow_composer.execution.call import Trace
from workflow_composer.execution.fault import counts, fault_of
from workflow_composer.execution.streaming import StreamRun
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import Attempt, Chunk, LLMRequest, Timeouts

ASK = LLMRequest.of("What is 2 + 2?")


def plan_of(b, **options):
    return Plan((Tier.of(b.candidates(), **options),))


def failed(*faults):
    return [Attempt(0, 0, "a", True, 1.0, error="x", error_type="X", fault=fault) for fault in faults]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (BadRequest("x"), "caller"),
        (ContextOverflow("x"), "caller"),
        (Unsupported("x"), "caller"),
        (BudgetExceeded("x"), "caller"),
        (DeadlineExceeded("x", attempts=failed("server")), "caller"),
        (ServerFailed("x"), "server"),
        (ServerUnreachable("x"), "server"),
        (CallTimeout("x"), "server"),
        (CircuitOpen("x"), "server"),
        (RateLimited("x"), "ours"),
        (ModelNotFound("x"), "ours"),
        (AuthenticationFailed("x", status=401), "ours"),
        (OutOfResources("x"), "ours"),
        (asyncio.CancelledError(), "ours"),
        (GeneratorExit(), "ours"),
        (OSError(errno.EMFILE, "x"), "ours"),
        (AllCandidatesFailed("x", attempts=failed("caller", "server", "ours")), "server"),
        (AllCandidatesFailed("x", attempts=failed("caller", "ours")), "ours"),
        (AllCandidatesFailed("x", attempts=failed("caller", None)), "caller"),
    ],
)
def test_every_failure_is_somebodys_fault(error, fault):
    """A request that failed altogether is the server's fault if one of its calls is."""
    assert fault_of(error) == fault


def test_a_broken_stream_is_the_fault_of_what_broke_it():
    """The interruption itself is the form in which the client learns of it."""
    for cause, fault in ((ServerUnreachable("x"), "server"), (KeyError("x"), "ours")):
        error = StreamInterrupted("x")
        error.__cause__ = cause
        assert fault_of(error) == fault


def test_a_call_that_was_refused_here_does_not_count_again():
    """The breaker's own refusal is no further failure of the server."""
    assert not counts(CircuitOpen("x"))
    assert counts(ServerFailed("x"))


class TestBreakerInRequests:
    @pytest.mark.parametrize("draw", ["at_once", "as_needed"])
    async def test_many_failures_of_one_request_count_once(self, bench, fake, draw):
        """Retries of a call, and the calls of a vote: eight samples with three tries each are one failure."""
        b = bench(fake("a", ServerFailed("x", status=500)), failures=2)
        voting = Voting(draw=draw, stopping="fixed" if draw == "as_needed" else "decided")
        for state in ("closed", "open"):
            with pytest.raises(AllCandidatesFailed):
                await b.executor.run(plan_of(b, samples=8, voting=voting), ASK, Trace())
            assert b.endpoints["a"].breaker.state == state
        assert len(b.backends["a"].calls) >= 4

    @pytest.mark.parametrize(
        "error",
        [
            KeyError("a bug"),
            MemoryError(),
            RuntimeError("can't start new thread"),
            OSError(errno.EMFILE, "Too many open files"),
            RecursionError("deep"),
            OutOfResources("x"),
            BadRequest("x", status=400),
            AuthenticationFailed("no key"),
            ModelNotFound("x", status=404),
            RateLimited("x", status=429),
        ],
    )
    async def test_what_is_not_the_servers_fault_never_opens_its_breaker(self, bench, fake, error):
        """Else one client with a request that fails could take the model from all."""
        b = bench(fake("a", error), failures=1)
        for _ in range(3):
            with pytest.raises(errors.WorkflowComposerError):
                await b.executor.run(plan_of(b), ASK, b.trace)
        assert b.endpoints["a"].breaker.state == "closed"
        assert {attempt.fault for attempt in b.trace.attempts} <= {"caller", "ours"}

    @pytest.mark.parametrize("error", [Unsupported("x"), AuthenticationFailed("no key"), BadRequest("x"), KeyError("x")])
    async def test_a_call_that_never_reached_the_server_does_not_make_it_well(self, bench, fake, error):
        """A client whose requests fail here must not keep the breaker of a dead server closed."""
        b = bench(fake("a", ServerUnreachable("x"), error, ServerUnreachable("x")), failures=2)
        for _ in range(3):
            with pytest.raises(errors.WorkflowComposerError):
                await b.executor.run(plan_of(b), ASK, Trace())
        assert b.endpoints["a"].breaker.state == "open"

    async def test_without_descriptors_no_other_model_is_asked(self, bench, fake):
        """It may be a cloud model, and would lack them as well; the call is tried again, and then given up."""
        b = bench(fake("a", OSError(errno.EMFILE, "Too many open files")), fake("cloud", "4"))
        with pytest.raises(OutOfResources, match="descriptor"):
            await b.executor.run(plan_of(b), ASK, b.trace)
        assert b.names_tried() == ["a"] * 3

    async def test_want_that_passes_is_waited_out(self, bench, fake):
        """The next try may find a descriptor."""
        b = bench(fake("a", OutOfResources("x"), "4"))
        assert (await b.executor.run(plan_of(b), ASK, b.trace)).answer.text == "4"

    async def test_the_probe_of_a_request_that_failed_before_opens_the_breaker_again(self, bench, fake):
        """That it was counted already must not leave the probe hanging."""
        b = bench(fake("a", ServerUnreachable("x")), failures=1, cooldown=0.0)
        with pytest.raises(AllCandidatesFailed):
            await b.executor.run(plan_of(b), ASK, b.trace)
        breaker = b.endpoints["a"].breaker
        assert breaker.failed == 3  # the first, and each probe after the cooldown of no length
        assert breaker.admit() is True


class TestStreamsThatRunOutOfTime:
    @pytest.fixture
    def streaming(self, bench):
        """A bench with a backend that streams pieces as told, and a run of it."""

        class Streaming:
            name, local = "a", True

            def __init__(self, gap):
                self._gap = gap

            async def stream(self, call):
                yield Chunk("one ")
                while True:
                    await asyncio.sleep(self._gap)
                    yield Chunk("more ")

        def make(gap, total, first_token):
            b = bench(Streaming(gap), failures=1, timeouts=Timeouts(5.0, first_token, total))
            return b, StreamRun(b.executor, plan_of(b), ASK, b.trace)

        return make

    async def test_an_answer_too_long_for_the_limit_is_not_the_servers_fault(self, streaming):
        """It sent tokens until the end: whoever asks for more than fits the limit would else stop the model for all."""
        b, run = streaming(0.001, 0.2, 5.0)
        with pytest.raises(StreamInterrupted):
            async for _ in run.chunks():
                pass
        assert b.trace.attempts[0].fault == "caller"
        assert b.endpoints["a"].breaker.state == "closed"

    async def test_a_reader_too_slow_for_the_limit_is_not_the_servers_fault(self, streaming):
        """The time went by while the client did not take what was there."""
        b, run = streaming(0.0, 0.2, 5.0)
        with pytest.raises(StreamInterrupted):
            async for _ in run.chunks():
                time.sleep(0.3)  # noqa: ASYNC251  # the reader's own time
        assert b.endpoints["a"].breaker.state == "closed"

    async def test_a_stream_that_fell_silent_is_the_servers_fault(self, streaming):
        """Nothing came for as long as a first token may take."""
        b, run = streaming(60.0, 0.3, 0.1)
        with pytest.raises(StreamInterrupted):
            async for _ in run.chunks():
                pass
        assert b.trace.attempts[0].fault == "server"
        assert b.endpoints["a"].breaker.state == "open"

    async def test_the_requests_own_limit_is_the_callers(self, bench, fake):
        """Five impatient requests leave the breaker closed, streamed as well."""
        b = bench(fake("a", Delay(60.0, "late")), failures=1, timeouts=Timeouts(60, 60, 60))
        for _ in range(3):
            trace = Trace(0.02)
            with pytest.raises(DeadlineExceeded):
                async for _ in StreamRun(b.executor, plan_of(b), ASK, trace).chunks():
                    pass
            assert trace.attempts[0].fault == "caller"
        assert b.endpoints["a"].breaker.state == "closed"
