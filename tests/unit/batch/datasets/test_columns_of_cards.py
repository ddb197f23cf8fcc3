"""The columns of public data sets, as their cards show them: what is asked, the right answers, and one line that says so."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow_composer.batch.datasets.columns import Columns
from workflow_composer.batch.datasets.multiple_choice import ASKED
from workflow_composer.batch.datasets.table import read_table
from workflow_composer.errors import InputError


@pytest.fixture
def table(tmp_path):
    """Opens rows as JSON lines, Parquet or CSV."""

    def opened(*rows, end=".jsonl", **options):
        path = tmp_path / f"d{end}"
        if end == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        elif end == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_table(path, **options)

    return opened


def contents(opened):
    """What the rows ask."""
    return [content for _, content in opened.asked()]


def put(question, *choices):
    """A question with its choices, as it goes to the model."""
    return "\n".join((question, *(f"{'ABCDEFGHIJ'[at]}. {text}" for at, text in enumerate(choices)), "", ASKED))


CARDS = {
    "openai/gsm8k": (
        {"question": "q", "answer": "48/2 = 24\n#### 72"},
        "question: question, label: answer",
        ("48/2 = 24\n#### 72",),
    ),
    "HuggingFaceH4/MATH-500": (
        {
            "problem": "q",
            "solution": r"We get \boxed{2}",
            "answer": "2",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "t/1.json",
        },
        "question: problem, label: answer, id: unique_id",
        ("2",),
    ),
    "nvidia/OpenMathReasoning": (
        {"expected_answer": "2", "problem_type": "has_answer_extracted", "generated_solution": "s", "problem": "q"},
        "question: problem, label: expected_answer",
        ("2",),
    ),
    "zwhe99/DeepMath-103K": (
        {"question": "q", "final_answer": "2", "difficulty": 4.5, "topic": "t", "r1_solution_1": "s"},
        "question: question, label: final_answer",
        ("2",),
    ),
    "Hothan/OlympiadBench": (
        {
            "id": 1,
            "question": "q",
            "solution": ["s"],
            "final_answer": ["2", "-2"],
            "context": None,
            "is_multiple_answer": True,
        },
        "question: question, label: final_answer, id: id",
        ("2", "-2"),
    ),
    "AI-MO/NuminaMath-CoT": (
        {"source": "amc", "problem": "q", "solution": "2", "messages": [{"content": "q", "role": "user"}]},
        "question: problem, label: solution",
        ("2",),
    ),
    "lukaemon/bbh": ({"input": "q", "target": "(A)"}, "question: input, label: target", ("(A)",)),
    "mandarjoshi/trivia_qa": (
        {
            "question": "q",
            "question_id": "tc_2",
            "answer": {"aliases": ["Sinclair Lewis", "H. S. Lewis"], "value": "Sinclair Lewis"},
        },
        "question: question, label: answer, id: question_id",
        ("Sinclair Lewis", "H. S. Lewis"),
    ),
    "google-research-datasets/nq_open": (
        {"question": "q", "answer": ["14 December 1972 UTC", "December 1972"]},
        "question: question, label: answer",
        ("14 December 1972 UTC", "December 1972"),
    ),
    "basicv8vc/SimpleQA": (
        {"metadata": "{'topic': 'x'}", "problem": "q", "answer": "2"},
        "question: problem, label: answer",
        ("2",),
    ),
    "SetFit/sst2": ({"text": "q", "label": 1, "label_text": "positive"}, "question: text, label: label", ("1",)),
    "BEIR queries": ({"_id": "3", "query": "q"}, "question: query, label: none, id: _id", ()),
    "AIME_2024 (Maxwell-Jia)": (
        {"ID": "2024-II-4", "Problem": "q", "Solution": "s", "Answer": 33},
        "question: Problem, label: Answer, id: ID",
        ("33",),
    ),
}


@pytest.mark.parametrize("end", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("row", "said", "labels"), CARDS.values(), ids=CARDS)
def test_question_and_label_are_found(table, row, said, labels, end):
    """The row is of the form that the card shows."""
    opened = table(row, end=end)

    assert opened.describe() == said
    assert [(content.question, content.labels) for content in contents(opened)] == [("q", labels)]


CHOICES = {
    "cais/mmlu": (
        {"question": "q", "subject": "s", "choices": ["0", "4", "2", "6"], "answer": 1},
        ("0", "4", "2", "6"),
        "B",
    ),
    "TIGER-Lab/MMLU-Pro": (
        {
            "question_id": 70,
            "question": "q",
            "options": list("klmnopqrst"),
            "answer": "I",
            "answer_index": 8,
            "cot_content": "",
        },
        tuple("klmnopqrst"),
        "I",
    ),
    "openai/MMMLU": (
        {"Question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "Answer": "C", "Subject": "s"},
        tuple("1234"),
        "C",
    ),
    "allenai/ai2_arc": (
        {"id": "x", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        ("a", "b"),
        "B",
    ),
    "allenai/ai2_arc, with numbers": (
        {"id": "x", "question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
        ("a", "b"),
        "A",
    ),
    "ARC-V1-Feb2018 (AI2's own JSON lines)": (
        {
            "id": "x",
            "question": {"stem": "q", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
            "answerKey": "B",
        },
        ("a", "b"),
        "B",
    ),
    "Rowan/hellaswag": ({"ind": 4, "ctx": "q", "endings": ["a", "b", "c", "d"], "label": "3"}, tuple("abcd"), "D"),
    "GBaker/MedQA-USMLE-4-options": (
        {
            "question": "q",
            "answer": "Tell him",
            "options": {"A": "Wait", "B": "Tell him"},
            "meta_info": "step1",
            "answer_idx": "B",
        },
        ("Wait", "Tell him"),
        "B",
    ),
    "GBaker/MedQA-USMLE-4-options-hf": (
        {
            "id": "train-00000",
            "sent1": "q",
            "sent2": "",
            "ending0": "a",
            "ending1": "b",
            "ending2": "c",
            "ending3": "d",
            "label": 2,
        },
        tuple("abcd"),
        "C",
    ),
    "bigbio/med_qa": (
        {
            "question": "q",
            "answer_idx": "B",
            "answer": "b",
            "options": [{"key": "A", "value": "a"}, {"key": "B", "value": "b"}],
        },
        ("a", "b"),
        "B",
    ),
    "openlifescienceai/medmcqa": (
        {
            "id": "x",
            "question": "q",
            "opa": "a",
            "opb": "b",
            "opc": "c",
            "opd": "d",
            "cop": 0,
            "choice_type": "single",
            "exp": None,
        },
        tuple("abcd"),
        "A",
    ),
    "baber/piqa": ({"goal": "q", "sol1": "a", "sol2": "b", "label": 0}, ("a", "b"), "A"),
    "allenai/winogrande": ({"sentence": "q", "option1": "a", "option2": "b", "answer": "2"}, ("a", "b"), "B"),
    "AGIEval (aqua-rat)": (
        {"passage": None, "question": "q", "options": ["(A)21", "(B) 2", "(C) 3"], "label": "A", "answer": None},
        None,
        "A",
    ),
    "AGIEval (lsat)": (
        {"passage": None, "question": "q", "options": ["(A) x", "(B) y"], "label": "A", "other": None},
        ("x", "y"),
        "A",
    ),
    "ceval/ceval-exam": (
        {"id": 0, "question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "A", "explanation": ""},
        tuple("abcd"),
        "A",
    ),
    "label as text": ({"question": "q", "options": ["Paris", "Rome"], "answer": "Rome"}, ("Paris", "Rome"), "B"),
}


@pytest.mark.parametrize("end", [".jsonl", ".parquet"])
@pytest.mark.parametrize(("row", "choices", "letter"), CHOICES.values(), ids=CHOICES)
def test_choices_are_put_to_the_model_and_labels_are_letters(table, row, choices, letter, end):
    """The row is of the form that the card shows."""
    (content,) = contents(table(row, end=end))

    assert content.labels == (letter,)
    if choices is not None:
        assert content.question == put("q", *choices)


@pytest.mark.parametrize(
    "written",
    ['["0", "4", "2", "6"]', "['0', '4', '2', '6']", "['0' '4' '2' '6']", "['0' '4'\n '2' '6']"],
    ids=["JSON", "Python", "NumPy", "NumPy, long"],
)
def test_choices_in_a_csv_field(table, written):
    """Pandas writes lists and arrays as they print: to_csv of cais/mmlu."""
    (content,) = contents(table({"question": "q", "choices": written, "answer": "1"}, end=".csv"))

    assert (content.question, content.labels) == (put("q", "0", "4", "2", "6"), ("B",))


def test_an_index_may_begin_with_one(table):
    """Medmcqa's own JSON: cop from 1 to 4. The rows together tell; what then fits none is an error that names its line."""
    row = {"question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    assert [c.labels for c in contents(table({**row, "cop": 1}, {**row, "cop": 4}))] == [("A",), ("D",)]
    assert [c.labels for c in contents(table({**row, "cop": 0}, {**row, "cop": 3}, {**row, "cop": -1}))] == [
        ("A",),
        ("D",),
        (),
    ]
    with pytest.raises(InputError, match=r"d\.jsonl:66: 'cop' is '7', which is none of the 4 choices"):
        contents(table(*[{**row, "cop": 0}] * 65, {**row, "cop": 7}))


class TestChats:
    @pytest.mark.parametrize(
        "row",
        [
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},  # RLVR-GSM, UltraChat
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            {
                "conversation": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            {
                "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
                "data_source": "openai/gsm8k",
            },
        ],
        ids=["messages", "ShareGPT", "WildChat", "verl"],
    )
    @pytest.mark.parametrize("end", [".jsonl", ".parquet", ".csv"])
    def test_messages_are_sent_up_to_the_users_last(self, table, row, end):
        """In a CSV file they are JSON."""
        if end == ".csv":
            row = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
        (content,) = contents(table(row, end=end))

        assert content.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
        assert content.question == "q"

    def test_verls_label_lies_in_an_object(self, table):
        """Verl's examples/data_preprocess/gsm8k.py."""
        row = {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": "q"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "72"},
            "extra_info": {"split": "test", "index": 0, "answer": "#### 72", "question": "q"},
        }
        for end in (".jsonl", ".parquet"):
            opened = table(row, end=end)
            assert opened.describe() == "question: prompt, label: reward_model.ground_truth"
            assert contents(opened)[0].labels == ("72",)
        other = table(row, columns=Columns(label="extra_info.answer", id="extra_info.index"))
        assert [(c.id, c.labels) for c in contents(other)] == [("0", ("#### 72",))]

    def test_several_questions_without_answers_in_between_are_refused(self, table):
        """lmsys/mt_bench: turns are asked one after the other."""
        row = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}

        with pytest.raises(InputError, match="'turns' has 2 turns"):
            contents(table(row, columns=Columns("turns")))


def test_instructions_have_inputs(table):
    """tatsu-lab/alpaca: instruction, input (often empty), output."""
    rows = [{"instruction": "Add.", "input": "2, 3", "output": "5"}, {"instruction": "Say hi.", "input": "", "output": "hi"}]
    opened = table(*rows)

    assert opened.describe() == "question: instruction + input, label: output"
    assert [(c.question, c.labels) for c in contents(opened)] == [("Add.\n\n2, 3", ("5",)), ("Say hi.", ("hi",))]


def test_a_passage_stands_before_its_question(table):
    """rajpurkar/squad: without its context, no question can be answered. A context template's name is no passage."""
    row = {
        "id": "5733be28",
        "context": "The Virgin Mary appeared in Lourdes.",
        "question": "Where?",
        "answers": {"text": ["Lourdes"]},
    }
    opened = table(row)

    assert opened.describe() == "question: context + question, label: answers, id: id"
    assert [(c.question, c.labels) for c in contents(opened)] == [
        ("The Virgin Mary appeared in Lourdes.\n\nWhere?", ("Lourdes",))
    ]
    assert table({"question": "q", "context": "file-formats"}).describe() == "question: question, label: none"


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"context": {"contexts": ["One.", "Two went home."]}, "question": "q"}, "One. Two went home.\n\nq"),
        (
            {"context": {"title": ["a"], "sentences": [["I.", " II."], ["III."]]}, "question": "q"},
            "I. II.\nIII.\n\nq",
        ),
        ({"instruction": "q", "context": "One two three.", "response": "r"}, "One two three.\n\nq"),
        ({"article": "One two three.", "question": "q", "answer": "A"}, "One two three.\n\nq"),
    ],
    ids=["qiaojin/PubMedQA", "hotpotqa/hotpot_qa", "databricks-dolly-15k", "ehovy/race"],
)
def test_passages_of_other_cards(table, row, asked):
    for end in (".jsonl", ".parquet"):
        assert contents(table(row, end=end))[0].question == asked


def test_a_chat_may_have_its_system_message_in_a_column(table):
    """LLaMA-Factory's ShareGPT form."""
    chat = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    opened = table({"conversations": chat, "system": "s", "tools": ""})

    assert opened.describe() == "question: system + conversations, label: none"
    assert contents(opened)[0].messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})


def test_the_names_of_classes_are_right_answers_beside_their_numbers(tmp_path):
    """stanfordnlp/imdb: ClassLabel(names=["neg", "pos"]); `datasets` writes the names into the schema of its files."""
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    data = pa.table({"text": ["a film", "b", "c"], "label": [1, 0, -1]})
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(data.replace_schema_metadata(told), tmp_path / "imdb.parquet")
    opened = read_table(tmp_path / "imdb.parquet")

    assert opened.describe() == "question: text, label: label (0: neg, 1: pos)"
    assert [content.labels for content in contents(opened)] == [("pos", "1"), ("neg", "0"), ()]


class TestChoosing:
    """Which column is meant."""

    def test_columns_that_differ_are_an_error_that_names_them(self, table):
        with pytest.raises(InputError, match="several columns could be the question: 'question', 'problem'") as caught:
            table({"question": "one", "problem": "other", "answer": "1"})
        assert "--question-column question" in str(caught.value)
        with pytest.raises(InputError, match="several columns could be the label: 'answer', 'target'"):
            table({"question": "q", "answer": "1", "target": "2"})
        assert table({"question": "same", "problem": "same"}).columns.question == "question"

    def test_named_columns_win(self, table):
        row = {"question": "one", "problem": "other", "answer": "1", "Final result": "2", "key": "k", "opts": ["x", "y"]}
        wanted = Columns("problem", "final result", "key", "opts")
        opened = table({**row, "Final result": "y"}, columns=wanted)

        assert opened.describe() == "question: problem, choices: opts, label: Final result (text), id: key"
        assert [(c.id, c.question, c.labels) for c in contents(opened)] == [("k", put("other", "x", "y"), ("B",))]

    def test_several_columns_of_choices_may_be_named(self, table):
        opened = table(
            {"question": "q", "first": "x", "second": "y", "answer": "y"}, columns=Columns(choices="first,second")
        )

        assert contents(opened)[0].question == put("q", "x", "y")

    def test_a_misspelt_column_names_what_is_near(self, table):
        with pytest.raises(InputError, match="no column 'probelm'") as caught:
            table({"problem": "q", "answer": "1"}, columns=Columns("probelm"))
        assert "did you mean 'problem'?" in str(caught.value)

    def test_names_with_blanks_and_in_other_case(self, table):
        assert (
            table({"Question Text": "q", "Correct Answer": "1"}).describe()
            == "question: Question Text, label: Correct Answer"
        )


def test_an_id_does_not_depend_on_the_format(table):
    """The same row, in each format, also with a number that keeps its zeros."""
    for key in (7, "7", "007", "a-1"):
        row = {"id": key, "question": "q", "answer": "1"}
        assert {contents(table(row, end=end))[0].id for end in (".jsonl", ".csv", ".parquet")} == {str(key)}
