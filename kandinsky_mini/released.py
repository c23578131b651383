"""Where a folder with the released weights keeps which model. It may have one of the two layouts that are published.

what                      as the released code downloads it         as diffusers publishes it
CrossDiT                  model/kandinsky5lite_t2v_....safetensors   transformer/
VAE                       vae/                                       vae/
Qwen, its tokenizer       text_encoder/                              text_encoder/, tokenizer/
CLIP, its tokenizer       text_encoder2/                             text_encoder_2/, tokenizer_2/
"""

from pathlib import Path

from .config import Config
from .models.checkpoint import CheckpointError

# Where a part is published on Hugging Face's hub, and its size in GB. {} is the variant, such as sft-5s.
SOURCES = {
    "dit": ("kandinskylab/Kandinsky-5.0-T2V-Lite-{}", 4.6),
    "vae": ("hunyuanvideo-community/HunyuanVideo", 1.0),
    "text_encoder": ("Qwen/Qwen2.5-VL-7B-Instruct", 16.6),
    "tokenizer": ("Qwen/Qwen2.5-VL-7B-Instruct", 0.01),
    "text_encoder2": ("openai/clip-vit-large-patch14", 1.7),
    "tokenizer2": ("openai/clip-vit-large-patch14", 0.01),
}


def places(folder: Path, config: Config) -> dict[str, Path]:
    """Return the path of each part of a folder, as Config.weights has them, and those of both tokenizers.

    Raises:
        CheckpointError: there is no such folder, it has both layouts, or a part is missing. The message says what is
            there instead and where the part is published.
    """
    if not folder.is_dir():
        raise CheckpointError(f"the folder of the released weights {folder} does not exist")
    checkpoint = Path(config.weights.dit).name
    ours = {
        "dit": f"model/{checkpoint}",
        "vae": "vae",
        "text_encoder": "text_encoder",
        "text_encoder2": "text_encoder2",
    }
    ours |= {"tokenizer": "text_encoder", "tokenizer2": "text_encoder2"}
    diffusers = {"dit": "transformer", "vae": "vae", "text_encoder": "text_encoder", "text_encoder2": "text_encoder_2"}
    diffusers |= {"tokenizer": "tokenizer", "tokenizer2": "tokenizer_2"}
    if (folder / "model").is_dir() and (folder / "transformer").is_dir():
        raise CheckpointError(f"{folder} holds a CrossDiT in model/ and one in transformer/: move one of them away")
    layout = diffusers if (folder / "transformer").is_dir() else ours
    for part, name in layout.items():
        if not (folder / name).exists():
            raise CheckpointError(_what_is_missing(folder, part, name, checkpoint))
    return {part: folder / name for part, name in layout.items()}


def _what_is_missing(folder: Path, part: str, name: str, checkpoint: str) -> str:
    source, size = SOURCES[part]
    variant = "-".join(Path(checkpoint).stem.split("_")[-2:])
    there = sorted(path.name for path in (folder / name).parent.glob("*.safetensors"))
    instead = (
        f"; {Path(name).parent} holds {', '.join(there)}, for which there is another configuration" if there else ""
    )
    return f"{folder} has no {name}: copy it from {source.format(variant)} on huggingface.co ({size} GB){instead}"
