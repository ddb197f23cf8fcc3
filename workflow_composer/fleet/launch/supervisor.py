"""The supervisor of one server: start vLLM, wait until it is healthy, publish it, drain it, stop it.

The same for servers on this machine and in SLURM jobs. `ServerSupervisor.run` is a loop with a tick of a quarter of a
second; signal handlers only set flags for the next tick.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from workflow_composer.backends.replicas.registry import BEAT, Entry, State
from workflow_composer.errors import FleetError, WorkflowComposerError
from workflow_composer.fleet.file import Fleet
from workflow_composer.fleet.held import FILE_NAME as HELD
from workflow_composer.fleet.held import HeldLog, HeldTime, held_by
from workflow_composer.fleet.launch.command import API_KEY
from workflow_composer.fleet.launch.exit_reasons import is_lasting, last_line, reason
from workflow_composer.fleet.launch.preflight import is_loopback, reachable
from workflow_composer.fleet.launch.preparation import Prepared, prepare
from workflow_composer.fleet.launch.process import ServerLog, ServerProcess, log_path
from workflow_composer.fleet.launch.readiness import Readiness, refuse_another_model
from workflow_composer.fleet.launch.supervisor_lock import Holding
from workflow_composer.fleet.monitor.observers import Api
from workflow_composer.fleet.settings import RoleSpec
from workflow_composer.fleet.state import How, ServerState, Status

TICK = 0.25
NOTICE = 3.0
"""Seconds that a draining server must be idle: clients with an old registry entry may still send requests."""
STOPPING = 30.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended. ``expiring``: its time limit was reached, and it should be started again elsewhere.

    ``lasting``: it would fail again; ``elsewhere``: on this node, not on others.
    """

    reason: Literal["stopped", "failed", "expiring"]
    detail: str = ""
    lasting: bool = False
    elsewhere: bool = False


def failure(error: WorkflowComposerError) -> Ended:
    """The end of a server that failed with this error."""
    known = error if isinstance(error, FleetError) else None
    return Ended(
        "failed",
        str(error) if known is None else error.message,
        lasting=known is not None and known.lasting,
        elsewhere=known is not None and known.elsewhere,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenPlace:
    """Where a server runs: vLLM binds ``listen``, clients connect to ``host``; the job ends at Unix time ``expires``.

    ``cluster`` is the SLURM cluster of the job.
    """

    port: int
    listen: str = "127.0.0.1"
    host: str = "127.0.0.1"
    job_id: str = ""
    expires: float | None = None
    cluster: str = ""

    @property
    def how(self) -> How:
        """What runs the supervisor: a process or a SLURM job."""
        return "slurm" if self.job_id else "process"


class ServerSupervisor:
    """One server, from start to end.

    ``say`` takes one line of output at a time, ``progress`` the progress of the startup (seconds, the log's last line).
    ``wanted`` is written to the state; with ``resigns``, a stop signal marks the server as not wanted, so that no monitor
    restarts it.
    """

    def __init__(
        self,
        fleet: Fleet,
        server: str,
        role: RoleSpec,
        place: ListenPlace,
        *,
        options: Sequence[str] = (),
        wanted: bool = True,
        resigns: bool = True,
        say: Callable[[str], None] = lambda line: None,
        progress: Callable[[float, str], None] = lambda seconds, line: None,
    ) -> None:
        self.fleet = fleet
        self.server = server
        self.role = role
        self.place = place
        self.options = tuple(options)
        self.wanted = wanted
        self.resigns = resigns
        self._say = say
        self._progress = progress
        self._asked: list[Literal["stopped", "expiring"]] = []
        self._api = Api(reachable(place.listen), place.port)
        self._entry: Entry | None = None
        self._key = ""
        self._engine = ""
        self._held: HeldTime | None = None
        self._beaten = 0.0
        self._failed_beats = 0
        self._fleet_id = ""
        self.was_ready = False

    # --------------------------------------------------------------------------------------------------------- from outside

    def ask(self, why: Literal["stopped", "expiring"]) -> None:
        """Ask it to drain and exit; a second call makes it exit at once. Safe in any thread and in signal handlers."""
        self._asked.append(why)

    def run(self) -> Ended:
        """Run the server until it ends; install signal handlers in the meantime.

        Raises `FleetError` if it cannot be started; its state says why, too. If another process already runs this server,
        nothing is changed.
        """
        holding = Holding(self.fleet.states.directory, self.server)
        if self.place.how == "process" and (holder := holding.take()):
            raise FleetError(
                f"{self.server} is already running: process {holder.pid or '?'} on {holder.node or 'another node'}",
                hint=f"see `fleet status`, or stop it with `fleet down {self.server}`",
            )
        try:
            self._fleet_id = self.fleet.id
            with self._signals():
                return self._whole_life()
        finally:
            holding.release()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = {signal.SIGTERM: "stopped", signal.SIGINT: "stopped", signal.SIGHUP: "stopped", signal.SIGUSR1: "expiring"}

        def heed(number: int, frame: FrameType | None) -> None:
            self.ask("expiring" if wanted[signal.Signals(number)] == "expiring" else "stopped")

        # Ignored signals stay ignored, as nohup requires.
        heeded = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, heed) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------------------------------------------------------ lifecycle

    def _whole_life(self) -> Ended:
        try:
            refuse_another_model(self.fleet, self.server, self.role)
            prepared = prepare(self.fleet, self.server, self.role, self.place.port, self.place.listen, self.options)
            log = ServerLog(log_path(self.fleet.logs, self.server))
        except WorkflowComposerError as error:
            self._remember_failure(error)
            raise
        try:
            self._remember_start(log)
            return self._with_log(prepared, log)
        finally:
            log.close()
            prepared.release()

    def _with_log(self, prepared: Prepared, log: ServerLog) -> Ended:
        for note in prepared.command.notes:
            self._tell(log, note)
        log.say(f"starting {self.server}: {prepared.command.shown}")
        held = HeldLog(self.fleet.states.directory / HELD)
        self._held = held_by(held, self.server, self.role.name, self.role.gpus, self.role.gpu_hour_price)
        try:
            return self._holding(prepared, log)
        finally:
            self._held.beat(ended=True)

    def _holding(self, prepared: Prepared, log: ServerLog) -> Ended:
        self._engine = prepared.engine
        entry = self._entry = self._first_entry()
        environ = prepared.command.environment(self.fleet.environ)
        if entry.key:
            environ[API_KEY] = self._key
        try:
            process = ServerProcess(prepared.command.argv, environ, log)
        except FleetError as error:
            self._remember_failure(error)
            raise
        try:
            ended = self._with_process(process, log)
        except WorkflowComposerError as error:
            ended = Ended("failed", str(error))
        finally:
            process.close()
            self._withdraw()
        self._remember_end(ended)
        self._tell(log, f"{self.server} {_END[ended.reason]}{f': {ended.detail}' if ended.detail else ''}")
        return ended

    def _with_process(self, process: ServerProcess, log: ServerLog) -> Ended:
        ended = self._until_ready(process, log) or self._until_asked(process, log)
        if ended.reason == "failed":
            return ended
        self._drain(process, log)
        self._become("draining")
        process.stop(STOPPING)
        return ended

    def _until_ready(self, process: ServerProcess, log: ServerLog) -> Ended | None:
        """Wait until the server is healthy; return None when it is ready, else how it ended."""
        begun = time.monotonic()
        self._publish("starting")
        readiness = Readiness(reachable(self.place.listen), self.place.port, self.role, self._known_key())
        while not (found := readiness.poll()).ready:
            waited = time.monotonic() - begun
            if (code := process.ended()) is not None:
                return _exited(log, code)
            if self._asked:
                return Ended(self._asked[0])
            if found.never:
                return Ended("failed", found.why)
            if waited > self.role.start_seconds:
                late = f"{found.why} within {self.role.start_seconds:g} s; last log line: {last_line(log.tail)}"
                return Ended("failed", late)
            self._progress(waited, last_line(log.tail))
            self._beat()
            time.sleep(TICK)
        if self._entry is not None:
            self._entry = replace(self._entry, max_model_len=found.length or self.role.max_model_len)
        if (code := process.ended()) is not None:  # the healthy server on this port is another one
            return _exited(log, code)
        self._become("ready")
        self.was_ready = True
        self._tell(
            log, f"{self.server} is ready after {time.monotonic() - begun:.0f} s: {self._url}  model {self.role.served}"
        )
        return None

    def _until_asked(self, process: ServerProcess, log: ServerLog) -> Ended:
        while not self._asked:
            if (code := process.ended()) is not None:
                return _exited(log, code)
            self._beat()
            time.sleep(TICK)
        return Ended(self._asked[0])

    def _drain(self, process: ServerProcess, log: ServerLog) -> None:
        """Stop accepting requests and wait until none is active, at most ``drain_seconds``; a second `ask` ends the wait."""
        if self._entry is None or self._entry.state != "ready":
            return
        self._become("draining")
        self._tell(log, f"{self.server} is draining: active requests have {self.role.drain_seconds:g} s to finish")
        ends = time.monotonic() + self.role.drain_seconds
        idle_since: float | None = None
        while len(self._asked) < 2 and time.monotonic() < ends and process.ended() is None:
            busy = self._api.busy(timeout=max(0.1, min(5.0, ends - time.monotonic())))
            if busy == 0:
                idle_since = idle_since or time.monotonic()
                if time.monotonic() - idle_since >= NOTICE:
                    return
            else:
                idle_since = None
            self._beat()
            time.sleep(TICK)

    def _known_key(self) -> str:
        return self._key or self.fleet.environ.get(self.role.api_key_env or "", "")

    def _tell(self, log: ServerLog, line: str) -> None:
        log.say(line)
        self._say(line)

    # --------------------------------------------------------------------------------------------------- registry entry

    @property
    def _url(self) -> str:
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        return f"http://{host}:{self.place.port}/v1"

    def _first_entry(self) -> Entry:
        """The entry of a server that starts; a server that other machines can reach gets a key of its own."""
        now = time.time()
        entry = Entry(
            server=self.server,
            role=self.role.name,
            host=self.place.host,
            port=self.place.port,
            model=self.role.served,
            node=os.uname().nodename,
            pid=os.getpid(),
            job_id=self.place.job_id,
            started=now,
            expires=self.place.expires,
            updated=now,
            fleet=self._fleet_id,
            cluster=self.place.cluster,
            fleet_file=str(self.fleet.path),
            max_model_len=self.role.max_model_len,
            engine=self._engine,
        )
        if self.role.api_key_env is None and not self.role.keyless and not is_loopback(self.place.listen):
            entry, self._key = self.fleet.registry.new_key(entry)
        return entry

    def _publish(self, state: State) -> None:
        assert self._entry is not None, "made before the server is started"
        entry = replace(self._entry, state=state, expires=self.place.expires)
        self._entry = self.fleet.registry.publish(entry, "" if self._beaten else self._key)
        self._beaten = time.monotonic()

    def _become(self, state: State) -> None:
        """Publish and save another state. A full disk must not stop a working server, so errors are ignored."""
        if self._entry is not None:
            self._entry = replace(self._entry, state=state)  # if it cannot be published now, the next beat tries again
            with contextlib.suppress(WorkflowComposerError):
                self._publish(state)
        self._remember(state)

    def _beat(self) -> None:
        if self._held is not None:
            self._held.beat()
        if self._entry is not None and time.monotonic() - self._beaten >= BEAT:
            self._beaten = time.monotonic()
            try:
                self._publish(self._entry.state)
                self._failed_beats = 0
            except WorkflowComposerError as error:
                self._failed_beats += 1
                if self._failed_beats == 1:
                    self._say(f"{self.server}: {error}")

    def _withdraw(self) -> None:
        if self._entry is not None:
            self.fleet.registry.withdraw(self._entry)

    # -------------------------------------------------------------------------------------------------------- saved state

    def _state(self, status: Status, log: Path, **more: Any) -> ServerState:
        """The state of this server while this process supervises it."""
        return ServerState(
            server=self.server,
            role=self.role.name,
            how=self.place.how,
            wanted=self.wanted,
            status=status,
            node=os.uname().nodename,
            job_id=self.place.job_id,
            port=self.place.port,
            log=str(log),
            fleet_file=str(self.fleet.path),
            fleet=self._fleet_id,
            cluster=self.place.cluster,
            options=self.options,
            model=self.role.served,
            task=self.role.task,
            api_key_env=self.role.api_key_env or "",
            **more,
        )

    def _remember_start(self, log: ServerLog) -> None:
        before = self.fleet.states.get(self.server)
        kept = {"restarts": before.restarts, "failures": before.failures} if before else {}
        self.fleet.states.put(self._state("starting", log.path, pid=os.getpid(), started=time.time(), **kept))

    def _remember(self, status: Status, detail: str = "", **changes: object) -> None:
        with contextlib.suppress(WorkflowComposerError):
            if self._succeeded():
                return
            self.fleet.states.update(self.server, status=status, detail=detail, **changes)

    def _succeeded(self) -> bool:
        """Whether another job runs this server by now; the state then belongs to that job, while this one drains."""
        state = self.fleet.states.get(self.server)
        return bool(self.place.job_id) and state is not None and state.job_id != self.place.job_id

    def _remember_failure(self, error: WorkflowComposerError) -> None:
        """Record in the state a start that failed before any process existed."""
        line, lasting = " ".join(str(error).split()), failure(error).lasting
        with contextlib.suppress(WorkflowComposerError):
            known = self.fleet.states.update(
                self.server, status="failed", detail=line, pid=0, wanted=self.wanted, lasting=lasting
            )
            if known is None:
                log = log_path(self.fleet.logs, self.server)
                self.fleet.states.put(self._state("failed", log, detail=line, lasting=lasting))

    def _remember_end(self, ended: Ended) -> None:
        changes: dict[str, object] = {"pid": 0, "lasting": ended.lasting}
        if ended.reason == "stopped" and self.resigns:
            changes["wanted"] = False
        self._remember("failed" if ended.reason == "failed" else "stopped", ended.detail, **changes)


def _exited(log: ServerLog, code: int) -> Ended:
    """Why vLLM has exited, and whether it would again."""
    return Ended("failed", reason(log.tail, code), lasting=is_lasting(log.tail, code))


_END = {"stopped": "has stopped", "failed": "has failed", "expiring": "has stopped because its time limit was reached"}
