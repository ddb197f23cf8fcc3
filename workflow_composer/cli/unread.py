"""What is said where answers could not be read: how many, why, and what to write instead."""

from __future__ import annotations

import click

ENDING = 'have the model end with a line such as "The answer is 18." (--system)'


def tell_unread(unreadable: int, answers: int, *, cut_off: int, remedy: str, whose: str = "") -> None:
    """Say on standard error how many of the answers could not be read, and what helps; nothing where all could be."""
    if not unreadable:
        return
    start = f"{whose}: " if whose else ""
    click.echo(f"{start}{unreadable} of {answers} answers could not be read; they count as wrong", err=True)
    if cut_off:
        click.echo(f"hint: {cut_off} of them were cut off by their length: raise --max-tokens", err=True)
    if unreadable > cut_off:
        click.echo(f"hint: {remedy}", err=True)
