r"""Names: answers that are neither numbers nor formulas, each in one canonical writing. Pure, linear.

`name` removes what carries no meaning in its kind of name: case in words, space beside digits, the order of day and month
around a month's name, three-letter codes of amino acids, the deleted bases of HGVS. What may carry meaning stays, because
taking two answers for one does more harm than the reverse: 04/02/2021 is no day of April or February in particular, ``A/G``
keeps its order (it also writes a change from A to G), ``Aa`` and ``aa`` differ. Of genotypes, phased ones (``0|1``) keep
their order and unphased ones (``0/1``) have none, as in VCF; only those with an allele 0 are surely genotypes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

# ------------------------------------------------------------------------------------------------------------------- dates

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sept sep",
            "october oct",
            "november nov",
            "december dec",
        ),
        1,
    )
    for name in names.split()
}
_MONTH = rf"({'|'.join(sorted(_MONTHS, key=len, reverse=True))})\.?"
_WEEKDAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?(?:on )?(?:the )?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(\d{4})"
_ISO = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_ISO_MONTH = re.compile(r"(\d{4})-(\d\d)")
_DAY_MONTH = re.compile(rf"{_WEEKDAY}{_DAY}(?: of)?[ -]{_MONTH}(?:(?:,? |-){_YEAR})?")
_MONTH_DAY = re.compile(rf"{_WEEKDAY}{_MONTH}[ -](?:the )?{_DAY}(?:(?:,? |-|,){_YEAR})?")
_MONTH_YEAR = re.compile(rf"{_MONTH},?[ -](?:of )?{_YEAR}")
_THREE = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")


def _date(text: str) -> str | None:
    low = text.casefold()
    if found := _ISO.fullmatch(low):
        return _day(found[1], int(found[3]), int(found[4]))
    if (found := _ISO_MONTH.fullmatch(low)) and 1 <= int(found[2]) <= 12:
        return f"date {found[1]}-{found[2]}"
    if found := _DAY_MONTH.fullmatch(low):
        return _day(found[3] or "", _MONTHS[found[2]], int(found[1]))
    if found := _MONTH_DAY.fullmatch(low):
        return _day(found[3] or "", _MONTHS[found[1]], int(found[2]))
    if found := _MONTH_YEAR.fullmatch(low):
        return f"date {found[2]}-{_MONTHS[found[1]]:02}"
    return _numeric_date(low)


def _numeric_date(text: str) -> str | None:
    """Return the day if only one order of day and month is possible, or with dots, which put the day first."""
    found = _THREE.fullmatch(text)
    if found is None:
        return None
    one, other, year = int(found[1]), int(found[3]), found[4]
    if one == other or other > 12:
        return _day(year, one, other)
    if one > 12 or found[2] == ".":
        return _day(year, other, one)
    return f"date? {one}/{other}/{year}"


def _day(year: str, month: int, day: int) -> str | None:
    return f"date {year}-{month:02}-{day:02}" if 1 <= month <= 12 and 1 <= day <= 31 else None


# ------------------------------------------------------------------------------------------------------------------- times

_TIME = re.compile(r"(\d{1,2})(?:[:.h](\d\d))?(?::(\d\d))? ?(?:([ap])\.? ?m\.?|(noon|midnight|o'clock))?(?: ?([a-z]{1,4}))?")
_WORD_TIMES = {"noon": "time 12:00:00", "midday": "time 12:00:00", "midnight": "time 00:00:00"}


def _time(text: str) -> str | None:
    low = text.casefold()
    if low in _WORD_TIMES:
        return _WORD_TIMES[low]
    found = _TIME.fullmatch(low)
    if found is None or not (found[4] or found[5] or (found[2] and ":" in low) or (found[2] and "h" in low)):
        return None
    hour, minute, second = int(found[1]), int(found[2] or 0), int(found[3] or 0)
    if minute > 59 or second > 59 or hour > 24 or (found[4] and not 1 <= hour <= 12):
        return None
    if found[4] or found[5] in ("noon", "midnight"):
        hour = hour % 12 + (12 if found[4] == "p" or found[5] == "noon" else 0)
    zone = {"gmt": "utc", "z": "utc"}.get(found[6] or "", found[6] or "")
    return f"time {hour:02}:{minute:02}:{second:02} {zone}".rstrip()


# ----------------------------------------------------------------------------------------------------------------- biology

_CODES = {
    "ala": "A",
    "arg": "R",
    "asn": "N",
    "asp": "D",
    "cys": "C",
    "gln": "Q",
    "glu": "E",
    "gly": "G",
    "his": "H",
    "ile": "I",
    "leu": "L",
    "lys": "K",
    "met": "M",
    "phe": "F",
    "pro": "P",
    "ser": "S",
    "thr": "T",
    "trp": "W",
    "tyr": "Y",
    "val": "V",
    "sec": "U",
    "pyl": "O",
    "xaa": "X",
}
_RESIDUES = {
    "alanine": "ala",
    "arginine": "arg",
    "asparagine": "asn",
    "aspartate": "asp",
    "aspartic acid": "asp",
    "cysteine": "cys",
    "glutamine": "gln",
    "glutamate": "glu",
    "glutamic acid": "glu",
    "glycine": "gly",
    "histidine": "his",
    "isoleucine": "ile",
    "leucine": "leu",
    "lysine": "lys",
    "methionine": "met",
    "phenylalanine": "phe",
    "proline": "pro",
    "serine": "ser",
    "threonine": "thr",
    "tryptophan": "trp",
    "tyrosine": "tyr",
    "valine": "val",
    "selenocysteine": "sec",
}
_CODE = "|".join(_CODES)
_LETTER = "[ACDEFGHIKLMNPQRSTVWY]"
_ANY_CODE = re.compile(rf"{_CODE}|ter|stop", re.IGNORECASE)
_REFERENCE = r"(?:[a-z]{2}_\d+(?:\.\d+)?(?:\([\w-]+\))?:)?"
_PROTEIN = re.compile(rf"({_REFERENCE})p\.(\(?[\w*=?()+-]+\)?)", re.IGNORECASE)
_CHANGE = re.compile(rf"({_LETTER}|(?:{_CODE}))(\d+)({_LETTER}|(?:{_CODE})|ter|stop|[*X]|del|dup)", re.IGNORECASE)
_DELTA = re.compile(rf"(?:\u0394|\u03b4|delta[ -]?|del)({_LETTER}|{_CODE})(\d+)", re.IGNORECASE)
_STOP_AFTER = re.compile(r"(?<=\d)X\b|(?<=FS)X(?=\d)")
_DNA = re.compile(rf"({_REFERENCE})([cgmnr]\.)(.+)", re.IGNORECASE)
_DELETED = re.compile(r"(del|dup)[acgtu]+(?=ins|\Z)|(del|dup)\d+(?=\Z)")
_RESIDUE = re.compile(rf"({_CODE}|{'|'.join(_RESIDUES)})(?:[ -]?(\d+))?", re.IGNORECASE)
_PEPTIDE = re.compile(rf"(?:{_CODE})(?:[ -]?(?:{_CODE}))+", re.IGNORECASE)
_BASES = r"(?:[ACGTUN]+(?:[ -][ACGTUN]+)*|[acgtun]+(?:[ -][acgtun]+)*)"
_SEQUENCE = re.compile(rf"(?:5' ?-? ?)?({_BASES})(?: ?-? ?3'?)?")
_SEQUENCE_FROM_3 = re.compile(rf"3' ?-? ?({_BASES}) ?-? ?5'?")
_GENOTYPE = re.compile(r"(\d+|\.)(?: ?([/|]) ?)(\d+|\.)")
_STARS = re.compile(r"(\w*?)(\*\d+[A-Z]?)/(?:\1)?(\*\d+[A-Z]?)", re.IGNORECASE)
_BLOOD = re.compile(
    r"(?:(?:blood )?(?:type|group) )?(a|b|ab|o|0)(?: ?rh(?:\(?d\)?)?)?(?: ?([-+])|[ -](positive|negative|pos|neg)\.?)",
    re.IGNORECASE,
)
_LOCUS = re.compile(r"(?:chr(?:omosome)?[ .]?)?(\d{1,2}|[XYM]|MT)(:[\d,]+(?:-[\d,]+)?|[pq]\d+(?:\.\d+)?)", re.IGNORECASE)
_CHROMOSOME = re.compile(r"chr(?:omosome)?[ .]?(\d{1,2}|[XYM]|MT)", re.IGNORECASE)
_ICD = re.compile(r"(?:icd-?10(?:-?(?:cm|gm|who))?(?: code)?[: ] ?)([a-z]\d[\da-z](?:\.?[\da-z]{1,4})?)", re.IGNORECASE)
_TNM = re.compile(r"[pcy]{0,2}T[\dXisab]+ ?,?N[\dX][abc]? ?,?M[\dX][abc]?", re.IGNORECASE)
_HLA = re.compile(r"(?:HLA-)?([A-Z]+\d?\*\d+(?::\d+)*[A-Z]?)", re.IGNORECASE)


def _protein(text: str) -> str | None:
    """Return a change of a protein in one-letter codes: p.Val600Glu and V600E are p.V600E."""
    if found := _PROTEIN.fullmatch(text):
        body = found[2]
        if body.startswith("(") and body.endswith(")"):
            body = body[1:-1]  # predicted, which says nothing about the change
        return found[1].casefold() + "p." + _one_letter(body)
    if found := _DELTA.fullmatch(text):
        return "p." + _one_letter(f"{found[1]}{found[2]}del")
    if found := _CHANGE.fullmatch(text):
        return "p." + _one_letter(found[0])
    return None


def _one_letter(body: str) -> str:
    short = _ANY_CODE.sub(lambda code: _CODES.get(code[0].casefold(), "*"), body)
    return _STOP_AFTER.sub("*", short.upper())


def _dna(text: str) -> str | None:
    """Return a change of DNA or RNA without what its positions determine: c.35delG is c.35del."""
    found = _DNA.fullmatch(text.replace(" ", ""))
    if found is None or not any(map(str.isdigit, found[3])):
        return None
    change = found[3].casefold().replace("->", ">").replace("\u2192", ">")
    change = _DELETED.sub(lambda part: part[1] or part[2], change)
    return f"{found[1].casefold()}{found[2].casefold()}{change}"


def _residue(text: str) -> str | None:
    """Return an amino acid, with its position if it has one: Ser-473 is S473, Trp is tryptophan."""
    found = _RESIDUE.fullmatch(text)
    if found is None:
        return None
    word = found[1].casefold()
    code = _RESIDUES.get(word, word)
    if found[2] is None:
        return f"amino acid {code}"
    return f"{_CODES[code]}{found[2]}".casefold()


def _peptide(text: str) -> str | None:
    if not _PEPTIDE.fullmatch(text):
        return None
    return "".join(_CODES[code.casefold()] for code in re.findall(_CODE, text, re.IGNORECASE)).casefold()


def _sequence(text: str) -> str | None:
    """Return a sequence of bases from 5' to 3'."""
    if found := _SEQUENCE_FROM_3.fullmatch(text):
        return f"3'-{_joined(found[1])}"
    found = _SEQUENCE.fullmatch(text)
    return _joined(found[1]) if found and len(found[1]) > 2 else None


def _joined(bases: str) -> str:
    return bases.replace(" ", "").replace("-", "").casefold()


def _genotype(text: str) -> str | None:
    if found := _STARS.fullmatch(text):
        return found[1].casefold() + "/".join(sorted((found[2].casefold(), found[3].casefold())))
    found = _GENOTYPE.fullmatch(text)
    if found is None:
        return None
    one, sign, other = found.groups()
    if sign == "/" and "0" in (one, other):
        one, other = sorted((one, other))
    return f"{one}{sign}{other}"


def _blood(text: str) -> str | None:
    found = _BLOOD.fullmatch(text)
    if found is None:
        return None
    group = found[1].casefold().replace("0", "o")
    sign = found[2] or {"p": "+", "n": "-"}[found[3][0].casefold()]
    return f"blood {group}{sign}"


def _locus(text: str) -> str | None:
    """Return a place in a genome: chr7:140,453,136 is 7:140453136."""
    if found := _CHROMOSOME.fullmatch(text):
        return f"chr{found[1]}".casefold()
    found = _LOCUS.fullmatch(text)
    if found is None or (found[2].startswith(":") and not (text[0] in "cC" or len(found[2]) > _SHORT_POSITION)):
        return None
    return f"{found[1]}{found[2].replace(',', '')}".casefold()


_SHORT_POSITION = 5


def _code_of_a_disease(text: str) -> str | None:
    found = _ICD.fullmatch(text)
    return found[1].casefold() if found else None


def _tumour(text: str) -> str | None:
    return text.replace(" ", "").replace(",", "").casefold() if _TNM.fullmatch(text) else None


def _allele(text: str) -> str | None:
    found = _HLA.fullmatch(text)
    return found[1].casefold() if found else None


# ------------------------------------------------------------------------------------------------------------ other names

_POSTCODE = re.compile(r"([A-Z]{1,2}\d[A-Z\d]?) ?(\d[A-Z]{2})", re.IGNORECASE)
_TELEPHONE = re.compile(r"\+[\d ().-]{8,}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}")
_VERSION = re.compile(r"v(?:er(?:sion)?)?\.? ?(\d+(?:\.\d+)+\S*)", re.IGNORECASE)
SCHEDULES = frozenset(("twice daily", "3times daily", "4times daily", "once daily", "daily", "as needed", "at bedtime"))
"""Canonical writings of schedules, besides "every 8 hours"."""
_EVERY = re.compile(r"\b(?:every (\d+) ?(?:hours?|hrs?|h)|q ?(\d+) ?(?:hours?|hrs?|h))\b")
_THREE_PARTS = re.compile(r"\d+(?:\.\d+){2,}\S*")
_POINTED = re.compile(r"[a-uw-z]\d[\da-z]\.[\da-z]{1,4}")
_POINTLESS = re.compile(r"[a-uw-z]\d[\da-z]{2,5}")
_CAPTURE = re.compile(r"[a-hKQRBN][a-h]?[1-8]?x[a-h][1-8].{0,3}")


def _postcode(text: str) -> str | None:
    found = _POSTCODE.fullmatch(text)
    return f"{found[1]}{found[2]}".casefold() if found else None


def _telephone(text: str) -> str | None:
    return "tel " + re.sub(r"[ ().-]", "", text) if _TELEPHONE.fullmatch(text) else None


def _version(text: str) -> str | None:
    found = _VERSION.fullmatch(text)
    return found[1].casefold() if found else None


def _schedule(text: str) -> str | None:
    found = _EVERY.fullmatch(text)
    return f"every {found[1] or found[2]} hours" if found else None


def _chess_capture(text: str) -> str | None:
    return f"move {text}" if _CAPTURE.fullmatch(text) else None


_FAMILIES: tuple[Callable[[str], str | None], ...] = (
    _date,
    _time,
    _genotype,
    _schedule,
    _chess_capture,
    _protein,
    _dna,
    _tumour,
    _residue,
    _peptide,
    _sequence,
    _blood,
    _locus,
    _code_of_a_disease,
    _allele,
    _postcode,
    _telephone,
    _version,
)

# ------------------------------------------------------------------------------------------------------------------- words

_ORDINALS = {
    word: written
    for words, written_so in (
        ("first second third fourth fifth sixth seventh eighth ninth tenth", "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th"),
        ("eleventh twelfth thirteenth fourteenth fifteenth sixteenth", "11th 12th 13th 14th 15th 16th"),
        ("seventeenth eighteenth nineteenth twentieth", "17th 18th 19th 20th"),
    )
    for word, written in zip(words.split(), written_so.split(), strict=True)
}
_NUMERALS = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx"
_ROMAN = {numeral: str(number) for number, numeral in enumerate(_NUMERALS.split(), 1)}
_NUMBERED = re.compile(
    r"\b(stage|grade|type|phase|class|factor|level|war|chapter|category|group|nerve|figure|table|part|volume|act|complex"
    r"|schedule|tier) ([ivx]+)([a-d]?)\b"
)
_PHRASES = {
    "twice daily": "bid|twice (?:a|per) day|two times (?:a|per) day|2 ?(?:x|times) ?(?:/|a |per )?(?:day|daily)",
    "3 times daily": "tid|three times (?:a day|per day|daily)|3 ?(?:x|times) ?(?:/|a |per )?day",
    "4 times daily": "qid|four times (?:a day|per day|daily)|4 ?(?:x|times) ?(?:/|a |per )?day",
    "once daily": "qd|once (?:a|per) day|every day",
    "as needed": "prn",
    "by mouth": "po|orally",
    "intravenous": "iv|intravenously",
    "intramuscular": "im|intramuscularly",
    "subcutaneous": "sc|subcutaneously|subq",
}
_PHRASE = [(re.compile(rf"(?<![\w.])(?:{pattern})(?![\w.])"), phrase) for phrase, pattern in _PHRASES.items()]
_ABBREVIATION = re.compile(r"(?<![\w.])(?:[a-z]\.){2,}(?![\w])|(?<![\w.])(?:[a-z]\.)+[a-z](?![\w.])")
_TITLE = re.compile(r"(?:sir|dr|prof(?:essor)?)\.? (?=\S+ \S)")
_COMMA_AND = re.compile(r", (and|or) ")
_SPACE_TO_NO_PURPOSE = re.compile(r"(?<![^\W\d_]) (?!\d)|(?<![\d ]) (?![^\W\d_])|(?<=\d) (?=[^\W\d_])|(?<=[^\W\d_]) (?=\d)")
_HYPHEN_TO_NO_PURPOSE = re.compile(r"(?<=[a-z][a-z])-(?=\d)")
_ALLELES = re.compile(r"(?:([A-Za-z])(?i:\1)){1,6}")
"""Pairs of alleles, whose case tells the dominant from the recessive one."""
_DOTS = re.compile(r"[.,;:!?]+\Z")
_EDGES = ' `"'


@lru_cache(maxsize=8192)
def name(text: str) -> str:
    r"""Return the canonical writing of a name: two names with the same one are equal.

    ``text`` has plain characters and no LaTeX (`Notation.written`).

    >>> name("p.Val600Glu") == name("V600E"), name("4 March 2021") == name("2021-03-04"), name("2:30 pm") == name("14:30")
    (True, True, True)
    >>> name("0/1") == name("1/0"), name("0|1") == name("1|0"), name("Aa") == name("aa"), name("4/2/21") == name("4 Feb 21")
    (True, False, False, False)
    >>> name("T2 N0 M0") == name("t2n0m0"), name("The Nile.") == name("nile"), name("b.i.d.") == name("twice daily")
    (True, True, True)
    """
    text = text.strip(_EDGES)
    bare = _DOTS.sub("", text) or text
    if len(bare) <= _LONGEST_NAME:
        for family in _FAMILIES:
            if (found := family(bare)) is not None:
                return found
    return _words(text)


_LONGEST_NAME = 200
_LETTER_IN_BRACKETS = 3
_ELEMENTS = frozenset(("Co", "Cs", "Hf", "Os", "Po", "Sc", "Sn"))
"""Elements whose symbols in capitals are compounds: CO is carbon monoxide."""


def family(text: str) -> bool:
    """Whether the text is a name of a known form: a date, a time, a genotype, a change of a protein, a code."""
    bare = _DOTS.sub("", text.strip(_EDGES))
    return len(bare) <= _LONGEST_NAME and any(each(bare) is not None for each in _FAMILIES)


def is_version(text: str) -> bool:
    """Whether the text is a version for sure: with a ``v`` or three parts.

    >>> is_version("v1.10"), is_version("1.2.3"), is_version("1.10")
    (True, True, False)
    """
    return bool(_VERSION.fullmatch(text) or _THREE_PARTS.fullmatch(text))


def with_point(names: list[str]) -> list[str]:
    """Return codes of diseases with the point that data transfers leave out, if one of the names has it.

    >>> with_point(["e11.9", "e119"]), with_point(["e119", "e118"])
    (['e11.9', 'e11.9'], ['e119', 'e118'])
    """
    if not any(map(_POINTED.fullmatch, names)):
        return names
    return [f"{each[:3]}.{each[3:]}" if _POINTLESS.fullmatch(each) else each for each in names]


def with_order(names: list[str], answers: list[str]) -> list[str]:
    """Return numeric dates as days if the other answers to the question show whether the day or the month comes first.

    >>> with_order(["date? 4/2/2021", "date 2021-04-25"], ["04/02/2021", "04/25/2021"])
    ['date 2021-04-02', 'date 2021-04-25']
    """
    if not any(each.startswith("date?") for each in names):
        return names
    written = [found for each in answers if (found := _THREE.fullmatch(each.strip(_EDGES)))]
    day_first, month_first = (any(int(found[at]) > 12 for found in written) for at in (1, 3))
    if day_first == month_first:
        return names
    return [_ordered(each, day_first=day_first) if each.startswith("date?") else each for each in names]


def _ordered(text: str, *, day_first: bool) -> str:
    one, other, year = text.removeprefix("date? ").split("/")
    day, month = (int(one), int(other)) if day_first else (int(other), int(one))
    return _day(year, month, day) or text


def _words(text: str) -> str:
    if text in _ELEMENTS:
        return f"element {text}"
    if _ALLELES.fullmatch(text):
        return f"alleles {text}"
    if len(text) == _LETTER_IN_BRACKETS and text[0] + text[2] == "()":
        return text[1].casefold()
    text = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text.casefold())
    text = _DOTS.sub("", text).removeprefix("the ")
    text = _TITLE.sub("", text, count=1)
    text = _NUMBERED.sub(lambda found: f"{found[1]} {_ROMAN.get(found[2], found[2])}{found[3]}", text)
    if text in _ORDINALS:
        text = _ORDINALS[text]
    for pattern, phrase in _PHRASE:
        text = pattern.sub(phrase, text)
    text = _EVERY.sub(lambda found: f"every {found[1] or found[2]} hours", text)
    text = _COMMA_AND.sub(r" \1 ", text)
    return _HYPHEN_TO_NO_PURPOSE.sub("", _SPACE_TO_NO_PURPOSE.sub("", text))
