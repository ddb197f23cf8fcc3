"""Whatever private inputs say, a cloud server receives the same requests.

Graphs come from a seeded generator. Two runs differ only in private cells; the requests that reach the cloud model must be
equal, byte for byte, headers included.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.integration.workflows.kit import DONE, SOME_FAILED, WRONG

CHOICES, LIST, TEXT = '["yes", "no"]', "[text]", None


@dataclass
class Graph:
    """A workflow over ``id`` (public) and ``note`` (private), and which of its steps are private: by ``data`` they read,
    and by ``control``, that is by what decides whether and how often they run.
    """

    seed: int
    lines: list[str] = field(default_factory=list)
    forms: dict[str, str | None] = field(default_factory=lambda: {"id": TEXT, "note": TEXT})
    data: dict[str, bool] = field(default_factory=lambda: {"id": False, "note": True})
    control: dict[str, bool] = field(default_factory=lambda: {"id": False, "note": False})
    must_be_refused: bool = False

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        for number in range(self.chance.randint(3, 6)):
            self._step(f"s{number}")

    def private(self, name: str) -> bool:
        return self.data[name] or self.control[name]

    def _step(self, name: str) -> None:
        chance = self.chance
        known = list(self.forms)
        read = chance.sample(known, 2 if chance.random() < 0.3 else 1)
        form = chance.choice([CHOICES, LIST, TEXT, TEXT])
        lists = [other for other in known if self.forms[other] == LIST]
        choices = [other for other in known if self.forms[other] == CHOICES]
        keys: list[str] = []
        data = any(self.data[other] for other in read)
        control = False
        places = []
        for other in read:
            if chance.random() < 0.3 and other.startswith("s"):
                places.append(f"{{{{ {other} | default('none') }}}}")
            else:
                places.append(f"{{{{ {other} }}}}")
            control |= self.control[other]
        if lists and chance.random() < 0.4:
            other = chance.choice(lists)
            keys.append(f"for_each: item in {other}")
            control |= self.private(other)
            form = TEXT
        if choices and chance.random() < 0.5:
            other = chance.choice(choices)
            keys.append(f'when: {other} == "yes"')
            control |= self.private(other)
        is_remote = not data and chance.random() < 0.7
        self.must_be_refused |= is_remote and control
        keys.append(f"model: {'remote' if is_remote else 'small'}")
        if form is not None:
            keys.append(f"answer: {form}")
        keys.append(f'prompt: "{name} of {" and ".join(places)}"')
        self.lines.append(f"  {name}:\n" + "".join(f"    {key}\n" for key in keys))
        self.forms[name] = LIST if any(key.startswith("for_each") for key in keys) else form
        self.data[name], self.control[name] = data, control

    @property
    def text(self) -> str:
        steps = [name for name in self.forms if name.startswith("s")]
        outputs = ", ".join(f'{name}: "{{{{ {name} | default(null) }}}}"' for name in steps)
        return (
            "workflow: generated\ninputs: {id: text, note: private}\nsteps:\n"
            + "".join(self.lines)
            + f"output: {{{outputs}}}\n"
        )


def answer(call):
    """What a model says depends on its question alone, in the form that is asked for."""
    drawn = zlib.crc32(call.prompt.encode())
    if "JSON" in call.prompt or "list" in call.prompt.lower():
        return [f"i{n}" for n in range(drawn % 4)]
    return "yes" if drawn % 2 else "no"


def what_the_cloud_got(desk, notes, *more):
    desk.reset()
    desk.table([{"id": str(number), "note": note} for number, note in enumerate(notes)])
    output = f"out-{abs(hash(notes))}-{'-'.join(more)}.jsonl"
    ran = desk.run(*more, output=output)
    assert ran.code in (DONE, SOME_FAILED), ran.said
    left_out = {"content-length", "host", "connection", "traceparent", "x-request-id", "idempotency-key"}
    return [
        (call.raw, tuple(sorted(pair for pair in call.headers.items() if pair[0] not in left_out)))
        for call in desk.remote.calls
    ]


ONE = tuple(f"patient {number} has HIV" for number in range(6))
OTHER = ("", "flu", "a cough " * 400, "yes", "no", "{{ id }}")


SEEDS = [seed for seed in range(100) if "model: remote" in Graph(seed).text][:12]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_cloud_learns_nothing(desk, seed):
    for model in desk.models:
        model.says("", answer)
    graph = Graph(seed)
    desk.file(graph.text)
    checked = desk.check()
    if graph.must_be_refused:
        assert checked.code == WRONG, graph.text
        assert "note" in checked.said
        return
    assert checked.code == DONE, graph.text + checked.said
    first, second = (Counter(what_the_cloud_got(desk, notes)) for notes in (ONE, OTHER))
    assert first == second, graph.text
    in_order = [what_the_cloud_got(desk, notes, "--concurrency", "1") for notes in (ONE, OTHER)]
    assert in_order[0] == in_order[1], graph.text


def test_the_generator_makes_both_kinds():
    """Some that must be refused, and some that may run, with private conditions or counts beside the cloud's steps."""
    graphs = [Graph(seed) for seed in SEEDS]
    assert {graph.must_be_refused for graph in graphs} == {True, False}
    assert any(any(graph.control.values()) for graph in graphs if not graph.must_be_refused)
