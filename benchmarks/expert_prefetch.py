"""Benefit of expert prefetching with experts in a file, for real offloading on a CPU and in the simulator.

    python scripts/train_tiny_olmoe.py --output logs/tiny-olmoe
    python benchmarks/expert_prefetch.py logs/tiny-olmoe [--text fresh] [--slots 8] [--tokens 200] [--rounds 5] [--json]

Held-out text (by default problems; see `train_tiny_olmoe.texts`) is read token by token with a key-value cache, as in
generation. The experts lie in a memory-mapped file; at most ``slots`` of each layer's 16 are in memory. A transfer is a copy
from the file, and then the link stays taken until ``--transfer`` milliseconds are over (the thread sleeps, as a processor
does while a bus works). By default that is chosen so that without any memory 85 % of the time is transfer, the share that is
reported for Qwen3-30B on one card. All policies read the same tokens; each round runs all of them in turn, and of every
token the best of the rounds counts, because other work on the machine can only make it longer. The forecasts' own time is
in theirs. "vs lin" compares with the fastest of the rows that fetch by a linear predictor alone: below 1 that is faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import OlmoeForCausalLM

from workflow_composer.moe.models.gates import cache_argument, gates
from workflow_composer.moe.models.recording import RouteRecorder, predict, rows_of
from workflow_composer.moe.models.transformers_moe import TableRouting
from workflow_composer.moe.offload.expert_cache import Keep
from workflow_composer.moe.offload.expert_store import Link
from workflow_composer.moe.offload.offloaded_model import LinearPredictor, OffloadedModel, TableForecaster, watch_layers
from workflow_composer.moe.offload.prefetch import ExpertForecast, Machine, most_used, overlap, simulate
from workflow_composer.moe.routing.hashing import Tokens
from workflow_composer.moe.routing.tables import RouteTables

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import train_tiny_olmoe as tiny

WIDTH = 128


class Measured:
    """The model, what was learned from its own training text, and the tokens that the policies read."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.model = OlmoeForCausalLM.from_pretrained(directory).eval()
        self.model.set_experts_implementation("eager")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = rows_of(tiny.encode(tokenizer, tiny.training_texts(1001), options.learn), WIDTH)
        with RouteRecorder(self.model) as recorder:
            predict(self.model, text)
        self.learned = recorder.routes()
        self.k = self.learned.experts[0].shape[1]
        self.tables = {
            layer: RouteTables.fit(
                self.learned.tokens,
                self.learned.experts[layer],
                self.learned.weights[layer],
                num_experts=self.model.config.num_experts,
                sequences=self.learned.sequences,
                vocabulary=self.model.config.vocab_size,
                context=options.context,
                min_count=2,
            )
            for layer in self.learned.layers
        }
        self.context = options.context
        half = text[: len(text) // 2]
        self.linear = [LinearPredictor.fit(self.model, half, ahead=ahead) for ahead in (0, 1)]
        ids = tiny.encode(tokenizer, tiny.texts(options.text), options.tokens)
        self.rows = [torch.tensor([ids[at : at + WIDTH]]) for at in range(0, len(ids), WIDTH)]
        self.tokens = len(ids)
        with RouteRecorder(self.model) as recorder:
            predict(self.model, self.rows)
        self.routes = recorder.routes()

    def read(self) -> np.ndarray:
        """Read the text token by token; seconds of each."""
        name = cache_argument(self.model)
        spent = []
        with torch.inference_mode():
            for row in self.rows:
                cache = None
                for at in range(row.shape[1]):
                    start = time.perf_counter()
                    out = self.model(input_ids=row[:, at : at + 1], use_cache=True, **{name: cache})
                    cache = out[name]
                    spent.append(time.perf_counter() - start)
        return np.array(spent)

    def linear_forecast(self, predictor: LinearPredictor) -> dict[int, np.ndarray]:
        """What a linear predictor says of each token; layers that it does not reach are left out."""
        found: dict[int, list[np.ndarray]] = {}

        def note(layer: int, hidden: torch.Tensor) -> None:
            if layer in predictor.weights:
                likely = predictor.likely(layer, hidden, self.k).numpy().astype(np.int16)
                found.setdefault(layer + predictor.ahead, []).append(likely)

        end = watch_layers(self.model, note)
        predict(self.model, self.rows)
        end()
        return {layer: np.concatenate(parts) for layer, parts in found.items()}


def policies(measured: Measured, slots: int) -> dict[str, dict]:
    """Name -> options of `OffloadedModel`; ``routed`` says that tables also decide the routes."""
    tables = TableForecaster(measured.tables)
    same, ahead = measured.linear
    return {
        "no memory": {"keep": Keep.NOTHING},
        "LRU": {},
        "LFU": {"keep": Keep.LFU},
        "frequency-pinned": {"keep": Keep.PINNED, "pinned": most_used(measured.learned, slots - 2)},
        "linear, same layer": {"forecaster": LinearForecaster([same], measured.k)},
        "linear, kept by LFU": {"forecaster": LinearForecaster([same], measured.k), "keep": Keep.LFU},
        "linear, and one ahead": {"forecaster": LinearForecaster([same, ahead], measured.k)},
        "VAR, kept by LRU": {"forecaster": tables},
        "VAR, kept by LFU": {"forecaster": tables, "keep": Keep.LFU},
        "VAR, half pinned": {
            "forecaster": tables,
            "keep": Keep.PINNED,
            "pinned": most_used(measured.learned, slots // 2),
        },
        "VAR, then linear, LFU": {
            "forecaster": Both(tables, LinearForecaster([same], measured.k)),
            "keep": Keep.LFU,
        },
        "VAR decides, LFU": {"forecaster": tables, "keep": Keep.LFU, "routed": True},
    }


class LinearForecaster:
    """Linear predictors say, as the token reaches a layer, which experts it will need there or some layers on."""

    def __init__(self, predictors: Sequence[LinearPredictor], count: int) -> None:
        self._predictors, self._count = predictors, count

    def for_token(self, contexts: Tokens) -> Mapping[int, Sequence[int]]:
        """Nothing: there is no hidden state yet."""
        return {}

    def for_layer(self, layer: int, hidden: Tensor) -> Mapping[int, Sequence[int]]:
        """The experts of the layers that the predictors reach from here."""
        return {
            layer + predictor.ahead: predictor.likely(layer, hidden, self._count)[0].tolist()
            for predictor in self._predictors
            if layer in predictor.weights
        }


class Both:
    """Tables at the token's beginning, a linear predictor's correction at each layer."""

    def __init__(self, tables: TableForecaster, linear: LinearForecaster) -> None:
        self.for_token, self.for_layer = tables.for_token, linear.for_layer


def run(measured: Measured, options: dict, slots: int, seconds: float, path: Path) -> dict:
    """One policy over the whole text."""
    options = dict(options)
    routing = TableRouting(measured.model, measured.tables, width=measured.context) if options.pop("routed", False) else None
    size = sum(p[0].numel() * p.element_size() for p in measured.model.model.layers[0].mlp.experts.parameters())
    link = Link(size / seconds) if seconds else Link()
    with OffloadedModel(measured.model, path, slots=slots, link=link, width=measured.context, **options) as offloaded:
        if routing is None:
            spent = measured.read()
        else:
            with routing:
                spent = measured.read()
    counts = offloaded.store.counts
    n = measured.tokens
    return {
        "times": 1000 * spent,
        "hits": {layer: count.hit_rate for layer, count in counts.items()},
        "hit": sum(c.hits for c in counts.values()) / sum(c.uses for c in counts.values()),
        "late": sum(c.late for c in counts.values()) / sum(c.uses for c in counts.values()),
        "transfers": sum(c.demanded + c.fetched for c in counts.values()) / n,
        "useless": sum(c.useless for c in counts.values()) / n,
        "waits": {layer: 1000 * count.waited / n for layer, count in counts.items()},
    }


def summary(found: list[dict]) -> dict:
    """Of each token the best of the rounds; all else from the middle round."""
    row = dict(found[len(found) // 2])
    row["ms"] = float(np.min([one.pop("times") for one in found], axis=0).mean())
    row.pop("times", None)
    return row


def transfer_for(measured: Measured, share: float, path: Path, rounds: int) -> tuple[float, float]:
    """Seconds of a transfer so that without memory this share of the time is transfer; and seconds per token without any."""
    everything = measured.model.config.num_experts
    compute = float(np.min([run(measured, {}, everything, 0.0, path)["times"] for _ in range(rounds)], axis=0).mean()) / 1000
    uses = len(gates(measured.model)) * measured.k
    return compute * share / (1 - share) / uses, compute


def cost_of_tables(measured: Measured, rounds: int) -> float:
    """Seconds per layer and token that tables in the gates' place take, more than the gates; nothing is offloaded."""
    plain, routed = [], []
    for _ in range(rounds):
        plain.append(measured.read())
        with TableRouting(measured.model, measured.tables, width=measured.context):
            routed.append(measured.read())
    more = np.min(routed, axis=0) - np.min(plain, axis=0)
    return float(more.mean()) / len(measured.tables)


def simulated(measured: Measured, slots: int, transfer: float, compute: float) -> dict[str, dict]:
    """The same policies in the simulator, with the measured times."""
    layers = len(measured.routes.layers)
    machine = Machine(slots, 1000 * transfer, 500 * compute / layers, 500 * compute / layers)
    contexts = measured.routes.contexts(measured.context)
    var = {layer: table.predict(contexts)[0] for layer, table in measured.tables.items()}
    same, ahead = (measured.linear_forecast(predictor) for predictor in measured.linear)
    pinned = most_used(measured.learned, slots - 2)
    cases = {
        "no memory": {"keep": Keep.NOTHING},
        "LRU": {},
        "LFU": {"keep": Keep.LFU},
        "frequency-pinned": {"keep": Keep.PINNED, "pinned": pinned},
        "linear, same layer": {"forecast": ExpertForecast(same, known=0)},
        "linear, one ahead": {"forecast": ExpertForecast({**same, **ahead}, known=1)},
        "VAR": {"forecast": ExpertForecast(var)},
        "VAR, kept by LFU": {"forecast": ExpertForecast(var), "keep": Keep.LFU},
        "everything known": {"forecast": ExpertForecast(dict(measured.routes.experts))},
    }
    found = {name: simulate(measured.routes, machine, **options) for name, options in cases.items()}
    rows = {
        name: {"ms": out.time_per_token, "hit": out.hit_rate, "transfers": out.transfers_per_token}
        for name, out in found.items()
    }
    for name, forecast in (("VAR", var), ("linear, same layer", same), ("linear, one ahead", ahead)):
        rows[name]["overlap"] = {
            layer: overlap(forecast[layer], measured.routes.experts[layer]) for layer in sorted(forecast)
        }
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the directory that scripts/train_tiny_olmoe.py wrote")
    parser.add_argument("--text", choices=tiny.HELD_OUT, default="fresh", help="what is read")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learn", type=int, default=200_000, help="tokens that tables and predictors learn from")
    parser.add_argument("--context", type=int, default=8)
    parser.add_argument("--transfer", type=float, help="milliseconds per expert")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = Measured(options.model, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts"
        transfer, compute = transfer_for(measured, 0.85, path, options.rounds)
        transfer = options.transfer / 1000 if options.transfer else transfer
        tables = cost_of_tables(measured, options.rounds)
        cases = policies(measured, options.slots)
        rounds: dict[str, list[dict]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, case in cases.items():
                rounds[name].append(run(measured, case, options.slots, transfer, path))
    rows = {name: summary(found) for name, found in rounds.items()}
    replayed = simulated(measured, options.slots, transfer, compute)
    if options.json:
        times = {"transfer_ms": 1000 * transfer, "compute_ms": 1000 * compute, "tables_ms": 1000 * tables}
        print(json.dumps({**times, "rows": rows, "simulated": replayed}))
        return
    size = sum(p[0].numel() * p.element_size() for p in measured.model.model.layers[0].mlp.experts.parameters())
    everything = measured.model.config.num_experts
    print(f"{measured.tokens} tokens of {options.text}, {options.slots} of {everything} experts of each layer in memory, "
          f"{size / 1024:.0f} KiB each; a transfer takes {1000 * transfer:.2f} ms ({size / transfer / 1e6:.0f} MB/s), "
          f"a token without transfers {1000 * compute:.2f} ms; tables in the gates' place {1000 * tables:.2f} ms more per "
          "layer and token")  # fmt: skip
    lru, pinned = rows["LRU"]["ms"], rows["frequency-pinned"]["ms"]
    linear = min(row["ms"] for name, row in rows.items() if name.startswith("linear"))
    print(f"{'':24}{'ms/token':>9}{'vs LRU':>8}{'vs pin':>8}{'vs lin':>8}{'hit':>7}{'late':>7}{'moved':>7}{'useless':>8}"
          "  hit rate by layer")  # fmt: skip
    for name, row in rows.items():
        print(f"{name:24}{row['ms']:9.2f}{lru / row['ms']:8.2f}{pinned / row['ms']:8.2f}{linear / row['ms']:8.2f}"
              f"{row['hit']:7.1%}{row['late']:7.1%}{row['transfers']:7.1f}{row['useless']:8.1f}  "
              + " ".join(f"{hit:.1%}" for hit in row["hits"].values()))  # fmt: skip
    print("\nsimulated with these times")
    print(f"{'':24}{'ms/token':>9}{'vs LRU':>8}{'hit':>7}{'moved':>7}  experts predicted, by layer")
    for name, row in replayed.items():
        print(f"{name:24}{row['ms']:9.2f}{replayed['LRU']['ms'] / row['ms']:8.2f}{row['hit']:7.1%}{row['transfers']:7.1f}  "
              + " ".join(f"{share:.1%}" for share in row.get("overlap", {}).values()))  # fmt: skip


if __name__ == "__main__":
    main()
