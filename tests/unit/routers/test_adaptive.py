"""The adaptive router: which path a request takes, how often the wrapped router is asked, and what is forgotten when."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from workflow_composer import LLMRequest, ModelOrchestrator, Plan, StrategyConfig, Tier, hookimpl
from workflow_composer.errors import ConfigError, RoutingError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.host import plugin_host
from workflow_composer.routers.adaptive import ShapeTable, shape_of
from workflow_composer.routers.base import Router, RouterSettings

NOBODY = 10**6


class JudgeSettings(RouterSettings):
    """Which model questions with the word go to."""

    word: str = "hard"


class Judge(Router):
    """Expensive, as a classifier is: so it counts how often it is asked. Questions with the word go to ``large``."""

    Settings = JudgeSettings
    made: list[Judge] = []

    def __init__(self, context, settings=None):
        super().__init__(context, settings)
        self.asked = []
        self.told = 0
        Judge.made.append(self)

    def plan(self, request, resources):
        text = request.messages[-1]["content"]
        self.asked.append(text)
        if text == "broken":
            raise RoutingError("the judge is out")
        if text == "none":
            return None
        name = "large" if self.settings.word in text else "small"
        return Plan((Tier.of(self.context.candidates(name)),), "judge", f"the judge says {name}")

    def answered(self, request, response):
        self.told += 1


class Plugin:
    @hookimpl
    def register_routers(self, register):
        register("judge", Judge)


@pytest.fixture
def orchestrating():
    """Make an orchestrator whose requests go through the adaptive router with these settings, around the judge."""
    open_ = []

    def make(**settings):
        return opened(profile(**settings))

    def opened(config):
        host = plugin_host(discover=False)
        host.add(Plugin(), name="judges")
        open_.append(ModelOrchestrator(config, plugins=host, metrics=MemorySink()))
        return open_[-1]

    Judge.made.clear()
    yield make
    for orchestrator in open_:
        orchestrator.close()


def profile(*, name="test", others=("provider",), **settings):
    return StrategyConfig(
        profile_name=name,
        models={name: {"backend": "fake"} for name in ("small", "large", "usual")},
        task_routing={"*": "usual"},
        routers=[{"adaptive": {"router": "judge", "least": NOBODY, **settings}}, *others],
    )


def path_of(orchestrator, text, **fields):
    """The path that a request takes, and the model that it goes to."""
    plan = orchestrator.plan(text, **fields)
    return plan.reason.partition(":")[0], plan.tiers[0].candidates[0].name


def test_the_first_of_a_kind_is_asked_about_and_the_same_again_is_not(orchestrating):
    """Spaces and capitals make no other request; another task does."""
    orchestrator = orchestrating()
    found = [path_of(orchestrator, text) for text in ("a hard one", "A hard  ONE", "an easy one", "a hard one")]
    assert found == [("asked", "large"), ("cache", "large"), ("asked", "small"), ("cache", "large")]
    assert path_of(orchestrator, "a hard one", task_type="maths") == ("asked", "large")
    assert Judge.made[-1].asked == ["a hard one", "an easy one", "a hard one"]


def test_the_reason_says_the_path_and_what_the_wrapped_router_said(orchestrating):
    plan = orchestrating().plan("a hard one")
    assert (plan.router, plan.reason) == ("adaptive", "asked: the judge says large")


def test_the_wrapped_router_is_asked_for_a_bounded_share(orchestrating):
    """``share`` and ``start``: of n requests that all are new, at most share * (n + 1) + start, for every n."""
    orchestrator = orchestrating(share=0.1, start=3)
    judge = Judge.made[-1]
    for n in range(1, 121):
        path, model = path_of(orchestrator, f"question {n * 7919} of its own")
        assert (path, model) in {("asked", "small"), ("forced", "small"), ("forced", "usual")}
        assert len(judge.asked) <= 0.1 * (n + 1) + 3
    assert len(judge.asked) == 15
    assert orchestrator.routers["adaptive"].counts()["forced"] == 105


def test_without_a_guess_a_forced_request_goes_where_its_task_is_routed(orchestrating):
    orchestrator = orchestrating(share=0.0, start=0)
    assert path_of(orchestrator, "a hard one") == ("forced", "usual")
    assert Judge.made[-1].asked == []


def test_a_forced_request_gets_what_its_kind_usually_gets(orchestrating):
    orchestrator = orchestrating(share=0.0, start=2)
    assert [path_of(orchestrator, f"a hard {word}")[0] for word in ("nut", "day", "job")] == ["asked", "asked", "forced"]
    assert path_of(orchestrator, "a soft egg") == ("forced", "large")


def test_a_kind_of_requests_is_known_after_enough_like_decisions(orchestrating):
    """``least`` and ``agreement``."""
    orchestrator = orchestrating(least=3, share=1.0)
    words = ["nut", "day", "job", "win", "bet"]
    assert [path_of(orchestrator, f"a hard {word}")[0] for word in words] == ["asked"] * 3 + ["table"] * 2
    assert len(Judge.made[-1].asked) == 3

    mixed = [f"a {word} {noun}" for word in ("hard", "soft") for noun in ("nut", "day", "job")]
    strict = orchestrating(least=3, share=1.0, agreement=1.0)
    for text in reversed(mixed[1:]):
        strict.plan(text)
    assert path_of(strict, "a warm egg")[0] == "table"
    unsure = orchestrating(least=4, share=1.0, agreement=0.8)
    assert [path_of(unsure, text)[0] for text in [mixed[0], mixed[3], mixed[1], mixed[4], "a warm egg"]] == ["asked"] * 5


def test_a_file_can_say_which_kinds_are_known(orchestrating, tmp_path):
    """``shapes``: no asking from the first request on."""
    path = tmp_path / "shapes.jsonl"
    shape = shape_of(LLMRequest.of("what is 12 + 30?", task_type="maths"))
    path.write_text(json.dumps({"shape": shape, "target": "small"}) + "\n\n")
    orchestrator = orchestrating(shapes=str(path))
    assert path_of(orchestrator, "what is 7 + 4?", task_type="maths") == ("table", "small")
    assert path_of(orchestrator, "what is a hard one?", task_type="maths") == ("asked", "large")


@pytest.mark.parametrize(
    ("line", "error"),
    [('{"shape": "x"}', ConfigError), ("[", ConfigError), ('{"shape": "x", "target": "nobody"}', RoutingError)],
)
def test_a_file_of_shapes_that_cannot_be_followed_is_refused(orchestrating, tmp_path, line, error):
    path = tmp_path / "shapes.jsonl"
    path.write_text(line)
    with pytest.raises(error):
        orchestrating(shapes=str(path))


def test_decisions_are_forgotten_after_their_time(orchestrating, monkeypatch):
    """``ttl`` for the same request, ``table_ttl`` for a kind of requests."""
    orchestrator = orchestrating(ttl=100.0, table_ttl=1000.0, least=2, share=1.0)
    router = orchestrator.routers["adaptive"]
    now = [0.0]
    router._clock = router._paths.cache._clock = lambda: now[0]
    assert path_of(orchestrator, "a hard nut")[0] == "asked"
    now[0] = 99.0
    assert path_of(orchestrator, "a hard nut")[0] == "cache"
    now[0] = 101.0
    assert path_of(orchestrator, "a hard nut")[0] == "asked"
    assert path_of(orchestrator, "a hard day")[0] == "table"
    now[0] = 1102.0
    assert path_of(orchestrator, "a hard day")[0] == "asked"


def test_only_so_many_are_remembered(orchestrating):
    """``size``: the least recently used decision gives way."""
    orchestrator = orchestrating(size=2, share=1.0)
    for text in ("one", "two", "three"):
        orchestrator.plan(text)
    assert [path_of(orchestrator, text)[0] for text in ("three", "two", "one")] == ["cache", "cache", "asked"]


def test_numbers_can_be_taken_for_alike(orchestrating):
    """``digits_alike``."""
    for alike, path in ((True, "cache"), (False, "asked")):
        orchestrator = orchestrating(digits_alike=alike)
        orchestrator.plan("what is 12 + 7.5?")
        assert path_of(orchestrator, "what is 3 + 1000?")[0] == path


def test_the_wrapped_router_gets_its_own_settings(orchestrating):
    """``settings``."""
    orchestrator = orchestrating(settings={"word": "soft"})
    assert path_of(orchestrator, "a soft one") == ("asked", "large")


def test_another_strategy_forgets_all(orchestrating):
    """The router of the new one has decided nothing yet."""
    orchestrator = orchestrating()
    orchestrator.plan("a hard one")
    assert path_of(orchestrator, "a hard one")[0] == "cache"
    orchestrator.switch_strategy(profile(name="other", settings={"word": "easy"}))
    assert path_of(orchestrator, "a hard one") == ("asked", "small")


def test_what_is_known_of_servers_changing_forgets_plans(orchestrating):
    """A plan was made for the servers and keys that there were; when they were probed does not matter."""
    orchestrator = orchestrating()
    orchestrator.plan("a hard one")
    orchestrator.status()
    first = path_of(orchestrator, "a hard one")[0]
    orchestrator.status()
    assert (first, path_of(orchestrator, "a hard one")[0]) in {("asked", "cache"), ("cache", "cache")}
    router = orchestrator.routers["adaptive"]
    resources = orchestrator._active.resources
    changed = type(resources)(cloud_apis={"small": False}, endpoints=resources.endpoints)
    assert router.plan(LLMRequest.of("a hard one"), changed).reason.startswith("asked")


def test_no_plan_is_remembered_too_and_leaves_it_to_the_next_router(orchestrating):
    orchestrator = orchestrating()
    assert [orchestrator.plan("none").router for _ in range(3)] == ["provider"] * 3
    assert Judge.made[-1].asked == ["none"]


def test_a_failure_of_the_wrapped_router_is_passed_on_and_not_remembered(orchestrating):
    orchestrator = orchestrating()
    for _ in range(2):
        with pytest.raises(RoutingError, match="the judge is out"):
            orchestrator.plan("broken")
    assert Judge.made[-1].asked == ["broken"] * 2


def test_answers_reach_the_wrapped_router(orchestrating):
    orchestrator = orchestrating()
    response = orchestrator.generate("a hard one")
    assert (response.decision.router, response.decision.model) == ("adaptive", response.model)
    assert Judge.made[-1].told == 1


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"router": "jugde"}, "unknown router 'jugde'"),
        ({"router": "adaptive"}, "another adaptive router"),
        ({"settings": {"wrod": "x"}}, "wrod"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"agreement": 0.5}, "greater than 0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(orchestrating, settings, what):
    with pytest.raises(ConfigError, match=what):
        orchestrating(**settings)


def test_a_router_whose_plans_are_good_for_one_moment_is_not_wrapped():
    """An alarm of the execution-feedback router must be noticed at the next request."""
    config = StrategyConfig(
        profile_name="test",
        models={"s": {"backend": "fake", "capabilities": ["chat", "logprobs"]}},
        tiers={"small": {"model": "s", "cost": 1.0}},
        routers=[{"adaptive": {"router": "execution_feedback"}}],
    )
    with pytest.raises(ConfigError, match="must not be reused"):
        ModelOrchestrator(config, plugins=plugin_host(discover=False), metrics=MemorySink())


def test_a_routing_string_may_go_to_a_cascade_router_that_is_wrapped():
    """The check of profiles sees it."""
    config = StrategyConfig(
        profile_name="test",
        models={"s": {"backend": "fake"}},
        task_routing={"*": "mv_s_k3_t0.7"},
        routers=[{"adaptive": {"router": "cascade"}}],
    )
    with ModelOrchestrator(config, plugins=plugin_host(discover=False), metrics=MemorySink()) as orchestrator:
        assert orchestrator.plan("x").tiers[0].samples == 3


def test_the_bound_holds_where_many_ask_at_once(orchestrating):
    orchestrator = orchestrating(share=0.15, start=0)

    def work(part):
        for n in range(60):
            orchestrator.plan(f"{part} question {n * 7919}")

    threads = [threading.Thread(target=work, args=(part,)) for part in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = orchestrator.routers["adaptive"].counts()

    assert found["decisions"] == 480
    assert len(Judge.made[-1].asked) == found["learned"] <= 0.15 * 481
    assert found["worst_prefix_share"] <= 0.15


def test_shapes_tell_task_needs_length_and_what_stands_in_the_text():
    """And nothing of the words."""
    assert shape_of(LLMRequest.of("Sort it.")) == "* chat 16"
    assert (
        shape_of(LLMRequest.of("Sort it.", kind="completion")) == "* completion chat 16"
    )  # another plan, as it has no vote
    assert shape_of(LLMRequest.of("```\nx = 1\n```" + " word" * 20, model="m")) == "* model=m chat 256 code numbers"


def test_a_table_keeps_few_shapes_and_few_plans():
    table = ShapeTable(least=1, agreement=0.9, ttl=10.0, size=2)
    for shape in "abc":
        table.learn(shape, None, 0.0)
    assert len(table) == 2
    assert table.known("a", 0.0) == (False, None)
    assert table.known("c", 9.0) == (True, None)
    assert table.known("c", 10.0) == (False, None)


def test_it_closes_what_it_wraps(orchestrating):
    closed = []

    async def note():
        closed.append(True)

    orchestrator = orchestrating()
    Judge.made[-1].aclose = note
    asyncio.run(orchestrator.routers["adaptive"].aclose())
    assert closed == [True]


def test_nothing_is_learned_from_private_requests(orchestrating):
    """Where a later request goes, and whether the wrapped router is asked about it, tells nothing of them."""

    def seen(*private):
        orchestrator = orchestrating(least=2, start=3)
        for text in private:
            assert orchestrator.plan(text, private=True).tiers[0].members[0].candidates[0].name == "large"
        return [orchestrator.plan(f"easy {number}").reason for number in "abcdefgh"]

    assert seen() == seen("hard one", "hard two", "hard three", "hard four")
