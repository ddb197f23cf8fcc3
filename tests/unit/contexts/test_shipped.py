"""The templates that come with the package."""

import re

import pytest

from workflow_composer.contexts.library import Library, shipped

NAMES = ("file-formats", "house-style", "tool-conventions")


def test_there_are_three_of_them():
    assert tuple(sorted(path.stem for path in shipped().iterdir())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_page_or_two_of_plain_text(name):
    """Long enough to be worth caching, short enough for every model; ASCII, which no tokenizer treats unkindly."""
    found = Library([shipped()]).get(name)
    assert 1000 <= found.tokens <= 2000
    assert found.text.isascii()
    assert len(found.description) <= 120
    assert found.text.startswith("# ")
    assert not re.search(r"[ \t]$", found.text, re.MULTILINE)


def test_a_changed_text_has_a_new_version():
    """Who has pinned a version must not get another text: change these digests together with the version in the head."""
    found = {name: Library([shipped()]).get(name) for name in NAMES}
    assert {template.pin for template in found.values()} == {
        "file-formats@1#d3b582a55229",
        "house-style@1#e12174c2158d",
        "tool-conventions@1#75e0638dfcdc",
    }
