"""Train mini from nothing, in stages, each one command:

    python launch/train_mini.py vae        # renders videos, trains the VAE
    python launch/train_mini.py scorer     # trains the classifier that says whether prompts came true
    python launch/train_mini.py latents    # renders again, through the VAE
    python launch/train_mini.py dit        # trains the CrossDiT and the text encoders
    python launch/train_mini.py export     # writes bfloat16 weights as the pipeline reads them

Everything is kept in --folder (default runs/mini): log.jsonl, and of vae and dit a checkpoint every minute,
from which the same command goes on after an interruption. Made for a GPU; on a CPU only small numbers make sense.
Several GPUs share the stages vae, latents and dit: torchrun --nproc-per-node N launch/train_mini.py, with one N for
latents and dit, since each rank trains on latents of its own.
"""

import argparse
import json
import math
import shutil
import sys
import time
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kandinsky_mini.config import ROOT, Config, load_config  # noqa: E402
from kandinsky_mini.distributed import join_group, leave, local_device, rank, world_size  # noqa: E402
from kandinsky_mini.models.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from kandinsky_mini.models.text_embedders import load_text_embedder  # noqa: E402
from kandinsky_mini.models.vae import load_vae  # noqa: E402
from kandinsky_mini.world import dataset, scratch, train_dit, train_vae  # noqa: E402
from kandinsky_mini.world.budget import Budget  # noqa: E402
from kandinsky_mini.world.scenes import Scene  # noqa: E402
from kandinsky_mini.world.scorer import load_scorer, score, train_scorer  # noqa: E402

FRAMES = 49
SEEDS = {"vae": 1, "scorer": 2, "latents": 3, "dit": 4, "held_out": 5}


def picture_size(config: Config) -> tuple[int, int]:
    return config.sampling.height, config.sampling.width


def per_rank(batches: tuple[tuple[int, int], ...], args: argparse.Namespace) -> tuple[tuple[int, int], ...]:
    """(frames, videos a step) of one rank: ranks share a step's videos, and --shrink divides them."""
    return tuple((frames, max(1, videos // (args.shrink * world_size()))) for frames, videos in batches)


class Run:
    """The folder of a training: its log and its checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started = self.saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, stage: str, record: dict) -> None:
        if rank() > 0:
            return
        record = {"stage": stage, "seconds": round(time.monotonic() - self.started, 1)} | record
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()), flush=True)

    def save(self, name: str, budget: Budget, **parts) -> None:
        """Once a minute, and at the end; written aside first, so that a checkpoint is always a whole one."""
        if rank() > 0 or (not budget.spent and time.monotonic() - self.saved < 60):
            return
        self.saved = time.monotonic()
        state = {part: value.state_dict() for part, value in parts.items()} | {"budget": budget.state()}
        torch.save(state, self.folder / f"{name}.tmp")
        (self.folder / f"{name}.tmp").replace(self.folder / f"{name}.pt")

    def load(self, name: str, device: torch.device) -> dict | None:
        path = self.folder / f"{name}.pt"
        return torch.load(path, map_location=device) if path.exists() else None


def latents_path(run: Run) -> Path:
    return run.folder / f"latents-{rank()}-of-{world_size()}.pt"


def run_vae(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    scenes = dataset.repeat_scenes(dataset.training_scenes()[: args.scenes], args.videos)
    videos = dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["vae"], device)
    torch.manual_seed(SEEDS["vae"])
    if args.refine:
        vae = load_vae(ROOT / config.weights.vae, config.vae.tiling, torch.float32).to(device)
    else:
        vae = scratch.new_vae(config.dit.in_visual_dim).to(device)
    state = run.load("vae", device)
    if state:
        vae.load_state_dict(state["model"])
    budget = Budget(args.steps, args.minutes, **(state["budget"] if state else {}))
    clips = per_rank(train_vae.CLIPS, args)
    optimizer_state = state and state["optimizer"]
    for step, optimizer, parts in train_vae.train_vae(vae, videos, budget, optimizer_state, clips, refine=args.refine):
        if step % 100 == 0 or budget.spent:
            run.log("vae", {"step": step} | {name: value.item() for name, value in parts.items()})
        run.save("vae", budget, model=vae, optimizer=optimizer)
    if rank() > 0:
        return
    train_vae.normalise_latents(vae, videos[:64])
    vae.to(torch.bfloat16).save_pretrained(run.folder / "vae")
    vae = load_vae(run.folder / "vae", config.vae.tiling, torch.float32).to(device)  # measured as it is published
    run.log("vae", {"psnr_held_out": train_vae.psnr(vae, held_out_videos(args, config, device)[0])})


def held_out_videos(args: argparse.Namespace, config: Config, device: torch.device) -> tuple[torch.Tensor, list[Scene]]:
    scenes = dataset.held_out_scenes()[:: args.shrink]
    return dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["held_out"], device), scenes


def run_scorer(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    scenes = dataset.repeat_scenes(dataset.training_scenes()[: args.scenes], args.videos)
    videos = dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["scorer"], device)
    scorer = train_scorer(videos, scenes, args.steps, batch=max(2, 32 // args.shrink), seed=SEEDS["scorer"])
    save_file(scorer.state_dict(), run.folder / "scorer.safetensors")
    run.log("scorer", {"rendered": score(scorer, *held_out_videos(args, config, device))})


def run_latents(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    vae = load_vae(run.folder / "vae", config.vae.tiling, torch.float32).to(device)
    scenes = dataset.training_scenes()[: args.scenes]
    generator = torch.Generator().manual_seed(SEEDS["latents"] * 64 + rank())
    latents = {}
    for seconds, repeats in ((0, 4 * args.videos), (1, args.videos), (2, args.videos)):
        values = dataset.render_latents(vae, scenes, repeats, 24 * seconds + 1, picture_size(config), generator, device)
        latents[values.shape[1]] = values.cpu()
        record = {"seconds_of_video": seconds, "count": len(values), "std": values.float().std().item()}
        run.log("latents", record)
    path = latents_path(run)
    torch.save(latents, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def run_dit(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    torch.manual_seed(SEEDS["dit"])
    model = train_dit.TextToLatent(scratch.new_dit(config), scratch.new_text_embedder(config))
    if args.refine:
        weights = config.weights
        load_checkpoint(model.dit, ROOT / weights.dit)
        encoders = (ROOT / weights.text_encoder, ROOT / weights.text_encoder2)
        model.embedder = load_text_embedder(*encoders, config.text, torch.float32)
    model.train().to(device)
    average = train_dit.averaged(model)
    state = run.load("dit", device)
    if state:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
    scenes = dataset.training_scenes()[: args.scenes]
    captions = dataset.CaptionBuckets(model.embedder, scenes, args.phrasings, SEEDS["dit"], device)
    size = (*(side // 8 for side in picture_size(config)), config.dit.in_visual_dim)
    lengths = per_rank(train_dit.LENGTHS, args)
    gradients = train_dit.prepare(model, captions, lengths, size)
    run.log("dit", {"recorded_shapes": len(gradients.recorded)})

    while args.wait and not latents_path(run).exists():
        time.sleep(1.0)
    latents = torch.load(latents_path(run), map_location=device)
    vae = load_vae(run.folder / "vae", config.vae.tiling, torch.float32).to(device)
    scorer = load_scorer(run.folder / "scorer.safetensors").to(device)
    asked = dataset.held_out_scenes()[:: 2 * args.shrink]
    prompts = train_dit.evaluation_prompts(asked)
    noise = torch.randn((len(asked), *latents[max(latents)].shape[1:]), generator=torch.Generator().manual_seed(7)).to(
        device
    )

    budget = Budget(args.steps, args.minutes, **(state["budget"] if state else {}))
    for step, optimizer, parts in train_dit.train_dit(
        model, gradients, average, latents, captions, budget, state and state["optimizer"], lengths, refine=args.refine
    ):
        if step % 100 == 0 or budget.spent:
            run.log("dit", {"step": step} | {name: value.item() for name, value in parts.items()})
        if rank() == 0 and (step % args.evaluate_every == 0 or budget.spent):
            videos = train_dit.generate_videos(average.module, vae, prompts, noise, config.sampling)
            run.log("dit", {"step": step, "came_true": score(scorer, videos, asked)})
        run.save("dit", budget, model=model, optimizer=optimizer, average=average)


def run_export(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    model = train_dit.TextToLatent(scratch.new_dit(config), scratch.new_text_embedder(config))
    average = run.load("dit", torch.device("cpu"))["average"]
    model.load_state_dict({key.removeprefix("module."): v for key, v in average.items() if key != "n_averaged"})
    out = Path(args.out)
    save_checkpoint(model.dit, out / "dit")
    embedder = model.embedder.to(torch.bfloat16)
    for encoder, tokenizer, name in (
        (embedder.text_encoder, embedder.tokenizer, "text_encoder"),
        (embedder.text_encoder2, embedder.tokenizer2, "text_encoder2"),
    ):
        encoder.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    vae = load_vae(run.folder / "vae", config.vae.tiling, torch.bfloat16)
    vae.register_to_config(_name_or_path="")  # diffusers would write where it was loaded from, on this machine
    vae.save_pretrained(out / "vae")
    shutil.copy(run.folder / "scorer.safetensors", out)
    print(f"weights in {out}")


STAGES = {"vae": run_vae, "scorer": run_scorer, "latents": run_latents, "dit": run_dit, "export": run_export}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, default=Path("runs/mini"))
    parser.add_argument("--config", default=None, help="YAML, default: mini")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="optimiser steps; default: 4500 vae, 600 scorer, 12000 dit")
    parser.add_argument("--videos", type=int, help="rendered videos; latents: of each scene; default: 1920, 20")
    parser.add_argument("--phrasings", type=int, default=32, help="captions of each scene and language")
    parser.add_argument("--evaluate-every", type=int, default=1000, help="steps between evaluations")
    parser.add_argument("--scenes", type=int, help="train on the first so many scenes only")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and evaluations, for a trial on a CPU")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the training stage by then")
    parser.add_argument("--wait", action="store_true", help="dit: prepare at once, then wait for the stage latents")
    parser.add_argument("--refine", action="store_true", help="vae, dit: start from the configuration's weights")
    parser.add_argument("--out", default="assets/weights/mini", help="where export writes")
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
    run = Run(args.folder)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    run.log(args.stage, {"device": name, "ranks": world_size(), "torch": torch.__version__, "date": str(date.today())})
    STAGES[args.stage](args, run, load_config(args.config), device)


if __name__ == "__main__":
    main()
    leave()
