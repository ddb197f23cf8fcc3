"""A batch that grows, changes its order, is answered in shards and joined: nothing is paid for twice, nothing is mixed."""

from __future__ import annotations

import json

import pytest

from workflow_composer.types import texts


def prompt_of(call):
    """What a model was asked."""
    return " ".join(texts(call.request.messages[-1]))


def echo(call):
    """Answer with the prompt."""
    return [f"#### {prompt_of(call)}"] * call.samples


@pytest.fixture
def batch(command):
    """A command line over a model that answers with the prompt."""
    command.script = command.remote = (echo,)
    return command


def asked(command):
    """The prompts that were sent, in order."""
    return [prompt_of(call) for backend in command.made for call in backend.calls]


def rows(*names, **fields):
    """Rows with these prompts and labels."""
    return [{"id": f"id-{name}", "prompt": name, "answer": name, **fields} for name in names]


def generate(command, *options, output="out.jsonl", code=0):
    done = command("generate", "--input", "in.jsonl", "--output", output, "--json", *options)
    assert done.code == code, done.err
    return done


def answered(command, name="out.jsonl"):
    """Index, question and text of each line, in the order of the file."""
    return [(line["index"], line["question"], line["text"]) for line in command.read(name)]


def test_answers_are_kept_with_their_rows_in_the_order_of_the_input(batch):
    batch.write("in.jsonl", *rows(*"edcba"))
    generate(batch, "--concurrency", "5")
    lines = batch.read("out.jsonl")
    assert [(line["id"], line["question"], line["label"]) for line in lines] == [(f"id-{n}", n, n) for n in "edcba"]
    assert [line["index"] for line in lines] == list(range(5))
    modes = {path.name: path.stat().st_mode & 0o777 for path in batch.folder.glob("out.jsonl*")}
    assert modes["out.jsonl"] == modes["out.jsonl.run.json"] == 0o600


def test_without_texts_no_question_is_kept(batch):
    batch.profile = {"routers": ["cascade", "cascading_provider"]}
    batch.write("in.jsonl", *rows("a"))
    generate(batch, "--no-texts", "--model", "mv_small_k3_t0.7")
    (line,) = batch.read("out.jsonl")
    assert not line.keys() & {"question", "label", "tiers"}


def test_a_vote_is_kept_with_all_its_samples(batch):
    batch.profile = {"routers": ["cascade", "cascading_provider"]}
    batch.write("in.jsonl", *rows("1"))
    generate(batch, "--model", "mv_small_k3_t0.7")
    (tier,) = batch.read("out.jsonl")[0]["tiers"]
    assert (tier["candidate"], tier["texts"], tier["votes"]) == (
        "small",
        ["#### 1"] * len(tier["texts"]),
        [["1", len(tier["texts"])]],
    )


def test_a_pilot_grows_and_pays_only_for_the_rows_that_are_new(batch):
    names = [f"q{n:02}" for n in range(50)]
    batch.write("in.jsonl", *rows(*names))
    assert generate(batch, "--limit", "20").json["answered"] == 20
    grown = generate(batch, "--limit", "40").json
    assert (grown["earlier"], grown["answered"], len(asked(batch))) == (20, 40, 40)
    assert generate(batch).json["earlier"] == 40
    assert sorted(asked(batch)) == names
    assert answered(batch) == [(n, name, f"#### {name}") for n, name in enumerate(names)]


def test_rows_in_another_order_and_new_ones_are_matched_by_their_content(batch):
    """Rows with the same content are as good as each other, and there are as many answers as rows."""
    batch.write("in.jsonl", *rows("a", "b", "b", "c"))
    generate(batch)
    batch.write("in.jsonl", *rows("new", "c", "b", "a", "b", "b"))
    again = generate(batch).json
    assert (again["earlier"], again["answered"]) == (4, 6)
    assert sorted(asked(batch)) == ["a", "b", "b", "b", "c", "new"]
    assert [text for _, text, _ in answered(batch)] == ["new", "c", "b", "a", "b", "b"]


def test_a_trial_of_rows_that_are_shuffled_later_is_kept(batch):
    """Those beyond the limit stay, and count when the limit reaches them."""
    batch.write("in.jsonl", *rows(*"abcdef"))
    generate(batch, "--limit", "3")
    batch.write("in.jsonl", *rows(*"fabdec"))
    assert generate(batch, "--limit", "2").json["earlier"] == 1
    assert sorted(asked(batch)) == ["a", "b", "c", "f"]
    assert generate(batch).json["earlier"] == 4
    assert sorted(asked(batch)) == list("abcdef")
    assert [text for _, text, _ in answered(batch)] == list("fabdec")


def test_a_corrected_label_is_graded_without_a_call(batch):
    batch.write("in.jsonl", *rows("1", "2"))
    assert generate(batch).json["accuracy"] == 1.0
    batch.write("in.jsonl", *rows("1"), {"id": "new id", "prompt": "2", "answer": "3"})
    generate(batch)
    assert len(asked(batch)) == 2
    line = batch.read("out.jsonl")[1]
    assert (line["id"], line["label"], line["correct"], line["answer"]) == ("new id", "3", False, "2")
    assert generate(batch).json["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "0.5"], "temperature was missing and is 0.5"),
        (["--system", "Be brief."], "system was missing and is 'Be brief.'"),
        (["--max-tokens", "5"], "max_tokens was missing and is 5"),
        (["--model", "remote"], "model was missing and is 'remote'"),
    ],
)
def test_other_options_are_refused_by_name(batch, options, said):
    batch.write("in.jsonl", *rows(*"ab"))
    generate(batch, "--limit", "1")
    before = batch.read("out.jsonl")
    done = generate(batch, *options, code=2)
    assert said in done.err
    assert "another --output" in done.err
    assert (batch.read("out.jsonl"), len(asked(batch))) == (before, 1)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (
            {"models": {"small": {"backend": "scripted", "model": "other-7B"}}},
            "models.small.model was 'small' and is 'other-7B'",
        ),
        ({"task_routing": {"*": "remote"}}, "profile.task_routing.* was 'small' and is 'remote'"),
        ({"routers": [{"cascade": {"target": 0.9}}, "provider"]}, "votes.target was 0.75 and is 0.9"),
    ],
)
def test_a_profile_that_means_something_else_is_refused_by_name(batch, profile, said):
    scripted = {"small": {"backend": "scripted"}, "remote": {"backend": "scripted"}}
    batch.profile = {"models": scripted, "fallback": []}
    batch.write("in.jsonl", *rows(*"ab"))
    generate(batch, "--limit", "1")
    models = {**scripted, **profile.get("models", {})}
    batch.profile = {**batch.profile, **profile, "models": models}
    done = generate(batch, code=2)
    assert said in done.err
    assert len(asked(batch)) == 1


def test_prices_time_limits_and_models_that_are_not_used_are_no_change(batch):
    scripted = {"small": {"backend": "scripted"}}
    batch.profile = {"models": scripted, "fallback": []}
    batch.write("in.jsonl", *rows(*"ab"))
    generate(batch, "--limit", "1")
    priced = {"small": {"backend": "scripted", "input_price": 3.0}, "more": {"backend": "scripted"}}
    batch.profile = {**batch.profile, "models": priced, "timeouts": {"total": 10.0}}
    assert generate(batch, "--timeout", "9", "--budget", "5").json["earlier"] == 1


def test_a_server_that_reports_another_model_is_refused(batch, monkeypatch):
    """Such as a name that stands for a newer model from today on."""
    from workflow_composer.backends.fake import FakeBackend

    batch.write("in.jsonl", *rows(*"ab"))
    generate(batch, "--limit", "1")
    complete = FakeBackend.complete

    async def newer(self, call):
        from dataclasses import replace

        return replace(await complete(self, call), model="small-2026-11-20")

    monkeypatch.setattr(FakeBackend, "complete", newer)
    done = generate(batch, code=2)
    assert "'small' is now small-2026-11-20, and was small" in done.err
    assert len(batch.read("out.jsonl")) == 1


# ------------------------------------------------------------------------------------------------------------- shards


def shard(command, number, of, *options, code=0):
    return generate(command, "--shard", f"{number}/{of}", *options, code=code)


def test_shards_are_joined_in_the_order_of_the_input(batch):
    names = [f"q{n:02}" for n in range(10)]
    batch.write("in.jsonl", *rows(*names))
    counts = [shard(batch, number, 4).json["answered"] for number in (3, 1, 4, 2)]
    assert counts == [2, 3, 2, 3]
    done = batch("merge", "out.jsonl", "--json")
    assert done.code == 0, done.err
    assert (done.json[0]["rows"], done.json[0]["failed"]) == (10, 0)
    assert answered(batch) == [(n, name, f"#### {name}") for n, name in enumerate(names)]
    again = batch("merge", "out.jsonl", "--remove-shards")
    assert again.code == 0, again.err
    assert sorted(path.name for path in batch.folder.glob("out.*")) == ["out.jsonl", "out.jsonl.run.json"]
    assert generate(batch).json["earlier"] == 10
    assert sorted(asked(batch)) == names


def test_a_pilot_is_not_paid_for_again_by_shards_and_rows_may_move_between_them(batch):
    names = [f"q{n}" for n in range(7)]
    batch.write("in.jsonl", *rows(*names))
    generate(batch, "--limit", "3")
    assert shard(batch, 1, 2).json["earlier"] == 2
    moved = [*names[::-1], "more"]
    batch.write("in.jsonl", *rows(*moved))
    for number in (1, 2):
        shard(batch, number, 2)
    assert batch("merge", "out.jsonl").code == 0
    assert [text for _, text, _ in answered(batch)] == moved
    assert sorted(asked(batch)) == sorted(moved)


def test_missing_and_unfinished_shards_are_named(batch):
    batch.write("in.jsonl", *rows(*"abcdef"))
    for number in (1, 3):
        shard(batch, number, 3)
    done = batch("merge", "out.jsonl")
    assert (done.code, (batch.folder / "out.jsonl").exists()) == (2, False)
    assert "shard 2/3 is missing" in done.err
    lines = (batch.folder / "out.shard-1-of-3.jsonl").read_bytes().splitlines(keepends=True)
    shard(batch, 2, 3)
    (batch.folder / "out.shard-1-of-3.jsonl").write_bytes(lines[0] + lines[1][:20])
    done = batch("merge", "out.jsonl")
    assert done.code == 2
    assert "out.shard-1-of-3.jsonl has 1 of 2 rows: the shard has not finished" in done.err
    partial = batch("merge", "out.jsonl", "--partial", "--json")
    assert (partial.code, partial.json[0]["missing"]) == (1, 1)
    assert generate(batch).json["earlier"] == 5
    assert len(asked(batch)) == 7


@pytest.mark.parametrize("what", ["options", "rows", "number", "note"])
def test_a_foreign_shard_is_named(batch, what):
    batch.write("in.jsonl", *rows(*"abcd"))
    shard(batch, 1, 2)
    path = batch.folder / "out.shard-2-of-2.jsonl"
    if what == "options":
        shard(batch, 2, 2, "--temperature", "0.5")
    elif what == "rows":
        batch.write("in.jsonl", *rows(*"abcde"))
        shard(batch, 2, 2)
    elif what == "number":
        path.write_bytes((batch.folder / "out.shard-1-of-2.jsonl").read_bytes())
        note = (batch.folder / "out.shard-1-of-2.jsonl.run.json").read_text().replace('"1/2"', '"2/2"')
        path.with_name(path.name + ".run.json").write_text(note)
    else:
        shard(batch, 2, 2)
        path.with_name(path.name + ".run.json").unlink()
    done = batch("merge", "out.jsonl")
    assert done.code == 2
    assert "out.shard-2-of-2.jsonl" in done.err
    assert not (batch.folder / "out.jsonl").exists()


def test_shards_of_another_number_are_refused(batch):
    batch.write("in.jsonl", *rows(*"abcd"))
    shard(batch, 1, 4)
    done = shard(batch, 1, 2, code=2)
    assert "is a shard of 4, but this run has 2 shards" in done.err


def test_a_task_of_a_job_array_is_its_shard(batch):
    batch.write("in.jsonl", *rows(*"abcdefg"))
    batch.environ = {
        "SLURM_ARRAY_TASK_ID": "15",
        "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "5",
        "SLURM_ARRAY_TASK_MAX": "15",
    }
    generate(batch, "--shard", "slurm")
    assert asked(batch) == ["c", "f"]
    batch.environ |= {"SLURM_ARRAY_TASK_MAX": "16"}
    assert "evenly spaced" in generate(batch, "--shard", "auto", code=2).err
    batch.environ = {}
    assert "needs a job array" in generate(batch, "--shard", "slurm", code=2).err
    assert generate(batch, "--shard", "auto").json["rows"] == 7


@pytest.mark.parametrize("wrong", ["0/4", "5/4", "2", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard_is_an_error(batch, wrong):
    batch.write("in.jsonl", *rows("a"))
    assert "invalid shard" in generate(batch, f"--shard={wrong}", code=2).err


def test_each_shard_spends_its_part_of_the_runs_budget(batch):
    """So that all of them together keep to it, the answers of a pilot included."""
    batch.profile = {
        "models": {"small": {"backend": "scripted", "output_price": 125_000.0, "input_price": 0.0}},
        "fallback": [],
    }
    batch.write("in.jsonl", *rows(*"abcdefgh"))
    generate(batch, "--limit", "2")
    stopped = shard(batch, 1, 2, "--run-budget", "1.0", "--concurrency", "1", code=6)
    assert "shard 1/2 may spend $0.50 of the run budget of $1.00" in stopped.err
    assert len(asked(batch)) == 3
    shard(batch, 2, 2, "--run-budget", "1.0", "--concurrency", "1", code=6)
    lines = [line for n in (1, 2) for line in batch.read(f"out.shard-{n}-of-2.jsonl")]
    assert sum(line["cost"] for line in lines) == pytest.approx(1.0)


def test_an_empty_shard_is_a_shard(batch):
    batch.write("in.jsonl", *rows("a"))
    assert [shard(batch, n, 2).json["rows"] for n in (1, 2)] == [1, 0]
    assert batch("merge", "out.jsonl").code == 0


def test_execute_answers_shards_and_joins_them(batch):
    (batch.folder / "data").mkdir()
    numbers = range(1, 8)
    batch.write("data/sums.jsonl", *({"question": f"{n}", "answer": f"#### {n}"} for n in numbers))
    arguments = ["--json", "execute", "--routes", "small", "--datasets", "sums"]
    assert batch(*arguments, "--limit", "2").code == 0
    for number in (2, 1, 3):
        done = batch(*arguments, "--shard", f"{number}/3")
        assert done.code == 0, done.err
    assert sorted(asked(batch)) == [str(n) for n in numbers]
    merged = batch("merge", "results", "--json")
    assert merged.code == 0, merged.err
    folder = batch.folder / "results" / "sums" / "small"
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(row["row"], row["question"], row["answer"]) for row in results] == [(n - 1, str(n), str(n)) for n in numbers]
    whole = batch(*arguments)
    assert (whole.code, whole.json[0]["earlier"], len(asked(batch))) == (0, 7, 7), whole.err
    assert (batch.folder / "results" / "sums" / "report.md").exists()
    (folder / "shard-2-of-3" / "journal.jsonl").unlink()
    assert "shard 2/3 is missing" in batch("merge", "results").err
