"""Separation of a model's reasoning (``<think>...</think>`` and its relatives) from its answer. Pure, linear."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

_NAMES = r"(?:seed:|ant:)?(?:think(?:ing)?(?:_fast(?:er)?)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|cot)"
_MARK = re.compile(
    # An opening or a closing mark; a closing one fills a group named close_*. The models that use each:
    r"[<\[\u25c1](?:"
    rf"(?P<close_tag>/?){_NAMES}\s{{0,3}}>"  # DeepSeek-R1, Qwen3, GLM-4.5, MiniMax-M2, EXAONE Deep, Seed-OSS, K2-V2
    rf"|\|(?P<close_bar>/?){_NAMES}\|>"  # LiteRT-LM's form of Gemma
    r"|(?P<close_square>/?)THINK\]"  # Magistral
    r"|(?P<close_triangle>/?)think\u25b7"  # Kimi-VL
    r"|\|(?:begin|(?P<close_thought>end))_of_thought\|>"  # OpenThinker, Sky-T1
    r"|\|(?:START|(?P<close_command>END))_THINKING\|>"  # Command A Reasoning
    r"|\|inner_(?:prefix|(?P<close_inner>suffix))\|>"  # Apertus
    r"|unused94>(?:thought\n)?|(?P<close_unused>unused95>)"  # MedGemma
    r"|\|channel>(?:thought|analysis)\b|(?P<close_channel>channel\|>)"  # Gemma 4
    r"|(?P<close_apriel>BEGIN FINAL RESPONSE\])"  # Apriel
    r")",
    re.IGNORECASE,
)
_GRANITE = re.compile(
    r"\s{0,9}Here(?:'s| is) my thought process:(?P<thought>.*?)(?P<response>\bHere(?:'s| is) my response:|\Z)", re.DOTALL
)
_FINAL = re.compile(r"<\|channel\|>final[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
_CHANNEL = "<|channel|>"
_BARE_CHANNEL = re.compile(r"\A\s{0,9}analysis(?=[A-Z\"'(\d])")
_BARE_FINAL = re.compile(r"assistant\s{0,3}final(?=[^a-z\s]|\s?[A-Z\d$*\\#])|assistantfinal")
_WRAPPERS = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_(?:RESPONSE|TEXT)\|>|\[END FINAL RESPONSE\]|</?(?:seed:)?response>",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"[<\[\u25c1]")
_EDGES = "<>[]\u25c1\u25b7"
_OPENINGS = re.compile(
    rf"<{_NAMES}\s{{0,3}}>|\[THINK\]|\u25c1think\u25b7|<\|(?:{_NAMES}\||begin_of_thought|start_thinking|inner_prefix)"
    r"|<\|channel|<unused94>",
    re.IGNORECASE,
)


class Separated(NamedTuple):
    """A text without its reasoning, the reasoning, and whether the reasoning is still going on at the end."""

    said: str
    reasoning: str
    unclosed: bool


def parts(text: str) -> Separated:
    r"""Separate what a model says from what it thinks before.

    A closing mark without an opening one ends a thought that starts with the text: chat templates often write the opening
    mark themselves. A thought that never closes leaves nothing said. A mark in a code span (\`<think>\`) is only mentioned.

    >>> parts("<think>12 + 6</think>18"), parts("12 + 6</think>18").said, parts("<think>12")
    (Separated(said='18', reasoning='12 + 6', unclosed=False), '18', Separated(said='', reasoning='12', unclosed=True))
    """
    for form in (_of_channels, _of_bare_channels, _of_granite):
        if (found := form(text)) is not None:
            return found
    if not _BEGINS.search(text):  # every mark begins so; most texts have none
        return Separated(text, "", unclosed=False)
    said: list[str] = []
    thought: list[str] = []
    start: int | None = 0
    end = 0
    for mark in _MARK.finditer(text):
        if text[mark.start() - 1 : mark.start()] == "`" and text[mark.end() : mark.end() + 1] == "`":
            continue
        piece = text[end : mark.start()]
        closes = mark.lastgroup is not None and bool(mark[mark.lastgroup])
        if closes and start is not None:  # it ends a thought that began with the text
            thought += [*said, piece]
            said.clear()
        else:
            (said if start is not None else thought).append(piece)
        start = mark.end() if closes else None
        end = mark.end()
    if start is None:
        return Separated("", "".join([*said, *thought, text[end:]]), unclosed=True)
    return Separated(_WRAPPERS.sub("", "".join([*said, text[start:]])), "".join(thought), unclosed=False)


def _of_channels(text: str) -> Separated | None:
    """Separate gpt-oss's channels (harmony), which some servers pass through unparsed."""
    if _CHANNEL not in text:
        return None
    final = deque(_FINAL.finditer(text), maxlen=1)
    if not final:
        return Separated("", text, unclosed=True)
    return Separated(text[final[0].end() :].partition("<|")[0], text[: final[0].start()], unclosed=False)


def _of_bare_channels(text: str) -> Separated | None:
    """Separate gpt-oss's channels where a server left out the special tokens: "analysisWe need ... assistantfinal18"."""
    bare = _BARE_CHANNEL.match(text)
    if bare is None:
        return None
    final = deque(_BARE_FINAL.finditer(text, bare.end()), maxlen=1)
    if not final:
        return Separated("", text[bare.end() :], unclosed=True)
    return Separated(text[final[0].end() :], text[bare.end() : final[0].start()], unclosed=False)


def _of_granite(text: str) -> Separated | None:
    """Separate Granite's thoughts, which have words for marks."""
    found = _GRANITE.match(text)
    if found is None:
        return None
    return Separated(text[found.end() :], found["thought"], unclosed=not found["response"])


def without_reasoning(text: str) -> str:
    """Return what the text says apart from reasoning; nothing if the reasoning never ends.

    >>> without_reasoning("<think>12 + 6</think>18"), without_reasoning("12 + 6</think>18"), without_reasoning("<think>12 +")
    ('18', '18', '')
    """
    return parts(text).said


def says_nothing(text: str) -> bool:
    """Whether the text is blank or only reasoning. Fast for a text that neither starts nor ends with a mark.

    >>> says_nothing(" "), says_nothing("<think>Let me see.</think>"), says_nothing("18")
    (True, True, False)
    """
    if not text or text.isspace():
        return True
    if text.lstrip()[0] not in _EDGES and text.rstrip()[-1] not in _EDGES:
        return False
    found = parts(text)
    if found.unclosed and not _OPENINGS.match(text.lstrip()):
        return False  # an answer that only mentions a mark
    return not found.said.strip()
