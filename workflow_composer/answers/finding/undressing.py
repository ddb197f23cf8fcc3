r"""Undressing of an answer: what a model writes around it (fences, display math, bullets, emphasis, a reason) is taken off.

Pure, linear in the length of the answer, and never raises. What belongs to the answer stays as written: units, fractions,
intervals, `workflow_composer.answers.equality` compares them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

_ROUNDS = 6
_LONGEST_DRESS = 4000
_CHUNK = 1024
_LONGEST_CHOICE = 400

# ------------------------------------------------------------------------------------------------------------- characters

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0xFFE5: "\N{YEN SIGN}"}
_INVISIBLE = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD], "")
_ZEROES = (
    *(0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0E50, 0x0ED0),
    *(0x0F20, 0x1040, 0x17E0, 0x1810),
)
_DIGITS = {zero + value: str(value) for zero in _ZEROES for value in range(10)}
_SYMBOLS = {0x221E: r"\infty ", 0x2205: r"\emptyset ", 0x2300: r"\emptyset "}
_PLAIN = {chr(code): as_plain for code, as_plain in (_FULL_WIDTH | _INVISIBLE | _DIGITS | _SYMBOLS).items()}
_NOT_PLAIN = re.compile(f"[{re.escape(''.join(_PLAIN))}]")


def plain(text: str) -> str:
    r"""Return the text in composed characters (NFC), with ASCII for full-width characters and for digits of other scripts.

    Infinity and the empty set become LaTeX commands: they are answers, while other signs alone are none.

    >>> plain("\uff11\uff18"), plain("re\u0301ponse") == "r\xe9ponse", plain("\u09e7\u09ee")
    ('18', True, '18')
    """
    if text.isascii():
        return text
    return _composed(_NOT_PLAIN.sub(lambda found: _PLAIN[found[0]], text))


def _composed(text: str) -> str:
    """Return the text in NFC, in pieces: a long run of accents would take quadratic time."""
    pieces, start = [], 0
    while start < len(text):
        end = start + _CHUNK
        for _ in range(8):
            if end < len(text) and unicodedata.combining(text[end]):
                end += 1
        pieces.append(unicodedata.normalize("NFC", text[start:end]))
        start = end
    return "".join(pieces)


_NOT_SAID = re.compile(
    r"\\(?:begin|end)\s?\{[^{}]{0,40}\}|```[\w+#-]{0,20}|<\|?/?[a-zA-Z][\w:-]{0,30}\|?>"
    r"|\\(?:left|right|middle|[bB]ig[gG]?[lr]?|quad|qquad|displaystyle|textstyle|text\w{0,7}|math\w{1,7}|mbox|boxed|fbox"
    r"|framebox|hline|[cld]?dots[bcmio]?|limits|[hv]space|[hv]?phantom|color|underline|boldsymbol|bm|operatorname|ensuremath)"
    r"(?![a-zA-Z])"
)


def says_something(answer: str) -> bool:
    r"""Whether there is a letter or a digit beside LaTeX's layout commands, fences and tags.

    >>> says_something("18"), says_something(r"\emptyset"), says_something(r"\[ \]"), says_something(r"\begin{align*}")
    (True, True, False, False)
    >>> says_something("```python"), says_something("---")
    (False, False)
    """
    start = 0
    if "\\" in answer or "`" in answer or "<" in answer:
        for unsaid in _NOT_SAID.finditer(answer):
            if any(map(str.isalnum, answer[start : unsaid.start()])):
                return True
            start = unsaid.end()
    return any(map(str.isalnum, answer[start:]))


# --------------------------------------------------------------------------------------------------------------- wrappers

_FENCE = re.compile(r"```[\w+#.-]{0,20}[ \t]{0,9}\n?(?P<inside>(?:[^`]++|`(?!``))*+)(?:```)?\s*+\Z")
_BULLET = re.compile(r"(?:[-*+\u2022\u00b7\u25aa\u25e6\u2023\u2013\u2014>]|#{1,6}|\d{1,2}[.)])[ \t]+(?=\S)")
_HEADING = re.compile(
    r"(?:>[ \t]*)*#{1,6}[ \t]+(?=\S)|(?:>[ \t]+)+|[\u2022\u25aa\u25e6\u2023\u27a1\u2705\u2714]\ufe0f?[ \t]*"
)
_ENVIRONMENT = re.compile(
    r"\\begin\s?\{(?P<name>align|aligned|alignat|equation|gather|gathered|split|displaymath|math|center|flalign|multline)(?P<star>\*?)\}"
    r"(?P<inside>.*)\\end\s?\{(?P=name)(?P=star)\}\Z",
    re.DOTALL,
)
_COMMAND = re.compile(
    r"\\{1,2}(?:text(?:bf|it|rm|sf|tt|sc|md|up|normal|color\s?\{[^{}]{0,20}\})?|math(?:bf|it|rm|sf|tt|normal)|mbox|hbox"
    r"|boldsymbol|bm|operatorname\*?|emph|underline|boxed|fbox|framebox|ensuremath|displaystyle|textstyle|bf|rm|it|large|Large)"
    r"(?![a-zA-Z])\s{0,3}"
)
_TAG = re.compile(
    r"<(?P<name>b|i|u|em|strong|span|p|div|code|mark|center|answer|final_answer|output|result|value)(?:\s[^<>]{0,80})?>"
)
_PAIRS = [
    (r"\[", r"\]"),
    (r"\(", r"\)"),
    ("$$", "$$"),
    ("$", "$"),
    *((mark, mark) for mark in ("**", "__", "*", "_", "`", "~~")),
]
_QUOTES = {
    '"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u201e": "\u201c", "\u00ab": "\u00bb",
    "\u300c": "\u300d", "\u300e": "\u300f", "\u2039": "\u203a", "\u3010": "\u3011", "\u300a": "\u300b",
}  # fmt: skip
_LAST_ROW = re.compile(r"\\\\(?:\[[^\]]{0,9}\])?\s*+(?=\S)")
_FINAL_DOT = re.compile(r"(?<=[\d)\]}%$*\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7a3])[.,;:]+\Z|(?<=[^\W\d_]{3})[.,;:]\Z")


def undressed(answer: str, *, begins_line: bool = False) -> str:
    r"""Return the answer without wrappers, and the rest as written. ``begins_line``: it may begin with a bullet.

    >>> undressed("**18**"), undressed(r"\[ 9 \]"), undressed(r"$\text{Ines}$."), undressed("- 18", begins_line=True)
    ('18', '9', 'Ines', '18')
    >>> undressed("[2,5)"), undressed("$x$ and $y$"), undressed("*1/*4"), undressed("-18")
    ('[2,5)', '$x$ and $y$', '*1/*4', '-18')
    """
    if len(answer) > _LONGEST_DRESS:
        return answer.strip()
    for _ in range(_ROUNDS):
        before = answer
        answer = _unfenced(answer.strip())
        if begins_line:
            answer = _BULLET.sub("", answer, count=1) if _BULLET.match(answer) else answer
        answer = _unwrapped(_HEADING.sub("", answer, count=1) if _HEADING.match(answer) else answer)
        if answer == before:
            break
        begins_line = False
    return answer


def _unfenced(answer: str) -> str:
    if answer.startswith("```"):
        found = _FENCE.match(answer)
        return found["inside"].strip() if found else answer.strip("`\n ")
    return answer.removesuffix("```").rstrip() if answer.endswith("```") else answer


def _unwrapped(answer: str) -> str:
    answer = _FINAL_DOT.sub("", answer.rstrip("\u3002\uff61\u0964\n ")).rstrip()
    if answer.endswith(".") and answer.count(".") == 1:
        answer = answer[:-1].rstrip()
    for left, right in _PAIRS:
        inside = answer[len(left) : -len(right)]
        if answer.startswith(left) and answer.endswith(right) and inside and left not in inside and right not in inside:
            return inside.strip()
    if len(answer) > 2 and _QUOTES.get(answer[0]) == answer[-1] and answer[-1] not in answer[1:-1]:
        return answer[1:-1].strip()
    for mark in ("**", "__", "$$"):
        if answer.count(mark) == 1 and (answer.startswith(mark) or answer.endswith(mark)):
            return answer.replace(mark, "").strip()
    if answer.startswith(("\\", "{")):
        return _without_command(answer)
    if answer.startswith("<") and (tag := _TAG.match(answer)):
        return answer[tag.end() :].removesuffix(f"</{tag['name']}>").strip()
    return answer


def _without_command(answer: str) -> str:
    """Take off one LaTeX command, environment or pair of braces that holds the whole answer."""
    if answer.startswith("{"):
        is_group = not set(answer) & set(',":') and _closing(answer) == len(answer) - 1
        return answer[1:-1].strip() if is_group else answer
    if found := _ENVIRONMENT.match(answer):
        rows = _LAST_ROW.split(found["inside"].strip().rstrip("\\").strip())
        return rows[-1].replace("&", " ").strip()
    command = _COMMAND.match(answer)
    if command is None:
        return answer
    rest = answer[command.end() :]
    if not rest.startswith("{"):
        return rest if command[0].lstrip("\\").startswith(("displaystyle", "textstyle", "boxed")) else answer
    end = _closing(rest)
    if end == len(rest) - 1:
        return rest[1:-1].strip()
    return rest[1:].strip() if end < 0 and "boxed" in command[0] else answer


def _closing(text: str) -> int:
    """Return where the brace that opens the text closes; -1 if it does not."""
    depth = 0
    for found in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.start()
    return -1


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

# ---------------------------------------------------------------------------------------------------------- what is around

_LEAD = re.compile(
    r"(?:(?:that|therefore|thus|hence|so|simply|just|clearly|indeed|exactly|about|approximately|approx\.?|roughly|nearly"
    r"|equal to|equals|given by|found to be|is|:|="
    r"|\u2248|\\approx|\\implies|\\therefore|\\Rightarrow|\u21d2|=>|->|\u2192)(?![\w])[:,]?\s+)+"
    r"(?=[-+]?[\d$\\(.\u20ac\u00a3*\u00bc-\u00be])|[=:\u2248]\s+|[~\u223c](?=\s?\d)",
    re.IGNORECASE,
)
_LONGEST_TALK = 2000
_TAIL = re.compile(
    r"(?:,|;|\s[-\u2013\u2014])?\s{1,9}(?:because|since(?!\s\d{4}\b)|due to|given that|so that)\b.*"
    r"|(?:,|;)\s{1,9}(?:which|where|as|after|given|not|meaning|but|while|although|though|making)\b.*"
    r"|(?:,|;)\s{1,9}(?:i\.e\.|e\.g\.|that is,).*|(?<=\d);\s{1,9}[a-z].*"
    r"|(?:,|\uff0c|\u3001)\s?(?:\u56e0\u4e3a|\u56e0\u70ba|\u6240\u4ee5|\u5373|\u5176\u4e2d|\u306a\u305c\u306a\u3089).*"
    r"|\s\u2014\s.*|\s[-\u2013]\s(?:the|an?|this|it|its|which)\b.*|\s{1,9}I hope (?:it|this|that) is (?:right|correct)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_AS = re.compile(r"(?<=[\d%$)\]}])\s{1,9}as\s{1,9}(?:she|he|it|they|we|there|the|each|in)\b.*", re.IGNORECASE | re.DOTALL)
_CONTRAST = re.compile(
    r"(?:(?<=[\d%$)\]}])|(?<=\b[A-J]))\s{1,9}(?:(?:and|but)\s{1,9})?(?:not|instead of|rather than|as opposed to)\s{1,9}\S.*",
    re.DOTALL,
)
_ASIDE = re.compile(r"(?P<before>[-+~$\u20ac\u00a3]{0,2}[\d.][^()]*)\s{1,9}\((?!\s?(?:mod|base|in)\b)[^()]*\)\.?")
_POSTFIX = re.compile(
    r"(?<=[^\s])\s?(?:\u3067\u3059|\u3067\u3042\u308b|\u3060|\u306b\u306a\u308a\u307e\u3059|\u3068\u306a\u308a\u307e\u3059"
    r"|\uc785\ub2c8\ub2e4|\uc774\ub2e4|\uc774\uc5d0\uc694|\uc608\uc694)[.\u3002]?\Z"
)
_VERDICT = re.compile(r"(yes|no|true|false)\s?[,;:.!\u2013\u2014]\s+\S", re.IGNORECASE)
_SUM = re.compile(r"(?:[-\d\s.,+*/()=\u00d7\u00f7\u00b7$\u20ac\u00a3%]|\\(?:times|cdot|div)(?![a-zA-Z]))*")
_RESULT = re.compile(
    r"(?!.*\s[-+*/\u00d7\u00f7]\s)\s*[-+]?[$\u20ac\u00a3]?[\d.\\](?:[^,;\s]|,(?=\d)){0,40}(?:\s[^\s,;]{1,20}){0,3}\s*\Z"
)


def without_talk(answer: str) -> str:
    r"""Return the answer without the words that lead to it, its reason and its explanation.

    >>> without_talk("8, because 4 were given away"), without_talk("18 (eighteen)"), without_talk("therefore 18")
    ('8', '18', '18')
    >>> without_talk("18 instead of 20"), without_talk("A and not B")
    ('18', 'A')
    >>> without_talk("9 * 2 = 18"), without_talk("3 (mod 7)"), without_talk("Paris, which is in France")
    ('18', '3 (mod 7)', 'Paris')
    """
    if len(answer) > _LONGEST_TALK:
        return answer
    for pattern in (_TAIL, _AS, _CONTRAST):
        found = pattern.search(answer)
        if found and found.start() and says_something(answer[: found.start()]):
            answer = answer[: found.start()].rstrip()
    if lead := _LEAD.match(answer):
        answer = answer[lead.end() :]
    if aside := _ASIDE.fullmatch(answer):
        answer = aside["before"].rstrip()
    terms, equals, result = answer.rpartition("=")
    if equals and _RESULT.match(result) and _SUM.fullmatch(terms) and any(map(str.isdecimal, terms)):
        answer = result.lstrip()
    if (verdict := _VERDICT.match(answer)) and not any(map(str.isdecimal, answer)):
        answer = verdict[1]
    return _POSTFIX.sub("", answer).strip() or answer


# ------------------------------------------------------------------------------------------------------------------ choices

_OPTION = (
    r"(?i:(?:(?:the|la|el|le|die|der|das|o|a|il)\s|l['\u2019])?"
    r"(?:(?:option|choice|letter|answer|opci[o\xf3]n|letra|lettre|choix|buchstabe|antwort|alternativa|op[c\xe7][a\xe3]o|opzione"
    r"|\u9009\u62e9|\u9078\u64c7|\u9009\u9879|\u9078\u9805|\u9009|\u9078|\u0432\u0430\u0440\u0438\u0430\u043d\u0442)\s?)?)??"
)
_OTHERS = r"\s?(?:and|or|und|oder|et|ou|y|e|o|,|/|&|\+|\u548c|\u6216)\s?\(?[A-Ja-j]\)?(?![\w])"
_CHOICE = re.compile(
    rf"{_OPTION}(?:"
    rf"[(\[\u3010<]\s?(?P<framed>[A-Ja-j])\s?[)\]\u3011>](?P<framed_rest>(?!{_OTHERS})(?:[.:,]?\s.*|[.:].*)?)"
    rf"|(?P<marked>[A-J])\s?(?P<mark>[).:\u3001])(?!{_OTHERS})(?P<marked_rest>.*)"
    r"|(?P<bare>[A-J])(?P<bare_rest>\s?\(.*\)|\s[-\u2013\u2014]\s+\w{2}.*|)"
    r"|(?P<small>[a-j])(?:(?:\)|\.(?=\s))(?P<small_rest>.*))?"
    r")",
    re.DOTALL,
)
_TEXT = re.compile(r"\\(?:text\w{0,6}|mathrm|mathbf|mbox)\s?\{(?P<inside>[^{}]*)\}(?:\\[ ,;:!]|\\q?quad(?![a-zA-Z])|~)?")


class Lettered(NamedTuple):
    """An answer that begins with the letter of a choice. ``rest`` is the text of the choice, "" if there is none.

    ``is_plain``: it can hardly be anything else, so that no label need say that letters are asked for.
    """

    letter: str
    rest: str
    is_plain: bool


@lru_cache(maxsize=1024)
def choice(answer: str) -> Lettered | None:
    r"""Return the choice that an answer names by its letter; None if it names none, or several.

    >>> [found and found.letter for found in map(choice, ("(C) 5", "C) 42", "B: Paris", "option D", "A and C", "Paris"))]
    ['C', 'C', 'B', 'D', None, None]
    >>> choice("E. coli").is_plain, choice("C. 42").is_plain
    (False, True)
    """
    text = _TEXT.sub(r"\g<inside> ", answer[:_LONGEST_CHOICE]).replace("$", "").replace("**", "").strip(" *_`\"'.")
    found = _CHOICE.fullmatch(text)
    if found is None:
        return None
    letter = found["framed"] or found["marked"] or found["bare"] or found["small"]
    rest = found["framed_rest"] or found["marked_rest"] or found["bare_rest"] or found["small_rest"] or ""
    rest = rest.strip(" \t\n.:,;*_-\u2013\u2014")
    digits = bool(rest) and (rest[0].isdecimal() or rest[0] in "$\\-+(.")
    is_plain = letter.isupper() and (
        bool(found["framed"]) or found["mark"] in {")", ":"} or (found["mark"] == "." and digits)
    )
    return Lettered(letter.upper(), rest, is_plain)
