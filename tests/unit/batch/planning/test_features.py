"""What is counted in questions: against a plain reading of each text, and whatever bytes a column holds."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workflow_composer.batch.planning.features import _BYTES, NAMES, VERSION, WORD_GROUPS, features

WORDS = ["How", "many", "TWICE", "probability", "probably", "it", "twelve", "12", "3.5", "1,450", "0.25", "x-y", "-3"]
WORDS += ["\\frac{1}{2}", "$x^2$", "(a+b)", "?", ".", "...", "!", ","]
WORDS += ["\n", "é", "ёж", "数学", "🙂", "\0", "#", "a1b", "@x"]
PROSE = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=30).map(" ".join)
TEXTS = st.one_of(PROSE, st.text())


def counts(texts):
    """The features as counts again, by name: arrays of shape (n,)."""
    matrix = np.expm1(features(pa.array(texts, pa.large_string())).astype(np.float64))
    return {name: matrix[:, at] for at, name in enumerate(NAMES)}


def counted(text):
    """A plain reading of one text, character by character and by regular expressions."""
    letter = r"A-Za-z\x80-\U0010ffff"
    words = re.findall(rf"(?<![\\{letter}])[{letter}]+", text)
    first = [re.match(r"[A-Za-z]*", word)[0].lower()[:8] for word in words]
    groups, taken = {}, set()
    for name, listed in WORD_GROUPS.items():
        cut = {word[:8] for word in listed.split()} - taken
        taken |= cut
        groups[name] = sum(word in cut for word in first)
    runs = re.findall(r"[0-9]+", text)
    return {
        "characters": len(text),
        "words": len(words),
        "capitalised": sum("A" <= word[0] <= "Z" for word in words),
        "numbers": len(re.findall(r"(?<![0-9.!])[0-9]", text)),
        "decimals": len(re.findall(r"(?<=[.!])[0-9]", text)),
        "digits": sum(map(len, runs)),
        "longest_number": max(map(len, runs), default=0),
        "sentences": len(re.findall(r"(?<![.!])[.!]", text)),
        "question_marks": text.count("?"),
        "operators": len(re.findall(r"[+*/^=<>%]", text)),
        "minus_signs": len(re.findall(r"(?<![A-Za-z])-", text)),
        "latex_commands": len(re.findall(rf"\\[{letter}]", text)),
        "dollars": text.count("$"),
        "brackets": len(re.findall(r"[(\[{]", text)),
        "lines": len(re.findall(r"[\n\r\v\f]", text)),
        "clauses": len(re.findall(r"[,;:]", text)),
        "foreign": sum(character > "\x7f" for character in text),
        "word_length": len(text) / len(words) if words else 0.0,
    } | groups


class TestCounts:
    @settings(deadline=None)
    @given(st.lists(TEXTS.filter(str.isascii), max_size=8))
    @example(["cat", "Dogs", "", "tw", "ice twice"])
    @example(["a\\", "frac", "3.", "5", "12", "34"])
    def test_they_are_what_a_plain_reading_finds(self, texts):
        """Every feature but the loose symbols, row by row, whatever stands in the rows beside."""
        found = counts(texts)
        for row, text in enumerate(texts):
            expected = counted(text)
            assert {name: pytest.approx(float(found[name][row]), rel=1e-5, abs=1e-5) for name in expected} == expected

    @settings(deadline=None)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
    def test_characters_are_characters_in_any_script(self, texts):
        """Not bytes; and those that are not ASCII are known."""
        found = counts(texts)
        assert found["characters"].round().tolist() == [len(text) for text in texts]
        assert found["foreign"].round().tolist() == [sum(c > "\x7f" for c in text) for text in texts]

    def test_words_of_a_group_are_found_by_their_first_eight_letters(self):
        """In capitals or not; and no other words that begin alike."""
        chance = counts(["Probability", "PROBABIL", "probabilistic", "probable", "dice dicey random"])["chance"]
        assert chance.round().tolist() == [1, 1, 1, 0, 2]

    def test_the_numbers_of_a_sum(self):
        """How many, how long, and after a point."""
        found = counts(["Add 12, 3.75 and 10000."])
        names = ("numbers", "decimals", "digits", "longest_number", "sentences", "capitalised")
        assert [round(found[name][0]) for name in names] == [3, 1, 10, 5, 2, 1]


class TestColumns:
    @settings(deadline=None)
    @given(st.lists(TEXTS, max_size=10), st.integers(0, 10), st.integers(0, 10))
    def test_rows_do_not_touch_each_other(self, texts, start, length):
        """A slice of a column gives the slice of its features, although it shares its bytes."""
        whole = pa.array(texts, pa.large_string())
        np.testing.assert_array_equal(features(whole.slice(start, length)), features(whole)[start : start + length])

    def test_pieces_of_bytes_are_cut_between_rows(self):
        """Long rows, empty ones and many of them, over several pieces."""
        texts = ["one two 3 " * 2000, "", "twice?", "x" * (3 * _BYTES), ""] * 30 + [""] * 10_000 + ["four"]
        whole = features(pa.array(texts, pa.large_string()))
        alone = {text: features(pa.array([text], pa.large_string()))[0] for text in set(texts)}
        np.testing.assert_array_equal(whole, np.stack([alone[text] for text in texts]))

    @pytest.mark.parametrize("texts", [[], [""], ["", "", ""]])
    def test_empty_columns_and_texts_have_no_counts(self, texts):
        """All zero."""
        matrix = features(pa.array(texts, pa.large_string()))
        assert matrix.shape == (len(texts), len(NAMES))
        assert not matrix.any()

    def test_every_feature_is_finite(self):
        """Of bytes that are in no alphabet, too."""
        texts = ["".join(map(chr, range(0x250))), "\\" * 100, "9" * 400, "\U0010ffff" * 50]
        assert np.isfinite(features(pa.array(texts, pa.large_string()))).all()


def test_a_change_of_the_features_needs_another_version():
    """Probes are saved with the version: if this sum changes, so must `VERSION`, and this test."""
    texts = [
        "How many of the 1,450 apples are left, if Omar eats twice as many as 3.5 of his friends?",
        "Let $x^2 - 3x + \\frac{1}{2} = 0$. Prove that (x) is positive; find the greatest integer!",
        "Il y a combien de pommes à l'école ? 数学は楽しい。",
    ]
    matrix = features(pa.array(texts, pa.large_string())).astype(np.float64)
    weights = np.arange(1, len(NAMES) + 1) * np.arange(1, len(texts) + 1)[:, None]
    assert VERSION == 1
    assert float((matrix * weights).sum()) == pytest.approx(1034.073, abs=0.01)
