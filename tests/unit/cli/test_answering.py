"""What a terminal shows while an answer is awaited."""

from __future__ import annotations

import io
import threading

from workflow_composer.cli.answering import Awaited


class Screen(io.StringIO):
    """A terminal, or not; ``shown`` is set with the first text."""

    def __init__(self, terminal=True):
        super().__init__()
        self.terminal = terminal
        self.shown = threading.Event()

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.shown.set()
        return super().write(text)


def test_the_wait_is_shown_and_its_line_cleared():
    """What follows begins on an empty line."""
    screen = Screen()
    with Awaited(screen, patience=0.0) as awaited:
        assert screen.shown.wait(60)
        awaited.end()
        before = screen.getvalue()
        awaited.end()

    assert "waiting for the answer" in before
    assert before.endswith("\r\x1b[K")
    assert screen.getvalue() == before


def test_a_quick_answer_and_a_file_show_nothing():
    """Nothing is left to clear, either."""
    for screen, patience in ((Screen(), 600.0), (Screen(terminal=False), 0.0)):
        with Awaited(screen, patience=patience):
            pass
        assert screen.getvalue() == ""


class Gone(Screen):
    """Its other end is closed."""

    def write(self, text):
        self.shown.set()
        raise OSError("gone")


def test_a_terminal_that_is_gone_is_no_error():
    """The answer goes on."""
    screen = Gone()
    with Awaited(screen, patience=0.0):
        assert screen.shown.wait(60)
