"""Finding a profile, and files that are no profile: never anything but a `ConfigError`."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.paths import PROFILES
from workflow_composer.config.strategy import PRESETS, StrategyConfig, profiles, search_path, shipped
from workflow_composer.config.yaml_source import LIMIT
from workflow_composer.errors import ConfigError, ProfileError, ProfileNotFound

MINIMAL = "profile_name: {}\n"


@pytest.fixture
def written(tmp_path):
    """Write a file and return the faults of loading it, without its name."""

    def write(data):
        path = tmp_path / "p.yaml"
        path.write_bytes(data)
        with pytest.raises(ProfileError) as caught:
            StrategyConfig.from_yaml(path)
        return [line.removeprefix(str(path)) for line in caught.value.problems]

    return write


# ------------------------------------------------------------------------------------------------------------- finding


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory and a user's configuration directory."""
    here, home = tmp_path / "work", tmp_path / "config"
    for folder in (here / "config" / "strategies", home / "workflow-composer" / "strategies"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    return here / "config" / "strategies", home / "workflow-composer" / "strategies", {"XDG_CONFIG_HOME": str(home)}


def test_working_directory_comes_before_the_users_before_the_packages(places):
    """A name is looked for in three places; the first that has it wins."""
    here, user, environ = places
    assert StrategyConfig.load("cloud_only", environ=environ).profile_name == "cloud_only"
    (user / "cloud_only.yml").write_text(MINIMAL.format("the_users"))
    assert StrategyConfig.load("cloud_only", environ=environ).profile_name == "the_users"
    (here / "cloud_only.yaml").write_text(MINIMAL.format("this_project"))
    assert StrategyConfig.load("cloud_only", environ=environ).profile_name == "this_project"


def test_profiles_lists_every_name_once_with_the_file_that_wins(places):
    """The list is what `load` would find."""
    here, user, environ = places
    (user / "mine.yml").write_text(MINIMAL.format("mine"))
    (here / "cloud_only.yaml").write_text(MINIMAL.format("this_project"))
    found = profiles(search_path(environ))
    assert set(found) == {*PRESETS, "mine"}
    assert found["cloud_only"] == Path("config/strategies/cloud_only.yaml")


def test_the_users_folder_has_a_default():
    """Without XDG_CONFIG_HOME it is ~/.config."""
    assert search_path({})[1] == Path("~/.config/workflow-composer/strategies").expanduser()


def test_shipped_profiles_lie_in_the_package_or_beside_it(tmp_path):
    """A wheel has them inside; a source checkout in config/strategies."""
    package = tmp_path / "workflow_composer"
    package.mkdir()
    assert shipped(package) == tmp_path / "config" / "strategies"
    (package / "strategies").mkdir()
    assert shipped(package) == package / "strategies"
    assert shipped() == PROFILES


def test_a_separator_or_suffix_makes_a_path(places):
    """A path is taken as it is and searched for nowhere."""
    here, _, environ = places
    (here.parent / "x.yaml").write_text(MINIMAL.format("by_path"))
    for path in ("config/x.yaml", Path("config/x.yaml"), str(here.parent / "x.yaml")):
        assert StrategyConfig.load(path, environ=environ).profile_name == "by_path"
    for path in ("x.yaml", "./cloud_only", Path("cloud_only")):
        with pytest.raises(ProfileNotFound, match="no profile at"):
            StrategyConfig.load(path, environ=environ)


def test_a_missing_name_lists_the_places_and_the_nearest_name(places):
    """The error says where was looked, and what was perhaps meant."""
    environ = places[2]
    with pytest.raises(ProfileNotFound, match="did you mean 't4_hybrid'") as caught:
        StrategyConfig.load("t4_hybird", environ=environ)
    for folder in search_path(environ):
        assert str(folder) in str(caught.value)
    with pytest.raises(ProfileNotFound, match="available: cloud_only, development"):
        StrategyConfig.load("xyz", environ=environ)
    with pytest.raises(ProfileNotFound, match="available: none"):
        StrategyConfig.load("xyz", search=[])


@pytest.mark.parametrize("name", ["", "\0", "a\nb", "x" * 5000])
def test_an_odd_name_is_not_found(name):
    """No name makes loading fail in another way."""
    with pytest.raises(ConfigError):
        StrategyConfig.load(name)


# ---------------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": is empty"),
        (b"# only a comment\n", ": is empty"),
        (b"---\n", ": is empty"),
        (b"null\n", ": is empty"),
        (b"- a\n- b\n", ": has a list at the top"),
        (b"just text\n", ": has 'just text' at the top"),
        (b"profile_name: p\ndescription: caf\xe9\n", ":2: byte 0xe9 is not UTF-8"),
        ("profile_name: p\n".encode("utf-16"), ": is encoded in UTF-16"),
        (b"\x7fELF\0\0\0", ": is a binary file"),
        (b"profile_name: p\ndescription: a\x07b\n", ":2: character U+0007 is not allowed"),
        (b"profile_name: p\nmodels: {a: [}\n", ":2: invalid YAML: "),
        (b"profile_name: p\n\tmodels: {}\n", ":2: invalid YAML: "),
        (b"profile_name: p\nmodels: {\n", ":3: invalid YAML: "),
        (b"a: 1\n---\nb: 2\n", ":2: invalid YAML: expected a single document"),
        (b"%YAML 9.9\n---\na: b\n", ":1: invalid YAML: found incompatible YAML document"),
        (b'description: "\\UFFFFFFFF"\n', "invalid YAML"),
        (b"a: " + b"[" * 500, ":1: invalid YAML: nested too deeply"),
        (b"a: " + b"{b: " * 500, ":1: invalid YAML: nested too deeply"),
        (b"- " * 500, ":1: invalid YAML: nested too deeply"),
        (b"a: [" + b"x," * 30_000 + b"]", ":1: invalid YAML: more than 20,000 keys and values"),
        (b"#" * (LIMIT + 1), ": is larger than the limit of 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_profile_says_why(written, data, message):
    """One line: the file, the line where there is one, and what is wrong."""
    found = written(data)
    assert len(found) == 1, found
    assert message in found[0]


def test_nested_aliases_do_not_grow(written):
    """Nine levels of nine aliases each would be 400 million items; each alias is one fault instead."""
    text = "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 9))
    found = written(text.encode())
    assert sum("YAML aliases" in line for line in found) == 72


def test_a_byte_order_mark_is_skipped(tmp_path):
    """Windows editors write one."""
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbfprofile_name: p\r\nallow_cloud: false\r\n")
    assert not StrategyConfig.from_yaml(path).allow_cloud


def test_a_directory_is_no_profile(tmp_path):
    """It says so."""
    with pytest.raises(ProfileError, match=f"{tmp_path}: is a directory"):
        StrategyConfig.load(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    """A named pipe would block for ever."""
    os.mkfifo(tmp_path / "p.yaml")
    with pytest.raises(ProfileError, match="is not a regular file"):
        StrategyConfig.load(tmp_path / "p.yaml")


def test_a_file_without_permission_says_so(tmp_path):
    """Root may read everything, so the test gives up its rights for a moment."""
    path = tmp_path / "p.yaml"
    path.write_text("profile_name: p\n")
    path.chmod(0)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(65534)
        with pytest.raises(ProfileError, match="cannot be read: permission denied"):
            StrategyConfig.load(path)
    finally:
        os.seteuid(me)


def test_a_loop_of_links_says_so(tmp_path):
    """Any error of the system becomes a line."""
    (tmp_path / "a.yaml").symlink_to(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    with pytest.raises(ProfileError, match="cannot be read: "):
        StrategyConfig.load(tmp_path / "a.yaml")


# ------------------------------------------------------------------------------------------------- whatever the bytes are

KEYS = (
    *StrategyConfig.model_fields,
    "primary",
    "secondary",
    "m",
    "backend",
    "base_url",
    "path",
    "model",
    "cost",
    "endpoint",
    "api_key",
)
WORDS = (
    *KEYS,
    "vllm",
    "openai",
    "cloud",
    "*",
    "http://h/v1",
    "${X}",
    "yes",
    "1:30",
    "0x1f",
    "-1",
    "1e400",
    ".nan",
    "2024-01-01",
    "",
)
PIECES = (
    *WORDS,
    ": ",
    "\n",
    "\n  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "!!str ",
    "!x ",
    "'",
    '"',
    "|\n",
    "? ",
    "---\n",
    "#",
    "%",
)
SHIPPED = [path.read_bytes() for path in sorted(PROFILES.glob("*.yaml"))]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw):
    """A shipped profile with a piece replaced."""
    data = draw(st.sampled_from(SHIPPED))
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 80)))
    return data[:start] + draw(st.binary(max_size=6) | st.sampled_from(PIECES).map(str.encode)) + data[end:]


ANY_BYTES = (
    st.binary(max_size=200)
    | st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: "".join(pieces).encode())
    | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(lambda tree: yaml.safe_dump(tree).encode())
    | damaged()
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One file for all examples."""
    return tmp_path_factory.mktemp("any") / "p.yaml"


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=ANY_BYTES)
@example(data=b"profile_name: p\nretries: {attempts: 0b}\n")
@example(data=b"profile_name: p\nretries: {attempts: 0x}\n")
@example(data=b'profile_name: "\\x"\n')
@example(data=b"? {a: b}\n: c\n")
@example(data=b"profile_name: !<tag:yaml.org,2002:int> x\n")
@example(data=b"profile_name: =\n")
@example(data=b"models: {a: {backend: [], endpoint: {}}}\nfallback: [[a]]\ntiers: {a: {model: [], cost: []}}\n")
def test_no_bytes_raise_anything_but_a_config_error(scratch, data):
    """A profile is loaded, or refused in words; a profile that loads can be printed and loaded again."""
    scratch.write_bytes(data)
    try:
        config = StrategyConfig.from_yaml(scratch, environ={"X": "x"})
    except ConfigError as error:
        refusal = error
    else:
        scratch.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        assert StrategyConfig.from_yaml(scratch, environ={"X": "x"}) == config
        return
    assert str(refusal)
    assert all("\n" not in line for line in getattr(refusal, "problems", ()))
