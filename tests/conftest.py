"""Fixtures that give tests a tiny model. Its weights are random, and it is loaded from disk like the trained one."""

import dataclasses
import signal
from pathlib import Path

import pytest
import torch
import yaml
from helpers import without_zeros

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.models.checkpoint import save_checkpoint
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.training import fresh_models

DIT = {
    "in_text_dim2": 32, "time_dim": 32, "model_dim": 32, "ff_dim": 64,
    "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": [4, 6, 6],
}  # fmt: skip
SAMPLING = {"time_length": 1, "width": 32, "height": 16, "num_steps": 3}


def pytest_configure():
    """Let Ctrl-C reach the processes that tests start, even if a shell started pytest in its background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread():
    """Run a test on one thread. A tiny model is fastest that way, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_values(tmp_path_factory) -> dict:
    """Return the values of the tiny configuration's YAML. Tests share them, so copy them before you change anything."""
    weights = tmp_path_factory.mktemp("weights")
    values = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
    values["name"] = "tiny"
    values["dit"] |= DIT
    values["sampling"] |= SAMPLING
    values["vae"]["tiling"] = True  # as Lite's, so that its ranks share the decoding
    values["weights"] = {name: str(weights / name) for name in values["weights"]}
    return values


@pytest.fixture(scope="session")
def tiny_config(tiny_values, tmp_path_factory) -> Path:
    """Write the tiny configuration and the weights that it names, and return its path."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values), encoding="utf-8")
    config = load_config(path)
    folders = dataclasses.asdict(config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_checkpoint(without_zeros(DiffusionTransformer3D(config.dit)), folders["dit"])
        fresh_models.new_vae(config.dit.in_visual_dim).save_pretrained(folders["vae"])
        embedder = fresh_models.new_text_embedder(config)
        embedder.text_encoder.save_pretrained(folders["text_encoder"])
        embedder.tokenizer.save_pretrained(folders["text_encoder"])
        embedder.text_encoder2.save_pretrained(folders["text_encoder2"])
        embedder.tokenizer2.save_pretrained(folders["text_encoder2"])
    return path


@pytest.fixture(scope="session")
def tiny_pipe(tiny_config):
    """Load the tiny pipeline. Tests share it, so change it with monkeypatch only."""
    return get_T2V_pipeline(device_map="cpu", conf_path=tiny_config)


@pytest.fixture
def forwards(tiny_pipe):
    """Collect the arguments of every forward: x, text, pooled text, time, positions, positions of text, scales."""
    seen = []
    hook = tiny_pipe.dit.register_forward_pre_hook(lambda module, args: seen.append(args))
    yield seen
    hook.remove()
