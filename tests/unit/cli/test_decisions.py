"""The log of a batch's decisions."""

from workflow_composer.cli.progress import DecisionLog


def test_nothing_is_written_where_nothing_is_explained(tmp_path):
    """A run without debugging leaves no file."""
    path = tmp_path / "logs" / "decisions.log"
    with DecisionLog(lambda name: path):
        pass
    assert not path.parent.exists()


def test_lines_are_appended_and_the_file_is_named_once(tmp_path, capsys):
    """A second run goes on in the same file."""
    path = tmp_path / "logs" / "decisions.log"
    for word in ("one", "two"):
        with DecisionLog(lambda name: path) as log:
            log.write(f"{word}\n")
            log.write("more\n")
    assert path.read_text() == "one\nmore\ntwo\nmore\n"
    assert capsys.readouterr().err == f"decisions are logged in {path}\n" * 2


def test_a_log_that_cannot_be_written_does_not_end_the_work(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "logs").write_text("")
    with DecisionLog(lambda name: tmp_path / "logs" / name) as log:
        log.write("lost\n")
