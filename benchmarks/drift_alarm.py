"""The alarm on audited answers: its rate of false alarms, and the number of audits to detect a higher error rate.

    python benchmarks/drift_alarm.py [--runs 1000] [--audits 5000] [--seed 0] [--json]

*False alarms*: the error is alpha (the most that is allowed) or below it for the whole run, and the alarm is looked at after
every audit. *Drift*: the error is alpha until the change and higher from then on; audits are counted from the change to the
alarm, over the runs that had none before. *One tier*: among six tiers with equally many audits, all at half of alpha, one
goes bad; with a test for each tier (`StratifiedMonitor`, as served) and with one for all together.

Besides the e-value of `workflow_composer.calibration.monitoring.error_monitor`: a binomial test at 5 % that is repeated
after every audit, which is what a dashboard does that shows a p-value; and, where it is installed, MAPIE's `RiskMonitoring`
(Podkopaev and Ramdas 2022) with alpha as its threshold and its online level at 5 %, at one alpha and in fewer runs, as it
takes a millisecond per audit. MAPIE bounds the error of all audits so far, not that of the next: the same question as long
as nothing changes, and a slower answer behind a long time in which all was well.

Runs are simulated side by side in numpy; the first ones are put through the class that serves, and both must agree.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from workflow_composer.calibration.monitoring.error_monitor import (
    ODDS_RATIOS,
    RiskMonitor,
    StratifiedMonitor,
    weight_to_come,
)

LEVEL = 0.05
ALPHAS = (0.02, 0.05, 0.1, 0.2)
NEVER = np.iinfo(np.int64).max
Flags = NDArray[np.bool_]


def simulate(generator: np.random.Generator, runs: int, before: tuple[int, float], behind: tuple[int, float]) -> Flags:
    """Which audits are wrong, by run and audit: so many at one error, then so many at another."""
    parts = [generator.random((runs, count)) < error for count, error in (before, behind)]
    return np.concatenate(parts, axis=1)


def e_values(wrong: Flags, alpha: float) -> NDArray[np.float64]:
    """The e-value behind every audit of every run, as `RiskMonitor` has it."""
    odds = alpha / (1 - alpha) * np.array(ODDS_RATIOS)
    q = odds / (1 + odds)
    sums = np.zeros((len(wrong), len(q)))
    found = np.empty(wrong.shape)
    for n in range(wrong.shape[1]):
        factors = np.where(wrong[:, n, None], q / alpha, (1 - q) / (1 - alpha))
        sums = np.minimum(1e300, (sums + weight_to_come(n) - weight_to_come(n + 1)) * factors)
        found[:, n] = sums.mean(axis=1) + weight_to_come(n + 1)
    return found


def first(raised: Flags) -> NDArray[np.int64]:
    """The audit, counted from 1, at which each run's alarm is raised; NEVER where it is not."""
    return np.where(raised.any(axis=1), raised.argmax(axis=1) + 1, NEVER)


def by_e_value(wrong: Flags, alpha: float) -> NDArray[np.int64]:
    """The alarm as it is served."""
    return first(e_values(wrong, alpha) >= 1 / LEVEL)


def by_repeated_test(wrong: Flags, alpha: float) -> NDArray[np.int64]:
    """A binomial test of all audits so far, behind each of them."""
    critical = binom.isf(LEVEL, np.arange(1, wrong.shape[1] + 1), alpha) + 1
    return first(np.cumsum(wrong, axis=1) >= critical)


def by_mapie(wrong: Flags, alpha: float) -> NDArray[np.int64]:
    """MAPIE's monitor; the alarm is the first audit at which its lower bound of the risk is above alpha."""
    from mapie.exchangeability_testing import RiskMonitoring

    found = []
    for run in wrong:
        # Half of its level is for the audits; "accuracy" it turns into the risk of being wrong.
        monitor = RiskMonitoring("accuracy", test_level=2 * LEVEL, threshold=alpha, warn=False)
        monitor.update(np.zeros(len(run), dtype=int), run.astype(int))
        found.append(first((monitor.online_risk_lower_bound_sequence_history > alpha)[None, :])[0])
    return np.array(found)


def check_against_the_class(wrong: Flags, alpha: float) -> None:
    """Put runs through the class that serves; both must have the same evidence and the same alarm."""
    values, alarms = e_values(wrong, alpha), by_e_value(wrong, alpha)
    for run, value, alarm in zip(wrong, values, alarms, strict=True):
        monitor = RiskMonitor(alpha, LEVEL)
        for audit in run:
            monitor.observe(bool(audit))
        assert math.isclose(monitor.e_value, value[-1], rel_tol=1e-6)
        assert (monitor.alarm_at or NEVER) == alarm


def false_alarms(generator: np.random.Generator, runs: int, audits: int) -> list[dict[str, object]]:
    """Runs with an alarm although at most alpha was wrong."""
    rows = []
    for alpha in ALPHAS:
        for part in (1.0, 0.8, 0.5):
            wrong = simulate(generator, runs, (audits, part * alpha), (0, 0))
            check_against_the_class(wrong[:3], alpha)
            rules = {"e-value": by_e_value, "repeated test": by_repeated_test}
            found = {name: float((rule(wrong, alpha) < NEVER).mean()) for name, rule in rules.items()}
            rows.append({"alpha": alpha, "error": part * alpha, **found})
    return rows


def drift(generator: np.random.Generator, runs: int) -> list[dict[str, object]]:
    """Audits from the change to the alarm: median and 95 % of the runs that had no alarm before."""
    rows = []
    for alpha in ALPHAS:
        for after in (0, 200, 1000):
            for error in sorted({2 * alpha, 3 * alpha, 0.5}):
                stated = math.ceil(RiskMonitor(alpha, LEVEL).audits_to_alarm(error, after))
                wrong = simulate(generator, runs, (after, alpha), (6 * stated, error))
                check_against_the_class(wrong[:3], alpha)
                median, most = _waits(by_e_value(wrong, alpha), after)
                rows.append(
                    {"alpha": alpha, "after": after, "error": error, "stated": stated, "median": median, "95 %": most}
                )
    return rows


def beside_mapie(generator: np.random.Generator, runs: int) -> list[dict[str, object]]:
    """Both monitors on the same runs: median and 95 % of the audits from the change to the alarm."""
    rows, alpha = [], 0.1
    for after in (0, 200, 1000):
        for error in (0.2, 0.3, 0.5):
            most = 6 * math.ceil(RiskMonitor(alpha, LEVEL).audits_to_alarm(error, after))
            wrong = simulate(generator, runs, (after, alpha), (most, error))
            waits = [list(_waits(rule(wrong, alpha), after)) for rule in (by_e_value, by_mapie)]
            rows.append({"after": after, "error": error, "e-value": waits[0], "MAPIE": waits[1], "audits simulated": most})
    return rows


def _waits(alarms: NDArray[np.int64], after: int) -> tuple[int | None, int | None]:
    """Median and 95 % of the audits from a change to the alarm; None where it was not raised in what was simulated."""
    waits = np.sort(alarms[alarms > after])
    found = [waits[math.ceil(share * len(waits)) - 1] for share in (0.5, 0.95)]
    median, most = (None if wait == NEVER else int(wait) - after for wait in found)
    return median, most


def one_tier(runs: int, seed: int) -> list[dict[str, object]]:
    """Audits of all six tiers until the alarm when one of them goes bad; None: not within 6,000 behind the change."""
    rows, alpha, after = [], 0.1, 600
    for error in (0.2, 0.3, 0.5):
        each: dict[str, list[float]] = {"for each tier": [], "for all together": []}
        for run in range(runs):
            draw, monitor = random.Random(f"{seed} {run} {error}"), StratifiedMonitor(alpha, LEVEL)
            at: dict[str, float] = dict.fromkeys(each, math.inf)
            for n in range(after + 6000):
                tier = draw.randrange(6)
                monitor.observe(draw.random() < (error if tier == 5 and n >= after else alpha / 2), str(tier))
                for name, alarmed in zip(each, (monitor.alarmed, monitor.whole.alarmed), strict=True):
                    if alarmed:
                        at[name] = min(at[name], n + 1 - after)
                if max(at.values()) < math.inf:
                    break
            for name, audits in at.items():
                each[name].append(audits)
        medians = {name: sorted(waits)[len(waits) // 2] for name, waits in each.items()}
        rows.append({"error": error, **{name: None if math.isinf(m) else int(m) for name, m in medians.items()}})
    return rows


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(map(_cell, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _print(title: str, rows: list[dict[str, object]], shares: bool = False) -> None:
    print(f"\n{title}\n")
    names = list(rows[0])
    print("|", " | ".join(names), "|\n|", " | ".join("---" for _ in names), "|")
    for row in rows:
        cells = [f"{v:.1%}" if shares and n not in ("alpha", "error") else _cell(v) for n, v in row.items()]
        print("|", " | ".join(cells), "|")


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--audits", type=int, default=5000, help="of each run without drift")
    parser.add_argument("--mapie-runs", type=int, default=20, help="0 leaves the comparison out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="mapie")
    generator = np.random.default_rng(options.seed)
    found: dict[str, list[dict[str, object]]] = {
        "false_alarms": false_alarms(generator, options.runs, options.audits),
        "drift": drift(generator, options.runs),
        "one_tier": one_tier(max(1, options.runs // 20), options.seed),
    }
    if options.mapie_runs and find_spec("mapie"):
        found["beside_mapie"] = beside_mapie(generator, options.mapie_runs)
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        return
    print(f"{options.runs} runs each; Python {platform.python_version()}, numpy {np.__version__}")
    _print(f"Runs with a false alarm within {options.audits} audits (level {LEVEL:.0%})", found["false_alarms"], shares=True)
    _print("Audits from the change to the alarm", found["drift"])
    _print("One of six tiers goes bad behind 600 audits: median of audits, of all tiers, to the alarm", found["one_tier"])
    if "beside_mapie" in found:
        title = f"Audits from the change to the alarm, alpha .1: median / 95 % of {options.mapie_runs} runs"
        _print(f"{title}; MAPIE {version('mapie')}", found["beside_mapie"])


if __name__ == "__main__":
    main()
