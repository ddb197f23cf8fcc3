"""A model whose work is reading prompts: Qwen2's architecture, random weights, some thousand positions, words as tokens.

The shipped checkpoints end at 512 positions and are so small that everything but the model takes the time. Here reading
1,500 tokens takes about a second on two cores. It consists of three small files: vLLM makes the weights up (``LOAD``). It
knows the words of one text; its answers mean nothing.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable
from pathlib import Path

POSITIONS = 4096
LOAD = ("--load-format=dummy", f"--max-model-len={POSITIONS}")
"""Options with which vLLM serves it."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5's for plain messages, without its own words where there is no system message."""


def make(folder: Path, texts: Iterable[str], *, hidden: int = 512, layers: int = 8) -> Path:
    """Write the model's files; ``texts`` are those that it has tokens for."""
    folder.mkdir(parents=True, exist_ok=True)
    punctuation = re.escape(string.punctuation)
    words = {word for text in texts for word in re.findall(rf"[{punctuation}]|[^\s{punctuation}]+", text)}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(words - set(SPECIAL))])}
    for name, content in (
        ("config.json", _config(len(vocabulary), hidden, layers)),
        ("tokenizer.json", _tokenizer(vocabulary)),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _config(words: int, hidden: int, layers: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}],
        },
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|unknown|>"},
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {
            "AutoTokenizer": ["", ""]
        },  # else transformers 5 takes Qwen2's own, as scripts/train_embedded_fleet.py tells
        "model_max_length": POSITIONS,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|unknown|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
