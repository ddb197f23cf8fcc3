"""What keys have used: budgets and rates, over workers and restarts."""

from __future__ import annotations

import math
import random
import signal
import struct
import subprocess
import sys
import time
from calendar import timegm

import pytest

from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import TOGETHER, Ledger
from workflow_composer.server.failures import HttpFailure

NOW = float(timegm((2026, 5, 31, 23, 0, 0)))
DAY = 86_400.0


def key_of(name="ann", **limits):
    """A key's record."""
    return Key.new(name, now=NOW, **limits)[0]


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.bin")
    yield made
    made.close()


def refusal(ledger, key, now):
    """Why a request is refused; None where it is let in."""
    try:
        ledger.admit(key, now)
    except HttpFailure as failure:
        return failure
    return None


@pytest.mark.parametrize(("period", "reset"), [("day", NOW + 3600), ("month", NOW + 3600), ("total", None)])
def test_a_spent_budget_ends_with_its_period(ledger, period, reset):
    key = key_of(budget=1.0, period=period)
    assert refusal(ledger, key, NOW) is None
    ledger.charge(key, cost=0.6, tokens=10, now=NOW)
    assert ledger.left(key, NOW) == pytest.approx(0.4)
    ledger.charge(key, cost=0.6, tokens=10, now=NOW)  # it was under way
    failure = refusal(ledger, key, NOW)
    assert failure is not None
    assert (failure.status, failure.code) == (429, "insufficient_quota")
    assert ledger.left(key, NOW) == 0.0
    if reset is None:
        assert refusal(ledger, key, NOW + 400 * DAY) is not None
    else:
        assert failure.retry_after == reset - NOW
        assert refusal(ledger, key, reset) is None
        assert ledger.left(key, reset) == 1.0
    assert ledger.account(key, NOW).spent_in_all == pytest.approx(1.2)


def test_requests_per_minute_may_come_at_once_and_then_one_by_one(ledger):
    key = key_of(requests_per_minute=6)
    assert [refusal(ledger, key, NOW) for _ in range(6)] == [None] * 6
    failure = refusal(ledger, key, NOW)
    assert failure is not None
    assert failure.code == "rate_limit_exceeded"
    assert failure.retry_after == pytest.approx(10.0)
    assert refusal(ledger, key, NOW + 9.9) is not None
    assert refusal(ledger, key, NOW + 10.0) is None
    assert refusal(ledger, key, NOW + 10.0) is not None


def test_tokens_per_minute_count_when_the_answer_is_there(ledger):
    key = key_of(tokens_per_minute=600)
    assert refusal(ledger, key, NOW) is None
    ledger.charge(key, cost=0.0, tokens=1200, now=NOW)
    failure = refusal(ledger, key, NOW)
    assert failure is not None
    assert failure.retry_after == pytest.approx(60.0)
    assert refusal(ledger, key, NOW + 61.0) is None


def test_charges_that_come_together_are_all_counted_and_soon_seen_by_others(tmp_path, ledger):
    """This process knows of them at once, another one when they are written: with the first charge after a moment."""
    key, other = key_of(budget=100.0), Ledger(tmp_path / "ledger.bin")
    for number in range(100):
        ledger.charge(key, cost=0.01, tokens=1, now=NOW + number * TOGETHER / 1000)
    assert ledger.account(key, NOW).requests == 100
    assert other.account(key, NOW).requests < 100
    ledger.charge(key, cost=0.01, tokens=1, now=NOW + 2 * TOGETHER)
    assert other.account(key, NOW).requests == 101
    ledger.charge(key, cost=0.01, tokens=1, now=NOW + 2 * TOGETHER)
    ledger.write(NOW + 1.0)
    assert other.account(key, NOW).spent == pytest.approx(1.02)
    other.close()


def test_it_is_all_there_after_a_restart(tmp_path):
    key, path = key_of(budget=5.0), tmp_path / "l.bin"
    first = Ledger(path)
    first.charge(key, cost=1.0, tokens=7, now=NOW)
    first.charge(key, cost=1.0, tokens=7, now=NOW)
    first.close()
    again = Ledger(path)
    found = again.account(key, NOW)
    assert (found.spent, found.tokens, found.requests) == (2.0, 14, 2)
    again.close()


CHARGES = """
import sys, time
from pathlib import Path
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
keys = [Key(f"{n:012d}", "k", "s", "d", 0.0, budget=1e9, period="total", requests_per_minute=10**7) for n in range(100)]
for _ in range(20):
    for key in keys:
        ledger.admit(key, time.time())
        ledger.charge(key, cost=0.5, tokens=2)
ledger.close()
"""


def test_several_processes_that_charge_at_once_lose_nothing(tmp_path):
    """A hundred keys: the file grows meanwhile."""
    path = tmp_path / "l.bin"
    running = [subprocess.Popen([sys.executable, "-c", CHARGES, str(path)]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    ledger = Ledger(path)
    for number in range(100):
        key = Key(f"{number:012d}", "k", "s", "d", 0.0, budget=1e9, period="total")
        found = ledger.account(key, NOW)
        assert (found.requests, found.tokens, found.spent) == (80, 160, 40.0)
    ledger.close()


def test_a_key_without_limits_is_let_in_and_still_counted(ledger):
    key = key_of()
    assert refusal(ledger, key, NOW) is None
    ledger.charge(key, cost=0.1, tokens=3, now=NOW)
    assert ledger.left(key, NOW) is None
    assert ledger.account(key, NOW).spent_in_all == pytest.approx(0.1)


WRITES = """
import sys
from pathlib import Path
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
key = Key("000000000001", "k", "s", "d", 0.0, budget=1e9, period="total")
for number in range(10**9):
    ledger.charge(key, cost=1.0, tokens=2, now=1.0 + number)
    if number == 0:
        print("writing", flush=True)
"""


def writing(path):
    """A process that charges as fast as it can."""
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_who_reads_while_another_process_writes_never_sees_less_than_before(tmp_path):
    """A record that were seen empty for a moment would let a spent budget in, or be taken by another key."""
    process, key = writing(tmp_path / "l.bin"), Key("000000000001", "k", "s", "d", 0.0, budget=1e9, period="total")
    ledger, seen, fell = Ledger(tmp_path / "l.bin"), 0.0, 0
    began = time.monotonic()
    while time.monotonic() - began < 2.0:
        found = ledger.account(key, NOW).spent
        fell, seen = fell + (found < seen), found
    process.kill()
    process.communicate()
    ledger.close()
    assert seen > 1000
    assert fell == 0


def test_a_process_killed_at_any_moment_leaves_a_sound_ledger_and_no_lock(tmp_path):
    path, before = tmp_path / "l.bin", 0.0
    key = Key("000000000001", "k", "s", "d", 0.0, budget=1e9, period="total")
    for _ in range(5):
        process = writing(path)
        time.sleep(random.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ledger = Ledger(path)
        ledger.charge(key, cost=1.0, tokens=2, now=NOW)  # would wait for ever for a lock that was left
        found = ledger.account(key, NOW)
        ledger.close()
        assert found.spent > before + 1.0
        assert found.spent == found.spent_in_all == found.requests
        assert found.tokens == 2 * found.requests
        before = found.spent


FULL = """
import resource, sys
from pathlib import Path
from workflow_composer.server.failures import HttpFailure
from workflow_composer.server.auth.keys import Key
from workflow_composer.server.auth.ledger import Ledger
told = []
path = Path(sys.argv[1])
ledger = Ledger(path, report=told.append)
keys = [Key(f"{n:012d}", "k", "s", "d", 0.0, budget=10.0, period="total") for n in range(70)]
for key in keys[:64]:
    ledger.charge(key, cost=1.0, tokens=1, now=1.0)
ledger.write(2.0)
size = path.stat().st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))  # no room for one record more
for number in range(3):
    ledger.charge(keys[0], cost=1.0, tokens=1, now=3.0 + number)
    ledger.charge(keys[66], cost=1.0, tokens=1, now=3.0 + number)
assert ledger.account(keys[0], 9.0).spent == 4.0, "known keys go on"
try:
    ledger.admit(keys[66], 9.0)
except HttpFailure as failure:
    assert failure.status == 503, failure.status
else:
    raise AssertionError("let in although nobody knows what it has spent")
assert len(told) == 1, told
assert path.stat().st_size == size, "no half records"
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
ledger.admit(keys[66], 10.0)
ledger.close()
again = Ledger(path)
assert again.account(keys[66], 11.0).spent == 3.0, "what waited is written once there is room"
assert again.account(keys[65], 11.0).spent == 0.0
again.close()
"""


def test_a_full_disk_loses_no_charge_and_lets_nobody_in_unchecked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "l.bin")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content", [b"x", b"wfc-ledger-2\n", b"something else that is longer than the mark of a ledger" * 4]
)
def test_a_file_that_is_no_ledger_is_left_as_it_is(tmp_path, content):
    (tmp_path / "l").write_bytes(content)
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger(tmp_path / "l")
    assert (tmp_path / "l").read_bytes() == content


def test_a_ledger_that_was_begun_when_the_disk_filled_up_is_made_whole(tmp_path):
    (tmp_path / "l").write_bytes(b"wfc-ledger-1\n")
    ledger = Ledger(tmp_path / "l")
    ledger.charge(key_of(), cost=1.0, tokens=1, now=NOW)
    ledger.close()


@pytest.mark.parametrize(
    ("period", "begins", "again"),
    [
        ("day", timegm((2026, 12, 31, 0, 0, 0)), timegm((2027, 1, 1, 0, 0, 0))),
        ("month", timegm((2026, 12, 1, 0, 0, 0)), timegm((2027, 1, 1, 0, 0, 0))),
        ("month", timegm((2028, 2, 1, 0, 0, 0)), timegm((2028, 3, 1, 0, 0, 0))),
    ],
)
def test_periods_are_those_of_the_calendar(ledger, period, begins, again):
    key = key_of(budget=1.0, period=period)
    ledger.charge(key, cost=1.0, tokens=0, now=float(begins))
    assert refusal(ledger, key, again - 1.0).retry_after == 1.0
    assert refusal(ledger, key, float(again)) is None


@pytest.mark.parametrize("cost", [-1.0, math.inf, math.nan])
def test_a_charge_that_cannot_be_is_told_and_counts_nothing(tmp_path, cost):
    """The request itself counts; whatever else is charged goes on being written."""
    told = []
    ledger = Ledger(tmp_path / "ledger.bin", report=told.append)
    key, other = key_of("ann", budget=1.0), key_of("bob", budget=1.0)
    ledger.charge(key, cost=cost, tokens=2, now=NOW)
    ledger.charge(key, cost=0.1, tokens=-1000, now=NOW)
    ledger.charge(key, cost=0.1, tokens=2**70, now=NOW)
    for one in (key, other):
        ledger.charge(one, cost=0.25, tokens=3, now=NOW)
    ledger.write(NOW)
    assert len(told) == 3
    assert [ledger.left(one, NOW) for one in (key, other)] == [0.75, 0.75]
    assert ledger.account(key, NOW).requests == 4
    ledger.close()


def test_a_record_that_cannot_be_written_keeps_no_other_from_being_written(tmp_path, monkeypatch):
    """Whatever is raised for one key, the charges of all others are on the disk, and its own wait."""
    told = []
    ledger = Ledger(tmp_path / "ledger.bin", report=told.append)
    bad, good = key_of("ann"), key_of("bob")
    whole = Ledger._write_one

    def write(self, budget, now, wait):
        if budget.key.id == bad.id:
            raise struct.error("int too large to convert")
        whole(self, budget, now, wait)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write_one", write)
        for _ in range(3):
            ledger.charge(bad, cost=1.0, tokens=1, now=NOW)
            ledger.charge(good, cost=1.0, tokens=1, now=NOW)
        ledger.write(NOW)
    assert len(told) == 1
    ledger.close()
    again = Ledger(tmp_path / "ledger.bin")
    assert [again.account(key, NOW).spent_in_all for key in (bad, good)] == [3.0, 3.0]
    again.close()


@pytest.mark.parametrize("spent", [math.nan, math.inf, -5.0])
def test_a_damaged_record_neither_frees_nor_locks_out_its_key(tmp_path, spent):
    """What cannot be in a file is taken as nothing; charges count from there."""
    key = key_of(budget=1.0, requests_per_minute=60, period="total")
    ledger = Ledger(tmp_path / "ledger.bin")
    ledger.charge(key, cost=0.5, tokens=1, now=NOW)
    ledger.close()
    data = bytearray((tmp_path / "ledger.bin").read_bytes())
    place = data.index(key.id.encode())
    struct.pack_into("<ddd", data, place + 32, spent, spent, spent)
    struct.pack_into("<d", data, place + 32 + 40, math.inf)
    (tmp_path / "ledger.bin").write_bytes(data)
    ledger = Ledger(tmp_path / "ledger.bin")
    assert refusal(ledger, key, NOW) is None
    ledger.charge(key, cost=1.5, tokens=1, now=NOW)
    assert refusal(ledger, key, NOW).code == "insufficient_quota"
    ledger.close()
