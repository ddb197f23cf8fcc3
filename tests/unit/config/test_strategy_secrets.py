"""A secret never stands in a profile, and never comes out of one."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.paths import PROFILES
from workflow_composer.config.redaction import looks_like_secret, names_a_secret, scrub
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ProfileError

LONG = "q7Zp2LxR9vT4mB8nK1cW6yH3dF5gJ0sA"
HEX = "9f86d081884c7d659a2feaa0c55ad015"
CLOUD = "backend: openai, base_url: 'https://api.example/v1'"


@pytest.fixture
def refusal(tmp_path):
    """The error of loading this text, as a person sees it, and as a program does."""

    def load(text):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        with pytest.raises(ProfileError) as caught:
            StrategyConfig.from_yaml(path, environ={"HOST": "hunter2"})
        error = caught.value
        seen, shown = error, ""
        while seen is not None:  # nothing behind the error may show it either
            shown += f"{seen}{seen!r}{getattr(seen, 'problems', '')}"
            seen = seen.__cause__ or seen.__context__
        return shown

    return load


@pytest.mark.parametrize(
    ("secret", "text", "place"),
    [
        ("hunter2", "models: {m: {" + CLOUD + ", api_key: hunter2}}", "models.m.api_key: a profile must not contain"),
        (
            "${hunter}2",
            "models: {m: {" + CLOUD + ", api_key: '${hunter}2'}}",
            "models.m.api_key: a profile must not contain",
        ),
        ("12345", "models: {m: {" + CLOUD + ", api_key: 12345}}", "models.m.api_key: a profile must not contain"),
        (
            "hunter2",
            "models: {m: {" + CLOUD + ", api_key_env: hunter2}}",
            "models.m.api_key_env: found a value (not shown",
        ),
        ("sk-a1b2c3d4e5f6", "models: {m: {" + CLOUD + ", api_key_env: sk-a1b2c3d4e5f6}}", "looks like the key itself"),
        (LONG, "models: {m: {" + CLOUD + f", api_key_env: {LONG}" + "}}", "looks like the key itself"),
        ("hunter2", "models: {m: {" + CLOUD + ", apikey: hunter2}}", "models.m.apikey: unknown key"),
        ("hunter2", "password: hunter2", "password: unknown key"),
        ("hunter2", "models: {m: {backend: openai, base_url: 'https://me:hunter2@h/v1'}}", "the URL contains a password"),
        ("hunter2", "models: {m: {backend: openai, base_url: 'https://hunter2@h/v1'}}", "the URL contains a password"),
        ("hunter2", "models: {m: {backend: openai, base_url: 'https://me:hunter2/x@h/v1'}}", "found a URL (not shown)"),
        ("hunter2", "vllm_endpoints: {r: 'http://me:hunter2@h/v1'}", "vllm_endpoints.r: the URL contains a password"),
        ("hunter2", "vllm_endpoints: {r: 'http://me:${HOST} @h/v1'}", "vllm_endpoints.r: "),
        ("hunter2", "vllm_endpoints: {r: 'http://${HOST}:x/v1'}", "'http://${HOST}:x/v1'; its host or port"),
        ("sk-a1b2c3d4e5f6", "description: mine is sk-a1b2c3d4e5f6", "description: the value looks like a secret"),
        ("sk-a1b2c3d4e5f6", "routers: [{provider: {key: [sk-a1b2c3d4e5f6]}}]", "routers[0].provider.key[0]: the value"),
        ("sk-a1b2c3d4e5f6", "task_routing: {a: sk-a1b2c3d4e5f6}", "task_routing.a: the value looks like a secret"),
        ("sk-a1b2c3d4e5f6", "task_routing: {sk-a1b2c3d4e5f6: a}", "task_routing.<not shown>: this key looks like a secret"),
        ("sk-a1b2c3d4e5f6", "sk-a1b2c3d4e5f6: a", "<not shown>: this key looks like a secret"),
        ("sk-a1b2c3d4e5f6", "a: !sk-a1b2c3d4e5f6 b", "the YAML tag"),
        ("sk-a1b2c3d4e5f6", "a: &sk-a1b2c3d4e5f6 b\nb: &sk-a1b2c3d4e5f6 c\nc: *sk-a1b2c3d4e5f7", "invalid YAML"),
        (LONG, f"models: {{m: {{backend: replay, path: {LONG}}}}}", "models.m.path: the value looks like a secret"),
        (HEX, f"models: {{m: {{backend: vllm, base_url: '{HEX}'}}}}", "models.m.base_url: the value looks like a secret"),
        (HEX, f"{HEX}: [", "invalid YAML"),
    ],
)
def test_a_refused_secret_is_not_repeated(refusal, secret, text, place):
    """The error names the key and says what to write instead; the secret is nowhere in it."""
    shown = refusal(f"profile_name: p\n{text}\n")
    assert place in shown
    assert secret not in shown


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    secret=st.text("ABCDEFGHJKLMNPQRSTUVWXYZ23456789qwxz", min_size=8, max_size=40).map(lambda text: f"SEC{text}"),
    place=st.sampled_from(
        [
            "api_key: '{}'",
            "api_key: ['{}']",
            "api_key: {{a: '{}'}}",
            "password: '{}'",
            "token: {{a: '{}'}}",
            "base_url: 'https://u:{}@h'",
        ]
    ),
)
def test_no_secret_is_repeated_whatever_it_looks_like(refusal, secret, place):
    """Where a key belongs or is expected, no value is shown."""
    assert secret not in refusal("profile_name: p\nmodels:\n  m: {backend: openai, " + place.format(secret) + "}\n")


def test_what_is_printed_of_a_profile_holds_no_value_of_a_variable(tmp_path):
    """Variables are filled in for the backends only."""
    path = tmp_path / "p.yaml"
    path.write_text("profile_name: p\nmodels: {m: {backend: openai, base_url: 'https://u:${PW}@h/v1', api_key: '${KEY}'}}\n")
    config = StrategyConfig.from_yaml(path, environ={"PW": "hunter2", "KEY": "hunter3"})
    shown = [
        repr(config),
        str(config),
        repr(dict(config.models)),
        yaml.safe_dump(config.to_dict()),
        repr(config.backend_specs()),
    ]
    assert all("hunter" not in text for text in shown)
    assert config.backend_specs()["m"].base_url == "https://u:hunter2@h/v1"


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefgh",
        "sk-ant-api03-xYz_1234",
        "hf_abcdefghijklmnopqrst",
        "ghp_0123456789abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "Authorization: Bearer abcdef123456",
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
        LONG,
        HEX,
        f"prefix {LONG} suffix",
        "https://user:word@host/v1",
    ],
)
def test_secrets_are_recognised(text):
    """Prefixes of the known providers, long random tokens, passwords in URLs."""
    assert looks_like_secret(text)
    assert "<not shown>" in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ",
        "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        "claude-3-5-sonnet-20241022",
        "task-generation-for-biology",
        "/data/models/averylongdirectorynamewithoutanydigits/weights",
        "http://gpu-node-07.cluster.example.edu:8001/v1",
        "https://me:${PASSWORD}@api.example.com/v1",
        "DEEPSEEK_API_KEY",
        "0" * 64,
    ],
)
def test_ordinary_names_are_no_secrets(text):
    """Names of models, paths, hosts and variables pass."""
    assert not looks_like_secret(text)


def test_keys_that_hold_secrets_are_known_by_their_name():
    """`first_token` is a time."""
    assert all(map(names_a_secret, ["api_key", "apiKey", "API-KEY", "password", "client_secret", "token", "access_token"]))
    assert not any(map(names_a_secret, ["first_token", "model", "keys", "capabilities", 3]))


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_nothing_in_the_shipped_profiles_looks_like_a_secret(path):
    """Comments included."""
    assert not looks_like_secret(path.read_text())
