"""Check the caller's arguments before any model runs. Errors say what was given and what would work."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from .config import Config, SamplingConfig, check_sampling
from .limits import check_whole, short
from .parallel.groups import rank
from .parallel.layout import ParallelLayout
from .saving import SUFFIXES, check_can_save


@dataclass(frozen=True)
class Request:
    """What one call of a pipeline asks for, checked and complete. Only the seed and the path may be None."""

    prompt: str
    negative_caption: str
    sampling: SamplingConfig
    seed: int | None
    expand_prompts: bool
    save_path: Path | None

    @property
    def image(self) -> bool:
        return self.sampling.time_length == 0


def check_request(
    config: Config,
    layout: ParallelLayout,
    prompt: str,
    *,
    negative_caption: str | None = None,
    seed: int | None = None,
    expand_prompts: bool | None = None,
    save_path: str | Path | None = None,
    **sampling: float | None,
) -> Request:
    """Check what Kandinsky5T2VPipeline takes, before hours of sampling. What is None takes the configuration's value.

    Only rank 0 saves, so only rank 0 tries the path.

    Raises:
        ValueError: an argument has a wrong type or value, or save_path could not be written.
    """
    changed = replace(config.sampling, **{name: value for name, value in sampling.items() if value is not None})
    negative_caption = config.text.negative_prompt if negative_caption is None else negative_caption
    check_text("prompt", prompt)
    check_text("negative caption", negative_caption)
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what the video shows")
    checked = check_sampling(changed, config.dit.unit)
    if checked.guided and not config.sampling.guided:
        raise ValueError(
            f"{config.name} is a model without guidance: leave its guidance weight at 1, because "
            f"{checked.guidance_weight:g} would spoil the video"
        )
    layout.check_run(checked, config.dit)
    if expand_prompts and not config.text.expansion_template:
        raise ValueError(f"{config.name} cannot expand prompts: it has no expansion_template")
    if expand_prompts is None:
        expand_prompts = bool(config.text.expansion_template)
    if seed is not None:
        seed = check_whole("seed", seed, "a whole number", 0, 2**64 - 1)
    if save_path is not None and rank() == 0:
        latent_bytes = 4 * config.dit.in_visual_dim * prod(checked.latent_size)
        save_path = check_save_path(save_path, "image" if checked.time_length == 0 else "video", latent_bytes)
    return Request(prompt, negative_caption, checked, seed, expand_prompts, save_path)


def check_text(name: str, value: object) -> None:
    """Refuse anything but text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"the {name} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {name} {short(value)} has a broken character at position {error.start}") from error


def check_save_path(path: str | Path, kind: str, latent_bytes: int = 0) -> Path:
    """Refuse, before hours of sampling, a path that could not be written afterwards. kind is a key of SUFFIXES.

    latent_bytes is the size of the latent that is kept beside the video until it is saved.
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"save_path must be a path, not {short(path)}")
    path = Path(path)
    if path.suffix.lower() != SUFFIXES[kind]:
        raise ValueError(f"{path}: the suffix of this {kind} must be {SUFFIXES[kind]}, not {path.suffix!r}")
    check_can_save(path, latent_bytes)
    return path
