"""The pictures of the small model, each drawn by one command:

python launch/draw_mini.py mosaic   # 12 generated videos side by side, assets/mosaic.gif (a few minutes)
python launch/draw_mini.py steps    # from noise to video, assets/steps.png
python launch/draw_mini.py limits   # other lengths, guidance and steps, assets/limits.png (a few minutes)
python launch/draw_mini.py curves   # the training, from assets/weights/mini/training.jsonl, assets/training.png
"""

import argparse
import json
import random
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import findfont
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kandinsky_mini import get_T2V_pipeline  # noqa: E402
from kandinsky_mini.sampling import draw_noise, time_steps  # noqa: E402
from kandinsky_mini.world.captions import LANGUAGES, plain_caption, unseen_caption  # noqa: E402
from kandinsky_mini.world.scenes import Scene  # noqa: E402

ASSETS = ROOT / "assets"
PROMPTS = (  # four in a row
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
COLUMNS, CAPTION = 4, 22  # tiles in a row; pixels under each for its prompt


def mosaic(path: Path) -> None:
    """Every other frame of a 2 s video of each prompt, in a GIF of one palette."""
    pipe = get_T2V_pipeline("cpu")
    font = ImageFont.truetype(findfont("DejaVu Sans"), 9)
    columns = [[] for _ in range(COLUMNS)]
    for i, prompt in enumerate(tqdm(PROMPTS, desc="videos")):
        video = pipe(prompt, seed=i, progress=False)[0, :, :-1:2].permute(1, 2, 3, 0).numpy()
        caption = Image.new("RGB", (video.shape[2], CAPTION), "white")
        middle = (video.shape[2] // 2, CAPTION // 2)
        ImageDraw.Draw(caption).text(middle, prompt, "black", font, anchor="mm")
        under = np.broadcast_to(np.asarray(caption), (len(video), *np.asarray(caption).shape))
        columns[i % COLUMNS].append(np.concatenate([video, under], axis=1))
    frames = np.concatenate([np.concatenate(column, axis=1) for column in columns], axis=2)
    # Refined by k-means: by area alone a palette spends its colours on skies and gives purple hats a blue.
    palette = Image.fromarray(np.concatenate(frames[::8])).quantize(256, kmeans=3, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=83, loop=0, optimize=True)


def steps(path: Path) -> None:
    """Two rows: the latent after a step, and the clean picture that the model then expects, both decoded."""
    pipe = get_T2V_pipeline("cpu")
    shape = (1, pipe.config.sampling.height // 8, pipe.config.sampling.width // 8, pipe.config.dit.in_visual_dim)
    latents = {0: draw_noise(shape, seed=1)}
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
    """The middle frame of one prompt's video when one setting is not the default; last, other words for the prompt."""
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
    """Losses, and how often prompts of held-out scenes came true; a dotted line begins a refinement."""
    log = [json.loads(line) for line in (ASSETS / "weights/mini/training.jsonl").read_text().splitlines()]
    starts: dict[str, list[int]] = {}
    for stage in ("vae", "dit"):  # a refinement counts its steps from 0: drawn behind the training before it
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
    with_mean(vae, x, [10 * np.log10(4.0 / value) for value in mse])  # pixels from -1 to 1: a range of 2
    vae.set(title="VAE: PSNR of single batches (dB)", xlabel="steps")
    with_mean(dit, *series("dit", "loss"))
    dit.set(title="CrossDiT: flow-matching loss of single batches", xlabel="steps", ylim=(0, 0.6))
    x, shares = series("dit", "came_true")
    for i, name in enumerate(shares[0]):  # side by side, since most are equal
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
    "steps": (steps, "steps.png"),
    "limits": (limits, "limits.png"),
    "curves": (curves, "training.png"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=DRAW)
    draw, name = DRAW[parser.parse_args().picture]
    draw(ASSETS / name)
    print(ASSETS / name)


if __name__ == "__main__":
    main()
