"""Large JSON: decoded as elsewhere, while the event loop serves others."""

from __future__ import annotations

import asyncio
import json
import sys
from json.decoder import scanstring

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.openai import wire
from workflow_composer.support import large_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_is_json_is_decoded_as_everywhere(value):
    text = json.dumps(value).encode()
    assert large_json.decode(text) == json.loads(text)


_PARTS = st.lists(st.sampled_from(["a", "é", "😀", "\\", '"', "\n", "\ud83d", "\ude00", "\\u", "12ab", "D83D", "\x01"])).map(
    "".join
)


@given(_PARTS, st.sampled_from(range(13, 40)), st.booleans())
def test_a_string_is_the_same_wherever_its_pieces_are_cut(text, piece, ascii_only):
    """Between the halves of an escape, of a pair of surrogates, behind backslashes, at a quote; a pair has twelve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "PIECE", piece)
        data = json.dumps({"a": [text, 1]}, ensure_ascii=ascii_only).encode("utf-8", "replace")
        assert large_json.decode(data) == json.loads(data)
        for damaged in (data[:-6], data.replace(b"\\u", b"\\x"), data.replace(b"a", b"\x01")):
            try:
                expected = json.loads(damaged)
            except ValueError:
                with pytest.raises(ValueError):  # noqa: PT011  # any of its kinds
                    large_json.decode(damaged)
            else:
                assert large_json.decode(damaged) == expected


def test_a_long_string_is_read_in_pieces(monkeypatch):
    """C holds the interpreter's lock while it reads one."""
    sizes = []
    monkeypatch.setattr(large_json, "scanstring", lambda text, start, strict: _noted(sizes, text, start, strict))
    for text in ("x" * 2_000_000, 'x\n"' * 500_000, "\\" * 1_000_000, "\ud83d" * 300_000):
        data = json.dumps({"a": text}).encode()
        assert large_json.decode(data) == {"a": text}
    assert max(sizes) <= large_json.PIECE + 1
    assert len(sizes) > 100


def _noted(sizes, text, start, strict):
    found, end = scanstring(text, start, strict)
    sizes.append(end - start)
    return found, end


@given(VALUES, st.sampled_from([1, 3, 50]))
def test_what_is_encoded_in_pieces_is_what_is_encoded_at_once(value, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "PIECE", piece)
        body = {"messages": [value, {"content": value}]}
        assert json.loads(b"".join(large_json.pieces(body, wire.encode))) == json.loads(wire.encode(body))


def test_large_values_are_encoded_in_pieces_of_limited_size():
    body = {"messages": [{"content": "é" * 1_000_000}] + [{"content": "short"}] * 50_000}
    found = large_json.pieces(body, wire.encode)
    assert json.loads(b"".join(found)) == body
    assert max(map(len, found)) <= 3 * large_json.PIECE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_say_is_refused_in_pieces_too(value):
    with pytest.raises((ValueError, TypeError)):
        large_json.pieces({"a": [value]}, wire.encode)


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
