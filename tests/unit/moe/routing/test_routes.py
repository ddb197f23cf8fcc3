"""Recorded routes: written, read, cut into contexts and parts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_composer.errors import InputError
from workflow_composer.moe.routing.routes import RecordedRoutes, joined, parse_routes, read_routes

LINE = '{"token": 17, "layer": 0, "experts": [3, 9], "weights": [0.4, 0.2], "sequence": 0, "position": 0}'


def some_routes(lengths=(3, 2), layers=(0, 2), k=2, seed=0, weighted=True):
    generator = np.random.default_rng(seed)
    n = sum(lengths)
    experts = {
        layer: np.stack([generator.choice(8, k, replace=False) for _ in range(n)]).astype(np.int16) for layer in layers
    }
    weights = {layer: generator.random((n, k)).round(3).astype(np.float32) for layer in layers} if weighted else {}
    return RecordedRoutes(
        generator.integers(0, 50, n),
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        experts,
        weights,
    )


def same(a, b):
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "sequences", "positions"))
        and a.layers == b.layers
        and all(np.array_equal(a.experts[layer], b.experts[layer]) for layer in a.layers)
        and all(np.allclose(a.weights[layer], b.weights[layer], atol=1e-6) for layer in a.weights)
        and set(a.weights) == set(b.weights)
    )


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 9), st.booleans())
def test_what_is_written_is_read_again(lengths, seed, weighted):
    routes = some_routes(lengths, seed=seed, weighted=weighted)
    assert same(parse_routes(routes.lines()), routes)


def test_a_file_is_read_with_its_lines_in_any_order_of_texts(tmp_path):
    routes = some_routes()
    lines = list(routes.lines())
    path = tmp_path / "routes.jsonl"
    path.write_text("\n".join(lines[6:] + lines[:6]) + "\n\n")
    assert same(read_routes(path), routes)


def test_lines_with_the_required_fields_alone_are_one_text():
    routes = parse_routes(json.dumps({"token": token, "layer": 1, "experts": [token]}) for token in (4, 5, 6))
    assert routes.positions.tolist() == [0, 1, 2]
    assert routes.weights == {}
    assert routes.expert_count == 7


def test_contexts_stop_where_a_text_begins():
    routes = some_routes((3, 2))
    a, b, c, d, e = routes.tokens.tolist()
    assert routes.contexts(3).tolist() == [[-1, -1, a], [-1, a, b], [a, b, c], [-1, -1, d], [-1, d, e]]


def test_contexts_stop_where_tokens_are_missing():
    routes = some_routes((4,)).take(np.array([True, False, True, True]))
    assert routes.contexts(2)[:, 0].tolist() == [-1, -1, routes.tokens[1]]


def test_texts_are_not_split():
    first, rest = some_routes((3, 2, 4, 1)).split(0.5)
    assert set(first.sequences.tolist()) == {0, 1}
    assert set(rest.sequences.tolist()) == {2, 3}


def test_a_single_text_is_split_in_the_middle():
    first, rest = some_routes((10,)).split(0.8)
    assert (len(first), len(rest)) == (8, 2)


def test_a_split_with_an_empty_part_is_refused():
    with pytest.raises(InputError, match="cannot be split"):
        some_routes((1,)).split(0.5)


def test_parts_are_joined():
    whole = some_routes((3, 2))
    first, rest = whole.split(0.5)
    assert same(joined([first, rest]), whole)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"token": -1, "layer": 0, "experts": [1, 2]}', "token must be a non-negative integer"),
        ('{"token": true, "layer": 0, "experts": [1, 2]}', "token must be a non-negative integer"),
        ('{"token": 1, "experts": [1, 2]}', "layer must be a non-negative integer"),
        ('{"token": 99999999999, "layer": 0, "experts": [1, 2]}', "token must be a non-negative integer"),
        ('{"token": 1, "layer": 0}', "experts must be a list"),
        ('{"token": 1, "layer": 0, "experts": []}', "experts must be a list"),
        ('{"token": 1, "layer": 0, "experts": [1, 1]}', "distinct integers"),
        ('{"token": 1, "layer": 0, "experts": [1, 70000]}', "experts must be a list"),
        ('{"token": 1, "layer": 0, "experts": [1]}', "1 experts, but the layer's first line has 2"),
        ('{"token": 1, "layer": 0, "experts": [1, 2], "weights": [0.5]}', "weights must be a list of 2"),
        ('{"token": 1, "layer": 0, "experts": [1, 2], "weights": [0.5, NaN]}', "weights must be a list of 2"),
        ('{"token": 1, "layer": 1, "experts": [1, 2], "position": 7}', "must have the same tokens"),
    ],
)
def test_a_faulty_line_is_named(line, fault):
    with pytest.raises(InputError, match=fault):
        parse_routes([LINE, line])


def test_an_empty_recording_is_refused():
    with pytest.raises(InputError, match="no routes"):
        parse_routes([])


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_routes(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_routes(tmp_path / "bytes")
