"""Measure how long each part of a whole run takes: text encoders, CrossDiT, VAE, saving, each on its own device.

python launch/whole_run.py --config kandinsky_mini/configs/lite_10s.yaml --random-weights --steps 10 \
    --device-map dit=cuda:0 vae=cuda:1 text_embedder=cuda:2

This is the talk's last cell: three devices, three models, one process. With --random-weights the models are the real
classes at the real sizes, and no checkpoint is needed. It writes a record as JSON.

Saving is work for a CPU, and needs imageio-ffmpeg. Where that is missing, saving is left out, and --only-saving can
measure it on another machine.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.bench import measure, options
from kandinsky_mini.bench.machine import device_name, interconnect, processor
from kandinsky_mini.bench.random_models import random_pipeline
from kandinsky_mini.bench.records import FOLDER, Record, command_line
from kandinsky_mini.command import run
from kandinsky_mini.config import FPS, load_config
from kandinsky_mini.models.attention import kernel_of
from kandinsky_mini.models.checkpoint import CheckpointError
from kandinsky_mini.models.dit import compile_blocks
from kandinsky_mini.parallel.groups import world_size
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.pipeline import COMPONENTS, Kandinsky5T2VPipeline
from kandinsky_mini.saving import check_can_save, save
from kandinsky_mini.training.dataset import render_videos
from kandinsky_mini.world.scenes import Scene

PROMPT = "a cat in a red hat"
SCENE = Scene("cat", "red", "walks right", "meadow")


def parse_device_map(entries: list[str]) -> dict[str, torch.device]:
    """Turn ["dit=cuda:0", ...] into devices, with the names that get_T2V_pipeline has for its device_map."""
    named = dict(entry.partition("=")[::2] for entry in entries)
    if set(named) != set(COMPONENTS):
        sys.exit(f"error: --device-map is {' '.join(entries)}; it needs {', '.join(COMPONENTS)}, each once")
    try:
        return {name: torch.device(options.device(device)) for name, device in named.items()}
    except argparse.ArgumentTypeError as error:
        sys.exit(f"error: --device-map: {error}")


def can_save() -> bool:
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def time_of_saving(seconds: int, height: int, width: int) -> float | None:
    """Return the seconds of saving a video of this size, or None without imageio-ffmpeg.

    The video is rendered. Random weights would generate noise, which no codec can compress.
    """
    if not can_save():
        return None
    video = render_videos([SCENE], FPS * seconds + 1, (height, width), 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        return measure.timed(lambda: save(video, Path(folder, "video.mp4")), torch.device("cpu"))


def time_parts(pipe: Kandinsky5T2VPipeline, num_steps: int) -> tuple[list[float], dict[str, float]]:
    """Return the seconds of each step, the first and slower one included, and those of encoding and of decoding."""
    devices, prompts = pipe.device_map, (PROMPT, pipe.config.text.negative_prompt)
    pipe.text_embedder.encode(PROMPT)
    text = measure.timed(lambda: [pipe.text_embedder.encode(prompt) for prompt in prompts], devices["text_embedder"])
    latents: list[torch.Tensor] = []
    for device in {device for device in devices.values() if device.type == "cuda"}:
        measure.forget_peak(device)  # the peak of building the models is not of interest
    watch = measure.Stopwatch(devices["dit"])

    def after_step(_: int, latent: torch.Tensor) -> None:
        watch()
        latents[:] = [latent]

    video = pipe(PROMPT, num_steps=num_steps, seed=1, callback=after_step)
    print(f"video {tuple(video.shape)}, {video.dtype}")
    vae = measure.timed(lambda: pipe.decode(latents[0]), devices["vae"])
    return watch.seconds, {"text": text, "vae": vae}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML; default: mini")
    parser.add_argument("--random-weights", action="store_true", help="real sizes without a checkpoint")
    parser.add_argument("--only-saving", action="store_true", help="measure saving only, without loading a model")
    parser.add_argument(
        "--steps", type=options.at_least(2), default=10, help="sampling steps; the first is not counted"
    )
    parser.add_argument("--device-map", nargs=3, default=[f"{name}=cpu" for name in COMPONENTS], metavar="PART=DEVICE")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the visual blocks; default: on a GPU")
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="the folder of the record")
    args = parser.parse_args(argv)

    if world_size() > 1:
        parser.error("this is one process with several devices, not several ranks: start it with python")
    config, devices = load_config(args.config), parse_device_map(args.device_map)
    size = config.sampling
    if can_save():
        check_can_save(args.out / "video.mp4")  # a broken encoder would otherwise show at the very end
    parts: dict[str, float | None] = {}
    used, steps, compiled = {}, [], False
    if not args.only_saving:
        used = devices
        try:
            pipe = random_pipeline(config, devices) if args.random_weights else get_T2V_pipeline(devices, args.config)
        except CheckpointError as error:
            error.add_note("To run without a checkpoint, add --random-weights.")
            raise
        compiled = devices["dit"].type == "cuda" if args.compile is None else args.compile
        if compiled:
            compile_blocks(pipe.dit)
        steps, parts = time_parts(pipe, args.steps)
    parts["save"] = time_of_saving(size.time_length, size.height, size.width)

    gpus = len({device for device in used.values() if device.type == "cuda"})
    record = Record(
        command=command_line(),
        config=config.name,
        device=device_name(devices["dit"]) if gpus else processor(),
        gpus=gpus,
        interconnect=interconnect(gpus) if gpus else "none",
        layout=ParallelLayout(),
        seconds_of_video=size.time_length,
        guided=size.guided,
        compiled=compiled,
        attention=kernel_of(pipe.dit) if used else "sdpa",
        step_seconds=[steps[1:]],
        warmup_seconds=[steps[:1]],
        peak_bytes=[measure.peak_bytes(device) for device in dict.fromkeys(used.values())],
        parts=parts,
        device_map={name: str(device) for name, device in used.items()},
        threads=torch.get_num_threads(),
    )
    path = record.save(args.out)
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items() if seconds is not None))
    if steps:
        whole = size.num_steps * record.step + sum(seconds or 0.0 for seconds in parts.values())
        print(f"a step {record.step:.3f} s; computed for {size.num_steps} steps: {whole:.1f} s in all")
    print(path)


if __name__ == "__main__":
    run(main)
