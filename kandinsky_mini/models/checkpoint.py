"""Weights on disk: safetensors files with our names or with the released ones.

In the talk, an attention layer's output projection is a module of the block. In the released checkpoints, and in
diffusers' Kandinsky5Transformer3DModel, it is a module of the attention layer. That is the only difference:

    ours (the talk's)        released
    out_layer_self.*    <->  self_attention.out_layer.*
    out_layer_cross.*   <->  cross_attention.out_layer.*
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..files import written_aside
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
    """A checkpoint is missing, damaged, or made for another model. The message names the file, the keys and a cure."""


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
    own, stored = model.state_dict(), open_tensors(path)
    _compare(own, stored, path)
    values = {name: place(value, partial(_read, *stored[name])) for name, value in own.items()}
    model.load_state_dict(values, assign=True)
    return model


def open_tensors(path: str | Path) -> dict[str, tuple[Path, safe_open, str]]:
    """Return where each tensor of a file or a folder is, as {our name: (file, opened file, its name there)}.

    Only headers are read. In a folder, the index says which file counts for which key; without one, all files count.

    Raises:
        CheckpointError: there is no such file, one is damaged, the index is wrong, or a key is there twice.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: name a .safetensors file or a folder of them")
    if path.is_file():
        parts = [(path, None)]
    elif index := index_of(path):
        parts = [(path / name, keys) for name, keys in _read_index(index).items()]
    else:
        parts = [(file, None) for file in sorted(path.glob("*.safetensors"))]
    if not parts:
        raise CheckpointError(f"no .safetensors file in {path}: other kinds of weights are not loaded")
    stored: dict[str, tuple[Path, safe_open, str]] = {}
    for file, keys in parts:
        tensors = _open(file)
        there = set(tensors.keys())
        if lost := sorted(set(keys or ()) - there):
            raise CheckpointError(f"{file} lacks {lost[0]}, which the index of its folder promises: copy it again")
        for key in sorted(there if keys is None else keys):
            name = _our_name(key)
            if name in stored:
                raise CheckpointError(
                    f"{stored[name][0]} and {file} both hold {name}: remove the one that is not meant"
                )
            stored[name] = file, tensors, key
    return stored


def index_of(folder: Path) -> Path | None:
    """Return the index of a folder's shards, or None if there is none.

    Raises:
        CheckpointError: there are several.
    """
    found = sorted(folder.glob("*.safetensors.index.json"))
    if len(found) > 1:
        raise CheckpointError(f"{found[0]} and {found[1].name} are two indexes: remove the one that is not meant")
    return found[0] if found else None


def _read_index(index: Path) -> dict[str, list[str]]:
    """Return the keys of each file that an index names. All files must be in the index's own folder."""
    files: dict[str, list[str]] = {}
    try:
        for key, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            files.setdefault(os.fspath(name), []).append(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files: copy it again, or remove it") from error
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no .safetensors file of its own folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing: copy it there")
    return files


def load_pretrained(kind: type, folder: Path, **options: object):
    """Call kind.from_pretrained(folder) of transformers or diffusers, but trust the folder with nothing.

    By themselves these libraries fill in missing weights at random, unpickle weights, run code that a folder brings
    along, and ask a hub for missing files.

    Raises:
        CheckpointError: the folder cannot be loaded, or something is missing. The message names the folder or the file.
    """
    is_model = issubclass(kind, nn.Module)
    settings = folder / ("config.json" if is_model else "tokenizer_config.json")
    if not settings.is_file():
        raise CheckpointError(f"{settings} is missing: copy it there, from where the rest of {folder} is from")
    if is_model:
        open_tensors(folder)
        index = index_of(folder)
        if index and (whole := folder / index.name.removesuffix(".index.json")).exists():
            raise CheckpointError(f"{whole} and {index.name} are two checkpoints: remove the one that is not meant")
        options |= {"use_safetensors": True, "output_loading_info": True}
    else:
        options |= {"trust_remote_code": False}
    try:
        with torch.device("cpu"):
            loaded = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # these libraries raise errors of every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot load {kind.__name__} from {folder}: {reason} (are its files whole, and of one model?)"
        ) from error
    if not is_model:
        return loaded
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} does not fit {kind.__name__}.\n{_listing('missing', missing)}")
    return model


def read_tensor(path: str | Path, key: str, shape: tuple[int | None, ...]) -> torch.Tensor:
    """Read one tensor of a file to the CPU. None stands for any length.

    Raises:
        CheckpointError: the file cannot be read, or does not hold such a tensor.
    """
    stored = open_tensors(path)
    if key not in stored:
        raise CheckpointError(f"{path} holds no {key}, but {', '.join(sorted(stored)[:3])}")
    tensor = _read(*stored[key], ())
    if len(tensor.shape) != len(shape) or any(
        want not in (None, has) for has, want in zip(tensor.shape, shape, strict=True)
    ):
        wanted = " x ".join("any" if want is None else str(want) for want in shape)
        raise CheckpointError(f"{path}: {key} is of shape {tuple(tensor.shape)}, not {wanted}")
    return tensor


def save_checkpoint(dit: nn.Module, folder: str | Path, max_shard_size: str = "14MB") -> None:
    """Write a CrossDiT as safetensors shards with the released names and dtypes. The folder is replaced as a whole.

    Weights are stored in bfloat16. Those that the model computes with in float32 stay in float32, and so stay exact.

    Raises:
        ValueError: the folder holds other files, which would be lost.
    """
    from huggingface_hub import save_torch_state_dict

    kept = float32_parameters(dit)
    tensors = {name: value if name in kept else value.bfloat16() for name, value in dit.state_dict().items()}
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    pattern = {"filename_pattern": "dit{suffix}.safetensors", "max_shard_size": max_shard_size}
    with written_aside(folder, replaces=("dit*.safetensors", "dit.safetensors.index.json")) as aside:
        aside.mkdir()
        save_torch_state_dict(to_released(tensors), aside, **pattern)


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: copy it again ({error})") from error


def _read(file: Path, tensors: safe_open, key: str, part: Slices) -> torch.Tensor:
    try:
        with torch.device("cpu"):  # whatever the caller's default device is
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
