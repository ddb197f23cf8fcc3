"""Certificates of adaptive routing: what they say, that they can be made again, and that the guarantee holds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workflow_composer.calibration.certify.route_certificate import (
    GRID,
    RouteCertificate,
    certify_routes,
    select_route_threshold,
    starts_from,
    verify_routes,
)
from workflow_composer.errors import InputError
from workflow_composer.moe.models.corpus import generate_realistic_corpus
from workflow_composer.moe.models.replaying import Paths, fit_tables, replay
from workflow_composer.moe.routing.routes import read_routes

EXPERTS = 8


@pytest.fixture
def recording(tmp_path):
    """Write a recording: of ``prompts`` texts of 40 tokens; a share ``noise`` of the routes is nobody's guess."""

    def write(prompts=100, noise=0.05, layers=1, seed=0):
        drawing = np.random.default_rng(seed)
        path = tmp_path / "routes.jsonl"
        tokens = generate_realistic_corpus(prompts * 40, 100, seed=seed).tolist()
        with path.open("w") as file:
            for at, token in enumerate(tokens):
                for layer in range(layers):
                    first = (token * 3 + layer) % EXPERTS
                    if drawing.random() < noise:
                        first = int(drawing.integers(EXPERTS))
                    line = {"token": token, "layer": layer, "experts": [first, (first + 1) % EXPERTS], "weights": [0.7, 0.3]}
                    file.write(json.dumps({**line, "sequence": at // 40, "position": at % 40}) + "\n")
        return path

    return write


def test_a_certificate_says_what_was_found_and_is_found_again(recording, tmp_path):
    """Saved, loaded, verified: every number the same."""
    path = recording()
    made = certify_routes(path, margin=0.15)
    file = tmp_path / "certificate.json"
    made.certificate.save(file)
    again = RouteCertificate.load(file)

    assert again == made.certificate
    assert verify_routes(again, path) == []
    chosen = again.selection
    assert chosen.threshold in GRID
    assert chosen.bound <= 0.1
    assert f"confidence of at least {chosen.threshold:g}" in again.statement
    assert again.tables == {str(layer): f"{table.digest:016x}" for layer, table in made.tables.items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data["selection"].update(threshold=0.99), "selection.threshold"),
        (lambda data: data["selection"]["tested"][3].update(bad=1), "selection.tested[3].bad"),
        (lambda data: data["tables"].update({"0": "0" * 16}), "tables.0"),
        (lambda data: data.update(fitted=7), "fitted"),
        (lambda data: data["selection"].update(bound=0.0001), "selection.bound"),
    ],
)
def test_a_number_that_was_changed_is_named(recording, tmp_path, change, named):
    """Whoever forges a certificate is found out by whoever has the data."""
    path = recording()
    file = tmp_path / "certificate.json"
    certify_routes(path, margin=0.15).certificate.save(file)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))

    assert [line.partition(":")[0] for line in verify_routes(RouteCertificate.load(file), path)] == [named]


def test_other_data_are_noticed(recording, tmp_path):
    """By their digest, and by what they give."""
    path = recording()
    certificate = certify_routes(path, margin=0.15).certificate
    recording(seed=1)
    assert any(line.startswith("digest:") for line in verify_routes(certificate, path))


def test_where_routes_are_noise_nothing_is_certified(recording):
    certificate = certify_routes(recording(noise=0.9), margin=0.05).certificate
    assert certificate.selection.threshold is None
    assert "Quality is not guaranteed" in certificate.statement
    assert certificate.selection.bound == 1.0


def test_where_prompts_are_few_it_says_how_many_are_needed(recording):
    certificate = certify_routes(recording(prompts=20, noise=0.0), margin=0.15).certificate
    assert "prompts are needed even where none is bad" in certificate.selection.reason


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a certificate"),
        ("{}", "not a certificate in format"),
        ('{"format": "workflow-composer/var-certificate/1"}', "damaged certificate"),
    ],
)
def test_a_file_that_is_no_certificate_is_refused_in_one_line(tmp_path, text, what):
    file = tmp_path / "certificate.json"
    file.write_text(text)
    with pytest.raises(InputError, match=what):
        RouteCertificate.load(file)


def test_each_prompt_is_routed_as_if_it_were_the_only_one(recording):
    """Its loss and its paths do not depend on which others there are: that is what makes them exchangeable."""
    routes = read_routes(recording(prompts=12, layers=2))
    tables = fit_tables(routes, Paths(), EXPERTS)
    together = replay(routes, tables, GRID, Paths())
    some = replay(routes.take(np.isin(routes.sequences, [3, 7])), tables, GRID, Paths())

    np.testing.assert_array_equal(some.losses, together.losses[[3, 7]])
    np.testing.assert_array_equal(some.shares, together.shares[[3, 7]])
    assert (together.shares[:, :, 2] <= 0.15 * 41 / 40 + 1e-12).all()


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
def test_the_gate_is_never_asked_more_often_than_the_share(recording, share):
    """Also where no route is fast."""
    routes = read_routes(recording(prompts=6))
    found = replay(routes, fit_tables(routes, Paths(), EXPERTS), [2.0], Paths(learned_share=share))
    assert (found.shares[:, 0, 2] <= share * 41 / 40 + 1e-12).all()
    assert found.shares[:, 0, 0].max() == 0.0


def test_starts_are_the_strictest_and_the_most_liberal_that_looks_safe():
    """Judged by other prompts than those that certify."""
    losses = np.array([[0.0, 0.0, 0.2, 0.9]] * 20)
    assert starts_from(losses, margin=0.1, alpha=0.1) == (0, 1)
    assert starts_from(losses + 1.0, margin=0.1, alpha=0.1) == (0,)


def test_losses_that_are_no_numbers_are_refused():
    nothing = np.full((5, 2), np.nan)
    with pytest.raises(InputError, match="losses must be finite"):
        select_route_threshold([0.9, 0.8], nothing, nothing, starts=[0], margin=0.1, alpha=0.1, delta=0.1)


@pytest.mark.parametrize("prompts", [30, 100, 400])
def test_the_guarantee_holds_in_simulation(prompts):
    """At most delta of 2,000 calibrations choose a threshold with more bad prompts than alpha; here the truth is known.

    Thresholds that lie just above alpha, and fail independently of each other, are what tests of each alone fall for.
    """
    alpha = delta = 0.1
    true = np.array([0.02, 0.05, 0.101, 0.101, 0.12, 0.101, 0.101])  # not even rising
    drawing = np.random.default_rng(prompts)
    broken = chosen = 0
    for _ in range(2000):
        losses = (drawing.random((prompts, 7)) < true).astype(float)
        found = select_route_threshold(range(7, 0, -1), losses, losses, starts=[0, 3], margin=0.5, alpha=alpha, delta=delta)
        if found.threshold is not None:
            chosen += 1
            broken += true[7 - int(found.threshold)] > alpha
    assert broken / 2000 <= delta
    assert chosen > 0 or prompts < 40
