"""The probe: it predicts what it was trained on, is scored on what it was not, and survives being saved."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workflow_composer.batch.planning.features import NAMES, features
from workflow_composer.batch.planning.policies import Questions
from workflow_composer.batch.planning.probe import LARGEST_FILE, Probe, TierPredictor, Training
from workflow_composer.batch.planning.probe_training import FEWEST_QUESTIONS, MANY_QUESTIONS, evaluate, samples_of, train
from workflow_composer.batch.report.statistics import auroc
from workflow_composer.batch.run.records import RowRecord, TierRecord
from workflow_composer.errors import InputError

QUICK = {"dataset": "sums", "resamples": 100, "date": "2025-01-01T00:00:00+00:00"}


def question(number, hardness):
    """Harder ones have more numbers to add."""
    return f"Question {number}: what is " + " plus ".join(str(number * 7 % 90 + at) for at in range(2 + hardness)) + "?"


def samples(count=300, each=1, seed=0, tiers=("small", "large"), signal=True):
    """Labels that depend on how many numbers a question has: the small model's more than the large one's."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        hardness = int(random.integers(0, 8))
        for tier, ease in zip(tiers, (0.9, 1.0), strict=False):
            chance = ease - (0.1 if tier == "small" else 0.04) * hardness if signal else 0.6
            for sample in range(each):
                right = bool(random.random() < chance)
                text = question(number, hardness)
                rows.append((text, tier, sample, right, 20 + 10 * (tier == "large"), 5 + len(text) // 4, chance))
    names = ["question", "model", "sample", "correct", "tokens", "prompt_tokens", "chance"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture(scope="module")
def trained():
    return train(samples(), ["small", "large"], models={"small": "s-1", "large": "l-1"}, digest="abc", **QUICK)


class TestPrediction:
    def test_harder_questions_get_lower_predictions(self, trained):
        """On questions that it has never seen, for either tier."""
        questions = Questions([question(number, hardness) for hardness in (0, 7) for number in range(1000, 1050)])
        for tier in ("small", "large"):
            predicted = trained.success(questions, tier)
            assert predicted[:50].min() > predicted[50:].max()

    def test_predictions_are_near_the_chances_they_stand_for(self, trained):
        """Calibrated: on average within five points, in either half of the questions."""
        fresh = samples(seed=9, tiers=("small",))
        predicted = trained.success(Questions(fresh["question"].tolist()), "small")
        easy = fresh["chance"].to_numpy() > 0.5
        for half in (easy, ~easy):
            assert predicted[half].mean() == pytest.approx(fresh["chance"][half].mean(), abs=0.05)

    @settings(deadline=None)
    @given(st.lists(st.text(), max_size=8))
    def test_every_text_gets_a_probability(self, trained, texts):
        """Whatever it is: strictly between 0 and 1, so that nothing is ever certain."""
        predicted = trained.success(Questions(texts), "small")
        assert predicted.shape == (len(texts),)
        assert ((predicted > 0) & (predicted < 1)).all()

    def test_numpy_predicts_what_scikit_learn_would(self, trained):
        """The saved numbers are the fitted model's, on features within three standard deviations."""
        table = samples().query("model == 'small'")
        matrix = features(pa.array(table["question"], pa.large_string()))
        scaler = StandardScaler().fit(matrix)
        near = np.clip(scaler.transform(matrix), -3, 3)
        model = make_pipeline(LogisticRegression(C=0.1)).fit(near, table["correct"])
        slope, shift = trained.tiers["small"].sigmoid
        score = model.decision_function(near)
        expected = 1 / (1 + np.exp(-(slope * score + shift)))
        np.testing.assert_allclose(trained.tiers["small"].success(matrix), expected, atol=2e-3)

    def test_with_many_questions_calibration_is_isotonic(self):
        """Points that rise, and straight lines between them: as scikit-learn's own curve."""
        probe = train(samples(MANY_QUESTIONS, tiers=("small",)), ["small"], **QUICK)
        points = np.array(probe.tiers["small"].isotonic)
        assert (np.diff(points, axis=0) >= 0).all()
        assert 0 < points[0, 1] < points[-1, 1] < 1
        curve = IsotonicRegression(out_of_bounds="clip").fit(points[:, 0], points[:, 1])
        scores = np.linspace(points[0, 0] - 1, points[-1, 0] + 1, 200)
        np.testing.assert_allclose(probe.tiers["small"].calibrated(scores), curve.predict(scores))

    def test_predicting_needs_no_scikit_learn(self, trained, tmp_path):
        """A child Python without it loads a probe and predicts."""
        path = tmp_path / "probe.json"
        trained.save(path)
        code = f"""
import sys
sys.modules["sklearn"] = None
from workflow_composer.batch.planning.probe import Probe
from workflow_composer.batch.report.statistics import auroc
from workflow_composer.batch.planning.policies import Questions
print(Probe.load({str(path)!r}).success(Questions(["What is 2 plus 2?"]), "small")[0])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert float(done.stdout) == trained.success(Questions(["What is 2 plus 2?"]), "small")[0]


class TestTraining:
    def test_the_same_labels_make_the_same_probe(self, trained):
        """In whatever order they come, in either kind of table."""
        shuffled = samples().sample(frac=1, random_state=1)
        again = train(
            pa.Table.from_pandas(shuffled), ["small", "large"], models=trained.training.models, digest="abc", **QUICK
        )
        assert again == trained

    def test_samples_of_one_question_weigh_as_much_as_one(self):
        """Copies of every sample change nothing but their number."""
        once = samples(each=2)
        twice = pd.concat([once, once])
        one, two = (train(table, ["small"], **QUICK).tiers["small"] for table in (once, twice))
        assert (one.samples, two.samples) == (600, 1200)
        assert one.model_copy(update={"samples": 1200}) == two

    def test_a_question_that_is_right_now_and_then_counts_as_such(self):
        """Four samples of five are not five of five: predictions have the samples' mean."""
        table = samples(each=5, tiers=("large",))
        predicted = train(table, ["large"], **QUICK).success(Questions(table["question"].tolist()), "large")
        assert predicted.mean() == pytest.approx(table["correct"].mean(), abs=0.01)

    def test_it_says_what_it_was_trained_on(self, trained):
        """Data set, digest, rows, models, versions."""
        training = trained.training
        assert (training.dataset, training.digest, training.rows, training.models["small"]) == ("sums", "abc", 300, "s-1")
        assert set(training.libraries) == {"numpy", "scikit-learn", "workflow-composer"}
        assert trained.tiers["small"].questions == trained.tiers["small"].samples == 300

    def test_it_keeps_the_averages_of_the_tokens(self, trained):
        """For estimates of what a plan costs."""
        assert trained.tokens.answers == {"small": 20.0, "large": 30.0}
        assert trained.tokens.per_character == pytest.approx(0.25, abs=0.02)
        assert trained.tokens.per_prompt == pytest.approx(5, abs=1)

    @pytest.mark.parametrize("missing", [["tokens"], ["tokens", "prompt_tokens"]])
    def test_without_tokens_there_are_no_averages(self, missing):
        """Not zero."""
        assert train(samples(60).drop(columns=missing), ["small"], **QUICK).tokens is None

    def test_too_few_questions_are_refused(self):
        """With how many there are."""
        with pytest.raises(InputError, match=f"at least {FEWEST_QUESTIONS} .* has {FEWEST_QUESTIONS - 1}"):
            train(samples(FEWEST_QUESTIONS - 1, each=4), ["small"], **QUICK)

    def test_a_tier_without_labels_is_refused(self):
        """Naming those that have some."""
        with pytest.raises(InputError, match=r"'huge' has 0.*small, large"):
            train(samples(60), ["huge"], **QUICK)

    @pytest.mark.parametrize("kind", ["right", "wrong"])
    def test_labels_of_one_kind_make_a_constant_that_says_so(self, kind):
        """There is nothing to tell questions apart by; four of the other kind do not change that."""
        table = samples(100, tiers=("small",))
        table["correct"] = kind == "right"
        table.loc[:3, "correct"] = kind != "right"
        tier = train(table, ["small"], **QUICK).tiers["small"]
        assert tier.constant == pytest.approx(96.5 / 101 if kind == "right" else 4.5 / 101)
        assert kind in tier.note
        assert tier.scores is None
        assert tier.success(np.zeros((3, len(NAMES)), np.float32)).tolist() == [tier.constant] * 3

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (pd.DataFrame({"question": ["a"]}), "lack the columns model, correct"),
            (pa.table({"model": ["a"], "correct": [True]}), "lack the columns question"),
            (pd.DataFrame({"question": ["a"], "model": ["b"], "correct": ["yes"]}), "true or false"),
            ([1, 2], "lack the columns question"),
        ],
    )
    def test_tables_of_another_form_are_refused(self, table, message):
        """Naming what is missing."""
        with pytest.raises(InputError, match=message):
            train(table, ["b"], **QUICK)

    def test_samples_that_were_not_graded_are_left_out(self):
        """A missing label is unknown, not wrong."""
        table = samples(60)
        ungraded = table.assign(correct=None)
        assert train(pd.concat([table, ungraded]), ["small"], **QUICK) == train(table, ["small"], **QUICK)


class TestScores:
    def test_a_real_signal_shows_out_of_sample(self, trained):
        """Better than chance, and than a constant."""
        scores = trained.tiers["small"].scores
        assert scores.auroc["probe"].low > 0.6
        assert scores.brier["probe"].high < scores.brier["constant"].high
        assert scores.auroc["constant"].value == 0.5
        lead = scores.auroc["probe"].value - scores.auroc["length"].value
        assert scores.gain["auroc"].value == pytest.approx(lead)

    def test_what_length_cannot_tell_shows_as_a_gain(self):
        """Questions of one length, in which one word tells the hard ones."""
        random = np.random.default_rng(0)
        rows = []
        for number in range(100, 400):
            word, chance = (("twice", 0.2), ("apple", 0.8))[number % 2]
            rows.append((f"Take {number} {word} and go.", "small", bool(random.random() < chance)))
        table = pd.DataFrame(rows, columns=["question", "model", "correct"])
        scores = train(table, ["small"], **QUICK).tiers["small"].scores
        assert scores.gain["auroc"].low > 0.2
        assert scores.gain["brier"].low > 0
        assert scores.auroc["length"].low < 0.55

    def test_labels_by_chance_show_none(self):
        """A probe that learnt them by heart would seem to predict them: the scores are of questions held out."""
        scores = train(samples(400, tiers=("small",), signal=False), ["small"], **QUICK).tiers["small"].scores
        assert scores.auroc["probe"].low < 0.5
        assert scores.brier["probe"].value >= scores.brier["constant"].value - 0.005

    def test_scores_are_of_questions_that_were_held_out(self):
        """Of those that it was trained on, it knows more."""
        table = samples(80, tiers=("small",))
        probe = train(table, ["small"], **QUICK)
        known = auroc(probe.success(Questions(table["question"].tolist()), "small"), table["correct"].to_numpy(float))
        assert known - probe.tiers["small"].scores.auroc["probe"].value > 0.03

    def test_it_can_be_scored_on_another_data_set(self, trained):
        """Against the rate of the data that it was trained on; a tier without labels there is left out."""
        scores = evaluate(trained, samples(300, seed=7, tiers=("small",)), resamples=100)
        assert set(scores) == {"small"}
        assert set(scores["small"].brier) == {"probe", "constant"}
        assert scores["small"].auroc["probe"].low > 0.6
        assert scores["small"].brier["probe"].value < scores["small"].brier["constant"].value


class TestRecords:
    def test_graded_samples_of_a_run_become_labels(self):
        """Every tier's, those of rejected ones too; tokens are averages per sample."""
        small = TierRecord("small", "s", 2, (("4", 2),), 0, 1.0, False, "", 10, 40, 0.0, 0.0, (True, False))
        large = TierRecord("large", "l", 1, (("5", 1),), 0, None, True, "", 12, 30, 0.0, 0.0, (True,))
        ungraded = TierRecord("large", "l", 1, (("5", 1),), 0, None, True, "", 12, 30, 0.0, 0.0)
        records = [
            RowRecord(at, str(at), "r", "5", None, True, 1, tiers, True, 22, 70, 0.0, 0.0)
            for at, tiers in enumerate([(small, large), (ungraded,)])
        ]
        table = samples_of(records, ["What is 2 plus 3?", "And 2 plus 2?"].__getitem__)
        assert table.values.tolist() == [
            ["What is 2 plus 3?", "small", True, 20.0, 10.0],
            ["What is 2 plus 3?", "small", False, 20.0, 10.0],
            ["What is 2 plus 3?", "large", True, 30.0, 12.0],
        ]


class TestMatching:
    def test_a_tier_that_it_does_not_know_is_refused(self, trained):
        """With those it knows."""
        with pytest.raises(InputError, match="knows small, large, not medium"):
            trained.check(["small", "medium"])
        with pytest.raises(InputError, match="not medium"):
            trained.success(Questions(["a"]), "medium")

    def test_another_model_under_the_same_name_is_refused(self, trained):
        """What one small model can do says nothing about another."""
        with pytest.raises(InputError, match="trained with model s-1 as tier 'small', which is now s-2"):
            trained.check(["small"], {"small": "s-2"})
        trained.check(["small", "large"], {"small": "s-1"})


class TestFile:
    def test_a_saved_probe_is_the_same_when_it_is_loaded(self, trained, tmp_path):
        """To the last digit; and nothing is left beside it."""
        trained.save(tmp_path / "probe.json")
        assert Probe.load(tmp_path / "probe.json") == trained
        assert [path.name for path in tmp_path.iterdir()] == ["probe.json"]

    def test_it_is_plain_json_without_nan(self, trained, tmp_path):
        """That any program can read."""
        path = tmp_path / "probe.json"
        trained.save(path)
        data = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert data["training"]["dataset"] == "sums"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data.update(format="another"), "format"),
            (lambda data: data.update(code="import os"), "code"),
            (lambda data: data["tiers"]["small"]["coefficients"].pop(), "numbers each"),
            (lambda data: data["tiers"]["small"]["scale"].__setitem__(0, 0.0), "scale"),
            (lambda data: data["tiers"]["small"]["coefficients"].__setitem__(0, float("inf")), "finite"),
            (lambda data: data["tiers"]["small"].update(sigmoid=None), "exactly one"),
            (lambda data: data["tiers"]["small"].update(sigmoid=None, isotonic=[[1, 0.5], [0, 0.6]]), "ascending"),
            (lambda data: data["tiers"]["small"].update(sigmoid=None, isotonic=[[0, 1.5]]), "less than or equal to 1"),
            (lambda data: data.update(feature_version=0), "features of another version"),
            (lambda data: data["feature_names"].__setitem__(0, "bytes"), "features of another version"),
        ],
    )
    def test_a_file_that_was_changed_is_refused(self, trained, tmp_path, change, message):
        """Naming the file and the place."""
        data = trained.model_dump(mode="json")
        change(data)
        path = tmp_path / "probe.json"
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=rf"(?s)probe\.json.*{message}"):
            Probe.load(path)

    @pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04K\x01.", b"[]", b"null", b"\xff\xfe"])
    def test_what_is_no_probe_is_refused(self, tmp_path, content):
        """A pickle, too: it is not even looked at as one."""
        path = tmp_path / "probe.json"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"not a probe|invalid probe"):
            Probe.load(path)

    def test_a_missing_or_enormous_file_is_refused(self, tmp_path):
        """Without reading all of it."""
        with pytest.raises(InputError, match="No such file"):
            Probe.load(tmp_path / "probe.json")
        path = tmp_path / "large.json"
        with path.open("wb") as file:
            file.truncate(LARGEST_FILE + 1)
        with pytest.raises(InputError, match="larger than"):
            Probe.load(path)

    def test_a_predictor_cannot_be_changed(self, trained):
        """It may be shared."""
        with pytest.raises(ValidationError):
            trained.tiers["small"].intercept = 1.0


def test_a_probe_can_be_written_by_hand():
    """Constants for tiers whose rate is known from elsewhere."""
    training = Training(dataset="none", rows=0, date="2025-01-01")
    probe = Probe(training=training, tiers={"small": TierPredictor(constant=0.7, questions=0, samples=0)})
    assert probe.success(Questions(["a", "b"]), "small").tolist() == [0.7, 0.7]
