"""status, route, strategies, plugins, metrics: what they print, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from tests.unit.metrics.examples import metric
from workflow_composer.fleet.held import FILE_NAME, HeldLog, HeldSpan
from workflow_composer.fleet.places import STATE_VARIABLE
from workflow_composer.server.auth.callers import marked
from workflow_composer.server.auth.keys import read_keys
from workflow_composer.support.places import STRATEGY_VARIABLE

STRANGE = """\
profile_name: strange
allow_clout: true
models:
  a: {backend: fake}
routers: [provider]
task_routing: {"*": b}
"""
SOUND = """\
profile_name: sound
allow_cloud: false
models:
  a: {backend: fake}
task_routing: {"*": a}
"""


class TestStatus:
    def test_it_shows_what_is_active_and_what_is_there(self, command):
        """Strategy, where data may go, routers, models."""
        done = command("status")

        assert done.code == 0
        for text in ("scripted", "chosen by --strategy", "may go to the cloud", "cascading_provider", "small, remote"):
            assert text in done.out

    def test_json_has_the_same(self, command):
        """For monitoring."""
        found = command("status", "--json", "--no-probe").json

        assert (found["strategy"], found["chosen_by"], found["allow_cloud"]) == ("scripted", "argument", True)
        assert (found["routers"], found["models"], found["probed"]) == (["cascading_provider"], ["small", "remote"], False)

    def test_servers_are_listed_with_their_state(self, command, server, tmp_path):
        """One that answers, and one that does not; the second costs no more than its probe."""
        command.profile = {"vllm_endpoints": {"up": server.url, "down": "http://127.0.0.1:9/v1"}}
        found = {name: e["healthy"] for name, e in command("status", "--json").json["endpoints"].items()}

        assert found == {"up": True, "down": False}
        shown = command("status").out
        assert any(line.startswith("up ") and " up " in line[3:] for line in shown.splitlines())
        assert any(line.startswith("down ") and " down " in line[5:] for line in shown.splitlines())

    def test_each_server_of_a_role_has_a_line(self, command, server):
        """Below the role's own, which says how many are up."""
        command.profile = {"vllm_endpoints": {"coder": [server.url, "http://127.0.0.1:9/v1"]}}
        found = command("status", "--json").json["endpoints"]["coder"]

        assert (found["healthy"], [replica["healthy"] for replica in found["replicas"]]) == (True, [True, False])
        lines = command("status").out.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("coder "))
        assert "1 of 2 up" in lines[start]
        assert all(line.startswith("  coder ") for line in lines[start + 1 : start + 3])

    def test_without_probe_nothing_is_asked(self, command, server):
        """Unknown is not down."""
        command.profile = {"vllm_endpoints": {"up": server.url}}

        assert "not probed" in command("status", "--no-probe").out
        assert server.connections == 0

    def test_the_environment_chooses_the_strategy(self, command):
        """And the status says so."""
        path = command.write("sound.yaml", SOUND.encode())
        command.environ = {"BIOPIPELINES_STRATEGY": path}
        found = command("status", "--json", real=True).json

        assert (found["strategy"], found["chosen_by"], found["source"]) == ("sound", "environment", path)


class TestNoCommand:
    def test_it_shows_where_one_is_and_what_to_type_next(self, command):
        """The first thing that a newcomer sees."""
        done = command()

        assert done.code == 0
        assert "strategy:  scripted" in done.out
        assert "routers:   cascading_provider" in done.out
        assert 'workflow-composer generate "your question"' in done.out

    def test_with_json_it_is_the_status(self, command):
        """A program gets no advice."""
        assert command("--json").json["strategy"] == "scripted"

    def test_the_advice_keeps_the_strategy(self, command):
        """What is copied from it runs under the strategy that it was shown for."""
        path = command.write("sound.yaml", SOUND.encode())

        assert f"workflow-composer -s {path} generate" in command("-s", path, real=True).out


class TestRoute:
    def test_it_shows_the_plan_and_asks_nobody(self, command):
        """Tiers, candidates and the reason; no model is called and no metric written."""
        done = command("route", "hello")

        assert done.code == 0
        assert "small (local), else remote (cloud)" in done.out
        assert "reason:" in done.out
        assert command.metrics.metrics == []
        assert all(backend.calls == [] for backend in command.made)

    def test_json_is_the_whole_plan(self, command):
        """Every field that the executor goes by."""
        found = command("route", "--json", "--model", "remote", "hello").json

        assert found["strategy"] == "scripted"
        assert found["tiers"][0]["members"][0]["candidates"][0] == {
            "name": "remote",
            "local": False,
            "endpoint": None,
            "context_length": None,
        }
        assert (found["tiers"][0]["members"][0]["samples"], found["tiers"][0]["accept"]) == (1, "always")

    def test_the_servers_of_a_role_are_shown(self, command, tmp_path):
        """Those that the registry says are ready, and the listed ones; without asking any of them."""
        from workflow_composer.backends.replicas.registry import Entry, ServerRegistry

        ready = {"server": "coder", "role": "coder", "host": "10.0.0.7", "port": 8002, "model": "m", "state": "ready"}
        ServerRegistry(tmp_path).publish(Entry(**ready, started=1.0, updated=0.0))
        places = ["http://127.0.0.1:9/v1", "registry:coder"]
        command.profile = {"vllm_endpoints": {"coder": places, "one": "http://h:1/v1"}, "registry": str(tmp_path)}
        found = command("route", "x", "--model", "coder", "--json").json

        assert found["servers"] == {"coder": ["http://127.0.0.1:9/v1", "http://10.0.0.7:8002/v1"]}
        shown = command("route", "x", "--model", "coder").out
        assert "servers:   coder: http://127.0.0.1:9/v1, http://10.0.0.7:8002/v1" in shown
        assert command("route", "x", "--model", "one", "--json").json["servers"] == {}

    def test_what_was_left_out_is_told_with_its_reason(self, command):
        """A cloud model without its key is no candidate, and that is no secret."""
        cloud = {"backend": "openai", "base_url": "https://api.test/v1", "api_key_env": "TEST_KEY"}
        command.profile = {"models": {"small": {"backend": "scripted"}, "gpt": cloud}, "fallback": ["gpt"]}

        assert "left out:  gpt: its key is not set" in command("route", "hello").out
        assert command("route", "hello", "--json").json["left_out"] == ["gpt: its key is not set (TEST_KEY)"]

    def test_a_model_that_is_not_there_is_an_error(self, command):
        """With the nearest one."""
        done = command("route", "--model", "smal", "hello")

        assert done.code == 3
        assert "smal" in done.err

    def test_a_routing_string_is_shown_with_its_votes_and_with_what_was_changed_in_it(self, command):
        """For people and for programs."""
        command.profile = {"tiers": {"s": {"model": "small", "deadline": 2.0}}, "routers": ["cascade"]}
        route = "mv_entropy_cascade_s_k4_remote_k1_t0.9"
        done = command("route", "--model", route, "hello")
        assert "4 samples; temperature 0.7; at most 2 s; accept: share >= 0.75, up to 4 more" in done.out
        assert "note:      remote: one sample is always greedy" in done.out
        assert "tier 1:    tier 's'; small (local); 4 samples" in done.out  # named otherwise than its model
        assert "tier 2:    remote (cloud); " in done.out
        found = command("route", "--json", "--model", route, "hello").json
        assert found["tiers"][0]["voting"]["explore"] == 4
        assert found["tiers"][1]["accept"] == "a readable answer"
        assert len(found["notes"]) == 1

    def test_the_prompt_may_come_by_standard_input(self, command):
        """As with generate."""
        assert command("route", stdin=b"hello").code == 0


class TestStrategies:
    def test_the_list_has_the_shipped_ones_and_ones_own(self, command):
        """Own ones lie in config/strategies; a broken one is listed with its fault, and hides no other."""
        (command.folder / "config" / "strategies").mkdir(parents=True)
        command.write("config/strategies/strange.yaml", STRANGE.encode())
        command.write("config/strategies/sound.yaml", SOUND.encode())
        found = command("strategies", "list", "--json").json

        assert {"t4_hybrid", "t4_local_only", "cloud_only", "development", "sound", "strange"} <= set(found)
        assert "allow_clout" in found["strange"]["error"]
        assert found["sound"]["allow_cloud"] is False
        shown = command("strategies").out
        assert "sound" in shown
        assert "invalid: " in shown

    def test_show_prints_a_profile_that_loads_again(self, command):
        """With the defaults filled in."""
        command.write("sound.yaml", SOUND.encode())
        shown = command("strategies", "show", "sound.yaml").out

        assert yaml.safe_load(shown)["timeouts"]["connect"] == 2.0
        command.write("again.yaml", shown.encode())
        assert command("strategies", "validate", "again.yaml", real=True).code == 0
        assert command("strategies", "show", "sound.yaml", "--json").json["profile_name"] == "sound"

    def test_show_repeats_no_secret(self, command):
        """A key from the environment stays a name."""
        profile = "profile_name: p\nmodels:\n  a: {backend: openai, base_url: 'https://x.test/v1', api_key: '${MY_KEY}'}\n"
        command.write("p.yaml", profile.encode())
        command.environ = {"MY_KEY": "sk-very-secret-0123456789"}
        done = command("strategies", "show", "p.yaml")

        assert done.code == 0
        assert "very-secret" not in done.out
        assert "MY_KEY" in done.out

    @pytest.mark.parametrize("name", ["t4_hybrid", "t4_local_only", "cloud_only", "development"])
    def test_the_shipped_profiles_are_valid(self, name, command):
        """Without keys, servers or network."""
        done = command("strategies", "validate", name, real=True)

        assert done.code == 0, done.err
        assert "is valid" in done.out

    def test_validate_prints_every_fault(self, command):
        """Each on a line with file, line and key; the exit code is that of a wrong profile."""
        command.write("strange.yaml", STRANGE.encode())
        done = command("strategies", "validate", "strange.yaml", real=True)

        assert done.code == 2
        faults = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert any("strange.yaml:2" in fault and "allow_clout" in fault and "allow_cloud" in fault for fault in faults)
        assert any("strange.yaml:6" in fault and "'b'" in fault for fault in faults)

    def test_validate_looks_at_routers_and_their_settings_too(self, command):
        """What only the plugins know."""
        command.write("p.yaml", (SOUND + "routers: [provdier]\n").encode())
        done = command("strategies", "validate", "p.yaml", real=True)

        assert done.code == 2
        assert "unknown router 'provdier'" in done.err

    def test_validate_as_json(self, command):
        """Valid: a result. Invalid: an error with all faults."""
        command.write("sound.yaml", SOUND.encode())
        command.write("strange.yaml", STRANGE.encode())

        assert command("strategies", "validate", "--json", "sound.yaml", real=True).json["valid"] is True
        done = command("strategies", "validate", "--json", "strange.yaml", real=True)
        assert len(json.loads(done.err)["error"]["problems"]) >= 2

    def test_an_unknown_name_is_answered_with_the_nearest(self, command):
        """For show and validate alike."""
        for verb in ("show", "validate"):
            done = command("strategies", verb, "t4_hybird", real=True)
            assert done.code == 2
            assert "t4_hybrid" in done.err


class TestPlugins:
    def test_the_packages_own_parts_are_listed(self, command):
        """What they provide, by kind and name."""
        (own,) = [p for p in command("plugins", "--json").json["plugins"] if p["name"] == "workflow_composer"]

        assert own["status"] == "loaded"
        assert "router:provider" in own["provides"]
        assert "backend:vllm" in own["provides"]
        assert "policy:plain" in own["provides"]
        assert "router:provider" in command("plugins").out


class TestMetrics:
    def test_a_summary_of_the_file(self, command):
        """For people: what happened, how long it took, what it cost."""
        path = command.write(
            "m.jsonl", metric().to_json(), metric(success=False, error="CallTimeout", cost=2.0).to_json(), b"{half"
        )
        out = command("metrics", "--file", path).out

        assert "requests:    2" in out
        assert "errors:      50.0% (CallTimeout 1)" in out
        assert "cost:        $2.00" in out
        assert "damaged:     1 lines skipped" in out
        assert any(line.split() == ["code", "1", "100", "100", "100"] for line in out.splitlines())

    def test_json_is_the_same_as_of_the_package(self, command):
        """All figures, unrounded."""
        path = command.write("m.jsonl", metric().to_json())

        assert command("metrics", "--file", path, "--json").json["cost"] == 0.001

    def test_since_is_a_length_of_time(self, command):
        """Old requests are left out; a wrong length is refused."""
        path = command.write("m.jsonl", metric(timestamp="2020-01-01T00:00:00+00:00").to_json())

        assert "requests:    0" in command("metrics", "--file", path, "--since", "24h").out
        assert command("metrics", "--file", path, "--since", "a while").code == 2

    def test_requests_are_chosen_by_task_model_error_and_key(self, command):
        """For the summary and for the page."""
        made = command("keys", "new", "ann")
        assert made.code == 0
        ann = next(iter(read_keys(command.folder / "keys.json").values()))
        lines = [
            metric(request_id=marked(ann, "req-1"), task_type="code"),
            metric(request_id="req-2", task_type="math", success=False, error="CallTimeout"),
        ]
        path = command.write("m.jsonl", b"".join(line.to_json() for line in lines))
        chosen = (("--task", "math"), ("--error", "any"), ("--key", "ann"), ("--key", ann.id), ("--model", "small"))
        counts = [command("metrics", "--file", path, "--json", *options).json["requests"] for options in chosen]
        assert counts == [1, 1, 1, 1, 2]
        done = command("metrics", "--file", path, "--key", "anne")
        assert (done.code, "did you mean 'ann'" in done.err) == (2, True)
        assert command("metrics", "--file", path, "--key", "ann", "--html", "page.html").code == 0
        page = (command.folder / "page.html").read_text()
        assert "req-2" not in page
        assert '"key": "ann"' in page

    def test_a_request_is_explained(self, command):
        """For people and for programs; the file may be named before or after."""
        told = {"plan": "small -> large", "left_out": [], "attempts": ["small: ServerFailed in 1 ms: no GPU"]}
        path = command.write("m.jsonl", metric(request_id="req-7a", prompt="private", decision=told).to_json())
        for arguments in (("metrics", "explain", "req-7a", "--file", path), ("metrics", "--file", path, "explain", "req-7")):
            done = command(*arguments)
            assert done.code == 0
            assert any(line.split() == ["plan:", "small", "->", "large"] for line in done.out.splitlines())
            assert "no GPU" in done.out
            assert "private" not in done.out
        (found,) = command("metrics", "explain", "req-7a", "--file", path, "--json").json["requests"]
        assert (found["decision"], found["key"], "prompt" in found) == (told, None, False)
        assert command("metrics", "explain", "req-8", "--file", path).code == 2
        assert command("metrics", "--task", "code", "explain", "req-7a", "--file", path).code == 2

    def test_own_gpus_are_shown_as_a_reservation_apart_from_what_requests_cost(self, command):
        """By the fleet's record, and by what the profile states; for people, for programs and on the page."""
        now = datetime.now(UTC)
        path = command.write("m.jsonl", metric(timestamp=(now - timedelta(hours=20)).isoformat(), cost=0.25).to_json())
        command.environ = {STATE_VARIABLE: str(command.folder / "state")}
        before = command("metrics", "--file", path, "--json").json
        assert (before["reservation"], before["cost"]) == (None, 0.25)
        assert "reserved" not in command("metrics", "--file", path).out
        began = now.timestamp() - 5 * 3600
        span = HeldSpan(server="coder", role="coder", price=0.5, began=began, until=began + 4 * 3600)
        HeldLog(command.folder / "state" / FILE_NAME).add(span)
        own = {"own": {"backend": "fake", "gpu_hour_price": 2.0, "gpu_hours_per_day": 12.0}}
        profile = {"profile_name": "mine", "allow_cloud": False, "models": own, "task_routing": {"*": "own"}}
        command.environ |= {STRATEGY_VARIABLE: str(command.write("mine.yaml", profile))}
        found = command("metrics", "--file", path, "--since", "10h", "--json").json
        held = {role["name"]: (role["source"], role["hours"], role["cost"]) for role in found["reservation"]["servers"]}
        assert held == {"coder": ("fleet", 4.0, 2.0), "own": ("profile", 5.0, 10.0)}
        assert (found["reservation"]["cost"], found["cost"]) == (12.0, 0.0)
        whole = command("metrics", "--file", path, "--json").json
        assert whole["reservation"]["hours"] == pytest.approx(4.0 + 10.0, rel=0.01)  # from the first request to now
        assert whole["cost"] == 0.25
        assert "reserved:    $2.00 for coder, held 4.0 h" in command("metrics", "--file", path).out
        assert command("metrics", "--file", path, "--html", "page.html").code == 0
        assert '"source": "profile"' in (command.folder / "page.html").read_text()

    def test_the_file_is_the_one_that_requests_write(self, command):
        """Named by the environment, else under the working directory."""
        command.write("elsewhere.jsonl", metric().to_json())
        assert command("metrics").code == 2

        command.environ = {"WORKFLOW_COMPOSER_METRICS": "elsewhere.jsonl"}
        assert "requests:    1" in command("metrics").out
