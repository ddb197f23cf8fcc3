"""Checkpoints with random weights, written in milliseconds: the real engine runs, only the answers mean nothing.

The vocabulary is one token per byte, so every text can be read and written, JSON too.
"""

from __future__ import annotations

import json
import random
from array import array
from pathlib import Path

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN, HEADS, INNER, WIDTH = 32, 2, 64, 16


def write_chat_model(
    directory: Path, *, context: int = 4096, seed: int = 0, settings: dict | None = None, without: str = ""
) -> Path:
    """A Qwen2 model; ``settings`` goes into ``generation_config.json``; ``without`` is a character it cannot write."""
    config = _config("Qwen2ForCausalLM", "qwen2", context)
    shapes = _shapes("model.", biases=True, norms=False)
    return _write(directory, config, shapes, seed, {"eos_token_id": _ids()[END], **(settings or {})}, without)


def write_embedding_model(directory: Path, *, seed: int = 0) -> Path:
    """A Qwen3-Embedding model: the last token's state, normalised."""
    config = _config("Qwen3ForCausalLM", "qwen3", 512) | {"head_dim": WIDTH, "attention_bias": False}
    _write(directory, config, _shapes("", biases=False, norms=True), seed, {"eos_token_id": _ids()[END]})
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": HIDDEN, "include_prompt": True, **pooling})
    )
    return directory


def _config(architecture: str, kind: str, context: int) -> dict:
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": len(_ids()),
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def _shapes(prefix: str, *, biases: bool, norms: bool) -> dict[str, tuple[int, ...]]:
    layer = f"{prefix}layers.0."
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (len(_ids()), HIDDEN)}
    for name in "qkvo":
        shapes[f"{layer}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        if biases and name != "o":
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (HIDDEN,)
    if norms:
        shapes |= {f"{layer}self_attn.{name}_norm.weight": (WIDTH,) for name in "qk"}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
    shapes[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INNER)
    shapes |= {f"{layer}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {f"{prefix}norm.weight": (HIDDEN,)}


def _write(
    directory: Path, config: dict, shapes: dict[str, tuple[int, ...]], seed: int, settings: dict, without: str = ""
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "chat_template": CHAT_TEMPLATE}
    files = {
        "config.json": config,
        "generation_config.json": settings,
        "tokenizer_config.json": tokenizer_config,
        "tokenizer.json": _tokenizer(without),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "model.safetensors").write_bytes(_safetensors(shapes, random.Random(seed)))
    return directory


def _safetensors(shapes: dict[str, tuple[int, ...]], rng: random.Random) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * size if "norm" in name else [rng.gauss(0, 0.3) for _ in range(size)]
        begin = len(data)
        data += array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _ids() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, then the three special tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    stand_ins = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return {token: i for i, token in enumerate([*(stand_ins[byte] for byte in range(256)), USER, ASSISTANT, END])}


def _tokenizer(without: str) -> dict:
    ids = {"<|none|>" if token == without else token: i for token, i in _ids().items()}
    special = [
        {"id": ids[t], "content": t, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for t in (USER, ASSISTANT, END)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": ids, "merges": []}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
