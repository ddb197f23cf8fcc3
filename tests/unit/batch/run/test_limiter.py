"""The limiter finds what a server sustains: in simulated time, against servers whose capacity is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.batch.simulated_server import Simulation
from workflow_composer.batch.run.limiter import Limiter, _Round

SPREADS = ["constant", "exponential", "heavy"]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("capacity", [3, 20, 100])
def test_the_limit_is_within_a_factor_of_two_of_what_a_server_works_on_at_a_time(capacity, spread):
    """More in flight would only wait; fewer would leave it idle."""
    limit, pace = Simulation("slots", capacity, spread=spread).run(20_000).later()

    assert capacity / 2 <= limit <= 2 * capacity
    assert pace >= 0.8 * capacity


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("capacity", [3, 20, 100])
def test_a_server_that_refuses_is_used_without_being_run_into_all_the_time(capacity, spread):
    found = Simulation("refusing", capacity, spread=spread).run(20_000)
    limit, pace = found.later()

    assert capacity / 2 <= limit <= 1.1 * capacity
    assert pace >= 0.65 * capacity
    assert found.refused <= 0.09 * 20_000


@pytest.mark.parametrize("capacity", [20, 100])
def test_latency_that_grows_is_no_reason_to_stop_where_throughput_grows_too(capacity):
    """A server that batches: each row takes longer with every further one, and yet more are done per second."""
    limit, pace = Simulation("batching", capacity, spread="constant").run(20_000).later()

    assert limit >= 2 * capacity
    assert pace >= 0.65 * capacity


def test_without_a_bound_of_the_server_the_limit_grows_to_the_most():
    found = Simulation("slots", 10**6, most=200).run(20_000)

    assert found.later()[0] == 200
    assert found.most_in_flight == 200


@pytest.mark.parametrize("kind", ["slots", "refusing"])
def test_a_server_that_is_given_more_room_is_used_more(kind):
    found = Simulation(kind, 20).run(30_000, change=(10_000, 200))

    assert found.part(6_000, 10_000) <= 40
    assert found.part(20_000, 30_000) >= 100


def test_a_server_that_loses_room_is_used_less():
    found = Simulation("refusing", 200).run(30_000, change=(10_000, 20))

    assert found.part(6_000, 10_000) >= 100
    assert found.part(12_000, 30_000) <= 22


def test_a_server_that_is_down_does_not_turn_the_data_into_errors():
    """Ten minutes in which every call fails at once cost the rows in flight and few besides; then all goes on as before."""
    found = Simulation("slots", 100, down=(100, 700)).run(20_000)

    assert found.refused < 300
    assert found.limiter.pause == 0
    assert found.part(15_000, 20_000) >= 50


def test_a_server_that_hangs_is_asked_less_and_less():
    """Time-outs may be those of long questions; but where nothing comes out well any more, they are not."""
    found = Simulation("slots", 100, down=(100, 3_700), hangs=True).run(20_000)

    assert found.refused < 700
    assert found.part(15_000, 20_000) >= 50


def test_errors_that_have_nothing_to_do_with_load_are_no_signal():
    """Rows that fail without `overloaded` leave the limit alone."""
    clock = Clock()
    limiter = Limiter(start=8, clock=clock)
    for _ in range(100):
        limiter.begin()
        clock.now += 1
        limiter.end(well=False)

    assert limiter.limit == 8
    assert limiter.pause == 0


@pytest.mark.parametrize("hard", [0.05, 0.15, 0.3, 0.6])
def test_questions_that_are_too_long_for_their_time_do_not_press_the_limit_down(hard):
    """They time out however few are in flight, which shows in throughput: it falls with the limit."""
    limit, pace = Simulation("slots", 50, hard=hard).run(20_000).later()

    assert 25 <= limit <= 100
    assert pace >= 0.65 * 50


def test_time_outs_that_fewer_in_flight_would_spare_cut():
    """Throughput does not fall with the limit, so that the cut stands."""
    clock = Clock()
    limiter = Limiter(start=64, most=64, clock=clock)
    for _ in range(600):
        while limiter.room:
            limiter.begin()
        late = limiter.in_flight > 8
        clock.now += 0.1 if late else 0.05
        if late:
            limiter.overloaded("CallTimeout")
        limiter.end(well=not late)

    assert limiter.limit <= 8


def test_many_signals_at_once_cut_once():
    """All that was in flight is refused: one cut, not one for every refusal."""
    limiter = Limiter(start=100, clock=Clock())
    while limiter.room:
        limiter.begin()
    for _ in range(100):
        limiter.overloaded("ServerUnreachable")
        limiter.end(well=False)

    assert limiter.limit == 50


def test_pauses_double_while_nothing_comes_out_well_and_end_with_the_first_answer():
    limiter = Limiter(least=1, start=1, clock=Clock())
    pauses = []
    for _ in range(200):
        limiter.begin()
        limiter.overloaded("ServerUnreachable")
        limiter.end(well=False)
        if limiter.pause not in pauses:
            pauses.append(limiter.pause)
    assert pauses == [0, 1, 2, 4, 8, 16, 30]
    limiter.begin()
    limiter.end(well=True)

    assert limiter.pause == 0


def test_too_few_rows_to_fill_the_limit_do_not_raise_it():
    """One row at a time says nothing about what a server could sustain."""
    clock = Clock()
    limiter = Limiter(start=8, clock=clock)
    for _ in range(500):
        limiter.begin()
        clock.now += 1
        limiter.end(well=True)

    assert limiter.limit == 8


def test_a_round_times_only_what_ends_after_the_rows_that_were_under_way():
    """Those began under another limit."""
    measured = _Round(0.0, 2, 4)
    ended = [measured.ended(now, well=now != 13.0) for now in (5.0, 10.0, 11.0, 12.0, 13.0, 14.0)]

    assert ended == [False] * 5 + [True]
    assert measured.throughput == 3 / 4


@settings(deadline=None)
@given(
    least=st.integers(1, 5),
    more=st.integers(0, 60),
    start=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), max_size=300),
)
def test_the_limit_keeps_its_bounds_whatever_happens(least, more, start, steps):
    clock = Clock()
    limiter = Limiter(least=least, most=least + more, start=start, clock=clock)
    for seconds, event in steps:
        clock.now += seconds
        while limiter.room and event != 3:
            limiter.begin()
        if event == 1:
            limiter.overloaded("ServerUnreachable")
        if limiter.in_flight:
            limiter.end(well=event == 0)
        assert least <= limiter.limit <= least + more
        assert 0 <= limiter.pause <= 30


@pytest.mark.parametrize("bounds", [{"least": 0}, {"least": 5, "most": 4}])
def test_bounds_that_leave_no_room_are_refused(bounds):
    with pytest.raises(ValueError, match="1 <= least <= most"):
        Limiter(**bounds)
