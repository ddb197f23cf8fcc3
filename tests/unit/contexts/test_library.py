"""Finding templates: order of search, pins, paths, and errors that say what would have been right."""

import pytest

from tests.unit.contexts.writing import write
from workflow_composer.contexts.library import Library, search_path, shipped
from workflow_composer.errors import ContextError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The working directory's folder and the user's, with the environment that leads there."""
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "user")}
    return tmp_path / "config" / "contexts", tmp_path / "user" / "workflow-composer" / "contexts", environ


def test_the_working_directory_goes_before_the_user_and_the_package(folders):
    """As with profiles."""
    here, users, environ = folders
    name = "house-style"
    assert Library(environ=environ).get(name).source == shipped() / "house-style.md"
    write(users, name, "the user's")
    assert Library(environ=environ).get(name).text == "the user's"
    write(here, name, "the project's")
    assert Library(environ=environ).get(name).text == "the project's"
    assert [path.parent.name for path in Library(environ=environ).files()[name]] == ["contexts", "contexts", "shipped"]


def test_without_a_configuration_directory_the_home_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_path({})[1] == tmp_path / ".config" / "workflow-composer" / "contexts"


@pytest.mark.parametrize("form", ["{}", "./{}", "sub/../{}"])
def test_what_ends_in_md_or_has_a_separator_is_a_path(tmp_path, form):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "mine", "by path")
    found = Library((), base=tmp_path).get(form.format("mine.md"))
    assert found.text == "by path"
    assert Library(()).get(found.pin).text == "by path", "the pin of a path leads there again"


def test_a_path_may_have_an_at_sign(tmp_path):
    path = write(tmp_path / "me@lab", "mine", file="a@b.md")
    assert Library(()).get(str(path)).name == "mine"
    assert Library(()).get(f"{path}@1").version == "1"


def test_a_pin_that_fits_is_found(tmp_path):
    write(tmp_path, "mine", version="2.0")
    library = Library([tmp_path])
    found = library.get("mine")
    for reference in ("mine@2.0", found.pin, f"mine#{found.digest}"):
        assert library.get(reference) is found


def test_a_pinned_version_that_does_not_lie_there_is_an_error(tmp_path):
    path = write(tmp_path, "mine", version="2")
    with pytest.raises(ContextError) as caught:
        Library([tmp_path]).get("mine@1")
    assert f"pinned to version 1, but {path} is version 2" in caught.value.message
    assert "mine@2#" in caught.value.hint


def test_a_text_that_changed_under_its_version_is_an_error(tmp_path):
    write(tmp_path, "mine", "first")
    pin = Library([tmp_path]).get("mine").pin
    write(tmp_path, "mine", "second")
    with pytest.raises(ContextError, match="has changed; its digest is now"):
        Library([tmp_path]).get(pin)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ContextError) as caught:
        Library().get("file-format")
    assert caught.value.hint == "did you mean 'file-formats'?"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "a\0b", "@1", "#12345678", "\n"])
def test_a_name_that_cannot_be_one_is_an_error_like_any_other(name):
    with pytest.raises(ContextError, match="no context named"):
        Library().get(name)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x.md", "a\0b.md", "\ud800.md", "x" * 5000 + ".md", "/", "."])
def test_a_path_that_cannot_be_one_is_an_error_like_any_other(path):
    with pytest.raises(ContextError, match=r"cannot read|no context named"):
        Library(()).get(path)


def test_a_file_whose_head_has_another_name_is_an_error(tmp_path):
    write(tmp_path, "mine", file="yours.md")
    with pytest.raises(ContextError, match="the front matter has name 'mine', but the file is named 'yours'"):
        Library([tmp_path]).get("yours")


def test_a_library_gives_the_same_text_for_as_long_as_it_lives(tmp_path):
    """Requests of one run must not begin differently because a file was edited meanwhile."""
    write(tmp_path, "mine", "first")
    library = Library([tmp_path])
    first = library.get("mine")
    write(tmp_path, "mine", "second")
    assert library.get("mine") is first
