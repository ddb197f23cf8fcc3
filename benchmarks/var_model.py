"""Tables instead of a trained model's gates: perplexity and learned share, in domain and out of domain, layer by layer.

    python scripts/train_tiny_olmoe.py --output logs/tiny-olmoe
    python benchmarks/var_model.py logs/tiny-olmoe [--learn 1000000] [--context 10] [--share 0.15] [--json]

Tables are learned from the routes that the model takes on text of the kind it was trained on (not the text itself); the
gate is asked for the tokens of which the table is least confident. The texts that are measured are in neither.
Perplexity and the likeliest next token are compared with the untouched model's on the same tokens. "alone" puts the tables
into one layer only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import OlmoeForCausalLM

from workflow_composer.moe.models.recording import Effect, RouteRecorder, effect, predict, rows_of
from workflow_composer.moe.models.transformers_moe import TableRouting
from workflow_composer.moe.offload.prefetch import overlap
from workflow_composer.moe.routing.routes import RecordedRoutes
from workflow_composer.moe.routing.tables import RouteTables

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import train_tiny_olmoe as tiny

WIDTH = 128


class Study:
    """The model and what was learned from its routes."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.model = OlmoeForCausalLM.from_pretrained(directory).eval()
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.context, self.share, self.remember = options.context, options.share, options.remember
        learned = self.routes_of(rows_of(tiny.encode(self.tokenizer, tiny.training_texts(1001), options.learn), WIDTH))[0]
        start = time.process_time()
        self.tables = {layer: self.fit(learned, layer, options) for layer in learned.layers}
        self.fitting = time.process_time() - start

    def fit(self, learned: RecordedRoutes, layer: int, options: argparse.Namespace) -> RouteTables:
        """One layer's table."""
        return RouteTables.fit(
            learned.tokens,
            learned.experts[layer],
            learned.weights[layer],
            num_experts=self.model.config.num_experts,
            sequences=learned.sequences,
            vocabulary=self.model.config.vocab_size,
            context=options.context,
            min_count=options.min_count,
            smoothing=options.smoothing,
        )

    def routes_of(self, batches: list[torch.Tensor]):
        """The untouched model's routes and predictions."""
        with RouteRecorder(self.model) as recorder:
            found = predict(self.model, batches)
        return recorder.routes(), found

    def routed(self, batches: list[torch.Tensor], untouched, layers: list[int]) -> tuple[Effect, dict]:
        """What tables in these layers do."""
        tables = {layer: self.tables[layer] for layer in layers}
        with TableRouting(self.model, tables, share=self.share, width=self.context, remember=self.remember) as routing:
            found = predict(self.model, batches)
        return effect(found, untouched), routing.counts()


def measure(study: Study, name: str, tokens: int, *, alone: bool) -> dict:
    """One text."""
    batches = rows_of(tiny.encode(study.tokenizer, tiny.texts(name), tokens), WIDTH)
    routes, untouched = study.routes_of(batches)
    contexts = routes.contexts(study.context)
    together, counts = study.routed(batches, untouched, list(study.tables))
    layers = {}
    for layer, table in study.tables.items():
        guess = table.predict(contexts)[0]
        same = (np.sort(guess, axis=1) == np.sort(routes.experts[layer], axis=1)).all(axis=1).mean()
        layers[layer] = {
            **{key: counts[layer][f"{key}_share"] for key in ("learned", "cached", "fast", "forced")},
            "worst": counts[layer]["worst_prefix_share"],
            "overlap": overlap(guess, routes.experts[layer]),
            "exact": float(same),
        }
        if alone:
            layers[layer]["alone"] = study.routed(batches, untouched, [layer])[0].increase
    return {
        "tokens": len(routes),
        "untouched": together.untouched,
        "perplexity": together.perplexity,
        "increase": together.increase,
        "interval": together.interval,
        "agreement": together.agreement,
        "layers": layers,
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the directory that scripts/train_tiny_olmoe.py wrote")
    parser.add_argument("--learn", type=int, default=1_000_000, help="tokens whose routes the tables learn")
    parser.add_argument("--tokens", type=int, default=16_000, help="tokens of each text that is measured")
    parser.add_argument("--context", type=int, default=10)
    parser.add_argument("--min-count", type=int, default=2)
    parser.add_argument("--smoothing", type=float, default=3.0)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--remember", action="store_true", help="take what the gate said lately before asking it")
    parser.add_argument("--texts", nargs="+", choices=tiny.HELD_OUT, default=tiny.HELD_OUT)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.model, options)
    found = {name: measure(study, name, options.tokens, alone=name in ("problems", "fresh")) for name in options.texts}
    if options.json:
        print(json.dumps(found, indent=2))
        return
    size = sum(table.nbytes for table in study.tables.values())
    print(f"tables: contexts of up to {options.context} tokens, learned from {options.learn:,} tokens' routes in "
          f"{study.fitting:.1f} s of CPU time; {', '.join(f'{len(t):,}' for t in study.tables.values())} rows, "
          f"{size / 1e6:.1f} MB in all")  # fmt: skip
    print(f"\n{'text':16}{'tokens':>8}{'untouched':>11}{'routed':>9}{'increase':>10}{'95 % interval':>18}{'agree':>8}")
    for name, row in found.items():
        print(f"{name:16}{row['tokens']:8,}{row['untouched']:11.3f}{row['perplexity']:9.3f}{row['increase']:10.2%}"
              f"{'{:.2%} to {:.2%}'.format(*row['interval']):>18}{row['agreement']:8.1%}")  # fmt: skip
    heads = ("learned", "worst", "cached", "fast", "forced", "overlap", "exact", "alone")
    print(f"\n{'text':16}{'layer':>6}" + "".join(f"{head:>9}" for head in heads))
    for name, row in found.items():
        for layer, cells in row["layers"].items():
            shown = "".join(f"{cells[head]:9.2%}" if head in cells else f"{'':9}" for head in heads)
            print(f"{name:16}{layer:6}{shown}")


if __name__ == "__main__":
    main()
