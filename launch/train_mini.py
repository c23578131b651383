"""Train mini from scratch. Each stage is one command:

    python launch/train_mini.py vae        # renders videos and trains the VAE
    python launch/train_mini.py scorer     # trains the classifier that says whether prompts came true
    python launch/train_mini.py latents    # renders videos again and encodes them with the VAE
    python launch/train_mini.py dit        # trains the CrossDiT and the text encoders
    python launch/train_mini.py export     # writes the weights in bfloat16, as the pipeline reads them

Results and log.jsonl are kept in --folder, which is runs/mini by default. Only export writes elsewhere, to --out. The
stages vae and dit also save a checkpoint every minute. After an interruption, the same command continues from it.

The stages are made for a GPU. On a CPU, only small numbers make sense. Several GPUs can share the stages vae, latents
and dit: start them with torchrun --nproc-per-node N launch/train_mini.py. Use the same N for latents and dit, because
each rank trains on its own latents.
"""

import argparse
import math
from datetime import date

import torch

from kandinsky_mini.bench import options
from kandinsky_mini.command import run as run_script
from kandinsky_mini.config import load_config
from kandinsky_mini.parallel.groups import join_group, leave_group, local_device, world_size
from kandinsky_mini.training.run import Run
from kandinsky_mini.training.stages import STAGES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = options.at_least(1)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=options.folder, default="runs/mini")
    parser.add_argument("--config", default=None, help="YAML configuration; the default is mini")
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=whole, help="optimiser steps: by default 4500 for vae, 600 scorer, 12000 dit")
    parser.add_argument("--videos", type=whole, help="videos to render: by default 1920, for latents 20 of each scene")
    parser.add_argument("--phrasings", type=whole, default=32, help="captions for each scene and language")
    parser.add_argument("--evaluate-every", type=whole, default=1000, help="steps between evaluations")
    parser.add_argument("--scenes", type=whole, help="number of scenes to train on, the first ones; by default all")
    parser.add_argument("--shrink", type=whole, default=1, help="divide batches and evaluations, for a trial on a CPU")
    parser.add_argument(
        "--minutes",
        type=options.between(1e-9, 1e6),
        default=math.inf,
        help="vae and dit end after this many minutes",
    )
    parser.add_argument("--wait", action="store_true", help="dit prepares at once, then waits for the stage latents")
    parser.add_argument("--refine", action="store_true", help="vae and dit start from the configuration's weights")
    parser.add_argument("--out", default="assets/weights/mini", help="folder that export writes to")
    args = parser.parse_args(argv)
    if args.steps is None:
        args.steps = {"vae": 4500, "scorer": 600, "dit": 12_000}.get(args.stage, 0)
    if args.videos is None:
        args.videos = 20 if args.stage == "latents" else 1920
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device(args.device)
    if world_size() > 1:
        device = torch.device(local_device(device))
        join_group(device.type)
    config = load_config(args.config)
    run = Run(args.folder)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    run.log(args.stage, {"device": name, "ranks": world_size(), "torch": torch.__version__, "date": str(date.today())})
    with run.stage(args.stage):
        STAGES[args.stage](args, run, config, device)
    leave_group()


if __name__ == "__main__":
    run_script(main)
