"""Finished rows for tests of the report, written down in a line each."""

from workflow_composer.batch.run.records import RowRecord, TierRecord


def tier(name, *right, votes=None, cost=1.0, confidence=0.8, accepted=True, unreadable=0, fixed=True):
    """What a tier did: whether each of its samples was right. Votes: the right ones agree, wrong ones do not."""
    counted = votes if votes is not None else _votes(right)
    samples = len(right) + unreadable
    tokens = {"prompt_tokens": 10, "completion_tokens": 5 * max(samples, 1)}
    graded = (*right, *[False] * unreadable)
    told = (samples, counted, unreadable, confidence, accepted, "")
    return TierRecord(name, name, *told, **tokens, cost=cost, seconds=0.1, right=graded, fixed=fixed)


def _votes(right):
    agreeing = (("right", sum(right)),) if any(right) else ()
    rest = tuple((f"wrong {at}", 1) for at in range(len(right) - sum(right)))
    return tuple(sorted((*agreeing, *rest), key=lambda vote: -vote[1]))


def row(number, *tiers, correct=True, route="small", confidence=None, answer="right", error=None, accepted=True):
    """A row that these tiers were asked for; the last one decided."""
    return RowRecord(
        row=number,
        id=str(number),
        route=route,
        answer=answer,
        confidence=confidence if confidence is not None else (tiers[-1].confidence if tiers else None),
        accepted=accepted,
        tier=max(len(tiers) - 1, 0),
        tiers=tiers,
        correct=correct,
        prompt_tokens=sum(one.prompt_tokens for one in tiers),
        completion_tokens=sum(one.completion_tokens for one in tiers),
        cost=sum(one.cost for one in tiers),
        seconds=0.1 * len(tiers),
        error=error,
    )


def failed(number, kind="ServerFailed", message="no answer", correct=False):
    """A row with a label that failed before any tier answered."""
    return row(number, correct=correct, answer=None, error=(kind, message), accepted=False)


def greedy(count, name, right, cost=1.0):
    """A run of one tier: row n is right where ``right(n)`` is."""
    return [row(n, tier(name, right(n), cost=cost, confidence=None), correct=right(n), route=name) for n in range(count)]


def cascade(count, passed_on, before, after, route="mv_cascade_small_k3_t0.7_large_k1_t0.0"):
    """A run of small (cost 1) and large (cost 4): what is passed on, and whether small and large are right about row n."""
    rows = []
    for n in range(count):
        on = passed_on(n)
        votes = (before(n),) * 3 if before(n) else (False, False, False)
        small = tier("small", *votes, cost=1.0, confidence=0.4 if on else 0.9, accepted=not on)
        if on:
            rows.append(row(n, small, tier("large", after(n), cost=4.0, confidence=None), correct=after(n), route=route))
        else:
            rows.append(row(n, small, correct=before(n), route=route))
    return rows
