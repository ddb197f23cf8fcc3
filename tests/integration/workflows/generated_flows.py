"""Workflows as a generator makes them: what steps read, when they run, how often, and what of them is released.

Some of what a step could tell of private inputs is by declaration not promised: that it failed, was withheld or waits. Steps
whose failure depends on a private input are therefore *shaky*: nothing asks for their state, and nobody needs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies

WITHIN = "within.yaml"
FUNCTIONS = '''
"""What the generated workflows call."""

def joined(**given):
    return " ".join(map(str, given.values()))[:80] or "nothing"

def parts(**given):
    return [word for word in joined(**given).split()][:3]

def choice(**given):
    return "yes" if len(joined(**given)) % 2 else "no"

def constant(**given):
    return "yes"

def breaks(**given):
    if "HIV" in joined(**given):
        raise ValueError(joined(**given))
    return joined(**given)

def fine(answer):
    return True

def long_enough(answer):
    return None if "again" in str(answer) or len(str(answer)) % 3 else f"{answer} is too short"
'''
PROGRAM = "import json, sys\nprint(len(json.load(sys.stdin)['a']) % 3)\n"
_OWN = ("small", "mv_cascade_small_k1_t0.0_large_k1_t0.0", "mv_cascade_small_k3_t0.7_large_k1_t0.0")
_FAR = ("remote", "mv_cascade_small_k1_t0.0_remote_k1_t0.0")
_REFUSED = re.compile(r"steps\.(\w+)")


@dataclass
class Flow:
    """A workflow's file as data, and what of it may be named by further steps."""

    steps: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=lambda: ["note", "id", "id"])
    choices: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    shaky: list[str] = field(default_factory=list)
    inner: dict[str, Any] = field(default_factory=dict)

    @property
    def steady(self) -> list[str]:
        """Steps whose state depends on conditions only."""
        return [name for name in self.steps if name not in self.shaky]

    @property
    def named(self) -> list[str]:
        """Everything with a value."""
        return [*self.texts, *self.lists, *self.shaky]

    def data(self) -> dict[str, Any]:
        """The whole file."""
        shown = [name for name in self.steady if "reduce" not in self.steps[name] and "human" not in self.steps[name]]
        tables = {name: name for name in self.steady if "reduce" in self.steps[name]}
        found = {
            "workflow": "generated",
            "inputs": {"note": "private", "id": "text"},
            "steps": self.steps,
            "output": {"id": "{{ id }}"} | {name: f"{{{{ {name} | default(null) }}}}" for name in shown},
        }
        return found | ({"tables": tables} if tables else {})

    def mend(self, problems: list[str]) -> None:
        """Let what is refused use a model of one's own."""
        for problem in problems:
            assert "not on your own machines" in problem or "may use the network" in problem, problem
            name = _REFUSED.search(problem)[1]
            step = self.steps[name]
            if "the judge of" in problem:
                step["accept"]["judge"] = "small"
            elif "workflow" in step:
                for one in self.inner.values():
                    one["model"] = "small"
            else:
                for one in (step, *step.get("steps", {}).values()):
                    one.pop("task", None)
                    if "prompt" in one:
                        one["model"] = "small"


class Drawn:
    """Draws the parts of a workflow."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.flow = draw, Flow()

    def one(self, options: Any) -> Any:
        """Draw one of these."""
        return self.draw(strategies.sampled_from(list(options)))

    def chance(self, of: int) -> bool:
        """Draw yes once in so many times."""
        return self.draw(strategies.integers(1, of)) == of

    def reads(self) -> str:
        """Draw what a prompt reads."""
        return " ".join(self.read() for _ in range(self.draw(strategies.integers(0, 2))))

    def read(self) -> str:
        """Draw a place in a text: a value, needed or with a default, or a fact."""
        flow = self.flow
        kind = self.one(["any", "any", "needed", "fact"])
        if kind == "fact" and (known := flow.steady):
            return f"{{{{ {self.one(known)}.{self.one(['_attempts', '_cost', '_model | default(0)', '_state'])} }}}}"
        if kind == "needed":
            return f"{{{{ {self.one(flow.texts)} }}}}"
        return f"{{{{ {self.one(flow.named)} | default('-') | tojson }}}}"

    def value(self) -> str:
        """Draw an expression for a program or a nested workflow."""
        return f"{self.one(self.flow.named)} | default('-') | tojson"

    def condition(self) -> str:
        """Draw a condition."""
        flow = self.flow
        kinds = ["'HIV' in note", "len(note) > 20", *["id == 'r1'", "id != 'r1'"] * 2]
        if steady := flow.steady:
            kinds.append(f"{self.one(steady)} is {self.one(['done', 'skipped', 'given'])}")
            kinds.append(f"{self.one(steady)}._attempts > 1")
            kinds.append(f"{self.one(steady)}._state == 'done'")
        if flow.choices:
            kinds += [f"default({self.one(flow.choices)}, 'no') == 'yes'"] * 3
        if flow.lists:
            kinds.append(f"len(default({self.one(flow.lists)}, [])) > 1")
        one, other = self.one(kinds), self.one(kinds)
        return self.one([one, one, f"not ({one})", f"{one} and {other}", f"{one} or {other}"])

    # ----------------------------------------------------------------------------------------------------------- steps

    def add(self, at: int) -> None:
        """Draw a step."""
        name = f"s{at}"
        step = self.one(
            [*[self.prompt] * 6, self.fan, self.fan, self.inner_steps, self.python, self.command, self.nested, self.over]
        )(name)
        shaky = step.pop("shaky", False)
        answer = step.get("answer")
        if "reduce" not in step and self.chance(3):
            step["when"] = self.condition()
        if "steps" not in step and self.chance(6):
            step["on_error"] = self.one(["skip", {"default": "no" if answer == ["yes", "no"] else None}])
        flow = self.flow
        flow.steps[name] = step
        if "human" in step:
            flow.shaky.append(name)
        elif "for_each" in step or answer == ["text"] or "group_by" in step:
            flow.lists.append(name)
        elif shaky:
            flow.shaky.append(name)
        elif "workflow" not in step:
            flow.texts.append(name)
        if answer == ["yes", "no"] and name in flow.texts:
            flow.choices.append(name)

    def target(self) -> dict[str, Any]:
        """Draw who answers."""
        kind = self.one(["far", "far", "far", "own", "task"])
        if kind == "task":
            return {"task": self.one(["any", "far"])}
        return {"model": self.one(_FAR if kind == "far" else _OWN)}

    def prompt(self, name: str) -> dict[str, Any]:
        """Draw a question; one that is released is answered by its head alone, whatever it reads."""
        made = {**self.target(), "prompt": f"{name} {{{{ id }}}} | {self.reads()}"}
        if self.chance(6):
            made["system"] = f"be brief {self.reads()}"
        if self.chance(2):
            made["answer"] = self.one([["yes", "no"], ["yes", "no"], ["text"]])
        elif self.chance(5):
            made["accept"] = self.one(
                [{"judge": self.one(["remote", "small"]), "ask": f"good? {{{{ {name} }}}}"}, {"python": "own:long_enough"}]
            )
        elif self.chance(8):
            return {**made, "prompt": f"breaks {self.reads()}", "shaky": True}
        if self.chance(8):
            made["share"] = True
        if made.get("answer") != ["text"] and self.chance(3):
            made["model"], made["prompt"] = self.one(_OWN), f"released {made['prompt']} {{{{ note }}}}"
            made.pop("task", None)
            reasons: list[Any] = [
                {"declared": "a test"},
                {"check": {"python": "own:fine"}},
                {"check": {"judge": "small", "ask": "good?"}},
            ]
            made["release"] = "choices" if "answer" in made else self.one(reasons)
        elif "answer" not in made and self.chance(6):
            made |= {"until": f"{name} != 'answer 1'", "at_most": 2, "shaky": True}
        return made

    def fan(self, name: str) -> dict[str, Any]:
        """Draw a question for each item of a list."""
        if not self.flow.lists:
            return self.prompt(name)
        made = {**self.target(), "prompt": f"{name} {self.one(['', '{{ x | tojson }}'])} {self.reads()}"}
        made["for_each"] = f"x in {self.one(self.flow.lists)} | default([]) | done"
        return made

    def inner_steps(self, name: str) -> dict[str, Any]:
        """Draw steps for each item of a list."""
        if not self.flow.lists:
            return self.prompt(name)
        first, second = f"{name}a", f"{name}b"
        steps = {
            first: {**self.target(), "prompt": f"{first} {self.one(['', '{{ x | tojson }}'])} {self.reads()}"},
            second: {**self.target(), "prompt": f"{second} {self.one(['', f'{{{{ {first} }}}}'])} {self.reads()}"},
        }
        if self.chance(2):
            steps[second]["when"] = self.one([self.condition(), f"len({first}) > 8", f"{first} is done"])
        return {"for_each": f"x in {self.one(self.flow.lists)} | default([]) | done", "steps": steps}

    def python(self, name: str) -> dict[str, Any]:
        """Draw a function."""
        kind = self.one(["joined", "parts", "choice", "constant", "breaks"])
        made: dict[str, Any] = {"python": f"own:{kind}", "with": {"a": self.value(), "b": self.value()}}
        if kind == "parts":
            made["answer"] = ["text"]
        elif kind in ("choice", "constant"):
            made["answer"] = ["yes", "no"]
            if kind == "constant":
                made["release"] = "choices"
        return made | ({"shaky": True} if kind == "breaks" else {})

    def command(self, name: str) -> dict[str, Any]:
        """Draw a program."""
        return {"command": ["python", "program.py"], "with": {"a": self.value()}, "answer": "text"}

    def nested(self, name: str) -> dict[str, Any]:
        """Draw a workflow within this one."""
        if self.flow.inner:
            return self.prompt(name)
        self.flow.inner = {
            "u": {**self.target(), "prompt": f"u {self.one(['', '{{ x }}', '{{ y }}'])}"},
            "v": {
                **self.target(),
                "prompt": f"v {self.one(['', '{{ x }}', '{{ u }}'])}",
                "when": self.one(["len(x) > 20", "u is done", "y == 'r1'"]),
            },
        }
        return {"workflow": WITHIN, "with": {"x": self.value(), "y": self.value()}}

    def over(self, name: str) -> dict[str, Any]:
        """Draw a step over all rows."""
        reads = "".join(
            f"{{{{ r.{one} | default('-') | tojson }}}}" for one in self.flow.named if self.of_row(one) and self.chance(3)
        )
        made = {**self.target(), "reduce": "rows", "prompt": f"{name} {{% for r in rows %}}{reads};{{% endfor %}}"}
        keep = "id != ''" if self.flow.shaky else None
        if self.chance(3):
            kept = [one for one in self.flow.steady if self.of_row(one)]
            keep = f"{self.one(kept)} is {self.one(['done', 'skipped'])}" if kept and self.chance(2) else "len(note) > 20"
        if keep is not None:
            made["keep"] = keep
        if self.chance(3) and (groups := [one for one in (*self.flow.texts, *self.flow.choices) if self.of_row(one)]):
            made["group_by"] = f"{self.one(groups)} | default('-')"
        return made

    def of_row(self, name: str) -> bool:
        """Whether a name has a value for each row."""
        return "reduce" not in self.flow.steps.get(name, {})


@strategies.composite
def flows(draw: Any, most: int = 9) -> Flow:
    """Workflows of a few steps."""
    made = Drawn(draw)
    for at in range(draw(strategies.integers(2, most))):
        made.add(at)
    steady = made.flow.steady
    for name in ("last", "least"):  # so that something reaches the cloud from most of them
        step = {"model": "remote", "prompt": f"{name} {{{{ id }}}} {made.read() if made.chance(3) else ''}"}
        if steady and made.chance(2):
            step["when"] = f"{made.one(steady)} is {made.one(['done', 'skipped', 'given'])}"
        made.flow.steps[name] = step
    if made.chance(8):
        made.flow.steps["person"] = {"human": "is {{ note }} right?", "answer": ["yes", "no"]}
        made.flow.shaky.append("person")
    return made.flow


NOTES = strategies.sampled_from(
    ["HIV positive, Ann Lee, 60 years old", "nothing at all", "x", "{{ id }}"]
) | strategies.text(strategies.characters(codec="utf-8"), max_size=30)
