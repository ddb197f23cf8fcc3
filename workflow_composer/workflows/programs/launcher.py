r"""Starts one program within limits, watches it, and ends everything that it started; `sandbox.py` starts this file by its
path.

The only argument is JSON: ``argv``, ``seconds``, ``memory`` (bytes), ``processes``, ``network`` (whether it may use one),
``private``, ``parent`` (process id), ``report`` (a file descriptor that gets one line of JSON) and ``folder`` (removed here
if the parent has died). It imports nothing from this package, and little else: it starts with every program.

Under Linux the program gets namespaces of its own for users, processes, mounts and network: whatever it starts dies with the
first process of them, and its network has nothing but itself. Where the system does not allow that, a filter of system calls
refuses sockets, and all descendants are found and ended one by one. Which of these holds is tried each time, best first, so
that nothing depends on what a system claims to allow.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any

_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000
_PR_DEATH_SIGNAL, _PR_SECCOMP, _PR_SUBREAPER, _PR_NO_NEW_PRIVILEGES = 1, 22, 36, 38
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_RECURSIVE, _MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_SOCKETS = {  # machine: its number in the kernel's audit, its calls `socket` and `io_uring_setup`, which opens sockets too
    "x86_64": (0xC000003E, 41, 425),
    "aarch64": (0xC00000B7, 198, 425),
    "riscv64": (0xC00000F3, 198, 425),
}
_RESERVED = 4 << 30
"""Bytes of private memory that a process may have above twice its limit: what is reserved is mostly never used."""
_FIRST_LOOK, _LOOK = 0.005, 0.025
"""Seconds between two looks at what the program uses: at first, and later."""
_NOT_STARTED = 125


class NotPossible(Exception):
    """The system does not allow this way of keeping a program in."""


def main() -> None:
    """Run the program and report its end."""
    asked = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    if _LINUX:
        _prctl(_PR_DEATH_SIGNAL, signal.SIGTERM)
        _prctl(_PR_SUBREAPER, 1)
    os.set_inheritable(asked["report"], False)
    told = _run(asked) if os.getppid() == asked["parent"] else {}
    _end_all(told.pop("child", 0))
    if os.getppid() != asked["parent"]:
        import shutil

        shutil.rmtree(asked["folder"], ignore_errors=True)
    with suppress(OSError):
        os.write(asked["report"], json.dumps(told).encode())
    os._exit(0)


def _run(asked: Any) -> Any:
    began = time.monotonic()
    kept_in = asked["private"] or not asked["network"]
    ways = [_whole, _network_only, _filter_only] if kept_in else [_whole, _plain]
    why = "this system has no way to do so"
    for way in ways if _LINUX else [] if kept_in else [_plain]:
        try:
            child, status = _started(way, asked, kept_in)
        except NotPossible as error:
            why = str(error)
            continue
        except OSError as error:
            return {"error": error.strerror, "number": error.errno}
        return {**_watched(child, status, asked, began), "child": child}
    return {"error": why, "network": True}


# ------------------------------------------------------------------------------------------------------------- starting


def _started(way: Any, asked: Any, kept_in: bool) -> tuple[int, int]:
    """Start the program in a process of its own; return its id and a pipe for its status.

    Raises `NotPossible` if the system does not allow this way, `OSError` if the program itself cannot be started.
    """
    said, say = os.pipe()
    status, tell = os.pipe()
    ready, be_ready = os.pipe()
    go, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for unused in (said, status, ready, let_go):
                os.close(unused)
            _tried(lambda: way(asked, kept_in, lambda: _wait_for(be_ready, go), say, tell), say)
        finally:
            os._exit(_NOT_STARTED)
    for unused in (say, tell, be_ready, go):
        os.close(unused)
    os.read(ready, 1)  # the end: the child has its namespaces, or has given up
    with suppress(OSError):
        _map_users(child)
    for used in (ready, let_go):
        os.close(used)
    problem = _read_all(said)
    if not problem:
        return child, status
    os.close(status)
    os.waitpid(child, 0)
    if problem.startswith("!"):
        raise OSError(int(problem[1:]), os.strerror(int(problem[1:])))
    raise NotPossible(problem[1:])


def _tried(way: Any, say: int) -> None:
    """Say why the program could not be started; else nothing is said, and the pipe ends with its start."""
    try:
        way()
    except NotPossible as error:
        os.write(say, f"?{error}".encode())
    except OSError as error:
        os.write(say, f"!{error.errno}".encode())


def _wait_for(be_ready: int, go: int) -> None:
    """Tell the parent that the namespaces are there, and wait until it has mapped the users."""
    os.close(be_ready)
    os.read(go, 1)


def _whole(asked: Any, kept_in: bool, mapped: Any, say: int, tell: int) -> None:
    """In namespaces for processes and mounts, and for the network if it is kept in. Never returns.

    This process waits for the first one in the new namespace, which waits for the program and reports its status.
    """
    _unshare(_NEW_USER | _NEW_MOUNTS | _NEW_PIDS | _NEW_IPC | (_NEW_NETWORK if kept_in else 0), mapped)
    first = os.fork()
    if first:
        for unused in (say, tell):
            os.close(unused)
        _die_with_parent()
        os.waitpid(first, 0)
        os._exit(0)
    _die_with_parent()
    _mount(None, "/", None, _MS_RECURSIVE | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    with suppress(NotPossible):
        shared = "/dev/shm"  # noqa: S108  # the sandbox's own, empty at its start
        _mount("tmpfs", shared, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={asked['memory']},mode=1777")
    program = os.fork()
    if program == 0:
        if kept_in:
            _raise_loopback()
            _refuse_sockets([_INET, _INET6, _NETLINK, *([] if asked["private"] else [_UNIX])])
        _execute(asked)
    os.close(say)
    for number in range(3):
        os.close(number)
    while True:
        ended, how = os.wait()
        if ended == program:
            os.write(tell, str(how).encode())
            os._exit(0)


def _network_only(asked: Any, kept_in: bool, mapped: Any, say: int, tell: int) -> None:
    """In a network namespace. Never returns."""
    _unshare(_NEW_USER | _NEW_NETWORK, mapped)
    _raise_loopback()
    _refuse_sockets([_INET, _INET6, _NETLINK, *([] if asked["private"] else [_UNIX])])
    _die_with_parent()
    _execute(asked)


def _filter_only(asked: Any, kept_in: bool, mapped: Any, say: int, tell: int) -> None:
    """Behind a filter that refuses sockets. Never returns."""
    mapped()
    _refuse_sockets([] if asked["private"] else [_UNIX])
    _die_with_parent()
    _execute(asked)


def _plain(asked: Any, kept_in: bool, mapped: Any, say: int, tell: int) -> None:
    """With a network. Never returns."""
    mapped()
    if _LINUX:
        _die_with_parent()
    _execute(asked)


def _execute(asked: Any) -> None:
    """Become the program."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what it starts would, too
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, 2 * asked["memory"] + _RESERVED)
    argv = asked["argv"]
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execv("/bin/sh", ["/bin/sh", *argv])  # a script without a first line, as every shell does


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    if most == resource.RLIM_INFINITY or value < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


# ----------------------------------------------------------------------------------------------------------- namespaces


def _unshare(flags: int, mapped: Any) -> None:
    before, user = os.readlink("/proc/self/ns/net"), os.geteuid()
    if _LIBC.unshare(flags):
        raise NotPossible(f"no namespaces: {os.strerror(ctypes.get_errno())}")
    mapped()
    if os.geteuid() != user:
        raise NotPossible("users cannot be mapped")
    if flags & _NEW_NETWORK and os.readlink("/proc/self/ns/net") == before:
        raise NotPossible("no network namespace")


def _map_users(child: int) -> None:
    """Let the child's users be what they are outside: all of them, if this process may do that, else the own one."""
    if os.geteuid() != 0:
        with open(f"/proc/{child}/setgroups", "w", encoding="ascii") as file:
            file.write("deny")
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        lines = [f"{own} {own} 1"]
        if os.geteuid() == 0:
            with open(f"/proc/self/{name}", encoding="ascii") as file:
                lines = [f"{inside} {inside} {count}" for inside, _, count in (line.split() for line in file)]
        with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if one is None else one.encode() for one in (source, target, kind)]
    if _LIBC.mount(*given, ctypes.c_ulong(flags), None if data is None else data.encode()):
        raise NotPossible(f"cannot mount {target}: {os.strerror(ctypes.get_errno())}")


def _raise_loopback() -> None:
    """Let the program talk to itself: the tests of a server do."""
    made = _LIBC.socket(_INET, 2, 0)
    if made >= 0:
        asked = ctypes.create_string_buffer(b"lo".ljust(16, b"\0") + (0x1 | 0x40).to_bytes(2, sys.byteorder), 40)
        _LIBC.ioctl(made, ctypes.c_ulong(0x8914), asked)  # SIOCSIFFLAGS: up and running
        os.close(made)


class _Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter)))


def _refuse_sockets(families: list[int]) -> None:
    """Refuse sockets of all other families (EACCES), for this process and all that it starts, for ever."""
    known = _SOCKETS.get(platform.machine())
    if known is None:
        raise NotPossible(f"no filter of system calls for {platform.machine()}")
    machine, socket, ring = known
    load, equal, above, end = 0x20, 0x15, 0x35, 0x06
    refused, unknown, allowed = 0x50000 | errno.EACCES, 0x50000 | errno.ENOSYS, 0x7FFF0000
    lines = [
        (load, 0, 0, 4),
        (equal, 1, 0, machine),
        (end, 0, 0, refused),
        (load, 0, 0, 0),
        (above, 0, 1, 0x40000000),  # x32: the same calls by other numbers
        (end, 0, 0, refused),
        (equal, 0, 1, ring),
        (end, 0, 0, unknown),
        (equal, 1, 0, socket),
        (end, 0, 0, allowed),
        (load, 0, 0, 16),
        *[line for family in families for line in ((equal, 0, 1, family), (end, 0, 0, allowed))],
        (end, 0, 0, refused),
    ]
    filters = (_Filter * len(lines))(*(_Filter(*line) for line in lines))
    program = _FilterProgram(len(lines), filters)
    _prctl(_PR_NO_NEW_PRIVILEGES, 1)
    if _LIBC.prctl(_PR_SECCOMP, 2, ctypes.byref(program), 0, 0):
        raise NotPossible(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")


def _prctl(what: int, value: int) -> None:
    _LIBC.prctl(what, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _die_with_parent() -> None:
    _prctl(_PR_DEATH_SIGNAL, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------------- watching


def _watched(child: int, status: int, asked: Any, began: float) -> Any:
    """Wait for the program's end, or end it at a limit."""
    ends, look = began + asked["seconds"], _FIRST_LOOK
    while True:
        if _told_to_end(max(0.0, min(look, ends - time.monotonic()))):
            return {"status": None, "ended_by": "asked"}
        ended, how = os.waitpid(child, os.WNOHANG)
        if ended:
            inner = _read_all(status)  # of a program in a namespace; it has none if it is the child itself
            return {"status": os.waitstatus_to_exitcode(int(inner) if inner else how), "ended_by": None}
        if time.monotonic() >= ends:
            return {"status": None, "ended_by": "time"}
        if (limit := _over(child, asked)) is not None:
            return {"status": None, "ended_by": limit}
        look = min(_LOOK, look * 1.5)


def _told_to_end(seconds: float) -> bool:
    """Wait, at most until something happens; return whether this process has been told to end the program."""
    if _LINUX:
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, seconds)
        return got is not None and got.si_signo == signal.SIGTERM
    time.sleep(seconds)
    return signal.SIGTERM in signal.sigpending()


def _over(child: int, asked: Any) -> str | None:
    """Return the limit that the program and all that it started have passed together; None: none."""
    if not _LINUX:
        return None
    found = _descendants(child)
    if len(found) > asked["processes"]:
        return "processes"
    used = sum(_resident(pid) for pid in (child, *found))
    # Processes that were forked share memory, which counts once; that is known only at some cost.
    return "memory" if used > asked["memory"] and sum(map(_proportional, (child, *found))) > asked["memory"] else None


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that these started; they may have ended meanwhile."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        born: list[int] = []
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{one}/task"):
                with suppress(OSError), open(f"/proc/{one}/task/{thread}/children", encoding="ascii") as file:
                    born += map(int, file.read().split())
        found += born
        waiting += born
    return found


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return 0


def _proportional(pid: int) -> int:
    with suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return _resident(pid)


def _end_all(group: int) -> None:
    """End every descendant: they are this process's children, now or when their parents have ended.

    Where that cannot be known, the program's process group is ended.
    """
    if not _LINUX:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        return
    while True:
        for pid in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        signal.sigtimedwait({signal.SIGCHLD}, _FIRST_LOOK)


def _read_all(pipe: int) -> str:
    found = b""
    while part := os.read(pipe, 4096):
        found += part
    os.close(pipe)
    return found.decode()


if __name__ == "__main__":
    main()
