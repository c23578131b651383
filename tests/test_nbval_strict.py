"""`make test` notices faults in notebooks, also those that nbval alone passes over: each is planted here and caught."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT


def run(cell: str, stored: list, folder: Path) -> tuple[int, str]:
    """Run pytest on a notebook of one cell, and return its exit status and output."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell, execution_count=1, outputs=stored)]
    nbformat.write(notebook, folder / "planted.ipynb")
    options = [
        "-p",
        "nbval_strict",
        "--nbval",
        "--nbval-current-env",
        "--nbval-cell-timeout=3",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "planted.ipynb")],
        env=os.environ | {"PYTHONPATH": str(ROOT / ".ci")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def printed(text: str) -> list:
    return [nbformat.v4.new_output("stream", name="stdout", text=text)]


def test_a_good_notebook_passes(tmp_path):
    status, out = run("print(6 * 7)", printed("42\n"), tmp_path)
    assert status == 0, out


IGNORE = "# NBVAL_IGNORE_OUTPUT\n"
FAULTS = {
    "another output": ("print(6 * 7)", printed("43\n"), "Cell outputs differ"),
    "no stored output": ("print(6 * 7)", [], "Unexpected output fields"),
    # Where outputs may vary, nbval alone does not report the next two.
    "a bad magic": (IGNORE + "%no_such_magic", [], "a magic failed: UsageError: Line magic function `%no_such_magic`"),
    "no stored output that may vary": (IGNORE + "print(6 * 7)", [], "no output of it is stored"),
    "an error": ("1 / 0", [], "ZeroDivisionError"),
    "a stuck cell": ("import time\ntime.sleep(60)", [], "Timeout of 3 seconds exceeded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name, tmp_path):
    cell, stored, message = FAULTS[name]
    status, out = run(cell, stored, tmp_path)
    assert status == 1, out
    assert message in out


LEAVE = """
import subprocess
_ = subprocess.Popen(["sleep", "300"], start_new_session=True)
"""


def test_a_process_left_behind_is_caught(tmp_path):
    status, out = run(LEAVE, [], tmp_path)
    left = re.search(r"left processes behind: \['(\d+) sleep 300'\]", out)
    assert left, out
    os.kill(int(left[1]), signal.SIGKILL)
    assert status == 1
