"""A tiny model with random weights, written to disk and loaded as the trained one is."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.models.checkpoint import save_checkpoint
from kandinsky_mini.world import scratch

DIT = {
    "in_text_dim2": 32, "time_dim": 32, "model_dim": 32, "ff_dim": 64,
    "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": [4, 6, 6],
}  # fmt: skip
SAMPLING = {"time_length": 1, "width": 32, "height": 16, "num_steps": 3}


def without_zeros(dit: torch.nn.Module) -> torch.nn.Module:
    """Fresh modulation is zero, which makes every block the identity and hides what the blocks compute."""
    for name, parameter in dit.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return dit


@pytest.fixture
def one_thread():
    """A tiny model is quickest on one thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_values(tmp_path_factory) -> dict:
    """What the tiny configuration's YAML says. Copy before changing."""
    weights = tmp_path_factory.mktemp("weights")
    values = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
    values["name"] = "tiny"
    values["dit"] |= DIT
    values["sampling"] |= SAMPLING
    values["weights"] = {name: str(weights / name) for name in values["weights"]}
    return values


@pytest.fixture(scope="session")
def tiny_config(tiny_values, tmp_path_factory) -> Path:
    """The path of a configuration whose weights exist."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values), encoding="utf-8")
    config = load_config(path)
    folders = dataclasses.asdict(config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(without_zeros(scratch.new_dit(config)), folders["dit"])
        scratch.new_vae(config.dit.in_visual_dim).save_pretrained(folders["vae"])
        embedder = scratch.new_text_embedder(config)
        embedder.text_encoder.save_pretrained(folders["text_encoder"])
        embedder.tokenizer.save_pretrained(folders["text_encoder"])
        embedder.text_encoder2.save_pretrained(folders["text_encoder2"])
        embedder.tokenizer2.save_pretrained(folders["text_encoder2"])
    return path


@pytest.fixture(scope="session")
def tiny_pipe(tiny_config):
    """A loaded pipeline, shared: a test that changes it does so with monkeypatch."""
    return get_T2V_pipeline(device_map="cpu", conf_path=tiny_config)
