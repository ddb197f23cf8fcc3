"""Reading one template: what its text is, and what is said where it is faulty."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.contexts.writing import write
from workflow_composer.contexts.library import LARGEST, Template
from workflow_composer.errors import ContextError

HEAD = b"---\nname: mine\nversion: 1\ndescription: For tests.\n---\n"


def read(folder, data):
    path = folder / "mine.md"
    path.write_bytes(data)
    return Template.read(path)


def test_a_template_has_a_head_and_a_text(tmp_path):
    found = read(tmp_path, HEAD + b"\n# Title\n\nText.\n")
    assert (found.name, found.version, found.description) == ("mine", "1", "For tests.")
    assert found.text == "# Title\n\nText."
    assert found.digest == hashlib.sha256(b"# Title\n\nText.").hexdigest()
    assert found.pin == f"mine@1#{found.digest[:12]}"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20), max_size=6))
def test_line_ends_and_marks_of_an_editor_do_not_change_the_text(tmp_path_factory, lines):
    """Unix, Windows and old Macintosh line ends, and a byte-order mark: the same bytes are sent."""
    folder = tmp_path_factory.mktemp("t")
    texts = set()
    for end in (b"\n", b"\r\n", b"\r"):
        for mark in (b"", b"\xef\xbb\xbf"):
            body = end.join([b"Begin", *(line.encode() for line in lines), b"end."])
            texts.add(read(folder, mark + HEAD.replace(b"\n", end) + end + body + end * 2).text)
    assert len(texts) == 1
    assert "\r" not in texts.pop()


def test_blank_lines_around_the_text_go_and_its_own_indentation_stays(tmp_path):
    assert read(tmp_path, HEAD + b"\n  \n    indented\n\n\nend  \n\n").text == "    indented\n\n\nend"


def test_a_rule_in_the_text_does_not_end_the_head(tmp_path):
    assert read(tmp_path, HEAD + b"above\n\n---\n\nbelow").text == "above\n\n---\n\nbelow"


def test_a_version_is_the_text_that_stands_there(tmp_path):
    """YAML would make 1.1 of it, which is another version."""
    assert Template.read(write(tmp_path, "mine", version="1.10")).version == "1.10"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Only text.", "mine.md:1: the file does not start with front matter"),
        (b"---\nname: mine\n", "does not start with front matter"),
        (b"---\nname: [\n---\ntext", "mine.md:3: the front matter is not valid YAML"),
        (b"---\n- a list\n---\ntext", "the front matter must have name, version, description"),
        (b"---\nname: mine\nversion: 1\n---\ntext", "the front matter must have name, version, description"),
        (b"---\nname: mine\nversion: [1]\ndescription: d\n---\ntext", "each as text"),
        (HEAD.replace(b"---\n", b"---\nauthor: me\n", 1) + b"text", "unknown key 'author'"),
        (HEAD.replace(b"mine", b"my context") + b"text", "name 'my context'"),
        (HEAD.replace(b"version: 1", b"version: 1/2") + b"text", "version '1/2'"),
        (HEAD + b"\n \n", "no text after the front matter"),
        (HEAD + b"\xff", "not UTF-8: byte"),
        (b"x" * (LARGEST + 1), "has more than"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, data, message):
    with pytest.raises(ContextError) as caught:
        read(tmp_path, data)
    assert message in caught.value.message
    assert str(tmp_path / "mine.md") in caught.value.message


def test_a_file_that_is_not_there_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ContextError, match=r"cannot read '.*none\.md': No such file"):
        Template.read(tmp_path / "none.md")
