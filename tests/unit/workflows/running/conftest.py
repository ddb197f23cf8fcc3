import pytest

from tests.unit.workflows.running.kit import Bench


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(reply, **profile):
        made.append(Bench(tmp_path, reply, profile))
        return made[-1]

    yield make
    for one in made:
        one.orchestrator.close()
