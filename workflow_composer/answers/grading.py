r"""The one reader and the one grader for synchronous callers, such as notebooks and scripts.

They read and compare exactly as votes, runs and reports do with the default `AnswerForm`; `Reader` and `Question` are the
same for callers with an event loop, and for other forms.

>>> solution = "She eats 3 of 16 eggs and bakes with 4, so 9 are left. She makes 9 * 2 = **18 dollars** a day."
>>> final_answer(solution), is_correct(solution, "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18")
('18', True)
>>> same_answer(final_answer(solution), "$18.00")
True
"""

from __future__ import annotations

from workflow_composer.answers.equality import Question
from workflow_composer.answers.reading import reader
from workflow_composer.support.loop_thread import LoopThread

_thread = LoopThread()
"""Starts on first use; a running event loop of the caller is blocked meanwhile."""


def final_answer(text: str) -> str | None:
    r"""Return the final answer of a model's text, or None if there is none. See `Reader.read`.

    >>> final_answer("16 - 7 = 9, and 9 * 2 = 18.\n#### 18"), final_answer("She makes 9 * 2 = 18.\nA: 18\n")
    ('18', '18')
    >>> final_answer("I do not know.") is None
    True
    """
    return reader().read(text)


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two final answers to one question are equal. None (no answer) and a blank one equal nothing.

    For more than two answers use `Question`, which decides the kind of all of them at once; so do votes.

    An order of the two does not matter.

    Raises `ConfigError` if math-verify is needed and does not work.

    >>> same_answer("$1,450,000.", "1450000.0"), same_answer("18", None)
    (True, False)
    """
    if a is None or b is None or not a.strip() or not b.strip():
        return False
    one, other = _thread.call(lambda: Question(reader()).groups([a, b]))
    return one == other


def is_correct(text: str, label: str) -> bool:
    r"""Whether the final answer of a model's text equals that of the label, a bare answer or a solution that ends with one.

    Raises `ConfigError` if math-verify is needed and does not work.

    >>> is_correct("12 + 7 = 19. #### 19", "19"), is_correct("19", "12 + 7 = 19\n#### 19"), is_correct("19 or 20", "19")
    (True, True, False)
    """
    answer = reader().read(text, label)
    return answer is not None and _thread.call(lambda: Question(reader(), label).is_correct(answer))
