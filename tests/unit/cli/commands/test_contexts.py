"""contexts: the commands; and contexts in generate, route, execute, record and calibrate."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.unit.cli.commands.test_calibrate import PROFILE, recorded
from tests.unit.contexts.writing import write
from workflow_composer.calibration.certify.certificate import Certificate, digest_of
from workflow_composer.contexts.library import Library, shipped

HERE = Path("config/contexts")


@pytest.fixture
def contexts(command):
    """Two small contexts of the working directory; the command line sees no user's."""
    command.environ = {"XDG_CONFIG_HOME": str(command.folder / "user")}
    for name in ("alpha", "beta"):
        write(HERE, name, f"About {name}.")
    return command


def contents(call):
    return [message["content"] for message in call.request.messages]


class TestCommands:
    def test_list_shows_what_can_be_named(self, contexts):
        """Version, size, digest and where it lies; a faulty one with its fault."""
        (HERE / "broken.md").write_text("no head")
        done = contexts("contexts", "list")
        assert done.code == 0
        lines = {line.split()[0]: line for line in done.out.splitlines()}
        assert list(lines) == ["context", "alpha", "beta", "broken", "file-formats", "house-style", "tool-conventions"]
        assert "invalid: config/contexts/broken.md:1: the file does not start" in lines["broken"]
        pinned = Library([shipped()]).get("file-formats")
        assert f" {pinned.digest[:12]} " in lines["file-formats"]
        assert contexts("contexts").out == done.out

    def test_list_tells_of_a_text_that_hides_another_of_the_same_version(self, contexts):
        """It was edited, and whoever has pinned the version would not notice."""
        write(HERE, "house-style", "Ours.")
        assert "note: house-style: it hides" in contexts("contexts", "list").err
        write(HERE, "house-style", "Ours.", version="1-ours")
        assert contexts("contexts", "list").err == ""

    def test_list_as_json_is_by_name(self, contexts):
        found = contexts("contexts", "list", "--json").json
        assert found["alpha"]["pin"] == Library(environ={}).get("alpha").pin
        assert found["alpha"]["characters"] == len("About alpha.")

    def test_show_prints_exactly_what_is_sent(self, contexts):
        """The text to standard output; characters, tokens and digest to standard error."""
        done = contexts("contexts", "show", "beta", "alpha")
        assert done.out == "About alpha.\n\nAbout beta.\n"
        beta = Library(environ={}).get("beta")
        assert f"{beta.pin}: 11 characters, about 3 tokens; SHA-256 {beta.digest}; config/contexts/beta.md" in done.err
        found = contexts("contexts", "show", "beta", "--json").json
        assert (found["text"], found["pins"]) == ("About beta.", [beta.pin])

    def test_a_shipped_one_can_be_copied_edited_and_used(self, contexts):
        done = contexts("contexts", "copy", "file-formats")
        assert done.code == 0
        path = HERE / "file-formats.md"
        assert path.read_bytes() == (shipped() / "file-formats.md").read_bytes()
        path.write_text(path.read_text().replace("version: 1", "version: 1-ours") + "\nOur own rule.\n")
        assert contexts("contexts", "show", "file-formats@1-ours").out.endswith("Our own rule.\n")
        assert contexts("contexts", "show", "file-formats@1").code == 2

    def test_copy_overwrites_nothing(self, contexts):
        assert contexts("contexts", "copy", "file-formats", "there", "--json").json["file"] == "there/file-formats.md"
        done = contexts("contexts", "copy", "file-formats", "there")
        assert (done.code, "there/file-formats.md already exists" in done.err) == (2, True)

    def test_an_unknown_name_is_one_line(self, contexts):
        done = contexts("contexts", "show", "alhpa")
        assert done.code == 2
        assert done.err.startswith("error: no context named 'alhpa'")
        assert "did you mean 'alpha'?" in done.err
        assert "Traceback" not in done.err


class TestUse:
    def test_generate_puts_contexts_first(self, contexts):
        contexts("generate", "--context", "beta", "--context", "alpha", "--system", "Be brief.", "Why?")
        assert contents(contexts.made[0].calls[0]) == ["About alpha.\n\nAbout beta.\n\nBe brief.", "Why?"]

    def test_route_shows_the_context_and_the_length_with_it(self, contexts):
        pin = Library(environ={}).get("alpha").pin
        assert f"\ncontext:   {pin}\n" in contexts("route", "--context", "alpha", "Why?").out
        found = contexts("route", "--context", "alpha", "--json", "Why?").json
        assert (found["context"], found["query_length"]) == ([pin], len("About alpha.Why?"))
        contexts.profile = {"task_contexts": {"code": "alpha"}}
        assert pin in contexts("route", "--task", "code", "Why?").out
        assert "context:" not in contexts("route", "Why?").out

    def test_an_unknown_context_ends_the_command_before_anything_is_sent(self, contexts):
        path = contexts.write("q.jsonl", {"question": "1"})
        for arguments in (["Why?"], ["--input", path], ["--input", path, "--output", "a.jsonl"]):
            done = contexts("generate", "--context", "alhpa", *arguments)
            assert (done.code, "did you mean 'alpha'?" in done.err) == (2, True)
        assert not any(backend.calls for backend in contexts.made)


ROWS = [
    {"question": "0", "context": "alpha"},
    {"question": "1", "context": ["beta"]},
    {"question": "2"},
    {"question": "3", "context": ["beta", "alpha"]},
    {"question": "4", "context": ["alpha@1"]},
    {"question": "5", "task_type": "code"},
    {"question": "6", "context": []},
    {"question": "7", "context": ["alpha", "beta"]},
    {"question": "8", "context": "beta"},
]


class TestRows:
    def test_rows_of_one_context_are_sent_one_after_the_other(self, contexts):
        """Whatever names it: the row, the option, the task. Among themselves they stay in the order of the file."""
        contexts.profile = {"task_contexts": {"code": "beta"}}
        path = contexts.write("q.jsonl", *ROWS)
        done = contexts("generate", "--input", path, "--concurrency", "1", "--output", "a.jsonl")
        assert done.code == 0, done.err
        asked = [contents(call) for call in contexts.made[0].calls]
        assert ["".join(messages[-1:]) for messages in asked] == ["0", "4", "1", "5", "8", "2", "6", "3", "7"]
        firsts = [messages[0] if len(messages) > 1 else "" for messages in asked]
        assert sum(a != b for a, b in itertools.pairwise(firsts)) == 3, "each context once"

    def test_answers_are_the_same_as_if_they_were_asked_one_by_one(self, contexts):
        """Index, id and text belong together, however the rows were ordered."""
        contexts.script = (lambda call: " | ".join(contents(call)),)
        rows = [{**row, "id": f"row-{number}"} for number, row in enumerate(ROWS)]
        assert contexts("generate", "--input", contexts.write("q.jsonl", *rows), "--output", "a.jsonl").code == 0
        single = {}
        for number, row in enumerate(rows):
            contexts("generate", "--input", contexts.write("one.jsonl", row), "--output", f"{number}.jsonl")
            single[row["id"]] = contexts.read(f"{number}.jsonl")[0]["text"]
        found = contexts.read("a.jsonl")
        assert {record["id"]: record["text"] for record in found} == single
        assert all(record["id"] == f"row-{record['index']}" for record in found)

    def test_without_contexts_rows_are_sent_in_the_order_of_the_file(self, contexts):
        path = contexts.write("q.jsonl", *({"question": str(n), "task_type": f"t{n % 2}"} for n in range(6)))
        contexts("generate", "--input", path, "--concurrency", "1")
        assert [contents(call) for call in contexts.made[0].calls] == [[str(n)] for n in range(6)]

    def test_an_interrupted_run_goes_on_with_the_rows_that_are_left(self, contexts):
        path = contexts.write("q.jsonl", *ROWS)
        contexts("generate", "--input", path, "--output", "a.jsonl", "--limit", "4", "--concurrency", "1")
        done = contexts("generate", "--input", path, "--output", "a.jsonl", "--concurrency", "1")
        assert done.code == 0, done.err
        assert [contents(call)[-1] for call in contexts.made[-2].calls] == ["4", "8", "5", "6", "7"]
        assert sorted(record["index"] for record in contexts.read("a.jsonl")) == list(range(len(ROWS)))

    @pytest.mark.parametrize("arguments", [[], ["--context", "alpha"]])
    def test_a_text_that_has_changed_is_another_run(self, contexts, arguments):
        """Answers to two texts must not come to stand in one file."""
        rows = [{"question": "Why?"} if arguments else {"question": "Why?", "context": "alpha"}]
        path = contexts.write("q.jsonl", *rows)
        assert contexts("generate", "--input", path, "--output", "a.jsonl", *arguments).code == 0
        write(HERE, "alpha", "Changed.", version="2")
        done = contexts("generate", "--input", path, "--output", "a.jsonl", *arguments)
        assert (done.code, "have changed" in done.err) == (2, True)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("alhpa", "no context named 'alhpa'"),
            (3, "'context' is a number, not a name or a list of names"),
            ({"a": 1}, "'context' is an object"),
            ([3], "'context' is a list"),
            (" ", "'context' is empty"),
        ],
    )
    def test_a_faulty_context_of_a_row_is_told_with_its_line(self, contexts, value, message):
        path = contexts.write("q.jsonl", {"question": "1"}, {"question": "2", "context": value})
        done = contexts("generate", "--input", path)
        assert done.code == 2
        assert f"{path}:2: {message}" in done.err
        assert not contexts.made


class TestBatches:
    @pytest.fixture
    def problems(self, contexts):
        contexts.profile = {
            "tiers": {"small": {"model": "small", "cost": 1.0}},
            "routers": ["cascade", "cascading_provider"],
        }
        (contexts.folder / "data").mkdir()
        rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]
        contexts.write("data/sums.jsonl", *rows)
        contexts.script = ("#### 1",)
        return contexts

    def execute(self, command, *arguments):
        return command("execute", "--routes", "small", "--datasets", "sums", "--in-flight", "4", *arguments)

    def test_execute_puts_the_context_before_every_question(self, problems):
        done = self.execute(problems, "--context", "alpha", "--system", "Be brief.")
        assert done.code == 0, done.err
        calls = [call for backend in problems.made for call in backend.calls]
        assert [contents(call)[0] for call in calls] == ["About alpha.\n\nBe brief."] * 3

    def test_a_text_that_has_changed_is_another_execution(self, problems):
        """Also where the profile gives it."""
        problems.profile |= {"task_contexts": {"*": "alpha"}}
        assert self.execute(problems).code == 0
        write(HERE, "alpha", "Changed.", version="2")
        done = self.execute(problems)
        assert done.code == 2, done.out
        assert "fields" in done.err

    def test_record_asks_with_the_context(self, problems):
        done = problems("record", "--datasets", "sums", "-o", "r.jsonl", "--context", "beta", "--no-logprobs")
        assert done.code == 0, done.err
        assert {contents(call)[0] for backend in problems.made for call in backend.calls} == {"About beta."}


def test_calibrate_keeps_the_digest_of_the_whole_system_message(contexts):
    """The context and the text behind it, as the requests have it; also where the profile gives the context."""
    contexts.write("answers.jsonl", *recorded())
    options = ["--replay", "answers.jsonl", "--tiers", "small", "large", "--system", "Be brief."]
    assert contexts("calibrate", *options, "--context", "alpha").code == 0
    whole = digest_of("About alpha.\n\nBe brief.")
    assert Certificate.load(Path("certificate.json")).request.system == whole
    Path("mine.yaml").write_text(json.dumps(PROFILE | {"task_contexts": {"*": "alpha"}}))
    assert contexts("-s", "mine.yaml", "calibrate", *options).code == 0
    assert Certificate.load(Path("certificate.json")).request.system == whole
