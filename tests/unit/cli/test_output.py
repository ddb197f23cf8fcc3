"""Printing for people and programs."""

from __future__ import annotations

import doctest
import io
import sys

import pytest

from workflow_composer.cli import output as module
from workflow_composer.cli.output import dollars, percent, print_table, printable


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self):
        return True


def test_examples_in_the_docstrings_run():
    """What the documentation shows is true."""
    assert doctest.testmod(module).failed == 0


def test_a_table_is_plain_columns_when_piped(capsys):
    """For grep and awk: no lines, no colours, no trailing blanks."""
    print_table(("name", "state"), [("small", "up"), ("a longer one", None)], title="servers")

    assert capsys.readouterr().out == "servers\nname          state\nsmall         up\na longer one\n"


def test_a_table_is_drawn_on_a_terminal(monkeypatch):
    """What stands in it is text, not markup."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("name", "state"), [("[bold]small", "up\x1b[31m")], title="servers")

    shown = terminal.getvalue()
    assert "[bold]small" in shown
    assert "┃" in shown
    assert "\x1b[3" not in shown


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "$0.00"), (1234.5, "$1234.50"), (0.5, "$0.50"), (0.05, "$0.05"), (0.0001234, "$0.000123"), (1e-20, "$0.00")],
)
def test_small_amounts_keep_their_first_digits(amount, text):
    """A cost of a ten-thousandth of a cent is not nothing."""
    assert dollars(amount) == text


def test_an_unknown_share_is_a_dash():
    """It is not zero."""
    assert (percent(None), percent(0.0), percent(0.12345)) == ("-", "0.0%", "12.3%")


def test_control_characters_are_taken_out():
    """A model's words must not clear the screen; line ends and other scripts stay."""
    assert printable("a\x1b[2Jb\x07\r\n\tçü漢") == "a[2Jb\n\tçü漢"
