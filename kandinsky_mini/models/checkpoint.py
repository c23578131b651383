"""Weights on disk: safetensors, with our names or with the released ones.

In the talk, the output projection of an attention is a module of the block. In the released checkpoints, and in
diffusers' Kandinsky5Transformer3DModel, it belongs to the attention. That is the only difference:

    ours (the talk's)        released
    out_layer_self.*    <->  self_attention.out_layer.*
    out_layer_cross.*   <->  cross_attention.out_layer.*
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

RENAMED = {
    "out_layer_self.": "self_attention.out_layer.",
    "out_layer_cross.": "cross_attention.out_layer.",
}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or made for another model. Names the file and the keys."""


def to_released(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names -> released names."""
    return {_rename(key, RENAMED): value for key, value in state_dict.items()}


def from_released(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released names -> our names; names that are ours already stay."""
    ours = {released: name for name, released in RENAMED.items()}
    return {_rename(key, ours): value for key, value in state_dict.items()}


def _rename(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        # A whole name, not the end of one: the model's own out_layer stays what it is.
        if f".{old}" in key:
            return key.replace(f".{old}", f".{new}")
    return key


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a .safetensors file, or a folder of them, into the model; both ways of naming are read.

    Everything is checked before the first weight is copied: a model is loaded wholly or not at all.

    Raises:
        CheckpointError: no such file, a damaged file, missing or unknown keys, wrong shapes.
    """
    files = _files(Path(path))
    state_dict, origin = {}, {}
    for file in files:
        tensors = from_released(_read(file))
        state_dict |= tensors
        origin |= dict.fromkeys(tensors, file)

    own = model.state_dict()
    missing = [key for key in own if key not in state_dict]
    unknown = [key for key in state_dict if key not in own]
    misfits = [
        f"{key}: {tuple(state_dict[key].shape)} in {origin[key]}, the model wants {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if missing or unknown or misfits:
        raise CheckpointError(
            f"{path} does not fit this model.\n"
            + _listing("missing", missing)
            + _listing("unknown", unknown)
            + _listing("wrong shape", misfits)
        )
    # Assigned, not copied: the model may be on the meta device, without memory of its own.
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state_dict.items()}, assign=True)
    return model


def check_files(path: str | Path) -> None:
    """Whether a file, or a folder's files, are there and whole; reads their headers only.

    Raises:
        CheckpointError: no such file, a damaged file.
    """
    for file in _files(Path(path)):
        with _open(file):
            pass


def load_pretrained(kind: type, folder: Path, **options: object):
    """kind.from_pretrained(folder) of transformers and diffusers, which by themselves draw missing weights at random.

    Raises:
        CheckpointError: whatever keeps it from loading, and missing keys; names the folder.
    """
    strict = {"output_loading_info": True} if issubclass(kind, nn.Module) else {}
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True, **strict, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"cannot load {kind.__name__} from {folder}: {error}") from error
    if not strict:
        return loaded
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} does not fit {kind.__name__}.\n{_listing('missing', missing)}")
    return model


def save_checkpoint(model: nn.Module, folder: str | Path, max_shard_size: str = "14MB") -> None:
    """Write the weights in bfloat16 as safetensors shards with the released names."""
    from huggingface_hub import save_torch_state_dict

    tensors = {key: value.to(torch.bfloat16) for key, value in to_released(model.state_dict()).items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(tensors, folder, filename_pattern="dit{suffix}.safetensors", max_shard_size=max_shard_size)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no .safetensors file in {path}")
    return files


def _read(file: Path) -> dict[str, torch.Tensor]:
    with _open(file) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}


@contextmanager
def _open(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def _listing(what: str, keys: list[str], most: int = 5) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - most} more" if len(keys) > most else ""
    return f"  {len(keys)} {what}: {', '.join(keys[:most])}{more}\n"
