"""Under torchrun, the launch script makes the same picture on two real processes as on one, and reports errors once."""

import os
import signal
import socket
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import yaml
from helpers import ROOT

from kandinsky_mini.bench.records import load_records

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "the talk's launcher": ["-m", "torch.distributed.launch", "--standalone", "--nproc-per-node", "2"],
    "no launcher": [],
}


def start(launcher: list[str], *options: str, script: str = "generate.py") -> subprocess.Popen:
    """Start a script of launch/ under a launcher."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "launch" / script), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own can be ended as a whole
    )


def end(running: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for the process to end, and return its exit status, stdout and stderr."""
    try:
        out, err = running.communicate(timeout=150)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, out, err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("tiling", [True, False])
def test_two_ranks_time_the_parts_of_a_whole_run(tiny_config, tmp_path, tiling):
    """With tiling they share the decoding, and without it rank 0 decodes alone."""
    path, values = tmp_path / "tiny.yaml", yaml.safe_load(tiny_config.read_text()) | {"vae": {"tiling": tiling}}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    options = ["--config", str(path), "--steps", "2", "--layout", "cfg2-tp1", "--out", str(tmp_path)]
    status, out, err = end(start(LAUNCHERS["torchrun"], *options, script="whole_run.py"))
    assert status == 0, err
    assert out.count("video (1, 3, 25, 16, 32), torch.uint8") == 1
    (record,) = load_records(tmp_path)
    assert str(record.layout) == "cfg2-tp1" and len(record.peak_bytes) == 2
    assert set(record.parts) == {"text", "vae", "save"} and min(record.parts.values()) > 0


# These options make a picture, because PNG keeps every value. tests/test_on_ranks.py compares the model itself.
PICTURE = ["--time-length", "0", "--num-steps", "4", "--seed", "7"]


def test_runs_side_by_side_make_the_picture_of_one_process(tiny_config, tmp_path):
    options = ["--config", str(tiny_config), *PICTURE, "--path"]
    running = {name: start(how, *options, str(tmp_path / f"{name}.png")) for name, how in LAUNCHERS.items()}
    for status, out, err in [end(process) for process in running.values()]:
        assert status == 0, err
        assert out.count("TIME ELAPSED") == out.count("saved to") == 1
    alone, *others = (iio.imread(tmp_path / f"{name}.png").astype(int) for name in reversed(LAUNCHERS))
    assert np.ptp(alone) > 10  # the picture is not blank, so there is something to compare
    assert all(np.abs(alone - other).max() <= 1 for other in others)


def test_two_agents_as_on_two_nodes(tiny_config, tmp_path):
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    running = [
        start(
            ["-m", "torch.distributed.run", *nodes, "--node-rank", str(node)],
            *("--config", str(tiny_config), *PICTURE, "--path", str(tmp_path / f"{node}.png")),
        )
        for node in range(2)
    ]
    (status_0, out_0, err_0), (status_1, out_1, err_1) = [end(process) for process in running]
    assert status_0 == status_1 == 0, err_0 + err_1
    assert "saved to" in out_0 and "saved to" not in out_1
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]  # only rank 0 saves


def test_a_port_in_use_is_an_error_that_names_it(tiny_config, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
        options = ["--config", str(tiny_config), *PICTURE, "--path", str(tmp_path / "a.png")]
        status, _, err = end(start([*launcher, "--master-port", port], *options))
    assert status != 0
    assert f"port: {port}" in err and "EADDRINUSE" in err
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_do_not_divide_are_refused_by_name_and_once(tiny_config, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    status, _, err = end(start(launcher, "--config", str(tiny_config), "--path", str(tmp_path / "a.mp4")))
    assert status != 0
    assert err.count("error: tensor parallelism over 3 ranks: 2 heads are not divisible by 3") == 1
    assert list(tmp_path.iterdir()) == []


SPOILT = """
import os, runpy, sys
if os.environ["RANK"] == "1": os.environ["KANDINSKY_TIMEOUT_SECONDS"] = "soon"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_rank_that_alone_fails_says_why(tiny_config, tmp_path):
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    status, _, err = end(start(launcher, "--config", str(tiny_config), *PICTURE, "--path", str(tmp_path / "a.png")))
    assert status != 0
    assert err.count("error: KANDINSKY_TIMEOUT_SECONDS must be a number of seconds, 1 to 1000000, not 'soon'") == 1


def test_lite_on_eight_ranks_is_refused_before_its_weights_are_looked_for(tmp_path, monkeypatch):
    from kandinsky_mini import get_T2V_pipeline
    from kandinsky_mini.config import CONFIGS

    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        ValueError, match="28 heads are not divisible by 8; it can split this model over 1, 2 or 4 ranks"
    ):
        get_T2V_pipeline("cpu", CONFIGS / "lite_5s.yaml")
