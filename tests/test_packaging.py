"""pyproject.toml, requirements.lock, environment.yml and the code's imports agree with one another."""

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import check_machine
import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

LOCK_LINE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*(; sys_platform [!=]= '[a-z0-9]+')?")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))
BUILD = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
NEEDED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = PROJECT["project"]["optional-dependencies"]
TEST, ENGINES, BOOK = ([Requirement(line) for line in EXTRAS[name]] for name in ("test", "engines", "book"))


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_lock_has_only_plain_pins():
    lines = read("requirements.lock").splitlines()
    assert [line for line in lines if not LOCK_LINE.fullmatch(line)] == []
    assert len({line.split("==")[0] for line in lines}) == len(lines), "a package is pinned twice"


def test_a_lock_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def fill_the_disk(path: Path, text: str, **_):
        path.write_bytes(b"")
        raise OSError(28, "No space left on device")

    lock = runpy.run_path(str(ROOT / ".ci" / "lock.py"))
    old = tmp_path / "requirements.lock"
    old.write_bytes(b"torch==2.13.0")
    replaced = {"ROOT": tmp_path, "declared": list, "resolve": lambda _: {}}
    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    for name, value in replaced.items():
        monkeypatch.setitem(lock["main"].__globals__, name, value)
    with pytest.raises(OSError, match="No space left"):
        lock["main"]([])
    assert old.read_bytes() == b"torch==2.13.0"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("requirement", [*BUILD, *NEEDED, *TEST], ids=str)
def test_lock_satisfies(requirement):
    pins = {pin.name: pin for pin in map(Requirement, read("requirements.lock").splitlines())}
    pin = pins[canonicalize_name(requirement.name)]
    assert pin.marker is None
    assert str(pin.specifier).removeprefix("==") in requirement.specifier, "run `make lock`"


def test_dependencies_are_declared_once():
    everything = [requirement.name.lower() for requirement in [*NEEDED, *TEST, *ENGINES, *BOOK]]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("extra", ["flash", "book"])
def test_extras_outside_of_the_lock_pin_exactly(extra):
    locked = {pin.name for pin in map(Requirement, read("requirements.lock").splitlines())}
    for requirement in map(Requirement, EXTRAS[extra]):
        assert [each.operator for each in requirement.specifier] == ["=="]
        assert canonicalize_name(requirement.name) not in locked


def test_conda_environment_installs_the_lock():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, through_pip = environment["dependencies"]
    name, version = python.split("=")
    assert (name, pip) == ("python", "pip")
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    assert through_pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_the_machine_check_knows_the_oldest_versions():
    assert PROJECT["project"]["requires-python"] == f">={check_machine.dotted(check_machine.OLDEST_PYTHON)}"
    (torch,) = (requirement for requirement in NEEDED if requirement.name == "torch")
    assert str(torch.specifier) == f">={check_machine.dotted(check_machine.OLDEST_TORCH)}"


def test_citation_names_this_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["license"]) == tuple(
        PROJECT["project"][key] for key in ("version", "license")
    )


def imported(file: Path) -> set[str]:
    """Return the top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("kandinsky_mini", [*NEEDED, *ENGINES]), ("launch", NEEDED), ("book", BOOK), ("tests", [*NEEDED, *TEST])],
    ids=["kandinsky_mini", "launch", "book", "tests"],
)
def test_third_party_imports_are_declared(folder, declared):
    files = list((ROOT / folder).rglob("*.py"))
    own = {"kandinsky_mini"} | {file.stem for part in (folder, "launch") for file in (ROOT / part).glob("*.py")}
    foreign = set().union(*map(imported, files)) - own - set(sys.stdlib_module_names)
    foreign -= {"triton"}  # it comes with PyTorch where that is built for GPUs, and is imported only on one
    distributions = packages_distributions()  # it maps yaml to [PyYAML], for example
    undeclared = {
        name
        for name in foreign
        if not {canonicalize_name(owner) for owner in distributions.get(name, [name])} & names(declared)
    }
    assert undeclared == set()
