"""A set-up that failed is repaired by the next call, and never costs an environment that worked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")

# In place of Python: it makes an environment with a copy of itself, and pip fails while there is a file `fail`.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo made >> log ;;
  "-m pip download"*) echo "$*" ;;
  "-m pip"*) test ! -e fail ;;
  "-m jupyterlab"*) echo "$*" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """A function that runs a target of our Makefile in a folder with a false Python, and returns what came of it."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def run(target: str, *options: str, path: str = "") -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        environment["PATH"] = f"{path}:{environment['PATH']}"
        command = ["make", target, f"PYTHON={tmp_path / 'python'}", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_an_environment_that_worked_survives_failed_updates(make, tmp_path):
    assert make(".venv/installed").returncode == 0
    (tmp_path / ".venv" / "mine").touch()
    os.utime(tmp_path / ".venv" / "installed", (1e9, 1e9))  # long ago, so older than requirements.lock
    (tmp_path / "fail").touch()
    for _ in range(2):
        assert make(".venv/installed").returncode != 0
    (tmp_path / "fail").unlink()
    assert "Set-up done" in make(".venv/installed").stdout
    assert "Set-up done" not in make(".venv/installed").stdout  # there is nothing left to do
    assert (tmp_path / ".venv" / "mine").exists()
    assert (tmp_path / "log").read_text() == "made\n"


def test_an_environment_that_never_worked_is_made_anew(make, tmp_path):
    (tmp_path / "fail").touch()
    assert make(".venv/installed").returncode != 0
    (tmp_path / ".venv" / "half").touch()
    (tmp_path / "fail").unlink()
    done = make(".venv/installed")
    assert done.returncode == 0 and "Removing an unfinished .venv" in done.stdout
    assert sorted(path.name for path in (tmp_path / ".venv").iterdir()) == ["bin", "installed"]


@pytest.mark.parametrize(
    ("user", "options", "passed"),
    [("0", "", None), ("0", "--allow-root --port 9000", "--allow-root --port 9000"), ("1000", "--port 9", "--port 9")],
)
def test_the_lab_takes_options_and_says_what_root_needs(make, tmp_path, user, options, passed):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "bin" / "id").chmod(0o755)
    done = make("lab", f"LAB_ARGS={options}", path=str(tmp_path / "bin"))
    if passed is None:
        assert done.returncode != 0
        assert "refuses to run as root: use another account, or make lab LAB_ARGS=--allow-root" in done.stdout
    else:
        assert done.stdout.splitlines()[-1] == f"-m jupyterlab notebooks/00_start_here.ipynb {passed}"


def test_wheels_are_downloaded_even_if_their_folder_is_there(make, tmp_path):
    assert make("wheels").returncode == 0
    (tmp_path / "wheels").mkdir()  # later than .venv
    done = make("wheels")
    assert done.returncode == 0 and "PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make demo" in done.stdout
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("-m pip")]
    for part in ("download", "--only-binary :all:", "--dest wheels", "-r requirements.lock"):
        assert part in command


def test_scripts_have_the_line_ends_of_unix_in_every_checkout():
    files = [".ci/run", "Makefile", "launch/generate.py", "requirements.lock"]
    command = ["git", "check-attr", "eol", *files]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if told.returncode:
        pytest.skip("this is no clone")
    assert told.stdout.splitlines() == [f"{file}: eol: lf" for file in files]
    assert not any(b"\r" in Path(ROOT, file).read_bytes() for file in files)
