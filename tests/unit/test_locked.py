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
LOCKS = {
    "serve": ("serve",),
    "serve-embedded": ("serve", "embedded"),
    "serve-otel": ("serve", "otel"),
    "batch": ("batch", "calibration"),
    "moe": ("moe",),
    "vllm": ("vllm",),
}
BILLED = [name for name in LOCKS if name not in {"moe", "vllm"}]
"""The others are gigabytes for GPUs."""
NOT_DEPLOYED = {"dev", "ray"}
PLACES = [
    {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_machine": "x86_64"},
    {"python_version": "3.13", "python_full_version": "3.13.1", "sys_platform": "linux", "platform_machine": "aarch64"},
    {"python_version": "3.12", "python_full_version": "3.12.4", "sys_platform": "darwin", "platform_machine": "arm64"},
]
WHERE_BILLED = PLACES[0]


def locked(name):
    """The packages of a lock file: (name, version, marker, hashes); some have several, for several Pythons."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = []
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        read = Requirement(requirement)
        (pin,) = read.specifier
        assert pin.operator == "==", line
        found.append((canonicalize_name(read.name), Version(pin.version), read.marker, hashes))
    return found


def installed_at(name, place):
    """What a lock file installs there: name -> version."""
    found = [(package, version) for package, version, marker, _ in locked(name) if holds(marker, place)]
    assert len(dict(found)) == len(found), "one version of each package"
    return dict(found)


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
    found = installed_at(name, place)
    for requirement in wanted(*LOCKS[name]):
        if holds(requirement.marker, place):
            version = found[canonicalize_name(requirement.name)]
            assert version in requirement.specifier, f"{requirement}: {version} is locked"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_is_whole_hashed_and_installs_from_any_mirror(name):
    """Every file has a SHA-256; no index is named; what a locked package needs is locked as well."""
    for package, _, _, hashes in locked(name):
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), package
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()
    found = installed_at(name, WHERE_BILLED)
    for package, version in found.items():
        try:
            installed = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(installed.version) == version:
            needed = [Requirement(line) for line in installed.requires or ()]
            missing = [one for one in needed if holds(one.marker, WHERE_BILLED) and canonicalize_name(one.name) not in found]
            assert not missing, f"{package} needs {missing}"


def test_every_extra_that_a_deployment_uses_is_locked():
    assert {extra for extras in LOCKS.values() for extra in extras} == PROJECT["optional-dependencies"].keys() - NOT_DEPLOYED
    assert {path.stem for path in (ROOT / "requirements").glob("*.txt")} == LOCKS.keys()


@pytest.mark.parametrize("name", ["serve-embedded", "serve-otel", "batch"])
def test_a_larger_lock_file_has_the_versions_of_the_smaller_one(name):
    """A service that gains the embedded engine, traces or rows changes nothing else."""
    small, large = (installed_at(one, WHERE_BILLED) for one in ("serve", name))
    shared = small.keys() & large.keys()
    assert {package: large[package] for package in shared} == {package: small[package] for package in shared}
    assert large.keys() - small.keys()
    assert name == "batch" or small.keys() <= large.keys()


@pytest.mark.parametrize("name", BILLED)
def test_the_bill_of_materials_lists_what_the_lock_file_installs(name):
    """Package for package, each with a licence, and what the package itself depends on."""
    bill = json.loads((ROOT / "requirements" / f"{name}.cdx.json").read_text())
    listed = {canonicalize_name(one["name"]): one for one in bill["components"]}
    assert {package: Version(one["version"]) for package, one in listed.items()} == installed_at(name, WHERE_BILLED)
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
    assert rows == [name for name in PROJECT["optional-dependencies"] if name not in NOT_DEPLOYED]
