"""The simulator of expert prefetching."""

import numpy as np
import pytest

from workflow_composer.errors import ConfigError, InputError
from workflow_composer.moe.offload.expert_cache import Keep
from workflow_composer.moe.offload.prefetch import ExpertForecast, Machine, most_used, overlap, simulate
from workflow_composer.moe.routing.routes import RecordedRoutes

MACHINE = Machine(slots=2, transfer=10.0, attention=1.0, experts=2.0)


def routes_of(*layers):
    """Layers as lists of routes, one per token."""
    n = len(layers[0])
    zeros = np.zeros(n, np.int64)
    experts = {number: np.array(rows, np.int16) for number, rows in enumerate(layers)}
    return RecordedRoutes(np.arange(n), zeros, np.arange(n), experts, {})


def random_routes(tokens=400, layers=3, experts=16, k=4, seed=0):
    generator = np.random.default_rng(seed)
    weight = 1 / np.arange(1, experts + 1)
    rows = [
        [generator.choice(experts, k, replace=False, p=weight / weight.sum()) for _ in range(tokens)] for _ in range(layers)
    ]
    return routes_of(*rows)


def test_without_memory_every_use_is_a_transfer():
    """1 of attention, 10 of transfer, 2 of experts; twice."""
    outcome = simulate(routes_of([[3], [3]]), MACHINE, keep=Keep.NOTHING)
    assert outcome.time == 26.0
    assert outcome.hit_rate == 0.0


def test_what_is_kept_is_a_hit():
    outcome = simulate(routes_of([[3], [3]]), MACHINE)
    assert outcome.time == 16.0
    assert outcome.hit_rate == 0.5


def test_a_prediction_hides_as_much_of_a_transfer_as_there_is_time_before_the_gate():
    """Known from the beginning, the first layer's transfer has 1 of its 10 hidden, the second's begins behind it."""
    routes = routes_of([[0]], [[1]])
    forecast = ExpertForecast({0: np.array([[0]], np.int16), 1: np.array([[1]], np.int16)})
    outcome = simulate(routes, MACHINE, forecast=forecast)
    # Transfers end at 10 and 20; layer 0's experts run until 12; layer 1's gate speaks at 13 and waits until 20.
    assert outcome.time == 22.0
    assert outcome.layers[1].late == 1
    assert outcome.layers[1].waited == 7.0


def test_a_prediction_made_at_the_layer_comes_later_than_one_made_at_the_token():
    routes = routes_of([[0]], [[1]])
    experts = {0: np.array([[0]], np.int16), 1: np.array([[1]], np.int16)}
    at_layer = simulate(routes, MACHINE, forecast=ExpertForecast(experts, known=0))
    # Layer 1's transfer begins at 12 and ends at 22.
    assert at_layer.time == 24.0
    ahead = simulate(routes, MACHINE, forecast=ExpertForecast(experts, known=1))
    assert ahead.time == 22.0


def test_a_lookahead_bounds_how_early_layers_are_fetched_for():
    routes = routes_of([[0]], [[1]])
    experts = {0: np.array([[0]], np.int16), 1: np.array([[1]], np.int16)}
    assert simulate(routes, MACHINE, forecast=ExpertForecast(experts, lookahead=0)).time == 24.0
    assert simulate(routes, MACHINE, forecast=ExpertForecast(experts, lookahead=1)).time == 22.0


def test_a_wrong_prediction_costs_the_link_and_is_counted():
    routes = routes_of([[0]])
    wrong = ExpertForecast({0: np.array([[5]], np.int16)})
    outcome = simulate(routes, MACHINE, forecast=wrong)
    # The wrong transfer ends at 10, the right one at 20.
    assert outcome.time == 22.0
    assert (outcome.layers[0].useless, outcome.layers[0].demanded) == (1, 1)


def test_no_policy_is_faster_than_knowing_everything_nor_slower_than_knowing_nothing():
    """And memory never holds more than its places."""
    routes = random_routes()
    machine = Machine(slots=8, transfer=1.0, attention=1.0, experts=1.0)
    perfect = simulate(routes, machine, forecast=ExpertForecast(dict(routes.experts)))
    lru = simulate(routes, machine)
    nothing = simulate(routes, machine, keep=Keep.NOTHING)
    assert len(routes) * 3 * 2.0 <= perfect.time < lru.time < nothing.time


def test_more_places_are_never_slower_under_lru():
    """LRU is a stack algorithm: what a smaller memory holds, a larger one holds too."""
    routes = random_routes()
    times = [simulate(routes, Machine(slots, 1.0, 0.0, 0.0)).time for slots in (4, 6, 8, 12, 16)]
    assert times == sorted(times, reverse=True)


def test_pinning_keeps_the_most_used_experts():
    routes = random_routes()
    machine = Machine(slots=8, transfer=1.0, attention=0.0, experts=0.0)
    pinned = most_used(routes, 6)
    outcome = simulate(routes, machine, keep=Keep.PINNED, pinned=pinned)
    least = min(np.isin(routes.experts[layer], pinned[layer]).mean() for layer in routes.layers)
    assert all(count.hit_rate >= least for count in outcome.layers.values())


def test_counts_add_up():
    routes = random_routes(100)
    outcome = simulate(routes, Machine(6, 1.0, 0.5, 0.5), forecast=ExpertForecast({0: routes.experts[0][:, ::-1]}))
    for count in outcome.layers.values():
        assert count.uses == 400
        assert count.hits + count.late + count.demanded == count.uses
    assert outcome.layers[1].fetched == 0 < outcome.layers[0].fetched


def test_a_forecast_of_other_tokens_is_refused():
    with pytest.raises(InputError, match="one row for each of the 1 tokens"):
        simulate(routes_of([[0]]), MACHINE, forecast=ExpertForecast({0: np.array([[0], [1]], np.int16)}))


def test_an_impossible_machine_is_refused():
    with pytest.raises(ConfigError, match="at least one slot"):
        Machine(0, 1.0, 1.0, 1.0)


def test_overlap_is_the_share_of_used_experts_that_were_predicted():
    assert overlap(np.array([[0, 1]], np.int16), np.array([[1, 2]], np.int16)) == 0.5
