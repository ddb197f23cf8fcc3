"""Programs that edit files and run commands, unmodified: the model behind the service calls their tools."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tests.integration.clients import VARIABLE, clients_python
from tests.integration.unmodified.frame import AIDER, CLAUDE, CODEX, LLM, OPENCODE, entered, here, staged
from tests.integration.unmodified.standin import TEXT, Call, Said

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]

OWN_HEADERS = ("session", "thread", "x-codex", "x-session", "x-claude", "x-stainless", "x-app", "originator", "anthropic")
FILES = {"greeting.txt": "hello world\n", "other.txt": "untouched\n"}


@pytest.fixture
def stage(tmp_path):
    with staged(tmp_path) as found:
        yield found


def edited_and_listed(stage, done):
    """The edit is on the disk, and the model has seen what the command printed."""
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    assert (done.folder / "greeting.txt").read_text() == "goodbye world\n"
    assert (done.folder / "other.txt").read_text() == "untouched\n"
    assert "The greeting says goodbye." in done.out
    told_nothing(stage)
    listed = stage.results()[-1]
    assert "greeting.txt" in listed
    assert "other.txt" in listed


DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)
PATCH = "*** Begin Patch\n*** Update File: greeting.txt\n@@\n-hello world\n+goodbye world\n*** End Patch"


def told_nothing(stage):
    """What a client says about itself has stayed here: its session, its folder, its account."""
    for chat, headers in zip(stage.server.seen.chats, stage.server.seen.headers, strict=True):
        assert not any(name.startswith(OWN_HEADERS) for name in headers), headers
        assert not chat.keys() & {"client_metadata", "metadata", "user", "prompt_cache_key"}
        assert "billing-header" not in json.dumps(chat["messages"])


def test_codex_edits_a_file_and_runs_a_command(stage):
    stage.follows(
        Call("exec_command", {"cmd": f"apply_patch <<'EOF'\n{PATCH}\nEOF"}),
        Call("exec_command", {"cmd": "ls; cat greeting.txt"}),
        "The greeting says goodbye.",
    )
    done = stage.run(here(CODEX), files=FILES)
    edited_and_listed(stage, done)
    assert "goodbye world\n" in stage.results()[-1]
    entered(CODEX, "edits a file", "runs a command", *sorted(stage.proven()))


def test_codex_gives_a_model_that_it_knows_a_tool_that_takes_patches_as_text(stage):
    stage.follows(Call("apply_patch", {"input": PATCH}), Call("exec_command", {"cmd": "ls"}), "The greeting says goodbye.")
    edited_and_listed(stage, stage.run(here(CODEX), files=FILES, model="gpt-5.5"))


def test_codex_gives_newer_models_their_tools_within_the_conversation(stage):
    """They write programs that call tools; the namespace of the tool comes back to Codex."""
    program = 'const done = await tools.exec_command({cmd: "sed -i s/hello/goodbye/ greeting.txt; ls"}); text(done.output);'
    stage.follows(Call("functions__exec", {"input": program}), "The greeting says goodbye.", thoughts="One program will do.")
    edited_and_listed(stage, stage.run(here(CODEX), files=FILES, model="gpt-6-sol"))
    assert all(chat["tools"] for chat in stage.server.seen.chats)
    remembered = [message.get("reasoning_content") for message in stage.server.seen.chats[-1]["messages"]]
    assert "One program will do." in remembered


class Delegates:
    """A model that starts an agent, and as that agent answers at once."""

    def said(self, data):
        offered = {tool["function"]["name"] for tool in data.get("tools") or ()}
        if "Agent" not in offered or any(message["role"] == "tool" for message in data["messages"]):
            return Said("There are two files.")
        agent = {"description": "Counts", "prompt": "Count.", "subagent_type": "general-purpose", "model": "haiku"}
        return Said(calls=[("Agent", json.dumps(agent))])


def test_the_agents_that_claude_code_starts_ask_models_of_the_profile(stage):
    """It gives them its own names of models, and nothing that it sends is refused."""
    stage.server.follows = Delegates()
    done = stage.run(here(CLAUDE), files=FILES)
    assert "There are two files." in done.out, done.err
    assert len(stage.server.seen.chats) >= 3
    assert "request failed" not in next(stage.folder.glob("log-*.txt")).read_text()


LOOKS = {
    CODEX: Call("view_image", {"path": "dot.png"}),
    CLAUDE: Call("Read", lambda messages: {"file_path": f"{working_folder(messages)}/dot.png"}),
}


def working_folder(messages):
    """The folder that Claude Code tells the model of."""
    return re.search(r"Primary working directory: (\S+)", json.dumps(messages))[1].removesuffix("\\n")


@pytest.mark.parametrize("client", LOOKS, ids=lambda client: client.name)
def test_an_image_that_a_tool_returns_reaches_the_model(stage, client):
    stage.follows(LOOKS[client], "It is a red dot.")
    done = stage.run(here(client), files={"dot.png": DOT})
    assert "It is a red dot." in done.out, done.err
    *_, shown = stage.server.seen.chats[-1]["messages"]
    (image,) = [part for part in shown["content"] if part["type"] == "image_url"]
    assert shown["role"] == "user"
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("client", [CODEX, CLAUDE], ids=lambda client: client.name)
def test_a_vote_of_three_decides_each_turn(stage, client):
    tool = (
        Call("exec_command", {"cmd": "ls"}) if client is CODEX else Call("Bash", {"command": "ls", "description": "Lists"})
    )
    stage.follows(tool, "There are two files.")
    done = stage.run(here(client), files=FILES, model="mv_small_k3_t0.7")
    assert "There are two files." in done.out, done.err
    assert "other.txt" in stage.results()[0]
    assert len(stage.server.seen.chats) == 6  # two turns, three samples each


def test_opencode_edits_a_file_and_runs_a_command(stage):
    greeting = str(stage.folder / "work" / "greeting.txt")
    stage.follows(
        Call("read", {"filePath": greeting}),
        Call("edit", {"filePath": greeting, "oldString": "hello", "newString": "goodbye"}),
        Call("bash", {"command": "ls", "description": "Lists the folder"}),
        "The greeting says goodbye.",
    )
    done = stage.run(here(OPENCODE), files=FILES)
    edited_and_listed(stage, done)
    entered(OPENCODE, "edits a file", "runs a command", *sorted(stage.proven()))


def test_claude_code_edits_a_file_and_runs_a_command(stage):
    """Two files are read at once, so that results of parallel calls come back, too."""
    work = stage.folder / "work"
    greeting = str(work / "greeting.txt")
    stage.follows(
        [Call("Read", {"file_path": greeting}), Call("Read", {"file_path": str(work / "other.txt")})],
        Call("Edit", {"file_path": greeting, "old_string": "hello", "new_string": "goodbye"}),
        Call("Bash", {"command": "ls", "description": "Lists the folder"}),
        "The greeting says goodbye.",
        thoughts="Both files first.",
    )
    done = stage.run(here(CLAUDE), files=FILES)
    edited_and_listed(stage, done)
    found = {call["file_path"]: text for call, text in stage.answered()[:2]}
    assert "hello world" in found[greeting]
    assert "untouched" in found[str(work / "other.txt")]
    remembered = [message.get("reasoning_content") for message in stage.server.seen.chats[-1]["messages"]]
    assert remembered.count("Both files first.") == 3  # what it thought before each of its earlier turns
    entered(CLAUDE, "edits a file", "runs a command", *sorted(stage.proven()))


def test_aider_applies_a_diff(stage):
    block = "greeting.txt\n```\n<<<<<<< SEARCH\nhello world\n=======\ngoodbye world\n>>>>>>> REPLACE\n```"
    stage.follows(otherwise=f"I change the greeting.\n\n{block}\n")
    done = stage.run(here(AIDER), files=FILES)
    assert done.code == 0, done.err[-3000:]
    assert (done.folder / "greeting.txt").read_text() == "goodbye world\n", done.out[-3000:]
    entered(AIDER, "applies a diff", *sorted(stage.proven()))


def test_llm_chats_streams_calls_a_tool_and_fills_a_form(stage):
    done = stage.run(here(LLM))
    assert done.code == 0, done.err[-3000:]
    assert done.out.splitlines() == [TEXT, TEXT, "The tool says 14.", '{"pens": 7}'], done.out
    entered(LLM, *sorted(stage.proven()))
