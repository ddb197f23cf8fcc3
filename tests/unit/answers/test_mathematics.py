"""The process that compares mathematics: real processes, killed, forked, orphaned and overtaxed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from workflow_composer.answers import AnswerForm, Question, Reader, mathematics
from workflow_composer.answers.form import Patience
from workflow_composer.answers.mathematics import SLICE, Algebra, Compared, MathWorker, shared
from workflow_composer.errors import ConfigError, OutOfResources
from workflow_composer.execution.voting.vote_kinds import AnswerVotes

pytest.importorskip("math_verify")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TOWER = "9^{9^{9^9}}"
PATIENCE = 60.0
LONG = 600.0


def until(condition):
    """Wait for what must come."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return found


def is_gone(pid):
    """No such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def processor_time(pid):
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def worker():
    """A worker of this test's own."""
    made = MathWorker()
    yield made
    made.close()


def script(body, **more):
    """Run Python code in a process of its own."""
    code = textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_formulas_are_compared(worker):
    """By value; what cannot be parsed is the same as nothing."""
    assert worker.submit("2x+1", "1+2x", LONG).result(PATIENCE) is True
    assert worker.submit("2x+1", "2x-1", LONG).result(PATIENCE) is False
    assert worker.submit("\x00^2", "\ud800^2", LONG).result(PATIENCE) is False


async def test_a_comparison_that_takes_too_long_ends_at_the_limit():
    """It counts as not the same, is counted, is remembered, and the next one works."""
    reader = Reader(AnswerForm(limit=0.5))
    assert await Question(reader, "2x").is_correct("x+x")
    before = time.monotonic()
    assert not await Question(reader, "x^2").is_correct(TOWER)
    assert time.monotonic() - before < PATIENCE
    assert reader.timed_out == 1
    assert not await Question(reader, TOWER).is_correct("x^2")
    assert reader.timed_out == 1
    assert await Question(Reader(AnswerForm(limit=30)), "2(x+1)").is_correct("2x+2")


def test_constants_are_evaluated(worker):
    """Exactly if they are rational, to 20 digits otherwise; what has a variable is no constant."""
    assert worker.value(r"2^{-98}", LONG).result(PATIENCE) == f"1/{2**98:x}"
    assert worker.value(r"\sqrt{2}", LONG).result(PATIENCE).startswith("~1.41421356237309504")
    assert worker.value("x+1", LONG).result(PATIENCE) is False
    assert worker.value(TOWER, 0.3).result(PATIENCE) is None


@on_linux
def test_a_busy_machine_changes_no_comparison(worker):
    """What counts is processor time: a worker that gets none for longer than the limit still answers when it gets some."""
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    os.kill(worker.pid, signal.SIGSTOP)
    waiting = worker.submit("3x", "x+2x", 0.5)
    with pytest.raises(TimeoutError):
        waiting.result(1.0)
    os.kill(worker.pid, signal.SIGCONT)
    assert waiting.result(PATIENCE) is True


@on_linux
def test_a_worker_that_never_gets_a_turn_is_given_up(worker):
    """At several times the limit, by the clock; the next one gets a new worker."""
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    stopped = worker.pid
    os.kill(stopped, signal.SIGSTOP)
    assert worker.submit("3x", "x+2x", 0.1).result(PATIENCE) is None
    assert is_gone(stopped)
    assert worker.submit("3x", "x+2x", LONG).result(PATIENCE) is True


@on_linux
def test_the_worker_killed_at_the_limit_leaves_no_zombie(worker):
    """It is waited for."""
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    pid = worker.pid
    assert worker.submit(TOWER, "1", 0.3).result(PATIENCE) is None
    assert is_gone(pid)
    assert worker.pid is None


@on_linux
def test_a_worker_that_is_killed_while_idle_is_buried_and_replaced(worker):
    """Without waiting for the next comparison, which does not notice."""
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
    assert worker.submit("3x", "x+2x", LONG).result(PATIENCE) is True
    assert worker.pid not in {None, pid}


@on_linux
def test_a_worker_that_is_killed_in_mid_comparison_is_replaced_once(worker):
    """The comparison is made again; when that is killed too, it is given up, and others go on."""
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    first, before = worker.pid, processor_time(worker.pid)
    waiting = worker.submit(TOWER, "1", LONG)
    until(lambda: processor_time(first) > before + 0.2)
    os.kill(first, signal.SIGKILL)
    second = until(lambda: worker.pid if worker.pid != first else None)
    assert not waiting.done()
    os.kill(second, signal.SIGKILL)
    assert waiting.result(PATIENCE) is None
    assert is_gone(first)
    assert is_gone(second)
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True


def test_a_comparison_that_is_no_longer_wanted_is_not_made(worker):
    """If it has not begun; those behind it are."""
    slow = worker.submit(TOWER, "1", 0.5)
    unwanted = worker.submit(TOWER, "2", LONG)
    wanted = worker.submit("2x", "x+x", LONG)
    assert unwanted.cancel()
    assert slow.result(PATIENCE) is None
    assert wanted.result(PATIENCE) is True
    with pytest.raises(CancelledError):
        unwanted.result(0)


def test_many_threads_and_event_loops_share_one_worker():
    """Each gets its own answers."""
    algebra = Algebra(30)
    found: dict[int, list[bool]] = {}

    async def ask(number):
        pairs = [(f"{number}x+{k}", f"{k}+x*{number + k % 2}") for k in range(2, 8)]
        return list(await asyncio.gather(*(algebra.same(*pair) for pair in pairs)))

    threads = [threading.Thread(target=lambda n=n: found.update({n: asyncio.run(ask(n))})) for n in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == {n: [True, False] * 3 for n in range(2, 6)}
    assert shared() is shared()


@on_linux
def test_the_worker_does_not_outlive_a_parent_that_is_killed():
    """Not even in the middle of a comparison that would take for ever."""
    parent = script(f"""
        import time
        from workflow_composer.answers.mathematics import shared
        shared().submit("2x", "x+x", 60).result()
        shared().submit({TOWER!r}, "1", 600)
        print(shared().pid, flush=True)
        time.sleep(600)
    """)
    with parent:
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
    until(lambda: is_gone(pid))


@on_linux
def test_python_exits_at_once_while_a_comparison_runs():
    """Quietly; the worker is gone."""
    done = script(f"""
        import asyncio
        from workflow_composer.answers.mathematics import Algebra, shared
        async def main():
            algebra = Algebra(600)
            assert await algebra.same("2x", "x+x")
            task = asyncio.ensure_future(algebra.same({TOWER!r}, "x^2"))
            await asyncio.sleep(0.1)
            print(shared().pid, flush=True)
            task.cancel()
        asyncio.run(main())
    """)
    out, errors = done.communicate(timeout=PATIENCE)
    assert (done.returncode, errors) == (0, "")
    assert is_gone(int(out))


@on_linux
def test_a_forked_process_gets_a_worker_of_its_own():
    """And leaves its parent's alone."""
    done = script("""
        import os, warnings
        warnings.simplefilter("ignore")
        from workflow_composer.answers.mathematics import shared
        assert shared().submit("2x", "x+x", 60).result()
        own = shared().pid
        child = os.fork()
        if not child:
            assert shared().submit("3x", "x+2x", 60).result()
            os._exit(0 if shared().pid not in (None, own) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert shared().submit("4x", "2x+2x", 60).result() and shared().pid == own
        print("fine")
    """)
    out, errors = done.communicate(timeout=PATIENCE)
    assert (out, errors) == ("fine\n", "")


@on_linux
def test_the_worker_is_told_no_keys(monkeypatch):
    """A parser of what models write needs none."""
    monkeypatch.setenv("SOME_API_KEY", "secret")
    worker = MathWorker()
    try:
        assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
        assert b"secret" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    finally:
        worker.close()


def test_code_in_an_answer_is_not_run(worker, tmp_path):
    """It is a strange formula."""
    trace = tmp_path / "trace"
    for code in (
        f"__import__('pathlib').Path('{trace}').touch()",
        f"$open('{trace}', 'w')$",
        f"exec(\"open('{trace}', 'w')\")",
    ):
        assert worker.submit(code, "x^2", LONG).result(PATIENCE) is False
    assert not trace.exists()


def test_a_library_that_does_not_work_is_an_error_that_says_so(worker, tmp_path, monkeypatch):
    """With what it raised; once it works, so do comparisons."""
    (tmp_path / "math_verify.py").write_text("raise OSError('broken')")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match="broken"):
            worker.submit("2x", "x+x", LONG).result(PATIENCE)
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True


@on_linux
def test_the_worker_may_not_take_all_memory(worker, tmp_path, monkeypatch):
    """Its address space is bounded, and a comparison that meets the bound is given up, while the worker goes on."""
    fake = "LatexExtractionConfig = dict\ndef parse(text, *_, **__):\n    return text\n"
    fake += "def verify(a, b, **_):\n    return len(a) < 5 or len(bytearray(1 << 40))\n"
    (tmp_path / "math_verify.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    assert worker.submit("1", "2", LONG).result(PATIENCE) is True
    pid = worker.pid
    assert "Max address space         2147483648" in Path(f"/proc/{pid}/limits").read_text()
    assert worker.submit("10000", "2", LONG).result(PATIENCE) is None
    assert worker.submit("1", "2", LONG).result(PATIENCE) is True
    assert worker.pid == pid


# ------------------------------------------------------------------------------------------- answers chosen by strangers


def tower(number):
    """A formula that takes for ever, and no other one of which is the same text; a tower of twos ends after a second."""
    base = number + 8
    return f"{base}^{{{base}^{{9^9}}}}+x"


@pytest.fixture
def compared(monkeypatch):
    """The comparisons made so far: the worker, one of the formulas, and the limit."""
    found = []
    compare = MathWorker._compare

    def noted(worker, comparison):
        found.append(("usual" if worker is shared() else "slow", comparison.a, comparison.limit))
        return compare(worker, comparison)

    monkeypatch.setattr(MathWorker, "_compare", noted)
    return found


async def test_the_comparisons_of_one_vote_end_when_its_time_is_used_up(compared):
    """One that is slow gets the rest of its limit in the second worker, and the others what is left, or nothing."""
    algebra, patience = Algebra(1.0), Patience(SLICE + 1.5)
    for number in range(2, 9):
        assert not await algebra.same(tower(number), "x", patience)
    assert [(lane, round(limit, 3)) for lane, _, limit in compared] == [("usual", SLICE), ("slow", 1.0), ("slow", 0.5)]
    assert algebra.timed_out == 7
    del compared[:]
    assert not await algebra.same(tower(2), "x", Patience(10.0))
    assert compared == []  # it had its whole limit
    assert not await algebra.same(tower(3), "x", Patience(SLICE))
    assert len(compared) == 1  # the cut one says nothing about another vote with more time


async def test_a_vote_of_slow_formulas_keeps_no_other_vote_waiting(compared):
    """Twelve formulas that take seconds: the other vote's comparisons wait for one slice of time, not for all of them."""
    quick = [f"{number}x+{number}" for number in range(2, 8)]

    async def vote(answers):
        return await AnswerVotes(Reader(AnswerForm(limit=1.0))).groups([f"${answer}$" for answer in answers])

    control = await vote(quick)
    alone = len(compared)
    assert alone >= 15
    del compared[:]
    hostile = asyncio.ensure_future(vote([tower(number) for number in range(2, 14)]))
    await asyncio.to_thread(until, lambda: compared)
    assert await vote(quick) == control
    meanwhile = [lane for lane, a, _ in compared if "^" in a]
    assert not hostile.done()
    assert meanwhile.count("usual") == 1
    assert len(compared) <= 10 * alone
    groups = await hostile
    assert len(set(groups)) == 12
    assert sum(limit for _, a, limit in compared if "^" in a) <= Patience.of(AnswerForm(limit=1.0)).seconds + SLICE


class Never:
    """A worker that answers nothing; it keeps what it was asked, and with which limit."""

    def __init__(self):
        self.asked = []

    def submit(self, a, b, limit):
        self.asked.append((a, limit, Compared()))
        return self.asked[-1][2]

    def value(self, formula, limit):
        return self.submit(formula, None, limit)


async def test_comparisons_end_with_the_requests_own_time(monkeypatch):
    """One that waits is withdrawn, no other begins, and nothing of it is remembered."""
    worker, algebra = Never(), Algebra(60.0)
    monkeypatch.setattr(mathematics, "shared", lambda lane="usual": worker)
    patience = Patience(300.0, time.perf_counter() + 0.5)
    assert not await algebra.same("2x", "x+x", patience)
    assert not await algebra.same("3x", "x+x", patience)
    ((a, limit, answer),) = worker.asked
    assert (a, answer.cancelled()) == ("2x", True)
    assert limit <= 0.5
    monkeypatch.undo()
    assert await algebra.same("2x", "x+x", Patience(300.0))


async def test_a_vote_ends_with_the_requests_own_time(monkeypatch):
    """What is not compared counts as different."""
    worker = Never()
    monkeypatch.setattr(mathematics, "shared", lambda lane="usual": worker)
    votes = AnswerVotes(Reader(AnswerForm()), time.perf_counter() + 0.5)
    assert await votes.groups(["$2x$", "$x+x$", "$3x$", "$2x$"]) == [0, 1, 2, 0]
    assert len(worker.asked) == 1


@on_linux
def test_the_spare_worker_takes_over(worker):
    """It has loaded its libraries already; both are gone when the worker is closed."""
    worker.keeps_spare = True
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    spare = until(lambda: worker._spare and worker._spare.pid)
    assert worker.submit(TOWER, "1", 0.3).result(PATIENCE) is None
    assert worker.submit("3x", "x+2x", LONG).result(PATIENCE) is True
    assert worker.pid == spare
    next_spare = until(lambda: worker._spare and worker._spare.pid)
    worker.close()
    assert is_gone(spare)
    assert is_gone(next_spare)


@on_linux
def test_a_spare_worker_that_has_died_is_replaced(worker):
    """The comparison does not notice."""
    worker.keeps_spare = True
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
    os.kill(until(lambda: worker._spare and worker._spare.pid), signal.SIGKILL)
    assert worker.submit(TOWER, "1", 0.3).result(PATIENCE) is None
    assert worker.submit("3x", "x+2x", LONG).result(PATIENCE) is True


def test_without_descriptors_for_a_worker_the_error_says_so(worker, monkeypatch):
    """It is no fault of the answer, and the next comparison is made."""

    def none_left(*_, **__):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(mathematics.subprocess, "Popen", none_left)
        with pytest.raises(OutOfResources, match="descriptor"):
            worker.submit("2x", "x+x", LONG).result(PATIENCE)
    assert worker.submit("2x", "x+x", LONG).result(PATIENCE) is True
