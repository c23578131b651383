"""Weights load with our names and with the released ones, and a model is loaded completely or not at all."""

import json

import pytest
import torch
from helpers import without_zeros
from safetensors.torch import load_file, save_file

from kandinsky_mini.config import load_config
from kandinsky_mini.models.checkpoint import (
    CheckpointError,
    from_released,
    load_checkpoint,
    save_checkpoint,
    to_released,
)
from kandinsky_mini.models.dit import DiffusionTransformer3D, float32_parameters


@pytest.fixture
def dit(tiny_config):
    return without_zeros(DiffusionTransformer3D(load_config(tiny_config).dit))


@pytest.fixture
def other(tiny_config):
    """The same model with different weights."""
    return without_zeros(DiffusionTransformer3D(load_config(tiny_config).dit))


def same(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_names_there_and_back(dit):
    ours = dit.state_dict()
    released = to_released(ours)
    assert len(released) == len(ours) and released.keys() != ours.keys()
    assert list(from_released(released)) == list(ours)
    assert all(from_released(released)[name] is value for name, value in ours.items())
    assert from_released(ours).keys() == ours.keys()


def test_released_names(dit):
    names = to_released(dit.state_dict()).keys()
    assert {
        "text_transformer_blocks.0.self_attention.out_layer.weight",
        "visual_transformer_blocks.1.self_attention.out_layer.bias",
        "visual_transformer_blocks.1.cross_attention.out_layer.weight",
        "visual_transformer_blocks.1.feed_forward.out_layer.weight",
        "out_layer.out_layer.weight",
    } <= names
    assert not [name for name in names if "out_layer_" in name]


@pytest.mark.parametrize("rename", [to_released, dict], ids=["released", "ours"])
def test_both_ways_of_naming_load_from_a_file(dit, other, tmp_path, rename):
    save_file(rename(dit.state_dict()), tmp_path / "dit.safetensors")
    assert not same(other, dit.state_dict())
    assert load_checkpoint(other, tmp_path / "dit.safetensors") is other
    assert same(other, dit.state_dict())


def as_stored(dit: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights as save_checkpoint leaves them.

    They are rounded to bfloat16, except for those that are computed with in float32.
    """
    exact = float32_parameters(dit)
    return {name: value if name in exact else value.bfloat16().float() for name, value in dit.state_dict().items()}


@pytest.mark.parametrize(("max_shard_size", "several"), [("14MB", False), ("50KB", True)])
def test_saved_weights_load_from_a_folder(dit, other, tmp_path, max_shard_size, several):
    save_checkpoint(dit, tmp_path / "new" / "dit", max_shard_size)
    files = list((tmp_path / "new" / "dit").glob("*.safetensors"))
    assert (len(files) > 1) == several
    load_checkpoint(other, tmp_path / "new" / "dit")
    assert same(other, as_stored(dit))


def test_weights_that_are_computed_with_in_float32_are_saved_in_float32(dit, tmp_path):
    save_checkpoint(dit, tmp_path)
    dtypes = {name: value.dtype for name, value in from_released(load_file(tmp_path / "dit.safetensors")).items()}
    exact = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    parts = ("time_embeddings.", "_modulation.", "out_layer.modulation.", "query_norm.", "key_norm.")
    assert exact == {name for name in dtypes if any(part in name for part in parts)} != set()
    assert {dtype for name, dtype in dtypes.items() if name not in exact} == {torch.bfloat16}


def test_saving_again_with_fewer_shards(dit, other, tmp_path):
    save_checkpoint(other, tmp_path, "50KB")
    save_checkpoint(dit, tmp_path)
    load_checkpoint(other, tmp_path)
    assert same(other, as_stored(dit))


def drop(tensors):
    del tensors["visual_embeddings.in_layer.weight"]


def add(tensors):
    tensors["control_net.weight"] = torch.zeros(2)


def reshape(tensors):
    tensors["visual_embeddings.in_layer.bias"] = torch.zeros(3)


def rename_all(tensors):
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (drop, ["1 missing: visual_embeddings.in_layer.weight"]),
        (add, ["1 unknown: control_net.weight"]),
        (reshape, ["1 wrong shape: visual_embeddings.in_layer.bias: (3,) in ", "the model wants (32,)"]),
        (rename_all, ["missing: ", "unknown: model.", "and "]),
    ],
)
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_foreign_checkpoint(dit, other, tmp_path, damage, messages, folder):
    tensors = to_released(dit.state_dict())
    damage(tensors)
    path = tmp_path / "dit.safetensors"
    save_file(tensors, path)
    refused(other, tmp_path if folder else path, [str(tmp_path), "does not fit this model", *messages])


def test_of_many_names_five_are_told_and_the_others_counted(dit, other, tmp_path):
    tensors = to_released(dit.state_dict())
    number = len(tensors)
    rename_all(tensors)
    save_file(tensors, tmp_path / "dit.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(other, tmp_path)
    line = next(line for line in str(error.value).splitlines() if "missing: " in line)
    assert line.startswith(f"  {number} missing: ") and line.endswith(f", and {number - 5} more")
    assert line.count(", ") == 5


def refused(model, path, messages):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, path)
    assert [message for message in messages if message not in str(error.value)] == []
    assert same(model, before), "the model is half loaded"


def test_missing_shard(dit, other, tmp_path):
    save_checkpoint(dit, tmp_path, "50KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    refused(other, tmp_path, [f"{tmp_path / 'dit.safetensors.index.json'} names {lost.name}, which is missing"])


def test_truncated_shard(dit, other, tmp_path):
    save_checkpoint(dit, tmp_path, "50KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(other, tmp_path, [f"{shard} is not a whole safetensors file"])


@pytest.mark.parametrize("content", [b"", b"x", b"version https://git-lfs.github.com/spec/v1\n", bytes(100)])
def test_file_of_another_kind(other, tmp_path, content):
    path = tmp_path / "dit.safetensors"
    path.write_bytes(content)
    refused(other, path, [f"{path} is not a whole safetensors file"])


def test_nothing_there(other, tmp_path):
    refused(other, tmp_path / "nowhere", [f"no checkpoint at {tmp_path / 'nowhere'}"])
    refused(other, tmp_path, [f"no .safetensors file in {tmp_path}"])
    (tmp_path / "dit.safetensors").mkdir()
    refused(other, tmp_path, [f"{tmp_path / 'dit.safetensors'} is not a whole safetensors file"])


def test_the_index_says_which_file_counts(dit, other, tmp_path):
    """An old checkpoint beside the shards of a new one is not read."""
    old = {name: torch.zeros_like(value) for name, value in dit.state_dict().items()}
    save_checkpoint(dit, tmp_path, "50KB")
    for name in ("dit.safetensors", "zzz.safetensors"):
        save_file(to_released(old), tmp_path / name)
    load_checkpoint(other, tmp_path)
    assert same(other, as_stored(dit))


def test_the_index_says_which_tensors_of_a_file_count(dit, other, tmp_path):
    """A file may hold old copies of what another file of the folder replaces."""
    new = to_released(dit.state_dict())
    names = sorted(new)
    index = {name: "a.safetensors" if i % 2 else "b.safetensors" for i, name in enumerate(names)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({n: new[n] if index[n] == file else torch.zeros_like(new[n]) for n in names}, tmp_path / file)
    (tmp_path / "dit.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load_checkpoint(other, tmp_path)
    assert same(other, dit.state_dict())


@pytest.mark.parametrize("rename", [to_released, dict], ids=["released", "ours"])
def test_without_an_index_a_key_must_be_in_one_file_only(dit, other, tmp_path, rename):
    save_file(to_released(dit.state_dict()), tmp_path / "a.safetensors")
    save_file(rename(other.state_dict()), tmp_path / "b.safetensors")
    files = f"{tmp_path / 'a.safetensors'} and {tmp_path / 'b.safetensors'}"
    refused(other, tmp_path, [files, " both hold ", "remove the one that is not meant"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no index of safetensors files: copy it again, or remove it"),
        ("[1]", "is no index of safetensors files"),
        ('{"weight_map": 5}', "is no index of safetensors files"),
        ('{"weight_map": {"a": "../dit.safetensors"}}', "which is no .safetensors file of its own folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is no .safetensors file of its own folder"),
        ('{"weight_map": {"a": "dit.bin"}}', "which is no .safetensors file of its own folder"),
        ('{"weight_map": {"a": "nowhere.safetensors"}}', "names nowhere.safetensors, which is missing: copy it there"),
        ('{"weight_map": {"a": "dit.safetensors"}}', "lacks a, which the index of its folder promises: copy it again"),
        ('{"weight_map": {"a": 5}}', "is no index of safetensors files"),
    ],
)
def test_an_index_that_is_wrong(dit, other, tmp_path, content, message):
    save_file(dit.state_dict(), tmp_path / "dit.safetensors")
    (tmp_path / "new").mkdir()
    save_file(dit.state_dict(), tmp_path / "new" / "dit.safetensors")
    (tmp_path / "new" / "dit.safetensors.index.json").write_text(content)
    refused(other, tmp_path / "new", [str(tmp_path / "new"), message])


def test_two_indexes(dit, other, tmp_path):
    save_checkpoint(dit, tmp_path, "50KB")
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    refused(other, tmp_path, ["dit.safetensors.index.json and other.safetensors.index.json are two indexes"])


def test_a_folder_with_other_files_is_not_written_over(dit, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds notes.txt, which would be lost"):
        save_checkpoint(dit, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
