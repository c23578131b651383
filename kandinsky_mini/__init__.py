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
    """Read a configuration, load its models, and put each on its device.

    float32 on a CPU; on a GPU bfloat16, but float32 where the released model has it: time embedding, modulation.

    Args:
        device_map: one device for all, or one each for "dit", "vae" and "text_embedder".
        conf_path: a YAML file; None is configs/mini.yaml, the model that this repository trains.

    Raises:
        ValueError: a device_map with other keys, or a device that this machine lacks.
        ConfigError, CheckpointError: what is wrong with the configuration or the weights, and where.
    """
    # Imported here, so that `import kandinsky_mini` is quick: these load transformers and diffusers.
    import dataclasses

    import torch

    from .config import ROOT, load_config
    from .models.checkpoint import CheckpointError, check_files, load_checkpoint
    from .models.dit import DiffusionTransformer3D
    from .models.text_embedders import load_text_embedder
    from .models.vae import load_vae
    from .pipeline import Kandinsky5T2VPipeline

    devices = _device_map(device_map)
    dtypes = {name: torch.bfloat16 if device.type == "cuda" else torch.float32 for name, device in devices.items()}
    config = load_config(conf_path)
    weights = {name: ROOT / path for name, path in dataclasses.asdict(config.weights).items()}
    for name, path in weights.items():
        if not path.exists():
            raise CheckpointError(f"{config.name} has no weights for {name}: {path} does not exist")
        check_files(path)

    dit = DiffusionTransformer3D(**dataclasses.asdict(config.dit))
    dit = cast(load_checkpoint(dit, weights["dit"]), dtypes["dit"]).eval()
    text_embedder = load_text_embedder(
        weights["text_encoder"], weights["text_encoder2"], config.text, dtypes["text_embedder"]
    )
    vae = load_vae(weights["vae"], config.vae.tiling, dtypes["vae"])
    return Kandinsky5T2VPipeline(
        device_map=devices,
        dit=dit.to(devices["dit"]),
        text_embedder=text_embedder.to(devices["text_embedder"]),
        vae=vae.to(devices["vae"]),
        config=config,
    )


def cast(dit: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast the model, but keep float32 where the released one has it: everything made from the time."""
    dit.to(dtype)
    for name, module in dit.named_modules():
        if name.endswith(("time_embeddings", "modulation")):
            module.float()
    return dit


def _device_map(device_map: str | torch.device | dict[str, str | torch.device]) -> dict[str, torch.device]:
    import torch

    if not isinstance(device_map, dict):
        device_map = dict.fromkeys(COMPONENTS, device_map)
    if set(device_map) != set(COMPONENTS):
        raise ValueError(f"device_map has the keys {sorted(map(str, device_map))}; it needs {', '.join(COMPONENTS)}")
    devices = {}
    for name in COMPONENTS:
        try:
            device = torch.device(device_map[name])
            torch.zeros((), device=device).item()  # a device can be well named and yet not be there
        except (RuntimeError, AssertionError, TypeError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device_map: {name} on {device_map[name]!r} does not work here: {reason}") from error
        devices[name] = device
    return devices
