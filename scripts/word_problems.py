"""Arithmetic word problems with worked steps: what the embedded fleet is trained on and measured with.

A problem is a short story of two to five steps; its solution names each step and ends with ``#### RESULT``, the form of
GSM8K. A *template* is the sequence of sentence patterns that make up the story, without its names, things and numbers.
One template in eight, chosen by a hash of its patterns, is kept out of training; the shipped test problems come from
those alone, so they measure stories whose shape was never seen, not only new numbers.

    python scripts/word_problems.py --count 1000 --seed 2026 > problems.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HIGHEST = 199
HELD_OUT_ONE_IN = 8

PEOPLE = [
    ("Anna", "she"), ("Ben", "he"), ("Clara", "she"), ("David", "he"), ("Emma", "she"), ("Felix", "he"),
    ("Grace", "she"), ("Hugo", "he"), ("Ines", "she"), ("Jonas", "he"), ("Maria", "she"), ("Omar", "he"),
]  # fmt: skip
THINGS = [
    "pens", "books", "apples", "coins", "cards", "shells", "stamps", "eggs", "tickets", "marbles", "samples", "tubes",
    "seeds", "photos", "cups", "stones",
]  # fmt: skip
HOLDERS = ["boxes", "bags", "trays", "baskets"]
WORDS_OF_FACTOR = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}


@dataclass(frozen=True)
class Problem:
    """One problem. ``answer`` holds the worked steps and, behind ``####``, the result; ``template`` its patterns."""

    question: str
    answer: str
    template: str

    @property
    def result(self) -> int:
        """The number behind ``####``."""
        return int(self.answer.rsplit("#### ", 1)[1])


@dataclass
class _Story:
    """A story while it is being told: the running value, the value before it, and the sentences so far."""

    rng: random.Random
    who: str
    pronoun: str
    other: str
    thing: str
    value: int = 0
    earlier: int = 0
    sentences: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def step(self, left: int, sign: str, right: int, result: int) -> bool:
        """Record ``left sign right = result``; False where the result leaves the range the models are taught."""
        if not 0 < result <= HIGHEST:
            return False
        self.steps.append(f"{left} {sign} {right} = {result}.")
        self.earlier, self.value = self.value, result
        return True

    def say(self, sentence: str) -> None:
        """Add a sentence, its first letter a capital."""
        self.sentences.append(sentence[0].upper() + sentence[1:])


Move = Callable[[_Story], bool]


def _add(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        n = s.rng.randint(2, 30)
        s.say(pattern.format(n=n, who=s.who, he=s.pronoun, other=s.other, thing=s.thing))
        return s.step(s.value, "+", n, s.value + n)

    return move


def _subtract(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        if s.value < 4:
            return False
        n = s.rng.randint(2, min(30, s.value - 1))
        s.say(pattern.format(n=n, who=s.who, he=s.pronoun, other=s.other, thing=s.thing))
        return s.step(s.value, "-", n, s.value - n)

    return move


def _multiply(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        k = s.rng.randint(2, 5)
        s.say(pattern.format(k=k, times=WORDS_OF_FACTOR[k], who=s.who, he=s.pronoun, other=s.other, thing=s.thing))
        return s.value <= 40 and s.step(s.value, "*", k, s.value * k)

    return move


def _divide(pattern: str, by: int | None = None) -> Move:
    def move(s: _Story) -> bool:
        k = by or s.rng.randint(2, 5)
        s.say(pattern.format(k=k, who=s.who, he=s.pronoun, other=s.other, thing=s.thing))
        return s.value % k == 0 and s.step(s.value, "/", k, s.value // k)

    return move


def _distract(pattern: str) -> Move:
    """A sentence with a number that plays no part."""

    def move(s: _Story) -> bool:
        s.say(pattern.format(n=s.rng.randint(2, 30), who=s.who, he=s.pronoun, other=s.other))
        return True

    return move


def _start_with(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        s.value = s.rng.randint(3, 40)
        s.say(pattern.format(n=s.value, who=s.who, other=s.other, thing=s.thing))
        return True

    return move


def _start_with_sum(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        a, b = s.rng.randint(3, 40), s.rng.randint(3, 40)
        s.say(pattern.format(a=a, b=b, who=s.who, other=s.other, thing=s.thing))
        return s.step(a, "+", b, a + b)

    return move


def _start_with_product(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        a, b = s.rng.randint(2, 9), s.rng.randint(2, 12)
        s.say(pattern.format(a=a, b=b, who=s.who, other=s.other, thing=s.thing, holders=s.rng.choice(HOLDERS)))
        return s.step(a, "*", b, a * b)

    return move


def _ask(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        s.say(pattern.format(who=s.who, he=s.pronoun, other=s.other, thing=s.thing))
        return bool(s.steps)

    return move


def _ask_together(pattern: str) -> Move:
    """Only behind a comparison: the earlier value and the present one are added."""

    def move(s: _Story) -> bool:
        s.say(pattern.format(who=s.who, other=s.other, thing=s.thing))
        return s.earlier > 0 and s.step(s.earlier, "+", s.value, s.earlier + s.value)

    return move


def _ask_price(pattern: str) -> Move:
    def move(s: _Story) -> bool:
        k = s.rng.randint(2, 5)
        s.say(pattern.format(k=k, who=s.who, thing=s.thing))
        return s.value <= 40 and s.step(s.value, "*", k, s.value * k)

    return move


STARTS: dict[str, Move] = {
    "has": _start_with("{who} has {n} {thing}."),
    "starts": _start_with("{who} starts the day with {n} {thing}."),
    "counts": _start_with("on Monday {who} counts {n} {thing}."),
    "red-blue": _start_with_sum("{who} has {a} red {thing} and {b} blue {thing}."),
    "two-days": _start_with_sum("{who} finds {a} {thing} on Monday and {b} on Friday."),
    "holders": _start_with_product("{who} has {a} {holders} with {b} {thing} in each."),
    "rows": _start_with_product("{who} puts {thing} in {a} rows of {b}."),
}
MOVES: dict[str, Move] = {
    "find": _add("then {he} finds {n} more."),
    "buy": _add("{he} buys {n} more {thing}."),
    "get": _add("{other} gives {n} more to {who}."),
    "lose": _subtract("then {he} loses {n}."),
    "give": _subtract("{he} gives {n} of them to {other}."),
    "use": _subtract("{he} uses {n} {thing} at school."),
    "break": _subtract("after lunch {n} of them break."),
    "grow": _multiply("then the number grows to {times} as many."),
    "machine": _multiply("a machine makes {k} out of each one."),
    "half": _divide("{he} sells half of them.", by=2),
    "share": _divide("{he} shares them equally among {k} friends and looks at one share."),
    "distract-age": _distract("{other} is {n} years old."),
    "distract-trip": _distract("the way home takes {n} minutes."),
}
COMPARISONS: dict[str, Move] = {
    "more-than": _add("{other} has {n} more {thing} than {who}."),
    "fewer-than": _subtract("{other} has {n} fewer {thing} than {who}."),
    "times-as": _multiply("{other} has {times} as many {thing} as {who}."),
}
QUESTIONS: dict[str, Move] = {
    "now": _ask("how many {thing} does {who} have now?"),
    "there": _ask("how many {thing} are there in the end?"),
    "price": _ask_price("each one costs {k} euros. How much do they cost together?"),
}
QUESTIONS_OF_TWO: dict[str, Move] = {
    "other": _ask("how many {thing} does {other} have?"),
    "together": _ask_together("how many {thing} do they have together?"),
}
STEPS_WEIGHTS = {2: 0.30, 3: 0.35, 4: 0.22, 5: 0.13}


def is_held_out(template: str) -> bool:
    """Whether a template belongs to the test problems; a fixed one in eight."""
    return hashlib.sha256(template.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def _attempt(rng: random.Random) -> Problem | None:
    (who, pronoun), (other, _) = rng.sample(PEOPLE, 2)
    story = _Story(rng, who, pronoun, other, rng.choice(THINGS))
    wanted = rng.choices(list(STEPS_WEIGHTS), weights=list(STEPS_WEIGHTS.values()))[0]
    names: list[str] = []

    def play(group: dict[str, Move]) -> bool:
        name = rng.choice(list(group))
        names.append(name)
        return group[name](story)

    of_two = rng.random() < 0.3
    if not play(STARTS):
        return None
    while len(story.steps) < wanted - (2 if of_two else 1):
        if not play(MOVES):
            return None
    if of_two and not play(COMPARISONS):
        return None
    if not of_two and rng.random() < 0.7 and not play(MOVES):
        return None
    if not play(QUESTIONS_OF_TWO if of_two else QUESTIONS):
        return None
    if not 2 <= len(story.steps) <= 5 or sum(n.startswith("distract") for n in names) > 1:
        return None
    answer = " ".join([*story.steps, f"#### {story.value}"])
    return Problem(" ".join(story.sentences), answer, " ".join(names))


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """An endless, reproducible stream of problems from the trained (or the held-out) templates."""
    rng = random.Random(seed)
    while True:
        problem = _attempt(rng)
        if problem is not None and is_held_out(problem.template) == held_out:
            yield problem


def drills(seed: int) -> Iterator[Problem]:
    """An endless stream of single steps ("What is 12 + 7?"), which teach the arithmetic at a tenth of the tokens."""
    rng = random.Random(seed)
    while True:
        sign = rng.choice("++--**/")
        if sign == "+":
            a, b = rng.randint(2, 150), rng.randint(2, 99)
            result = a + b
        elif sign == "-":
            a = rng.randint(4, HIGHEST)
            b = rng.randint(2, min(30, a - 1))
            result = a - b
        elif sign == "*":
            a, b = rng.randint(2, 40), rng.randint(2, 12)
            result = a * b
        else:
            b, result = rng.randint(2, 5), rng.randint(1, 60)
            a = b * result
        if result <= HIGHEST and a <= HIGHEST:
            yield Problem(f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {result}. #### {result}", f"drill {sign}")


def main() -> None:
    """Print held-out problems as JSON lines, no question twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    seen: set[str] = set()
    for problem in problems(options.seed, held_out=True):
        if problem.question not in seen:
            seen.add(problem.question)
            row = {"question": problem.question, "answer": problem.answer, "template": problem.template}
            sys.stdout.write(json.dumps(row) + "\n")
        if len(seen) == options.count:
            return


if __name__ == "__main__":
    main()
