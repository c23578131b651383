"""The training script runs through all its stages, goes on after an interruption, and writes usable weights."""

import json
from pathlib import Path

import pytest
import train_mini
import yaml

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS

SMALL = {
    "dit": {"model_dim": 32, "ff_dim": 32, "time_dim": 16, "in_text_dim": 32, "in_text_dim2": 32},
    "sampling": {"height": 32, "width": 48, "num_steps": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """A run of all stages, two optimiser steps each, and the configuration that loads what it exported."""
    folder = tmp_path_factory.mktemp("training")
    config = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
    for section, values in SMALL.items():
        config[section] |= values
    config["weights"] = {name: str(folder / "weights" / Path(path).name) for name, path in config["weights"].items()}
    config_path = folder / "small.yaml"
    config_path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")

    def run(stage: str, *options: str) -> None:
        common = ["--run", str(folder / "run"), "--config", str(config_path), "--scenes", "2", "--shrink", "96"]
        train_mini.main([stage, *common, *options])

    run("vae", "--steps", "2", "--videos", "2")
    run("scorer", "--steps", "2", "--videos", "2")
    run("latents", "--videos", "1")
    run("dit", "--steps", "2", "--evaluate-every", "2")
    run("dit", "--steps", "3")  # as after an interruption
    run("export", "--out", str(folder / "weights"))
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return {"config": config_path, "log": log}


def records(log: list[dict], stage: str, key: str) -> list:
    return [record[key] for record in log if record["stage"] == stage and key in record]


def test_the_log_tells_how_good_each_stage_is(trained):
    log = trained["log"]
    assert 0 < records(log, "vae", "psnr_held_out")[0] < 60
    for scores in (records(log, "scorer", "rendered")[0], records(log, "dit", "came_true")[0]):
        assert set(scores) == {"animal", "colour", "motion", "background", "all"}
        assert all(0 <= share <= 1 for share in scores.values())
    # Latents come out of the VAE normalised: the DiT expects a deviation of about 1.
    assert all(0.3 < std < 3 for std in records(log, "latents", "std"))


def test_an_interrupted_training_goes_on_where_it_was(trained):
    assert records(trained["log"], "dit", "step") == [2, 2, 3, 3]


def test_the_pipeline_runs_on_the_exported_weights(trained):
    pipe = get_T2V_pipeline(device_map="cpu", conf_path=trained["config"])
    assert pipe("a cat in a red hat", time_length=0, seed=1, progress=False).shape == (1, 3, 1, 32, 48)
