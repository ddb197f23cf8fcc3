"""Which names of companies may mean the same, and what follows from a model's answers."""

import re
from itertools import combinations

FORMS = {"ag", "co", "company", "corp", "gmbh", "inc", "kg", "llc", "ltd", "plc", "sa", "the"}
Row = dict[str, dict[str, str]]
Pair = dict[str, str]


def words(name: str) -> set[str]:
    """Return the words of a name that are no legal form."""
    return set(re.findall(r"\w+", name.lower())) - FORMS


def names_of(rows: list[Row]) -> list[str]:
    """Return the names in the rows, each once, in order."""
    return sorted({row["extract"]["company"] for row in rows})


def candidates(rows: list[Row]) -> list[Pair]:
    """Return the pairs of names that have a word in common."""
    return [{"a": a, "b": b} for a, b in combinations(names_of(rows), 2) if words(a) & words(b)]


def merge(rows: list[Row], pairs: list[Pair], same: list[str]) -> dict[str, object]:
    """Return each company's longest name by each of its names, and the answers that contradict, which merge nothing."""
    group = {name: {name} for name in names_of(rows)}
    for pair, answer in zip(pairs, same, strict=True):
        if answer == "yes":
            joined = group[pair["a"]] | group[pair["b"]]
            group.update(dict.fromkeys(joined, joined))
    denied = [pair for pair, answer in zip(pairs, same, strict=True) if answer == "no"]
    contradictions = [pair for pair in denied if pair["b"] in group[pair["a"]]]
    for pair in contradictions:  # yes, yes and no about three names: none of them is merged
        for name in group[pair["a"]]:
            group[name] = {name}
    return {"of": {name: max(sorted(found), key=len) for name, found in group.items()}, "contradictions": contradictions}
