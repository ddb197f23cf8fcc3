"""Checks and explains solutions such as ``6 * 7 = 42. 42 + 23 = 65. #### 65``."""

import re
from fractions import Fraction

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
WORDS = {"+": "{} and {} make {}", "-": "{} less {} leaves {}", "*": "{} times {} is {}", "/": "{} shared by {} is {}"}


def value_of(left: str, sign: str, right: str) -> Fraction | None:
    """Return what a step really is."""
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]


def check(solution: str) -> str | None:
    """Return what is wrong with a solution; None: its steps are right, and lead to its answer."""
    steps = STEP.findall(solution)
    if not steps:
        return "there is no step such as 6 * 7 = 42"
    for left, sign, right, told in steps:
        if value_of(left, sign, right) != int(told):
            return f"{left} {sign} {right} is {value_of(left, sign, right)}, not {told}"
    answer = solution.rpartition("#### ")[2].strip()
    return None if answer == steps[-1][3] else f"the last step gives {steps[-1][3]}, but the answer is {answer}"


def result(solution: str) -> dict[str, object]:
    """Return the answer and the steps of a solution."""
    return {"number": int(solution.rpartition("#### ")[2]), "steps": [match[0] for match in STEP.finditer(solution)]}


def explain(steps: list[str]) -> str:
    """Say the steps in words."""
    told = [match.groups() for step in steps if (match := STEP.fullmatch(step))]
    return "; ".join(WORDS[sign].format(left, right, made) for left, sign, right, made in told)
