"""Units: their writings and conversion. Pure, linear.

`measure` reads the text after a number: "mg", "kilometers per hour", "in^2", "mg/kg", "apples". A unit of measurement
has a dimension and a factor, so that 0.5 g is 500 mg. Case decides between millimolar (mM) and millimetre (mm). Any other
word is a noun: what is counted. Percent signs and degrees of angles say nothing, as in GSM8K: 5 % is 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimension = tuple[tuple[str, int], ...]
"""Base units with their exponents, sorted; empty for a bare number."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A unit: a value in it, times ``factor`` plus ``offset``, is a value in the base units of ``dimension``."""

    dimension: Dimension = ()
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    noun: bool = False

    def base(self, value: Fraction) -> Fraction:
        """Return this number of units in base units."""
        return value * self.factor + self.offset


BARE = Measure()

_PREFIXES = {"k": 3, "h": 2, "d": -1, "c": -2, "m": -3, "u": -6, "\u03bc": -6, "mc": -6, "n": -9, "p": -12}
_LONG_PREFIXES = {
    "mega": 6,
    "kilo": 3,
    "hecto": 2,
    "deci": -1,
    "centi": -2,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "pico": -12,
}
_LARGE = {"G": 9, "M": 6}
_PREFIXED = {  # base symbol: (dimension, prefixes, factor of the symbol without a prefix)
    "g": ("gram", "k d c m u \u03bc mc n p", 1),
    "m": ("metre", "k d c m u \u03bc n p", 1),
    "l": ("litre", "h d c m u \u03bc n p", 1),
    "L": ("litre", "h d c m u \u03bc n p", 1),
    "s": ("second", "m u \u03bc n p", 1),
    "mol": ("mole", "k m u \u03bc n p", 1),
    "M": ("molar", "m u \u03bc n p", 1),
    "Eq": ("equivalent", "m", 1),
    "eq": ("equivalent", "m", 1),
    "Pa": ("pascal", "k h m", 1),
    "J": ("joule", "k m", 1),
    "W": ("watt", "k m", 1),
    "Wh": ("watt hour", "k", 1),
    "V": ("volt", "k m u", 1),
    "A": ("ampere", "m u n", 1),
    "Hz": ("hertz", "k", 1),
    "cal": ("calorie", "k", 1),
    "IU": ("international unit", "m", 1),
    "bp": ("base pair", "k", 1),
    "b": ("base pair", "k", 1),
    "Da": ("dalton", "k", 1),
    "Bq": ("becquerel", "k", 1),
    "Gy": ("gray", "m c", 1),
    "Sv": ("sievert", "m u \u03bc", 1),
}
_MEGA = {"Hz": "hertz", "Pa": "pascal", "J": "joule", "W": "watt", "bp": "base pair", "b": "base pair", "Bq": "becquerel"}
_LONG_PREFIXED = {
    "gram": "gram",
    "gramme": "gram",
    "meter": "metre",
    "metre": "metre",
    "liter": "litre",
    "litre": "litre",
    "second": "second",
    "mole": "mole",
    "molar": "molar",
    "joule": "joule",
    "watt": "watt",
    "volt": "volt",
    "ampere": "ampere",
    "pascal": "pascal",
    "hertz": "hertz",
    "calorie": "calorie",
}
_MINUTE, _INCH, _POUND = Fraction(60), Fraction(254, 10000), Fraction("453.59237")
_WORDS: dict[str, tuple[str, Fraction]] = {
    word: (dimension, Fraction(factor))
    for dimension, factor, words in (
        ("second", 1, "sec"),
        ("second", 60, "min minute"),
        ("second", 3600, "h hr hour"),
        ("second", 86400, "d day"),
        ("second", 604800, "wk week"),
        ("month", 1, "mo month"),
        ("month", 12, "y yr year"),
        ("metre", _INCH, "in inch"),
        ("metre", 12 * _INCH, "ft foot feet"),
        ("metre", 36 * _INCH, "yd yard"),
        ("metre", 63360 * _INCH, "mi mile"),
        ("gram", _POUND, "lb pound"),
        ("gram", _POUND / 16, "oz ounce"),
        ("litre", Fraction(1, 1000), "cc"),
        ("international unit", 1, "iu"),
        ("unit", 1, "unit u"),
        ("dollar", 1, "dollar usd buck"),
        ("dollar", Fraction(1, 100), "cent"),
        ("euro", 1, "euro eur"),
        ("mmhg", 1, "mmhg"),
        ("atmosphere", 1, "atm"),
        ("revolution per minute", 1, "rpm"),
        ("beat per minute", 1, "bpm"),
    )
    for word in words.split()
}
_SPEEDS = {"mph": "mile/hour", "kph": "km/h", "kmh": "km/h"}
_SILENT = frozenset(("%", "percent", "percentage", "degree", "deg", "\u00b0"))
_CASE_DECIDES = frozenset(("m", "mm", "um", "\u03bcm", "nm", "pm"))
_TERM = re.compile(r"([^\W\d_]+\.?)(?: ?\^ ?\{?([-+]?[1-9])\}?)?")
_SHAPE = re.compile(r"(?:sq(?:uare|\.)?|cubic|cu\.?) ")
_SHAPED = re.compile(r" (?:squared|cubed)$")
_KELVIN_OFFSET = Fraction("273.15")
_TEMPERATURES = {
    "degc": Measure((("temperature", 1),), Fraction(1), _KELVIN_OFFSET),
    "degf": Measure((("temperature", 1),), Fraction(5, 9), _KELVIN_OFFSET - 32 * Fraction(5, 9)),
}
_LONGEST = 80


@lru_cache(maxsize=4096)
def measure(unit: str) -> Measure:
    """Return the measure that this unit names; `BARE` for none, a noun for words that are no unit.

    >>> measure("mg").base(Fraction(500)) == measure("g").base(Fraction(1, 2)), measure("mM") == measure("mm")
    (True, False)
    >>> measure("km/h") == measure("kilometers per hour"), measure("in^2") == measure("square inches")
    (True, True)
    >>> measure("apples").noun, measure("apple") == measure("apples"), measure("%") == BARE
    (True, True, True)
    """
    unit = unit.strip()
    if not unit or unit.casefold().rstrip(".") in _SILENT:
        return BARE
    if len(unit) > _LONGEST:
        return _noun(unit)
    if unit.casefold() in _TEMPERATURES:
        return _TEMPERATURES[unit.casefold()]
    unit = _SPEEDS.get(unit.casefold(), unit).replace("mm Hg", "mmHg").replace("mm hg", "mmhg")
    return _ratio(unit) or _noun(unit)


def _ratio(unit: str) -> Measure | None:
    """Return the measure of terms joined by "/" or "per"; None if any is unknown."""
    factor, exponents = Fraction(1), dict[str, int]()
    for place, part in enumerate(re.split(r" ?/ ?| per ", unit)):
        found = _term(part.strip())
        if found is None:
            return None
        dimension, own, power = found
        factor *= own ** (power if place == 0 else -power)
        name = dimension if place == 0 else f"/{dimension}"  # mg/kg is no bare number
        exponents[name] = exponents.get(name, 0) + power
    return Measure(tuple(sorted(exponents.items())), factor)


def _term(part: str) -> tuple[str, Fraction, int] | None:
    power = 1
    if shape := _SHAPE.match(part):
        power, part = (2 if shape[0].startswith("s") else 3), part[shape.end() :]
    elif shaped := _SHAPED.search(part):
        power, part = (2 if shaped[0] == " squared" else 3), part[: shaped.start()]
    found = _TERM.fullmatch(part)
    if found is None:
        return None
    known = _known(found[1].rstrip("."))
    return None if known is None else (*known, int(found[2] or power))


@lru_cache(maxsize=4096)
def _known(symbol: str) -> tuple[str, Fraction] | None:
    """Return the dimension and the factor of one unit; None for a word that is no unit."""
    if symbol in _symbols():
        return _symbols()[symbol]
    low = symbol.casefold()
    if low in _WORDS:
        return _WORDS[low]
    if low not in _CASE_DECIDES and len(low) > 1 and low in _symbols():
        return _symbols()[low]
    singular = singular_of(low)
    return _WORDS.get(singular) or _long(singular)


@lru_cache(maxsize=1)
def _symbols() -> dict[str, tuple[str, Fraction]]:
    """Return the units that are written with prefixes."""
    found: dict[str, tuple[str, Fraction]] = {}
    for base, (dimension, prefixes, factor) in _PREFIXED.items():
        if base != "b":
            found[base] = dimension, Fraction(factor)
        for prefix in prefixes.split():
            found[prefix + base] = dimension, Fraction(factor) * Fraction(10) ** _PREFIXES[prefix]
    for base, dimension in _MEGA.items():
        for prefix, power in _LARGE.items():
            found[prefix + base] = dimension, Fraction(10) ** power
    return found


def _long(word: str) -> tuple[str, Fraction] | None:
    for name, dimension in _LONG_PREFIXED.items():
        if word == name:
            return dimension, Fraction(1)
        if word.endswith(name) and (power := _LONG_PREFIXES.get(word[: -len(name)])) is not None:
            return dimension, Fraction(10) ** power
    return None


def _noun(unit: str) -> Measure:
    return Measure(((" ".join(singular_of(word) for word in unit.casefold().split()), 1),), noun=True)


_ES = re.compile(r"(?:ch|sh|x|ss)es\Z")


def singular_of(word: str) -> str:
    """Return an English noun without the ending of its plural, roughly.

    >>> singular_of("inches"), singular_of("tablets"), singular_of("glass")
    ('inch', 'tablet', 'glass')
    """
    word = word.rstrip(".")
    return word[:-2] if _ES.search(word) else word[:-1] if word.endswith("s") and not word.endswith("ss") else word
