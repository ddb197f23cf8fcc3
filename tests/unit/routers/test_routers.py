"""Which plan each router makes."""

import pytest

from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import LocalModelUnavailable, RoutingError
from workflow_composer.plan import Candidate
from workflow_composer.routers.base import RouterContext
from workflow_composer.routers.cascading_provider import CascadingProviderRouter
from workflow_composer.routers.provider import ProviderRouter
from workflow_composer.routers.t4_model import T4ModelRouter
from workflow_composer.types import LLMRequest, ResourceStatus

CLOUD = {"backend": "openai", "base_url": "https://cloud.example/v1", "api_key_env": "KEY"}
FIELDS = {
    "vllm_endpoints": {"coder": "http://127.0.0.1:8002/v1", "general": "http://127.0.0.1:8001/v1"},
    "models": {"first": CLOUD, "second": CLOUD, "mine": {"backend": "embedded", "path": "small"}},
    "task_routing": {"code": "coder", "chat": "cloud", "sums": "mine", "*": "general"},
    "fallback": ["first", "second"],
}
LOCAL_FIELDS = FIELDS | {"models": {"mine": FIELDS["models"]["mine"]}, "fallback": [], "allow_cloud": False}
LOCAL_FIELDS["task_routing"] = {"code": "coder", "sums": "mine"}


def context(**changes):
    config = StrategyConfig(profile_name="p", **(FIELDS | changes))

    def candidates(target):
        return tuple(
            Candidate(s.name, s.local, s.context_length, s.endpoint, s.capabilities) for s in config.resolve(target)
        )

    async def execute(plan, request):
        return plan

    return RouterContext(config, candidates, ResourceStatus, execute)


def names(plan):
    return [[candidate.name for candidate in tier.candidates] for tier in plan.tiers]


def plan(router, task="*", *, keys=None, **fields):
    resources = ResourceStatus(cloud_apis=keys if keys is not None else {"first": True, "second": True})
    return router.plan(LLMRequest.of("x", task_type=task, **fields), resources)


class TestT4Model:
    @pytest.mark.parametrize(("task", "expected"), [("code", "coder"), ("anything", "general")])
    def test_a_task_goes_to_its_server_alone(self, task, expected):
        """One tier, one candidate."""
        made = plan(T4ModelRouter(context()), task)
        assert names(made) == [[expected]]
        assert made.router == "t4_model"
        assert expected in made.reason

    @pytest.mark.parametrize("task", ["chat", "sums"])
    def test_a_task_without_a_server_is_left_to_the_next_router(self, task):
        """Neither the cloud nor an embedded model is a server of a role."""
        assert plan(T4ModelRouter(context()), task) is None

    def test_a_named_role_goes_to_its_server(self):
        """The caller may name the role."""
        assert names(plan(T4ModelRouter(context()), "code", model="general")) == [["general"]]

    def test_a_profile_without_a_wildcard_leaves_unknown_tasks(self):
        """There is no plan to be made up."""
        assert plan(T4ModelRouter(context(task_routing={"code": "coder"})), "other") is None


class TestProvider:
    @pytest.mark.parametrize(("task", "expected"), [("code", "coder"), ("chat", "first"), ("sums", "mine")])
    def test_exactly_the_routed_model_is_asked(self, task, expected):
        """The first usable one where the route stands for several."""
        assert names(plan(ProviderRouter(context()), task)) == [[expected]]

    def test_a_cloud_model_without_a_key_is_left_out_and_named(self):
        """The plan says why."""
        made = plan(ProviderRouter(context()), "chat", keys={"first": False, "second": True})
        assert names(made) == [["second"]]
        assert made.left_out == ("first: its key is not set (KEY)",)

    def test_without_any_key_the_error_says_what_to_set(self):
        """There is nothing to ask."""
        with pytest.raises(RoutingError, match="first: its key is not set"):
            plan(ProviderRouter(context()), "chat", keys={"first": False, "second": False})

    def test_a_named_model_is_stronger_than_the_route(self):
        """The caller decides."""
        assert names(plan(ProviderRouter(context()), "code", model="second")) == [["second"]]


class TestCascadingProvider:
    def test_the_local_server_comes_first_and_the_cloud_behind_it(self):
        """In the profile's order."""
        made = plan(CascadingProviderRouter(context()), "code")
        assert names(made) == [["coder", "first", "second"]]
        assert "fallback: first, second" in made.reason

    def test_a_model_is_asked_only_once(self):
        """A task routed to the cloud does not meet its own fallback."""
        assert names(plan(CascadingProviderRouter(context()), "chat")) == [["first", "second"]]

    def test_models_without_keys_are_left_out(self):
        """They could only fail."""
        made = plan(CascadingProviderRouter(context()), "code", keys={"first": False, "second": True})
        assert names(made) == [["coder", "second"]]

    def test_the_number_of_fallbacks_can_be_limited(self):
        """A setting of the router."""
        assert names(plan(CascadingProviderRouter(context(), {"max_fallbacks": 1}), "code")) == [["coder", "first"]]
        assert names(plan(CascadingProviderRouter(context(), {"max_fallbacks": 0}), "code")) == [["coder"]]

    def test_a_named_model_has_no_fallback(self):
        """Another model's answer was not asked for."""
        assert names(plan(CascadingProviderRouter(context()), "code", model="first")) == [["first"]]

    def test_where_the_cloud_is_forbidden_only_local_models_are_candidates(self):
        """There is nothing in the plan that could send data out."""
        made = plan(CascadingProviderRouter(context(**LOCAL_FIELDS)), "code")
        assert names(made) == [["coder"]]
        assert all(candidate.local for tier in made.tiers for candidate in tier.candidates)

    def test_a_forbidden_cloud_model_is_left_out_even_if_it_is_offered(self):
        """Whatever a name resolves to, the router drops what the profile forbids, and says so."""
        base = context(**LOCAL_FIELDS)
        leaky = RouterContext(base.config, lambda target: (Candidate("sneaky", local=False),), base.resources, base.execute)
        with pytest.raises(LocalModelUnavailable, match="sneaky: the profile forbids the cloud"):
            plan(CascadingProviderRouter(leaky), "code")


class TestCapabilities:
    IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]

    @pytest.mark.parametrize(
        ("lacking", "fields"),
        [
            ("tools", {"tools": ({"type": "function"},)}),
            ("json", {"response_format": {"type": "json_object"}}),
            ("logprobs", {"logprobs": True}),
            ("vision", {"messages": IMAGE}),
            ("embeddings", {"kind": "embeddings"}),
        ],
    )
    def test_a_model_that_lacks_what_the_request_needs_is_left_out(self, lacking, fields):
        """Where a model's capabilities are listed, they are all it has."""
        models = {"first": CLOUD | {"capabilities": ["chat"]}, "second": CLOUD | {"capabilities": ["chat", lacking]}}
        router = CascadingProviderRouter(context(models=models | {"mine": FIELDS["models"]["mine"]}))
        if lacking == "embeddings":
            models["second"]["capabilities"] = ["embeddings"]
        request = LLMRequest(**({"messages": ({"role": "user", "content": "x"},), "task_type": "chat"} | fields))
        made = router.plan(request, ResourceStatus())
        assert names(made) == [["second"]]
        assert made.left_out == (f"first: it does not support {lacking}",) or lacking == "embeddings"

    def test_where_nothing_is_listed_everything_is_tried(self):
        """A model of unknown capabilities is asked, and says itself what it cannot do."""
        assert names(plan(ProviderRouter(context()), "sums", logprobs=True)) == [["mine"]]

    def test_a_task_server_that_lacks_a_capability_is_an_error(self):
        """The T4 router has nowhere else to go, and says why."""
        models = FIELDS["models"] | {"c": {"backend": "vllm", "endpoint": "coder", "capabilities": ["embeddings"]}}
        with pytest.raises(RoutingError, match="c: it does not support chat"):
            plan(T4ModelRouter(context(models=models)), "code")


class TestRemembering:
    def test_requests_of_a_kind_share_a_plan_and_others_do_not(self):
        """Model, task and resources decide; what was learned of the resources is never missed."""
        router, resources = CascadingProviderRouter(context()), ResourceStatus(cloud_apis={"first": True, "second": True})
        code = LLMRequest.of("x", task_type="code")
        first = router.plan(code, resources)
        assert router.plan(LLMRequest.of("y", task_type="code"), resources) is first
        assert names(router.plan(LLMRequest.of("x", task_type="chat"), resources)) == [["first", "second"]]
        assert names(router.plan(LLMRequest.of("x", task_type="code", model="second"), resources)) == [["second"]]
        assert names(router.plan(code, ResourceStatus(cloud_apis={"first": False}))) == [["coder", "second"]]

    def test_what_is_remembered_has_a_limit(self):
        """Task types are the callers' words."""
        router, resources = ProviderRouter(context()), ResourceStatus()
        for number in range(3000):
            router.plan(LLMRequest.of("x", task_type=f"t{number}"), resources)
        assert len(router._plans) <= 1024


class TestEvery:
    @pytest.mark.parametrize("router", [T4ModelRouter, ProviderRouter, CascadingProviderRouter])
    async def test_route_runs_the_plan(self, router):
        """`route` hands the plan to the executor of its snapshot."""
        made = await router(context()).route(LLMRequest.of("x", task_type="code"))
        assert made.tiers[0].candidates[0].name == "coder"

    async def test_route_without_a_plan_is_an_error(self):
        """It names the router and the task."""
        with pytest.raises(RoutingError, match="'t4_model' has no plan for task 'chat'"):
            await T4ModelRouter(context()).route(LLMRequest.of("x", task_type="chat"))

    @pytest.mark.parametrize("router", [T4ModelRouter, ProviderRouter, CascadingProviderRouter])
    def test_two_routers_are_never_equal(self, router):
        """They are told apart by identity, also with equal settings."""
        shared = context()
        assert router(shared) != router(shared)
