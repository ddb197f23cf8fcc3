"""A stand-in that answers as ollama does, with the habits of the models that people run with it.

The form of the answers is that of ollama's OpenAI-compatible endpoint (ollama/ollama, ``openai/openai.go``,
``ToChatCompletion``): IDs such as ``chatcmpl-123``, ``system_fingerprint`` ``fp_ollama``, the model with its tag, reasoning
in a field ``reasoning``, always one choice, no log-probabilities.

What models write around their answers is taken from bug reports:

- JSON in a Markdown fence although a schema was asked for: ollama/ollama#15595 (gemma4), vectorize-io/hindsight#645
- only an opening fence: pydantic/pydantic-ai#3475
- a thought in the content: ollama/ollama#9137 (deepseek-r1)
- a comma behind the last field: bytedance/deer-flow#2368
- talk before and after the answer: ollama/ollama#7131 by way of BerriAI/litellm, callstackincubator/fabrice-ai#118
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tests.integration.stub_server import Reply, Request

MODEL = "llama3.1:8b"

_numbers = itertools.count(100)


def ollama_reply(content: str, *, reasoning: str = "", finish: str = "stop", model: str = MODEL, **options: Any) -> Reply:
    """The body of ollama's answer."""
    message = {"role": "assistant", "content": content, **({"reasoning": reasoning} if reasoning else {})}
    return Reply.of(
        {
            "id": f"chatcmpl-{next(_numbers)}",
            "object": "chat.completion",
            "created": 1732957200,
            "model": model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 61, "completion_tokens": 4, "total_tokens": 65},
        },
        **options,
    )


WORD_HABITS: tuple[Callable[[str], str], ...] = (
    lambda word: word,
    lambda word: f"{word.capitalize()}.",
    lambda word: f"**{word}**",
    lambda word: f'"{word}"',
    lambda word: f"Sure! Here is the classification:\n\n**{word.capitalize()}**",
    lambda word: f"Classification: {word}",
    lambda word: f"<think>\nIt could be a review, but no.\n</think>\n\n{word}",
    lambda word: f"The answer is **{word}**.",
    lambda word: f"```\n{word}\n```",
    lambda word: f" {word.upper()}\n",
)
"""How a model writes a word that it was asked for: each is read without another call."""

JSON_HABITS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: f"```json\n{text}\n```",
    lambda text: f"```json\n{text}",
    lambda text: f"Sure! Here is the JSON:\n\n{text}\n\nLet me know if you need anything else!",
    lambda text: text.replace("}", ",}"),
    lambda text: f"<think>\nThe gene is {{unclear}}.\n</think>\n{text}",
    lambda text: text.replace('"', "'"),
    lambda text: text.replace("{", "{ // the variant\n "),
)
"""How a model writes JSON that it was asked for: each is read without another call."""


def text_of(request: Request) -> str:
    """The prompt: the last message of a person that is no complaint about an earlier answer."""
    return next(message["content"] for message in request.json["messages"] if message["role"] == "user")
