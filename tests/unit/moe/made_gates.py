"""A small gate in numpy, and text that goes through it."""

from __future__ import annotations

import numpy as np

from workflow_composer.moe.models.corpus import generate_realistic_corpus, hidden_states
from workflow_composer.moe.routing.learned_gate import LinearGate
from workflow_composer.moe.routing.system import VARSystem

WIDTH, EXPERTS, VOCABULARY = 16, 8, 200


def gate(seed=0, *, clear=10.0, ambiguous=2):
    """A gate by clusters of 16 tokens, of which the last few have no favourites."""
    drawing = np.random.default_rng(seed)
    bias = np.zeros((16, EXPERTS), np.float32)
    for cluster in range(16 - ambiguous):
        bias[cluster, drawing.permutation(EXPERTS)[:2]] = [clear, 0.75 * clear]
    return LinearGate((drawing.standard_normal((EXPERTS, WIDTH)) / 8).astype(np.float32), bias)


def text(size, seed=0):
    """Tokens [n] and hidden states [n, d]."""
    tokens = generate_realistic_corpus(size, VOCABULARY, seed=seed)
    return tokens, hidden_states(tokens, WIDTH, seed=0)


def taught(learned=None, **settings):
    """A system that has learned from 20,000 tokens; its clock stands still unless another is given."""
    system = VARSystem(learned or gate(), **{"clock": lambda: 0.0, **settings})
    system.precompute_statistics(*text(20_000))
    return system
