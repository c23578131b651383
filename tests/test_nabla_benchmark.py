"""The benchmark runs sparse attention at the density that it is asked for, and writes down what was really kept."""

import benchmark
import pytest
import torch
import yaml

from kandinsky_mini.bench.peers import DiffusersDiT, densities_of_diffusers
from kandinsky_mini.bench.records import load_records
from kandinsky_mini.models.nabla import NablaAttention

NEAR = 1 / 14  # of 7 x 1 x 2 blocks, each always keeps itself


@pytest.fixture(scope="module")
def sparse_config(tiny_values, tmp_path_factory) -> str:
    """Write a configuration with NABLA, whose frames have 1 x 2 of diffusers' blocks."""
    nabla = {"P": 0.9, "window": [1, 1, 1], "block": [8, 8]}
    sampling = tiny_values["sampling"] | {"width": 256, "height": 128, "time_length": 1}
    path = tmp_path_factory.mktemp("sparse") / "conf.yaml"
    path.write_text(yaml.safe_dump(tiny_values | {"dit": tiny_values["dit"] | {"nabla": nabla}, "sampling": sampling}))
    return str(path)


def run(config: str, folder, *options: str):
    common = ["--config", config, "--device", "cpu", "--random-weights", "--unguided", "--steps", "1"]
    benchmark.main([*common, "--out", str(folder), *options])
    (record,) = load_records(folder)
    return record


@pytest.mark.parametrize("engine", ["ours", "diffusers"])
@pytest.mark.parametrize("density", [0.3, 0.7])
def test_about_the_wanted_share_is_kept(sparse_config, tmp_path, engine, density):
    record = run(sparse_config, tmp_path, "--density", str(density), "--engine", engine)
    assert (record.density, record.engine) == (density, engine)
    assert f"-nabla_{density}-" in record.name
    (kept,) = record.kept
    assert abs(kept - density) < 0.05


def test_without_a_density_attention_is_full(sparse_config, tmp_path, monkeypatch):
    monkeypatch.setattr(NablaAttention, "forward", None)
    record = run(sparse_config, tmp_path)
    assert (record.density, record.kept) == (None, [])
    assert "nabla" not in record.name


def test_the_density_of_diffusers_is_that_of_its_masks(sparse_config):
    config = benchmark.config_of(
        benchmark.parse_args(["--config", sparse_config, "--random-weights", "--density", "1"])
    )
    dit = DiffusersDiT(config.dit)
    dit.set_share(1.0)
    latent = torch.randn(7, 16, 32, config.dit.in_visual_dim)
    text, pooled = torch.randn(3, config.dit.in_text_dim), torch.randn(1, config.dit.in_text_dim2)
    positions = [torch.arange(size) for size in (7, 8, 16)]
    with torch.no_grad(), densities_of_diffusers() as densities:
        dit(latent, text, pooled, torch.rand(1), positions, torch.arange(3), (1.0, 1.0, 1.0))
    assert densities == [1.0] * config.dit.num_visual_blocks  # one for each attention, which kept all blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "0.05", "--random-weights"], f"the density must be at least {NEAR:.3f}: NABLA always keeps"),
        (["--density", "0.5"], "--density is for random weights"),
        (["--density", "0.5", "--random-weights", "--attention", "sdpa"], "NABLA chooses its kernel itself"),
        (["--density", "2", "--random-weights"], "argument --density: must be a number from 0.001 to 1, not '2'"),
    ],
)
def test_densities_that_cannot_be_are_refused(sparse_config, options, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--config", sparse_config, *options])
    assert message in capsys.readouterr().err


def test_a_model_with_full_attention_has_no_density(tiny_config, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--config", str(tiny_config), "--random-weights", "--density", "0.5"])
    assert "tiny has no sparse attention: leave --density away" in capsys.readouterr().err
