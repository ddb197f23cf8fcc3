"""The lock files and the bills of materials fit pyproject.toml, and every dependency has an upper bound.

`python scripts/lock_dependencies.py` writes them anew; with ``--keep`` it changes only what no longer fits.
"""

import importlib.metadata
import json
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
LOCKS = {"serve": ("serve",), "serve-embedded": ("serve", "embedded")}
PLACES = [
    {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_machine": "x86_64"},
    {"python_version": "3.13", "python_full_version": "3.13.1", "sys_platform": "linux", "platform_machine": "aarch64"},
    {"python_version": "3.12", "python_full_version": "3.12.4", "sys_platform": "darwin", "platform_machine": "arm64"},
]
WHERE_BILLED = PLACES[0]


def locked(name):
    """The packages of a lock file: name -> (version, marker, hashes)."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        read = Requirement(requirement)
        (pin,) = read.specifier
        assert pin.operator == "==", line
        found[canonicalize_name(read.name)] = Version(pin.version), read.marker, hashes
    return found


def holds(marker, place):
    return marker is None or marker.evaluate({"extra": "", **place})


def wanted(*extras):
    """What pyproject.toml asks for."""
    optional = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for one in extras for line in optional[one])]]


def test_every_dependency_has_an_upper_bound():
    """A release of another's package that breaks ours is installed by nobody before somebody has tried it."""
    lines = [*BUILD, *PROJECT["dependencies"], *(line for one in PROJECT["optional-dependencies"].values() for line in one)]
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            continue  # extras of our own
        assert any(part.operator in {"<", "<=", "==", "~="} for part in requirement.specifier), str(requirement)


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place['sys_platform']}-{place['python_version']}")
def test_a_lock_file_fits_what_pyproject_asks_for(name, place):
    """Each dependency of the package and of the extras is there, wherever it is needed, at a version within its bounds."""
    found = locked(name)
    for requirement in wanted(*LOCKS[name]):
        if holds(requirement.marker, place):
            version, marker, _ = found[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement}: {version} is locked"
            assert holds(marker, place), f"{requirement} is not locked for {place}"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_is_whole_hashed_and_installs_from_any_mirror(name):
    """Every file has a SHA-256; no index is named; what a locked package needs is locked as well."""
    found = locked(name)
    for package, (_, _, hashes) in found.items():
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), package
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()
    for package, (version, marker, _) in found.items():
        if not holds(marker, WHERE_BILLED):
            continue
        try:
            installed = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(installed.version) == version:
            needed = [Requirement(line) for line in installed.requires or ()]
            missing = [one for one in needed if holds(one.marker, WHERE_BILLED) and canonicalize_name(one.name) not in found]
            assert not missing, f"{package} needs {missing}"


def test_the_smaller_lock_file_has_the_versions_of_the_larger_one():
    """A service that gains the embedded engine changes nothing else."""
    small, large = locked("serve"), locked("serve-embedded")
    assert {package: large[package][0] for package in small} == {package: small[package][0] for package in small}
    assert "mistralrs" in large.keys() - small.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_the_bill_of_materials_lists_what_the_lock_file_installs(name):
    """Package for package, each with a licence, and what the package itself depends on."""
    bill = json.loads((ROOT / "requirements" / f"{name}.cdx.json").read_text())
    listed = {canonicalize_name(one["name"]): one for one in bill["components"]}
    expected = {package: version for package, (version, marker, _) in locked(name).items() if holds(marker, WHERE_BILLED)}
    assert {package: Version(one["version"]) for package, one in listed.items()} == expected
    assert [package for package, one in listed.items() if not one.get("licenses")] == []
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == (PROJECT["name"], PROJECT["version"])
    references = {one["bom-ref"]: canonicalize_name(one["name"]) for one in bill["components"]}
    direct = next(one["dependsOn"] for one in bill["dependencies"] if one["ref"] == root["bom-ref"])
    asked = {canonicalize_name(one.name) for one in wanted() if holds(one.marker, WHERE_BILLED)}
    assert asked <= {references[reference] for reference in direct}


def test_the_documentation_names_the_size_of_every_extra():
    """One row each in the table that `scripts/lock_dependencies.py --sizes` prints."""
    rows = re.findall(r"^\| `(\w+)` \| \+ [\d.]+ [MG]B \|", (ROOT / "docs" / "deployment.md").read_text(), re.M)
    assert rows == [name for name in PROJECT["optional-dependencies"] if name not in {"dev", "ray"}]
