"""Find each model in a folder with the released weights, in either of the two layouts that are published.

what                      download script of the released code       format of diffusers
CrossDiT                  model/kandinsky5lite_t2v_....safetensors   transformer/
VAE                       vae/                                       vae/
Qwen, its tokenizer       text_encoder/                              text_encoder/, tokenizer/
CLIP, its tokenizer       text_encoder2/                             text_encoder_2/, tokenizer_2/
"""

import json
from pathlib import Path

from .config import Config
from .models.checkpoint import CheckpointError

# {} is the file name of the CrossDiT, which says which variant it is.
DOWNLOADED = {
    "dit": "model/{}",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "tokenizer": "text_encoder",
    "text_encoder2": "text_encoder2",
    "tokenizer2": "text_encoder2",
}
DIFFUSERS = {
    "dit": "transformer",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "tokenizer": "tokenizer",
    "text_encoder2": "text_encoder_2",
    "tokenizer2": "tokenizer_2",
}
# Where a part is published on huggingface.co, and its size in GB. {} is the variant, such as sft-5s.
SOURCES = {
    "dit": ("kandinskylab/Kandinsky-5.0-T2V-Lite-{}", 4.6),
    "vae": ("hunyuanvideo-community/HunyuanVideo", 1.0),
    "text_encoder": ("Qwen/Qwen2.5-VL-7B-Instruct", 16.6),
    "tokenizer": ("Qwen/Qwen2.5-VL-7B-Instruct", 0.01),
    "text_encoder2": ("openai/clip-vit-large-patch14", 1.7),
    "tokenizer2": ("openai/clip-vit-large-patch14", 0.01),
}


def released_weights(folder: Path, config: Config) -> dict[str, Path]:
    """Return the path of each part and of each tokenizer, whether it exists or not.

    A folder without transformer/ counts as one that the released code's script has downloaded.

    Raises:
        CheckpointError: there is no such folder, it has both layouts, or it is for videos of another length.
    """
    if not folder.is_dir():
        raise CheckpointError(f"the folder of the released weights {folder} does not exist")
    if (folder / "model").is_dir() and (folder / "transformer").is_dir():
        raise CheckpointError(f"{folder} holds a CrossDiT in model/ and one in transformer/: move one of them away")
    layout = DIFFUSERS if (folder / "transformer").is_dir() else DOWNLOADED
    if layout is DIFFUSERS:
        _check_length(folder / "transformer" / "config.json", config)
    return {part: folder / path.format(Path(config.weights.dit).name) for part, path in layout.items()}


def _check_length(path: Path, config: Config) -> None:
    """Refuse weights for 10 seconds with a configuration for 5, and the other way round.

    The names in diffusers' layout do not tell them apart. But those for 10 seconds have sparse attention, NABLA.
    """
    try:
        sparse = json.loads(path.read_text(encoding="utf-8")).get("attention_type") == "nabla"
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: copy it again, with the weights beside it") from error
    if sparse != (config.dit.nabla is not None):
        video = f"videos of {10 if sparse else 5} seconds"
        raise CheckpointError(f"{path.parent} is for {video}, unlike {config.name}: take its own configuration")


def how_to_get(part: str, path: Path) -> str:
    """Say where a missing part is published, and what is in its place."""
    if not path.stem.startswith("kandinsky5lite") and part == "dit":
        return "name the variant with --config, such as lite_5s"
    source, size = SOURCES[part]
    variant = "-".join(path.stem.split("_")[-2:])
    message = f"copy it from {source.format(variant)} on huggingface.co ({size} GB)"
    if there := sorted(file.name for file in path.parent.glob("*.safetensors")):
        message += f". For {', '.join(there)}, which is there, take its own configuration"
    return message
