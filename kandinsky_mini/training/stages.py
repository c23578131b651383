"""The stages of training mini, one function for each. launch/train_mini.py passes its options to them."""

import argparse
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..config import FPS, PIXELS_PER_LATENT, ROOT, Config
from ..files import check_writable, written_aside
from ..models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ..models.dit import DiffusionTransformer3D
from ..models.text_embedders import load_text_embedder
from ..models.vae import load_vae
from ..parallel.groups import rank, world_size
from ..world.scenes import Scene
from . import dataset, fresh_models
from . import dit as dit_training
from . import vae as vae_training
from .budget import Budget
from .run import Run, load_state, resume, save_state
from .scorer import load_scorer, score, train_scorer

FRAMES = 2 * FPS + 1  # frames of a rendered video
VAE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")
EXPORTED = ("dit", "text_encoder", "text_encoder2", "vae", "scorer.safetensors", "training.jsonl")
SEEDS = {"vae": 1, "scorer": 2, "latents": 3, "dit": 4, "held_out": 5}


def picture_size(config: Config) -> tuple[int, int]:
    """Return the (height, width) of a training video in pixels."""
    return config.sampling.height, config.sampling.width


def per_rank(batches: tuple[tuple[int, int], ...], args: argparse.Namespace) -> tuple[tuple[int, int], ...]:
    """Return (frames, videos a step) for one rank.

    The ranks share the videos of a step, and --shrink divides their number.
    """
    return tuple((frames, max(1, videos // (args.shrink * world_size()))) for frames, videos in batches)


def latents_path(run: Run) -> Path:
    return run.folder / f"latents-{rank()}-of-{world_size()}.pt"


def run_vae(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    """Train the VAE on rendered videos, and write it to the folder vae."""
    scenes = dataset.repeat_scenes(dataset.training_scenes()[: args.scenes], args.videos)
    videos = dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["vae"], device)
    torch.manual_seed(SEEDS["vae"])
    if args.refine:
        vae = load_vae(ROOT / config.weights.vae, config.vae.tiling, torch.float32).to(device)
    else:
        vae = fresh_models.new_vae(config.dit.in_visual_dim).to(device)
    state = run.load("vae", device, ("model", "optimizer"))
    if state:
        resume(vae, state, "model", "vae")
    budget = Budget(args.steps, args.minutes, **(state["budget"] if state else {}))
    clips = per_rank(vae_training.CLIPS, args)
    optimizer_state = state and state["optimizer"]
    training = vae_training.train_vae(vae, videos, budget, optimizer_state, clips, refine=args.refine)
    for step, optimizer, parts in training:
        if step % 100 == 0 or budget.spent:
            run.log("vae", {"step": step} | {name: value.item() for name, value in parts.items()})
        run.save("vae", budget, model=vae, optimizer=optimizer)
    if rank() > 0:
        return
    vae_training.normalise_latents(vae, videos[:64])
    with written_aside(run.folder / "vae", replaces=VAE_FILES) as aside:
        vae.to(torch.bfloat16).save_pretrained(aside)
    vae = load_vae(run.folder / "vae", config.vae.tiling, torch.float32).to(device)  # measure it as it is published
    run.log("vae", {"psnr_held_out": vae_training.psnr(vae, held_out_videos(args, config, device)[0])})


def held_out_videos(args: argparse.Namespace, config: Config, device: torch.device) -> tuple[torch.Tensor, list[Scene]]:
    """Render the scenes that training never shows, and return their videos with them."""
    scenes = dataset.held_out_scenes()[:: args.shrink]
    return dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["held_out"], device), scenes


def run_scorer(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    """Train the scorer on rendered videos, and write scorer.safetensors."""
    scenes = dataset.repeat_scenes(dataset.training_scenes()[: args.scenes], args.videos)
    videos = dataset.render_videos(scenes, FRAMES, picture_size(config), SEEDS["scorer"], device)
    scorer = train_scorer(videos, scenes, args.steps, batch=max(2, 32 // args.shrink), seed=SEEDS["scorer"])
    with written_aside(run.folder / "scorer.safetensors") as aside:
        save_file(scorer.state_dict(), aside)
    run.log("scorer", {"rendered": score(scorer, *held_out_videos(args, config, device))})


def run_latents(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    """Render videos through the trained VAE, and write this rank's latents."""
    vae = load_vae(run.need("vae", "vae"), config.vae.tiling, torch.float32).to(device)
    scenes = dataset.training_scenes()[: args.scenes]
    generator = torch.Generator("cpu").manual_seed(SEEDS["latents"] * 64 + rank())
    latents = {}
    for seconds, repeats in ((0, 4 * args.videos), (1, args.videos), (2, args.videos)):
        frames = FPS * seconds + 1
        values = dataset.render_latents(vae, scenes, repeats, frames, picture_size(config), generator, device)
        latents[values.shape[1]] = values.cpu()
        record = {"seconds_of_video": seconds, "count": len(values), "std": values.float().std().item()}
        run.log("latents", record)
    save_state(latents, latents_path(run))


def need_for_dit(run: Run) -> tuple[Path, Path, Path]:
    """Return the paths of the VAE, the scorer and this rank's latents, or raise if a stage is missing."""
    return run.need("vae", "vae"), run.need("scorer.safetensors", "scorer"), run.need(latents_path(run).name, "latents")


def wait_for(path: Path) -> None:
    """Wait until another stage, which runs at the same time, has written a file."""
    while not path.exists():
        time.sleep(1.0)


def run_dit(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    """Train the CrossDiT and both text encoders on the latents, and keep a checkpoint."""
    if not args.wait:
        need_for_dit(run)
    torch.manual_seed(SEEDS["dit"])
    model = dit_training.TextToLatent(DiffusionTransformer3D(config.dit), fresh_models.new_text_embedder(config))
    if args.refine:
        weights = config.weights
        load_checkpoint(model.dit, ROOT / weights.dit)
        encoders = (ROOT / weights.text_encoder, ROOT / weights.text_encoder2)
        model.embedder = load_text_embedder(*encoders, config.text, torch.float32)
    model.train().to(device)
    average = dit_training.averaged(model)
    state = run.load("dit", device, ("model", "optimizer", "average"))
    if state:
        resume(model, state, "model", "dit")
        resume(average, state, "average", "dit")
    scenes = dataset.training_scenes()[: args.scenes]
    captions = dataset.CaptionBuckets(model.embedder, scenes, args.phrasings, SEEDS["dit"], device)
    size = (*(side // PIXELS_PER_LATENT for side in picture_size(config)), config.dit.in_visual_dim)
    lengths = per_rank(dit_training.LENGTHS, args)
    gradients = dit_training.prepare(model, captions, lengths, size)
    run.log("dit", {"recorded_shapes": len(gradients.recorded)})

    if args.wait:
        wait_for(latents_path(run))
    vae_folder, scorer_file, latents_file = need_for_dit(run)
    latents = load_state(latents_file, device)
    if lost := [frames for frames, _ in lengths if frames not in latents]:
        raise CheckpointError(f"{latents_file} has no latents of {lost[0]} frames: run the stage latents again")
    vae = load_vae(vae_folder, config.vae.tiling, torch.float32).to(device)
    scorer = load_scorer(scorer_file).to(device)
    asked = dataset.held_out_scenes()[:: 2 * args.shrink]
    prompts = dit_training.evaluation_prompts(asked)
    noise = torch.randn(
        (len(asked), *latents[max(latents)].shape[1:]), generator=torch.Generator("cpu").manual_seed(7)
    ).to(device)

    budget = Budget(args.steps, args.minutes, **(state["budget"] if state else {}))
    for step, optimizer, parts in dit_training.train_dit(
        model, gradients, average, latents, captions, budget, state and state["optimizer"], lengths, refine=args.refine
    ):
        if step % 100 == 0 or budget.spent:
            run.log("dit", {"step": step} | {name: value.item() for name, value in parts.items()})
        if rank() == 0 and (step % args.evaluate_every == 0 or budget.spent):
            videos = dit_training.generate_videos(average.module, vae, prompts, noise, config.sampling)
            run.log("dit", {"step": step, "came_true": score(scorer, videos, asked)})
        run.save("dit", budget, model=model, optimizer=optimizer, average=average)


def run_export(args: argparse.Namespace, run: Run, config: Config, device: torch.device) -> None:
    """Write the averaged weights of the last checkpoint, the VAE and the scorer as the pipeline reads them.

    The folder is replaced as a whole, apart from training.jsonl.
    """
    vae_folder, scorer_file = run.need("vae", "vae"), run.need("scorer.safetensors", "scorer")
    run.need("dit.pt", "dit")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out, EXPORTED)
    model = dit_training.TextToLatent(DiffusionTransformer3D(config.dit), fresh_models.new_text_embedder(config))
    average = run.load("dit", torch.device("cpu"), ("average",))["average"]
    average = {key.removeprefix("module."): v for key, v in average.items() if key != "n_averaged"}
    resume(model, {"average": average}, "average", "dit")
    embedder = model.embedder.to(torch.bfloat16)
    vae = load_vae(vae_folder, config.vae.tiling, torch.bfloat16)
    vae.register_to_config(_name_or_path="")  # else diffusers writes the path that it was loaded from
    with written_aside(out, EXPORTED) as aside:
        aside.mkdir()
        save_checkpoint(model.dit, aside / "dit")
        for encoder, tokenizer, name in (
            (embedder.text_encoder, embedder.tokenizer, "text_encoder"),
            (embedder.text_encoder2, embedder.tokenizer2, "text_encoder2"),
        ):
            encoder.save_pretrained(aside / name)
            tokenizer.save_pretrained(aside / name)
        vae.save_pretrained(aside / "vae")
        shutil.copy(scorer_file, aside / "scorer.safetensors")
        if (out / "training.jsonl").exists():
            shutil.copy(out / "training.jsonl", aside)
    print(f"weights in {out}")


STAGES = {"vae": run_vae, "scorer": run_scorer, "latents": run_latents, "dit": run_dit, "export": run_export}
