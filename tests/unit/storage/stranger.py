"""Another process that holds a lock, for tests of those who want it."""

from __future__ import annotations

import subprocess
import sys

STRANGER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


class Stranger:
    """Another process that holds the lock, knowing nothing of this package; a context manager."""

    def __init__(self, path):
        command = [sys.executable, "-c", STRANGER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(b"\n", timeout=20)
