"""Draw the pictures of the small model. Each command draws one of them:

python launch/draw_mini.py mosaic   # 12 generated videos side by side, in assets/mosaic.gif (a few minutes)
python launch/draw_mini.py ranks    # one video on one rank and on two, side by side, in assets/ranks.gif
python launch/draw_mini.py steps    # the way from noise to a picture, in assets/steps.png
python launch/draw_mini.py limits   # other lengths, guidance, steps and words, in assets/limits.png (a few minutes)
python launch/draw_mini.py curves   # the training, from assets/weights/mini/training.jsonl, in assets/training.png
"""

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import textwrap
from pathlib import Path

import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import findfont
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.command import run, run_program
from kandinsky_mini.config import FPS, ROOT
from kandinsky_mini.files import check_writable, written_aside
from kandinsky_mini.sampling import draw_noise, time_steps
from kandinsky_mini.world.captions import LANGUAGES, plain_caption, unseen_caption
from kandinsky_mini.world.scenes import Scene

ASSETS = ROOT / "assets"
PROMPTS = (  # the mosaic shows four of them in each row
    "a cat in a red hat walks right",
    "a dog in a green hat on a meadow",
    "a duck in a purple hat on the beach",
    "a bear in a yellow hat at night",
    "a pig in a black hat in the snow",
    "a rabbit in a blue hat dances",
    "утка в чёрной шляпе ночью",
    "кот в синей шляпе идёт влево",
    "a bear in a purple hat jumps",
    "свинья в жёлтой шляпе в снегу",
    "a rabbit in a red hat at night",
    "собака в чёрной шляпе на лугу",
)
COLUMNS, CAPTION = 4, 22  # tiles in a row, and pixels under each tile for its prompt


def captioned(frames: np.ndarray, text: str) -> np.ndarray:
    """Put text under a uint8 video (frames, height, width, 3)."""
    width = frames.shape[2]
    caption = Image.new("RGB", (width, CAPTION), "white")
    font = ImageFont.truetype(findfont("DejaVu Sans"), 9)
    ImageDraw.Draw(caption).text((width // 2, CAPTION // 2), text, "black", font, anchor="mm")
    under = np.broadcast_to(np.asarray(caption), (len(frames), *np.asarray(caption).shape))
    return np.concatenate([frames, under], axis=1)


def save_gif(tiles: list[np.ndarray], columns: int, path: Path) -> None:
    """Save every other frame of videos of one size, arranged in rows, as a GIF with one palette."""
    rows = [np.concatenate(tiles[i : i + columns], axis=2) for i in range(0, len(tiles), columns)]
    frames = np.concatenate(rows, axis=1)[:-1:2]
    # k-means refines the palette. If only area counted, the skies would use up the colours and purple hats turn blue.
    palette = Image.fromarray(np.concatenate(frames[::8])).quantize(256, kmeans=3, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=2000 // FPS, loop=0, optimize=True)


def mosaic(path: Path) -> None:
    """Generate a 2 s video of each prompt, and show all of them at once."""
    pipe = get_T2V_pipeline("cpu")
    tiles = []
    for i, prompt in enumerate(tqdm(PROMPTS, desc="videos")):
        video = pipe(prompt, seed=i, progress=False)[0].permute(1, 2, 3, 0).numpy()
        tiles.append(captioned(video, prompt))
    save_gif(tiles, COLUMNS, path)


def ranks(path: Path) -> None:
    """Generate one video on one rank and on two, and show both side by side."""
    tiles = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "video.mp4")
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            script = [str(ROOT / "launch" / "generate.py"), "--device", "cpu", "--seed", "1", "--path", str(file)]
            run_program([sys.executable, *launcher, *script])
            tiles.append(captioned(iio.imread(file), f"{count} rank{'s' * (count > 1)}"))
    save_gif(tiles, len(tiles), path)


def steps(path: Path) -> None:
    """Draw two rows: the latent after a step, and the clean picture that the model then expects. Both are decoded."""
    pipe = get_T2V_pipeline("cpu")
    image = dataclasses.replace(pipe.config.sampling, time_length=0)
    latents = {0: draw_noise((*image.latent_size, pipe.config.dit.in_visual_dim), seed=1)}
    pipe("a cat in a red hat", time_length=0, seed=1, callback=latents.__setitem__)
    times = time_steps(pipe.config.sampling.num_steps, pipe.config.sampling.scheduler_scale)

    def expected(i: int) -> torch.Tensor:
        return latents[i] - times[i] * (latents[i + 1] - latents[i]) / (times[i + 1] - times[i])

    shown = (0, 3, 6, 10, 15, 20, 24)
    figure, axes = plt.subplots(2, len(shown), figsize=(14, 3.0), layout="constrained")
    for column, i in enumerate(shown):
        for row, latent in enumerate((latents[i], expected(i))):
            axes[row, column].imshow(pipe.decode(latent)[0, :, 0].permute(1, 2, 0))
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(f"after step {i}" if i else "noise")
    axes[0, 0].set_ylabel("latent")
    axes[1, 0].set_ylabel("expected")
    figure.savefig(path, dpi=110)


def limits(path: Path) -> None:
    """Draw the middle frame of one prompt's video, with one setting changed at a time.

    The last row keeps the settings and puts the prompt in other words.
    """
    pipe = get_T2V_pipeline("cpu")
    scene, rng = Scene("dog", "blue", "dances", "meadow"), random.Random(3)
    usual = {"text": plain_caption(scene, "en"), "seed": 3, "progress": False}
    rows = {
        "time_length": (0, 1, 2, 4),
        "guidance_weight": (1.0, 2.0, 3.0, 5.0, 7.0),
        "num_steps": (10, 15, 25, 35, 50),
        "text": [unseen_caption(scene, LANGUAGES[i % 2], rng) for i in range(5)],
    }
    figure, axes = plt.subplots(len(rows), 5, figsize=(14, 8.8), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    settings = [(row, column, name, value) for row, name in enumerate(rows) for column, value in enumerate(rows[name])]
    for row, column, name, value in tqdm(settings, desc="videos"):
        video = pipe(**usual | {name: value})
        axes[row, column].imshow(video[0, :, video.shape[2] // 2].permute(1, 2, 0))
        title = textwrap.fill(value, 32) if name == "text" else f"{name}={value:g}"
        axes[row, column].set_title(title, fontsize=10 if name == "text" else 12)
    figure.savefig(path, dpi=80)


def with_mean(axis: plt.Axes, x: list, y: list, width: int = 20) -> None:
    axis.plot(x, y, linewidth=0.6, alpha=0.4)
    axis.plot(x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid"), "C0", label=f"mean of {width}")
    axis.legend()


def curves(path: Path) -> None:
    """Draw the VAE's PSNR, the CrossDiT's loss, and how often prompts of held-out scenes came true.

    A dotted line marks where a refinement begins.
    """
    log = [json.loads(line) for line in (ASSETS / "weights/mini/training.jsonl").read_text().splitlines()]
    starts: dict[str, list[int]] = {}
    for stage in ("vae", "dit"):  # a refinement counts its steps from 0, so it is drawn behind the training before it
        starts[stage], last = [0], 0
        for row in (record for record in log if record["stage"] == stage and "step" in record):
            if row["step"] < last:
                starts[stage].append(starts[stage][-1] + last)
            last = row["step"]
            row["total"] = starts[stage][-1] + last

    def series(stage: str, key: str) -> tuple[list, list]:
        rows = [record for record in log if record["stage"] == stage and "total" in record and key in record]
        return [row["total"] for row in rows], [row[key] for row in rows]

    figure, (vae, dit, true) = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained")
    x, mse = series("vae", "mse")
    with_mean(vae, x, [10 * np.log10(4.0 / value) for value in mse])  # pixels go from -1 to 1, a range of 2
    vae.set(title="VAE: PSNR of single batches (dB)", xlabel="steps")
    with_mean(dit, *series("dit", "loss"))
    dit.set(title="CrossDiT: flow-matching loss of single batches", xlabel="steps", ylim=(0, 0.6))
    x, shares = series("dit", "came_true")
    for i, name in enumerate(shares[0]):  # shifted sideways, because most shares are equal
        true.plot([step + 300 * i for step in x], [100 * share[name] for share in shares], "o-", label=name)
    true.set(title="held-out prompts that came true (%)", xlabel="steps", ylim=(80, 101))
    true.legend()
    for axis, stage in ((vae, "vae"), (dit, "dit"), (true, "dit")):
        for start in starts[stage][1:]:
            axis.axvline(start, color="grey", linestyle=":")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    figure.savefig(path, dpi=110)


DRAW = {
    "mosaic": (mosaic, "mosaic.gif"),
    "ranks": (ranks, "ranks.gif"),
    "steps": (steps, "steps.png"),
    "limits": (limits, "limits.png"),
    "curves": (curves, "training.png"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=DRAW)
    draw, name = DRAW[parser.parse_args().picture]
    check_writable(ASSETS / name)
    with written_aside(ASSETS / name) as aside:
        draw(aside)
    print(ASSETS / name)


if __name__ == "__main__":
    run(main)
