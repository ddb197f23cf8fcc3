"""Lines written by a thread: in their order, all or counted, and nobody waits for them."""

from __future__ import annotations

import threading

from workflow_composer.support.line_writer import LineWriter


def test_lines_are_written_in_their_order():
    found = []
    writer = LineWriter(lambda lines, dropped: found.append(lines) is None)
    for number in range(500):
        writer.put(b"%d\n" % number)
    assert writer.flush(20)
    assert b"".join(found).split() == [b"%d" % number for number in range(500)]


def test_while_nothing_can_be_written_lines_wait_up_to_a_limit_and_the_rest_is_counted():
    released, found = threading.Event(), []

    def write(lines, dropped):
        released.wait(20)
        found.append((lines, dropped))
        return True

    writer = LineWriter(write, most=40)
    for number in range(100):
        writer.put(b"%03d\n" % number)  # returns although the first line is being written
    assert not writer.flush(0.0)
    released.set()
    assert writer.flush(20)
    writer.put(b"end\n")
    assert writer.flush(20)
    lines = b"".join(lines for lines, _ in found).split()
    assert lines == [*(b"%03d" % number for number in range(10)), b"end"]
    assert sum(dropped for _, dropped in found) == 90


def test_what_could_not_be_written_yet_is_tried_again_and_an_error_ends_nothing():
    answers, found = [False, False, True], []

    def write(lines, dropped):
        if lines == b"bad\n":
            raise OSError("no")
        if answers.pop(0):
            found.append(lines)
            return True
        return False

    writer = LineWriter(write)
    writer.put(b"a\n")
    assert writer.flush(20)
    writer.put(b"bad\n")
    assert writer.flush(20)
    answers.append(True)
    writer.put(b"b\n")
    assert writer.flush(20)
    assert found == [b"a\n", b"b\n"]
