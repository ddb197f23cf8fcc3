"""The line that says where prompts go: on a terminal only, once, and true."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.paths import ROOT
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.runtime.destinations import where_prompts_go

LOCAL = {"vllm_endpoints": {"a": ["http://gpu01:8001/v1", "registry:coder"]}, "task_routing": {"*": "a"}}
API = {"backend": "openai", "base_url": "https://user:${PASSWORD}@api.example/v1", "api_key_env": "KEY"}


@pytest.mark.parametrize(
    ("keys", "environ", "line"),
    [
        ({"allow_cloud": False, **LOCAL}, {}, "p: prompts stay on your own machines: gpu01:8001, servers of registry:coder"),
        ({**LOCAL}, {}, "p: prompts go to gpu01:8001, servers of registry:coder"),
        (
            {**LOCAL, "models": {"x": API}},
            {},
            "p: prompts go to gpu01:8001, servers of registry:coder; the cloud's keys are not set",
        ),
        ({"models": {"x": API}}, {"KEY": "k"}, "p: prompts may go to the cloud: api.example"),
        (
            {**LOCAL, "models": {"x": API, "y": {"backend": "fake"}}},
            {"KEY": "k"},
            "p: prompts may go to the cloud: api.example; also to gpu01:8001, servers of registry:coder, this process",
        ),
        ({"models": {"x": {"backend": "mine"}}}, {}, "p: prompts may go to the cloud: x (mine)"),
        (
            {"vllm_endpoints": {f"r{n}": f"http://gpu{n}:1" for n in range(9)}},
            {},
            "p: prompts go to " + ", ".join(f"gpu{n}:1" for n in range(6)) + " and 3 more",
        ),
    ],
)
def test_the_line_names_servers_and_clouds_whose_keys_are_set(monkeypatch, keys, environ, line):
    """Never a password."""
    monkeypatch.setenv("PASSWORD", "hidden")
    assert where_prompts_go(StrategyConfig(profile_name="p", **keys), environ) == line


def stderr_of(folder, *arguments, terminal):
    """What a command of the program prints to standard error, which is a terminal or a pipe."""
    near, far = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "workflow_composer", *arguments]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=far, check=False)
    os.close(far)
    text = b""
    try:
        while data := os.read(near, 65536):
            text += data
    except OSError:  # the end of a terminal
        pass
    os.close(near)
    assert done.returncode == 0, text
    return text.decode()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("arguments", [["generate", "hello"], ["route", "hello"], ["--json", "generate", "hello"]])
def test_it_is_one_line_on_a_terminal_and_nothing_else(tmp_path, terminal, arguments):
    """A pipe and JSON get none."""
    (tmp_path / "p.yaml").write_text(
        "profile_name: p\nallow_cloud: false\nmodels: {m: {backend: fake}}\ntask_routing: {'*': m}\n"
    )
    said = stderr_of(tmp_path, "-s", "./p.yaml", *arguments, terminal=terminal)
    wanted = terminal and "--json" not in arguments
    assert said.count("prompts stay on your own machines: this process") == wanted
