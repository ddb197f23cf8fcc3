r"""Phrases that announce an answer ("The answer is 18", "Antwort: C"), in the languages that models answer in.

Pure, in linear time: words are located by `str.rfind`, and only what follows a word is matched, with bounded repetition.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from workflow_composer.answers.finding.undressing import choice, says_something, undressed, without_talk

LONGEST = 2000
"""Characters of an announced answer; what goes on longer is a text that begins there."""

_ENGLISH = ("answer", "ans:", "ans =", "correct option", "correct choice", "right option", "right choice", "best option")


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


_EUROPEAN = _words(
    """
    antwort, lösung, ergebnis, réponse, reponse, respuesta, resposta, risposta, antwoord, svar, odpowiedź,
    odpověď, odpoveď, odgovor, ответ, відповідь, отговор, одговор, cevap, yan\u0131t, jawaban, jawapan, đáp án,
    câu trả lời, trả lời, răspuns, válasz, vastaus, vastus, atsakymas, atbilde, απάντηση, jibu, idahun, ìdáhùn,
    sagot, erantzuna
    """
)
_OTHER = _words(
    """
    答案, 答复, 答曰, 解答, 回答, 答え, 正解, 结果是, 結果是, 答, 正确选项, 正確選項, 故选, 故選, 应选, 應選, 所以选, 因此选,
    정답, 답변, 답안, 답, คำตอบ, ตอบ,
    उत्तर, उतर, উত্তর, உத்தர, விடை, సమాధానం, ಜವಾಬು, ਉੱਤਰ, الإجابة, الاجابة, الجواب, إجابة, جواب, پاسخ, תשובה,
    התשובה, պատասխան, პასუხი
    """
)
_MARKUP = r"[*_`\"'\u201d\u2019)\]}~]{0,4}"
_SIGN = r"(?:[:=\uff1a\u0983]|->|=>|\u2192|\u21d2|\u27a1\ufe0f?)"
_AFTER = rf"{_MARKUP}\s{{0,9}}:?"
_HEADING = r"(?P<heading>[*_]{0,3}[ \t]{0,3}(?=\r?\n\s{0,9}\S))"
"""Of a heading without a colon, above the answer."""
_COPULAS = "ist|lautet|wäre|est|es|sería|é|è|is|är|er|jest|je|to|это|є|adalah|ialah|là|este|on|είναι|ni"
_OTHER_COPULAS = "是|为|為|应为|應為|应该是|就是|选择?|選擇?|は|は、|은|는|คือ|है|هي|هو|است|היא|הוא"
_LINKS = (
    (("ans.",), re.compile(r"\.[ \t]{0,3}[:=]?[ \t]{0,3}(?P<heading>(?!))?")),
    (
        _ENGLISH,
        re.compile(
            rf"s?\b[.]?(?:[ ](?:choice|option|letter|key|text))?(?:\s?\([^()\n]{{0,40}}\))?{_MARKUP}"
            rf"(?:[ ](?:to|of|for|in|from|that|which|you|we|I|here|should therefore)\b[^.:\n?!]{{0,90}}?)??\s{{0,9}}"
            rf"(?:(?:is|was|are|were|(?:would|should|must|will|could|can only|has to) be|seems to be|comes (?:out )?to"
            rf"|equals|becomes)\b(?:[ ](?:therefore|thus|hence|then|indeed|clearly|simply|also|still|actually|now|likely))?"
            rf"|{_SIGN}|[ ][-\u2013\u2014](?=[ ])){_AFTER}|s?{_HEADING}",
            re.IGNORECASE,
        ),
    ),
    (
        _EUROPEAN,
        re.compile(
            rf"[^\W\d_]{{0,3}}{_MARKUP}(?:[ ](?!(?:{_COPULAS})\b)[^\W\d_]{{2,14}}){{0,3}}"
            rf"{_MARKUP}\s{{0,3}}(?:{_SIGN}|(?:{_COPULAS})\b|[-\u2013\u2014](?=\s)){_AFTER}"
            rf"|(?:[ ][^\W\d_]{{2,14}}){{0,2}}{_HEADING}",
            re.IGNORECASE,
        ),
    ),
    (
        _OTHER,
        re.compile(
            rf"{_MARKUP}[^\S\n]{{0,2}}(?:{_OTHER_COPULAS}|(?:[ ]?[^\W\d_]{{2,12}}){{0,2}}?\s?{_SIGN}){_AFTER}"
            rf"|(?<=[选選]){_AFTER}|{_HEADING}"
        ),
    ),
)
_INVERSE = re.compile(
    r"(?P<answer>[(\[]?\b[A-J]\b[)\]]?|\$?-?\d[\d,]{0,20}(?:\.\d{1,20})?%?|\$[^$\n]{1,80}\$)"
    r"[*_\"'\u201d)]{0,4}[ ](?:is|must be|would be|should be)[ ]"
    r"(?:therefore[ ]|thus[ ]|indeed[ ]|clearly[ ])?(?:the|our|my)[ ]"
    r"(?:final[ ]|correct[ ]|right[ ]|best[ ])*(?:answer|choice|option|one|solution)"
    r"\b(?![ ](?:to|for|of)[ ](?!this|the))"
)
_WEAK = re.compile(
    r"[>#*_ \t-]{0,9}(?:final |end |overall |my |predicted |correct )?(?:result|total|value|output|verdict|label"
    r"|conclusion|prediction|class|category|classification|sentiment|decision|diagnosis|response|solution|ergebnis|résultat"
    r"|resultado|risultato|结果|結果|結論|결과)[*_]{0,3}\s{0,2}[:\uff1a=][*_]{0,3}[ \t]{0,9}(?P<answer>\S.*)",
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
    r"(?:as follows|reasonable|clear|obvious|good|fine|found|given (?:by|in)|based|obtained|derived|determined|calculated"
    r"|below|above|in the form|correct|right|wrong|incorrect|verified|consistent|unique|not clear|not given|needed"
    r"|required|expected|supposed|the same|straightforward|simple|an integer|a (?:number|fraction|positive|single))\b",
    re.IGNORECASE,
)
_CHOOSES = re.compile(
    r"\b(?:choose|choosing|pick|picking|select|go with|going with|chose|picked|selected|opt for|option|choice"
    r"|answer)[ ]{1,2}(?:is[ ]|option[ ]|choice[ ]|answer[ ])?[*_\"'(\[]{0,3}(?P<letter>[A-J])\b(?![\w'\u2019])"
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
    r"""Return the last announced answer that begins at ``start`` or later. "The answer is clear" counts if no other does.

    >>> announced("The answer is 3.5 dollars. I hope it is right.").answer, announced("**Answer:** 7").answer
    ('3.5 dollars', '7')
    >>> announced("Die Antwort lautet: C").answer, announced("So B is the correct answer.").answer
    ('C', 'B')
    """
    talk = None
    for phrase in _from_the_last(text, start):
        if not is_talk(phrase.answer):
            return phrase
        talk = talk or phrase
    return talk


def last_line(text: str) -> Phrase | None:
    """Return what a last line such as ``A: 18`` or ``Label: positive`` announces."""
    at = text.rstrip().rfind("\n") + 1
    found = _LAST_LINE.fullmatch(text, at, len(text.rstrip())) or _WEAK.fullmatch(text, at, len(text.rstrip()))
    if found is None or len(found["answer"]) > LONGEST or not says_something(found["answer"]):
        return None
    return Phrase(_dressed_off(found["answer"]), at, complete=text.endswith("\n"), states=True)


def chosen(text: str) -> Phrase | None:
    """Return the last letter that the text chooses: "I would pick B", "option (C)"."""
    found = last_match(_CHOOSES, text)
    return None if found is None else Phrase(found["letter"], found.start(), complete=found.end() < len(text), states=False)


def last_match(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """Return the last match of a pattern, or None."""
    last = deque(pattern.finditer(text, start), maxlen=1)
    return last[0] if last else None


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
    inverse = last_match(_INVERSE, text, max(start, len(text) - LONGEST))
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
    found = link.match(text, end - 1 if word[-1] in ".:=" else end)
    if found is not None and found["heading"] is not None and _STATED.match(text, text.rfind("\n", 0, at) + 1, at) is None:
        return None
    return found


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
    sentence = _SENTENCE_END.search(line)
    said = line[: sentence.start()] if sentence and says_something(line[: sentence.start()]) else line
    ends = sentence is not None or len(line) < len(rest)
    return _made(text, at, end, begin, said, begin + len(said) + 1 if ends else len(text))


def _made(text: str, at: int, end: int, begin: int, said: str, closed: int) -> Phrase | None:
    answer = _dressed_off(said, begins_line="\n" in text[end - 1 : begin])
    if not says_something(answer):
        return None
    heads = _STATED.match(text, text.rfind("\n", 0, at) + 1, at) is not None
    colon = text[at:end].rstrip(" \t\n*_").endswith((":", "\uff1a"))
    return Phrase(answer, at, closed < len(text), heads and (colon or "\n" in text[end:begin]))


def _dressed_off(said: str, *, begins_line: bool = False) -> str:
    bare = said.strip(" \t:\uff1a").lstrip(",\u3001\uff0c").strip()
    if bare.endswith(("}", "]", ")")) and not set(bare) & set("{[("):
        bare = bare.rstrip("}]) ")  # what surrounded the phrase
    return without_talk(undressed(without_talk(undressed(bare, begins_line=begins_line))))


def is_talk(answer: str) -> bool:
    """Whether an announced answer only says how the answer is, as "reasonable" does."""
    return _NO_ANSWER.match(answer) is not None


def is_value(answer: str) -> bool:
    """Whether an announced answer looks like a final one: a letter, a number, a formula, or a few words."""
    return choice(answer) is not None or any(map(str.isnumeric, answer)) or len(answer.split()) <= _FEW


_FEW = 3
