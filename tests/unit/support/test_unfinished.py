"""Unfinished bodies: bounded together, and whoever sends little holds up nobody."""

from __future__ import annotations

from workflow_composer.support.unfinished import PATIENCE, PIECE, UnfinishedBodies


class Client:
    """A connection that notes what is done to it."""

    def __init__(self, bodies):
        self.bodies, self.reads, self.refused, self.now = bodies, True, False, 0.0

    def hold(self):
        self.reads = False

    def go_on(self):
        self.reads = True

    def cut_off(self):
        self.refused = True
        self.bodies.remove(self, self.now)


def clients(count, most=100, pace=10):
    bodies = UnfinishedBodies(most, pace)
    return bodies, [Client(bodies) for _ in range(count)]


def test_beyond_the_limit_all_but_the_first_wait():
    bodies, (first, second, third) = clients(3)
    for one in (first, second, third):
        bodies.add(one, 50, 0.0)
    assert [one.reads for one in (first, second, third)] == [True, True, False]
    bodies.add(second, 1, 0.0)
    assert not second.reads
    bodies.add(first, 1000, 0.0)
    assert first.reads
    assert bodies.held == 1151


def test_room_goes_to_those_who_wait_in_their_order():
    bodies, found = clients(4, most=2 * PIECE)
    for one in found:
        bodies.add(one, PIECE, 0.0)
    assert [one.reads for one in found] == [True, True, False, False]
    bodies.remove(found[1], 1.0)
    assert [one.reads for one in found] == [True, True, False, False]
    bodies.remove(found[0], 1.0)  # then another is the first
    assert [one.reads for one in found[2:]] == [True, False]
    bodies.remove(found[2], 1.0)
    assert found[3].reads
    bodies.remove(found[3], 1.0)
    bodies.remove(found[3], 1.0)
    assert bodies.held == 0


def test_while_others_wait_those_who_send_little_are_refused_and_the_waiting_are_not():
    bodies, (idle, busy, waiting) = clients(3)
    bodies.add(idle, 60, 0.0)
    bodies.add(busy, 40, 0.0)
    bodies.cut_off_the_slow(1000.0)
    assert not idle.refused  # nobody waits
    bodies.add(waiting, 5, 6.0)
    bodies.add(busy, 40, 7.0)
    late = 60 / 10 + PATIENCE + 1
    bodies.cut_off_the_slow(late - 2)
    assert not idle.refused
    idle.now = late
    bodies.cut_off_the_slow(late)
    assert (idle.refused, busy.refused, waiting.refused) == (True, False, False)


def test_the_time_in_which_a_client_had_to_wait_does_not_count_as_its_own():
    bodies, (first, second) = clients(2)
    bodies.add(first, 90, 0.0)
    bodies.add(second, 40, 1.0)
    bodies.remove(first, 500.0)
    assert second.reads
    other = Client(bodies)
    bodies.add(other, 90, 500.0)
    bodies.cut_off_the_slow(501.0)
    assert not second.refused
