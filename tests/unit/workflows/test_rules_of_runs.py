"""The rules of workflows that speak of whole runs, held against tables and budgets that a generator makes."""

import json
import math
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from tests.unit.workflows.running.kit import Bench
from workflow_composer.errors import ServerFailed, WorkflowComposerError
from workflow_composer.workflows.keeping.keys import digest_of_data

BUSY = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
PRICED = {
    name: {"backend": "scripted", "model": name, "input_price": 100, "output_price": 100} for name in ("small", "large")
}
HEAD = "workflow: chain\ninputs: {t: text}\nsteps:\n"


@pytest.fixture
def desk(tmp_path):
    """Makes a folder with scripted models and prices; of it, runs over rows with one file of output."""
    made, numbers = [], count()

    class Desk:
        def __init__(self, reply=lambda model, prompt: digest_of_data(prompt, 8)):
            self.folder = tmp_path / str(next(numbers))
            self.folder.mkdir()
            self.bench = Bench(self.folder, reply, {"models": PRICED, "circuit_breaker": {"failures": 1000}})
            made.append(self.bench)

        async def run(self, text, rows, **options):
            """Run, or go on with a run; the result, the calls of this run, and the table."""
            self.bench.again()
            path = self.folder / "flow.yaml"
            path.write_text(text)
            out = self.folder / "out.jsonl"
            found = await self.bench.orchestrator.arun_workflow(path, rows, output=out, **options)
            return found, self.bench.calls, [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]

    yield Desk
    for one in made:
        one.orchestrator.close()


def chain(length):
    """A workflow whose steps read one after another."""
    steps = [f'  s{at}: {{prompt: "step {at}; {{{{ {f"s{at - 1}" if at else "t"} }}}}"}}\n' for at in range(length)]
    return f'{HEAD}{"".join(steps)}output: {{t: "{{{{ t }}}}", last: "{{{{ s{length - 1} }}}}"}}\n'


TEXTS = strategies.lists(strategies.sampled_from(["x", "y", "zz", "a longer text", "{{ t }}"]), min_size=1, max_size=6)


@BUSY
@given(
    texts=TEXTS,
    length=strategies.integers(1, 3),
    share=strategies.floats(0.05, 1.3) | strategies.just(3.0),
    concurrency=strategies.sampled_from([1, 3, None]),
    more=strategies.integers(1, 3),
)
async def test_r10_a_stop_at_the_budget_is_an_outcome_of_its_own_and_keeps_everything(
    desk, texts, length, share, concurrency, more
):
    text, rows = chain(length), [{"t": t} for t in texts]
    whole, calls, table = await desk().run(text, rows)
    here, made = desk(), 0
    for _ in range(more):
        found, now, written = await here.run(text, rows, budget={"run": share * whole.cost}, concurrency=concurrency)
        made += now
        assert found.state in ("done", "stopped: budget")
        assert found.counts["failed"] == found.counts["partial"] == found.counts["waiting"] == 0
        assert found.counts["done"] + found.counts["stopped"] == len(rows)
        assert (found.state == "done") == (found.counts["stopped"] == 0)
        for row, expected in zip(written, table, strict=True):
            assert row == expected if row["_state"] == "done" else row["t"] == expected["t"]
        if share == 3.0:
            assert found.state == "done"  # there was money for it, whatever was reserved meanwhile
    found, now, written = await here.run(text, rows, concurrency=concurrency)
    assert (found.state, made + now, written) == ("done", calls, table)
    assert math.isclose(found.cost, whole.cost)


@BUSY
@given(texts=TEXTS, later=TEXTS, length=strategies.integers(1, 3), extra=strategies.booleans())
async def test_r9_rows_are_known_wherever_they_stand(desk, texts, later, length, extra):
    """Of another table only those rows are asked that the first one did not have, each as often as it stands there more."""
    here, text = desk(), chain(length)
    await here.run(text, [{"t": t} for t in texts])
    rows = [{"t": t, "other": at} if extra else {"t": t} for at, t in enumerate(later)]
    _, calls, written = await here.run(text, rows)
    new = sum(max(0, later.count(t) - texts.count(t)) for t in set(later))
    assert calls == new * length
    assert written == (await desk().run(text, rows))[2]


@BUSY
@given(
    texts=TEXTS,
    failing=strategies.sets(strategies.sampled_from(["x", "y", "zz"])),
    concurrency=strategies.sampled_from([1, 4, None]),
)
async def test_r8_the_table_has_every_row_in_order_whatever_happened(desk, texts, failing, concurrency):
    def reply(model, prompt):
        return ServerFailed("down") if prompt.split("; ")[1] in failing else "fine"

    found, _, written = await desk(reply).run(chain(1), [{"t": t} for t in texts], concurrency=concurrency)
    assert [row["t"] for row in written] == texts
    assert [row["_state"] for row in written] == ["failed" if t in failing else "done" for t in texts]
    assert all(bool(row["_errors"]) == (row["t"] in failing) for row in written)
    assert found.counts["failed"] == sum(t in failing for t in texts)


COLUMNS = strategies.lists(strategies.sampled_from(["t", "u", "T", "tt", "text"]), unique=True, min_size=1)


@BUSY
@given(columns=COLUMNS, needed=COLUMNS)
async def test_r12_nothing_is_called_before_the_columns_are_checked(desk, columns, needed):
    here = desk()
    steps = "".join(f'  s{at}: {{prompt: "{{{{ {name} }}}}"}}\n' for at, name in enumerate(needed))
    inputs = ", ".join(f"{name}: text" for name in needed)
    text = f"workflow: w\ninputs: {{{inputs}}}\nsteps:\n{steps}output: {{s: s0}}\n"
    rows = [dict.fromkeys(columns, "x")]
    if set(needed) <= set(columns):
        assert (await here.run(text, rows))[1] == len(needed)
        return
    with pytest.raises(WorkflowComposerError) as caught:
        await here.run(text, rows)
    assert here.bench.calls == 0
    assert any(repr(name) in str(caught.value) for name in set(needed) - set(columns))


@given(
    value=strategies.recursive(strategies.text() | strategies.integers(), lambda inner: strategies.lists(inner, max_size=3))
)
@BUSY
async def test_r1_what_an_answer_says_is_never_a_template(desk, value):
    """Whatever a model answers, the next prompt has it as it is, and the next one after that."""
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def reply(model, prompt):
        return "{{ t }}" + said + "{% if %}"

    here = desk(reply)
    await here.run(chain(3), [{"t": "x"}])
    expected = reply("", "").strip()
    assert [prompt.split("; ", 1)[1].strip() for prompt in here.bench.prompts] == ["x", expected, expected]
