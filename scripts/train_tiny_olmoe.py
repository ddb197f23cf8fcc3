"""Train a tiny OLMoE (4 layers, 16 experts, 4 of them per token) for the measurements of docs/var-models.md.

    pip install '.[moe]'
    python scripts/train_tiny_olmoe.py --output logs/tiny-olmoe

About four minutes on one CPU core that is idle otherwise. Four tokens in five come from the arithmetic word problems of
``word_problems.py`` (templates that are not held out), one in five from the English of ``pydoc_data.topics``, so that text
of another kind is strange to the model, not noise. Nothing is downloaded. One seed and one thread give the same weights
again with the same versions of Python, torch and transformers on the same kind of processor.

The texts that nothing was trained on: ``texts(name)`` for each of ``HELD_OUT``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
from word_problems import problems

ROOT = Path(__file__).resolve().parent.parent
END, VOCABULARY = "<|endoftext|>", 1024
PROSE_SHARE = 0.2
FRESH_SEED = 20_261_127
HELD_OUT = ("fresh", "problems", "prose", "documentation", "source")


@dataclass(frozen=True)
class Recipe:
    """Shape and training of the model; ``batch`` rows of ``width`` tokens a step."""

    hidden: int = 128
    inner: int = 96
    layers: int = 4
    heads: int = 4
    experts: int = 16
    top_k: int = 4
    steps: int = 800
    batch: int = 16
    width: int = 128
    rate: float = 4e-3
    seed: int = 7


def _pages(*, held_out: bool) -> list[str]:
    """Pages of `pydoc_data.topics`; one in ten, chosen by its name, is held out."""
    return [topics[name] for name in sorted(topics) if (zlib.crc32(name.encode()) % 10 == 0) == held_out]


def _unseen(pages: list[str]) -> list[str]:
    """Those whose lines are not, for the most part, on a page that is trained on: some pages contain others."""
    taught = set("\n".join(_pages(held_out=False)).splitlines())
    return [page for page in pages if sum(line in taught for line in page.splitlines() if line) < page.count("\n") / 2]


def _problem(row: dict[str, str]) -> str:
    return f"{row['question']}\n{row['answer']}"


def texts(name: str) -> list[str]:
    """Documents that the model was not trained on.

    In domain, problems from templates that are held out: ``fresh``, on which no setting was chosen, and ``problems``, the
    shipped ones, on which the settings were chosen. ``prose``: of one page in ten of ``pydoc_data.topics`` those that are
    part of no other page. Out of domain: ``documentation``, this project's own pages, and ``source``, modules of Python's
    standard library.
    """
    if name == "fresh":
        stories = itertools.islice(problems(FRESH_SEED, held_out=True), 1000)
        return [_problem({"question": story.question, "answer": story.answer}) for story in stories]
    if name == "problems":
        shipped = ROOT / "workflow_composer" / "checkpoints" / "problems.jsonl"
        return [_problem(json.loads(line)) for line in shipped.read_text().splitlines()]
    if name == "prose":
        return _unseen(_pages(held_out=True))
    if name == "documentation":
        return [path.read_text() for path in sorted((ROOT / "docs").glob("*.md")) if not path.name.startswith("var")]
    if name == "source":
        home = Path(textwrap.__file__).parent
        return [
            (home / f"{module}.py").read_text() for module in ("bisect", "fnmatch", "heapq", "queue", "sched", "textwrap")
        ]
    raise ValueError(f"no such text: {name}; there are {', '.join(HELD_OUT)}")


def training_texts(seed: int, prose_share: float = PROSE_SHARE) -> Iterator[str]:
    """An endless stream of documents: problems, and pieces of prose so that these make up ``prose_share`` of characters."""
    rng = random.Random(seed)
    pages = _pages(held_out=False)
    stream = problems(seed, held_out=False)
    prose = told = 0
    while True:
        if prose < prose_share * (prose + told):
            page = rng.choice(pages)
            start = rng.randrange(max(1, len(page) - 1000))
            piece = page[start : start + 1000]
            prose += len(piece)
        else:
            story = next(stream)
            piece = _problem({"question": story.question, "answer": story.answer})
            told += len(piece)
        yield piece


def build_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE over the training text; every digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = training_texts(seed, prose_share=0.5)
    tokenizer.train_from_iterator((next(stream) for _ in range(5000)), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Iterator[str] | list[str], wanted: int) -> list[int]:
    """The documents' token ids, an END before each, cut at ``wanted`` tokens."""
    end, ids = tokenizer.token_to_id(END), list[int]()
    for document in documents:
        ids += [end, *tokenizer.encode(document).ids]
        if len(ids) >= wanted:
            break
    return ids[:wanted]


def batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[Tensor]:
    """Rows of consecutive training text, [batch, width] a step."""
    stream = training_texts(recipe.seed)
    size = recipe.batch * recipe.width
    for _ in range(recipe.steps):
        ids = encode(tokenizer, stream, size)
        yield torch.tensor(ids).view(recipe.batch, recipe.width)


def build_model(recipe: Recipe, vocabulary: int) -> OlmoeForCausalLM:
    """The untrained model, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            num_experts=recipe.experts,
            num_experts_per_tok=recipe.top_k,
            max_position_embeddings=512,
            norm_topk_prob=False,
            router_aux_loss_coef=0.01,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=0,
            bos_token_id=None,
        )
    )


def train(
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    report: Callable[[str], None] = lambda line: None,
    model: OlmoeForCausalLM | None = None,
) -> OlmoeForCausalLM:
    """Train by AdamW with warm-up and a cosine; ``report`` gets a line every 100 steps."""
    model = model or build_model(recipe, tokenizer.get_vocab_size())
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, smooth = time.monotonic(), None
    for step, tokens in enumerate(batches(tokenizer, recipe)):
        share = step / recipe.steps
        factor = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        optimiser.param_groups[0]["lr"] = recipe.rate * factor
        out = model(tokens, labels=tokens, output_router_logits=True, use_cache=False)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss = out.loss.item() - model.config.router_aux_loss_coef * out.aux_loss.item()
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        if step % 100 == 99:
            spent = time.monotonic() - started
            seen = (step + 1) * recipe.batch * recipe.width
            report(
                f"step {step + 1} loss {smooth:.4f} balance {out.aux_loss.item():.3f} "
                f"{seen / spent:,.0f} tokens/s {spent:.0f} s"
            )
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a directory for the checkpoint")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="a shorter trial run, for instance")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--top-k", type=int, default=Recipe.top_k, help="experts per token")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(steps=options.steps, seed=options.seed, top_k=options.top_k)
    tokenizer = build_tokenizer(recipe.seed)
    model = train(recipe, tokenizer, report=lambda line: print(line, flush=True))
    model.save_pretrained(options.output)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(options.output)


if __name__ == "__main__":
    main()
