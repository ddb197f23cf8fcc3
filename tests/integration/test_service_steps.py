"""No step of the service's event loop is long, whatever a model server or a client sends: others get their turns.

Steps are measured by `probed_service` in processor time of the loop's thread, and compared with those of usual requests in
the same run. What happens at times only (a collection of garbage) lengthens a step of some rounds, not of all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest

from tests.integration.probed_service import ProbedService
from tests.integration.test_service_too_much import FORMS, KINDS, asked, over_hostile

ROUNDS = 4
MOST = 10
"""Times the control's longest step."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[ProbedService]:
    with over_hostile(tmp_path_factory.mktemp("steps"), ProbedService) as found:
        for _ in range(3):
            usual(found)
        yield found


def usual(service: ProbedService) -> None:
    """A usual request in every form."""
    for form in FORMS:
        assert asked(service, form, "fine", stream=False)


def longest(service: ProbedService, ask: Callable[[], object]) -> tuple[float, str]:
    """The longest step while something is asked."""
    service.steps()
    ask()
    return service.steps()[0]


def control(service: ProbedService) -> float:
    """The longest step of a round of usual requests."""
    return statistics.median(longest(service, lambda: usual(service))[0] for _ in range(5))


def check(service: ProbedService, ask: Callable[[], object], most: float) -> None:
    """At least one round has no longer step than so many times the control's."""
    seen = []
    for _ in range(ROUNDS):
        took, what = longest(service, ask)
        bar = most * control(service)
        if took <= bar:
            return
        seen.append((round(took * 1000, 1), round(bar * 1000, 1), what))
    raise AssertionError(f"milliseconds, the bar, and what ran: {seen}")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("form", ["chat", "messages"])  # relayed, and translated
@pytest.mark.parametrize("kind", KINDS)
def test_too_much_from_a_server_is_taken_in_short_steps(service, kind, form, stream):
    check(service, lambda: asked(service, form, kind, stream=stream), MOST)


def test_a_large_request_is_taken_in_short_steps(service):
    """Its bytes are gathered, decoded, encoded and sent in pieces, or in a thread; before, it took 200 times the control."""
    body = {"model": "fine", "messages": [{"role": "user", "content": "q" * 30_000_000}]}

    def ask() -> None:
        assert service.request("POST", "/v1/chat/completions", body)[0] == 200

    check(service, ask, 4 * MOST)
