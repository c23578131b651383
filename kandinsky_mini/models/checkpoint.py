"""Weights on disk: safetensors files with our names or with the released ones.

In the talk, an attention layer's output projection is a module of the block. In the released checkpoints, and in
diffusers' Kandinsky5Transformer3DModel, it is a module of the attention layer. That is the only difference:

    ours (the talk's)        released
    out_layer_self.*    <->  self_attention.out_layer.*
    out_layer_cross.*   <->  cross_attention.out_layer.*
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .dit import float32_parameters

RENAMED = {
    "out_layer_self.": "self_attention.out_layer.",
    "out_layer_cross.": "cross_attention.out_layer.",
}
Slices = tuple[slice, ...]
# A Place makes a new tensor for a parameter. Its arguments are the parameter and a function that reads slices of the
# stored tensor.
Place = Callable[[torch.Tensor, Callable[[Slices], torch.Tensor]], torch.Tensor]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or made for another model. The message names the file and the keys."""


def to_released(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys from our names to the released ones."""
    return {_rename(key, RENAMED): value for key, value in state_dict.items()}


def from_released(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys from the released names to ours. Names that are ours already stay."""
    return {_our_name(key): value for key, value in state_dict.items()}


def _our_name(key: str) -> str:
    return _rename(key, {released: ours for ours, released in RENAMED.items()})


def _rename(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        # The dot makes sure that a whole name matches: the model's own out_layer keeps its name.
        if f".{old}" in key:
            return key.replace(f".{old}", f".{new}")
    return key


def read_whole(parameter: torch.Tensor, read: Callable[[Slices], torch.Tensor]) -> torch.Tensor:
    """Read all of a tensor to the CPU, in the parameter's dtype."""
    return read(tuple(slice(0, length) for length in parameter.shape)).to(parameter.dtype)


def load_checkpoint(model: nn.Module, path: str | Path, place: Place = read_whole) -> nn.Module:
    """Load a .safetensors file, or a folder of them, into the model. Its keys may be our names or the released ones.

    Everything is checked before the first weight is read, and the model is loaded completely or not at all. Values go
    straight from the file's dtype to the parameter's. The model may be on the meta device, without memory of its own.

    Args:
        place: makes each new parameter. The default reads it completely, to the CPU. For a sharded model pass
            parallel.tensors.place, so that each rank reads only its own slices.

    Raises:
        CheckpointError: the path does not exist, a file is damaged, keys are missing or unknown, or shapes differ.
    """
    own, stored = model.state_dict(), {}
    for file in _files(Path(path)):
        tensors = _open(file)
        stored |= {_our_name(key): (file, tensors, key) for key in tensors.keys()}
    _compare(own, stored, path)
    values = {name: place(value, partial(_read, *stored[name])) for name, value in own.items()}
    model.load_state_dict(values, assign=True)
    return model


def check_files(path: str | Path) -> None:
    """Check that a file, or every file of a folder, exists and is complete. Only the headers are read.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    for file in _files(Path(path)):
        _open(file)


def load_pretrained(kind: type, folder: Path, **options: object):
    """Call kind.from_pretrained(folder) of transformers or diffusers, but refuse a folder in which weights are missing.

    By themselves these libraries fill in missing weights at random.

    Raises:
        CheckpointError: the folder cannot be loaded, or weights are missing. The message names the folder.
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


def save_checkpoint(dit: nn.Module, folder: str | Path, max_shard_size: str = "14MB") -> None:
    """Write a CrossDiT as safetensors shards with the released names and dtypes.

    Weights are stored in bfloat16. Those that the model computes with in float32 stay in float32, and so stay exact.
    """
    from huggingface_hub import save_torch_state_dict

    kept = float32_parameters(dit)
    tensors = {name: value if name in kept else value.bfloat16() for name, value in dit.state_dict().items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    pattern = {"filename_pattern": "dit{suffix}.safetensors", "max_shard_size": max_shard_size}
    save_torch_state_dict(to_released(tensors), folder, **pattern)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no .safetensors file in {path}")
    return files


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def _read(file: Path, tensors: safe_open, key: str, part: Slices) -> torch.Tensor:
    try:
        return tensors.get_slice(key)[part] if part else tensors.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot read {key}: {error}") from error


def _compare(own: dict[str, torch.Tensor], stored: dict[str, tuple], path: str | Path) -> None:
    """Raise unless the stored tensors are exactly the model's own, by name and by shape."""
    missing = [name for name in own if name not in stored]
    unknown = [name for name in stored if name not in own]
    misfits = []
    for name in own.keys() & stored.keys():
        file, tensors, key = stored[name]
        shape, wanted = tuple(tensors.get_slice(key).get_shape()), tuple(own[name].shape)
        if shape != wanted:
            misfits.append(f"{name}: {shape} in {file}, the model wants {wanted}")
    if missing or unknown or misfits:
        raise CheckpointError(
            f"{path} does not fit this model.\n"
            + _listing("missing", missing)
            + _listing("unknown", unknown)
            + _listing("wrong shape", sorted(misfits))
        )


def _listing(what: str, keys: list[str], most: int = 5) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - most} more" if len(keys) > most else ""
    return f"  {len(keys)} {what}: {', '.join(keys[:most])}{more}\n"
