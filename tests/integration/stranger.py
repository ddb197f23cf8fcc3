"""A model server of another user of this machine; needs root. Prints its port.

Usage: python -m tests.integration.stranger USER_NUMBER
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.stub_server import StubServer

UID = 65534


@contextmanager
def stranger(uid: int = UID) -> Iterator[int]:
    """Yield the port of a server that this user runs."""
    command = [sys.executable, "-m", "tests.integration.stranger", str(uid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    with StubServer() as server:  # its modules are read as root: the user may not be allowed to
        server.close()
    os.setuid(int(sys.argv[1]))
    with StubServer() as server:
        print(server.port, flush=True)
        time.sleep(600)
