"""Kinds of steps that plugins offer: checked at load, run apart from the program, known by the plugin's code."""

from __future__ import annotations

import json
import socket
import textwrap

import pytest
from click.testing import CliRunner

from workflow_composer import ModelOrchestrator, StrategyConfig
from workflow_composer.cli.group import cli
from workflow_composer.errors import PluginError, WorkflowComposerError, WorkflowFileError
from workflow_composer.metrics.sink import MemorySink
from workflow_composer.plugins.hookspecs import hookimpl
from workflow_composer.plugins.host import PluginHost
from workflow_composer.workflows.building import WorkflowBuilder

PLUGIN = """
from workflow_composer import hookimpl

def repeated(settings, text, mark="{mark}"):
    return text * settings["times"] + mark

def check(settings, given):
    times = settings.get("times") if isinstance(settings, dict) else None
    return None if isinstance(times, int) else {{"times": f"found {{times!r}}; allowed: a number{mark}"}}

@hookimpl
def register_steps(register):
    register("repeated", repeated, check=check, answer={{"json_schema": {{"type": "string"}}}})
"""
PROFILE = """
profile_name: p
allow_cloud: false
models: {m: {backend: fake, model: x}}
task_routing: {"*": m}
routers: [provider]
plugins: [./mine.py]
"""
FLOW = """\
workflow: f
inputs: {note: text}
steps:
  again:
    repeated: {times: 2}
    with: {text: note}
output: {again: again}
"""
ROWS = [{"note": "ab"}, {"note": "c"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p.yaml").write_text(PROFILE)
    (tmp_path / "mine.py").write_text(PLUGIN.format(mark="!"))
    (tmp_path / "flow.yaml").write_text(FLOW)
    return tmp_path


def orchestrator(strategy, **more):
    return ModelOrchestrator(strategy, metrics=MemorySink(), environ={}, **more)


def values(result):
    return [row["again"] for row in result]


def faults(folder, flow):
    """What is wrong with a file, under the folder's profile."""
    (folder / "flow.yaml").write_text(textwrap.dedent(flow))
    with orchestrator(folder / "p.yaml") as o, pytest.raises(WorkflowFileError) as found:
        o.run_workflow(folder / "flow.yaml", ROWS)
    return found.value.problems


class TestRunning:
    def test_a_step_of_a_plugins_kind_gets_its_settings_and_what_it_is_given(self, folder):
        """Its value is the function's."""
        with orchestrator(folder / "p.yaml") as o:
            assert values(o.run_workflow(folder / "flow.yaml", ROWS)) == ["abab!", "cc!"]

    def test_it_may_have_what_every_function_may_have(self, folder):
        """A list, a condition, a form of its own, steps over all rows, and a place in a nested workflow."""
        (folder / "inner.yaml").write_text(FLOW.replace("workflow: f", "workflow: inner"))
        (folder / "flow.yaml").write_text(
            textwrap.dedent("""\
            workflow: f
            inputs: {note: text}
            steps:
              each:
                for_each: one in [note, "x"]
                when: one != "x"
                on_error: skip
                repeated: {times: 3}
                with: {text: one}
                files: {sub/a.txt: "{{ note }}"}
                answer: text
              inner: {workflow: inner.yaml, with: {note: note}}
              all: {reduce: rows, repeated: {times: 2}, with: {text: '"-"'}}
            output: {again: "{{ each | done | first }} {{ inner.again }} {{ all }}"}
            """)
        )
        with orchestrator(folder / "p.yaml") as o:
            assert values(o.run_workflow(folder / "flow.yaml", ROWS)) == ["ababab! abab! --!", "ccc! cc! --!"]

    @pytest.mark.parametrize("kind", ["python: own:read", "reads:"])
    def test_files_of_a_function_are_in_its_working_directory(self, folder, kind):
        """Of a `python` step, and of a plugin's kind; other files are another question."""
        (folder / "own.py").write_text("def read(*settings):\n    return open('sub/a.txt').read()\n")
        (folder / "mine.py").write_text(
            "from workflow_composer import hookimpl\n\ndef reads(settings):\n    return open('sub/a.txt').read()\n"
            "\n@hookimpl\ndef register_steps(register):\n    register('reads', reads)\n"
        )
        text = f"workflow: f\ninputs: {{note: text}}\nsteps:\n  again:\n    {kind}\n"
        text += "    files: {sub/a.txt: '{{ note }} X'}\n"
        (folder / "flow.yaml").write_text(f"{text}output: {{again: again}}\n")
        with orchestrator(folder / "p.yaml") as o:
            assert values(o.run_workflow(folder / "flow.yaml", ROWS, journal=folder / "run.journal")) == ["ab X", "c X"]
            (folder / "flow.yaml").write_text(f"{text.replace(' X', ' Y')}output: {{again: again}}\n")
            assert values(o.run_workflow(folder / "flow.yaml", ROWS, journal=folder / "run.journal")) == ["ab Y", "c Y"]

    def test_a_builder_has_it_too(self, folder):
        """Settings are data."""
        flow = WorkflowBuilder("f", inputs={"note": "text"})
        flow.step("again", "repeated", {"times": 2}, given={"text": "note"})
        flow.output(again="again")
        with orchestrator(folder / "p.yaml") as o:
            assert values(o.run_workflow(flow, ROWS)) == ["abab!", "cc!"]
            assert o.run_workflow(flow.build(o.config, kinds=o.step_kinds), ROWS).state == "done"

    def test_what_it_prints_or_raises_is_the_rows_own(self, folder):
        """A failure has the kind `program`; nobody else is disturbed."""
        code = PLUGIN.format(mark="!").replace("return text *", "print(1); 1 / (text != 'c'); return text *")
        (folder / "mine.py").write_text(code)
        with orchestrator(folder / "p.yaml") as o:
            result = o.run_workflow(folder / "flow.yaml", ROWS)
        assert [row["_state"] for row in result] == ["done", "failed"]
        assert "ZeroDivisionError" in json.dumps(result.rows[1]["_errors"])

    def test_a_packages_modules_run_as_they_were_loaded(self, folder):
        """Also those imported later, relatively, and with another encoding; whatever has become of the files."""
        package = folder / "kinds"
        package.mkdir()
        (package / "late.py").write_bytes("# coding: latin-1\nMARK = 'é'\n".encode("latin-1"))
        (package / "work.py").write_text("def marked(settings, text):\n    from .late import MARK\n    return text + MARK\n")
        (package / "__init__.py").write_text(
            "from workflow_composer import hookimpl\nfrom .work import marked\n"
            "@hookimpl\ndef register_steps(register):\n    register('marked', marked)\n"
        )
        (folder / "p.yaml").write_text((folder / "p.yaml").read_text().replace("./mine.py", "./kinds"))
        (folder / "flow.yaml").write_text(FLOW.replace("repeated: {times: 2}", "marked:"))
        with orchestrator(folder / "p.yaml") as o:
            for file in package.iterdir():
                file.unlink()
            assert values(o.run_workflow(folder / "flow.yaml", ROWS)) == ["abé", "cé"]

    def test_the_command_line_shows_it(self, folder, monkeypatch):
        """Its name among what the plugin provides, in the check and in the picture."""
        monkeypatch.chdir(folder)
        shown = CliRunner().invoke(cli, ["--plugin", "mine.py", "plugins"], catch_exceptions=False)
        assert "step:repeated" in shown.output
        for arguments in (["check", "flow.yaml"], ["graph", "flow.yaml"]):
            done = CliRunner().invoke(cli, ["workflow", *arguments, "-s", str(folder / "p.yaml")], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            assert "repeated" in done.output


class TestChecks:
    """Every fault names its line, before anything runs."""

    def test_the_plugins_own_check_names_the_setting(self, folder):
        """Its text is the fault's."""
        (found,) = faults(folder, FLOW.replace("{times: 2}", "\n      times: many"))
        assert found.startswith(f"{folder / 'flow.yaml'}:6")
        assert "allowed: a number" in found

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (("text: note", "texts: note"), ("'texts'", "'text'")),
            (("    with: {text: note}\n", ""), ("'text'", "with")),
            (("{text: note}", "{text: nothing}"), ("nothing",)),
            (("{times: 2}", '{times: "{{ note }}"}'), ("with:",)),
            (("repeated:", "reprated:"), ("repeated",)),
            (("repeated:", "elsewhere:"), ("--plugin",)),
            (("repeated:", "temperature: 1\n    repeated:"), ("temperature",)),
            (("repeated:", "prompt: x\n    repeated:"), ("prompt and repeated",)),
        ],
    )
    def test_what_the_function_takes_is_checked_by_itself(self, folder, change, told):
        """Names of `with`, names in them, settings that nobody fills in, and keys."""
        found = " ".join(faults(folder, FLOW.replace(*change)))
        assert all(word in found for word in told), found

    @pytest.mark.parametrize("body", ["1 / 0", "return [1]", "raise ValueError('odd')", "return 'odd'"])
    def test_whatever_a_check_does_is_a_fault_of_the_file(self, folder, body):
        """Never a traceback."""
        code = PLUGIN.format(mark="!").replace("def check(settings, given):", f"def check(settings, given):\n    {body}")
        (folder / "mine.py").write_text(code)
        (found,) = faults(folder, FLOW)
        assert "flow.yaml:5" in found

    def test_its_form_is_known_to_later_steps(self, folder):
        """A field of a text is a fault, as for any step with `answer`."""
        assert "size" in " ".join(faults(folder, FLOW.replace("{again: again}", "{again: again.size}")))


class TestKeys:
    def test_kept_values_are_those_of_the_same_code(self, folder, tmp_path_factory):
        """Not of its place or its name: a changed line is asked again, a moved file is not."""
        journal = folder / "run.journal"

        def run(place):
            with orchestrator(place / "p.yaml") as o:
                result = o.run_workflow(place / "flow.yaml", ROWS, journal=journal)
            return result.kept, values(result)

        assert run(folder) == (0, ["abab!", "cc!"])
        assert run(folder) == (2, ["abab!", "cc!"])
        moved = tmp_path_factory.mktemp("moved")
        for name in ("p.yaml", "flow.yaml"):
            (moved / name).write_text((folder / name).read_text().replace("mine.py", "other.py"))
        (moved / "other.py").write_text((folder / "mine.py").read_text())
        assert run(moved) == (2, ["abab!", "cc!"])
        (folder / "mine.py").write_text(PLUGIN.format(mark="?"))
        assert run(folder) == (0, ["abab?", "cc?"])

    def test_settings_count(self, folder):
        """Other ones are another question."""
        journal = folder / "run.journal"
        with orchestrator(folder / "p.yaml") as o:
            o.run_workflow(folder / "flow.yaml", ROWS, journal=journal)
            (folder / "flow.yaml").write_text(FLOW.replace("2", "3"))
            result = o.run_workflow(folder / "flow.yaml", ROWS, journal=journal)
        assert (result.kept, values(result)) == (0, ["ababab!", "ccc!"])


class TestGenerations:
    def test_a_workflow_keeps_the_code_with_which_it_was_loaded(self, folder):
        """After a reload, what is loaded has the new code, and what was loaded before has the old one."""
        from workflow_composer.workflows.definition.loading import load_workflow

        with orchestrator(folder / "p.yaml") as o:
            old = load_workflow(folder / "flow.yaml", config=o.config, kinds=o.step_kinds)
            (folder / "mine.py").write_text(PLUGIN.format(mark="?"))
            o.switch_strategy(folder / "p.yaml")
            assert values(o.run_workflow(folder / "flow.yaml", ROWS)) == ["abab?", "cc?"]
            assert values(o.run_workflow(old, ROWS)) == ["abab!", "cc!"]

    def test_workflows_as_models_are_loaded_anew_or_stay_as_they_were(self, folder):
        """A new check that refuses a file of the profile refuses the plugin."""
        (folder / "p.yaml").write_text((folder / "p.yaml").read_text() + "workflows: [./flow.yaml]\n")
        with orchestrator(folder / "p.yaml") as o:
            first = o.workflows["f"]
            (folder / "mine.py").write_text(PLUGIN.format(mark="?").replace("isinstance(times, int)", "False"))
            with pytest.raises(WorkflowComposerError):
                o.switch_strategy(folder / "p.yaml")
            assert o.workflows["f"] is first
            (folder / "mine.py").write_text(PLUGIN.format(mark="?"))
            o.switch_strategy(folder / "p.yaml")
            assert o.workflows["f"].workflow.digest == first.workflow.digest
            assert (
                o.workflows["f"].workflow.steps["again"].body.plugin.digest
                != first.workflow.steps["again"].body.plugin.digest
            )


CONNECTING = """
import socket
from workflow_composer import hookimpl

def connects(settings, text):
    socket.create_connection(("127.0.0.1", settings["port"]), timeout=20).close()
    return "connected"

@hookimpl
def register_steps(register):
    register("connects", connects)
"""


class TestPrivacy:
    @pytest.fixture
    def port(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def flow(self, folder, port, kind, more=""):
        (folder / "mine.py").write_text(CONNECTING)
        flow = f"workflow: f\ninputs: {{note: {kind}}}\nsteps:\n  again:\n    connects: {{port: {port}}}\n{more}"
        (folder / "flow.yaml").write_text(f"{flow}    with: {{text: note}}\noutput: {{again: again}}\n")

    def test_it_has_no_network_unless_its_limits_say_so(self, folder, port):
        """The control run connects."""
        with orchestrator(folder / "p.yaml") as o:
            self.flow(folder, port, "text")
            o.switch_strategy(folder / "p.yaml")
            assert o.run_workflow(folder / "flow.yaml", ROWS[:1]).rows[0]["_state"] == "failed"
            self.flow(folder, port, "text", "    limits: {network: any}\n")
            assert values(o.run_workflow(folder / "flow.yaml", ROWS[:1])) == ["connected"]

    @pytest.mark.parametrize("more", ["    limits: {network: any}\n", "    trusted: true\n"])
    def test_on_private_data_a_network_is_refused_at_load(self, folder, port, more):
        """As for a program: only whoever answers for the profile may trust it."""
        self.flow(folder, port, "private", more)
        assert faults(folder, (folder / "flow.yaml").read_text())

    def test_on_private_data_it_has_none(self, folder, port):
        """It runs, and reaches nobody."""
        self.flow(folder, port, "private")
        with orchestrator(folder / "p.yaml") as o:
            assert o.run_workflow(folder / "flow.yaml", ROWS[:1]).rows[0]["_state"] == "failed"

    def test_what_it_makes_of_private_inputs_is_private(self, folder):
        """By data and by control."""
        (folder / "flow.yaml").write_text(FLOW.replace("note: text", "note: private"))
        from workflow_composer.workflows.definition.loading import load_workflow

        with orchestrator(folder / "p.yaml") as o:
            flow = load_workflow(folder / "flow.yaml", config=o.config, kinds=o.step_kinds)
        assert flow.steps["again"].labels.data == {"note"}
        assert flow.steps["again"].labels.out == {"note"}


def plain(settings, text=""):
    return text


class TestRegistration:
    @pytest.mark.parametrize(
        ("name", "run", "more"),
        [
            ("when", plain, {}),
            ("steps", plain, {}),
            ("prompt", plain, {}),
            ("odd name", plain, {}),
            ("mine", lambda settings: 1, {}),
            ("mine", str, {}),
            ("mine", "text", {}),
            ("mine", len, {"check": "x"}),
            ("mine", plain, {"answer": {"no form": 1}}),
            ("mine", plain, {"unknown": 1}),
        ],
    )
    def test_what_could_never_run_is_refused_when_it_is_registered(self, name, run, more):
        """The error names the plugin."""

        class Plugin:
            @hookimpl
            def register_steps(self, register):
                register(name, run, **more)

        host = PluginHost()
        with pytest.raises(PluginError) as found:
            host.add(Plugin(), name="faulty")
        assert "faulty" in str(found.value)
        assert host.registry.step_kinds == {}

    def test_an_added_plugin_runs_by_its_modules_name(self):
        """Its code is what is installed."""

        class Plugin:
            @hookimpl
            def register_steps(self, register):
                register("mine", plain)

        host = PluginHost()
        host.add(Plugin(), name="mine")
        config = StrategyConfig(
            profile_name="p",
            allow_cloud=False,
            models={"m": {"backend": "fake", "model": "x"}},
            task_routing={"*": "m"},
            routers=["provider"],
        )
        flow = WorkflowBuilder("f", inputs={"note": "text"})
        flow.step("again", "mine", given={"text": "note"})
        flow.output(again="again")
        with orchestrator(config, plugins=host) as o:
            assert values(o.run_workflow(flow, ROWS)) == ["ab", "c"]
