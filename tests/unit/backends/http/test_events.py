"""Event streams: the same events however the bytes arrive, each byte looked at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_composer.backends.http.connection import TooLong
from workflow_composer.backends.http.events import EventReader, payloads

ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def streams(draw):
    """A stream's bytes, and the data of its events."""
    end = draw(ENDS)
    written, data = b"", []
    for lines in draw(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=3), max_size=6)):
        lines = [line.replace(b"\n", b"").replace(b"\r", b"") for line in lines]  # noqa: PLW2901
        if draw(st.booleans()):
            written += b": a comment" + end + draw(st.sampled_from([b"", b"event: x" + end]))
        written += b"".join(b"data: " + line + end for line in lines) + end
        data.append(b"\n".join(lines))
    return written, data


@given(streams(), st.lists(st.integers(1, 40), max_size=60))
def test_events_are_the_same_however_the_bytes_arrive(stream, sizes):
    """Byte by byte, in the middle of an end, or all at once; what is handed on is every byte that came."""
    written, data = stream
    reader, passed, at = EventReader(10**6), [], 0
    for size in [*sizes, len(written) + 1]:
        if part := written[at : at + size]:
            passed.append(reader.whole(part))
        at += size
    assert reader.rest() == b""
    assert b"".join(passed) == written
    assert [one for part in passed for one in payloads(part)] == data
    assert all(part.endswith((b"\n\n", b"\n\r\n")) for part in passed if part)


def test_a_last_event_without_its_end_is_completed_by_the_streams_end():
    """As servers that close the connection behind it leave it."""
    reader = EventReader(100)
    assert reader.whole(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert list(payloads(reader.rest())) == [b"b"]
    assert reader.rest() == b""


def test_an_event_without_an_end_is_left_before_it_fills_the_memory():
    """However it comes."""
    for size in (1, 7, 1000):
        reader = EventReader(5_000)
        with pytest.raises(TooLong):
            for _ in range(10_000):
                reader.whole(b"x" * size)


def test_a_long_event_in_small_pieces_costs_no_more_than_its_bytes():
    """Counted: what is searched and joined grows with the bytes, not with their square."""

    class Counted(bytes):
        looked = 0

        def __radd__(self, other):
            Counted.looked += len(other) + len(self)
            return bytes.__add__(other, self)

    reader = EventReader(10**7)
    for _ in range(20_000):
        reader.whole(Counted(b"x" * 50))
    assert len(reader.whole(b"\n\n")) == 1_000_002
    assert Counted.looked < 4 * 1_000_000


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_an_event_whose_end_comes_in_pieces_is_handed_on_with_the_last(end):
    """Wherever the end is cut; an event that waited for the next one would come a token late."""
    for at in range(1, len(end)):
        reader = EventReader(100)
        passed = reader.whole(b"data: a" + end[:at])
        assert passed + reader.whole(end[at:]) == b"data: a" + end
    reader = EventReader(100)
    assert [reader.whole(bytes([byte])) for byte in b"data: a" + end][-1] == b"data: a" + end
