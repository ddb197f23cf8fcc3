"""Who used what: counted by day, key and user, and kept."""

from __future__ import annotations

from calendar import timegm

from workflow_composer.server.auth import history as module
from workflow_composer.server.auth.history import MOST_USERS, OTHERS, SAVE_EVERY, UsageHistory, joined, read_rows
from workflow_composer.server.auth.keys import Key

NOON = float(timegm((2026, 5, 31, 12, 0, 0)))


class Clock:
    """A clock that is set by hand."""

    now = NOON

    def __call__(self):
        return self.now


def made(tmp_path, **fields):
    """A history, its clock and a key."""
    clock = Clock()
    return UsageHistory(tmp_path / "usage.jsonl", clock=clock), clock, Key.new("ann", **fields)[0]


def test_rows_are_written_once_a_minute_and_at_the_end_of_a_day(tmp_path):
    history, clock, key = made(tmp_path)
    history.row(key, "u").requests += 1
    assert history.take() == []
    clock.now += SAVE_EVERY
    history.save(history.take())
    history.row(key, "u").requests += 2
    clock.now = NOON + 12 * 3600.0 - 1.0
    history.save(history.take())
    clock.now += 2.0
    history.row(key, "u").requests += 4  # in the first second of the day: it was begun under the old one
    history.save(history.take())
    history.row(key, "u").requests += 8
    history.save(history.take(at_once=True))
    rows = joined(read_rows(tmp_path / "usage.jsonl"), lambda row: (row.day,))
    assert [(row.day, row.requests) for row in rows] == [("2026-05-31", 7), ("2026-06-01", 8)]
    assert [row.requests for row in read_rows(tmp_path / "usage.jsonl", "2026-06-01")] == [8]
    assert (tmp_path / "usage.jsonl").stat().st_mode & 0o077 == 0


def test_what_cannot_be_written_waits(tmp_path):
    history, _, key = made(tmp_path)
    history.row(key, "").requests += 1
    rows = history.take(at_once=True)
    history.row(key, "").requests += 2
    history.take_back(rows)
    assert [row.requests for row in history.take(at_once=True)] == [3]


def test_the_label_of_a_key_stands_for_requests_that_name_nobody(tmp_path):
    history, _, key = made(tmp_path, user="Ann A.", team="x")
    assert (history.row(key, "").user, history.row(key, "bob").user, history.row(key, "").team) == ("Ann A.", "bob", "x")


def test_made_up_users_do_not_fill_the_memory(tmp_path):
    history, _, key = made(tmp_path)
    for number in range(MOST_USERS + 50):
        history.row(key, f"u{number}").requests += 1
    rows = history.take(at_once=True)
    assert len(rows) == MOST_USERS + 1
    assert [row.requests for row in rows if row.user == OTHERS] == [50]


def test_damaged_lines_are_passed_over(tmp_path):
    history, _, key = made(tmp_path)
    history.row(key, "").requests += 1
    history.save(history.take(at_once=True))
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"day": 3}\nnull\n\xff\n{"day":"2026-05-3')
    history.row(key, "").requests += 1
    history.save(history.take(at_once=True))
    assert len(read_rows(tmp_path / "usage.jsonl")) == 2


def test_a_long_file_is_joined_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONG", 1000)
    history, _, key = made(tmp_path)
    for _ in range(50):
        history.row(key, "u").requests += 1
        history.save(history.take(at_once=True))
    assert (tmp_path / "usage.jsonl").stat().st_size < 2000
    assert sum(row.requests for row in read_rows(tmp_path / "usage.jsonl")) == 50
