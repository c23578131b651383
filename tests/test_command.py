"""A signal that ends a script ends the program that it started, and the ranks of that program."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import time_mini
from helpers import ROOT

from kandinsky_mini.command import run, run_program


@pytest.mark.parametrize(
    "start",
    [
        "import time_mini as script; script.HERE = folder / 'launch'; script.generate_seconds(1)",
        "import draw_mini as script; script.ROOT = folder; script.ranks(folder / 'ranks.gif')",
    ],
    ids=["time_mini", "draw_mini"],
)
def test_a_signal_ends_the_program_that_a_script_started(tmp_path, start):
    (tmp_path / "launch").mkdir()
    long_run = "import os, pathlib, time; pathlib.Path('pid').write_text(f'{os.getpid()}\\n'); time.sleep(300)"
    (tmp_path / "launch" / "generate.py").write_text(long_run)
    program = f"import pathlib, sys; sys.path.append({str(ROOT / 'launch')!r}); folder = pathlib.Path.cwd(); {start}"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    number, end, run = tmp_path / "pid", time.monotonic() + 60, None
    try:
        while not (number.exists() and number.read_text().endswith("\n")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        run = psutil.Process(int(number.read_text()))
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        _, left = psutil.wait_procs([run], timeout=10)
        assert left == []
    finally:
        process.kill()
        process.wait()
        if run and run.is_running():
            run.kill()


def test_mini_is_timed_with_the_threads_that_the_record_names(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environments = []
    monkeypatch.setattr(time_mini, "run_program", lambda command, env, **quiet: environments.append(env))
    time_mini.generate_seconds(3)
    assert [env["OMP_NUM_THREADS"] for env in environments] == ["3"]


def test_an_interrupt_ends_a_program_and_is_passed_on(monkeypatch):
    started = []

    def interrupted(process: subprocess.Popen) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_program([sys.executable, "-c", "import time; time.sleep(600)"])
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (RuntimeError("shapes do not fit"), RuntimeError),  # a mistake in the code keeps its traceback
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
        (RuntimeError("CUDA out of memory. Tried much"), SystemExit),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried much"), SystemExit),
        (MemoryError(), SystemExit),
        (ValueError("wrong"), SystemExit),
        (TypeError("wrong"), TypeError),
    ],
)
def test_only_errors_that_a_person_can_cure_become_a_line(error, ending, monkeypatch):
    def fail() -> None:
        raise error

    streams = SimpleNamespace(stdout=mock.MagicMock(), stderr=mock.MagicMock(), exit=sys.exit)
    monkeypatch.setattr("kandinsky_mini.command.sys", streams)
    with pytest.raises(ending) as raised:
        run(fail)
    assert (raised.value is error) == (ending is not SystemExit)
    streams.stdout.reconfigure.assert_called_once_with(errors="replace")


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({"stderr": subprocess.PIPE, "text": True}, "error: no encoder\n"),  # nobody has seen it yet
        ({"stderr": subprocess.DEVNULL}, "error: {} -c 'exit(3)' failed with status 3"),
    ],
)
def test_a_program_that_fails_ends_a_script_with_its_words(options, ending):
    code = "exit(3)" if "{}" in ending else "exit('error: no encoder')"
    with pytest.raises(SystemExit) as raised:
        run(lambda: run_program([sys.executable, "-c", code], **options))
    assert raised.value.code == ending.format(sys.executable)
