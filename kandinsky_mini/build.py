"""Build a pipeline and its models from a configuration. Only training loads weights elsewhere.

A CrossDiT is built on the meta device, where it has sizes but no memory. It is sharded there, then filled, so that
each rank only ever holds its own share, on its own device.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from .config import ROOT, Config, DiTConfig, load_config
from .models.attention import choose_kernel, set_kernel
from .models.checkpoint import CheckpointError, load_checkpoint, open_tensors
from .models.dit import DiffusionTransformer3D, set_dtype
from .models.parallelize import parallelize_dit
from .models.text_embedders import TextEmbedder, load_text_embedder
from .models.vae import load_vae
from .models.vae_layers import quicken_decoder
from .parallel.groups import join_group, local_device, rank, wait_until_loaded, world_size
from .parallel.guidance import branches_on
from .parallel.layout import ParallelLayout
from .parallel.tensors import place
from .pipeline import COMPONENTS, Kandinsky5T2VPipeline
from .released import how_to_get, released_weights


def build_pipeline(
    device_map: str | torch.device | dict[str, str | torch.device],
    conf_path: str | Path | None = None,
    layout: ParallelLayout | str | None = None,
    attention: str = "auto",
    weights: str | Path | None = None,
    offload: bool = False,
) -> Kandinsky5T2VPipeline:
    """Build what get_T2V_pipeline returns. Its docstring explains the arguments and the errors."""
    devices = resolve_devices(device_map)
    config = load_config(conf_path)
    layout = resolve_layout(layout, config.dit)
    found = find_weights(config, folder=weights)

    def embedder(device: torch.device) -> TextEmbedder:
        encoders, tokenizers = ((found[name], found[f"{name}2"]) for name in ("text_encoder", "tokenizer"))
        return load_text_embedder(*encoders, config.text, compute_dtype(device), tokenizers).to(device)

    fill = partial(load_weights, path=found["dit"], device=devices["dit"])
    vae = partial(build_vae, config, found["vae"])
    return assemble(config, devices, layout, attention, fill, embedder, vae, offload)


def assemble(
    config: Config,
    devices: dict[str, torch.device],
    layout: ParallelLayout,
    attention: str,
    fill: Callable[[DiffusionTransformer3D], object],
    embedder: Callable[[torch.device], TextEmbedder],
    vae: Callable[[torch.device], AutoencoderKLHunyuanVideo],
    offload: bool = False,
) -> Kandinsky5T2VPipeline:
    """Join the ranks, and make the models of which this rank has a part: fill, embedder and vae say how."""
    mesh = join(layout, devices["dit"])

    def built(model: nn.Module) -> nn.Module:
        return model.to("cpu") if offload else model  # before the next one needs the memory

    dit = built(
        build_dit(config.dit, devices["dit"], fill, mesh and mesh[layout.dimensions], layout.plan, attention=attention)
    )
    first = rank() == 0
    models = (
        built(embedder(devices["text_embedder"])) if first else None,
        built(vae(devices["vae"])) if first or config.vae.tiling else None,
    )
    wait_until_loaded()
    return Kandinsky5T2VPipeline(devices, dit, *models, config, layout, branches_on(mesh), offload)


def build_decoder(
    device: str | torch.device, conf_path: str | Path | None = None, weights: str | Path | None = None
) -> Kandinsky5T2VPipeline:
    """Build a pipeline that can only decode. It takes the memory of the VAE alone.

    Raises:
        ValueError: this machine lacks the device, or the configuration or the weights are wrong.
    """
    devices = resolve_devices(device)
    config = load_config(conf_path)
    vae = build_vae(config, find_weights(config, ("vae",), weights)["vae"], devices["vae"])
    return Kandinsky5T2VPipeline(devices, None, None, vae, config)


def build_vae(config: Config, folder: Path, device: torch.device) -> AutoencoderKLHunyuanVideo:
    """Load the VAE onto its device, to decode."""
    return quicken_decoder(load_vae(folder, config.vae.tiling, compute_dtype(device)).to(device))


def build_dit(
    config: DiTConfig,
    device: torch.device,
    fill: Callable[[DiffusionTransformer3D], object],
    mesh: DeviceMesh | None = None,
    plan: str = "talk",
    dtype: torch.dtype | None = None,
    attention: str = "auto",
) -> DiffusionTransformer3D:
    """Build a CrossDiT on the meta device, shard it over the mesh, and let fill(dit) give it weights on the device.

    Args:
        fill: called as fill(dit) after sharding. It must give every parameter its values on the device.
        mesh: the ranks that share the model, as parallelize_dit takes them; the default is no sharding.
        plan: the name of a plan in models/parallelize.py.
        dtype: the dtype of token activations; the default is compute_dtype(device).
        attention: the attention kernel, one of KERNELS in models/attention.py.

    Raises:
        ValueError: the plan is unknown, a width of the model is not divisible by the number of ranks, or the attention
            kernel is unknown or cannot run.

    Warns:
        UserWarning: on a GPU, "auto" has not taken flash-attn-4, and why. Rank 0 says it.
    """
    dtype = dtype or compute_dtype(device)
    kernel, missing = choose_kernel(attention, device, dtype, config.head_dim)
    if missing and rank() == 0:
        warnings.warn(f"attention runs on cuDNN and not on flash-attn-4: {missing}", stacklevel=2)
    with torch.device("meta"):
        dit = DiffusionTransformer3D(config)
    set_dtype(dit, dtype)
    set_kernel(dit, kernel)
    if mesh is not None:
        parallelize_dit(dit, mesh, plan)
    fill(dit)
    return dit.eval()


def join(layout: ParallelLayout, device: torch.device) -> DeviceMesh | None:
    """Join the other ranks of the layout, and return the mesh of all of them. A single process needs none."""
    if layout.ranks == 1:
        return None
    join_group(device.type)
    return layout.device_mesh(device.type)


def load_weights(dit: DiffusionTransformer3D, path: Path, device: torch.device) -> None:
    """Fill a CrossDiT, sharded or not, from a checkpoint. Each rank reads the slices that it holds."""
    load_checkpoint(dit, path, partial(place, device=device))


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that models compute in on a device, apart from what the CrossDiT keeps in float32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_layout(layout: ParallelLayout | str | None, config: DiTConfig) -> ParallelLayout:
    """Return the layout to use, by default tensor parallelism over all ranks.

    Raises:
        ValueError: the text is not a layout, or the layout does not fit the model or the number of ranks started.
    """
    if layout is None:
        layout = ParallelLayout("tp", world_size())
    elif isinstance(layout, str):
        layout = ParallelLayout.parse(layout)
    layout.check(config, world_size())
    return layout


def resolve_devices(device_map: str | torch.device | dict[str, str | torch.device]) -> dict[str, torch.device]:
    """Return a device for each of COMPONENTS. Under a launcher all of them are this rank's own device.

    Raises:
        ValueError: device_map has other keys, or names a device that does not work here.
    """
    if not isinstance(device_map, dict):
        device_map = dict.fromkeys(COMPONENTS, device_map)
    if set(device_map) != set(COMPONENTS):
        raise ValueError(f"device_map has the keys {sorted(map(str, device_map))}; it needs {', '.join(COMPONENTS)}")
    if world_size() > 1:  # before anything touches CUDA
        device_map = dict.fromkeys(COMPONENTS, local_device(device_map["dit"]))
    return {name: _working_device(name, device_map[name]) for name in COMPONENTS}


def _working_device(name: str, value: str | torch.device) -> torch.device:
    """Turn a name into a device, and allocate one number there, because a valid name may belong to a missing device."""
    try:
        device = torch.device(value)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device_map: {name} on {value!r} does not work here: {reason}") from error
    return device


def find_weights(
    config: Config, names: tuple[str, ...] | None = None, folder: str | Path | None = None
) -> dict[str, Path]:
    """Return the paths of the models' weights and of the tokenizers, by default of all of them.

    They are in a folder with the released weights or, without one, where the configuration says.

    Raises:
        CheckpointError: a path does not exist, or the header of a file is damaged.
    """
    if folder is None:
        paths = {name: ROOT / path for name, path in vars(config.weights).items()}
        paths |= {"tokenizer": paths["text_encoder"], "tokenizer2": paths["text_encoder2"]}
    else:
        paths = released_weights(Path(folder), config)
    paths = {name: path for name, path in paths.items() if names is None or name in names}
    for name, path in paths.items():
        if not path.exists():
            message = f"{config.name} has no weights for {name}: {path} does not exist"
            if folder is not None:
                message += f"; {how_to_get(name, path)}"
            elif not (ROOT / "assets").is_dir():
                message += "; without a clone of the repository there are none: clone it, and pip install -e . there"
            raise CheckpointError(message)
        if not name.startswith("tokenizer"):
            open_tensors(path)
    return paths
