"""generate: a prompt, and files of them."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from workflow_composer.backends.fake import Interrupted
from workflow_composer.errors import CallTimeout, ServerUnreachable
from workflow_composer.types import texts


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self):
        return True


def prompt_of(call):
    """What a model was asked."""
    return " ".join(texts(call.request.messages[-1]))


def echo(call):
    """Answer with the prompt."""
    return prompt_of(call)


class TestOnePrompt:
    def test_the_answer_is_printed(self, command):
        """And nothing else."""
        command.script = ("19",)

        done = command("generate", "What is 12 + 7?")

        assert (done.code, done.out, done.err) == (0, "19\n", "")

    @pytest.mark.parametrize("arguments", [[], ["-"]])
    def test_the_prompt_may_come_by_standard_input(self, command, arguments):
        """Without its last line end, and without a byte-order mark."""
        command.script = (echo,)

        assert command("generate", *arguments, stdin="\ufeffgrüße\nzwei\n".encode()).out == "grüße\nzwei\n"

    def test_json_tells_everything(self, command):
        """The answer, the decision, the attempts, the cost."""
        command.script = (ServerUnreachable("down"),)
        found = command("generate", "--json", "hello").json

        assert (found["text"], found["model"]) == ("from far away", "remote")
        assert found["decision"]["fallback_depth"] == 1
        assert [a["error_type"] for a in found["attempts"]] == ["ServerUnreachable", None]
        assert found["usage"]["completion_tokens"] == 3
        assert found["confidence"] is None

    def test_every_option_reaches_the_model(self, command):
        """None is decoration."""
        command("generate", "--system", "Be brief.", "--max-tokens", "7", "--temperature", "0.5", "--logprobs", "hello")

        (call,) = command.made[0].calls
        assert call.request.messages[0] == {"role": "system", "content": "Be brief."}
        assert (call.request.max_tokens, call.temperature, call.request.logprobs) == (7, 0.5, True)

    def test_stop_strings_reach_the_model_with_their_line_breaks(self, command):
        """A shell has no easy way to write one; an empty one would end every answer."""
        command("generate", "--stop", r"\n\nQuestion:", "--stop", r"C:\\new", "hello")
        (call,) = command.made[0].calls
        assert call.request.stop == ("\n\nQuestion:", r"C:\new")
        done = command("generate", "--stop", "", "hello")
        assert (done.code, "must not be empty" in done.err) == (2, True)

    def test_task_and_model_choose_the_route(self, command):
        """As the profile says."""
        command.profile = {"task_routing": {"*": "small", "hard": "remote"}}

        assert command("generate", "--task", "hard", "x").out == "from far away\n"
        assert command("generate", "--model", "remote", "x").out == "from far away\n"

    def test_logprobs_are_shown(self, command):
        """Token by token; with --json as pairs."""
        command.script = ("two words",)

        assert "'two'" in command("generate", "--logprobs", "x").out
        assert command("generate", "--logprobs", "--json", "x").json["logprobs"][0][0] == "two"

    def test_on_a_terminal_the_answer_comes_as_it_is_written(self, command, monkeypatch):
        """Piece by piece, without what could command the terminal, with a line end."""
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        command.script = ("one \x1b[2J two",)
        done = command("generate", "x")

        assert (done.code, terminal.getvalue()) == (0, "one [2J two\n")

    def test_a_stream_that_breaks_keeps_what_came(self, command, monkeypatch):
        """The error follows on a line of its own; the exit code tells."""
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        command.script = (Interrupted("half an", ServerUnreachable("the server is gone")),)
        done = command("generate", "x")

        assert done.code == 5
        assert terminal.getvalue() == "half an\n"
        assert done.err.startswith("error: ")

    @pytest.mark.parametrize(
        ("arguments", "stdin", "message"),
        [
            (["generate"], b"", "standard input is empty"),
            (["generate"], b" \n", "standard input is empty"),
            (["generate", "  "], None, "the prompt is empty"),
            (["generate"], b"caf\xe9", "not UTF-8: byte 3 is 0xe9"),
            (["generate", "caf\udce9"], None, "the prompt is not valid UTF-8"),
            (["generate"], None, "standard input is closed"),
            (["generate", "x", "--input", "y"], None, "not both"),
            (["generate", "x", "--output", "y"], None, "need --input"),
            (["generate", "x", "--limit", "3"], None, "need --input"),
            (["generate", "x", "--run-budget", "3"], None, "need --input"),
            (["generate", "x", "--budget", "nan"], None, "a finite number"),
            (["generate", "x", "--temperature", "nan"], None, "a finite number"),
            (["generate", "x", "--max-tokens", "0"], None, "0 is not in the range"),
            (["generate", "x", "--timeout", "0"], None, "0.0 is not in the range"),
        ],
    )
    def test_wrong_usage_is_told(self, command, arguments, stdin, message):
        """Before a model is asked."""
        done = command(*arguments, stdin=stdin)

        assert done.code == 2
        assert message in done.err
        assert command.made == []

    def test_at_a_terminal_it_does_not_wait_for_a_prompt(self, command, monkeypatch):
        """A person who forgot it is told so."""
        monkeypatch.setattr(command, "stdin", lambda _: monkeypatch.setattr(sys, "stdin", Terminal()))

        assert "give a prompt" in command("generate").err

    def test_a_timeout_ends_the_request(self, command):
        """It is the request's time, not a call's."""
        command("generate", "--timeout", "33.5", "x")

        assert command.made[0].calls[0].request.timeout == 33.5


class TestFile:
    def test_every_row_has_its_answer(self, command):
        """With everything that a study needs."""
        command.script = (echo,)
        source = command.write("in.jsonl", {"question": "so #### 4", "answer": "4", "id": "a"}, {"prompt": "b"})
        done = command("generate", "--input", source, "--output", "out.jsonl")

        assert (done.code, done.out) == (0, "")
        first, second = sorted(command.read("out.jsonl"), key=lambda r: r["index"])
        assert first.pop("latency_ms") >= 0
        assert len(first.pop("key")) == len(first.pop("content")) == 16
        assert first.pop("read_by")
        assert first == {
            "index": 0,
            "id": "a",
            "text": "so #### 4",
            "model": "small",
            "candidate": "small",
            "tier": 0,
            "fallback_depth": 0,
            "cost": 0.006,
            "tokens": {"prompt": 3, "completion": 3},
            "confidence": None,
            "answer": "4",
            "finish_reason": "stop",
            "correct": True,
            "question": "so #### 4",
            "label": "4",
        }
        assert "correct" not in second
        assert "2 rows, 0 errors, accuracy 100.0% of 1, cost $0.008" in done.err

    def test_answers_are_graded_as_everywhere_and_what_could_not_be_read_is_told(self, command):
        """Also of rows that an earlier run has answered."""
        texts = ["She makes 9 * $2 = $18 every day at the market.", "<think>#### 7</think>I do not know."]
        command.script = (lambda call: call.request.messages[-1]["content"],)
        source = command.write("in.jsonl", *({"question": text, "answer": "18"} for text in texts))
        for _ in range(2):
            done = command("generate", "--input", source, "--output", "out.jsonl")
            assert "accuracy 50.0% of 2" in done.err
            assert "1 of 2 answers could not be read" in done.err
        rows = sorted(command.read("out.jsonl"), key=lambda row: row["index"])
        assert [(row["answer"], row["correct"]) for row in rows] == [("$18", True), (None, False)]
        assert rows[1]["text"] == texts[1]

    def test_without_output_the_rows_go_to_standard_output(self, command):
        """And the summary to standard error, so that a pipe gets rows only."""
        source = command.write("in.jsonl", {"prompt": "a"}, {"prompt": "b"})
        done = command("generate", "--input", source, "--json")

        assert sorted(row["index"] for row in done.rows) == [0, 1]
        assert json.loads(done.err)["rows"] == 2

    def test_the_summary_as_json(self, command):
        """To standard output, which is free for it."""
        command.script = ("A: 4",)
        source = command.write("in.jsonl", {"prompt": "a", "answer": 4}, {"prompt": "b", "answer": 5})
        found = command("generate", "--input", source, "--output", "out.jsonl", "--json").json

        assert (found["rows"], found["answered"], found["graded"], found["accuracy"]) == (2, 2, 2, 0.5)

    def test_a_row_chooses_its_own_task_and_model(self, command):
        """Before the options of the run."""
        rows = [{"prompt": "a", "model": "remote"}, {"prompt": "a", "task_type": "hard"}, {"prompt": "a"}]
        command.profile = {"task_routing": {"*": "small", "hard": "remote"}}
        done = command("generate", "--input", command.write("in.jsonl", *rows))

        assert {row["index"]: row["model"] for row in done.rows} == {0: "remote", 1: "remote", 2: "small"}

    def test_messages_are_sent_as_they_are(self, command):
        """With the system message in front."""
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        command("generate", "--system", "s", "--input", command.write("in.jsonl", {"messages": messages}))

        sent = command.made[0].calls[0].request.messages
        assert [dict(m) for m in sent] == [{"role": "system", "content": "s"}, *messages]

    def test_a_row_that_fails_is_a_row_with_an_error(self, command):
        """The others are answered; the exit code and the summary tell."""
        command.script = ("ok", CallTimeout("late"), "ok")
        command.profile = {"fallback": []}
        source = command.write("in.jsonl", *({"prompt": p} for p in "abc"))
        done = command("generate", "--input", source, "--output", "out.jsonl", "--concurrency", "1")

        assert done.code == 1
        assert "3 rows, 1 errors" in done.err
        by_index = {row["index"]: row for row in command.read("out.jsonl")}
        assert by_index[1]["error"]["type"] == "AllCandidatesFailed"
        assert "late" in by_index[1]["error"]["message"]
        assert "text" not in by_index[1]

    def test_the_cost_of_failed_attempts_is_in_the_row(self, command):
        """They were paid for."""
        command.script = (CallTimeout("late"),)
        command.profile = {"fallback": [], "models": {"small": {"backend": "scripted", "gpu_hour_price": 1e9}}}
        done = command("generate", "--input", command.write("in.jsonl", {"prompt": "a"}))

        assert done.rows[0]["cost"] == command.metrics.metrics[0].cost > 0

    def test_running_again_goes_on_where_it_stopped(self, command):
        """Rows with answers are not sent again; rows with errors are; the numbers are of all rows."""
        command.script = ("#### 1", CallTimeout("late"), "#### 1")
        command.profile = {"fallback": []}
        source = command.write("in.jsonl", *({"prompt": p, "answer": "1"} for p in "abc"))
        arguments = ("generate", "--input", source, "--output", "out.jsonl", "--concurrency", "1", "--json")
        assert command(*arguments).code == 1
        command.script = ("#### 2",)
        done = command(*arguments)

        assert done.code == 0
        assert [prompt_of(call) for call in command.made[-2].calls] == ["b"]
        assert (done.json["rows"], done.json["earlier"], done.json["errors"]) == (3, 2, 0)
        assert done.json["accuracy"] == pytest.approx(2 / 3)
        assert sorted(row["index"] for row in command.read("out.jsonl")) == [0, 1, 2]

    def test_a_finished_run_asks_nobody(self, command):
        """Not even for a strategy."""
        source = command.write("in.jsonl", {"prompt": "a"})
        command("generate", "--input", source, "--output", "out.jsonl")
        made = len(command.orchestrators)

        assert command("generate", "--input", source, "--output", "out.jsonl").code == 0
        assert len(command.orchestrators) == made

    @pytest.mark.parametrize(
        ("rows", "options"),
        [
            ([{"prompt": "a"}, {"prompt": "changed"}], []),
            ([{"prompt": "a"}], []),
            ([{"prompt": "a"}, {"prompt": "b"}], ["--model", "remote"]),
            ([{"prompt": "a"}, {"prompt": "b"}], ["--temperature", "1"]),
        ],
    )
    def test_a_changed_run_is_not_mixed_with_the_old(self, command, rows, options):
        """Other rows or other options: an error before anything is sent, and the old answers stay."""
        command("generate", "--input", command.write("in.jsonl", {"prompt": "a"}, {"prompt": "b"}), "--output", "o.jsonl")
        old = command.read("o.jsonl")
        made = len(command.orchestrators)
        done = command("generate", "--input", command.write("in.jsonl", *rows), "--output", "o.jsonl", *options)

        assert done.code == 2
        assert "changed" in done.err
        assert "another --output" in done.err
        assert command.read("o.jsonl") == old
        assert len(command.orchestrators) == made

    def test_rows_may_be_added_to_the_input(self, command):
        """What is answered stays answered."""
        arguments = ("generate", "--output", "out.jsonl", "--input")
        command(*arguments, command.write("in.jsonl", {"prompt": "a"}))
        done = command(*arguments, command.write("in.jsonl", {"prompt": "a"}, {"prompt": "b"}), "--json")

        assert (done.json["rows"], done.json["earlier"]) == (2, 1)

    def test_the_limit_can_be_raised_and_lowered(self, command):
        """A trial first, then everything; a lower limit loses nothing."""
        source = command.write("in.jsonl", *({"prompt": p} for p in "abcd"))
        arguments = ("generate", "--input", source, "--output", "out.jsonl", "--json", "--limit")

        assert command(*arguments, "2").json["rows"] == 2
        assert command(*arguments, "4").json["earlier"] == 2
        lower = command(*arguments, "1").json
        assert {name: lower[name] for name in ("rows", "earlier", "answered")} == {"rows": 1, "earlier": 1, "answered": 1}
        assert len(command.read("out.jsonl")) == 4

    def test_a_fault_anywhere_in_the_input_shows_before_anything_is_paid_for(self, command):
        """Not after a night of work."""
        source = command.write("in.jsonl", *([{"prompt": "a"}] * 500), b"{broken\n")
        done = command("generate", "--input", source, "--output", "out.jsonl")

        assert done.code == 2
        assert "in.jsonl:501: not valid JSON" in done.err
        assert command.orchestrators == []
        assert not (command.folder / "out.jsonl").exists()

    def test_gzip_can_be_read(self, command):
        """As data sets come."""
        source = command.write("in.jsonl.gz", gzip.compress(b'{"prompt":"a"}\n'))

        assert command("generate", "--input", source).code == 0

    def test_no_more_rows_are_in_flight_than_asked_for(self, command):
        """And as many as asked for, where there are enough."""
        source = command.write("in.jsonl", *({"prompt": str(i)} for i in range(40)))
        waiting = []

        async def together(call):
            import asyncio

            waiting.append(call)
            while len(waiting) < 5:
                await asyncio.sleep(0)
            return "x"

        command.script = (together,)
        command("generate", "--input", source, "--concurrency", "5")

        assert command.made[0].most_in_flight == 5

    def test_a_fault_of_a_backend_is_the_rows_own(self, command):
        """Whatever it raises."""
        command.script = (ZeroDivisionError("oops"),)
        command.profile = {"fallback": []}
        done = command("generate", "--input", command.write("in.jsonl", {"prompt": "a"}))

        assert done.code == 1
        assert "oops" in done.rows[0]["error"]["message"]

    def test_at_the_runs_budget_it_stops_with_its_own_exit_code_and_goes_on_with_a_higher_one(self, command):
        """What earlier runs have spent counts, and is said; the answers so far stay."""
        command.script = ("x",)
        command.profile = {"models": {"small": {"backend": "scripted", "output_price": 250_000.0, "input_price": 0.0}}}
        command.profile["fallback"] = []
        source = command.write("in.jsonl", *({"prompt": p} for p in "abcdef"))
        arguments = ("generate", "--input", source, "--output", "out.jsonl", "--run-budget")
        stopped = command(*arguments, "0.75")
        assert stopped.code == 6
        assert "the run budget of $0.75 is used up: $0.75 spent, 3 of 6 rows done" in stopped.err
        assert "higher --run-budget" in stopped.err
        assert [row["index"] for row in command.read("out.jsonl")] == [0, 1, 2]

        again = command(*arguments, "0.75", "--json")
        assert (again.code, again.json["earlier"], again.json["cost"]) == (6, 3, 0)
        done = command(*arguments, "1.5")
        assert done.code == 0
        assert "earlier runs have spent $0.75 of the run budget of $1.50" in done.err
        assert sorted(row["index"] for row in command.read("out.jsonl")) == list(range(6))

    def test_a_row_that_its_budget_does_not_pay_for_fails_by_its_own_error(self, command):
        """And is tried again with more money."""
        command.profile = {"fallback": []}
        source = command.write("in.jsonl", {"prompt": "a"})
        arguments = ("generate", "--input", source, "--output", "out.jsonl", "--budget")
        assert command(*arguments, "0.0001").code == 1
        assert command.read("out.jsonl")[0]["error"]["type"] == "BudgetExceeded"
        assert command(*arguments, "1000").code == 0
        assert "error" not in command.read("out.jsonl")[0]

    def test_a_prompts_budget_reaches_the_request(self, command):
        command("generate", "--budget", "900", "x")
        assert command.made[0].calls[0].request.budget == 900

    def test_as_many_rows_are_under_way_as_make_the_whole_faster(self, command):
        """Unless it is said how many; more than the eight of old from the start."""
        source = command.write("in.jsonl", *({"prompt": str(i)} for i in range(40)))
        waiting = []

        async def together(call):
            import asyncio

            waiting.append(call)
            while len(waiting) < 12:
                await asyncio.sleep(0)
            return "x"

        command.script = (together,)
        assert command("generate", "--input", source).code == 0

    def test_the_summary_has_the_checksum_of_the_input(self, command):
        """So that answers can be told to belong to it, however it is packed."""
        import hashlib

        text = b'{"prompt":"a"}\n{"prompt":"b"}\n'
        for name, data in (("in.jsonl", text), ("in.jsonl.gz", gzip.compress(text))):
            source = command.write(name, data)
            found = command("generate", "--input", source, "--output", f"{name}.out", "--json").json
            assert found["sha256"] == hashlib.sha256(text).hexdigest()

    def test_an_input_that_changes_while_it_is_answered_is_told(self, command):
        """Rows would no longer be those that were checked; what was answered stays."""
        source = command.write("in.jsonl", *({"prompt": str(i)} for i in range(600)))

        def change(call):
            if prompt_of(call) == "0":
                command.write("in.jsonl", {"prompt": "other"})
            return "x"

        command.script = (change,)
        done = command("generate", "--input", source, "--output", "out.jsonl", "--concurrency", "1")
        assert done.code == 2
        assert "in.jsonl has changed since the run began" in done.err
        assert command.read("out.jsonl")

    def test_a_file_of_answers_of_old_is_gone_on_with(self, command):
        """Also one in which a row has failed."""
        from tests.paths import ROOT

        old = ROOT / "tests" / "unit" / "storage" / "written_before"
        lines = (old / "answers.jsonl").read_bytes().splitlines(keepends=True)
        failed = lines[0].replace(b'"text"', b'"error":{"type":"CallTimeout","message":"late"},"text"')
        command.write("out.jsonl", *lines[1:], failed)
        done = command(
            "generate", "--input", str(old / "problems.jsonl"), "--output", "out.jsonl", "--model", "small", "--json"
        )
        assert (done.code, done.json["earlier"], done.json["answered"]) == (0, 5, 6)
        assert sorted(row["index"] for row in command.read("out.jsonl")) == list(range(6))


class TestVotesByMeaning:
    """``--vote-by embedding``, and the warning that names it."""

    ROUTERS = {"routers": [{"cascade": {"draw": "as_needed", "stopping": "fixed"}}, "cascading_provider"]}
    PROSE = ("Rome is a town with a long and eventful history.", "Oslo is a town with a long and eventful history.")

    def test_free_text_comes_with_a_warning(self, command):
        command.profile = self.ROUTERS
        command.script = ([*self.PROSE, "Bern is a town with a long and eventful history."],)
        done = command("generate", "--model", "mv_small_k3_t0.7", "Which?")
        assert (done.code, done.out) == (0, f"{self.PROSE[0]}\n")
        assert "warning: free text" in done.err
        assert "--vote-by embedding" in done.err
        assert (
            "--vote-by embedding" in command("generate", "--json", "--model", "mv_small_k3_t0.7", "Which?").json["warning"]
        )

    def test_the_option_groups_by_the_embedding_role(self, command):
        command.script = ([self.PROSE[0], self.PROSE[1], self.PROSE[1]],)
        command.profile = self.ROUTERS | {"task_routing": {"*": "small", "embeddings": "small"}}
        found = command("generate", "--json", "--vote-by", "embedding", "--model", "mv_small_k3_t0.7", "Which?").json
        assert (found["text"], found["confidence"], found["warning"]) == (self.PROSE[1], 2 / 3, "")
        assert sorted(command.made[-2].embedded + command.made[-1].embedded) == sorted(self.PROSE)

    def test_without_a_model_for_embeddings_it_is_an_error(self, command):
        command.script = (self.PROSE[0],)
        command.profile = self.ROUTERS
        done = command("generate", "--vote-by", "embedding", "--model", "mv_small_k3_t0.7", "Which?")
        assert done.code == 3
        assert "embeddings" in done.err

    def test_rows_are_warned_of_once(self, command):
        command.profile = self.ROUTERS
        command.script = ([*self.PROSE, "Bern is a town with a long and eventful history."],)
        path = command.write("q.jsonl", {"question": "Which?"}, {"question": "And which?"})
        done = command("generate", "-i", path, "-o", "a.jsonl", "--model", "mv_small_k3_t0.7")
        assert done.err.count("--vote-by embedding") == 1
        assert "warning: 2 answers: free text" in done.err
        assert "--vote-by embedding" in command.read("a.jsonl")[0]["warning"]
