"""A model gets the weights of its file, and the weights that it computes with in float32 stay exact."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import yaml
from helpers import SMALL, random_model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from kandinsky_mini import build, get_T2V_pipeline
from kandinsky_mini.build import build_dit, load_weights
from kandinsky_mini.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, to_released
from kandinsky_mini.models.dit import DiffusionTransformer3D, float32_parameters, set_dtype
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.pipeline import COMPONENTS

CPU = torch.device("cpu")


@pytest.fixture
def published(tmp_path):
    """Write a file like the released ones, in bfloat16 except for the weights that are computed with in float32."""
    dit = random_model()
    exact = float32_parameters(dit)
    weights = {name: value if name in exact else value.bfloat16() for name, value in dit.state_dict().items()}
    path = tmp_path / "dit.safetensors"
    save_file(to_released(weights), path)
    return path, weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_file(published, dtype):
    path, weights = published
    dit = build_dit(SMALL, CPU, partial(load_weights, path=path, device=CPU), dtype=dtype)
    assert dit.dtype == dtype
    exact = float32_parameters(dit)
    assert any("modulation" in name for name in exact) and any("time_embeddings" in name for name in exact)
    for name, value in dit.state_dict().items():
        assert torch.equal(value.float(), weights[name].float()), name
        assert value.dtype == (torch.float32 if name in exact else dtype), name


def test_saving_what_was_loaded_gives_the_same_file(published, tmp_path):
    path, _ = published
    dit = build_dit(SMALL, CPU, partial(load_weights, path=path, device=CPU), dtype=torch.bfloat16)
    save_checkpoint(dit, tmp_path / "again")
    before, after = load_file(path), load_file(tmp_path / "again" / "dit.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and torch.equal(value, after[name]), name


def test_casting_a_loaded_model_rounds_only_what_is_computed_in_the_lower_precision():
    dit = random_model()
    before = {name: value.clone() for name, value in dit.state_dict().items()}
    set_dtype(dit, torch.bfloat16)
    exact = float32_parameters(dit)
    for name, value in dit.state_dict().items():
        assert torch.equal(value, before[name] if name in exact else before[name].bfloat16()), name


def test_a_model_is_ready_to_infer(published):
    path, _ = published
    dit = build_dit(SMALL, CPU, partial(load_weights, path=path, device=CPU))
    assert not any(module.training for module in dit.modules())
    assert not any(parameter.is_meta for parameter in dit.parameters())


def test_a_float32_model_stays_one_when_it_loads_bfloat16(published):
    """Else a model would compute in two dtypes at once, or in the lower precision without a word."""
    path, weights = published
    assert torch.bfloat16 in {value.dtype for value in weights.values()}
    model = load_checkpoint(random_model(), path)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.fixture
def rank_2_of_4():
    """Be rank 2 of 4 without any other process: a group that sends nothing."""
    dist.init_process_group("fake", rank=2, world_size=4)
    yield init_device_mesh("cpu", (4,), mesh_dim_names=("tensor_parallel",))
    dist.destroy_process_group()


def test_a_rank_reads_its_own_part_and_turns_it_into_the_model_s_dtype(rank_2_of_4, published):
    path, weights = published
    with torch.device("meta"):
        dit = DiffusionTransformer3D(SMALL)
    parallelize_dit(dit, rank_2_of_4)
    load_weights(dit, path, CPU)
    sharded = {name: value for name, value in dit.state_dict().items() if isinstance(value, DTensor)}
    assert {value.dtype for value in dit.state_dict().values()} == {torch.float32}
    for name in ("visual_transformer_blocks.0.feed_forward.in_layer.weight", "out_layer.out_layer.bias"):
        assert torch.equal(sharded[name].to_local(), weights[name].chunk(4)[2].float()), name
    name = "visual_transformer_blocks.1.out_layer_self.weight"
    assert torch.equal(sharded[name].to_local(), weights[name].chunk(4, dim=1)[2].float())


@pytest.mark.parametrize("elsewhere", COMPONENTS)
def test_each_model_is_on_its_own_device(tiny_config, monkeypatch, elsewhere):
    """As in the talk, whose three models are on three GPUs. Here the second device is the one without memory."""
    devices = dict.fromkeys(COMPONENTS, CPU) | {elsewhere: torch.device("meta")}
    monkeypatch.setattr(build, "resolve_devices", lambda _: devices)
    pipe = build.build_pipeline("cpu", tiny_config)
    for name in COMPONENTS:
        assert {parameter.device.type for parameter in getattr(pipe, name).parameters()} == {devices[name].type}, name


def test_a_latent_is_decoded_without_the_other_models_weights(tiny_config, tiny_values, tmp_path):
    """The machine that goes on from a kept latent needs the VAE alone."""
    values = copy.deepcopy(tiny_values)
    values["weights"] |= {name: str(tmp_path / "nowhere") for name in values["weights"] if name != "vae"}
    path = tmp_path / "vae_alone.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert build.build_decoder("cpu", path).decode(torch.zeros(1, 2, 4, 16)).shape == (1, 3, 1, 16, 32)
    with pytest.raises(CheckpointError, match="tiny has no weights for dit: .*nowhere does not exist"):
        get_T2V_pipeline("cpu", path)
