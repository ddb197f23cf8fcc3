"""Large JSON: decoded as elsewhere, while the event loop serves others."""

from __future__ import annotations

import asyncio
import json
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.support import large_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_json_is_decoded_as_everywhere(value):
    text = json.dumps(value).encode()
    assert large_json.decode(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1,]", b"NaN", b"[Infinity]", b"{} {}", b"\xff", b'"\n"', b"\xef\xbb\xbf{}", b"01"]
)
def test_what_is_none_is_refused_as_everywhere(text):
    with pytest.raises(ValueError):  # noqa: PT011  # any of its kinds
        large_json.decode(text)
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(text)


def test_too_deep_and_too_many_are_refused(monkeypatch):
    with pytest.raises(RecursionError):
        large_json.decode(b"[" * 100_000)
    monkeypatch.setattr(large_json, "MOST_VALUES", 10)
    assert large_json.decode(b"[1,2,3]") == [1, 2, 3]
    with pytest.raises(ValueError, match="values"):
        large_json.decode(b"[[],[],[],[],[],[]]")


async def test_the_event_loop_takes_its_turns_meanwhile():
    """A decoder written in C would let it take one."""
    turns, text = 0, b"[" + b"[1,2]," * 100_000 + b"0]"
    sys.setswitchinterval(1e-4)
    try:
        done = asyncio.ensure_future(large_json.apart(large_json.decode, text))
        while not done.done():
            turns += 1
            await asyncio.sleep(0)
    finally:
        sys.setswitchinterval(0.005)
    assert len(done.result()) == 100_001
    assert turns > 20
