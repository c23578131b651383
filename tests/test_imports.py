"""Importing kandinsky_mini loads nothing heavy, and each package imports only the packages that it may know of."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

HEAVY = ("transformers", "diffusers", "torch.distributed.tensor")
PACKAGES = ("models", "parallel", "lab", "bench", "world", "training")
# The modules of each package may import these packages of kandinsky_mini. All but world may also import the modules at
# the top level. So sampling, for example, can use models and be used by bench.
ARROWS = {
    "models": {"models"},
    "parallel": {"parallel", "models"},
    "lab": {"lab", "parallel", "models"},
    "bench": {"bench", "parallel", "models", "world"},
    "world": {"world"},
    "training": {"training", "parallel", "models", "world"},
    "launch": {"bench", "parallel", "models", "world", "training"},
}


def loaded_by(module: str) -> list[str]:
    """Return the names of all modules that are loaded once a fresh Python has imported this one."""
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()


def test_import_is_light():
    loaded = loaded_by("kandinsky_mini")
    assert "kandinsky_mini" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


def test_ranks_sample_without_importing_the_text_encoders():
    """Ranks that a notebook starts would otherwise take seconds longer."""
    loaded = loaded_by("kandinsky_mini.parallel.guidance")
    assert "kandinsky_mini.sampling" in loaded
    assert [name for name in loaded if name.startswith(("transformers", "diffusers"))] == []


def imported(file: Path) -> set[str]:
    """Return the full names of all modules that a file imports, and of all names that it imports from modules."""
    names = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def own_packages(names: set[str]) -> set[str]:
    """Return the packages of kandinsky_mini among imported names. "top" stands for modules that are in none of them."""
    parts = [name.split(".") for name in names if name.split(".")[0] == "kandinsky_mini"]
    return {part[1] if len(part) > 1 and part[1] in PACKAGES else "top" for part in parts}


@pytest.mark.parametrize("name", ARROWS)
def test_packages_import_only_what_is_below_them(name):
    folder = ROOT / name if name == "launch" else ROOT / "kandinsky_mini" / name
    files = list(folder.rglob("*.py"))
    assert files
    allowed = ARROWS[name] | ({"top"} if name != "world" else set())
    for file in files:
        assert own_packages(imported(file)) <= allowed, file


@pytest.mark.parametrize("name", ["lab", "bench", "training"])
def test_top_level_modules_do_not_import(name):
    for file in (ROOT / "kandinsky_mini").glob("*.py"):
        assert name not in own_packages(imported(file)), file


@pytest.mark.parametrize("name", ["dit", "nn", "attention", "checkpoint", "vae", "text_embedders", "text_embeds"])
def test_the_model_knows_nothing_of_ranks(name):
    names = imported(ROOT / "kandinsky_mini" / "models" / f"{name}.py")
    assert any(name.startswith("torch") for name in names)
    assert [name for name in names if "distributed" in name or "parallel" in name] == []


def test_no_test_imports_another_test():
    for file in (ROOT / "tests").glob("*.py"):
        assert [name for name in imported(file) if name.split(".")[0].startswith(("test_", "conftest"))] == [], file


def test_scripts_change_no_path_and_silence_no_check():
    for file in (ROOT / "launch").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "sys.path" not in text and "noqa" not in text, file
