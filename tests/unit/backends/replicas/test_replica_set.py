"""The servers of a role: who gets a call, who is passed over, who has gone."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.replicas.observer import Readings
from workflow_composer.backends.replicas.replica import FRESH, Replica, ReplicaPlace, Standing, another_may_answer
from workflow_composer.backends.replicas.replica_set import GONE, ReplicaSet
from workflow_composer.errors import (
    AuthenticationFailed,
    BadRequest,
    CallTimeout,
    CircuitOpen,
    ContextOverflow,
    EgressDenied,
    ModelNotFound,
    OutOfResources,
    RateLimited,
    ServerFailed,
    ServerUnreachable,
    Unsupported,
)

A, B, C = (ReplicaPlace(f"http://{name}:1/v1", "m", registered=True) for name in "abc")
KEY = b"k" * 16


def own(error):
    """The same error, by our own fault."""
    error.fault = "ours"
    return error


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


class Servers(ReplicaSet):
    """A set without backends, with a clock, and a list of what it reports."""

    def __init__(self, *places, failures=3, refusing=()):
        self.clock = Clock()
        self.reports = []
        self.refusing = refusing
        self.failures = failures
        super().__init__(self.made, self.reports.append, role="coder", clock=self.clock)
        self.adopt(places)

    def made(self, place):
        if place in self.refusing:
            raise EgressDenied("far away")
        return Replica(place, None, failures=self.failures, longest_pause=30.0)

    def ask(self, *, key=None, tried=(), error=None, request=None):
        """One call; the place that got it."""
        place = None
        try:
            with self.lent(key, tried, request) as replica:
                place = replica and replica.place
                if error is not None:
                    raise error
        except (ServerUnreachable, ModelNotFound, ServerFailed, RateLimited, BadRequest):
            pass
        return place

    def of(self, place):
        return next(replica for replica in self.replicas if replica.place == place)


def test_a_server_that_failed_is_passed_over_while_another_answers():
    """Its pause grows with each failure, and ends with a success."""
    servers = Servers(A, B)
    assert servers.ask(tried={B}, error=ServerUnreachable("x")) == A
    assert {servers.ask() for _ in range(30)} == {B}
    assert {servers.ask(key=bytes([n]) * 16) for n in range(30)} == {B}
    servers.clock.now += 0.6
    servers.ask(tried={B})  # it answers
    assert {servers.ask() for _ in range(60)} == {A, B}


def test_the_pause_doubles_and_ends_at_the_breakers_cooldown():
    """A dead entry costs one failed connection now and then."""
    servers, pauses = Servers(A, failures=100), []
    for _ in range(9):
        servers.ask(error=ServerUnreachable("x"))
        pauses.append(servers.of(A).pause_left(servers.clock.now))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_doubtful_server_is_asked_where_there_is_no_other():
    """One failure is no reason to refuse a request without asking anybody."""
    servers = Servers(A)
    servers.ask(error=ServerUnreachable("x"))
    assert servers.of(A).standing(servers.clock.now) is Standing.DOUBTFUL
    assert servers.ask() == A


def test_servers_that_failed_again_and_again_are_left_alone_and_a_new_one_is_used_at_once():
    """The way to a server that has just come is open, whatever the others did."""
    servers = Servers(A)
    for _ in range(3):
        servers.ask(error=ServerUnreachable("x"))
    with pytest.raises(CircuitOpen, match="every server of coder"):
        servers.ask()
    servers.adopt([A, B])
    assert servers.ask() == B


def test_the_failures_of_one_request_count_once():
    """A vote of many samples on a server that fails is one failure, and its pause does not grow with them."""
    servers = Servers(A, failures=3)
    for _ in range(12):
        servers.ask(error=ServerFailed("x"), request="one")
    assert servers.of(A).standing(servers.clock.now) is Standing.DOUBTFUL
    assert servers.of(A).pause_left(servers.clock.now) == 0.5
    servers.ask(error=ServerFailed("x"), request="two")
    servers.ask(error=ServerFailed("x"), request="one")
    assert servers.of(A).standing(servers.clock.now) is Standing.DOUBTFUL
    servers.ask(error=ServerFailed("x"), request="three")
    assert servers.of(A).standing(servers.clock.now) is Standing.OUT
    servers.clock.now += 60.0
    servers.ask(request="four")
    servers.ask(error=ServerFailed("x"), request="one")
    assert servers.of(A).pause_left(servers.clock.now) == 0.5  # after a success, the count starts anew


@pytest.mark.parametrize("error", [OutOfResources("x"), own(ServerUnreachable("x")), own(ServerFailed("x"))])
def test_a_fault_of_our_own_speaks_against_no_server(error):
    """A process without descriptors reaches none of them."""
    servers = Servers(A, B)
    for _ in range(5):
        with contextlib.suppress(OutOfResources):
            servers.ask(error=error)
    assert {replica.standing(servers.clock.now) for replica in servers.replicas} == {Standing.GOOD}


def test_a_server_that_answers_a_question_for_its_metrics_is_reachable_again():
    """No request is needed to find out."""
    servers = Servers(A)
    for _ in range(3):
        servers.ask(error=ServerUnreachable("x"))
    servers.of(A).told(Readings(), 0, servers.clock.now)
    assert servers.ask() == A
    assert servers.of(A).standing(servers.clock.now) is Standing.GOOD


def test_a_server_with_the_wrong_model_is_not_made_good_by_its_metrics():
    """It is there, and it is another."""
    servers = Servers(A)
    servers.ask(error=ModelNotFound("no such model", status=404))
    servers.of(A).told(Readings(), 0, servers.clock.now)
    assert servers.of(A).standing(servers.clock.now) is Standing.DOUBTFUL


def test_a_server_that_says_nothing_is_asked_last():
    """It may hang; two silences in a row are needed, for a busy server is slow, too."""
    servers = Servers(A, B)
    servers.of(A).said_nothing(refused=False, now=servers.clock.now)
    assert servers.of(A).standing(servers.clock.now) is Standing.GOOD
    servers.of(A).said_nothing(refused=False, now=servers.clock.now)
    assert {servers.ask() for _ in range(30)} == {B}
    servers.of(A).told(Readings(), 0, servers.clock.now)
    assert {servers.ask() for _ in range(60)} == {A, B}


def test_a_listed_server_is_unknown_until_something_is_heard_of_it():
    """One that the registry vouches for is preferred to it, so that a port without a server costs no request."""
    listed = ReplicaPlace("http://d:1/v1")
    servers = Servers(listed, A)
    assert {servers.ask(key=bytes([n]) * 16) for n in range(30)} == {A}
    servers.of(listed).told(Readings(), 0, servers.clock.now)
    assert {servers.ask() for _ in range(60)} == {listed, A}


@pytest.mark.parametrize(
    ("error", "elsewhere", "against"),
    [
        (ServerUnreachable("x"), True, True),
        (ServerFailed("x", status=500), True, True),
        (ModelNotFound("x", status=404), True, True),
        (AuthenticationFailed("x", status=401), True, True),
        (AuthenticationFailed("no key is set"), False, False),
        (RateLimited("x", status=429), True, False),
        (CallTimeout("x"), False, True),
        (BadRequest("x", status=400), False, False),
        (ContextOverflow("x", status=400), False, False),
        (Unsupported("x"), False, False),
    ],
)
def test_what_an_error_says_of_the_server(error, elsewhere, against):
    """Whether another server may do better, and whether this one is passed over."""
    servers = Servers(A)
    with pytest.raises(type(error)), servers.lent(None, ()):
        raise error
    assert another_may_answer(error) == elsewhere
    assert (servers.of(A).standing(servers.clock.now) is not Standing.GOOD) == against


def test_a_connection_that_is_not_made_in_time_leaves_time_for_another_server():
    """A node without power."""
    error = CallTimeout("no connection in time")
    error.sent = False
    assert another_may_answer(error)


def test_requests_with_one_beginning_stay_together_until_their_server_has_too_much_to_do():
    """Then the next in order takes over, always the same."""
    servers = Servers(A, B, C)
    first = servers.ask(key=KEY)
    assert {servers.ask(key=KEY) for _ in range(20)} == {first}
    servers.of(first).calls = 50
    second = servers.ask(key=KEY)
    assert second != first
    assert {servers.ask(key=KEY) for _ in range(20)} == {second}


def test_what_others_ask_a_server_counts_as_its_load():
    """By its own count, less our calls in it, as long as that is fresh; a full cache doubles it."""
    servers = Servers(A)
    replica, now = servers.of(A), servers.clock.now
    replica.calls = 2
    replica.told(Readings(requests=10, cache=0.5), 2, now)
    assert replica.load(now) == 10.0
    replica.told(Readings(requests=10, cache=1.0), 2, now)
    assert replica.load(now) == pytest.approx(20.0)
    assert replica.load(now + FRESH + 0.1) == 2.0


def test_a_server_that_goes_is_closed_when_its_last_call_has_ended():
    """Not before: the call under way needs its connection."""
    servers = Servers(A, B)
    with servers.lent(None, {B}):
        servers.adopt([B])
        servers.clock.now += GONE
        assert servers.ended() == []
        assert servers.ask() == B
    assert [replica.place for replica in servers.ended()] == [A]
    assert servers.ended() == []


def test_the_last_server_that_vanishes_is_asked_for_a_moment_longer():
    """A file that is being replaced on a network file system may be missing in one reading."""
    servers = Servers(A)
    servers.adopt([])
    assert servers.ask() == A
    servers.clock.now += GONE
    assert servers.ask() is None


def test_a_server_that_comes_back_keeps_what_is_known_of_it():
    """Its calls under way among it."""
    servers = Servers(A, B)
    with servers.lent(None, {B}) as replica:
        servers.adopt([B])
        servers.adopt([A, B])
        assert servers.of(A) is replica
        assert replica.calls == 1


def test_a_server_that_may_not_be_reached_is_reported_once_and_not_used():
    """However often it is found."""
    servers = Servers(A, B, refusing=(A,))
    for _ in range(3):
        servers.adopt([A, B])
    assert servers.reports == ["a server of coder is rejected: far away"]
    assert servers.refused == ["far away"]
    assert {servers.ask() for _ in range(20)} == {B}


def test_a_server_whose_name_leads_out_is_refused_when_that_shows():
    """A name is looked up only when a connection is made."""
    servers = Servers(A, B)
    with pytest.raises(EgressDenied), servers.lent(None, {B}):
        raise EgressDenied("far away")
    servers.adopt([A, B])
    assert {servers.ask() for _ in range(20)} == {B}
    assert len(servers.reports) == 1


def test_a_failure_is_reported_when_a_good_server_begins_to_fail():
    """Once, not with every request."""
    servers = Servers(A, B)
    for _ in range(3):
        servers.ask(tried={B}, error=ServerUnreachable("a:1: no connection"))
    assert servers.reports == ["a server of coder failed and is avoided for a moment: a:1: no connection"]


def test_gpu_time_is_counted_on_every_server_at_work():
    """Two calls on two servers for ten seconds are twenty seconds of GPU time, on one server ten."""
    servers = Servers(A, B)
    tokens = [servers.meter.start(), servers.meter.start()]
    with servers.lent(None, {B}), servers.lent(None, {A}):
        servers.clock.now += 10
    with servers.lent(None, {B}), servers.lent(None, {B}):
        servers.clock.now += 10
    servers.clock.now += 10  # a pause between two attempts costs nothing
    assert sum(servers.meter.stop(token) for token in tokens) == pytest.approx(30.0)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["come", "go", "ask", "fail"])), max_size=60))
def test_calls_are_always_given_back(steps):
    """Whatever comes and goes meanwhile, no server keeps a call that has ended."""
    servers, there = Servers(), set()
    for name, what in steps:
        place = ReplicaPlace(f"http://{name}:1/v1", "m", registered=True)
        if what == "come":
            there.add(place)
        elif what == "go":
            there.discard(place)
        else:
            servers.adopt(there)
            try:
                got = servers.ask(key=name.encode() * 16, error=ServerUnreachable("x") if what == "fail" else None)
            except CircuitOpen:
                got = None
            assert got is None or got in there or not there
        servers.clock.now += 0.7
        servers.adopt(there)
    assert all(replica.calls == 0 for replica in servers.everyone())
