"""What an earlier version has written is read as it was meant, and a file that is none of ours is passed over."""

from __future__ import annotations

import json
import os
import stat
import time

import pytest

from workflow_composer.backends.replicas.registry import Entry, ServerRegistry
from workflow_composer.fleet.launch.gpu_leases import Claims
from workflow_composer.fleet.launch.hardware import Gpu
from workflow_composer.fleet.launch.supervisor_lock import Holder, Holding
from workflow_composer.fleet.monitor.alerts import Alert
from workflow_composer.fleet.monitor.history import CheckRecord, History
from workflow_composer.fleet.monitor.incident_store import MonitorFiles, Remembered, Unsent
from workflow_composer.fleet.monitor.incidents import Memory
from workflow_composer.fleet.state import ServerState, StateStore

ENTRY_TEXT = """{
 "form": 1,
 "server": "coder-2",
 "role": "coder",
 "host": "fe80::1",
 "port": 8003,
 "model": "Qwen/Qwen2.5-Coder-7B",
 "state": "ready",
 "node": "gpu7",
 "pid": 4711,
 "job_id": "42",
 "started": 1760000000.25,
 "expires": 1760086400.0,
 "updated": 1760000100.5
}
"""
ENTRY = Entry(
    server="coder-2",
    role="coder",
    host="fe80::1",
    port=8003,
    model="Qwen/Qwen2.5-Coder-7B",
    state="ready",
    node="gpu7",
    pid=4711,
    job_id="42",
    started=1760000000.25,
    expires=1760086400.0,
    updated=1760000100.5,
)
STATE_TEXT = """{
 "server": "coder",
 "role": "coder",
 "how": "slurm",
 "wanted": true,
 "status": "draining",
 "detail": "caf\\u00e9",
 "node": "gpu7",
 "pid": 4711,
 "job_id": "42",
 "port": 8002,
 "log": "/logs/coder.log",
 "fleet_file": "/fleet.yaml",
 "options": [
  "--max-num-seqs=3"
 ],
 "started": 1760000000.25,
 "restarts": [
  1760000001.0,
  1760000002.0
 ],
 "failures": 1
}
"""
STATE = ServerState(
    server="coder",
    role="coder",
    how="slurm",
    status="draining",
    detail="caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    node="gpu7",
    pid=4711,
    job_id="42",
    port=8002,
    log="/logs/coder.log",
    fleet_file="/fleet.yaml",
    options=("--max-num-seqs=3",),
    started=1760000000.25,
    restarts=(1760000001.0, 1760000002.0),
    failures=1,
)
REMEMBERED_TEXT = """{
 "memory": {
  "phase": "down",
  "since": 5.0,
  "reason": "it hangs",
  "told": [
   "down"
  ],
  "incidents": [
   5.0
  ],
  "restarts": [
   6.0
  ],
  "well_since": 0.0,
  "last_up": 4.0
 },
 "unsent": [
  {
   "channel": "command",
   "alert": {
    "kind": "down",
    "server": "coder",
    "role": "coder",
    "model": "m",
    "where": "gpu7",
    "reason": "it hangs",
    "action": "",
    "time": 5.0,
    "since": 5.0,
    "monitor": "login1"
   },
   "failed": true
  }
 ]
}
"""
ALERT = Alert(
    kind="down",
    server="coder",
    role="coder",
    model="m",
    where="gpu7",
    reason="it hangs",
    action="",
    time=5.0,
    since=5.0,
    monitor="login1",
)
REMEMBERED = Remembered(
    memory=Memory(
        phase="down", since=5.0, reason="it hangs", told=("down",), incidents=(5.0,), restarts=(6.0,), last_up=4.0
    ),
    unsent=(Unsent("command", ALERT, failed=True),),
)


def test_an_entry_is_read_and_written_as_before(tmp_path):
    """Nodes of one cluster may have different versions."""
    assert Entry.read(ENTRY_TEXT.encode()) == ENTRY
    assert json.loads(ENTRY_TEXT).items() <= json.loads(ENTRY.text()).items(), "what earlier versions read is written on"
    assert Entry.read(ENTRY_TEXT.replace('"form"', '"of a later version": [1], "form"').encode()) == ENTRY


def test_a_state_is_read_and_written_as_before(tmp_path):
    """Also one of the first version, which has less."""
    states = StateStore(tmp_path)
    (tmp_path / "coder.json").write_text(STATE_TEXT)
    (tmp_path / "math.json").write_text('{"server": "math", "role": "math", "started": 5, "of a later version": null}')
    assert states.all() == [STATE, ServerState(server="math", role="math", started=5.0)]
    states.put(STATE)
    assert json.loads(STATE_TEXT).items() <= json.loads((tmp_path / "coder.json").read_text()).items()


def test_what_a_monitor_remembers_is_read_and_written_as_before(tmp_path):
    """Alerts that wait among it."""
    files = MonitorFiles(tmp_path)
    (tmp_path / "coder.json").write_text(REMEMBERED_TEXT)
    assert files.load("coder") == REMEMBERED
    files.save("other", REMEMBERED)
    assert (tmp_path / "other.json").read_text() == REMEMBERED_TEXT


def test_a_history_is_read_as_before(tmp_path):
    """Whole numbers among its figures, and characters that end lines elsewhere."""
    line = (
        '{"time":5,"server":"a","outcome":"down","reason":"caf\\u00e9 \\u2028","running":1,"waiting":null,"cache":0.5,'
        '"tokens":7,"started":null}\n'
    )
    (tmp_path / "h").write_text(line + line.replace("\\u2028", "\N{LINE SEPARATOR}\x85"))
    kept = History(tmp_path / "h", days=7)
    reason = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{LINE SEPARATOR}"
    row = CheckRecord(time=5.0, server="a", outcome="down", reason=reason, running=1, cache=0.5, tokens=7.0)
    later = CheckRecord(time=6.0, server="a", outcome="up", reason=f"{reason}\x85")
    kept.add([later])
    assert [found.reason for found in kept.records()] == [reason, f"{reason}\x85", f"{reason}\x85"]
    assert next(kept.records()) == row


def test_a_holder_and_claims_are_read_as_before(tmp_path):
    """Those of processes that live count."""
    with_lock, other = Holding(tmp_path, "coder"), Holding(tmp_path, "coder")
    with_lock.take()
    (tmp_path / "coder.run").write_text('[4711, "gpu7"]')
    assert other.holder() == Holder(4711, "gpu7")
    with_lock.release()
    claim = {"pid": os.getpid(), "gpus": {"GPU-0": 10, "GPU-1": 2.5}}
    damaged = {"pid": "x", "gpus": {"GPU-1": 16}}, {"pid": -1, "gpus": {"GPU-1": 16}}, {"pid": os.getpid()}, 5
    text = json.dumps({**{f"{n}#1": one for n, one in enumerate(damaged)}, "a#1": claim}, indent=1)
    (tmp_path / "node.gpus").write_text(text)
    gpus = [Gpu(index, "T4", 75, 16, 16, f"GPU-{index}") for index in range(2)]
    chosen = Claims(tmp_path, "node").take("b", gpus, 2, lambda gpu: 1.0)
    assert [(gpu.index, gpu.free) for gpu in chosen] == [(1, 13), (0, 6)]
    assert json.loads((tmp_path / "node.gpus").read_text())["a#1"] == claim


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("form", 2),
        ("form", None),
        ("port", True),
        ("port", 0),
        ("port", 65536),
        ("port", "8002"),
        ("pid", 1.5),
        ("host", "evil/path"),
        ("host", "a@b"),
        ("role", "../role"),
        ("server", "x" * 65),
        ("model", ""),
        ("model", "a\nb"),
        ("model", "m" * 1000),
        ("model", 5),
        ("node", None),
        ("state", "gone"),
        ("started", "1"),
        ("updated", True),
        ("expires", []),
    ],
)
def test_an_entry_with_a_value_that_it_cannot_have_is_none(field, value):
    """Whoever can write to the folder could have written it."""
    with pytest.raises(ValueError, match=r"\w"):
        Entry.read(json.dumps({**json.loads(ENTRY_TEXT), field: value}).encode())


def test_files_have_the_permissions_that_they_need(tmp_path):
    """Others may read where a server answers; the umask of whoever starts it does not matter."""
    before = os.umask(0o077)
    try:
        ServerRegistry(tmp_path).publish(ENTRY)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ENTRY.file_name).stat().st_mode) == 0o644


def test_a_link_in_the_registry_leads_no_entry_elsewhere(tmp_path):
    """In a folder that several users write to, it could name any file of the publisher's."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ENTRY.file_name).symlink_to(tmp_path / "precious")
    published = ServerRegistry(tmp_path).publish(ENTRY)
    assert (tmp_path / "precious").read_text() == "mine"
    assert list(ServerRegistry(tmp_path).all()) == [published]
    assert abs(published.updated - time.time()) < 60
