"""A stranger's first minutes, typed on a terminal: ``init``, and the command that it prints."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.integration.own_machine import Machine, Stand, interrupted, whole
from tests.integration.test_egress_namespace import _why_not
from workflow_composer.config.strategy import StrategyConfig

pytestmark = [
    pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "has namespaces"),
    # pexpect forks; nothing else runs in this process meanwhile
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]

MANY = (
    "nomic-embed-text:latest=embedding",
    "gpt-oss:120b-cloud=cloud",
    "qwq:32b=thinking",
    "phi3:mini=wrong",
    "llama3.1:8b",
)
"""One that embeds first, one that runs in a cloud, one that only thinks, one that is wrong, and one that is right."""
KEYS = {"OPENAI_API_KEY": "sk-not-a-key", "ANTHROPIC_API_KEY": "not-a-key"}


def asks_on(machine, screen_text, question="What is 17 + 25?"):
    """Type the first command that the screen shows under "Next", with a question; return what it prints."""
    line = re.search(r"Next:\n +(python.* generate) \"your question\"", screen_text)[1]
    said, code = whole(machine.types_line(f'{line} "{question}"'))
    assert code == 0, said
    return said


@pytest.mark.parametrize(
    "stand",
    [
        Stand("ollama", 11434, "llama3.1:8b"),
        Stand("ollama:old", 11434, "all-minilm=embedding", "llama2:7b"),
        Stand("llama.cpp", 8080, "/models/qwen2.5-7b-instruct-q4_k_m.gguf"),
        Stand("lm-studio", 1234, "text-embedding-nomic-embed-text-v1.5=embedding", "qwen3-8b"),
        Stand("sglang", 30000, "default=short"),
        Stand("vllm", 8003, "Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen"),
    ],
    ids=lambda stand: f"{stand.arguments[0]} {stand.arguments[1]}",
)
def test_with_one_model_nothing_is_asked_and_the_second_command_answers(tmp_path, stand):
    """On a terminal, without an option; the embedding model is no choice."""
    machine = Machine(tmp_path, stand)
    said, code = whole(machine.types("init"))
    assert code == 0, said
    assert "30 + 12" in said
    assert "\n42\n" in said
    assert said.count("\n  python") == 3
    assert "\n42\n" in asks_on(machine, said)
    config = StrategyConfig.from_yaml(machine.profile)
    assert not config.allow_cloud


def test_of_several_models_one_is_asked_for(tmp_path):
    """The list has no embedding model, and the person's number counts."""
    machine = Machine(tmp_path, Stand("ollama", 11434, *MANY, "mistral:7b"))
    screen = machine.types("init")
    screen.expect("Which model answers")
    screen.expect(r"Number \[1\]")
    rows = dict(re.findall(r"^ +(\d+)  (\S+)", screen.before, re.MULTILINE))
    assert set(rows.values()) == {"qwq:32b", "phi3:mini", "llama3.1:8b", "mistral:7b"}
    assert rows["4"] == "qwq:32b"  # thinks, so it is the last
    screen.sendline(next(number for number, name in rows.items() if name == "mistral:7b"))
    said, code = whole(screen)
    assert code == 0, said
    assert "mistral:7b answers" in said
    assert "\n42\n" in asks_on(machine, said)


def test_without_questions_models_are_tried_until_one_is_right(tmp_path):
    """And the list says why the others were left out."""
    machine = Machine(tmp_path, Stand("ollama", 11434, *MANY), keys=KEYS)
    said, code = whole(machine.types("init", "--yes"))
    assert code == 0, said
    assert "llama3.1:8b answers" in said
    assert "nomic-embed-text:latest (embeddings)" in said
    assert "gpt-oss:120b-cloud: ollama sends its prompts on to a cloud" in said
    assert "\n42\n" in asks_on(machine, said)
    config = StrategyConfig.from_yaml(machine.profile)
    assert not config.allow_cloud
    assert config.resolve("local")[0].model == "llama3.1:8b"
    assert config.route_of("embeddings") == "nomic-embed-text:latest"
    done = machine.runs("generate", "What is 4 + 5?")
    assert (done.returncode, done.stdout) == (0, "9\n"), done.stderr


@pytest.mark.parametrize(
    ("stands", "code", "words"),
    [
        ([], 3, ["no model server answers", "ollama pull", "--server"]),
        ([Stand("ollama", 11434)], 3, ["ollama has no model", "ollama pull"]),
        ([Stand("lm-studio", 1234)], 3, ["LM Studio has no model"]),
        ([Stand("ollama", 11434, "bge-m3=embedding")], 3, ["only embedding models answer", "bge-m3"]),
        ([Stand("ollama", 11434, "qwq=thinking")], 5, ["qwq", "only thought", "no profile was written"]),
        ([Stand("llama.cpp", 8080, "bge-m3.gguf=embedding")], 3, ["only embedding models answer"]),
        ([Stand("llama.cpp", 8080, "model.gguf=embedding")], 5, ["model.gguf", "logits computation"]),
        ([Stand("llama.cpp:loading", 8080, "m.gguf")], 3, ["localhost:8080", "Loading model"]),
        ([Stand("vllm:key=k", 8000, "m")], 3, ["localhost:8000", "requires a key", "--api-key-env"]),
        ([Stand("vllm:old", 8000, "m=embedding")], 5, ["does not support Chat Completions"]),
    ],
    ids=[
        "nothing",
        "ollama without models",
        "LM Studio without models",
        "an embedding model",
        "a model that only thinks",
        "an embedding model by its name",
        "an embedding model without a sign",
        "a server that loads",
        "a server with a key",
        "an old vLLM that embeds",
    ],
)
def test_what_cannot_answer_gets_a_clear_word(tmp_path, stands, code, words):
    """Nothing is written, keys or not, and nothing is a traceback."""
    machine = Machine(tmp_path, *stands, keys=KEYS)
    said, ended = whole(machine.types("init", "--yes"))
    assert (ended, machine.profile.exists()) == (code, False), said
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said
    assert "sk-not-a-key" not in said


def test_a_key_is_named_by_its_variable(tmp_path):
    """It reaches the server that it is for, and the profile has the name only."""
    machine = Machine(tmp_path, Stand("vllm:key=sesame", 9123, "m"), keys={"MY_KEY": "sesame"})
    arguments = ("--server", "http://localhost:9123", "--api-key-env", "MY_KEY")
    done = machine.runs("init", "--yes", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["place"], found["answer"], found["right"]) == ("m", "http://localhost:9123/v1", "42", True)
    assert "api_key_env: MY_KEY" in machine.profile.read_text()
    assert "sesame" not in machine.profile.read_text() + done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_user_of_a_service_is_named_in_the_profile(tmp_path):
    """The package of ollama runs it as the user ollama; without the name, the server would be refused."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "llama3.1:8b", user=997), users={"ollama": 997})
    said, code = whole(machine.types("init", "--yes"))
    assert code == 0, said
    assert "local_users: [ollama]" in machine.profile.read_text()
    assert "\n42\n" in asks_on(machine, said)
    machine.profile.write_text(machine.profile.read_text().replace("local_users: [ollama]", ""))
    done = machine.runs("-s", "local", "generate", "What is 1 + 1?")
    assert done.returncode != 0
    assert "a server of ollama, another user" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_server_of_another_person_is_left_alone(tmp_path):
    """Unless its user is named."""
    machine = Machine(tmp_path, Stand("llama.cpp", 8080, "m.gguf", user=4711), users={"mallory": 4711})
    said, code = whole(machine.types("init", "--yes"))
    assert code == 3, said
    assert "a server of mallory, another user" in said
    assert "--local-user mallory" in said
    said, code = whole(machine.types("init", "--yes", "--local-user", "mallory"))
    assert code == 0, said
    assert "local_users: [mallory]" in machine.profile.read_text()


def test_the_cloud_is_chosen_by_a_person_only(tmp_path):
    """At the prompt it is one of the choices, and as a fallback it is asked for; both say where prompts go."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "llama3.1:8b"), keys=KEYS)
    screen = machine.types("init")
    screen.expect("Which model answers")
    screen.expect(r"Number \[1\]")
    assert re.search(r"^ +1  llama3.1:8b", screen.before, re.MULTILINE)
    assert "cloud: prompts are sent to api.openai.com" in screen.before
    screen.sendline("1")
    screen.expect(r"If llama3.1:8b fails, may .* get the prompt\? \[y/N\]")
    screen.sendline("y")
    said, code = whole(screen)
    assert code == 0, said
    config = StrategyConfig.from_yaml(machine.profile)
    assert config.allow_cloud
    assert len(config.fallback) == 1
    assert "prompts may be sent to the cloud" in said
    assert "sk-not-a-key" not in machine.profile.read_text()


def test_a_file_that_exists_is_kept(tmp_path):
    """Whatever is answered but yes, and with --yes too; --force replaces it."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "llama3.1:8b"))
    machine.profile.parent.mkdir(parents=True)
    machine.profile.write_text("mine")
    screen = machine.types("init")
    screen.expect("exists; replace it")
    screen.sendline("")
    assert whole(screen)[1] == 2
    done = machine.runs("init", "--yes")
    assert (done.returncode, machine.profile.read_text()) == (2, "mine")
    assert "--force" in done.stderr
    assert machine.runs("init", "--yes", "--force").returncode == 0
    StrategyConfig.from_yaml(machine.profile)


def test_ctrl_c_ends_it_and_writes_nothing(tmp_path):
    """At the question."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "a", "b"))
    screen = machine.types("init")
    screen.expect(r"Number \[1\]")
    said, code = interrupted(screen)
    assert code == 130, said
    assert "Traceback" not in said
    assert not machine.profile.exists()


def test_without_a_terminal_several_models_are_an_error_that_names_them(tmp_path):
    """And --model chooses, by any of its names."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "a:latest", "b:latest"))
    done = machine.runs("init")
    assert done.returncode == 2
    assert "a:latest, b:latest" in done.stderr
    assert "--model" in done.stderr
    done = machine.runs("init", "--model", "b", "--output", "mine")
    assert done.returncode == 0, done.stderr
    assert "-s mine generate" in done.stdout
    assert StrategyConfig.from_yaml(tmp_path / "config/strategies/mine.yaml").resolve("local")[0].model == "b:latest"
    done = machine.runs("init", "--yes", "--model", "c")
    assert (done.returncode, "a:latest" in done.stderr) == (2, True)


def test_a_model_that_only_thinks_gets_a_clear_word_wherever_it_is_asked(tmp_path):
    """A profile may be written without a question; its empty answer is explained."""
    machine = Machine(tmp_path, Stand("ollama", 11434, "qwq:32b=thinking"))
    done = machine.runs("init", "--yes", "--no-ask")
    assert done.returncode == 0, done.stderr
    done = machine.runs("-s", "local", "generate", "What is 1 + 1?")
    assert done.stdout.strip() == ""
    assert "only thought" in done.stderr
    said, _ = whole(machine.types("-s", "local", "generate", "What is 1 + 1?"))
    assert "only thought" in said


def test_the_doctor_finds_no_fault_in_the_profile(tmp_path):
    """The third command on the screen."""
    machine = Machine(tmp_path, Stand("ollama", 11434, *MANY))
    said, code = whole(machine.types("init", "--yes"))
    assert code == 0, said
    line = re.search(r"\n +(python.* doctor -s local) ", said)[1]
    said, code = whole(machine.types_line(line))
    assert code == 0, said
    assert "nothing is wrong" in said or "0 errors" in said


def test_keys_alone_use_no_cloud_but_say_how(tmp_path):
    """With --cloud the profile has the model, its price and the name of the key; nothing is sent with --no-ask."""
    machine = Machine(tmp_path, keys=KEYS)
    done = machine.runs("init", "--yes")
    assert done.returncode == 3
    assert "OPENAI_API_KEY" in done.stderr
    assert "--cloud" in done.stderr
    done = machine.runs("init", "--yes", "--cloud", "--no-ask", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["allow_cloud"] is True
    config = StrategyConfig.from_yaml(machine.profile)
    (spec,) = config.resolve(config.route_of("x"))
    assert spec.api_key_env in KEYS
    assert spec.input_price > 0
    assert "sk-not-a-key" not in machine.profile.read_text()
