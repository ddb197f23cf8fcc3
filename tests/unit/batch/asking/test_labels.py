"""The confusion matrix and the report of wrong rows."""

from __future__ import annotations

from workflow_composer.batch.asking.labels import LabelCounts, Labelled


def counted(*answers):
    return LabelCounts.of(Labelled(row, *one) for row, one in enumerate(answers, 1))


def test_labels_are_rows_and_answers_columns():
    """Also those that only one side has; an answer that could not be read has a column of its own."""
    found = counted(("a", "a", True, ""), ("a", "b", False, ""), ("b", None, False, "?"), ("a", "a", True, ""))
    header, rows = found.matrix()
    assert header[1:] == ["a", "b", "(unreadable)"]
    assert rows == [["a", "2", "1", "·"], ["b", "·", "·", "1"]]
    assert (found.graded, found.right) == (4, 2)


def test_many_different_answers_have_no_matrix():
    """It would not fit."""
    assert counted(*((str(n), str(n), True, "") for n in range(30))).matrix() is None


def test_what_a_model_wrote_cannot_break_the_report():
    """Pipes, line breaks and tags stay in their cell; long texts are cut."""
    found = counted(("a", "b", False, "x | y\n\n| z | <script>" + "w" * 500))
    lines = found.report("T\n# not a title", ["fact"], without=2).splitlines()
    (row,) = [line for line in lines if line.startswith("| 1 |")]
    assert row.replace("\\|", "").count("|") == 5
    assert "<script>" not in row
    assert len(row) < 300
    assert lines[0] == "# T # not a title"
    assert any(line.startswith("2 rows have no answer") for line in lines)


def test_only_the_first_wrong_rows_are_listed():
    """And the report says so."""
    found = counted(*(("a", "b", False, "") for _ in range(80)))
    text = found.report("T", [], without=0)
    assert text.count("| a | b |") == 50
    assert "first 50" in text
