"""Train the embedded fleet: three Qwen2-architecture checkpoints that solve small arithmetic word problems.

    pip install torch numpy tokenizers safetensors
    python scripts/train_embedded_fleet.py --output workflow_composer/checkpoints

From fixed seeds, on two CPU cores, in about an hour in all; one model at a time with ``--only small``. Every directory it
writes holds ``config.json``, ``generation_config.json``, ``model.safetensors`` (half precision), ``tokenizer.json`` and
``tokenizer_config.json`` (with the chat template), and loads in mistral.rs, vLLM and transformers alike.

The model is written out here in plain PyTorch, so that training needs no transformers, and its parameters carry the names
that Qwen2 checkpoints use. Matrices are trained with Muon (Jordan 2024: momentum, orthogonalised by a Newton-Schulz
iteration), which at this size needs about half the tokens of AdamW; everything else with AdamW. A tenth of what the models
read is single sums, which teach the arithmetic at a tenth of the tokens of a story.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from word_problems import HOLDERS, PEOPLE, THINGS, Problem, drills, problems

USER, ASSISTANT, END, PAD, UNKNOWN = "<|user|>", "<|assistant|>", "<|im_end|>", "<|endoftext|>", "<|unknown|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 512


@dataclass(frozen=True)
class Size:
    """One checkpoint's shape and its share of the training time."""

    hidden: int
    layers: int
    heads: int
    inner: int
    steps: int
    batch: int
    rate: float
    seed: int


SIZES = {
    "small": Size(hidden=96, layers=2, heads=3, inner=288, steps=500, batch=128, rate=0.02, seed=1),
    "medium": Size(hidden=192, layers=3, heads=6, inner=512, steps=420, batch=128, rate=0.02, seed=2),
    "large": Size(hidden=320, layers=4, heads=10, inner=832, steps=700, batch=128, rate=0.015, seed=3),
}


def build_tokenizer() -> Tokenizer:
    """Whole words and single digits; a word outside the vocabulary falls apart into letters.

    A token that begins a word carries the mark ``▁``, so that decoding puts the spaces back: "12 + 7" is
    ``▁1 2 ▁+ ▁7``. Case is folded.
    """
    texts = itertools.islice(problems(0, held_out=False), 4000)
    words = {w.lower() for p in texts for w in p.question.replace(".", " ").replace("?", " ").split() if w.isalpha()}
    words |= {name.lower() for name, _ in PEOPLE} | set(THINGS) | set(HOLDERS) | {"what", "####", "+", "-", "*", "/", "="}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    digits = [str(d) for d in range(10)]
    marks = [".", "?", ",", "!", ":", ";", "'", '"', "(", ")", "\n"]
    vocabulary = [PAD, END, USER, ASSISTANT, UNKNOWN, "▁", *marks, *digits, *letters]
    vocabulary += ["▁" + piece for piece in [*digits, *letters, *sorted(words - set(letters))]]
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN, continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"[.?,!:;'\"()\n]"), "isolated"),
        ]
    )
    # The same as decoders.Metaspace, in the form of Llama's tokenizers, which mistral.rs recognises.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (PAD, END, USER, ASSISTANT, UNKNOWN)])
    return tokenizer


class Attention(nn.Module):
    """Causal self-attention with rotary positions; query, key and value carry a bias, as in Qwen2."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.width = size.heads, size.hidden // size.heads
        self.q_proj = nn.Linear(size.hidden, size.hidden)
        self.k_proj = nn.Linear(size.hidden, size.hidden)
        self.v_proj = nn.Linear(size.hidden, size.hidden)
        self.o_proj = nn.Linear(size.hidden, size.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(b, t, self.heads, self.width).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            return y * cos + torch.cat((-second, first), dim=-1) * sin

        q, k, v = rotate(split(self.q_proj(x))), rotate(split(self.k_proj(x))), split(self.v_proj(x))
        out: Tensor = self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c))
        return out


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.up_proj = nn.Linear(size.hidden, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = Mlp(size)
        self.input_layernorm = nn.RMSNorm(size.hidden, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(size.hidden, eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen2(nn.Module):
    """Qwen2 with tied embeddings; token ids (batch, time) in, logits (batch, time, vocabulary) out."""

    def __init__(self, size: Size, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, size.hidden)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.hidden, eps=1e-6)
        width = size.hidden // size.heads
        frequency = 1.0 / (10000.0 ** (torch.arange(0, width, 2).float() / width))
        angle = torch.outer(torch.arange(CONTEXT).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 if "embed" in name else 1.0 / math.sqrt(parameter.shape[1])
                scale = scale / math.sqrt(2 * size.layers) if "o_proj" in name or "down_proj" in name else scale
                nn.init.normal_(parameter, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]  # type: ignore[index]  # buffers are tensors
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix, with the coefficients of Muon."""
    tall = update.shape[0] > update.shape[1]
    x = (update.T if tall else update) / (update.norm() + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weight matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is used here
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def prompt_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """What the chat template makes of one question."""
    ids: list[int] = tokenizer.encode(f"{USER}{question}{ASSISTANT}").ids
    return ids


def batches(tokenizer: Tokenizer, size: Size, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of like length: token ids, and targets with -100 where a token is not learned (the question, padding)."""
    stories, sums = problems(size.seed * 1000, held_out=False), drills(size.seed * 1000 + 1)
    pad, ahead = tokenizer.token_to_id(PAD), 8
    done = 0
    generator = torch.Generator().manual_seed(size.seed)
    while done < steps:
        # Two problems in three at first, one in ten later on, are sums: cheap tokens teach the tables first.
        drill_share = 0.67 if done < steps * 0.12 else 0.12
        count = size.batch * ahead
        rows: list[Problem] = list(itertools.islice(stories, int(count * (1 - drill_share))))
        rows += itertools.islice(sums, count - len(rows))
        encoded = []
        for row in rows:
            prompt = prompt_ids(tokenizer, row.question)
            encoded.append((prompt, [*tokenizer.encode(row.answer).ids, tokenizer.token_to_id(END)]))
        encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for i in torch.randperm(ahead, generator=generator).tolist():
            part = encoded[i * size.batch : (i + 1) * size.batch]
            width = max(len(p) + len(a) for p, a in part)
            tokens = torch.tensor([p + a + [pad] * (width - len(p) - len(a)) for p, a in part])
            goals = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in part])
            yield tokens[:, :-1], goals[:, 1:]
            done += 1
            if done == steps:
                return


@torch.no_grad()
def greedy_accuracy(model: Qwen2, tokenizer: Tokenizer, rows: list[Problem], limit: int = 72) -> float:
    """Share of problems whose greedy answer ends with the right result; prompts of one length run together."""
    end, right = tokenizer.token_to_id(END), 0
    by_length: dict[int, list[tuple[list[int], int]]] = {}
    for row in rows:
        ids = prompt_ids(tokenizer, row.question)
        by_length.setdefault(len(ids), []).append((ids, row.result))
    for group in by_length.values():
        tokens = torch.tensor([ids for ids, _ in group])
        start = tokens.shape[1]
        open_rows = torch.ones(len(group), dtype=torch.bool)
        for _ in range(limit):
            following = model(tokens)[:, -1].argmax(-1)
            tokens = torch.cat((tokens, following[:, None]), dim=1)
            open_rows &= following != end
            if not open_rows.any():
                break
        for out, (_, result) in zip(tokens[:, start:].tolist(), group, strict=True):
            text = tokenizer.decode(out[: out.index(end)] if end in out else out, skip_special_tokens=True)
            right += text.rsplit("####", 1)[-1].strip() == str(result) and "####" in text
    return right / len(rows)


def train(name: str, size: Size, tokenizer: Tokenizer, seconds: float) -> Qwen2:
    """Train one model for its steps, or until ``seconds`` are over; prints loss and accuracy on trained templates."""
    torch.manual_seed(size.seed)
    model = Qwen2(size, tokenizer.get_vocab_size())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=size.rate),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base = [o.param_groups[0]["lr"] for o in optimisers]
    check = list(itertools.islice(problems(77, held_out=False), 200))
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    started, seen = time.monotonic(), 0
    step_of = torch.compile(model, dynamic=True)
    for step, (tokens, goals) in enumerate(batches(tokenizer, size, size.steps)):
        share = max(step / size.steps, (time.monotonic() - started) / seconds)
        if share >= 1.0:
            break
        factor = min(1.0, (step + 1) / 50) * (1.0 if share < 0.5 else max(0.02, (1 - share) / 0.5))
        for optimiser, rate in zip(optimisers, base, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
        loss = F.cross_entropy(step_of(tokens).flatten(0, 1), goals.flatten(), ignore_index=-100)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += tokens.numel()
        if step % 100 == 99:
            accuracy = greedy_accuracy(model, tokenizer, check) if step % 300 == 299 else float("nan")
            spent = time.monotonic() - started
            print(f"{name} step {step + 1} loss {loss.item():.4f} accuracy {accuracy:.3f} "
                  f"{seen / spent:,.0f} tokens/s {spent:.0f} s", flush=True)  # fmt: skip
    return model


def save(model: Qwen2, size: Size, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint in the form that Qwen2 loaders expect."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{n}": p.detach().half().contiguous() for n, p in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": size.layers,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "float16",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers 5 gives every qwen2 model the tokenizer of Qwen2, whatever its class says, unless the files claim code
        # of their own; it does not look for that code, and takes tokenizer.json as it is.
        "auto_map": {"AutoTokenizer": ["", ""]},
        "model_max_length": CONTEXT,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {"eos_token_id": end, "pad_token_id": pad, "do_sample": False}
    for file, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (directory / file).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(directory / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a directory; one folder per model is written there")
    parser.add_argument("--only", choices=list(SIZES), action="append", help="train this one (may be repeated)")
    parser.add_argument("--seconds", type=float, default=3600, help="stop a model after so long, its rate annealed")
    parser.add_argument("--steps", type=int, help="a trial run: so many steps")
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    held_out = list(itertools.islice(problems(99, held_out=True), 500))
    for name in options.only or SIZES:
        size = SIZES[name]
        if options.steps:
            size = Size(**{**asdict(size), "steps": options.steps})
        model = train(name, size, tokenizer, options.seconds)
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
        print(f"{name}: held-out templates {greedy_accuracy(model, tokenizer, held_out):.3f}", flush=True)
        save(model, size, tokenizer, options.output / name)


if __name__ == "__main__":
    main()
