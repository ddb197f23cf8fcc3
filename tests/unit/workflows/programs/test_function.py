"""Functions of the user's, each call in a process of its own."""

from __future__ import annotations

import sys

import pytest

from workflow_composer.errors import ProgramFault
from workflow_composer.workflows.definition.model import ProgramLimits, PythonBody
from workflow_composer.workflows.programs.function import call_function

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

SOURCE = """
import json
import os
import pathlib

import helper


def plain(a, b=2):
    print("printed", a)
    return {"a": a, "b": [b, (1, 2.5, None, True)], "word": helper.WORD, "pid": os.getpid(), "here": sorted(os.listdir())}


async def later(a):
    return a


class Group:
    @staticmethod
    def inner(a):
        return a


def fails(note):
    raise ValueError(f"{note} is bad")


def leaves():
    raise SystemExit(3)


def crashes():
    os.abort()


def hangs():
    import threading
    threading.Event().wait()


def leaves_a_thread():
    import threading
    threading.Thread(target=threading.Event().wait).start()
    return "done"


def no_json():
    return {"x": [pathlib.Path("a")]}


def no_number():
    return {"x": float("nan")}


def number_keys():
    return {1: 2}


def connects(port):
    import socket
    try:
        socket.create_connection(("127.0.0.1", port), 5)
    except OSError:
        return "refused"
    return "connected"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "functions.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text("WORD = 'Zoë 北京'\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    return tmp_path


async def call(folder, target, *args, seconds=120, private=False, **given):
    limits = ProgramLimits(seconds=seconds)
    return await call_function(
        PythonBody(target=target), given=given, args=args, limits=limits, folder=folder, private=private
    )


async def test_the_module_beside_the_workflow_is_called(folder):
    """By keyword, in another process and a new folder; what it prints is no part of its value."""
    found = await call(folder, "functions:plain", a="p < 0.05")
    assert found.pop("pid") > 0
    assert found == {"a": "p < 0.05", "b": [2, [1, 2.5, None, True]], "word": "Zoë 北京", "here": []}


async def test_it_goes_before_an_installed_one(folder):
    (folder / "yaml.py").write_text("def load(): return 'own'\n")
    assert await call(folder, "yaml:load") == "own"
    assert await call(folder, "textwrap:dedent", text="  a") == "a"


@pytest.mark.parametrize("target", ["functions:later", "functions:Group.inner"])
async def test_coroutines_and_methods(folder, target):
    assert await call(folder, target, a=[1]) == [1]


@pytest.mark.parametrize("target", ["functions:absent", "no_such_module:f", "broken:f"])
async def test_a_function_that_is_not_there(folder, target):
    with pytest.raises(ProgramFault, match="no such function") as caught:
        await call(folder, target)
    assert not caught.value.started


async def test_an_exception_is_told_apart_from_what_may_be_shown(folder):
    """The message has nothing of the data; what was said has the traceback of the user's code only."""
    with pytest.raises(ProgramFault) as caught:
        await call(folder, "functions:fails", note="Ann Lee")
    assert str(caught.value) == "functions:fails: the function raised ValueError"
    assert "Ann Lee is bad" in caught.value.said
    assert "function_worker" not in caught.value.said
    assert caught.value.started


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("leaves", "raised SystemExit", "3"),
        ("crashes", "signal 6", ""),
        ("no_json", "not JSON data", "the value['x'][0] is PosixPath"),
        ("no_number", "not JSON data", "the value['x'] is nan"),
        ("number_keys", "not JSON data", "a key that is int"),
    ],
)
async def test_what_gives_no_value_is_named(folder, name, told, said):
    with pytest.raises(ProgramFault, match=told) as caught:
        await call(folder, f"functions:{name}")
    assert said in caught.value.said


async def test_a_wrong_argument_is_named_by_python(folder):
    with pytest.raises(ProgramFault, match="TypeError") as caught:
        await call(folder, "functions:plain", z=1)
    assert "unexpected keyword argument 'z'" in caught.value.said


async def test_one_that_hangs_is_ended_and_a_thread_keeps_nobody_waiting(folder):
    with pytest.raises(ProgramFault, match="ran too long"):
        await call(folder, "functions:hangs", seconds=2)
    assert await call(folder, "functions:leaves_a_thread") == "done"


async def test_it_has_no_network(folder, open_port):
    assert await call(folder, "functions:connects", port=open_port, private=True) == "refused"


@pytest.fixture
def open_port():
    """The port of a server of this machine."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
