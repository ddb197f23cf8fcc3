r"""The final answer of a text without a mark: the last number, a letter, or all of a short text. Pure, in linear time.

Models without instructions for the format mostly end like this: "..., so she makes 9 * $2 = $18 every day." With a label,
its kind decides: a number is searched for a number, a letter for a letter, and all of a short text is taken for words.
Without a label, as in votes, the text decides: taking equal answers for different ones does less harm than the reverse, so a
short text is reduced to its number only if it has exactly one number and is neither a name nor a formula.
"""

from __future__ import annotations

import re

from workflow_composer.answers.finding.phrases import chosen, last_match
from workflow_composer.answers.finding.undressing import choice, says_something, undressed, without_talk
from workflow_composer.answers.notation import JOINED_UNITS, notation

SHORT = 6
"""Words. A longer text is a sentence rather than an answer."""
_FEW = 3
_EXPLAINED = 6
_LONGEST_CLAUSE = 400
_NEAR_THE_END = 600

_LETTERS_OF_A_WORD = 20
_EDGES = "*_`\"'()[]{},;:!?. "
_VULGAR = "\u00bc-\u00be\u2150-\u215e"
_RAISED = "\u00b2\u00b3\u00b9\u2070-\u2079\u207a\u207b\u2080-\u2089"
_GROUPS = r"\d{1,3}(?:(?:,|\{,\}|[\u00a0\u2009\u202f])\d{3})++(?!\d)"
_VALUE = rf"(?:{_GROUPS}|\d++)(?:\.\d++)?(?:[ ]?[{_VULGAR}])?|\.\d++|[{_VULGAR}]"
_NUMBER = re.compile(
    # Skips the numbers of list items and the parts of a date, a version, a time or a name.
    r"^[-*#>\t ]*+\d{1,3}[.)][ \t]+(?=\S)"
    r"|(?<![a-z0-9_^\\])(?<!\d[.,/:|-])(?<![a-z)]-)(?<![a-z]\.)(?<![\^_}]\{)"
    rf"(?P<number>[-\u2212\u2013]?(?:\\?[$\u20ac\u00a3\u00a5\u20b9])?[-\u2212\u2013]?"
    rf"(?:\\[dtc]?frac\{{\d++\}}\{{\d++\}}|(?:\d++ )?\d++/\d++|{_VALUE})"
    r"(?:[ ]?\\?%|[ ](?:thousand|million|billion|trillion)\b)?)"
    rf"(?!(?!(?:{JOINED_UNITS})\b(?!>))[a-z0-9_])(?![.,/:|-]\d|\^\{{?\d|[{_RAISED}])",
    re.IGNORECASE | re.MULTILINE | re.ASCII,
)
_NAME = re.compile(r"(?:[A-Z][\w-]*+ ){1,3}\d++")
_PASSES = re.compile(
    r"(?:(?:I|we)(?:['\u2019][a-z]+)? |(?:sorry|can(?:not|['\u2019]t)|un(?:able|sure|clear|known)|no (?:idea|answer)"
    r"|not (?:sure|known|enough|clear|possible))\b|\{\s*\"\w+\"\s*:\s*(?:null|\"\")\s*\}|null\b|n/a\b)",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"\b(\d{1,9})(?:st|nd|rd|th)\b")
_WORD = re.compile(r"[^\W\d_]{3}")
_CLAUSE = re.compile(
    r"that\s|.*\b(?:is|are|was|were|has|have|had|will|would|can|could|gets?|got|earns?|earned|makes?|made|spends?|spent|costs?"
    r"|pays?|paid|needs?|needed|takes?|took|sells?|sold|eats?|ate|saves?|saved|owes?|receives?|received|equals?|remain(?:s|ed)?"
    r"|left|total|altogether|more|fewer|less)\b",
    re.IGNORECASE | re.DOTALL,
)
_SAYS = re.compile(
    r"(?:I (?:think|believe|guess|suppose|would say) (?:that )?)?(?:(?:it|that)['\u2019]s|I['\u2019]d say"
    r"|(?:the|this|that|it|so|therefore|thus|hence)\b[^.!?\n]{0,90}\b(?:is|are|was|were))\s+"
    r"(?P<what>(?!not\b|no\b)(?:[^.!?\n,;:]|[.:](?=\S)){1,60})[.!]?",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_HEADING = re.compile(
    r"(?:(?:final |correct )?answer|solution|explanation|reasoning|analysis|steps?|given|sure|certainly|of course|okay|ok"
    r"|introduction|calculations?|proof|question|problem|summary|let\b.*|here\b.*|we\b.*|i\b.*|to\b.*|first\b.*|absolutely|great|hi|hello|thank.*"
    r"|no answer)\W*|.*[:\uff1a]\W*",
    re.IGNORECASE,
)
_LAST_LETTER = re.compile(
    r"^[>*_ \t-]*\(?([B-H]|[AIJ](?=[).:*]|[ \t]*$))[).:]?[*_]*(?=\s|$)|[(\[]([A-J])[)\]]|\*\*\(?([A-J])\)?[.)]?\*\*"
    r"|(?<![\w'\u2019-])([B-H])(?=[.,;:!)\s]|\Z)(?!['\u2019])",
    re.MULTILINE,
)


def numbers(text: str) -> list[str]:
    r"""Return the standalone numbers, as written.

    >>> numbers("9 * $2 = $18 on 04/02/2021"), numbers("It is -1,450.50."), numbers("V600E at 10:30 in v1.10.2")
    (['9', '$2', '$18'], ['-1,450.50'], [])
    >>> numbers("12\u202f500 in all")
    ['12\u202f500']
    """
    found = (match["number"] for match in _NUMBER.finditer(text))
    return [number.lstrip("$") if "\\" in number else number for number in found if number]


def _last_number(text: str) -> str | None:
    """Return the last standalone number; most texts have one near the end."""
    for begin in dict.fromkeys((max(0, len(text) - _NEAR_THE_END), 0)):
        found = numbers(text[begin:])
        if len(found) > 1 or (found and not begin):  # the first one of a part may have begun before it
            return found[-1]
    return None


def unmarked(text: str, label: str | None = None) -> tuple[str, str] | None:
    r"""Return the answer of a text without a mark and how it was found; ``label`` is the bare correct answer, if known.

    It was found as ``last_number``, ``last_letter``, ``last_name`` (a date, a genotype, an identifier) or ``short``.

    >>> unmarked("She makes 9 * $2 = $18 every day.", "18"), unmarked("Paris.", "Paris"), unmarked("It is 0/1.", "0/1")
    (('$18', 'last_number'), ('Paris', 'short'), ('0/1', 'last_name'))
    >>> unmarked("There are 18 apples."), unmarked("Boeing 747"), unmarked("I do not know.")
    (('18', 'last_number'), ('Boeing 747', 'short'), None)
    >>> unmarked("B looks right to me, and is the safe one.", "B"), unmarked("Positive\n\nThe author liked all of it.")
    (('B', 'last_letter'), ('Positive', 'short'))
    """
    if label is None:
        return _by_itself(text)
    wanted = notation(label)
    if is_letter(label):
        letter = _letter(text)
        return None if letter is None else (letter, "last_letter")
    if wanted.number is not None and not wanted.literal:
        return _number(text)
    if wanted.literal and len(label.split()) == 1 and (token := _last_literal(text)):
        return token, "last_name"
    most = len(label.split())
    whole = _said(text, with_numbers=True) or _short(text, max(SHORT, most)) or _apart(text, max(_FEW, most))
    return None if whole is None else (whole, "short")


def is_letter(label: str) -> bool:
    """Whether a label is the letter of a choice."""
    found = choice(label)
    return found is not None and not found.rest and len(label.strip(" ().[]*$\\{}")) <= len(r"\text{A}")


def to_the_point(answer: str, label: str | None) -> str:
    """Reduce a marked answer to its number if it is a sentence with exactly one, and the label a number or unknown.

    >>> to_the_point("Each child got 5 books", "5"), to_the_point("18 or 20", "18"), to_the_point("Boeing 747", "Boeing 747")
    ('5', '18 or 20', 'Boeing 747')
    >>> to_the_point("that Ines earns 18 dollars", None), to_the_point("Flight 747 to Paris", None)
    ('18', 'Flight 747 to Paris')
    """
    found = notation(answer)
    if found.number is not None or found.literal or not _WORD.search(answer):
        return answer
    if label is None:
        if len(answer) > _LONGEST_CLAUSE or not _CLAUSE.match(answer) or len(answer.split()) < _FEW:
            return answer
    else:
        wanted = notation(label)
        if wanted.number is None or wanted.literal:
            return answer
    named = numbers(answer)
    if not named and label is not None:
        named = _ORDINAL.findall(answer)
    if len(named) > 1:
        named = [number for bold in _BOLD.findall(answer) for number in numbers(bold)] or named
    return named[0] if len(named) == 1 else answer


def _said(text: str, *, with_numbers: bool = False) -> str | None:
    """Return what one sentence says of its subject: "The sentiment is positive." says "positive"."""
    found = _SAYS.fullmatch(text.strip(" *_\n"))
    what = found["what"].strip(" *_") if found else ""
    if not says_something(what) or len(what.split()) > _FEW or _PASSES.match(what):
        return None
    if not with_numbers and numbers(what):
        return None
    return what


def _by_itself(text: str) -> tuple[str, str] | None:
    if said := _said(text):
        return said, "short"
    whole = _short(text, SHORT)
    if whole is None:
        if alone := _apart(text, _FEW):
            return alone, "short"
        last = _last_number(text)
        return None if last is None else (last, "last_number")
    found = numbers(whole)
    if not found and _PASSES.match(whole):
        return None  # "I do not know." must not win a vote
    if len(found) != 1 or (not notation(found[0]).literal and _is_bare(whole)):
        return whole, "short"
    return found[0], "last_number"


def _number(text: str) -> tuple[str, str] | None:
    """Return the last number, or all of a short text with several."""
    whole = _short(text, SHORT)
    if whole is None and (alone := _apart(text, 1)) and numbers(alone):
        return alone, "short"
    named = [] if whole is None else numbers(whole)
    if whole is not None and "=" not in whole and len(named) > 1:
        return whole, "short"
    last = named[-1] if named else _last_number(text)
    if last is not None:
        return last, "last_number"
    return None if whole is None or len(whole.split()) > _FEW else (whole, "short")


def _short(text: str, most: int) -> str | None:
    """Return all of a text of at most so many words, or of a few more if they only explain it."""
    text = undressed(text, begins_line=True)
    if not _is_short(text, most + _EXPLAINED):
        return None
    text = without_talk(text)
    return text if says_something(text) and _is_short(text, most) and not text.endswith((":", "\uff1a")) else None


def _is_short(text: str, most: int) -> bool:
    return "\n" not in text and len(text) <= most * _LETTERS_OF_A_WORD and len(text.split()) <= most


def _apart(text: str, most: int) -> str | None:
    """Return a first line with a few words that an explanation follows, or such a last line."""
    first, blank, rest = text.strip().partition("\n\n")
    if blank and rest and notation(value := undressed(first)).number is not None and _WORD.search(rest):
        return value
    for line in (first if blank and rest else "", text.rstrip().rpartition("\n\n")[2]):
        if "\n" in line or line.lstrip().startswith(("#", "$$", r"\[")) or _HEADING.fullmatch(line.strip(" *_#>")):
            continue
        alone = _short(line, most)
        if alone is not None and not any(map(str.isdecimal, alone)) and not notation(alone).is_mathematical:
            return alone
    return None


def _letter(text: str) -> str | None:
    found = choice(undressed(text, begins_line=True)) or choice(undressed(text.strip().partition("\n")[0]))
    if found is not None:
        return found.letter
    if (picked := chosen(text)) is not None:
        return picked.answer
    last = last_match(_LAST_LETTER, text)
    return None if last is None else next(filter(None, last.groups()))


def _is_bare(text: str) -> bool:
    """Whether a short text is an answer by itself: a number with its unit, a name, a date, a formula."""
    found = notation(text)
    if found.number is not None or found.literal or _NAME.fullmatch(text.rstrip(".")):
        return True
    return found.is_mathematical and not _WORD.search(text)


def _last_literal(text: str) -> str | None:
    """Return the last word of a text that is a literal."""
    tokens = (token.strip(_EDGES) for token in reversed(text.split()))
    return next((token for token in tokens if notation(token).literal), None)
