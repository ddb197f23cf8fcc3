"""Questions, their digests, and the journal that keeps their answers."""

import json
import stat

import pytest

from workflow_composer.answers.output_form import output_form
from workflow_composer.config.strategy import StrategyConfig
from workflow_composer.errors import InputError
from workflow_composer.storage.appending import OwnFile
from workflow_composer.types import Attempt, Completion, LLMRequest, ModelCall, Sample, TokenLogprob, Usage
from workflow_composer.workflows.definition.model import PromptBody, Step
from workflow_composer.workflows.keeping.answers import KeptAnswer
from workflow_composer.workflows.keeping.index import EntryIndex
from workflow_composer.workflows.keeping.journal import WorkflowJournal
from workflow_composer.workflows.keeping.keys import FORMAT, StepMeanings, digest_of_data, question_of
from workflow_composer.workflows.keeping.row_keeper import AskingRules, RowKeeper, RunCounts

ROW, OTHER_ROW = "00000000000000aa", "00000000000000bb"


class Text:
    """A reading of a constant text."""

    needs = reads = frozenset()
    line = 1

    def __init__(self, text):
        self.text = text

    def evaluate(self, names):
        return self.text


def step(name="a", **fields):
    return Step(name=name, line=1, body=PromptBody(prompt=Text(fields.pop("written", "ask {{ t }}"))), **fields)


def profile(model="m1", **more):
    entry = {"name": "small", "backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": model, **more}
    del entry["name"]
    return StrategyConfig(profile_name="p", models={"small": entry}, task_routing={"*": "small"})


def asked(text="ask x", of=None, place="a", row=ROW, meanings=None):
    of = of or step()
    meaning = {} if meanings is None else meanings.of(of)
    return question_of(of, row=row, place=place, asked={"messages": [{"role": "user", "content": text}]}, meaning=meaning)


def keeper(journal, row=ROW, counts=None, **rules):
    return RowKeeper(journal, row, AskingRules(**rules), RunCounts() if counts is None else counts, known=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.csv.journal"


# ------------------------------------------------------------------------------------------------------------- questions


def test_a_question_is_what_is_sent_and_not_the_name_of_its_step():
    one, other = asked(of=step("b"), place="b"), asked(of=step("bb", timeout=5.0, retries=9), place="bb")
    assert one.digest == other.digest
    assert asked("ask y").digest != one.digest


def test_a_digest_is_that_of_the_data_of_its_parts():
    found = asked()
    parts = {name: digest for name, digest in found.parts.items() if name != "written"}
    assert found.digest == digest_of_data([FORMAT, "prompt", parts])


def test_everything_that_an_answer_depends_on_changes_its_question():
    variants = [
        step(),
        step(temperature=0.5),
        step(tokens=9),
        step(form=output_form("number")),
        step(form=output_form("text")),
        step(model="small"),
    ]
    meanings = StepMeanings(profile())
    digests = [asked(of=one, meanings=meanings).digest for one in variants]
    digests.append(asked(meanings=StepMeanings(profile("m2"))).digest)
    assert len(set(digests)) == len(digests)


def test_another_writing_of_the_same_messages_is_the_same_question():
    meanings = StepMeanings(profile())
    one, other = asked(of=step(written="{{ t }}"), meanings=meanings), asked(of=step(written="{{t}}"), meanings=meanings)
    assert one.digest == other.digest
    assert one.parts != other.parts


# --------------------------------------------------------------------------------------------------------------- journal


def test_an_answer_is_found_again_for_its_own_row_only(path):
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(), KeptAnswer(value={"é": [1, None]}, facts={"cost": 0.25, "calls": 1}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with WorkflowJournal.open(path) as journal:
        assert journal.counts.spent == 0.25
        assert keeper(journal).find(asked()).value == {"é": [1, None]}
        assert keeper(journal, OTHER_ROW).find(asked(row=OTHER_ROW)) is None


def test_equal_questions_of_a_row_keep_their_own_answers_and_a_renamed_step_keeps_its_own(path):
    with WorkflowJournal.open(path) as journal:
        first = keeper(journal)
        first.keep(asked(place="v"), KeptAnswer(value="V"))
        first.keep(asked(place="w"), KeptAnswer(value="W"))
        again = keeper(journal, paths=frozenset({"v", "w"}))
        assert again.find(asked(place="w")).value == "W"
        assert again.find(asked(place="v")).value == "V"
        assert again.find(asked(place="v")) is None, "each answer is used once"
        renamed = keeper(journal, paths=frozenset({"vv", "w"}))
        assert renamed.find(asked(place="vv")).value == "V"
        assert renamed.find(asked(place="w")).value == "W"


def test_torn_and_damaged_lines_cost_only_themselves(path):
    with WorkflowJournal.open(path) as journal:
        for number in range(5):
            keeper(journal).keep(asked(f"q{number}"), KeptAnswer(value=number))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"value":1', b'"value":7')
    lines[-1] = lines[-1][:40]
    path.write_bytes(b"".join(lines))
    with WorkflowJournal.open(path) as journal:
        assert journal.counts.unreadable == 2
        found = [keeper(journal).find(asked(f"q{number}")) for number in range(5)]
        assert [None if one is None else one.value for one in found] == [0, None, 2, 3, None]
        keeper(journal).keep(asked("q4"), KeptAnswer(value=4))
    with WorkflowJournal.open(path) as journal:
        assert keeper(journal).find(asked("q4")).value == 4, "written on a line of its own"


def test_a_whole_last_line_without_its_newline_is_read(path):
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(), KeptAnswer(value=1))
    path.write_bytes(path.read_bytes()[:-1])
    with WorkflowJournal.open(path) as journal:
        assert journal.counts.unreadable == 0
        assert keeper(journal).find(asked()).value == 1


def test_a_newer_format_and_other_files_are_refused_and_left_as_they_are(path):
    with WorkflowJournal.open(path):
        pass
    text = path.read_text().replace('"workflow_journal":1', '"workflow_journal":2')
    for other, told in ((text, "format 2"), ('{"index":0}\n{"index":1}\n', "not the journal")):
        path.write_text(other)
        with pytest.raises(InputError, match=told):
            WorkflowJournal.open(path)
        assert path.read_text() == other


def test_a_second_run_cannot_open_the_journal(path):
    with WorkflowJournal.open(path), pytest.raises(InputError, match="another run"):
        WorkflowJournal.open(path)


# --------------------------------------------------------------------------------------------------- what is asked again


@pytest.mark.parametrize(
    ("kind", "reason", "again"),
    [("server", "HTTP 500", True), ("invalid", "the reply is empty", True), ("invalid", "age must be a number", False)],
)
def test_a_failure_is_no_answer_and_only_another_try_of_a_server_helps(path, kind, reason, again):
    with WorkflowJournal.open(path) as journal:
        one = keeper(journal)
        one.failed(asked(), kind, {"reason": reason, "cost": 0.5, "calls": 3})
        assert one.find(asked()) is None
        assert keeper(journal).refused(asked()).reason == reason, "not twice in one run"
    with WorkflowJournal.open(path) as journal:
        assert journal.counts.spent == 0.5
        assert keeper(journal).find(asked()) is None
        assert (keeper(journal).refused(asked()) is None) == again
        assert keeper(journal, retry=frozenset({"invalid"})).refused(asked()) is None


def test_what_changed_is_told_by_step(path):
    meanings = StepMeanings(profile())
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(meanings=meanings), KeptAnswer(value=1))
        for now, told in [
            (asked(of=step(temperature=1.0), meanings=meanings), "its temperature changed"),
            (asked("other", of=step(written="other"), meanings=meanings), "its prompt changed"),
            (asked("other", meanings=meanings), "what its prompt reads changed"),
            (asked(meanings=StepMeanings(profile("m2"))), "its model changed"),
        ]:
            counts = RunCounts()
            found = keeper(journal, counts=counts)
            assert found.find(now) is None
            assert found.refused(now) is None
            assert counts["a"].why == {told: 1}


def test_a_step_is_done_anew_and_others_are_left_out_on_demand(path):
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(), KeptAnswer(value=1))
        anew = keeper(journal, redo=lambda at, entry: at == "a")
        assert anew.find(asked()) is None
        assert anew.refused(asked()) is None
        anew.keep(asked(), KeptAnswer(value=2))
        assert keeper(journal).find(asked()).value == 2, "the newer answer counts"
        left = keeper(journal, left_out=lambda at: "not asked")
        assert left.find(asked()).value == 1 + 1
        assert left.refused(asked("other")).state == "not_run"


def test_shared_answers_serve_other_rows_only_if_wanted(path):
    own = step(share=True)
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(of=own), KeptAnswer(value=1))
        counts = RunCounts()
        found = keeper(journal, OTHER_ROW, counts).find(asked(of=own, row=OTHER_ROW))
        assert (found.value, found.shared, counts["a"].shared) == (1, True, 1)
        assert keeper(journal, OTHER_ROW).find(asked(row=OTHER_ROW)) is None


# ----------------------------------------------------------------------------------------------------------------- index


def test_the_index_finds_all_entries_of_a_key_in_order():
    index, wanted = EntryIndex(), {}
    for number in range(20_000):
        key = (number * number) % 3001 * 0x9E3779B97F4A7C15 % 2**64 or 1
        index.add(key, number)
        wanted.setdefault(key, []).append(number)
    assert len(index) == 20_000
    assert all(index.offsets(key) == found for key, found in wanted.items())
    assert index.offsets(12345) == []


def test_entries_are_lines_of_json(path):
    with WorkflowJournal.open(path) as journal:
        keeper(journal).keep(asked(), KeptAnswer(value="a\u2028b"))
    header, entry = map(json.loads, path.read_text().split("\n")[:2])
    assert header["workflow_journal"] == 1
    assert (entry["row"], entry["place"], entry["value"]) == (ROW, "a", "a\u2028b")


# -------------------------------------------------------------------------------------------- questions without an answer


def call(samples=1, first=0, text="ask x"):
    request = LLMRequest.of(text, temperature=0.7)
    return ModelCall(request, samples, 0.7, first_sample=first)


def brought(*samples):
    return Completion(samples=samples, usage=Usage(5, 3), model="m")


def used(cost=0.25):
    return Attempt(0, 0, "small", True, 1500.0, Usage(5, 3), cost)


PLACE = (0, 0, "small")


def test_replies_come_back_as_they_were(path):
    token = TokenLogprob("a", -0.5, (("a", -0.5), ("b", -1.0)), (("\ufffd", (240, 159)),))
    tool = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    first = Sample("x", "stop", (tool,), (token,), 0.0, "because", "END")
    question, sent = asked(), call(samples=2)
    with WorkflowJournal.open(path) as journal:
        keeper(journal).progress(question).add(PLACE, sent, brought(first, Sample("y")), used(), vote=True)
    with WorkflowJournal.open(path) as journal:
        assert journal.counts.spent == 0.25
        progress = keeper(journal).progress(question)
        found = progress.find(PLACE, sent)
        assert found.samples == (first, Sample("y"))
        assert (found.usage, found.model) == (Usage(5, 3), "m")
        assert progress.find(PLACE, sent) is None, "each counts once"
        whole = progress.whole({"calls": 2, "cost": 0.5, "seconds": 1.0, "tokens": [10, 6]})
        assert whole == {"calls": 3, "cost": 0.75, "seconds": 2.5, "tokens": [15, 9]}
        assert progress.rest(whole) == (2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("place", "sent"),
    [((1, 0, "small"), call()), ((0, 1, "small"), call()), ((0, 0, "large"), call()), (PLACE, call(first=1)),
     (PLACE, call(text="ask y"))],
    ids=["tier", "member", "model", "number", "question"],
)  # fmt: skip
def test_a_reply_belongs_to_its_call_only(path, place, sent):
    question = asked()
    with WorkflowJournal.open(path) as journal:
        keeper(journal).progress(question).add(PLACE, call(), brought(Sample("x")), used(), vote=True)
        assert keeper(journal).progress(question).find(place, sent) is None
        assert keeper(journal).progress(question).find(PLACE, call()) is not None


def test_the_samples_of_one_call_are_written_in_one_piece(path, monkeypatch):
    """A kill between two lines would leave a part of an answer that came as a whole."""
    pieces = []
    append = OwnFile.append
    with WorkflowJournal.open(path) as journal:
        monkeypatch.setattr(OwnFile, "append", lambda self, line: (pieces.append(line), append(self, line)))
        keeper(journal).progress(asked()).add(PLACE, call(3), brought(*map(Sample, "xyz")), used(), vote=True)
    assert [piece.count(b"\n") for piece in pieces] == [3]


def test_a_single_reply_is_written_only_if_something_else_is_waited_for(path):
    with WorkflowJournal.open(path) as journal:
        progress = keeper(journal).progress(asked())
        progress.add(PLACE, call(), brought(Sample("x")), used(), vote=False)
        assert len(journal) == 0
        progress.find(PLACE, call(text="try again"))
        assert len(journal) == 1
