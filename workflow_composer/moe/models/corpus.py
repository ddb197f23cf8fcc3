"""Synthetic text and a synthetic task for demonstrations, with word frequencies and bigrams as in real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflow_composer.errors import InputError
from workflow_composer.moe.routing.arrays import numbers
from workflow_composer.moe.routing.learned_gate import GateOutput

Floats = NDArray[np.float32]


def generate_realistic_corpus(
    num_tokens: int = 200_000,
    vocabulary: int = 1000,
    *,
    exponent: float = 1.1,
    bigram_share: float = 0.4,
    successors: int = 3,
    repeated_share: float = 0.15,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return token ids [num_tokens], deterministic for a given ``seed``.

    Token r has a frequency proportional to (r + 1) ** -``exponent`` (Zipf). The share ``bigram_share`` of the tokens is
    drawn from the ``successors`` fixed successors of the previous token. About the share ``repeated_share`` of the text
    repeats phrases of 4 to 12 tokens from the last thousand, as names and terms do in real text. Raises `InputError` for
    sizes below 1.
    """
    if min(num_tokens, vocabulary, successors) < 1 or not (0 <= bigram_share <= 1 and 0 <= repeated_share <= 1):
        raise InputError("num_tokens, vocabulary and successors must be at least 1, and shares from 0 to 1")
    drawing = np.random.default_rng(seed)
    frequency = np.arange(1, vocabulary + 1, dtype=np.float64) ** -exponent
    words = np.arange(vocabulary)
    follows = drawing.choice(words, (vocabulary, successors), p=frequency / frequency.sum())
    tokens: list[int] = drawing.choice(words, num_tokens, p=frequency / frequency.sum()).tolist()
    joined = np.flatnonzero(drawing.random(num_tokens) < bigram_share)
    which = drawing.integers(successors, size=num_tokens)
    for at in joined.tolist():
        if at:
            tokens[at] = int(follows[tokens[at - 1], which[at]])
    text = np.array(tokens, np.int64)
    for at in np.flatnonzero(drawing.random(num_tokens) < repeated_share / 8).tolist():
        length, back = int(drawing.integers(4, 13)), int(drawing.integers(13, 1000))
        if at >= back and at + length <= num_tokens:
            text[at : at + length] = text[at - back : at - back + length]
    return text


def hidden_states(
    tokens: NDArray[np.int64], hidden_dim: int, *, context: float = 0.3, noise: float = 0.1, seed: int = 0
) -> Floats:
    """Return [n, hidden_dim]: each token's embedding, plus ``context`` times the previous one, plus ``noise`` times noise.

    Each of the three has unit variance.
    """
    drawing = np.random.default_rng(seed)
    embedding = drawing.standard_normal((int(tokens.max()) + 1, hidden_dim), np.float32)
    before = np.concatenate([tokens[:1], tokens[:-1]])
    found: Floats = embedding[tokens] + np.float32(context) * embedding[before]
    found += np.float32(noise) * np.random.default_rng(seed + 1).standard_normal(found.shape, np.float32)
    return found


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Accuracy with the learned router's routes, and with other routes.

    ``relative`` is the second divided by the first; ``agreement`` is the share of the gate's weight that the other routes
    keep.
    """

    learned_accuracy: float
    accuracy: float
    agreement: float

    @property
    def relative(self) -> float:
        """Accuracy relative to the learned router's."""
        return self.accuracy / self.learned_accuracy if self.learned_accuracy else 0.0


def evaluate_downstream_task(
    gate: GateOutput, experts: Any, weights: Any, hidden: Any, *, classes: int = 4, seed: int = 0
) -> TaskResult:
    """Evaluate routes: each expert is a fixed random map to ``classes``, and the largest weighted sum is the answer.

    ``gate`` has the learned router's decisions for ``hidden`` [n, d]; ``experts`` [n, k] and ``weights`` [n, k] are the
    routes to evaluate. The correct class is that of the dense mixture: all experts, weighted by the gate's probabilities.
    """
    logits = numbers(gate.logits).astype(np.float64)
    states = numbers(hidden).astype(np.float32)
    n, count = logits.shape
    maps = np.random.default_rng(seed).standard_normal((count, states.shape[1], classes)).astype(np.float32)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    dense = np.zeros((n, count))
    dense[:] = raised / raised.sum(axis=1, keepdims=True)
    sparse = [_spread(numbers(e), numbers(w), count) for e, w in ((gate.experts, gate.weights), (experts, weights))]
    right, learned, mine = (_answers(share, states, maps) for share in (dense, *sparse))
    kept = np.minimum(sparse[0] > 0, sparse[1] > 0) * sparse[0]
    agreement = float(kept.sum() / sparse[0].sum())
    return TaskResult(float(np.mean(learned == right)), float(np.mean(mine == right)), agreement)


def _spread(experts: NDArray[np.integer[Any]], weights: Floats, count: int) -> NDArray[np.float64]:
    found = np.zeros((len(experts), count))
    np.put_along_axis(found, experts.astype(np.int64), weights.astype(np.float64), axis=1)
    return found


def _answers(shares: NDArray[np.float64], states: Floats, maps: Floats) -> NDArray[np.int64]:
    total = np.zeros((len(states), maps.shape[2]))
    for expert in range(len(maps)):
        used = np.flatnonzero(shares[:, expert] > 0)
        total[used] += shares[used, expert, None] * (states[used] @ maps[expert])
    answer: NDArray[np.int64] = total.argmax(axis=1)
    return answer
