"""The launch script under torchrun: the same video on two real processes as on one, and errors said once."""

import os
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone"],
    "the talk's launcher": ["-m", "torch.distributed.launch", "--standalone"],
}


def launch(ranks: int, *options: str, launcher: str = "torchrun") -> subprocess.CompletedProcess:
    """launch/generate.py on so many ranks; on one without a launcher."""
    with_ranks = [*LAUNCHERS[launcher], "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *with_ranks, str(ROOT / "launch" / "generate.py"), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.soak  # see tests/test_faults.py
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_make_the_picture_of_one(tiny_config, tmp_path, launcher):
    # A picture, since png keeps every value; tests/test_parallelize.py compares the model itself.
    options = ["--config", str(tiny_config), "--time-length", "0", "--num-steps", "4", "--seed", "7"]
    pictures = []
    for ranks in (1, 2):
        path = tmp_path / f"{ranks}.png"
        done = launch(ranks, *options, "--path", str(path), launcher=launcher)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("TIME ELAPSED") == done.stdout.count("saved to") == 1
        pictures.append(iio.imread(path).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.ptp(pictures[0]) > 10  # there is something to compare


@pytest.mark.soak
def test_ranks_that_do_not_divide_are_refused_by_name_and_once(tiny_config, tmp_path):
    done = launch(3, "--config", str(tiny_config), "--path", str(tmp_path / "a.mp4"))
    assert done.returncode != 0
    assert done.stderr.count("error: tensor parallelism over 3 ranks: 2 heads do not divide by 3") == 1
    assert list(tmp_path.iterdir()) == []


def test_lite_on_eight_ranks_is_refused_before_its_weights_are_looked_for(tmp_path, monkeypatch):
    from kandinsky_mini import get_T2V_pipeline
    from kandinsky_mini.config import CONFIGS

    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="28 heads do not divide by 8; this model runs on 1, 2 or 4 ranks"):
        get_T2V_pipeline("cpu", CONFIGS / "lite_5s.yaml")
