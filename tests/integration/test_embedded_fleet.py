"""The shipped checkpoints answer as their model card says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import re
import subprocess
import sys

import pytest

from tests.paths import CHECKPOINTS, ROOT
from workflow_composer.answers import final_answer, same_answer
from workflow_composer.backends.embedded.backend import EmbeddedBackend
from workflow_composer.config.strategy import ModelSpec
from workflow_composer.types import LLMRequest, ModelCall

MODELS = ("small", "medium", "large")
COUNT = 100
ROW = re.compile(r"\| (\w+) \| ([\d,]+) \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \|")

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mistralrs") is None, reason="pip install '.[embedded]'"),
]


@pytest.fixture(scope="module")
def card():
    """The measured shares by model: greedy, majority of 8, any of 8."""
    rows = ROW.findall((CHECKPOINTS / "README.md").read_text())
    return {name: [float(share) / 100 for share in shares] for name, _, *shares in rows}


@pytest.fixture(scope="module")
def problems():
    """The first of the shipped problems."""
    lines = (CHECKPOINTS / "problems.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:COUNT]]


async def right_answers(model, problems, samples, temperature):
    """For each problem, how many of the samples are right."""
    backend = EmbeddedBackend(ModelSpec(name=model, backend="embedded", path=model), None)
    calls = [ModelCall(LLMRequest.of(p["question"]), samples=samples, temperature=temperature) for p in problems]
    completions = await asyncio.gather(*map(backend.complete, calls))
    await backend.close()
    return [
        sum(same_answer(final_answer(sample.text), final_answer(problem["answer"])) for sample in completion.samples)
        for problem, completion in zip(problems, completions, strict=True)
    ]


@pytest.mark.parametrize("model", MODELS)
async def test_greedy_accuracy_is_what_the_card_says(model, card, problems):
    """On a part of the problems, the share of right answers lies within four standard deviations of the card's."""
    share = sum(await right_answers(model, problems, 1, 0.0)) / COUNT
    stated = card[model][0]
    assert abs(share - stated) < 4 * math.sqrt(stated * (1 - stated) / COUNT)


def test_the_card_s_figures_make_a_cascade_worth_while(card):
    """Each size is clearly better than the one before, and sampling finds right answers that greedy decoding misses."""
    assert tuple(card) == MODELS
    greedy = [card[model][0] for model in MODELS]
    assert greedy[0] + 0.1 < greedy[1]
    assert greedy[1] + 0.05 < greedy[2]
    for shares in card.values():
        assert shares[2] > shares[0]


async def test_samples_differ_so_that_votes_say_something(problems):
    """At temperature 0.7 the small model is sometimes right and sometimes wrong about the same problem."""
    right = await right_answers("small", problems[:30], 8, 0.7)
    assert sum(0 < count < 8 for count in right) >= 5


async def test_answers_end_and_show_their_steps(problems):
    """An answer stops by itself and ends with a result, in the form of the data it was trained on."""
    backend = EmbeddedBackend(ModelSpec(name="large", backend="embedded", path="large"), None)
    for problem in problems[:10]:
        (sample,) = (await backend.complete(ModelCall(LLMRequest.of(problem["question"])))).samples
        assert sample.finish_reason == "stop"
        assert re.fullmatch(r"(\d+ [-+*/] \d+ = \d+\. )+#### \d+", sample.text)
    await backend.close()


def test_the_fleet_stays_small():
    """The weights travel with the package."""
    weights = [path.stat().st_size for path in CHECKPOINTS.rglob("*.safetensors")]
    assert len(weights) == len(MODELS)
    assert sum(weights) < 20_000_000


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_the_models_share_one_tokenizer(file):
    """A prompt costs the same tokens in every tier."""
    assert len({(CHECKPOINTS / model / file).read_bytes() for model in MODELS}) == 1


def test_the_script_measures_what_the_card_shows():
    """A short run prints one row per model, in the card's form."""
    script = ROOT / "scripts" / "evaluate_embedded_fleet.py"
    command = [sys.executable, str(script), "--only", "small", "--limit", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ((name, count, *_),) = ROW.findall(done.stdout)
    assert (name, int(count.replace(",", ""))) == ("small", 260_352)
    assert "small: 8 at t=0.7: 10/10" in done.stderr
