"""What servers were held for, by the fleet's record and by what a profile states, and what that costs."""

from __future__ import annotations

import contextlib
import json

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.fleet.held import DAY, EVERY, FILE_NAME, HOUR, HeldLog, HeldSpan, HeldTime, Reservations
from workflow_composer.fleet.places import STATE_VARIABLE

BEGAN = 1_790_000_000.0


def span(**fields):
    return HeldSpan(**{"server": "coder", "role": "coder", "node": "n1", "began": BEGAN, "until": BEGAN + HOUR, **fields})


@pytest.fixture
def log(tmp_path):
    return HeldLog(tmp_path / "state" / FILE_NAME)


@pytest.fixture
def reserved(log):
    """The reservation between two times after `BEGAN`, in seconds, under a profile or none."""
    found = Reservations({STATE_VARIABLE: str(log.path.parent)})

    def reserved(start=0.0, end=DAY, config=None):
        return found.of(config, BEGAN + start, BEGAN + end)

    return reserved


def profile(**models):
    """A profile whose endpoints are roles, with these models."""
    given = {name: {"backend": "vllm", **fields} for name, fields in models.items()}
    roles = {fields["endpoint"] for fields in models.values() if "endpoint" in fields}
    endpoints = {role: f"http://127.0.0.1:{8001 + at}/v1" for at, role in enumerate(sorted(roles))}
    return StrategyConfig(profile_name="mine", models=given, vllm_endpoints=endpoints, allow_cloud=False)


def test_a_run_is_written_when_it_begins_every_five_minutes_and_when_it_ends(log):
    now = [BEGAN]
    held = HeldTime(log, span(until=BEGAN), clock=lambda: now[0])
    for _ in range(1000):
        now[0] += 1.0
        held.beat()
    held.beat(ended=True)
    until = [json.loads(line)["until"] - BEGAN for line in log.path.read_text().splitlines()]
    assert until == [0.0, EVERY, 2 * EVERY, 3 * EVERY, 1000.0]
    assert [one.until - one.began for one in log.spans()] == [1000.0]


def test_the_hours_of_a_period_are_those_within_it_idle_included(log, reserved):
    log.add(span(price=0.5, until=BEGAN + 10 * HOUR))
    found = reserved(2 * HOUR, 5 * HOUR)
    assert (found.hours, found.cost, found.unpriced) == (3.0, 1.5, 0)
    assert reserved(11 * HOUR, 12 * HOUR) is None


def test_servers_of_a_role_add_up_and_each_run_counts_once(log, reserved):
    for until in (0.0, 1.0, 2.0):  # three lines about one run
        log.add(span(price=1.0, until=BEGAN + until * HOUR))
    log.add(span(price=1.0, server="coder-2", until=BEGAN + HOUR))
    log.add(span(price=1.0, began=BEGAN + 5 * HOUR, until=BEGAN + 6 * HOUR))
    log.add(span(price=None, server="math", role="math"))
    found = reserved()
    assert [(role.name, role.source, role.servers, role.hours, role.cost) for role in found.roles] == [
        ("coder", "fleet", 2, 4.0, 4.0),
        ("math", "fleet", 1, 1.0, None),
    ]
    assert (found.cost, found.unpriced, found.to_dict()["servers"][1]["cost"]) == (4.0, 1, None)


def test_a_profile_gives_the_price_that_the_fleet_file_does_not(log, reserved):
    log.add(span())
    config = profile(big={"endpoint": "coder", "gpu_hour_price": 2.0})
    assert reserved().cost is None
    assert reserved(config=config).cost == 2.0
    log.add(span(price=3.0, server="coder-2"))
    assert reserved(config=config).cost == 5.0


def test_a_role_of_the_registry_is_that_of_the_fleet(log, reserved):
    log.add(span())
    models = {"big": {"backend": "vllm", "endpoint": "programmer", "gpu_hour_price": 2.0}}
    config = StrategyConfig(profile_name="mine", models=models, vllm_endpoints={"programmer": "registry:coder"})
    assert reserved(config=config).cost == 2.0


def test_a_profile_may_state_the_hours(reserved):
    """Two models at one address share one server."""
    config = profile(
        big={"endpoint": "coder", "gpu_hour_price": 0.5, "gpu_hours_per_day": 24},
        same={"endpoint": "coder", "gpu_hour_price": 0.25, "gpu_hours_per_day": 24},
        night={"base_url": "http://127.0.0.1:9000/v1", "gpu_hours_per_day": 12},
        other={"endpoint": "math", "gpu_hour_price": 9.0},
    )
    found = reserved(0.0, DAY / 2, config)
    assert [(role.name, role.source, role.hours, role.cost) for role in found.roles] == [
        ("coder", "profile", 12.0, 6.0),
        ("night", "profile", 6.0, None),
    ]


def test_what_the_fleet_has_seen_counts_not_what_the_profile_states(log, reserved):
    log.add(span())
    config = profile(big={"endpoint": "coder", "gpu_hour_price": 0.5, "gpu_hours_per_day": 24})
    assert [(role.source, role.hours) for role in reserved(config=config).roles] == [("fleet", 1.0)]


def test_damaged_lines_are_passed_over_and_a_missing_file_knows_nothing(log, reserved):
    assert reserved() is None
    log.add(span(price=1.0))
    with log.path.open("ab") as file:
        file.write(b'{"server": "coder"}\nnonsense\n{"server": "x", "role": "x", "began": "now", "until": 1}\n')
    assert reserved().cost == 1.0


def test_a_long_file_keeps_one_line_of_each_run(log, monkeypatch):
    monkeypatch.setattr("workflow_composer.fleet.held._LONG", 2000)
    for minute in range(100):
        log.add(span(until=BEGAN + minute * 60.0))
        log.add(span(server="math", until=BEGAN + minute * 60.0))
    assert log.path.stat().st_size <= 2200
    assert {(one.server, one.until) for one in log.spans()} == {(name, BEGAN + 99 * 60.0) for name in ("coder", "math")}


def test_a_full_disk_stops_no_server(log):
    log.path.parent.mkdir()
    log.path.mkdir()  # cannot be appended to
    HeldTime(log, span()).beat(ended=True)


def test_the_hours_of_a_clock_that_goes_back_are_not_negative(log, reserved):
    now = [BEGAN + 100.0]
    held = HeldTime(log, span(until=BEGAN), clock=lambda: now[0])
    now[0] = BEGAN - 1000.0
    held.beat(ended=True)
    assert [one.until for one in log.spans()] == [BEGAN + 100.0]


@pytest.mark.parametrize(
    "text",
    [
        "state: {place}\nroles: {{a: {{model: m, port: 8001}}}}\n",
        '{{"state": "{place}", "roles": {{"a": {{"model": "m", "port": 1}}}}}}',
    ],
)
def test_the_record_lies_where_the_fleet_file_says(tmp_path, text):
    place = tmp_path / "elsewhere"
    file = tmp_path / "workflow-composer" / "fleet.yaml"
    file.parent.mkdir()
    file.write_text(text.format(place=place, roles='{"a": {"model": "m", "port": 8001}}'))
    HeldLog(place / FILE_NAME).add(span(price=1.0))
    found = Reservations({"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)})
    with contextlib.chdir(tmp_path):
        assert found.of(None, BEGAN, BEGAN + DAY).cost == 1.0
