"""What bfloat16 costs in accuracy, on one GPU and on several: the error of a forward against float32 on one.

torchrun --nproc-per-node 2 launch/precision.py --config kandinsky_mini/configs/lite_5s.yaml --seconds 1
python launch/precision.py --config kandinsky_mini/configs/lite_5s.yaml --seconds 1 --simulated 4   # all on one GPU

Random weights and inputs at the configuration's sizes; noise at three times of the sampling. Error: the norm of the
difference over the norm of the float32 velocity. Splitting a sum over ranks rounds it elsewhere, no more often.
Simulated ranks round as real ones do, but for the order in which an all-reduce adds.
"""

import argparse
import copy
import json
import sys
from datetime import date
from pathlib import Path

import torch
from torch.nn.attention import sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kandinsky_mini import cast  # noqa: E402
from kandinsky_mini.config import load_config  # noqa: E402
from kandinsky_mini.distributed import (  # noqa: E402
    leave,
    local_device,
    rank,
    tensor_parallel_mesh,
    world_size,
)
from kandinsky_mini.lab import options  # noqa: E402
from kandinsky_mini.lab.capacity import processor  # noqa: E402
from kandinsky_mini.lab.full_size import check_ranks, random_dit  # noqa: E402
from kandinsky_mini.lab.records import FOLDER, command_line, versions  # noqa: E402
from kandinsky_mini.lab.simulation import per_rank, simulated_ranks  # noqa: E402
from kandinsky_mini.models.parallelize import parallelize_dit  # noqa: E402
from kandinsky_mini.models.text_embedders import TextEmbeds  # noqa: E402
from kandinsky_mini.pipeline import latent_shape  # noqa: E402
from kandinsky_mini.sampling import KERNELS, draw_noise, predict_velocity  # noqa: E402

TIMES = (0.95, 0.5, 0.05)


@sdpa_kernel(KERNELS, set_priority=True)
@torch.no_grad()
def velocities(dit: torch.nn.Module, dtype: torch.dtype, inputs: list[tuple], scale: tuple) -> list[torch.Tensor]:
    """Of each (noise, time, text), in float32 on the CPU."""
    return [
        predict_velocity(dit, x.to(dtype), time, TextEmbeds(*(part.to(dtype) for part in text)), scale).float().cpu()
        for x, time, text in inputs
    ]


def relative(outputs: list[torch.Tensor], references: list[torch.Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(outputs, references, strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=options.config_file, help="YAML; default: mini")
    parser.add_argument("--seconds", type=options.at_least(0), default=1, help="of video")
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    simulated = {"default": 1, "metavar": "RANKS", "help": "in one process, without a launcher"}
    parser.add_argument("--simulated", type=options.at_least(1), **simulated)
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="the folder of the record")
    args = parser.parse_args(argv)
    if args.simulated > 1 and world_size() > 1:
        parser.error("--simulated is for one process, here are ranks of a launcher")
    config = load_config(args.config)
    ranks = max(args.simulated, world_size())
    try:
        check_ranks(config.dit, ranks)
    except ValueError as error:
        parser.error(str(error))

    device = torch.device(local_device(args.device))
    shape = latent_shape(config, args.seconds, config.sampling.width, config.sampling.height)
    text = tuple(draw_noise(s, 1).to(device) for s in ((200, config.dit.in_text_dim), (1, config.dit.in_text_dim2)))
    inputs = [(draw_noise(shape, i).to(device), torch.tensor([t], device=device), text) for i, t in enumerate(TIMES)]
    scale = config.sampling.scale_factor

    dit = random_dit(config.dit, device)
    references = velocities(dit, torch.float32, inputs, scale)
    dit = cast(dit, torch.bfloat16)
    errors = {"1": relative(velocities(dit, torch.bfloat16, inputs, scale), references)}
    if world_size() > 1:
        sharded = parallelize_dit(copy.deepcopy(dit), tensor_parallel_mesh(device.type)["tensor_parallel"])
        errors[str(ranks)] = relative(velocities(sharded, torch.bfloat16, inputs, scale), references)
    elif args.simulated > 1:
        with simulated_ranks(ranks, device_type=device.type) as mesh:
            outputs = velocities(parallelize_dit(copy.deepcopy(dit), mesh), torch.bfloat16, inputs, scale)
        errors[str(ranks)] = relative([per_rank(output)[0] for output in outputs], references)
    if rank() == 0:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        record = {
            "command": command_line(),
            "config": config.name,
            "device": name,
            "seconds_of_video": args.seconds,
            "simulated": args.simulated > 1,
            "times": TIMES,
            "errors": errors,
            "date": date.today().isoformat(),
            "versions": versions(),
        }
        kind = "-simulated" if args.simulated > 1 else ""
        path = args.out / f"precision-{config.name}-{ranks}{kind}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for ranks, values in errors.items():
            print(f"{config.name}, bfloat16 on {ranks}:", *(f"{value:.2e}" for value in values))
        print(path)
    leave()


if __name__ == "__main__":
    main()
