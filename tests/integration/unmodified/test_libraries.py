"""Libraries for Python and what evaluates models with them, unmodified: each does what docs/clients.md says of it."""

from __future__ import annotations

import json

import pytest

from tests.integration.clients import VARIABLE, clients_python
from tests.integration.unmodified.frame import (
    AGENTS,
    ANTHROPIC,
    CREWAI,
    DSPY,
    GUIDELLM,
    INSPECT,
    INSTRUCTOR,
    LANGCHAIN,
    LITELLM,
    LLAMA_INDEX,
    LM_EVAL,
    OPENAI,
    PYDANTIC_AI,
    SCRIPTED,
    SEMANTIC_KERNEL,
    entered,
    here,
    staged,
)
from tests.integration.unmodified.questions import TEXT
from tests.integration.unmodified.standin import VECTOR

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(clients_python() is None, reason=f"{VARIABLE} names no Python with the clients"),
]

FORM, TOOL, VECTORS = "7", "The tool says 14.", str(VECTOR)
HANDED = 'The tool says {"assistant": "expert"}.'
CHAT = {"chat": TEXT, "stream": TEXT, "tool": TOOL, "structured output": FORM}
RESPONSES = {f"responses, {what}": value for what, value in CHAT.items()}

PRINTED = {
    OPENAI: {**CHAT, "responses": TEXT, "completion": "14", "embeddings": VECTORS},
    ANTHROPIC: {**CHAT, "structured output": '{"pens": 7}'},
    LITELLM: {**CHAT, "responses": TEXT, "embeddings": VECTORS},
    LANGCHAIN: {
        **{f"{mode}{what}": value for mode in ("", "responses, ") for what, value in CHAT.items()},
        **{f"{mode}batch": str([TEXT, "3"]) for mode in ("", "responses, ")},
        **{f"{mode}streamed structured output": FORM for mode in ("", "responses, ")},
        **{f"{mode}agent's structured output": FORM for mode in ("", "responses, ")},
        "completion": "14",
        "batch of completions": "['2', '3']",
        "embeddings": VECTORS,
    },
    PYDANTIC_AI: {
        **CHAT,
        **RESPONSES,
        "structured output by a tool": FORM,
        "responses, structured output by a tool": FORM,
    },
    AGENTS: {
        **CHAT,
        **{f"chat completions, {what}": value for what, value in CHAT.items()},
        "handoff": HANDED,
        "chat completions, handoff": HANDED,
    },
    INSTRUCTOR: {
        **{"chat": TEXT, "tool": FORM, "stream": FORM, "list": f"[{FORM}]"},
        **dict.fromkeys(("JSON_SCHEMA", "RESPONSES_TOOLS"), FORM),
    },
    LLAMA_INDEX: {**CHAT, "completion": "14", "embeddings": VECTORS},
    DSPY: {
        **CHAT,
        "tool": "14",
        "structured output as JSON": FORM,
        "reasoned": TEXT,
        "responses": TEXT,
        "embeddings": VECTORS,
    },
    CREWAI: {**CHAT, "crew's structured output": FORM, "responses": TEXT},
    SEMANTIC_KERNEL: {**CHAT, "embeddings": VECTORS},
}
"""What the snippet of each library prints: each thing that it finishes, and the answer that it got."""


@pytest.fixture
def stage(tmp_path):
    with staged(tmp_path) as found:
        yield found


@pytest.mark.parametrize("client", SCRIPTED, ids=lambda client: client.environment + "-" + client.package)
def test_a_library_gets_every_answer(stage, client):
    done = stage.run(here(client), TIKTOKEN_CACHE_DIR=str(encodings(client)))
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    wanted = PRINTED[client]
    assert {what: done.said(what) for what in wanted} == wanted
    assert stage.proven() >= {"chat", "stream"}
    entered(client, *(" by ".join(reversed(what.split(", "))) for what in wanted))


def test_inspect_finishes_twenty_samples_with_a_score_in_both_modes(stage):
    done = stage.run(here(INSPECT))
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    scores = [float(line.split()[-1]) for line in done.out.splitlines() if line.startswith("accuracy ")]
    assert scores == [1.0] * 4, done.out
    assert len(stage.server.seen.chats) == 2 * (20 + 2 * 20)
    entered(INSPECT, "20 samples with a score by chats and by responses", "tool")


SUMS = "".join(
    json.dumps(
        {"question": f"What is {n} + {n + 1}?", "answer": str(n + n + 1), "choices": [str(n + n + 1), "none"], "label": 0}
    )
    + "\n"
    for n in range(20)
)


def test_lm_eval_finishes_twenty_samples_with_a_score_by_chats_and_by_completions(stage):
    done = stage.run(here(LM_EVAL), files={"sums.jsonl": SUMS, **tokenizer()})
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    table = [[cell.strip() for cell in line.split("|")] for line in done.out.splitlines() if "|none " in line]
    assert sorted((cells[1], float(cells[7])) for cells in table) == [("picks", 1.0), ("sums", 1.0), ("sums", 1.0)], done.out
    assert len(stage.server.seen.chats) >= 20
    entered(LM_EVAL, "20 samples with a score by chats and by completions", "20 samples by log-probabilities")


def test_guidellm_measures_the_service(stage):
    done = stage.run(here(GUIDELLM), files=tokenizer())
    assert done.code == 0, done.out[-2000:] + done.err[-3000:]
    report = json.loads((done.folder / "benchmarks.json").read_text())
    requests = report["benchmarks"][0]["metrics"]["request_totals"]
    assert requests["successful"] == 20, requests
    assert requests["errored"] == 0, requests
    entered(GUIDELLM, "measures streams")


def tokenizer() -> dict[str, str]:
    """The files of a tokenizer whose tokens are characters."""
    vocabulary = {chr(code): code for code in range(128)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    end = {"id": 4, "content": chr(4), "special": True, "normalized": False, "lstrip": False, "rstrip": False}
    whole = {"version": "1.0", "added_tokens": [{**end, "single_word": False}], "model": model, "decoder": {"type": "Fuse"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": chr(4), "model_max_length": 4096}
    return {"tokenizer/tokenizer.json": json.dumps(whole), "tokenizer/tokenizer_config.json": json.dumps(config)}


def encodings(client):
    """Where OpenAI's encodings lie, which tiktoken would fetch: LiteLLM brings them along."""
    return next(client.home.glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers"), client.home)
