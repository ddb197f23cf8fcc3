"""Every fault of a profile is reported: all at once, each with its file, line and key."""

# ruff: noqa: E501  # the table below has one case a line

import re

import pytest
from pydantic import BaseModel

from workflow_composer.config.findings import _parts
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import ConfigError, ProfileError

HEAD = "profile_name: p\nvllm_endpoints: {coder: 'http://h:1/v1'}\n"
CLOUD = "models: {far: {backend: openai, base_url: 'https://x.example/v1'}}\n"


@pytest.fixture
def faults(tmp_path):
    """Load YAML text and return its faults, without the file's name."""

    def load(text, *, head=HEAD):
        path = tmp_path / "p.yaml"
        path.write_text(head + text, encoding="utf-8")
        with pytest.raises(ProfileError) as caught:
            StrategyConfig.from_yaml(path, environ={"SET": "x"})
        assert str(caught.value) == "\n".join(caught.value.problems)
        assert all(line.startswith(f"{path}:") and "\n" not in line for line in caught.value.problems)
        return [line.removeprefix(f"{path}:") for line in caught.value.problems]

    return load


ONE_FAULT = {
    # ------------------------------------------------------------------------------------------------------------- keys
    "unknown key": ("alow_cloud: true", "3: alow_cloud: unknown key; allowed: .*; did you mean 'allow_cloud'"),
    "unknown key of a model": ("models: {m: {backend: fake, modle: x}}", "3: models.m.modle: unknown key; .*did you mean 'model'"),
    "name of a model": ("models: {m: {backend: fake, name: x}}", "3: models.m.name: unknown key"),
    "unknown key of a tier": ("tiers:\n  t:\n    model: coder\n    price: 3", "6: tiers.t.price: unknown key; allowed: model, cost"),
    "unknown timeout": ("timeouts: {conect: 1}", "3: timeouts.conect: unknown key; allowed: connect, .*'connect'"),
    "unknown retry": ("retries: {tries: 1}", "3: retries.tries: unknown key; allowed: attempts"),
    "unknown breaker": ("circuit_breaker: {failure: 1}", "3: circuit_breaker.failure: unknown key; .*'failures'"),
    "unknown fallback key": ("fallback: {primary: coder, tertiary: coder}", "3: fallback.tertiary: unknown key; .*secondary"),
    "duplicated key": ("allow_cloud: true\nallow_cloud: false", "4: allow_cloud: duplicate key, first in line 3"),
    "duplicated role": ("models: {m: {backend: fake}, m: {backend: fake}}", "3: models.m: duplicate key"),
    "number as a key": ("models: {1.5: {backend: fake}}", "3: models.1.5: YAML does not read this key as text; put it in quotes"),
    "yes as a key": ("task_routing: {yes: coder}", "3: task_routing.yes: YAML does not read this key as text"),
    "list as a key": ("task_routing: {[a]: coder}", "3: task_routing: a key is a list"),
    "merge key": ("task_routing: {<<: {a: coder}}", "3: task_routing.<<: found a mapping; allowed: text"),
    # ------------------------------------------------------------------------------------------------------------ types
    "yes for text": ("description: yes", "3: description: found yes, which YAML reads as true or false; allowed: text"),
    "number for text": ("description: 012", "3: description: found '012', which YAML reads as a number; put text in quotes"),
    "date for text": ("description: 2024-01-01", "3: description: found '2024-01-01', which YAML reads as a date"),
    "base 60": ("timeouts: {total: 1:30}", "3: timeouts.total: found '1:30', which YAML reads as a number"),
    "text for a number": ("timeouts: {total: '30'}", "3: timeouts.total: found '30'; allowed: a number"),
    "bool for a number": ("timeouts: {total: true}", "3: timeouts.total: found true; allowed: a number"),
    "fraction for a count": ("retries: {attempts: 2.5}", "3: retries.attempts: found 2.5; allowed: a whole number"),
    "text for a bool": ("allow_cloud: 'no'", "3: allow_cloud: found 'no'; allowed: true or false"),
    "number for a bool": ("debug_routing: 1", "3: debug_routing: found 1; allowed: true or false"),
    "nothing for a section": ("models:", "3: models: found nothing; allowed: a mapping"),
    "list for a mapping": ("models: [a]", "3: models: found a list; allowed: a mapping"),
    "text for a list": ("local_networks: 10.0.0.0/8", "3: local_networks: found '10.0.0.0/8'; allowed: a list"),
    "text for a model": ("models: {m: small}", "3: models.m: found 'small'; allowed: a mapping"),
    "text for fallback": ("fallback: coder", "3: fallback: found 'coder'; allowed: a list"),
    "number in fallback": ("fallback: [3]", r"3: fallback\[0\]: found 3, which YAML reads as a number; allowed: text"),
    "no name": ("", " profile_name: the key 'profile_name' is missing; The profile's name", "allow_cloud: true"),
    "empty name": ("profile_name: ''", "1: profile_name: found ''; allowed: text that is not empty", ""),
    "no backend": ("models: {m: {path: x}}", "3: models.m: the key 'backend' is missing"),
    "no model of a tier": ("tiers: {t: {cost: 1}}", "3: tiers.t: the key 'model' is missing"),
    "python object": ("description: !!python/object/apply:os.system [ls]", "3: description: the YAML tag .* is not allowed"),
    "binary scalar": ("description: !!binary aGk=", "3: description: the YAML tag .*binary is not allowed"),
    "alias": ("description: &a x\ntask_routing: {'*': *a}", r"4: task_routing.\*: YAML aliases are not allowed"),
    # ---------------------------------------------------------------------------------------------------------- numbers
    "negative price": ("models: {m: {backend: fake, input_price: -1}}", "3: models.m.input_price: found -1; .*at least 0"),
    "infinite price": ("models: {m: {backend: fake, output_price: .inf}}", "3: models.m.output_price: found inf; .*finite"),
    "nan price": ("models: {m: {backend: fake, gpu_hour_price: .nan}}", "3: models.m.gpu_hour_price: found nan; .*finite"),
    "negative cost": ("tiers: {t: {model: coder, cost: -0.1}}", "3: tiers.t.cost: found -0.1; .*at least 0"),
    "no context": ("models: {m: {backend: fake, context_length: 0}}", "3: models.m.context_length: found 0; .*above 0"),
    "no time": ("timeouts: {total: 0}", "3: timeouts.total: found 0; allowed: a number above 0"),
    "negative time": ("timeouts: {connect: -2}", "3: timeouts.connect: found -2; allowed: a number above 0"),
    "endless time": ("timeouts: {first_token: 1e9}", "3: timeouts.first_token: found .*; allowed: a number of at most 86400"),
    "negative delay": ("retries: {base_delay: -1}", "3: retries.base_delay: found -1"),
    "no attempts": ("retries: {attempts: 0}", "3: retries.attempts: found 0; allowed: a number of at least 1"),
    "no failures": ("circuit_breaker: {failures: 0}", "3: circuit_breaker.failures: found 0"),
    "huge number": ("retries: {attempts: 99999999999999999999999}", "3: retries.attempts: found '9+', which YAML reads as a number"),
    # ----------------------------------------------------------------------------------------------------- where names lead
    "unknown route": ("task_routing: {code: codr}", "3: task_routing.code: found 'codr', .*allowed: coder, cloud; did you mean 'coder'"),
    "unknown fallback": ("fallback: [codr]", r"3: fallback\[0\]: found 'codr', .*did you mean 'coder'"),
    "unknown primary": ("fallback:\n  primary: codr", "4: fallback.primary: found 'codr', .*did you mean 'coder'"),
    "secondary alone": ("fallback: {secondary: coder}", "3: fallback: secondary is set without primary"),
    "fallback twice": ("fallback: [coder, coder]", r"3: fallback\[1\]: duplicate fallback 'coder'"),
    "cloud as fallback": ("fallback: [cloud]\n" + CLOUD, r"3: fallback\[0\]: found 'cloud', which is not a model"),
    "unknown tier model": ("tiers: {t: {model: codr}}", "3: tiers.t.model: found 'codr', .*did you mean 'coder'"),
    "tier of a tier": ("tiers: {t: {model: coder}, u: {model: t}}", "3: tiers.u.model: found 't', which is not a model or role"),
    "falling costs": ("tiers:\n  a: {model: coder, cost: 2}\n  b: {model: coder2, cost: 1}\nmodels: {coder2: {backend: fake}}", "5: tiers.b.cost: 1 is below the 2 of tier 'a'"),
    "two costs": ("tiers: {a: {model: coder, cost: 1}, b: {model: coder, cost: 2}}", "3: tiers.b.cost: another tier sets a different cost for 'coder'"),
    "two costs through a role": ("tiers: {a: {model: coder, cost: 1}, b: {model: c, cost: 2}}\nmodels: {c: {backend: vllm, endpoint: coder}}", "3: tiers.b.cost: another tier sets a different cost for 'c'"),
    "unknown endpoint": ("models: {m: {backend: vllm, endpoint: codr}}", "3: models.m.endpoint: found 'codr', .*did you mean 'coder'"),
    "model named like a role": ("models: {coder: {backend: fake}}", "3: models.coder: a role is also named 'coder'"),
    "tier named like a role": ("tiers: {coder: {model: m}}\nmodels: {m: {backend: fake}}", "3: tiers.coder: a role is also named 'coder'"),
    "tier named like a model": ("tiers: {m: {model: coder}}\nmodels: {m: {backend: fake}}", "3: tiers.m: a model is also named 'm'"),
    "model named cloud": ("models: {cloud: {backend: fake}}", "3: models.cloud: 'cloud' is a reserved word"),
    "model named *": ("models: {'*': {backend: fake}}", r"3: models.\*: '\*' is a reserved word"),
    "empty task": ("task_routing: {'': coder}", "3: task_routing.'': the name is empty"),
    # ---------------------------------------------------------------------------------------------------------- routers
    "no routers": ("routers: []", "3: routers: the list is empty"),
    "router twice": ("routers: [provider, provider]", r"3: routers\[1\]: duplicate router 'provider'"),
    "router of two names": ("routers: [{a: {}, b: {}}]", r"3: routers\[0\]: found a mapping of 2 keys"),
    "router of a number": ("routers: [3]", r"3: routers\[0\]: found 3; write a router as NAME"),
    "settings of a number": ("routers: [{a: 3}]", r"3: routers\[0\].a: found 3; a router's settings must be a mapping"),
    "capability": (
        "models: {m: {backend: fake, capabilities: [chat, toolz]}}",
        r"3: models.m.capabilities\[1\]: found 'toolz'; allowed: chat, embeddings, tools, .*; did you mean 'tools'",
    ),
    "text for routers": ("routers: provider", "3: routers: found 'provider'; allowed: a list"),
    # ------------------------------------------------------------------------------------- what a backend needs and reads
    "vllm without a URL": ("models: {m: {backend: vllm}}", "3: models.m: backend vllm has no endpoint and no base_url"),
    "vllm with two": ("models: {m: {backend: vllm, endpoint: coder, base_url: 'http://h/v1'}}", "3: models.m.base_url: endpoint: coder already gives"),
    "openai without a URL": ("models: {m: {backend: openai}}", "3: models.m: backend openai has no base_url"),
    "embedded without a path": ("models: {m: {backend: embedded}}", "3: models.m: backend embedded has no path"),
    "replay without a path": ("models: {m: {backend: replay}}", "3: models.m: backend replay has no path"),
    "replay with a URL": ("models: {m: {backend: replay, path: x, base_url: 'http://h'}}", "3: models.m.base_url: backend replay does not use"),
    "GPU price of a cloud": ("models: {m: {backend: openai, base_url: 'http://h', gpu_hour_price: 1}}", "3: models.m.gpu_hour_price: backend openai does not use"),
    # ------------------------------------------------------------------------------------------------ URLs, paths, networks
    "no scheme": ("models: {m: {backend: vllm, base_url: 'localhost:8001'}}", "3: models.m.base_url: found 'localhost:8001'; it does not start with http"),
    "other scheme": ("models: {m: {backend: vllm, base_url: 'ftp://h/v1'}}", "3: models.m.base_url: .*does not start with http"),
    "no host": ("models: {m: {backend: vllm, base_url: 'http:///v1'}}", "3: models.m.base_url: .*no valid host"),
    "bad host": ("models: {m: {backend: vllm, base_url: 'http://a..b/v1'}}", "3: models.m.base_url: .*no valid host"),
    "bad port": ("models: {m: {backend: vllm, base_url: 'http://h:99999/v1'}}", "3: models.m.base_url: .*host or port is malformed"),
    "port 0": ("models: {m: {backend: vllm, base_url: 'http://h:0/v1'}}", "3: models.m.base_url: .*its port is 0"),
    "bad IPv6": ("models: {m: {backend: vllm, base_url: 'http://[::1/v1'}}", "3: models.m.base_url: .*host or port is malformed"),
    "space in a URL": ("models: {m: {backend: vllm, base_url: 'http://h/v 1'}}", "3: models.m.base_url: .*contains a space"),
    "query in a URL": ("models: {m: {backend: vllm, base_url: 'http://h/v1?a=b'}}", "3: models.m.base_url: .*query or a fragment"),
    "empty URL": ("models: {m: {backend: vllm, base_url: ''}}", "3: models.m.base_url: .*does not start with http"),
    "bad endpoint": ("task_routing: {a: coder}", "2: vllm_endpoints.coder: found 'h:1'; it does not start", "profile_name: p\nvllm_endpoints: {coder: 'h:1'}\n"),
    "no servers": ("task_routing: {a: coder}", '2: vllm_endpoints.coder: the list is empty', "profile_name: p\nvllm_endpoints: {coder: []}\n"),
    "server of a number": ("task_routing: {a: coder}", '2: vllm_endpoints.coder: found 3, which YAML reads as a number; allowed: a URL such as http://localhost:8001/v1, registry:ROLE, or a list', "profile_name: p\nvllm_endpoints: {coder: 3}\n"),
    "servers in a mapping": ("task_routing: {a: coder}", '2: vllm_endpoints.coder: found a mapping; allowed: a URL', "profile_name: p\nvllm_endpoints: {coder: {a: b}}\n"),
    "number among servers": ("task_routing: {a: coder}", '2: vllm_endpoints.coder\\[1\\]: found 8001, .*; allowed: a URL', "profile_name: p\nvllm_endpoints: {coder: ['http://h:1/v1', 8001]}\n"),
    "bad URL among servers": ("task_routing: {a: coder}", "2: vllm_endpoints.coder\\[1\\]: found 'h:1'; it does not start with http", "profile_name: p\nvllm_endpoints: {coder: ['http://h:1/v1', 'h:1']}\n"),
    "server twice": ("task_routing: {a: coder}", '2: vllm_endpoints.coder\\[2\\]: duplicate server', "profile_name: p\nvllm_endpoints: {coder: ['http://h:1/v1', 'registry:coder', 'http://H:1/']}\n"),
    "registry twice": ("task_routing: {a: coder}", '2: vllm_endpoints.coder\\[1\\]: duplicate server', "profile_name: p\nvllm_endpoints: {coder: ['registry:coder', 'registry:coder']}\n"),
    "registry without a role": ("task_routing: {a: coder}", "2: vllm_endpoints.coder: found 'registry:'; '' is not a valid role name; allowed: registry:ROLE", "profile_name: p\nvllm_endpoints: {coder: 'registry:'}\n"),
    "registry of no role": ("task_routing: {a: coder}", "2: vllm_endpoints.coder: found 'registry:a/b'; 'a/b' is not a valid role name", "profile_name: p\nvllm_endpoints: {coder: 'registry:a/b'}\n"),
    "registry misspelt": ("task_routing: {a: coder}", "2: vllm_endpoints.coder: found 'registery:coder'; it is neither .*; allowed: registry:ROLE, .*; did you mean 'registry'", "profile_name: p\nvllm_endpoints: {coder: 'registery:coder'}\n"),
    "missing variable among servers": ("task_routing: {a: coder}", '2: vllm_endpoints.coder\\[0\\]: the environment variable NOPE is not set', "profile_name: p\nvllm_endpoints: {coder: ['http://${NOPE}/v1', 'http://h:1/v1']}\n"),
    "missing variable in the registry": ("registry: '${NOPE}/x'", "3: registry: the environment variable NOPE is not set"),
    "registry in a model": ("models: {m: {backend: vllm, base_url: 'registry:coder'}}", "3: models.m.base_url: .*does not start with http"),
    "missing variable": ("models: {m: {backend: vllm, base_url: 'http://${NOPE}/v1'}}", "3: models.m.base_url: the environment variable NOPE is not set"),
    "missing variable in a path": ("models: {m: {backend: replay, path: '${NOPE}/x'}}", "3: models.m.path: the environment variable NOPE is not set"),
    "half a variable": ("models: {m: {backend: replay, path: '${SET/x'}}", "3: models.m.path: found '\\${' without a variable name"),
    "variable elsewhere": ("task_routing: {a: '${SET}'}", "3: task_routing.a: .* is not expanded here"),
    "NUL in a path": ('models: {m: {backend: replay, path: "a\\0b"}}', "3: models.m.path: the path contains a NUL"),
    "bad network": ("local_networks: [10.0.0.0/99]", r"3: local_networks\[0\]: found '10.0.0.0/99' is not a network"),
    "host bits": ("local_networks: [10.0.0.1/8]", r"3: local_networks\[0\]: found '10.0.0.1/8' has bits set after its prefix"),
    "whole internet": ("local_networks: ['::/0']", r"3: local_networks\[0\]: '::/0' is the whole internet"),
    # -------------------------------------------------------------------------------------------------------- governance
    "cloud route": ("allow_cloud: false\ntask_routing:\n  a: coder\n  b: cloud", r"6: task_routing.b: 'cloud' needs the cloud, but allow_cloud is false \(line 3\); allowed: coder"),
    "public server": ("allow_cloud: false\nmodels: {m: {backend: vllm, base_url: 'http://8.8.8.8/v1'}}", "4: models.m.base_url: public address"),
    "link-local server": ("allow_cloud: false\nmodels: {m: {backend: vllm, base_url: 'http://169.254.1.1/v1'}}", "4: models.m.base_url: link-local address"),
    "metadata service": ("allow_cloud: false\nmodels: {m: {backend: vllm, base_url: 'http://100.100.100.200/v1'}}", "4: models.m.base_url: the address of a cloud's metadata service"),
    "unknown user": ("local_users: [nobody-of-that-name]", r"3: local_users\[0\]: found 'nobody-of-that-name', which is no user"),
    "public server in a list": ("allow_cloud: false", r"2: vllm_endpoints.coder\[1\]: public address", "profile_name: p\nvllm_endpoints: {coder: ['http://h:1/v1', 'http://8.8.8.8/v1']}\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FAULT)
def test_fault_is_one_line_with_its_place(faults, case):
    """One fault, one line: where it is, what was found, what is allowed."""
    text, expected, *head = ONE_FAULT[case]
    found = faults(text + "\n", head=head[0] if head else HEAD)
    assert len(found) == 1, found
    assert re.search(expected if not expected[0].isdigit() else f"^{expected}", found[0]), found[0]


def test_all_faults_come_at_once_in_the_order_of_the_file(faults):
    """A structural fault hides no other, and a fault of a model does not make its name unknown."""
    found = faults(
        "allow_cloud: maybe\n"
        "models:\n"
        "  m: {backend: vllm, base_url: 'nowhere', input_price: -1}\n"
        "  n: 3\n"
        "task_routing: {a: m, b: n, c: o}\n"
        "timeouts: {total: x}\n"
    )
    assert [line.split(": ")[1] for line in found] == [
        "allow_cloud",
        "models.m.base_url",
        "models.m.input_price",
        "models.n",
        "task_routing.c",
        "timeouts.total",
    ]


def test_every_way_to_the_cloud_is_named(faults):
    """Route, fallback, tier and the model itself are each reported with their line."""
    found = faults(
        "allow_cloud: false\ntask_routing:\n  a: far\n  b: t\nfallback: [coder, far]\ntiers: {t: {model: far}}\n" + CLOUD
    )
    assert [line.split(" ")[0] + line.split(" ")[1] for line in found] == [
        "5:task_routing.a:",
        "6:task_routing.b:",
        "7:fallback[1]:",
        "8:tiers.t.model:",
        "9:models.far.backend:",
    ]
    assert all("needs the cloud, but allow_cloud is false (line 3)" in line for line in found)


def test_a_public_server_is_local_where_its_network_is_named(tmp_path):
    """`local_networks` says which public addresses are one's own."""
    path = tmp_path / "p.yaml"
    text = "profile_name: p\nallow_cloud: false\nvllm_endpoints: {r: 'http://8.8.8.8:8001/v1', s: 'http://10.0.0.1/v1'}\n"
    path.write_text(text + "local_networks: [8.8.8.0/24]\n")
    assert StrategyConfig.from_yaml(path).local_networks == ("8.8.8.0/24",)


def keys():
    """Every key of a profile, as a path with names for the mappings in between."""
    for name, field in StrategyConfig.model_fields.items():
        yield (name,)
        for part in _parts(field.annotation):
            if name != "routers":
                between = (
                    ()
                    if issubclass(field.annotation if isinstance(field.annotation, type) else object, BaseModel)
                    else ("m",)
                )
                yield from ((name, *between, key) for key in part.model_fields if key != "name")


@pytest.mark.parametrize("path", list(keys()), ids=".".join)
def test_every_key_is_checked(faults, path):
    """No key takes just anything: what no key allows is reported at that very key."""
    head = "" if path == ("profile_name",) else "profile_name: p\n"
    wrong = "[[{}]]" if path[0] in {"local_networks", "fallback", "routers"} or path[-1] == "capabilities" else "[{}]"
    body = wrong
    for name in reversed(path[1:]):
        body = f"{{{name}: {body}}}"
    found = faults(f"{path[0]}: {body}\n", head=head)
    assert any(re.search(rf" {re.escape('.'.join(path))}(\[0\])?: found", line) for line in found), found


def test_faults_of_configuration_have_one_exit_code():
    """The command line can tell a wrong profile from a failing model."""
    assert ConfigError.exit_code == ProfileError.exit_code == 2
