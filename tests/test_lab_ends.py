"""When a notebook ends, in whatever way, the processes of its ranks end too, and no others."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from kandinsky_mini.lab import watchdog
from kandinsky_mini.lab.watchdog import processes_of

NOTEBOOK = """
import os, signal, sys, time
from ipyparallel.cluster.launcher import LocalControllerLauncher
from kandinsky_mini import lab
from kandinsky_mini.lab.processes import RanksError

def end(): os.kill(os.getpid(), signal.SIGKILL)
def die(mesh): mesh.get_local_rank() == 1 and end()
def refused(words):
    try: ranks.run(die)
    except RanksError as error: assert str(error) == words, error
    else: sys.exit(words)

how = sys.argv[1]
if how == "killed at the start":
    start = LocalControllerLauncher.start
    LocalControllerLauncher.start = lambda self: [start(self), print(self.profile_dir, flush=True), end()]
ranks = lab.ranks(2, kind="processes")
if how == "stopped":
    refused("rank 1 is dead: start them anew with lab.ranks")
    refused("rank 1 is dead: start them anew with lab.ranks")
    ranks = lab.ranks(1, kind="processes")
print(ranks._folder, flush=True)
if how == "killed":
    if os.fork(): end()
    print(os.getpid(), flush=True)
    os.close(1), os.close(2)
    time.sleep(600)  # a fork holds the pipes of the notebook open
ranks.stop(); ranks.stop()
refused("these ranks are stopped: start them anew with lab.ranks")
"""


@pytest.mark.parametrize("how", ["stopped", "killed", "killed at the start"])
def test_nothing_is_left_when_the_notebook_ends(how):
    """Neither in the end, after ranks that were started twice and died, nor when it is killed at a bad moment."""
    program = [sys.executable, "-c", NOTEBOOK, how]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if how == "stopped" else -signal.SIGKILL), done.stderr
    folder, *forks = done.stdout.split()
    started = [p for p in psutil.process_iter() if folder in " ".join(cmdline(p)) or p in processes_of(folder)]
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    assert not os.path.exists(folder)
    for fork in forks:
        os.kill(int(fork), signal.SIGKILL)


def test_a_fork_of_the_notebook_that_ends_leaves_the_ranks_alone():
    program = """
import os, sys
from kandinsky_mini import lab

ranks = lab.ranks(1, kind="processes")
if not (child := os.fork()):
    sys.exit()
os.waitpid(child, 0)
print(ranks.run(lambda mesh: "answers"), flush=True)
ranks.stop()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "['answers']\n"), done.stderr


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


@pytest.fixture
def sleeper():
    """Start processes that sleep, or run a program, with the given environment. Kill them at the end."""
    started = []

    def start(program: str = "import time; time.sleep(600)", **environment: str) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, "-c", program], env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_processes_of_the_ranks_are_ended_even_if_a_stranger_has_the_number_of_one(sleeper, tmp_path):
    folder = tmp_path / "ranks"
    folder.mkdir()
    rank, stranger = sleeper(**{watchdog.MARK: str(folder)}), sleeper(**{watchdog.MARK: f"{folder}2"})
    # The watchdog waits for a notebook that has ended, and whose number the stranger has now.
    notebook = (str(stranger.pid), str(psutil.Process(stranger.pid).create_time() - 60))
    subprocess.run([sys.executable, watchdog.__file__, str(folder), *notebook], timeout=60, check=True)
    assert rank.wait(10) == -signal.SIGKILL
    assert stranger.poll() is None
    assert not folder.exists()


def test_what_a_rank_has_started_ends_with_it(sleeper, tmp_path):
    """Also processes that lack the rank's environment, and those that such processes have started."""
    folder = tmp_path / "ranks"
    folder.mkdir()
    shell = "import subprocess; subprocess.run(['sh', '-c', 'sleep 600 & wait'], env={'PATH': '/usr/bin:/bin'})"
    rank = psutil.Process(sleeper(shell, **{watchdog.MARK: str(folder)}).pid)
    while len(started := rank.children(recursive=True)) < 2:
        time.sleep(0.02)
    watchdog.end_all(str(folder))
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
