"""Check a folder with the released weights, before a long run needs them:

python launch/check_weights.py FOLDER --config lite_5s

Of the weights it reads only the headers. It checks that every model is there and complete, that the names and shapes of
its tensors fit, and that the tokenizers load, and prints a line for each. In diffusers' format, it cannot tell which
variant a CrossDiT is.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, Qwen2_5_VLTextModel

from kandinsky_mini.bench import options
from kandinsky_mini.build import find_weights
from kandinsky_mini.command import run
from kandinsky_mini.config import Config, load_config
from kandinsky_mini.models.checkpoint import CheckpointError, load_pretrained, open_tensors
from kandinsky_mini.models.dit import DiffusionTransformer3D

BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
PICTURES = ("visual.", "vision_model.")  # parts of the published encoders that read pictures
ENCODERS = {"text_encoder": (Qwen2_5_VLTextModel, "in_text_dim"), "text_encoder2": (CLIPTextModel, "in_text_dim2")}


def expected(part: str, folder: Path, ours: Config) -> nn.Module:
    """Build a part on the meta device. Those of other libraries have the sizes that their own folder says.

    Raises:
        CheckpointError: the folder holds another model, or its sizes are not those that the CrossDiT needs.
    """
    with torch.device("meta"):
        if part == "dit":
            return DiffusionTransformer3D(ours.dit)
        if part == "vae":
            model = AutoencoderKLHunyuanVideo.from_config(AutoencoderKLHunyuanVideo.load_config(folder))
            name, width = "in_visual_dim", model.config.latent_channels
        else:
            kind, name = ENCODERS[part]
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            text = config.get_text_config()
            if not isinstance(text, kind.config_class):
                raise CheckpointError(f"{folder} holds a {text.model_type}, not a {kind.config_class.model_type}")
            model, width = kind(text), text.hidden_size
            if part == "text_encoder" and ours.text.expansion_template and not config.tie_word_embeddings:
                model.lm_head = nn.Linear(width, text.vocab_size, bias=False)  # it writes the longer prompts
    if width != getattr(ours.dit, name):
        raise CheckpointError(f"{folder} is of width {width}, but the CrossDiT's {name} is {getattr(ours.dit, name)}")
    return model


def check(part: str, path: Path, model: nn.Module) -> str:
    """Compare the tensors of a part with those of its model. Return a line about them.

    What the folder of an encoder or of the VAE holds besides, such as the layers for pictures, does not count.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or quantised. The CrossDiT has one too many.
    """
    stored = {name: tensors.get_slice(key) for name, (_, tensors, key) in open_tensors(path).items()}
    # The published encoders are parts of larger models, so a prefix can stand before the names.
    of_text = [name for name in stored if not any(part in name for part in PICTURES)]
    by_ending = {name[start:]: name for name in of_text for start in _starts(name)}
    kinds: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if name not in by_ending:
            raise CheckpointError(f"{path} has no {name}: is it made for another model?")
        tensor = stored[by_ending[name]]
        if tuple(tensor.get_shape()) != parameter.shape:
            shapes = f"{tuple(tensor.get_shape())} and not {tuple(parameter.shape)}"
            raise CheckpointError(f"{path}: {by_ending[name]} is of shape {shapes}: is it made for another model?")
        if tensor.get_dtype() not in BYTES:
            raise CheckpointError(
                f"{path}: {by_ending[name]} is in {tensor.get_dtype()}, not in one of {', '.join(BYTES)}"
            )
        kinds[tensor.get_dtype()] += parameter.numel()
    if part == "dit" and (unknown := sorted(set(stored) - {name for name, _ in model.named_parameters()})):
        raise CheckpointError(f"{path} has {unknown[0]}, which the model lacks: is it made for another model?")
    dtypes = " and ".join(f"{count / 1e9:.3f} billion numbers in {dtype}" for dtype, count in kinds.most_common())
    size = sum(BYTES[dtype] * count for dtype, count in kinds.items()) / 1e9
    return f"{part:14} fits, {size:6.2f} GB: {dtypes}, {path}"


def _starts(name: str) -> list[int]:
    return [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the released weights")
    parser.add_argument("--config", type=options.config_file, default="lite_5s", help="default: lite_5s")
    args = parser.parse_args(argv)
    config = load_config(args.config)
    paths = find_weights(config, folder=args.folder)
    for part in ("dit", "vae", "text_encoder", "text_encoder2"):
        print(check(part, paths[part], expected(part, paths[part], config)), flush=True)
    for part in ("tokenizer", "tokenizer2"):
        print(f"{part:14} loads, {len(load_pretrained(AutoTokenizer, paths[part]))} tokens, {paths[part]}", flush=True)


if __name__ == "__main__":
    run(main)
