"""Detection of secrets, and removal of secrets from text."""

from __future__ import annotations

import math
import re
from collections import Counter

HIDDEN = "<not shown>"

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[\w-]{8,}"  # OpenAI, Anthropic, DeepSeek, OpenRouter
    r"|(?:gsk|hf|ghp|gho|ghu|ghs|ghr|fw|r8|sk_live|sk_test|github_pat)_\w{12,}"
    r"|wfc-[0-9a-f]{12}-[\w-]{8,}"  # the service's own
    r"|(?:glpat|nvapi|pplx|xai|csk|xox[abprs])-[\w-]{12,}"
    r"|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}[\w.-]*"  # a JSON web token
    r"|[Bb]earer\s+[\w.~+/-]{8,}=*"
    r")"
)
_RUN = re.compile(r"[A-Za-z0-9+]{32,}=*")
_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SECRET_NAME = re.compile(r"api_?-?key|secret|passw|credential|(?<!first_)token$|^key$", re.IGNORECASE)


def names_a_secret(key: object) -> bool:
    """Whether the value of a key with this name is never shown, whatever it is."""
    return isinstance(key, str) and bool(_SECRET_NAME.search(key))


def looks_like_secret(text: str) -> bool:
    """Whether ``text`` contains what could be an API key, a token, or a URL with a password."""
    return scrub(text) != text


def scrub(text: str) -> str:
    """Return ``text`` with everything that looks like a secret replaced by `HIDDEN`."""
    text = _PREFIXED.sub(HIDDEN, text)
    text = _USERINFO.sub(lambda match: match[0] if _only_variables(match[0]) else HIDDEN, text)
    return _RUN.sub(lambda match: HIDDEN if _is_random(match[0]) else match[0], text)


def _only_variables(userinfo: str) -> bool:
    """Whether the part of a URL before its ``@`` gives the password as a variable: ``user:${PASSWORD}``."""
    user, _, password = userinfo.rpartition(":")
    return bool(re.fullmatch(r"\$\{\w+\}", password)) and "${" not in user.replace("${", "", 1)


def _is_random(run: str) -> bool:
    """Whether a run of 32 or more letters and digits is a token rather than a word: at least 4 digits and high entropy.

    In random hexadecimal, 10/16 of the characters are digits, and 32 characters have about 3.7 bits each; in base 62,
    10/62 and 4.5 bits. The longest names of models without a separator have two or three digits.
    """
    digits = sum(character.isdigit() for character in run)
    if digits < 4 or digits == len(run):
        return False
    counts = Counter(run).values()
    return -sum(n / len(run) * math.log2(n / len(run)) for n in counts) >= 3.2
