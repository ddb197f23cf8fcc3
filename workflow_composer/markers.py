"""Routing strings: cascades and votes as one word. Pure: parses text to a `Plan`; ``str(plan)`` reverses it.

================================================  ===================================================================
``Qwen/Qwen2.5-Math-7B-Instruct``                 a model's name: one greedy answer
``mv_7B_k8_t0.7``                                 majority vote of eight samples at temperature 0.7
``mv_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0``  cascade: escalates to the next tier if the vote is not confident
``mv_entropy_cascade_...``                        the same, with one more draw if more samples could decide the vote
================================================  ===================================================================

The string is parsed from left to right: a tier's name extends to its ``kN``; ``tT`` may follow. One sample is always greedy
(temperature 0.0), several are always sampled (0.7 by default). A greedy-only tier always takes one greedy sample. Changes to
what was written are listed in ``Plan.notes``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from workflow_composer.answers.form import OutputForm
from workflow_composer.errors import MarkerError
from workflow_composer.plan import Candidate, Plan, Tier, Voting

VOTE = "mv_"
CASCADE = "mv_cascade_"
ENTROPY_CASCADE = "mv_entropy_cascade_"

MOST_SAMPLES = 1024
SAMPLED_TEMPERATURE = 0.7
HIGHEST_TEMPERATURE = 2.0

_SAMPLES = re.compile(r"k([0-9]+)", re.ASCII)
_TEMPERATURE = re.compile(r"t([0-9]{1,2}(?:\.[0-9]{1,3})?)", re.ASCII)
_MISWRITTEN = re.compile(r"k[0-9+.-].*|k|t[0-9+-]*\.[0-9.]*", re.ASCII | re.DOTALL)
"""Words not allowed in a tier's name, because they look like samples or a temperature."""


@dataclass(frozen=True, slots=True)
class KnownTier:
    """A tier's candidates and its settings in the profile.

    ``target`` is the minimum confidence to accept its vote (None: the vote's own target); ``deadline`` in seconds,
    ``budget`` in dollars, ``form`` and ``retries`` are as in `Tier`.
    """

    candidates: tuple[Candidate, ...]
    greedy_only: bool = False
    temperature: float = SAMPLED_TEMPERATURE
    target: float | None = None
    deadline: float | None = None
    budget: float | None = None
    form: OutputForm | None = None
    retries: int = 2

    @property
    def model(self) -> str:
        """The first candidate's model."""
        return self.candidates[0].name


def _qwen_math(size: str, *, greedy_only: bool = False) -> KnownTier:
    return KnownTier((Candidate(f"Qwen/Qwen2.5-Math-{size}-Instruct", local=False),), greedy_only)


DEFAULT_TIERS: Mapping[str, KnownTier] = {
    "1.5B": _qwen_math("1.5B"),
    "7B": _qwen_math("7B"),
    "72B": _qwen_math("72B", greedy_only=True),  # several sequences do not fit into memory beside its weights
}
"""Default meaning of sizes, unless the profile has tiers of these names."""

Lookup = Callable[[str], KnownTier]


def known_tier(name: str) -> KnownTier:
    """Return a tier of `DEFAULT_TIERS`; any other name is taken as a model's name."""
    return DEFAULT_TIERS.get(name) or KnownTier((Candidate(name, local=False),))


def is_routing_string(text: str) -> bool:
    """Whether a text is a routing string, valid or not, rather than a model's name."""
    return isinstance(text, str) and text.startswith(VOTE)


def can_name_tier(name: str) -> bool:
    """Whether a tier of this name can be used unambiguously in routing strings."""
    try:
        (tier,) = parse_route(f"{VOTE}{name}_k2").tiers
    except (MarkerError, ValueError):
        return False
    return tier.name == name and not is_routing_string(name)


def is_cascade_marker(text: str) -> bool:
    """Whether a text is a cascade's routing string, valid or not.

    >>> is_cascade_marker("mv_cascade_7B_k5_t0.7_72B_k1_t0.0"), is_cascade_marker("mv_7B_k8_t0.7")
    (True, False)
    """
    return isinstance(text, str) and text.startswith((CASCADE, ENTROPY_CASCADE))


def parse_cascade_marker(text: str, lookup: Lookup = known_tier) -> list[tuple[str, int, float]]:
    """Return model, samples and temperature of each tier of a cascade, as they will run.

    Raises `MarkerError` if the text is not a cascade.

    >>> parse_cascade_marker("mv_cascade_1.5B_k4_72B_k4_t0.7")
    [('Qwen/Qwen2.5-Math-1.5B-Instruct', 4, 0.7), ('Qwen/Qwen2.5-Math-72B-Instruct', 1, 0.0)]
    """
    if not is_cascade_marker(text):
        raise MarkerError(
            text, 0, len(text) if isinstance(text, str) else 0, f"not a cascade: it does not start with {CASCADE}"
        )
    plan = parse_route(text, lookup)
    members = [tier.members[0] for tier in plan.tiers]
    return [(member.candidates[0].name, member.samples, member.temperature or 0.0) for member in members]


def parse_route(text: str, lookup: Lookup = known_tier, *, voting: Voting | None = None, draws: int = 1) -> Plan:
    """Parse a routing string or a model's name to a plan; ``str(plan)`` is the string in normal form.

    ``lookup`` resolves a tier's name; ``voting`` says how votes are counted; an entropy cascade may draw a tier's samples up
    to ``draws`` more times. Raises `MarkerError` with the faulty part, and what ``lookup`` raises.

    >>> str(parse_route("mv_cascade_1.5B_k4_7B_k4_t0.70_72B_k1"))
    'mv_cascade_1.5B_k4_t0.7_7B_k4_t0.7_72B_k1_t0.0'
    >>> parse_route("mv_7B_k0")
    Traceback (most recent call last):
        ...
    workflow_composer.errors.MarkerError: routing string 'mv_7B_k0': at 'k0' (character 7): k must be 1 to 1024
    """
    _check_text(text)
    if not is_routing_string(text):
        known = lookup(text)
        return Plan((Tier.of(known.candidates, text, temperature=0.0, deadline=known.deadline, budget=known.budget),))
    entropy = text.startswith(ENTROPY_CASCADE)
    start = len(ENTROPY_CASCADE if entropy else CASCADE if text.startswith(CASCADE) else VOTE)
    steps = _steps(text, start)
    if start == len(VOTE) and len(steps) > 1:
        raise MarkerError(text, *steps[1].place, f"a vote has only one tier; a cascade starts with {CASCADE}")
    voting = voting or Voting()
    notes: list[str] = []
    tiers = []
    for position, step in enumerate(steps):
        known = lookup(step.name)
        samples, temperature = _settled(step, known, notes)
        last = position + 1 == len(steps)
        own = replace(
            voting,
            target=voting.target if known.target is None else known.target,
            explore=samples * draws if entropy and samples > 1 and not last else 0,
        )
        tiers.append(
            Tier.of(
                known.candidates,
                step.name,
                samples,
                temperature,
                voting=own,
                deadline=known.deadline,
                budget=known.budget,
                output_form=known.form,
                retries=known.retries,
            )
        )
    return Plan(tuple(tiers), notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Step:
    """One tier as written. ``place`` is its span in the string: start and end."""

    name: str
    samples: int
    temperature: float | None
    place: tuple[int, int]


def _check_text(text: str) -> None:
    if not isinstance(text, str) or not text:
        raise MarkerError(text, 0, 0, "it is empty" if text == "" else f"it is a {type(text).__name__}, not text")
    for at, character in enumerate(text):
        if not character.isprintable() or character.isspace():
            raise MarkerError(text, at, at + 1, "character not allowed in a model's name")


def _steps(text: str, start: int) -> list[_Step]:
    """Parse the tiers as written, in one pass over the words between underscores."""
    words, at = [], start
    for word in text[start:].split("_"):
        words.append((word, at))
        at += len(word) + 1
    steps: list[_Step] = []
    first = position = 0
    while position < len(words):
        word, at = words[position]
        found = _SAMPLES.fullmatch(word)
        if not found:
            if _MISWRITTEN.fullmatch(word):
                raise MarkerError(text, at, at + len(word), "neither a tier's name nor kN_tT, such as k4_t0.7")
            position += 1
            continue
        name = text[words[first][1] : max(at - 1, words[first][1])]
        if position == first or not name.strip("_"):
            raise MarkerError(text, at, at + len(word), "no tier's name before it")
        samples = _count(text, found[1], at, word)
        temperature, position = _temperature(text, words, position + 1)
        steps.append(_Step(name, samples, temperature, (words[first][1], at + len(word))))
        first = position
    if first < len(words):
        at = words[first][1]
        raise MarkerError(text, at, len(text), "kN with the number of samples is missing after it")
    return steps


def _count(text: str, digits: str, at: int, word: str) -> int:
    samples = int(digits) if len(digits) <= 6 else MOST_SAMPLES + 1
    if not 1 <= samples <= MOST_SAMPLES:
        raise MarkerError(text, at, at + len(word), f"k must be 1 to {MOST_SAMPLES}")
    return samples


def _temperature(text: str, words: list[tuple[str, int]], position: int) -> tuple[float | None, int]:
    """Parse the optional temperature after a tier's ``kN``; return it and the next position."""
    if position == len(words):
        return None, position
    word, at = words[position]
    found = _TEMPERATURE.fullmatch(word)
    if not found:
        if word.startswith("t") and word[1:2] in "+-.0123456789":
            raise MarkerError(text, at, at + len(word), "write a temperature as t and a number, such as t0.7")
        return None, position
    temperature = float(found[1])
    if temperature > HIGHEST_TEMPERATURE:
        raise MarkerError(text, at, at + len(word), f"the temperature must be 0 to {HIGHEST_TEMPERATURE:g}")
    return temperature, position + 1


def _settled(step: _Step, known: KnownTier, notes: list[str]) -> tuple[int, float]:
    """Return samples and temperature as they will run; add changes to ``notes``."""
    if known.greedy_only and (step.samples > 1 or step.temperature):
        notes.append(f"{step.name} is greedy-only: one sample at temperature 0 instead of {step.samples}")
        return 1, 0.0
    if step.samples == 1:
        if step.temperature:
            notes.append(f"{step.name}: one sample is always greedy; temperature 0 instead of {step.temperature:g}")
        return 1, 0.0
    if step.temperature is None:
        return step.samples, known.temperature
    if step.temperature == 0.0:
        notes.append(
            f"{step.name}: {step.samples} samples at temperature 0 would be identical; {known.temperature:g} instead"
        )
        return step.samples, known.temperature
    return step.samples, step.temperature
