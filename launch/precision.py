"""Measure what bfloat16 costs in accuracy: the error of a forward against float32, on one GPU and on several.

torchrun --nproc-per-node 2 launch/precision.py --config kandinsky_mini/configs/lite_5s.yaml --seconds 1
python launch/precision.py --config kandinsky_mini/configs/lite_5s.yaml --seconds 1 --simulated 4   # all on one GPU

Weights and inputs are random, at the configuration's sizes. Each error is measured at three times of the sampling. It
is the norm of the difference divided by the norm of the float32 velocity. A sum that is split over ranks is rounded
once more for each rank's term. Simulated ranks round as real ones do, but an all-reduce may add in another order.
"""

import argparse
from dataclasses import replace
from datetime import date
from functools import partial

import torch

from kandinsky_mini.bench import options
from kandinsky_mini.bench.machine import device_name
from kandinsky_mini.bench.random_models import draw_weights
from kandinsky_mini.bench.records import FOLDER, command_line, slug, versions
from kandinsky_mini.build import build_dit, join
from kandinsky_mini.command import run as run_script
from kandinsky_mini.config import load_config
from kandinsky_mini.files import write_json
from kandinsky_mini.models.attention import KERNELS, kernel_of, preferred_kernels
from kandinsky_mini.models.parallelize import parallelize_dit
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.parallel.groups import leave_group, local_device, rank, world_size
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.parallel.simulation import per_rank, simulated_ranks
from kandinsky_mini.sampling import draw_noise, predict_velocity

TIMES = (0.95, 0.5, 0.05)


@torch.no_grad()
def velocities(dit: torch.nn.Module, inputs: list[tuple], scale: tuple) -> list[torch.Tensor]:
    """Compute the velocity of each (noise, time, text) in the model's dtype, and return all of them as float32."""
    outputs = []
    for x, time, text in inputs:
        embeds = TextEmbeds(*(part.to(dit.dtype) for part in text))
        with preferred_kernels(kernel_of(dit)):
            outputs.append(predict_velocity(dit, x.to(dit.dtype), time, embeds, scale).float())
    return outputs


def relative(outputs: list[torch.Tensor], references: list[torch.Tensor]) -> list[float]:
    """Return the norm of each difference over the norm of its reference."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(outputs, references, strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML; default: mini")
    parser.add_argument("--seconds", type=options.at_least(0), default=1, help="of video")
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    simulated = {
        "default": 1,
        "metavar": "RANKS",
        "help": "simulate this many ranks in one process, without a launcher",
    }
    parser.add_argument("--simulated", type=options.at_least(1), **simulated)
    kernel = {"choices": KERNELS, "default": "auto", "help": "attention in bfloat16 (default: flash4 if it can run)"}
    parser.add_argument("--attention", **kernel)
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="the folder of the record")
    args = parser.parse_args(argv)
    if args.simulated > 1 and world_size() > 1:
        parser.error("--simulated is for one process, but a launcher started several")
    config = load_config(args.config)
    layout = ParallelLayout("tp", max(args.simulated, world_size()))
    try:
        layout.check(config.dit, layout.ranks)
    except ValueError as error:
        parser.error(str(error))

    device = torch.device(local_device(args.device))
    sampling = replace(config.sampling, time_length=args.seconds)
    shape = (*sampling.latent_size, config.dit.in_visual_dim)
    text = tuple(draw_noise(s, 1).to(device) for s in ((200, config.dit.in_text_dim), (1, config.dit.in_text_dim2)))
    inputs = [
        (draw_noise(shape, i).to(device), torch.tensor([t], dtype=torch.float32, device=device), text)
        for i, t in enumerate(TIMES)
    ]

    build = partial(build_dit, config.dit, device, partial(draw_weights, device=device))
    run = partial(velocities, inputs=inputs, scale=sampling.scale_factor)
    references = run(build(dtype=torch.float32, attention="sdpa"))
    build = partial(build, dtype=torch.bfloat16, attention=args.attention)
    whole = build()
    errors = {"1": relative(run(whole), references)}
    if world_size() > 1:
        mesh = join(layout, device)
        errors[str(layout.ranks)] = relative(run(build(mesh=mesh)), references)
    elif args.simulated > 1:
        with simulated_ranks(layout, device.type) as mesh:
            outputs = run(parallelize_dit(whole, mesh))
        errors[str(layout.ranks)] = relative([per_rank(output)[0] for output in outputs], references)
    if rank() == 0:
        record = {
            "command": command_line(),
            "config": config.name,
            "device": device_name(device),
            "seconds_of_video": args.seconds,
            "simulated": args.simulated > 1,
            "attention": kernel_of(whole),
            "times": TIMES,
            "errors": errors,
            "date": date.today().isoformat(),
            "versions": versions(),
        }
        kind = "-flash4" * (kernel_of(whole) == "flash4") + "-simulated" * (args.simulated > 1)
        where = slug(record["device"].removeprefix("NVIDIA "))
        path = args.out / f"precision-{where}-{config.name}-{args.seconds}s-{layout}{kind}.json"
        write_json(path, record)
        for ranks, values in errors.items():
            print(f"{config.name}, bfloat16 on {ranks}:", *(f"{value:.2e}" for value in values))
        print(path)
    leave_group()


if __name__ == "__main__":
    run_script(main)
