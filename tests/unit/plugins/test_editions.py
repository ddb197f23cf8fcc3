"""The code of a plugin stays as it was loaded, whatever happens to its files; and a new edition disturbs no old one."""

import gc
import pickle
import sys
import weakref

import pytest

from workflow_composer.errors import PluginError
from workflow_composer.plugins.editions import Edition


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package that imports its parts early, late, absolutely and relatively; return the function that writes it."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(mark):
        folder = tmp_path / "wc_sample"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text(f"from .early import MARK\nOWN = {mark!r}\n")
        (folder / "early.py").write_text(f"MARK = {mark!r}\n")
        (folder / "late.py").write_text(f"MARK = {mark!r}\nfrom wc_sample import OWN\n")
        (folder / "main.py").write_text(
            "import dataclasses\nimport wc_sample.early as early\nfrom . import early as again\n"
            "@dataclasses.dataclass\nclass Thing:\n    mark: 'str' = early.MARK\n"
            "def late():\n"
            "    from wc_sample.late import MARK, OWN\n    from . import late\n    import wc_sample.late\n"
            "    return MARK, OWN, late.MARK, wc_sample.late.MARK, again.MARK\n"
        )
        return folder

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "wc_sample":
            del sys.modules[name]


def test_an_old_edition_imports_its_own_parts_after_the_files_have_changed(package):
    """Late imports too, in every spelling."""
    package("one")
    one = Edition.of_module("wc_sample.main")
    old = one.run("wc_sample.main")
    one.show()
    package("two")
    two = Edition.of_module("wc_sample.main")
    new = two.run("wc_sample.main")
    two.show()
    assert set(old.late()) == {"one"}
    assert set(new.late()) == {"two"}
    assert (old.Thing().mark, new.Thing().mark) == ("one", "two")
    assert sys.modules["wc_sample.main"] is new
    assert sys.modules["wc_sample.late"].MARK == "two"


def test_running_an_edition_shows_nothing_of_it(package):
    """Until it is shown, importing gives what it gave before."""
    package("one")
    one = Edition.of_module("wc_sample")
    one.run("wc_sample")
    one.show()
    package("two")
    Edition.of_module("wc_sample").run("wc_sample.main")
    import wc_sample

    assert wc_sample.OWN == "one"
    assert "wc_sample.main" not in sys.modules


def test_an_edition_that_fails_leaves_what_is_there(package):
    """Its first modules ran before the failure."""
    package("one")
    one = Edition.of_module("wc_sample")
    one.run("wc_sample")
    one.show()
    folder = package("two")
    (folder / "main.py").write_text("raise ValueError('no')\n")
    with pytest.raises(ValueError, match="no"):
        Edition.of_module("wc_sample").run("wc_sample.main")
    assert sys.modules["wc_sample"].OWN == "one"
    assert sys.modules["wc_sample.early"].MARK == "one"


def test_a_package_that_was_imported_before_is_taken_as_it_is(package):
    """Its classes are the same for the program that imported it."""
    package("one")
    import wc_sample

    assert Edition.of_module("wc_sample.main").shared().run("wc_sample") is wc_sample


def test_the_same_code_is_one_edition(package):
    """Two hosts of one program share its modules; other code is not shared."""
    package("one")
    one = Edition.of_module("wc_sample")
    one.run("wc_sample")
    one.show()
    assert Edition.of_module("wc_sample").shared() is one
    package("two")
    two = Edition.of_module("wc_sample")
    assert two.shared() is two
    assert two.digest != one.digest


def test_an_edition_travels_to_another_process(package):
    """As its sources."""
    package("one")
    edition = Edition.of_module("wc_sample.main")
    package("two")
    copy = pickle.loads(pickle.dumps(edition))
    assert copy.digest == edition.digest
    assert set(copy.run("wc_sample.main").late()) == {"one"}


def test_an_edition_that_nobody_uses_leaves_the_memory(package):
    """With all of its modules."""
    package("one")
    one = Edition.of_module("wc_sample.main")
    gone = [weakref.ref(one.run(name)) for name in ("wc_sample", "wc_sample.main", "wc_sample.early")]
    one.show()
    package("two")
    two = Edition.of_module("wc_sample.main")
    two.run("wc_sample.main")
    two.show()
    del one
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_part_of_a_namespace_package_is_read_alone(tmp_path, monkeypatch):
    """The rest of the namespace belongs to others."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wc_space" / "mine").mkdir(parents=True)
    (tmp_path / "wc_space" / "theirs").mkdir()
    (tmp_path / "wc_space" / "theirs" / "__init__.py").write_text("1 / 0")
    (tmp_path / "wc_space" / "mine" / "__init__.py").write_text("from wc_space.mine.part import X")
    (tmp_path / "wc_space" / "mine" / "part.py").write_text("X = 1")
    edition = Edition.of_module("wc_space.mine.part")
    assert edition.root == "wc_space.mine"
    assert edition.run("wc_space.mine").X == 1


@pytest.mark.parametrize("what", ["missing.py", "folder"])
def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path, what):
    """With what to name instead."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(PluginError, match=what):
        Edition.of_file(tmp_path / what)


def test_compiled_code_has_no_edition():
    """It cannot be loaded twice."""
    assert Edition.of_module("_ctypes") is None
