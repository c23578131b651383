"""When a rank dies or a person presses Ctrl-C, the whole run ends soon, says why, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

SECONDS_TO_END = 90
MOMENTS = {"while loading": 0, "at the first steps": 1, "in the middle": 30}  # how many steps are done by then
TWENTY = [(steps, victim) for steps in (0, 1, 2, 5, 10, 20, 40, 80, 160, 320) for victim in (0, 1)]


@pytest.fixture
def two_ranks(tiny_config, tmp_path):
    """Run generate.py on two ranks, with more steps than a test waits for, and kill it at the end, whatever happens."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(ROOT / "launch" / "generate.py"), "--config", str(tiny_config), "--num-steps", "1000"),
        *("--path", str(tmp_path / "video.mp4")),
    ]
    log = (tmp_path.parent / f"{tmp_path.name}.log").open("w+")
    launcher = subprocess.Popen(
        command,
        # If a rank crashes by itself, the log should at least say where Python was.
        env=os.environ | {"OMP_NUM_THREADS": "1", "KANDINSKY_TIMEOUT_SECONDS": "10", "PYTHONFAULTHANDLER": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a terminal gives each command a group of its own, too
    )
    yield launcher, log
    if launcher.poll() is None:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    log.close()


def text_of(log) -> str:
    log.seek(0)
    return log.read()


def steps_done(log) -> int:
    return max(map(int, re.findall(r"(\d+)/1000", text_of(log))), default=0)


def wait_for(condition, launcher: subprocess.Popen, log, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert launcher.poll() is None and time.monotonic() < end, text_of(log)
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    return [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True).stdout.split()]


def ranks_after(steps: int, launcher: subprocess.Popen, log) -> list[int]:
    """Wait until so many steps are done, and return the process ids of the ranks, in order."""
    wait_for(lambda: len(children(launcher.pid)) == 2, launcher, log)
    wait_for(lambda: steps_done(log) >= steps, launcher, log)
    return sorted(children(launcher.pid))


def gone(pid: int) -> bool:
    """Return whether no process with this id runs. One that has ended but is not yet reaped counts as gone."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip() == "" or state.startswith("Z")


@pytest.mark.parametrize(
    ("steps", "victim"),
    [pytest.param(steps, 1, id=moment) for moment, steps in MOMENTS.items()]
    + [pytest.param(*kill, id="after {} steps, rank {}".format(*kill), marks=pytest.mark.soak) for kill in TWENTY],
)
def test_a_killed_rank_ends_all_and_is_named(two_ranks, tmp_path, steps, victim):
    launcher, log = two_ranks
    ranks = ranks_after(steps, launcher, log)
    os.kill(ranks[victim], signal.SIGKILL)
    assert launcher.wait(SECONDS_TO_END) != 0
    assert f"Signal 9 (SIGKILL) received by PID {ranks[victim]}" in text_of(log)
    assert all(map(gone, ranks))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_all(two_ranks, tmp_path):
    launcher, log = two_ranks
    ranks = ranks_after(MOMENTS["at the first steps"], launcher, log)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(SECONDS_TO_END) != 0
    assert all(map(gone, ranks))
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_hangs_is_given_up_and_the_place_is_named(two_ranks, tmp_path):
    launcher, log = two_ranks
    ranks = ranks_after(MOMENTS["in the middle"], launcher, log)
    os.kill(ranks[1], signal.SIGSTOP)
    # The other rank gives up after 10 s. The launcher would need 30 s more to kill a rank that does not react.
    wait_for(lambda: "as long as KANDINSKY_TIMEOUT_SECONDS says" in text_of(log), launcher, log)
    os.kill(ranks[1], signal.SIGKILL)
    assert launcher.wait(SECONDS_TO_END) != 0
    assert re.search(r"in step \d+ of 1000, in \w+", text_of(log)), text_of(log)
    assert all(map(gone, ranks))
    assert list(tmp_path.iterdir()) == []
