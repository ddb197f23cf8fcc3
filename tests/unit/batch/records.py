"""Records for tests: one like those of a real run, and any that can be."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from workflow_composer.batch.run.records import RowRecord, TierRecord

TIER = TierRecord("7B", "Qwen2.5-Math-7B", 4, (("18", 3), ("17", 1)), 0, 0.75, True, "0.75", 90, 812, 4e-4, 2.5)
RECORD = RowRecord(0, "id-0", "mv_7B_k4_t0.7", "18", 0.75, True, 0, (TIER,), True, 90, 812, 4e-4, 2.5)


def record(row, **fields):
    """A finished row."""
    return replace(RECORD, row=row, id=f"id-{row}", **fields)


def failed(row, error=("CallTimeout", "no answer in 60 s"), **fields):
    """A row that failed."""
    return record(row, error=error, answer=None, confidence=None, accepted=False, tiers=(), **{"correct": None, **fields})


def texts(most):
    """Texts of any characters, half surrogate pairs too."""
    return st.text(st.characters(), max_size=most)


NUMBERS = st.floats(0, 1e6)
COUNTS = st.integers(0, 10**9)
SURE = st.none() | st.floats(0, 1)
TIERS = st.builds(
    TierRecord,
    name=texts(8),
    model=texts(8),
    samples=COUNTS,
    votes=st.lists(st.tuples(texts(5), COUNTS), max_size=3).map(tuple),
    unreadable=COUNTS,
    confidence=SURE,
    accepted=st.booleans(),
    reason=texts(8),
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    cost=NUMBERS,
    seconds=NUMBERS,
    right=st.lists(st.booleans(), max_size=3).map(tuple),
    texts=st.lists(texts(8), max_size=2).map(tuple),
    cut_off=COUNTS,
    fixed=st.booleans(),
    priced=st.booleans(),
)


@st.composite
def records(draw, rows=COUNTS):
    """Any record."""
    tiers = tuple(draw(st.lists(TIERS, max_size=3)))
    return RowRecord(
        row=draw(rows),
        id=draw(texts(5)),
        route=draw(texts(8)),
        answer=draw(st.none() | texts(8)),
        confidence=draw(SURE),
        accepted=draw(st.booleans()),
        tier=draw(st.integers(0, max(len(tiers) - 1, 0))),
        tiers=tiers,
        correct=draw(st.none() | st.booleans()),
        prompt_tokens=draw(COUNTS),
        completion_tokens=draw(COUNTS),
        cost=draw(NUMBERS),
        seconds=draw(NUMBERS),
        error=draw(st.none() | st.tuples(texts(5), texts(5))),
        priced=draw(st.booleans()),
    )
