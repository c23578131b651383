"""Kandinsky 5's CrossDiT in a compact form: text to video, on one device or on many.

from kandinsky_mini import get_T2V_pipeline
pipe = get_T2V_pipeline(device_map="cpu")
video = pipe("a cat in a red hat", save_path="./test.mp4")
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .parallel.layout import ParallelLayout
    from .pipeline import Kandinsky5T2VPipeline


def get_T2V_pipeline(
    device_map: str | torch.device | dict[str, str | torch.device],
    conf_path: str | Path | None = None,
    layout: ParallelLayout | str | None = None,
    attention: str = "auto",
    weights: str | Path | None = None,
    offload: bool = False,
) -> Kandinsky5T2VPipeline:
    """Load the models of a configuration, each onto its device, and shard the CrossDiT over the ranks.

    Under torchrun every rank makes this call. Each rank takes one device of its own, of the type that device_map gives
    for "dit".

    Models compute in float32 on a CPU and in bfloat16 on a GPU. The time embedding, the modulation and the norms of
    queries and keys stay in float32 on both, as in the released model.

    Args:
        device_map: one device for everything, or one each for "dit", "vae" and "text_embedder".
        conf_path: a YAML file, by default configs/mini.yaml, the model that this repository trains.
        layout: how the CrossDiT is split over the ranks, such as "tp2", "ulysses4" or "cfg2-tp4". The default is tensor
            parallelism over all ranks, by the plan of the talk that this project grew from (see README.md).
        attention: the kernel of the CrossDiT's attention: "flash4" is flash-attn-4, "cudnn" is cuDNN's, "sdpa" is what
            PyTorch chooses, and "auto" takes the first of them that can run.
        weights: a folder with the released weights, in one of the layouts that kandinsky_mini/released.py shows. The
            default is where the configuration says.
        offload: let the models wait in the CPU's memory, each on its device only while it works. A GPU then needs less
            memory, and a video takes longer, because the models are moved.

    Raises:
        ValueError: device_map has other keys or names a device that this machine lacks, the layout does not fit the
            model or the number of ranks, or the attention kernel is unknown or cannot run here. All of this is checked
            before any weight is read.
        ConfigError, CheckpointError: the configuration or the weights are wrong; the message says what and where.
    """
    # Imported here because build loads transformers and diffusers, and `import kandinsky_mini` should be quick.
    from .build import build_pipeline

    return build_pipeline(device_map, conf_path, layout, attention, weights, offload)
