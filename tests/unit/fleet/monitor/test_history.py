"""The history of checks: what it keeps, and the uptime that comes of it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.fleet.file import load_fleet
from workflow_composer.fleet.monitor import history, monitor
from workflow_composer.fleet.monitor.history import DAY, CheckRecord, History, tokens_per_second, uptime
from workflow_composer.fleet.monitor.report import report
from workflow_composer.storage import lines as storage_lines
from workflow_composer.storage.locks import locked

NOW = 1e9


def record(before, outcome="up", **fields):
    return CheckRecord(**({"time": NOW - before, "server": "coder", "outcome": outcome} | fields))


@pytest.fixture
def kept(tmp_path):
    return History(tmp_path / "state" / "history.jsonl", days=7)


def test_what_is_added_is_there_again(kept):
    rows = [record(20, tokens=5.0, waiting=2), record(10, "down", reason="it hangs")]
    kept.add(rows[:1])
    kept.add(rows[1:])
    assert list(kept.records()) == rows
    assert list(kept.records(since=NOW - 15)) == rows[1:]


def test_a_history_that_is_not_there_is_empty(kept):
    assert list(kept.records()) == []
    kept.add([])
    assert not kept.path.exists()


def test_damaged_lines_are_passed_over_and_half_a_line_spoils_no_other(kept):
    kept.add([record(30)])
    with kept.path.open("ab") as file:
        file.write(b'[1]\n{"time": "x"}\n\xff\xfe\n{"time": 5, "server": "a", "out')
    kept.add([record(10)])
    assert list(kept.records()) == [record(30), record(10)]


def test_old_checks_are_cut_off_and_newer_ones_stay(kept):
    kept.add([record(8.5 * DAY), record(7.5 * DAY), record(6.5 * DAY), record(10)])
    kept.prune(NOW)
    assert list(kept.records()) == [record(6.5 * DAY), record(10)]


def test_history_days_is_what_is_kept(tmp_path):
    short = History(tmp_path / "h", days=1)
    short.add([record(3 * DAY), record(1.5 * DAY), record(0.5 * DAY)])
    short.prune(NOW)
    assert list(short.records()) == [record(0.5 * DAY)]


def test_nothing_is_written_while_nothing_is_a_day_too_old(kept):
    kept.add([record(7.5 * DAY)])
    before = kept.path.stat()
    kept.prune(NOW)
    assert kept.path.stat().st_ino == before.st_ino


WRITER = """
import sys
from pathlib import Path
from workflow_composer.fleet.monitor.history import History, CheckRecord, DAY
kept = History(Path(sys.argv[1]), days=1)
for index in range(150):
    kept.add([CheckRecord(time=1e9, server=sys.argv[2], outcome="up", tokens=float(index), reason="x" * 300)] * 2)
    kept.add([CheckRecord(time=1.0, server="old", outcome="up")])
    kept.prune(1e9)
"""


def test_two_writers_that_also_cut_lose_nothing_and_break_no_line(tmp_path):
    path = tmp_path / "h.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    for name in ("a", "b"):
        assert [row["tokens"] for row in rows if row["server"] == name] == [float(i) for i in range(150) for _ in range(2)]


def test_a_line_that_waited_while_the_file_was_replaced_goes_into_the_new_one(kept):
    """Another monitor cuts the history while this one waits for its lock."""
    kept.add([record(30)])
    with locked(kept.path):
        adding = threading.Thread(target=kept.add, args=([record(10)],))
        adding.start()
        adding.join(0.2)
        assert adding.is_alive()
        beside = kept.path.with_suffix(".beside")
        beside.write_bytes(kept.path.read_bytes())
        beside.replace(kept.path)
    adding.join(60)
    assert list(kept.records()) == [record(30), record(10)]


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A file-size limit stands for it: the write is refused, or cut and taken back."""
    path = tmp_path / "h.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from workflow_composer.fleet.monitor.history import History, CheckRecord\n"
        "kept = History(Path(sys.argv[1]), days=1)\n"
        "for index in range(20): kept.add([CheckRecord(time=1e9, server='a', outcome='up')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "OSError" in done.stderr
    assert path.stat().st_size <= 1000
    assert path.read_bytes().endswith(b"}\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_uptime_is_the_share_of_the_time_that_was_checked():
    rows = [record(400), record(300), record(200, "down"), record(100)]
    found = uptime(rows, NOW, reach=600)
    assert (found.share, found.checked) == (0.75, 400)


def test_a_gap_counts_only_as_far_as_a_check_reaches():
    """Nobody looked for hours: the last check before vouches for two intervals, the rest is left out."""
    rows = [record(10_000), record(5_000, "down"), record(100)]
    found = uptime(rows, NOW, reach=600)
    assert found.checked == 600 + 600 + 100
    assert found.share == pytest.approx(700 / 1300)


def test_where_nobody_looked_it_is_unknown():
    assert uptime([], NOW, reach=600).share is None
    assert uptime([record(2 * DAY)], NOW, reach=600) == uptime([], NOW, reach=600)


def test_only_the_last_day_counts():
    rows = [record(DAY + 300, "down"), record(DAY - 300)]
    found = uptime(rows, NOW, reach=600)
    assert found.checked == 300 + 600
    assert found.share == pytest.approx(600 / 900)


def test_overloaded_is_up_and_waiting_is_not():
    rows = [record(200, "overloaded"), record(100, "waiting")]
    assert uptime(rows, NOW, reach=600).share == 0.5


@given(st.lists(st.tuples(st.floats(0, 2 * DAY), st.sampled_from(["up", "overloaded", "down", "waiting"])), max_size=40))
def test_uptime_is_a_share_of_at_most_a_day(rows):
    found = uptime([record(before, outcome) for before, outcome in rows], NOW, reach=600)
    assert 0 <= found.checked <= DAY + 1e-3
    assert found.share is None or 0 <= found.share <= 1 + 1e-9


def test_tokens_per_second_come_from_the_last_two_checks_of_one_process():
    assert tokens_per_second([record(20, tokens=100.0, started=1.0), record(10, tokens=150.0, started=1.0)]) == 5.0
    assert tokens_per_second([record(20, tokens=100.0, started=1.0), record(10, tokens=150.0, started=2.0)]) is None
    assert tokens_per_second([record(10, tokens=150.0)]) is None
    assert tokens_per_second([record(10), record(5)]) is None
    assert tokens_per_second([record(10, tokens=2.0), record(10, tokens=3.0)]) is None


def test_the_file_is_its_owners(kept):
    kept.add([record(1)])
    assert kept.path.stat().st_mode & 0o077 == 0


# ------------------------------------------------------------------------------------------------------ only the end


@pytest.fixture
def counted(monkeypatch):
    """The bytes that are read of ordered files."""
    read, opened = [0], storage_lines.seekable

    class Counted:
        def __init__(self, path):
            self.file = opened(path)
            self.seek, self.tell = self.file.seek, self.file.tell

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def readline(self, most=-1):
            line = self.file.readline(most)
            read[0] += len(line)
            return line

    monkeypatch.setattr(storage_lines, "seekable", Counted)
    return read


def write_checks(path, count, every, servers=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    line = '{{"time":{},"server":"s{}","outcome":"up","reason":"","running":1,"waiting":0,"cache":0.1,"tokens":5.0}}\n'
    with path.open("w") as file:
        file.writelines(line.format(NOW - (count - n) * every, n % servers) for n in range(count))


def test_a_long_history_is_read_from_its_end(kept, counted):
    """A day is read of a month as of two days: what status costs does not grow with the history."""
    sizes = {}
    for days in (2, 30):
        write_checks(kept.path, days * 2880, 30.0)
        counted[0] = 0
        found = list(kept.recent(NOW - DAY))
        assert len(found) == 2880
        sizes[days] = counted[0]
    assert sizes[30] < 1.5 * sizes[2]
    assert sizes[30] < kept.path.stat().st_size / 10


def test_of_200_000_checks_of_one_day_a_bounded_part_is_read(kept, counted):
    write_checks(kept.path, 200_000, 0.4, servers=100)
    found = list(kept.recent(NOW - DAY))
    assert counted[0] <= history.MOST + (1 << 19)
    assert found[-1].time == NOW - 0.4
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert len(found) > 50_000
    assert uptime([one for one in found if one.server == "s7"], NOW, reach=600).checked > 3600


def test_status_reads_no_more_of_the_history_than_its_end(tmp_path, counted):
    fleet_file = tmp_path / "fleet.yaml"
    roles = {"s1": {"model": "m", "port": 8001}}
    fleet_file.write_text(json.dumps({"registry": "registry", "state": "state", "roles": roles}))
    fleet = load_fleet(fleet_file, {"HOME": str(tmp_path)})
    path = monitor.history(fleet).path
    write_checks(path, 60_000, 30.0)
    lines = path.read_text().replace(f'"time":{NOW - 30.0}', f'"time":{time.time() - 30.0}')
    path.write_text(lines)
    counted[0] = 0
    (line,) = report(fleet, {}, "here")
    assert line.server == "s1"
    assert 0 < counted[0] < path.stat().st_size / 20


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300), st.integers(-10, 10_010))
def test_the_recent_records_are_those_of_all_records(tmp_path_factory, times, since):
    """Also where lines are damaged."""
    kept = History(tmp_path_factory.mktemp("history") / "history.jsonl", days=7)
    kept.add([CheckRecord(time=float(at), server="a", outcome="up") for at in sorted(times)])
    with kept.path.open("ab") as file:
        file.write(b"{damaged\n")
    assert list(kept.recent(float(since))) == list(kept.records(float(since)))
