"""Kandinsky 5's CrossDiT in a compact form: text to video, on one device or many.

from kandinsky_mini import get_T2V_pipeline
pipe = get_T2V_pipeline(device_map="cpu")
video = pipe("a cat in a red hat", save_path="./test.mp4")
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .pipeline import Kandinsky5T2VPipeline

COMPONENTS = ("dit", "vae", "text_embedder")


def get_T2V_pipeline(
    device_map: str | torch.device | dict[str, str | torch.device], conf_path: str | Path | None = None
) -> Kandinsky5T2VPipeline:
    """Read a configuration, load its models, put each on its device, and shard the CrossDiT over the ranks.

    Under torchrun every rank calls this, and each takes its own device of the kind that device_map names for "dit".

    float32 on a CPU; on a GPU bfloat16, but float32 where the released model has it: time embedding, modulation.

    Args:
        device_map: one device for all, or one each for "dit", "vae" and "text_embedder".
        conf_path: a YAML file; None is configs/mini.yaml, the model that this repository trains.

    Raises:
        ValueError: a device_map with other keys, a device that this machine lacks, or a number of ranks over which
            the model does not divide; found before any weight is read.
        ConfigError, CheckpointError: what is wrong with the configuration or the weights, and where.
    """
    # Imported here, so that `import kandinsky_mini` is quick: these load transformers and diffusers.
    import dataclasses

    import torch

    from .config import ROOT, load_config
    from .distributed import local_device, rank, tensor_parallel_mesh, world_size
    from .models.checkpoint import CheckpointError, check_files, load_checkpoint
    from .models.dit import DiffusionTransformer3D
    from .models.text_embedders import load_text_embedder
    from .models.vae import load_vae
    from .pipeline import Kandinsky5T2VPipeline

    named = _one_for_each(device_map)
    if world_size() > 1:  # before anything touches CUDA
        named = dict.fromkeys(COMPONENTS, local_device(named["dit"]))
    devices = {name: _device(name, named[name]) for name in COMPONENTS}
    dtypes = {name: compute_dtype(device) for name, device in devices.items()}
    config = load_config(conf_path)
    with torch.device("meta"):  # sizes without memory, until the weights are loaded
        dit = DiffusionTransformer3D(**dataclasses.asdict(config.dit))
    if world_size() > 1:
        from .models.parallelize import check_divisible, parallelize_dit

        check_divisible(dit, world_size())

    weights = {name: ROOT / path for name, path in dataclasses.asdict(config.weights).items()}
    for name, path in weights.items():
        if not path.exists():
            raise CheckpointError(f"{config.name} has no weights for {name}: {path} does not exist")
        check_files(path)

    dit = cast(load_checkpoint(dit, weights["dit"]), dtypes["dit"]).eval().to(devices["dit"])
    if world_size() > 1:
        device_mesh = tensor_parallel_mesh(devices["dit"].type)
        dit = parallelize_dit(dit, device_mesh["tensor_parallel"])

    text_embedder = vae = None
    if rank() == 0:
        text_embedder = load_text_embedder(
            weights["text_encoder"], weights["text_encoder2"], config.text, dtypes["text_embedder"]
        ).to(devices["text_embedder"])
        vae = load_vae(weights["vae"], config.vae.tiling, dtypes["vae"]).to(devices["vae"])
    return Kandinsky5T2VPipeline(devices, dit, text_embedder, vae, config)


def compute_dtype(device: torch.device) -> torch.dtype:
    """In which the models compute there, but for what cast() keeps in float32."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def cast(dit: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast the model, but keep float32 where the released one computes in it: all that is made from the time, and the
    norms of queries and keys.
    """
    dit.to(dtype)
    for name, module in dit.named_modules():
        if name.endswith(("time_embeddings", "modulation", "query_norm", "key_norm")):
            module.float()
    return dit


def _one_for_each(device_map: str | torch.device | dict[str, str | torch.device]) -> dict[str, str | torch.device]:
    if not isinstance(device_map, dict):
        device_map = dict.fromkeys(COMPONENTS, device_map)
    if set(device_map) != set(COMPONENTS):
        raise ValueError(f"device_map has the keys {sorted(map(str, device_map))}; it needs {', '.join(COMPONENTS)}")
    return device_map


def _device(name: str, value: str | torch.device) -> torch.device:
    """A device can be well named and yet not be there."""
    import torch

    try:
        device = torch.device(value)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device_map: {name} on {value!r} does not work here: {reason}") from error
    return device
