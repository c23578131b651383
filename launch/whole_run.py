"""Measure how long each part of a whole run takes: text encoders, CrossDiT, VAE, saving.

python launch/whole_run.py --config lite_5s --seconds 10 --random-weights --path ./test.mp4 \
    --device-map dit=cuda:0 vae=cuda:1 text_embedder=cuda:2
torchrun --nproc-per-node 2 launch/whole_run.py --config lite_10s --random-weights --device-map cuda --layout cfg2-tp1

The first line is the talk's last cell: three devices, three models, one process, and 10 seconds from the model for 5.
The second one has two ranks, which share the steps and the pieces of the video that the VAE decodes. With
--random-weights the models are the real classes at the real sizes, and no checkpoint is needed. Rank 0 writes a record
as JSON.

Saving is work for a CPU, and needs imageio-ffmpeg. Where that is missing, saving is left out, and --only-saving can
measure it on another machine.
"""

import argparse
import importlib.util
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.bench import measure, options
from kandinsky_mini.bench.machine import device_name, interconnect, processor
from kandinsky_mini.bench.random_models import random_pipeline
from kandinsky_mini.bench.records import FOLDER, Record, command_line
from kandinsky_mini.build import resolve_devices, resolve_layout
from kandinsky_mini.command import run
from kandinsky_mini.config import FPS, SamplingConfig, load_config
from kandinsky_mini.models.attention import KERNELS, kernel_of
from kandinsky_mini.models.checkpoint import CheckpointError
from kandinsky_mini.models.dit import compile_blocks
from kandinsky_mini.parallel.groups import gather_from_all, leave_group, rank, world_size
from kandinsky_mini.pipeline import COMPONENTS, Kandinsky5T2VPipeline
from kandinsky_mini.sampling import draw_noise
from kandinsky_mini.saving import save
from kandinsky_mini.training.dataset import render_videos
from kandinsky_mini.validation import check_request, check_save_path
from kandinsky_mini.world.scenes import Scene

PROMPT = "a cat in a red hat"
SCENE = Scene("cat", "red", "walks right", "meadow")


def parse_device_map(entries: list[str]) -> dict[str, torch.device]:
    """Turn ["cuda"] or ["dit=cuda:0", ...] into devices, named as in get_T2V_pipeline's device_map."""
    if len(entries) == 1 and "=" not in entries[0]:
        entries = [f"{name}={entries[0]}" for name in COMPONENTS]
    named = dict(entry.partition("=")[::2] for entry in entries)
    if set(named) != set(COMPONENTS) or len(entries) > len(named):
        sys.exit(f"error: --device-map is {' '.join(entries)}; it needs {', '.join(COMPONENTS)}, each once")
    try:
        return {name: torch.device(options.device(device)) for name, device in named.items()}
    except argparse.ArgumentTypeError as error:
        sys.exit(f"error: --device-map: {error}")


def limit_memory(devices: dict[str, torch.device], gigabytes: float) -> None:
    """Let PyTorch take no more than this on each GPU, as if the GPU had no more."""
    gpus = (device for device in devices.values() if device.type == "cuda")
    for index in {torch.cuda.current_device() if device.index is None else device.index for device in gpus}:
        whole = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / whole), index)


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


def time_parts(
    pipe: Kandinsky5T2VPipeline, size: SamplingConfig, num_steps: int, path: Path | None
) -> tuple[list[float], dict[str, float]]:
    """Return the seconds of each step, the first and slower one included, and those of the other parts.

    Rank 0 measures the steps and the text, and waits for the others' share of the decoding. The video goes to the path.
    """
    devices, prompts = pipe.device_map, (PROMPT, pipe.config.text.negative_prompt)
    parts = {}
    if rank() == 0:
        with pipe.on_its_device("text_embedder"):
            pipe.text_embedder.encode(PROMPT)
            encode = pipe.text_embedder.encode
            parts["text"] = measure.timed(lambda: [encode(prompt) for prompt in prompts], devices["text_embedder"])
            if pipe.text_embedder.writer is not None:
                expand = partial(pipe.text_embedder.expand, PROMPT)
                parts["expand"] = measure.timed(expand, devices["text_embedder"])
    for device in {device for device in devices.values() if device.type == "cuda"}:
        measure.forget_peak(device)  # the peak of building the models is not of interest
    watch = measure.Stopwatch(devices["dit"])
    video = pipe(PROMPT, time_length=size.time_length, num_steps=num_steps, seed=1, save_path=path, callback=watch)
    if rank() == 0:
        print(f"video {tuple(video.shape)}, {video.dtype}" + (f", saved to {path}" if path else ""))
    latent = draw_noise((*size.latent_size, pipe.config.dit.out_visual_dim), seed=1)
    gather_from_all("ready to decode")
    parts["vae"] = measure.timed(lambda: pipe.decode(latent), devices["vae"]) if pipe.vae is not None else 0.0
    return watch.seconds, parts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML; default: mini")
    parser.add_argument("--random-weights", action="store_true", help="real sizes without a checkpoint")
    parser.add_argument("--only-saving", action="store_true", help="measure saving only, without loading a model")
    parser.add_argument(
        "--steps", type=options.at_least(2), default=10, help="sampling steps; the first is not counted"
    )
    parser.add_argument("--seconds", type=options.at_least(1), help="of video (default: the configuration's)")
    parser.add_argument("--path", type=Path, help="save the video here, too, as .mp4 (default: do not keep it)")
    maps = "dit=cuda:0 vae=cuda:1 text_embedder=cuda:2, or one device for all; a rank takes its own (default: cpu)"
    parser.add_argument("--device-map", nargs="+", default=["cpu"], metavar="PART=DEVICE", help=maps)
    parser.add_argument("--layout", help="how the CrossDiT is split over the ranks (default: tp over all ranks)")
    parser.add_argument("--attention", choices=KERNELS, default="auto", help="kernel of the CrossDiT's attention")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the visual blocks; default: on a GPU")
    parser.add_argument("--offload", action="store_true", help="let models that do not work wait in the CPU's memory")
    parser.add_argument(
        "--memory", type=options.between(1, 1e6), help="GB that PyTorch may take on each GPU (default: all there is)"
    )
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="the folder of the record")
    args = parser.parse_args(argv)

    if args.only_saving and world_size() > 1:
        parser.error("saving is work for one process: start it with python")
    config, devices = load_config(args.config), parse_device_map(args.device_map)
    layout = resolve_layout(args.layout, config.dit)
    size = replace(config.sampling, time_length=args.seconds or config.sampling.time_length)
    check_request(config, layout, PROMPT, time_length=size.time_length, num_steps=args.steps, save_path=args.path)
    if world_size() > 1:
        devices = resolve_devices(devices)
    if rank() == 0 and can_save():  # what is wrong would otherwise show at the very end
        check_save_path(args.out / "video.mp4", "video")
    if args.memory:
        limit_memory(devices, args.memory)
    parts: dict[str, float | None] = {}
    used, steps, compiled = {}, [], False
    if not args.only_saving:
        used = devices
        try:
            if args.random_weights:
                pipe = random_pipeline(config, devices, layout, args.attention, args.offload)
            else:
                pipe = get_T2V_pipeline(devices, args.config, layout, args.attention, offload=args.offload)
        except CheckpointError as error:
            error.add_note("To run without a checkpoint, add --random-weights.")
            raise
        compiled = devices["dit"].type == "cuda" if args.compile is None else args.compile
        if compiled:
            compile_blocks(pipe.dit, devices["dit"])
        steps, parts = time_parts(pipe, size, args.steps, args.path)
    peaks = [measure.peak_bytes(device) for device in dict.fromkeys(used.values())]
    peaks = [peak for of_rank in gather_from_all(peaks) for peak in of_rank]
    if rank() > 0:
        leave_group()
        return
    parts["save"] = time_of_saving(size.time_length, size.height, size.width)

    gpus = len({device for device in used.values() if device.type == "cuda"}) * world_size()
    record = Record(
        command=command_line(),
        config=config.name,
        device=device_name(devices["dit"]) if gpus else processor(),
        gpus=gpus,
        interconnect=interconnect(gpus) if gpus else "none",
        layout=layout,
        seconds_of_video=size.time_length,
        guided=size.guided,
        compiled=compiled,
        attention=kernel_of(pipe.dit) if used else "sdpa",
        step_seconds=[steps[1:]],
        warmup_seconds=[steps[:1]],
        peak_bytes=peaks,
        parts=parts,
        device_map={name: str(device) for name, device in used.items()},
        offload=args.offload,
        sparse=bool(used) and config.dit.nabla is not None,
        threads=torch.get_num_threads(),
    )
    path = record.save(args.out)
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items() if seconds is not None))
    if steps:
        whole = size.num_steps * record.step + sum(seconds or 0.0 for seconds in parts.values())
        print(f"a step {record.step:.3f} s; computed for {size.num_steps} steps: {whole:.1f} s in all")
    print(path)
    leave_group()


if __name__ == "__main__":
    run(main)
