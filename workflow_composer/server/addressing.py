"""The task of a request that names neither a task nor a model, predicted from its words."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from workflow_composer.types import ANY_TASK, Message, texts

_ENOUGH = 4000
"""Characters of the last message that are looked at."""

# Words that speak for a task, first match first; the names are those of the shipped profiles.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (task, re.compile(pattern, re.IGNORECASE))
    for task, pattern in (
        (
            "code_validation",
            r"\b(review|lint|debug|fix|what is wrong with|find the bug)\b.{0,60}\b(code|script|function|pipeline)\b",
        ),
        (
            "code_generation",
            r"```|\b(write|implement|generate|create)\b.{0,60}\b(code|script|function|class|parser|program|regex)\b",
        ),
        (
            "code_generation",
            r"\b(python|bash|snakemake|nextflow|sql|rust|java|javascript)\b.{0,40}\b(code|script|function)\b",
        ),
        (
            "math_statistics",
            r"\b(solve|prove|integral|derivative|equation|probability|p-value|standard deviation|regression)\b",
        ),
        ("math_statistics", r"\bhow many\b|\d\s*[-+*/^=]\s*\d"),
        ("data_analysis", r"\b(csv|tsv|dataframe|pandas|plot|histogram|correlation|cluster(ing)?|outliers?)\b"),
        (
            "biomedical",
            r"\b(gene|protein|genome|variant|mutation|patient|clinical|disease|drug|rna|dna|fastq|bam|vcf|cell line)s?\b",
        ),
        ("documentation", r"\b(document|docstring|readme|summari[sz]e|explain)\b"),
    )
)


def predict_task(messages: Sequence[Message], known: Collection[str]) -> str:
    """The task among the ``known`` that the last message of the user seems to be; ``*`` where nothing speaks for one.

    A handful of patterns, in microseconds. It decides which model is asked first, and nothing that could not be undone by
    naming the task.
    """
    if not known:
        return ANY_TASK
    for message in reversed(messages):
        if message.get("role") == "user":
            text = " ".join(texts(message))[:_ENOUGH]
            for task, sign in _SIGNS:
                if task in known and sign.search(text):
                    return task
            break
    return ANY_TASK
