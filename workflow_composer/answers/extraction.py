r"""Extraction of the final answer from a text. Pure, linear in the length of any text, and never raises.

Each extraction method is a function from the text to a mark and the method's name, or None. `finder` combines the methods
named in `AnswerForm.extract`.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from workflow_composer.answers.finding.marks import Mark, answer_field, boxed, field_anywhere, hashes, json_field, tagged
from workflow_composer.answers.finding.phrases import Phrase, announced, is_value, last_line
from workflow_composer.answers.finding.undressing import choice, says_something, undressed, without_talk
from workflow_composer.errors import ConfigError
from workflow_composer.support.own_program import FUNCTION_PATH


class Extracted(NamedTuple):
    """A final answer and the method that read it (``boxed``, ``phrase``, ``last_number``, ...).

    ``complete``: it would stay the same if the text went on, so that it counts even if the text was cut off.
    """

    answer: str
    how: str
    complete: bool = False


Finder = Callable[[str], Extracted | None]
_Way = Callable[[str], Mark | Phrase | None]


def finder(names: Sequence[str]) -> Finder:
    """Return a function that tries these extraction methods in order until one finds an answer.

    Raises `ConfigError` for an unknown method and for a function that cannot be imported.
    """
    ways = [_way(name) for name in names]
    if not ways:
        raise ConfigError("the list of extraction methods is empty", hint=f"available: {_KNOWN}")

    def find(text: str) -> Extracted | None:
        for way in ways:
            found = way(text)
            if found is not None and says_something(found.answer):
                return found
        return None

    return find


_ENDS_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|eot_id|eom_id|end_of_text|start_header_id|end|return|user|endofassistant|eos)\|>|</s>"
    r"|<(?:end|start)_of_turn>|<\uff5c(?:end\u2581of\u2581sentence|User)\uff5c>|<\|END_OF_TURN_TOKEN\|>|\[/?INST\]"
)
_BEGIN_OF_TURN = re.compile(
    r"\s{0,9}<\|(?:im_start\|>|start_header_id\|>)?assistant(?:<\|end_header_id)?(?:\|>)?\s{0,9}|\s{0,9}<\|im_start\|>assistant\s{0,9}"
)
_NEXT_QUESTION = re.compile(
    r"\n[ \t]{0,9}(?:#{1,4} )?[*_]{0,2}(?:Question|Problem|Q|Human|User|Instruction)[*_]{0,2} ?:", re.IGNORECASE
)


def first_turn(text: str) -> str:
    r"""Return the text up to the token that ends a model's turn, or up to a next question that the model asks itself.

    >>> first_turn("18<|im_end|>\n<|im_start|>user"), first_turn("#### 18\n\nQuestion: Omar has 3 pears.\nAnswer: 3\n#### 3")
    ('18', '#### 18\n')
    """
    if "<" in text or "[" in text:
        if begin := _BEGIN_OF_TURN.match(text):
            text = text[begin.end() :]
        if (end := _ENDS_OF_TURN.search(text)) and says_something(text[: end.start()]):
            text = text[: end.start()]
    further = _NEXT_QUESTION.search(text)
    if further is not None and _marked(text[: further.start()]) is not None:
        return text[: further.start()]
    return text


def auto(text: str) -> Extracted | None:
    r"""Return the marked answer: in ``<answer>``, after ``####``, in ``\boxed{}``, in a phrase, in a field of JSON.

    A ``####`` line is a heading if a box follows it, or if it has no digit and a phrase follows it. "Answer: D" after a box
    wins over the box; other later text does not.

    >>> auto("#### 18").answer, auto("#### Result\nThe answer is 5.").answer, auto("\\boxed{a < b}\n\n**Answer: D**").answer
    ('18', '5', 'D')
    """
    return _marked(first_turn(text))


def _marked(text: str) -> Extracted | None:
    if (field := answer_field(text)) is not None:
        return _read(field, "json") if says_something(field.answer) else None
    if (inside := tagged(text)) is not None:
        within = boxed(inside.answer) or announced(inside.answer)
        return _read(inside if within is None else inside._replace(answer=within.answer), "tag")
    if (heading := _heading(text)) is not None:
        return heading
    if (box := boxed(text)) is not None:
        stated = _stated_after(text, box)
        return _read(box, "boxed") if stated is None else _read(stated, "phrase")
    if (field := field_anywhere(text)) is not None and says_something(field.answer):
        return _read(field, "json")
    said = announced(text) or last_line(text)
    return None if said is None else _read(said, "phrase")


def _heading(text: str) -> Extracted | None:
    """Return the answer of the last ``####`` line, unless it is the title of what follows or a box is the better mark."""
    heading = hashes(text)
    if heading is None or not says_something(heading.answer) or boxed(text[heading.start :]) is not None:
        return None
    if any(map(str.isdecimal, heading.answer)):
        within = announced(heading.answer)
        return _read(heading if within is None else heading._replace(answer=within.answer), "hashes")
    if (phrase := announced(text, heading.end)) is not None:
        return _read(phrase, "phrase")
    is_title = bool(text[heading.end :].strip())
    return None if is_title and (boxed(text) or announced(text)) else _read(heading, "hashes")


def _stated_after(text: str, box: Mark) -> Phrase | None:
    """Return an answer that is stated after a box: under a heading such as "Answer:", or a letter."""
    found = announced(text, box.end)
    if found is None or "oxed" in found.answer or not is_value(found.answer):
        return None
    letter = choice(found.answer)
    return found if found.states or (letter is not None and not letter.rest) else None


def _read(found: Mark | Phrase, how: str) -> Extracted:
    answer = without_talk(undressed(found.answer))
    return Extracted(answer if says_something(answer) else found.answer, how, found.complete)


def phrase(text: str) -> Phrase | None:
    """Return what the last phrase announces, or a last line ``A: ...``."""
    return announced(text) or last_line(text)


def line(text: str) -> Mark | None:
    """Return the last line that is not blank."""
    last = text.rstrip().rpartition("\n")[2].strip()
    return Mark(last, 0, len(text), complete=False) if last else None


def whole(text: str) -> Mark | None:
    """Return the whole text."""
    text = text.strip()
    return Mark(text, 0, len(text), complete=False) if text else None


def _way(name: str) -> Finder:
    kind, colon, rest = name.partition(":")
    if name == "auto":
        return auto
    if name in _WAYS:
        return partial(_named, name, _WAYS[name])
    if kind == "json" and rest:
        return partial(_named, name, partial(json_field, rest))
    if kind == "python" and colon:
        return partial(_by_function, function_at(rest), name)
    raise ConfigError(f"unknown extraction method {name!r}", hint=f"available: {_KNOWN}")


def _named(name: str, way: _Way, text: str) -> Extracted | None:
    """Read a text by one method; the answer is as written."""
    found = way(text)
    return None if found is None else Extracted(found.answer.strip(), name, found.complete)


_extending = threading.Lock()


def function_at(place: str) -> Callable[..., Any]:
    """Import the function at ``MODULE:FUNCTION``. Raises `ConfigError` if there is none."""
    module, _, name = place.partition(":")
    try:
        function = getattr(_module(module), name)
    except Exception as error:
        hint = "write python:MODULE:FUNCTION, with a module on Python's import path"
        raise ConfigError(f"cannot import the function {place!r}: {error!r}", hint=hint) from error
    if not callable(function):
        raise ConfigError(f"{place!r} is not a function")
    return function  # type: ignore[no-any-return]  # checked just now


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not FUNCTION_PATH or error.name != name.partition(".")[0]:
            raise
    with _extending:
        more = list(FUNCTION_PATH)
        sys.path.extend(more)
        try:
            return import_module(name)
        finally:
            del sys.path[-len(more) :]


@contextmanager
def modules_beside(folder: Path) -> Iterator[None]:
    """Let modules of a folder be found, too, by `function_at`."""
    added = str(folder.absolute())
    FUNCTION_PATH.insert(0, added)
    try:
        yield
    finally:
        FUNCTION_PATH.remove(added)


def _by_function(function: Callable[[str], Any], name: str, text: str) -> Extracted | None:
    """Return what the user's function finds; if it raises, log the error and return None."""
    try:
        answer = function(text)
        return None if answer is None else Extracted(str(answer).strip(), name)
    except Exception:
        logging.getLogger(__name__).warning("%s failed; no answer was extracted", name, exc_info=True)
        return None


_WAYS: dict[str, _Way] = {"hashes": hashes, "boxed": boxed, "phrase": phrase, "line": line, "whole": whole}
_KNOWN = ", ".join(["auto", *_WAYS, "json:FIELD", "python:MODULE:FUNCTION"])
