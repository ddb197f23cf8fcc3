"""What a process lacks, told from the errors that the lack causes."""

import errno
import resource
import socket
import subprocess
import sys
import textwrap

import pytest

from workflow_composer.support.scarcity import lacking, without_network


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "x"), "descriptor"),
        (OSError(errno.ENFILE, "x"), "this machine"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "port"),
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "thread"),
    ],
)
def test_what_is_lacking_is_named(error, told):
    """As a clause for an error's message."""
    assert told in lacking(error)


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(errno.ECONNREFUSED, "x"), RuntimeError("x"), KeyError("x"), OSError("x"), TimeoutError()],
)
def test_other_errors_have_other_causes(error):
    """A refused connection is no lack of our own."""
    assert lacking(error) == ""


def test_an_unknown_name_is_a_lack_only_while_no_file_can_be_opened():
    """The system's resolver cannot read its files then, and says that the name is unknown."""
    assert lacking(socket.gaierror(socket.EAI_NONAME, "Name or service not known")) == ""
    program = """
        import os, resource, socket
        from workflow_composer.support.scarcity import lacking, without_network
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
        try:
            while True:
                os.dup(0)
        except OSError:
            print(lacking(socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "descriptor" in told.stdout
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 8


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "x"), True),
        (OSError(errno.ENETUNREACH, "x"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), False),
        (OSError(errno.EHOSTUNREACH, "x"), False),
    ],
)
def test_without_a_network_no_server_was_contacted(error, expected):
    """A host that cannot be reached, in contrast, may be down."""
    assert without_network(error) is expected
