r"""Phrases that announce an answer ("The answer is 18", "Antwort: C"), in the languages that models answer in.

Pure, in linear time: words are located by `str.rfind`, and only what follows a word is matched, with bounded repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from workflow_composer.answers.undressing import choice, says_something, undressed, without_talk

LONGEST = 2000
"""Characters of an announced answer; what goes on longer is a text that begins there."""

_ENGLISH = ("answer", "ans:", "ans =", "correct option", "correct choice", "right option", "right choice", "best option")
_EUROPEAN = (
    *("antwort", "l\xf6sung", "ergebnis", "r\xe9ponse", "reponse", "respuesta", "resposta", "risposta", "antwoord", "svar"),
    *("odpowied\u017a", "odpov\u011b\u010f", "odpove\u010f", "odgovor", "\u043e\u0442\u0432\u0435\u0442", "\u0432\u0456\u0434\u043f\u043e\u0432\u0456\u0434\u044c"),
    *("\u043e\u0442\u0433\u043e\u0432\u043e\u0440", "\u043e\u0434\u0433\u043e\u0432\u043e\u0440", "cevap", "yan\u0131t", "jawaban", "jawapan"),
    *("\u0111\xe1p \xe1n", "c\xe2u tr\u1ea3 l\u1eddi", "tr\u1ea3 l\u1eddi", "r\u0103spuns", "v\xe1lasz", "vastaus", "vastus", "atsakymas", "atbilde"),
    *("\u03b1\u03c0\u03ac\u03bd\u03c4\u03b7\u03c3\u03b7", "jibu", "idahun", "\xecd\xe1h\xf9n", "sagot", "jawapi", "erantzuna", "resposta correcta"),
)  # fmt: skip
_OTHER = (
    *("\u7b54\u6848", "\u7b54\u590d", "\u7b54\u66f0", "\u89e3\u7b54", "\u56de\u7b54", "\u7b54\u3048", "\u6b63\u89e3", "\u7ed3\u679c\u662f", "\u7d50\u679c\u662f", "\u7b54"),
    *("\u6b63\u786e\u9009\u9879", "\u6b63\u78ba\u9078\u9805", "\u6545\u9009", "\u6545\u9078", "\u5e94\u9009", "\u61c9\u9078", "\u6240\u4ee5\u9009", "\u56e0\u6b64\u9009"),
    *("\uc815\ub2f5", "\ub2f5\ubcc0", "\ub2f5\uc548", "\ub2f5", "\u0e04\u0e33\u0e15\u0e2d\u0e1a", "\u0e15\u0e2d\u0e1a", "\u0909\u0924\u094d\u0924\u0930", "\u0909\u0924\u0930"),
    *("\u0989\u09a4\u09cd\u09a4\u09b0", "\u0b89\u0ba4\u0bcd\u0ba4\u0bb0", "\u0bb5\u0bbf\u0b9f\u0bc8", "\u0c38\u0c2e\u0c3e\u0c27\u0c3e\u0c28\u0c02", "\u0c9c\u0cb5\u0cbe\u0cac\u0cc1", "\u0a09\u0a71\u0a24\u0a30"),
    *("\u0627\u0644\u0625\u062c\u0627\u0628\u0629", "\u0627\u0644\u0627\u062c\u0627\u0628\u0629", "\u0627\u0644\u062c\u0648\u0627\u0628", "\u0625\u062c\u0627\u0628\u0629", "\u062c\u0648\u0627\u0628", "\u067e\u0627\u0633\u062e"),
    *("\u05ea\u05e9\u05d5\u05d1\u05d4", "\u05d4\u05ea\u05e9\u05d5\u05d1\u05d4", "\u057a\u0561\u057f\u0561\u057d\u056d\u0561\u0576", "\u10de\u10d0\u10e1\u10e3\u10ee\u10d8"),
)  # fmt: skip
_MARKUP = r"[*_`\"'\u201d\u2019)\]}~]{0,4}"
_SIGN = r"(?:[:=\uff1a\u0983]|->|=>|\u2192|\u21d2|\u27a1\ufe0f?)"
_AFTER = rf"{_MARKUP}\s{{0,9}}:?"
_LINKS = (
    (("ans.",), re.compile(r"\.[ \t]{0,3}[:=]?[ \t]{0,3}")),
    (
        _ENGLISH,
        re.compile(
            rf"s?\b[.]?(?:[ ](?:choice|option|letter|key|text))?(?:\s?\([^()\n]{{0,40}}\))?{_MARKUP}"
            rf"(?:[ ](?:to|of|for|in|from|that|which|you|we|I|here|should therefore)\b[^.:\n?!]{{0,90}}?)??\s{{0,9}}"
            rf"(?:(?:is|was|are|were|(?:would|should|must|will|could|can only|has to) be|seems to be|comes (?:out )?to|equals|becomes)\b"
            rf"(?:[ ](?:therefore|thus|hence|then|indeed|clearly|simply|also|still|actually|now|likely|probably))?"
            rf"|{_SIGN}|[ ][-\u2013\u2014](?=[ ])){_AFTER}",
            re.IGNORECASE,
        ),
    ),
    (
        _EUROPEAN,
        re.compile(
            rf"[^\W\d_]{{0,3}}{_MARKUP}(?:[ ](?!ist\b|est\b|es\b|\xe9\b|\xe8\b|is\b|to\b|lautet\b|\u044d\u0442\u043e\b)[^\W\d_]{{2,14}}){{0,3}}"
            rf"{_MARKUP}\s{{0,3}}(?:{_SIGN}|(?:ist|lautet|w\xe4re|est|es|ser\xeda|\xe9|\xe8|is|\xe4r|er|jest|je|to|\u044d\u0442\u043e|\u0454|adalah|ialah|l\xe0|este|on|\u03b5\u03af\u03bd\u03b1\u03b9|ni)\b"
            rf"|[-\u2013\u2014](?=\s)){_AFTER}",
            re.IGNORECASE,
        ),
    ),
    (
        _OTHER,
        re.compile(
            rf"{_MARKUP}[^\S\n]{{0,2}}(?:\u662f|\u4e3a|\u70ba|\u5e94\u4e3a|\u61c9\u70ba|\u5e94\u8be5\u662f|\u5c31\u662f|\u9009\u62e9?|\u9078\u64c7?|\u306f|\u306f\u3001|\uc740|\ub294|\u0e04\u0e37\u0e2d|\u0939\u0948|\u0647\u064a|\u0647\u0648|\u0627\u0633\u062a|\u05d4\u05d9\u05d0|\u05d4\u05d5\u05d0"
            rf"|(?:[ ]?[^\W\d_]{{2,12}}){{0,2}}?\s?{_SIGN}){_AFTER}|(?<=[\u9009\u9078]){_AFTER}",
        ),
    ),
)  # fmt: skip
_INVERSE = re.compile(
    r"(?P<answer>[(\[]?\b[A-J]\b[)\]]?|\$?-?\d[\d,]{0,20}(?:\.\d{1,20})?%?|\$[^$\n]{1,80}\$)[*_\"'\u201d)]{0,4}[ ]"
    r"(?:is|must be|would be|should be)[ ](?:therefore[ ]|thus[ ]|indeed[ ]|clearly[ ])?(?:the|our|my)[ ](?:final[ ]|correct[ ]|right[ ]|best[ ])*"
    r"(?:answer|choice|option|one|solution)\b(?![ ](?:to|for|of)[ ](?!this|the))"
)
_WEAK = re.compile(
    r"[>#*_ \t-]{0,9}(?:final |end |overall |my |predicted |correct )?(?:result|total|value|output|verdict|label|conclusion|prediction|class|category"
    r"|classification|sentiment|decision|diagnosis|response|solution|ergebnis|r\xe9sultat|resultado|risultato|\u7ed3\u679c|\u7d50\u679c|\uacb0\uacfc|\u7d50\u8ad6)"
    r"[*_]{0,3}\s{0,2}[:\uff1a=][*_]{0,3}[ \t]{0,9}(?P<answer>\S.*)",
    re.IGNORECASE,
)
_LAST_LINE = re.compile(r"[>*_ \t]{0,4}A(?:NS|ns)?[*_]{0,3}:[*_]{0,3}[ \t]*(?P<answer>\S.*)")
_SHORTENED = (
    r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\bMt)(?<!\bNo)(?<!\bJr)(?<!\bvs)(?<!\bca)(?<!\bapprox)(?<!\bProf)"
)
_SENTENCE_END = re.compile(
    rf"[?!](?:[*_\"'\u201d)]{{0,4}})(?:\s|\Z)|{_SHORTENED}\.[*_\"'\u201d)$]{{0,4}}(?:\s(?!(?<=\b[A-Z]\.\s)[a-z]{{2,}})|\Z)"
    r"|[\u3002\uff01\uff1f\u0964]"
)
_BLOCKS = (("```", "```"), (r"\[", r"\]"), ("$$", "$$"), (r"\begin{", r"\end{"))
_NO_ANSWER = re.compile(
    r"(?:as follows|reasonable|clear|obvious|good|fine|found|given (?:by|in)|based|obtained|derived|determined|calculated|below|above|in the form"
    r"|correct|right|wrong|incorrect|verified|consistent|unique|not clear|not given|not unique|needed|required|expected|supposed"
    r"|the same|straightforward|simple|an integer|a (?:number|fraction|whole number|positive|single))\b",
    re.IGNORECASE,
)
_CHOOSES = re.compile(
    r"\b(?:choose|choosing|pick|picking|select|go with|going with|chose|picked|selected|opt for|option|choice|answer)[ ]{1,2}"
    r"(?:is[ ]|option[ ]|choice[ ]|answer[ ])?[*_\"'(\[]{0,3}(?P<letter>[A-J])\b(?![\w'\u2019])"
)
_STATED = re.compile(
    r"[>#*_ \t\u2705\ufe0f-]{0,9}(?:(?:so|thus|my|the|our) )?(?:final |correct |right |best )?\Z", re.IGNORECASE
)


class Phrase(NamedTuple):
    """An announced answer, where its phrase starts in the text, and whether it ends before the text does."""

    answer: str
    start: int
    complete: bool
    states: bool
    """Whether the phrase is a heading with a colon at the start of a line: "**Answer:** 7"."""


def announced(text: str, start: int = 0) -> Phrase | None:
    r"""Return the last announced answer that begins at ``start`` or later; one that says how good it is only if no other does.

    >>> announced("The answer is 3.5 dollars. I hope it is right.").answer, announced("**Answer:** 7").answer
    ('3.5 dollars', '7')
    >>> announced("Die Antwort lautet: C").answer, announced("So B is the correct answer.").answer
    ('C', 'B')
    """
    talk = None
    for phrase in _from_the_last(text, start):
        if not _NO_ANSWER.match(phrase.answer):
            return phrase
        talk = talk or phrase
    return talk


def last_line(text: str) -> Phrase | None:
    """Return what a last line such as ``A: 18`` or ``Label: positive`` announces."""
    at = text.rstrip().rfind("\n") + 1
    found = _LAST_LINE.fullmatch(text, at, len(text.rstrip())) or _WEAK.fullmatch(text, at, len(text.rstrip()))
    if found is None or not says_something(found["answer"]):
        return None
    return Phrase(_dressed_off(found["answer"]), at, complete=text.endswith("\n"), states=True)


def chosen(text: str) -> Phrase | None:
    """Return the last letter that the text chooses: "I would pick B", "option (C)"."""
    found = None
    for found in _CHOOSES.finditer(text):
        pass
    return None if found is None else Phrase(found["letter"], found.start(), complete=found.end() < len(text), states=False)


def _from_the_last(text: str, start: int) -> Iterator[Phrase]:
    """Yield the announced answers, last first."""
    found: dict[int, int] = {}  # end of the words: their start
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = text
    for words, link in _LINKS:
        for word in words:
            at = len(lowered)
            for _ in range(_MOST):
                if (at := lowered.rfind(word, start, at)) < 0:
                    break
                if match := _linked(text, at, word, link):
                    found[match.end()] = min(at, found.get(match.end(), at))
    phrases = (_phrase(text, at, end) for end, at in sorted(found.items(), reverse=True))
    inverse = None
    for inverse in _INVERSE.finditer(text, max(start, len(text) - LONGEST)):
        pass
    stated = Phrase(inverse["answer"], inverse.start(), inverse.end() < len(text), states=False) if inverse else None
    for phrase in phrases:
        if phrase is None:
            continue
        if stated is not None and stated.start > phrase.start - _NEAR:
            yield stated
            stated = None
        yield phrase
    if stated is not None:
        yield stated


_MOST = 64
_NEAR = 40


def _linked(text: str, at: int, word: str, link: re.Pattern[str]) -> re.Match[str] | None:
    if at and word[0].isascii() and text[at - 1].isalpha():
        return None
    end = at + len(word)
    return link.match(text, end - 1 if word[-1] in ".:=" else end)


def _phrase(text: str, at: int, end: int) -> Phrase | None:
    """Return the answer that is announced by the words from ``at`` to ``end``."""
    begin = end
    while begin < len(text) and begin - end < _NEAR and text[begin] in " \t\r\n":
        begin += 1
    rest = text[begin : begin + LONGEST]
    for left, right in _BLOCKS:
        if rest.startswith(left):
            closes = rest.find(right, len(left))
            if closes >= 0:
                stop = closes + len(right)
                stop = stop if right != r"\end{" else rest.find("}", stop) + 1
                return _made(text, at, end, begin, rest[:stop], begin + stop)
    line = rest.partition("\n")[0]
    stop = _SENTENCE_END.search(line)
    said = line[: stop.start()] if stop else line
    if stop is not None and not says_something(said):
        said = line
    closed = begin + len(said) + 1
    return _made(text, at, end, begin, said, closed if stop or len(line) < len(rest) else len(text) + 1)


def _made(text: str, at: int, end: int, begin: int, said: str, closed: int) -> Phrase | None:
    answer = _dressed_off(said, begins_line="\n" in text[end - 1 : begin])
    if not says_something(answer):
        return None
    heads = _STATED.match(text, text.rfind("\n", 0, at) + 1, at) is not None or not text[:at].strip("*_# \t>\n")
    return Phrase(answer, at, closed < len(text), heads and text[at:end].rstrip(" \t\n*_").endswith((":", "\uff1a")))


def _dressed_off(said: str, *, begins_line: bool = False) -> str:
    bare = said.strip(" \t:\uff1a").strip()
    return without_talk(undressed(without_talk(undressed(bare, begins_line=begins_line))))


def is_value(answer: str) -> bool:
    """Whether an announced answer looks like a final one: a letter, a number, a formula, or a few words."""
    return choice(answer) is not None or any(map(str.isnumeric, answer)) or len(answer.split()) <= _FEW


_FEW = 3
