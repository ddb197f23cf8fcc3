"""What samples vote for: tool calls, JSON, values of forms, texts by meaning; and what free text is."""

from __future__ import annotations

import csv
import itertools
import json

import pytest

from tests.paths import DATA
from workflow_composer.answers import reader
from workflow_composer.answers.output_form import output_form
from workflow_composer.errors import RoutingError, ServerUnreachable
from workflow_composer.execution.executor import PlanExecutor
from workflow_composer.execution.voting.vote_kinds import AnswerVotes
from workflow_composer.plan import Plan, Tier, Voting
from workflow_composer.types import LLMRequest, Sample

ROUTELLM = DATA / "lm-sys+RouteLLM" / "routellm" / "evals" / "gsm8k" / "gsm8k_responses.csv"
WEATHER = (
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    },
    {"type": "function", "function": {"name": "time"}},
)
ROME = "Rome, the eternal city, has been the capital of Italy since the year 1871."
PARIS = "Paris is the capital of France, and it has been so for most of its 2000 years."


def calls(*given, finish="tool_calls"):
    """A sample that calls tools, given as (name, arguments)."""
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(given)
    ]
    return Sample("", finish, tuple(made))


def city(name, **more):
    return calls(("weather", {"city": name, **more}))


def draws(*samples):
    """A script whose samples come in this order, whatever call draws them."""
    return lambda call: [samples[(call.first_sample + i) % len(samples)] for i in range(call.samples)]


def cascade(b, k=3, **voting):
    one = Tier.of(b.candidates("small"), "small", k, 0.7, voting=Voting(**voting))
    return Plan((one, Tier.of(b.candidates("large"), "large", 1, 0.0, voting=Voting(**voting))))


async def vote(bench, fake, samples, request, *, large="#### 9", embedding=None, **voting):
    """The outcome of a cascade whose first tier draws these samples, and the bench."""
    b = bench(fake("small", draws(*samples)), fake("large", large))
    if embedding is not None:
        b.endpoints["vectors"] = bench(embedding).endpoints[embedding.name]
        b.executor = PlanExecutor(b.endpoints, embedding=lambda: b.endpoints["vectors"].candidate)
    return await b.executor.run(cascade(b, len(samples), **voting), request, b.trace), b


def asking(**fields):
    return LLMRequest.of("What is the weather?", **fields)


class TestToolCalls:
    async def test_the_call_of_most_samples_is_the_answer(self, bench, fake):
        samples = [city("Rome"), city("Paris"), city("Paris")]
        outcome, b = await vote(bench, fake, samples, asking(tools=WEATHER), target=0.6)
        assert outcome.answer.tool_calls[0]["function"]["arguments"] == '{"city": "Paris"}'
        assert (outcome.tier, outcome.verdict.confidence) == (0, 2 / 3)
        assert outcome.verdict.votes == (('weather({"city":"Paris"})', 2), ('weather({"city":"Rome"})', 1))
        assert b.backends["large"].calls == []

    async def test_calls_that_agree_accept_at_the_first_tier(self, bench, fake):
        spaced = calls(("weather", '{ "days": 1.0,\n "city": "Rome" }'))
        samples = [city("Rome", days=1), spaced, calls(("weather", {"days": 1, "city": "Rome"}))]
        outcome, b = await vote(bench, fake, samples, asking(tools=WEATHER), draw="at_once", stopping="fixed")
        assert (outcome.tier, outcome.verdict.accepted, outcome.verdict.confidence) == (0, True, 1.0)
        assert b.backends["large"].calls == []

    async def test_other_names_values_and_numbers_of_calls_are_other_votes(self, bench, fake):
        samples = [
            city("Rome"),
            calls(("time", {"city": "Rome"})),
            city("Rome", days=True),
            city("Rome", days=1),
            calls(("weather", {"city": "Rome"}), ("time", {})),
        ]
        outcome, _ = await vote(bench, fake, samples, asking(tools=WEATHER), stopping="fixed")
        assert outcome.tier == 1

    async def test_parallel_calls_have_no_order(self, bench, fake):
        pair = [("weather", {"city": "Rome"}), ("time", {})]
        samples = [calls(*pair), calls(*reversed(pair))]
        assert (await vote(bench, fake, samples, asking(tools=WEATHER)))[0].verdict.confidence == 1.0

    @pytest.mark.parametrize("bad", [calls(("weather", "{")), calls(("wether", {})), calls(("weather", "[1]"))])
    async def test_a_call_that_cannot_be_made_is_no_vote(self, bench, fake, bad):
        samples = [bad, bad, city("Rome")]
        outcome, b = await vote(bench, fake, samples, asking(tools=WEATHER), stopping="fixed")
        assert outcome.tier == 1
        assert (b.trace.tiers[0].verdict.unreadable, b.trace.tiers[0].verdict.confidence) == (2, 1 / 3)

    async def test_a_text_and_a_call_are_different_votes(self, bench, fake):
        samples = ["sunny", city("Rome"), "Sunny."]
        outcome, _ = await vote(bench, fake, samples, asking(tools=WEATHER), target=0.6)
        assert (outcome.answer.text, outcome.verdict.confidence) == ("sunny", 2 / 3)

    async def test_the_order_of_the_samples_does_not_matter(self, bench, fake):
        counted = set()
        for samples in itertools.permutations([city("Rome"), city("Rome"), calls(("time", {})), "sunny"]):
            _outcome, b = await vote(bench, fake, samples, asking(tools=WEATHER), stopping="fixed", target=0.9)
            verdict = b.trace.tiers[0].verdict
            counted.add((verdict.votes[0], frozenset(verdict.votes), verdict.confidence))
        assert len(counted) == 1


class TestJson:
    ONE, OTHER = '{"a": 1, "b": [true, "x"]}', '```json\n{"b": [true, "x"], "a": 1.0}\n```'

    @pytest.mark.parametrize(
        "fields",
        [
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            {"extra": {"guided_json": {}, "x": 1}} | {"response_format": {"type": "json_object"}},
            {},
        ],
    )
    async def test_the_order_of_keys_does_not_matter(self, bench, fake, fields):
        samples = [self.ONE, self.OTHER, '{"b":[true,"x"],"a":1}']
        outcome, _b = await vote(bench, fake, samples, asking(**fields), stopping="fixed")
        assert (outcome.tier, outcome.verdict.confidence) == (0, 1.0)

    async def test_the_value_of_most_samples_is_the_answer(self, bench, fake):
        samples = [self.ONE, '{"a": 2}', "{'a': 1, 'b': [True, 'x']}"]
        outcome, _ = await vote(bench, fake, samples, asking(response_format={"type": "json_object"}), target=0.6)
        assert (outcome.answer.text, outcome.verdict.confidence) == (self.ONE, 2 / 3)

    async def test_what_is_no_json_is_no_vote(self, bench, fake):
        outcome, b = await vote(
            bench,
            fake,
            ["3", "{", "{"],
            asking(response_format={"type": "json_object"}),
            large='{"a": 9}',
            stopping="fixed",
        )
        assert b.trace.tiers[0].verdict.unreadable == 2
        assert outcome.tier == 1

    async def test_choices_that_the_server_is_asked_for(self, bench, fake):
        samples = ["Yes.", "yes", "no"]
        outcome, _ = await vote(bench, fake, samples, asking(extra={"guided_choice": ["yes", "no"]}), target=0.6)
        assert outcome.verdict.votes == (("yes", 2), ("no", 1))


class TestForms:
    async def test_choices_vote_in_every_writing(self, bench, fake):
        form = output_form(["case", "trial"])
        samples = ["Case.", "The answer is **case**", "trial"]
        outcome, b = await vote(bench, fake, samples, asking(form=form), target=0.6)
        assert (outcome.verdict.value, outcome.verdict.confidence) == ("case", 2 / 3)
        assert outcome.verdict.mended
        assert "case, trial" in b.backends["small"].calls[0].request.messages[-1]["content"]

    async def test_an_invalid_sample_is_no_vote_and_is_drawn_again(self, bench, fake):
        form = output_form(["case", "trial"])
        samples = ["hm", "case", "case", "?", "case"]
        b = bench(fake("small", draws(*samples)), fake("large", "trial"))
        outcome = await b.executor.run(cascade(b, 3, stopping="fixed"), asking(form=form), b.trace)
        assert (outcome.tier, outcome.verdict.votes, outcome.verdict.confidence) == (0, (("case", 3),), 1.0)
        assert outcome.verdict.asked_again == 2
        assert sum(call.samples for call in b.backends["small"].calls) == 5

    async def test_redraws_are_bounded(self, bench, fake):
        form = output_form(["case", "trial"])
        b = bench(fake("small", "hm"), fake("large", "trial"))
        outcome = await b.executor.run(cascade(b, 3, stopping="fixed"), asking(form=form, form_retries=2), b.trace)
        assert sum(call.samples for call in b.backends["small"].calls) == 3 + 2
        assert (outcome.tier, outcome.verdict.value) == (1, "trial")
        assert b.trace.tiers[0].verdict.unreadable == 3

    async def test_fields_vote_by_value(self, bench, fake):
        form = output_form({"n": "number", "kind": ["a", "b"]})
        samples = ['{"n": 1, "kind": "a"}', '{"kind": "A.", "n": "1.0"}', '{"kind": "b", "n": 1}']
        outcome, _ = await vote(bench, fake, samples, asking(form=form), target=0.6)
        assert (outcome.verdict.value, outcome.verdict.confidence) == ({"n": 1, "kind": "a"}, 2 / 3)


class TestFreeText:
    async def test_long_texts_are_an_answer_of_unknown_confidence(self, bench, fake):
        samples = [
            "Rome is a city of many hills and fountains.",
            "Italy's capital is a town of ruins and priests.",
            "x " * 40,
        ]
        outcome, b = await vote(bench, fake, samples, asking(), large="Paris is a city of many bridges and boulevards.")
        first = b.trace.tiers[0].verdict
        assert (first.accepted, first.confidence, first.votes, first.choice, first.unreadable) == (False, None, (), 0, 0)
        assert "--vote-by embedding" in first.warning
        assert (outcome.tier, outcome.verdict.accepted, outcome.verdict.confidence) == (1, False, None)

    async def test_code_does_not_vote_by_its_last_number(self, bench, fake):
        samples = [f"Here it is:\n```python\ndef f(x):\n    return x + {n}\n```" for n in (1, 1, 1)]
        _, b = await vote(bench, fake, samples, asking())
        assert (b.trace.tiers[0].verdict.confidence, b.trace.tiers[0].verdict.votes) == (None, ())

    @pytest.mark.parametrize(
        "prose",
        [
            "Rome was founded in 753 BC. It grew from a town into an empire, and it is the capital of Italy today.",
            "1. Wash the rice.\n2. Boil 2 cups of water.\n3. Cook for 15 minutes.\n4. Serve it, and enjoy your meal.",
            "In 2015 the study began with patients of every age, and its authors conclude, many years later, it was safe.",
        ],
    )
    async def test_prose_does_not_vote_by_a_number_in_it(self, bench, fake, prose):
        _, b = await vote(bench, fake, [prose, prose, prose], asking())
        assert (b.trace.tiers[0].verdict.confidence, b.trace.tiers[0].verdict.votes) == (None, ())

    async def test_a_sentence_that_ends_with_its_number_does(self, bench, fake):
        said = "Nine times two is eighteen dollars. So she makes $18 every day at the farmers' market."
        _, b = await vote(bench, fake, [said, said, said], asking(), stopping="fixed")
        assert b.trace.tiers[0].verdict.votes == (("$18", 3),)

    async def test_answers_at_the_end_of_long_texts_still_vote(self, bench, fake):
        samples = [f"First we multiply nine by two, which gives eighteen. The answer is {n}." for n in (18, 18, 18)]
        outcome, _ = await vote(bench, fake, samples, asking(), stopping="fixed")
        assert (outcome.tier, outcome.verdict.votes) == (0, (("18", 3),))


@pytest.mark.skipif(not ROUTELLM.is_file(), reason=f"recorded answers are not in {DATA}; set WORKFLOW_COMPOSER_DATA")
def test_recorded_answers_without_a_mark_still_vote():
    """99 % of GPT-4's and Mixtral's answers to GSM8K end with their number."""
    kind = AnswerVotes(reader())
    with ROUTELLM.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for model in ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"):
        votes = [kind.read(Sample(row[f"{model}_response"], "stop")) for row in rows]
        assert votes.count(None) / len(rows) < 0.0125


class TestByEmbedding:
    @staticmethod
    def vector(text):
        """The direction of a town, a little off for each writing."""
        off = len(text) % 7 / 100
        return (1.0, off) if "Rome" in text else (off, 1.0)

    async def test_texts_of_one_meaning_are_one_answer(self, bench, fake):
        vectors = fake("vectors", vector=self.vector)
        samples = [PARIS, ROME, f"It is Rome. {ROME}"]
        outcome, _ = await vote(bench, fake, samples, asking(), embedding=vectors, by="embedding", target=0.6)
        assert (outcome.answer.text, outcome.tier, outcome.verdict.confidence) == (ROME, 0, 2 / 3)
        assert not outcome.verdict.warning
        assert sorted(vectors.embedded) == sorted(samples)

    async def test_a_request_may_ask_for_it(self, bench, fake):
        vectors = fake("vectors", vector=self.vector)
        outcome, _ = await vote(bench, fake, [ROME, f"So: {ROME}"], asking(vote_by="embedding"), embedding=vectors)
        assert outcome.verdict.confidence == 1.0

    async def test_the_similarity_decides(self, bench, fake):
        vectors = fake("vectors", vector=lambda text: (1.0, 0.5) if text == ROME else (1.0, 0.0))
        found = []
        for similarity in (0.8, 0.95):
            _, b = await vote(
                bench,
                fake,
                [ROME, PARIS],
                asking(),
                embedding=vectors,
                by="embedding",
                similarity=similarity,
                stopping="fixed",
            )
            found.append(b.trace.tiers[0].verdict.confidence)
        assert found == [1.0, 0.5]

    async def test_tool_calls_still_vote_as_calls(self, bench, fake):
        vectors = fake("vectors", vector=self.vector)
        samples = [city("Rome"), city("Rome")]
        outcome, _ = await vote(bench, fake, samples, asking(tools=WEATHER), embedding=vectors, by="embedding")
        assert (outcome.verdict.confidence, vectors.embedded) == (1.0, [])

    async def test_without_a_model_for_embeddings_it_is_an_error(self, bench, fake):
        with pytest.raises(RoutingError, match="embedding"):
            await vote(bench, fake, [ROME, ROME], asking(), by="embedding")

    async def test_if_the_embedding_fails_the_confidence_is_unknown(self, bench, fake):
        def broken(text):
            raise ServerUnreachable("down")

        vectors = fake("vectors", vector=broken)
        _outcome, b = await vote(bench, fake, [ROME, PARIS], asking(), embedding=vectors, by="embedding")
        assert b.trace.tiers[0].verdict.confidence is None
        assert "could not be grouped" in b.trace.tiers[0].verdict.warning
