"""Writing metrics: never at the cost of a request."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.metrics.examples import metric
from workflow_composer.metrics.sink import JsonlSink, MemorySink, NullSink, default_sink, gathered
from workflow_composer.storage.locks import locked

WRITER = """
import sys
from dataclasses import replace
from tests.unit.metrics.examples import metric
from workflow_composer.metrics.sink import JsonlSink
path, name, lines = sys.argv[1:]
sink = JsonlSink(path)
one = metric(candidate=name, prompt=name * 2000)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(lines)):
    sink.write(replace(one, query_length=number))
"""


def lines_of(path):
    """The file's lines, parsed."""
    return [json.loads(line) for line in path.read_bytes().splitlines() if line]


def test_each_metric_is_in_the_file_at_once(tmp_path):
    """Nothing waits in a buffer that a killed process would take with it."""
    sink = JsonlSink(tmp_path / "logs" / "metrics.jsonl")
    sink.write(metric(request_id="req-1"))

    assert [line["request_id"] for line in lines_of(sink.path)] == ["req-1"]
    sink.close()


def test_the_folder_is_made_with_the_first_metric_only(tmp_path):
    """A command that sends nothing leaves nothing behind."""
    sink = JsonlSink(tmp_path / "logs" / "metrics.jsonl")
    sink.close()

    assert not sink.path.parent.exists()


def test_processes_that_write_at_once_do_not_mix_their_lines(tmp_path):
    """Batch jobs, a server and a person at the shell share one file."""
    path, count = tmp_path / "metrics.jsonl", 400
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0

    found = lines_of(path)
    for name in "abc":
        mine = [line for line in found if line["candidate"] == name]
        assert [line["query_length"] for line in mine] == list(range(count))
        assert all(line["prompt"] == name * 2000 for line in mine)


def test_threads_may_write_while_another_closes(tmp_path):
    """A request that ends after the orchestrator was closed still leaves its line, and in this file only."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    threads = [threading.Thread(target=lambda: [sink.write(metric()) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sink.close()
    for thread in threads:
        thread.join()

    assert len(lines_of(sink.path)) == 800
    sink.close()


def test_half_a_line_left_by_a_crash_spoils_no_further_line(tmp_path):
    """The first metric begins on a line of its own."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"timest')
    sink = JsonlSink(path)
    sink.write(metric())
    sink.close()

    assert path.read_bytes().startswith(b'{"timest\n{"timestamp"')


def test_a_file_that_cannot_be_written_is_reported_once(tmp_path):
    """Requests go on; a warning per request would only bury the reason."""
    troubles = []
    (tmp_path / "file").touch()
    sink = JsonlSink(tmp_path / "file" / "metrics.jsonl", on_trouble=troubles.append)
    for _ in range(3):
        sink.write(metric())

    (trouble,) = troubles
    assert "metrics.jsonl: File exists; requests continue" in trouble or "Not a directory" in trouble


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_fails_no_request(tmp_path):
    """The device that is always full stands for it."""
    troubles = []
    sink = JsonlSink("/dev/full", on_trouble=troubles.append)
    sink.write(metric())
    sink.write(metric())
    sink.close()

    assert troubles == ["cannot write metrics to /dev/full: No space left on device; requests continue without them"]


def test_lines_come_back_when_the_trouble_is_over(tmp_path):
    """Space was made: the metrics go on without a restart."""
    sink = JsonlSink(tmp_path / "logs" / "metrics.jsonl", on_trouble=lambda _: None)
    (tmp_path / "logs").touch()
    sink.write(metric(request_id="lost"))
    (tmp_path / "logs").unlink()
    sink.write(metric(request_id="kept"))
    sink.close()

    assert [line["request_id"] for line in lines_of(sink.path)] == ["kept"]


def test_a_metric_with_an_odd_field_is_dropped_with_a_word(tmp_path):
    """A plugin's router may give anything as its name."""
    troubles = []
    sink = JsonlSink(tmp_path / "metrics.jsonl", on_trouble=troubles.append)
    sink.write(metric(router=None))
    sink.write(metric())
    sink.close()

    assert len(lines_of(sink.path)) == 1
    assert "TypeError" in troubles[0]


def test_lines_that_came_while_another_held_the_lock_are_written_later(tmp_path):
    """None is lost, and no request waits for each of them."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    with locked(sink.path):
        for _ in range(3):
            sink.write(metric())
        assert not sink.path.exists() or lines_of(sink.path) == []
    sink.write(metric())
    assert len(lines_of(sink.path)) == 4
    with locked(sink.path):
        sink.write(metric())
    sink.close()
    assert len(lines_of(sink.path)) == 5


@pytest.mark.parametrize("rotate", [lambda path: path.rename(path.with_suffix(".1")), lambda path: path.write_bytes(b"")])
def test_a_file_that_is_rotated_is_gone_on_with(tmp_path, rotate):
    """Moved away, or copied and truncated."""
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(metric())
    rotate(sink.path)
    sink.write(metric())
    assert len(lines_of(sink.path)) == 1
    sink.close()


def test_metrics_may_go_into_a_pipe(tmp_path):
    """As to a container's standard output; no lock is made beside it."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonlSink(tmp_path / "pipe")
    sink.write(metric(request_id="req-1"))
    assert json.loads(os.read(reader, 65536))["request_id"] == "req-1"
    sink.close()
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_trouble_goes_to_the_log_by_default(tmp_path, caplog):
    """Nobody has to ask for it."""
    (tmp_path / "file").touch()
    JsonlSink(tmp_path / "file" / "metrics.jsonl").write(metric())

    assert "cannot write metrics" in caplog.text


def test_the_environment_chooses_the_file(tmp_path, monkeypatch):
    """A file, the user's, that of a profile, or none; what an earlier version began goes on."""
    monkeypatch.chdir(tmp_path)
    assert str(default_sink({"WORKFLOW_COMPOSER_METRICS": "elsewhere.jsonl"}).path) == "elsewhere.jsonl"
    assert default_sink({"HOME": "/ann"}).path == Path("/ann/.local/state/workflow-composer/routing_metrics.jsonl")
    assert default_sink({"XDG_STATE_HOME": "/state"}).path == Path("/state/workflow-composer/routing_metrics.jsonl")
    assert default_sink({"HOME": "/ann"}, "kept").path == Path("kept/routing_metrics.jsonl")
    (tmp_path / "logs").mkdir()
    assert default_sink({"HOME": "/h"}).path == Path("/h/.local/state/workflow-composer/routing_metrics.jsonl")
    (tmp_path / "logs" / "routing_metrics.jsonl").touch()
    assert default_sink({"HOME": "/ann"}).path == Path("logs/routing_metrics.jsonl")
    assert isinstance(default_sink({"WORKFLOW_COMPOSER_METRICS": "Off"}), NullSink)


def test_the_memory_sink_keeps_what_it_is_given():
    """Tests look at the metrics themselves."""
    sink = MemorySink()
    one = metric()
    sink.write(one)
    sink.close()

    assert sink.metrics == [one]
    assert sink.closed


def test_a_number_that_is_not_finite_is_dropped_with_a_word(tmp_path):
    """The line is missing; the next one is not."""
    told = []
    sink = JsonlSink(tmp_path / "m.jsonl", on_trouble=told.append)
    sink.write(replace(metric(), prompt_tokens=math.inf))
    sink.write(metric())
    sink.close()
    assert len(told) == 1
    assert len(lines_of(tmp_path / "m.jsonl")) == 1


def test_lines_of_a_run_are_written_together_and_none_is_lost(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(JsonlSink, "_append", lambda sink, wait: (writes.append(len(sink._waiting)), sink._waiting.clear()))
    monkeypatch.setattr("workflow_composer.metrics.sink.TOGETHER", 3600.0)
    sink, other = JsonlSink(tmp_path / "m.jsonl"), MemorySink()
    with gathered([sink, other]) as flush:
        with gathered([sink]):
            for _ in range(10):
                sink.write(metric())
            assert writes == [1]  # the first at once, the others together
        assert writes == [1, 9]
        sink.write(metric())
        flush()
    assert writes == [1, 9, 1]
    sink.write(metric())
    assert writes == [1, 9, 1, 1]
