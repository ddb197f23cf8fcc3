"""What models really write: forms reported for models and evaluation harnesses, with the place of the report.

Each list is a kind of report; the texts are made small.
"""

from __future__ import annotations

import random
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.answers.hostile import MARKS, PIECES
from workflow_composer.answers import AnswerForm, Question, reader
from workflow_composer.types import Sample

ONE = reader()


def answers(*rows):
    """Parametrize texts, their labels (None in a vote) and their answers."""
    return pytest.mark.parametrize(("text", "label", "answer"), rows)


@answers(
    *(
        (text, None, "18")
        for text in ("- 18", "* 18", "\u2022 18", "> 18", "1. 18", "**18**", "__18__", "`18`", '"18"', "# 18")
    ),
    ("-18", None, "-18"),
    ("Answer: -18", None, "-18"),
    ("Answer:\n- 18", None, "18"),
    ("```\n18\n```", None, "18"),
    ("The answer is:\n\n```text\n18\n```\nThanks!", None, "18"),
    ("The final answer is:\n\\[ \n 9 \n \\]", None, "9"),
    ("The final answer is:\n$$\n9\n$$", None, "9"),
    ("Thus the answer is\n\\begin{align*}\nx &= 3 + 4 \\\\\n&= 7\n\\end{align*}", None, "7"),
    (r"\boxed{\text{Ines}}", None, "Ines"),
    (r"\boxed{\mathbf{18}}", None, "18"),
    (r"\boxed{{18}}", None, "18"),
    ("#### Answer: 18", None, "18"),
    ('Here is the JSON: {"answer": "Paris"} I hope that helps!', None, "Paris"),
    ('{"sentiment": "positive"}', None, "positive"),
    ("{'answer': 18}", None, "18"),
    ("**18**\n\nHere is how: 5 + 13 apples.", "18", "18"),
    ("Final Answer: **73**", "73", "73"),  # Math-Verify #76
    ("\u2705 Final Answer: **73**", None, "73"),
    ("***ANSWER***: ***B***", None, "B"),  # azureml-assets #5274
    ("**ANSWER: C**", None, "C"),
    ("**Final Answer**\n\n$\\frac{1}{2}$", None, r"\frac{1}{2}"),
    ("## Answer\n18", "18", "18"),
    ("<b>18</b>", None, "18"),
    ("<answer>\n**42**\n</answer>", None, "42"),
    ("<|begin_of_box|>42<|end_of_box|>", None, "42"),  # GLM-4.1V
    (r"\\boxed{5}", None, "5"),  # escaped twice, as in JSON
    ('```json\n{"steps": "The answer is 12, no", "answer": 18}\n```', None, "18"),
)
def test_what_stands_around_an_answer_is_no_part_of_it(text, label, answer):
    """Fences, display math, bullets, emphasis, tags."""
    assert ONE.read(text, label) == answer


@answers(
    ("The answer is 8, because she gave 4 away.", None, "8"),
    ("The answer is 8 because she gave 4 away.", "8", "8"),
    ("8, because she gave 4 away.", "8", "8"),
    ("18 (eighteen)", None, "18"),
    ("#### 84 (corrected)", None, "84"),  # RouteLLM, Mixtral-8x7B
    ("The answer is that Ines earns 18 dollars.", None, "18"),
    ("#### Jackson is 4 years old.", None, "4"),  # RouteLLM, GPT-4
    (r"\boxed{\text{The answer is 460}}", "460", "460"),  # evalscope #906
    ("The total is 72 clips, altogether.", None, "72"),  # omlx #3484
    ("The answer is therefore 18.", None, "18"),
    ("The answer is 18, i.e., eighteen.", None, "18"),
    ("The answer is 18; this follows from 3 * 6.", None, "18"),
    ("The answer is 18 (3 \u00d7 6 = 18).", None, "18"),
    ("Answer: approx. 18", None, "18"),
    ("So the answer is 6 \u00d7 3 = 18.", None, "18"),
    ("I had 6th place in mind.\n#### 6th place", "6", "6"),  # RouteLLM, GPT-4
    ("The answer is $(0, 1)$. I hope it is correct.", None, "(0, 1)"),
    ("Answer: Yes, since 7 is prime.", None, "Yes"),
    ("yes, it is", None, "yes"),
    ("Answer: Paris - the capital of France", None, "Paris"),
    ("Answer: ~18", None, "18"),
    ("The answer is 3 (mod 7).", None, "3 (mod 7)"),
    ("Answer: c.35G>A (p.Gly12Asp)", None, "c.35G>A (p.Gly12Asp)"),
    ("Answer: George Washington (1732-1799)", None, "George Washington (1732-1799)"),
    ("The answer is Dr. Smith.", None, "Dr. Smith"),
    ("The answer is E. coli.", None, "E. coli"),
    ("The answer is *1/*4.", None, "*1/*4"),
    ("The answer is [2,5).", None, "[2,5)"),
)
def test_a_reason_or_an_explanation_is_no_part_of_it(text, label, answer):
    """And what only looks like one stays."""
    assert ONE.read(text, label) == answer


@answers(
    (r"\boxed{(C) 5}", None, "C"),
    (r"\boxed{(C) 5}", "C", "C"),
    (r"\boxed{(C) 5}", "5", "5"),
    (r"\boxed{\textbf{(C)}\ 5}", None, "C"),
    (r"\boxed{E: A polygenic risk score}", "E", "E"),  # NeMo-Gym #1844
    ("Answer: C) 42", None, "C"),
    ("Answer: C) 42", "42", "42"),
    ("The correct option is (B).", None, "B"),
    ("So B is the correct answer.", None, "B"),
    ("The correct answer is d.", "D", "D"),  # OPD-V #2
    ("I considered (A), but it is incorrect. Final answer: D.", None, "D"),
    ("b. 4", "B", "B"),  # lm-evaluation-harness #4188
    ("I would pick B \u2014 a safe choice.", "B", "B"),
    ("The answer is C because I computed the integral.", "C", "C"),  # omlx #3668
    ("C. A pretty girl", "C", "C"),  # OmniBench #8
    ("B looks right \u2014 and is the safe one.", "B", "B"),
    ("Based on the passage, it is option C.", "C", "C"),  # lmms-eval #1434
    ("Answer: A and C", "C", "A and C"),
    ("A perfect answer cannot be found.", "A", None),  # MMLU-Pro #7
)
def test_a_choice_is_its_letter(text, label, answer):
    """Unless its text is asked for; two letters are none."""
    assert ONE.read(text, label) == answer


@answers(
    ("\u7b54\u6848\uff1a18", None, "18"),
    ("\u6240\u4ee5\u9009\u62e9B\u3002\n\u6545\u9009\uff1aB", None, "B"),
    ("\u6700\u7ec8\u7b54\u6848\u662f18\u3002", None, "18"),
    ("\u7b54\u3048\u306f18\u3067\u3059\u3002", None, "18"),
    ("\uc815\ub2f5\uc740 18\uc785\ub2c8\ub2e4.", None, "18"),
    ("Antwort:\n\nAntwort: C", None, "C"),  # simple-evals #33
    ("Die richtige Antwort lautet: C", None, "C"),
    ("La respuesta correcta es la C.", None, "C"),
    ("La r\u00e9ponse finale est : 18.", None, "18"),
    ("Resposta: 18", None, "18"),
    ("Risposta: 18", None, "18"),
    ("\u041e\u0442\u0432\u0435\u0442: 18", None, "18"),
    ("\u0110\u00e1p \u00e1n: B", None, "B"),
    ("Jawaban: 18", None, "18"),
    ("\u0627\u0644\u0625\u062c\u0627\u0628\u0629: \u0661\u0668", None, "18"),
    ("\u0989\u09a4\u09cd\u09a4\u09b0: \u09e7\u09ee", None, "18"),  # MGSM in Bengali
    ("Answer\uff1a\uff11\uff18\u3002", None, "18"),
    ("So she needs 1\u00bd hours in all, if I see that right.", "1.5", "1\u00bd"),
    ("The answer is 6.02\u00d710\u00b2\u00b3.", None, "6.02\u00d710\u00b2\u00b3"),
)
def test_other_languages_and_scripts_are_read(text, label, answer):
    """Their phrases, digits, punctuation, in composed and decomposed characters."""
    for form in ("NFC", "NFD"):
        assert ONE.read(unicodedata.normalize(form, text), label) == answer


@answers(
    (r"we find $\boxed{a \ll b}$" + "\n\n**Answer: D**", None, "D"),  # NeMo-Skills #1526
    (r"\boxed{5}" + "\n\nFinal Answer: 6", None, "6"),
    (r"\boxed{5}" + "\nThe answer is D.", None, "D"),
    (r"\boxed{5}. The answer is good.", None, "5"),
    (r"\boxed{5}" + "\n\nThis means that 6 apples are left for Tom.", None, "5"),
    (r"\boxed{5}. The answer is the number of the apples that are left over.", None, "5"),
    (r"so $\boxed{1}$ and $\boxed{2}$", None, "1, 2"),
    (r"The roots are $\boxed{3}$, $\boxed{5}$ and $\boxed{7}$.", None, "3, 5, 7"),
    (r"$x = \boxed{1}$ or $x = \boxed{2}$", None, "1, 2"),
    (r"\boxed{5}, \boxed{5}", None, "5"),
    (r"\boxed{3} apples and then \boxed{5}", None, "5"),
    (r"At first \boxed{3}. No, the answer is \boxed{4", None, "4"),  # marin #9163
)
def test_of_several_marks_the_one_that_means_it_counts(text, label, answer):
    """A stated answer after a box; boxes in a row together; else the last box."""
    assert ONE.read(text, label) == answer


THOUGHTS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("Here is my thought process:", "Here is my response:"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe see: ", "assistantfinal"),
]


@pytest.mark.parametrize(("opening", "closing"), THOUGHTS)
def test_thoughts_of_every_model_are_left_out(opening, closing):
    """Closed, without the opening mark, and never closed: then nothing is said."""
    thought = "It could be that the answer is 5, \\boxed{5}.\n#### 5\n"
    assert ONE.read(f"{opening}{thought}{closing}The answer is 7.") == "7"
    assert ONE.read(f"{opening}{thought}") is None
    if not opening[0].isalpha():
        assert ONE.read(f"{thought}{closing}The answer is 7.") == "7"


def test_a_mark_that_is_only_mentioned_is_no_thought():
    """In a code span."""
    assert ONE.read("R1 writes `<think>` first. The answer is 7.") == "7"


@pytest.mark.parametrize(
    "text",
    [
        *(
            r"\[",
            "$$",
            "```",
            "```python",
            ")",
            r"\begin{align*}",
            r"\end{align*}",
            r"\boxed{}",
            r"\boxed{\quad}",
            "**",
            "---",
        ),
        *(
            "...",
            r"\[ \]",
            r"\text{}",
            "<answer></answer>",
            "",
            "\u2014",
            "\u2205",
            "$\\left( \\right)$",
            "- \n- \n",
            "\u3002",
        ),
    ],
)
@pytest.mark.parametrize("label", [None, "18", "B", "Paris", "0/1"])
def test_a_text_without_letter_or_digit_holds_no_answer(text, label):
    """Nor does one with LaTeX's and Markdown's scaffolding only; several such would win a vote unanimously."""
    assert ONE.read(text, label) is None


@given(text=st.text(st.characters(exclude_categories=["L", "N", "Cs"])))
def test_signs_alone_are_never_read(text):
    """Whatever the method."""
    for way in ("auto", "hashes", "boxed", "phrase", "line", "whole"):
        assert reader(AnswerForm(extract=(way,))).read(text) is None


@answers(
    ("Paris\n\nIt has been the capital since 987.", None, "Paris"),
    ("Positive\n\nThe author liked all of the 5 rooms.", "positive", "Positive"),
    ("The sentiment is positive.", None, "positive"),
    ("The correct diagnosis is E11.9.", None, "E11.9"),
    ("So the solutions are x=1 and x=2.", "1,2", "x=1 and x=2"),
    (r"The value is $\frac{3}{4}$.", None, r"\frac{3}{4}"),
    ("I think it's B", None, "B"),
    ("The variant is c.35G>A (p.Gly12Asp).", None, "c.35G>A (p.Gly12Asp)"),
    ("In all of this family the only variant that we were able to find was c.35G>A in KRAS.", None, None),
    ("Some like it, some do not; on balance the author is for it.\n\nLabel: positive", None, "positive"),
    ("Yes, because 2 is prime.", None, "Yes"),
    ("So it has the genotype 0/1.", "0/1", "0/1"),
    ("I do not know.", None, None),
    ('{"answer": null}', None, None),
)
def test_a_text_without_a_mark_is_read_as_a_person_would(text, label, answer):
    """A label word apart from its explanation, what a sentence says; nothing where nothing is said."""
    assert ONE.read(text, label) == answer


@answers(
    ("16 - 7 = 9\n#### 9\n\nQuestion: Omar has 3 pears.\nAnswer: 2\n#### 2", None, "9"),  # sglang #29933
    ("The answer is 9.<|im_end|>\n<|im_start|>user\nAnd 5?", None, "9"),
    ("<|im_start|>assistant\n9", None, "9"),
    ("Question: How many?\nAnswer: 9", None, "9"),
)
def test_a_text_that_runs_on_is_read_up_to_its_first_end(text, label, answer):
    """A token of the template, or a question that the model asks itself."""
    assert ONE.read(text, label) == answer


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{18}. To check, we", "18"),
        ("#### 18\nTo che", "18"),
        ("#### 1", None),
        ("The answer is 18. To che", "18"),
        ("The answer is 3.", None),
        ("The answer is 18", None),
        ("<answer>18</answer> be", "18"),
        ("<answer>18", None),
        (r"First \boxed{3}. No, it is \boxed{4", None),
        ("<think>so \\boxed{18}", None),
        ("So she has 18 left. Then she", None),
        ("18", None),
    ],
)
def test_an_answer_that_was_cut_off_counts_only_if_its_final_answer_is_complete(text, answer, reason):
    """Else the next token might have changed it."""
    assert ONE.read_said(Sample(text, reason)) == answer
    assert ONE.read_said(Sample(text, reason), "18") == answer


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (r"\boxed{18}", "boxed"),
        ("#### 18", "hashes"),
        ("The answer is 18.", "phrase"),
        ("<answer>18</answer>", "tag"),
        ('{"answer": 18}', "json"),
        ("So she has 24 - 6 = 18 rolls left to sell.", "last_number"),
        ("Paris", "short"),
    ],
)
def test_the_method_that_read_an_answer_is_told(text, how):
    """As results keep it, to look for a method that errs."""
    found = ONE.extract(text)
    assert found is not None
    assert found.how == how


async def test_a_phrase_that_only_talks_about_the_answer_is_no_answer():
    """With a label that is a number, the text is searched on."""
    text = "So she has 24 - 6 = 18 rolls left. The answer is reasonable."
    assert await Question(ONE, "18").is_correct(ONE.read(text, "18"))


def test_mutated_texts_of_20_kilobytes_are_read_in_linear_time():
    """A thousandth of what `benchmarks/answer_reading.py` reads, with a wide margin; a quadratic reader takes seconds."""
    draw, slowest = random.Random(7), 0.0
    for number in range(100):
        pool = draw.choices([*MARKS, *PIECES, "The answer is ", "<think>", "\u7b54\u6848", "a"], k=draw.choice((1, 2, 8)))
        text = "".join(draw.choices(pool, k=20_000))[:20_000]
        before = time.process_time()
        ONE.read(text, (None, "18", "B", "Paris")[number % 4])
        slowest = max(slowest, time.process_time() - before)
    assert slowest < 1


@pytest.mark.parametrize(
    "piece", [*PIECES, "The answer to ", "answer: ", "\u0301\u0327", "<|", "= ", "( ", " because", "\u7b54\u6848"]
)
@pytest.mark.parametrize("label", [None, "18", "B"])
def test_a_megabyte_is_read_at_once(piece, label):
    """Whatever it is made of."""
    text = piece * (1_000_000 // len(piece))
    before = time.process_time()
    ONE.read(text, label)
    assert time.process_time() - before < 10
