"""What importing loads, and what the model's code may not know of."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kandinsky_mini

HEAVY = ("transformers", "diffusers", "torch.distributed.tensor")


def test_import_is_light():
    program = "import sys, kandinsky_mini; print(*sys.modules, sep='\\n')"
    root = Path(kandinsky_mini.__file__).parent.parent
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()
    assert "kandinsky_mini" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


def imported(file: Path) -> list[str]:
    """Every module, and every name from a module, that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("name", ["dit.py", "nn.py"])
def test_the_model_knows_nothing_of_parallelism(name):
    names = imported(Path(kandinsky_mini.__file__).parent / "models" / name)
    assert "torch.nn" in names
    assert [name for name in names if "distributed" in name or "parallel" in name] == []
