"""Folders with the released weights are loaded as they are published, in both layouts.

The real weights are too large for a test. diffusers and transformers write small random ones instead, of the same
classes, and what our pipeline computes with them is compared with these libraries.
"""

import json
import re
import shutil

import check_weights
import generate
import pytest
import torch
import yaml
from diffusers import Kandinsky5Transformer3DModel
from helpers import MODULE_BAR, relative_difference
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.clip import CLIPConfig, CLIPVisionConfig

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.bench.peers import diffusers_settings
from kandinsky_mini.config import load_config
from kandinsky_mini.models.checkpoint import CheckpointError
from kandinsky_mini.sampling import rope_positions
from kandinsky_mini.training.fresh_models import new_text_embedder, new_vae

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "a cat in a red hat"
CHECKPOINT = "kandinsky5lite_t2v_sft_5s.safetensors"
VISION = {"hidden_size": 32, "intermediate_size": 32}


@pytest.fixture(scope="module")
def published(tiny_values, tmp_path_factory):
    """Write both layouts. Return the configuration, the folders, and the models that were written."""
    folder = tmp_path_factory.mktemp("published")
    text = tiny_values["text"] | {"prompt_template": "the dog dances. {}", "crop_start": 5}
    text |= {"expansion_template": "say more: {} the dog"}
    weights = tiny_values["weights"] | {"dit": f"weights/lite/{CHECKPOINT}"}
    conf = folder / "tiny.yaml"
    conf.write_text(yaml.safe_dump(tiny_values | {"text": text, "weights": weights}), encoding="utf-8")
    config = load_config(conf)

    torch.manual_seed(0)
    embedder = new_text_embedder(config)
    models = {
        "dit": Kandinsky5Transformer3DModel(**diffusers_settings(config.dit)),
        "vae": new_vae(config.dit.in_visual_dim),
        "qwen": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config=embedder.text_encoder.config.to_dict(),
                vision_config=VISION | {"depth": 1, "num_heads": 2, "out_hidden_size": 128},
            )
        ),
        "clip": CLIPModel(
            CLIPConfig(
                text_config=embedder.text_encoder2.config.to_dict(),
                vision_config=CLIPVisionConfig(**VISION, num_hidden_layers=1, num_attention_heads=2).to_dict(),
            )
        ),
    }
    for model in models.values():
        model.eval()
    for parameter in models["dit"].parameters():
        torch.nn.init.normal_(parameter, std=0.15)

    places = {
        "downloaded": ("model", "text_encoder", "text_encoder", "text_encoder2", "text_encoder2"),
        "diffusers": ("transformer", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    }
    for layout, (dit, qwen, tokenizer, clip, tokenizer2) in places.items():
        if layout == "diffusers":
            models["dit"].save_pretrained(folder / layout / dit)
        else:
            (folder / layout / dit).mkdir(parents=True)
            save_file(models["dit"].state_dict(), folder / layout / dit / CHECKPOINT)
        models["vae"].save_pretrained(folder / layout / "vae")
        models["qwen"].save_pretrained(folder / layout / qwen)
        embedder.tokenizer.save_pretrained(folder / layout / tokenizer)
        models["clip"].save_pretrained(folder / layout / clip)
        embedder.tokenizer2.save_pretrained(folder / layout / tokenizer2)
    return conf, folder, models


@pytest.mark.parametrize("layout", ["downloaded", "diffusers"])
@torch.no_grad()
def test_every_part_computes_what_its_own_library_computes(published, layout, capfd):
    conf, folder, models = published
    pipe = get_T2V_pipeline("cpu", conf, weights=folder / layout)
    said = capfd.readouterr()
    # Of the parts for pictures, which are not needed, nothing is said. There are only progress bars.
    assert all(
        line.startswith("Loading weights") for line in (said.out + said.err).replace("\r", "\n").split("\n") if line
    )

    ids, ids2 = pipe.text_embedder.tokenize([PROMPT])
    hidden = models["qwen"](input_ids=ids, output_hidden_states=True).hidden_states[-1]
    embeds = pipe.text_embedder.encode(PROMPT)
    assert relative_difference(embeds.text, hidden[0, 5:]) < MODULE_BAR
    pooled = models["clip"].text_model(input_ids=ids2).pooler_output
    assert relative_difference(embeds.pooled, pooled) < MODULE_BAR

    x, time = torch.randn(3, 4, 6, pipe.config.dit.in_visual_dim), torch.rand(1) * 1000
    places = rope_positions(pipe.dit, x), torch.arange(len(embeds.text))
    theirs = models["dit"](x[None], embeds.text[None], time, embeds.pooled, *places, (1.0, 2.0, 2.0)).sample[0]
    assert relative_difference(pipe.dit(x, *embeds, time, *places, (1.0, 2.0, 2.0)), theirs) < MODULE_BAR

    z = torch.randn(1, pipe.config.dit.in_visual_dim, 3, 4, 6)
    assert relative_difference(pipe.vae.decode(z).sample, models["vae"].decode(z).sample) < MODULE_BAR


def test_both_layouts_give_one_video(published):
    conf, folder, _ = published
    videos = [
        get_T2V_pipeline("cpu", conf, weights=folder / layout)(PROMPT, time_length=0, seed=1, progress=False)
        for layout in ("downloaded", "diffusers")
    ]
    assert torch.equal(*videos) and videos[0].float().std() > 1


@pytest.fixture
def expanding(published):
    """Load a pipeline that expands prompts. Return it and what the library's own model writes, which is one answer."""
    conf, folder, models = published
    pipe = get_T2V_pipeline("cpu", conf, weights=folder / "downloaded")
    template = pipe.config.text.expansion_template
    ids = torch.tensor([pipe.text_embedder.tokenizer(template.replace("{}", PROMPT))["input_ids"]])
    answer = models["qwen"].generate(ids, do_sample=False, max_new_tokens=256)[0, ids.shape[1] :]
    return pipe, pipe.text_embedder.tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_a_prompt_is_expanded_by_the_encoder_s_own_model(expanding, monkeypatch, capsys):
    """Without drawing, so that a prompt always has the same video, and once: the negative prompt stays as it is."""
    pipe, answer = expanding
    assert len(answer.split()) > 5 and pipe.text_embedder.writer.model.visual is None
    assert pipe.text_embedder.writer.model.language_model is pipe.text_embedder.text_encoder
    pipe.text_embedder.writer.generation_config.update(do_sample=True, temperature=9.0)  # what a published file may say
    assert pipe.text_embedder.expand(PROMPT) == answer
    encoded, encode = [], pipe.text_embedder.encode
    monkeypatch.setattr(pipe.text_embedder, "encode", lambda *args: (encoded.append(args[0]), encode(*args))[1])
    pipe(PROMPT, time_length=0, num_steps=1, seed=1)
    assert encoded == [answer, pipe.config.text.negative_prompt]
    assert f"expanded prompt: {answer}\n" in capsys.readouterr().out
    pipe(PROMPT, time_length=0, num_steps=1, seed=1, expand_prompts=False, progress=False)
    assert encoded[2] == PROMPT


def test_an_empty_answer_leaves_the_prompt(expanding, monkeypatch):
    pipe, _ = expanding
    asked = []
    monkeypatch.setattr(pipe.text_embedder.writer, "generate", lambda ids, **how: (asked.append(how), ids)[1])
    assert pipe.text_embedder.expand(PROMPT) == PROMPT
    assert asked[0]["generation_config"].max_new_tokens == 256  # as in the released code


def test_a_model_that_cannot_write_refuses_to_expand(tiny_pipe):
    with pytest.raises(ValueError, match="tiny cannot expand prompts: it has no expansion_template"):
        tiny_pipe(PROMPT, expand_prompts=True)
    assert tiny_pipe.text_embedder.writer is None


@pytest.mark.parametrize(
    ("layout", "name", "source"),
    [
        (
            "downloaded",
            f"model/{CHECKPOINT}",
            r"kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s on huggingface.co \(4.6 GB\)",
        ),
        ("downloaded", "vae", r"hunyuanvideo-community/HunyuanVideo on huggingface.co \(1.0 GB\)"),
        ("downloaded", "text_encoder", r"Qwen/Qwen2.5-VL-7B-Instruct on huggingface.co \(16.6 GB\)"),
        ("downloaded", "text_encoder2", r"openai/clip-vit-large-patch14 on huggingface.co \(1.7 GB\)"),
        ("diffusers", "tokenizer", "Qwen/Qwen2.5-VL-7B-Instruct on huggingface.co"),
        ("diffusers", "tokenizer_2", "openai/clip-vit-large-patch14 on huggingface.co"),
        ("diffusers", "text_encoder_2", "openai/clip-vit-large-patch14 on huggingface.co"),
    ],
)
def test_a_missing_part_is_named_with_its_source(published, tmp_path, layout, name, source):
    conf, folder, _ = published
    copy = shutil.copytree(folder / layout, tmp_path / layout, copy_function=shutil.os.link)
    part = copy / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(CheckpointError, match=f"{copy / name} does not exist; copy it from {source}"):
        get_T2V_pipeline("cpu", conf, weights=copy)


def test_a_forgotten_configuration_is_named(published):
    """Mini is the default, and nobody publishes it."""
    _, folder, _ = published
    with pytest.raises(CheckpointError, match="mini has no weights for dit: .*; name the variant with --config"):
        get_T2V_pipeline("cpu", weights=folder / "downloaded")


def test_a_checkpoint_of_another_variant_is_named(published, tmp_path):
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy", copy_function=shutil.os.link)
    (copy / "model" / CHECKPOINT).rename(copy / "model" / "kandinsky5lite_t2v_nocfg_10s.safetensors")
    with pytest.raises(CheckpointError, match="For kandinsky5lite_t2v_nocfg_10s.safetensors, which is there, take"):
        get_T2V_pipeline("cpu", conf, weights=copy)


def test_a_folder_that_says_two_things_or_nothing_is_refused(published, tmp_path):
    conf, folder, _ = published
    with pytest.raises(
        CheckpointError, match=f"the folder of the released weights {tmp_path / 'nowhere'} does not exist"
    ):
        get_T2V_pipeline("cpu", conf, weights=tmp_path / "nowhere")
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy", copy_function=shutil.os.link)
    (copy / "transformer").mkdir()
    with pytest.raises(CheckpointError, match="a CrossDiT in model/ and one in transformer/: move one of them away"):
        get_T2V_pipeline("cpu", conf, weights=copy)


@pytest.mark.parametrize(("nabla", "attention", "said"), [(False, "nabla", "10"), (True, "regular", "5")])
def test_weights_for_another_length_are_refused(published, tmp_path, nabla, attention, said):
    """In diffusers' layout, only a line of a configuration tells them apart. It is read at once, before any weight."""
    conf, folder, _ = published
    copy = shutil.copytree(folder / "diffusers", tmp_path / "copy")
    settings = copy / "transformer" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"attention_type": attention}))
    own = tmp_path / "own.yaml"
    values = yaml.safe_load(conf.read_text(encoding="utf-8"))
    values["dit"]["nabla"] = {"P": 0.9, "window": [11, 3, 3], "block": [1, 1]} if nabla else None
    own.write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError, match=f"is for videos of {said} seconds, unlike tiny: take its own config"):
        get_T2V_pipeline("cpu", own, weights=copy)
    settings.unlink()
    with pytest.raises(CheckpointError, match="config.json is missing or damaged: copy it again"):
        get_T2V_pipeline("cpu", own, weights=copy)


def test_the_script_takes_the_folder_for_both_of_its_works(published, tmp_path, monkeypatch):
    conf, folder, _ = published
    image, kept = tmp_path / "image.png", tmp_path / "kept.latent.safetensors"
    options = ["--config", str(conf), "--weights", str(folder / "diffusers"), "--path", str(image)]
    monkeypatch.setattr("sys.argv", ["generate.py", *options, "--time-length", "0"])
    video = generate.generate(generate.parse_args(), "cpu")
    assert image.exists() and video.shape[2] == 1
    save_file({"latent": torch.randn(1, 2, 4, load_config(conf).dit.out_visual_dim)}, kept)
    monkeypatch.setattr("sys.argv", ["generate.py", *options, "--latent", str(kept)])
    assert generate.decode_kept(generate.parse_args(), "cpu").shape == (1, 3, 1, 16, 32)


@pytest.mark.parametrize("layout", ["downloaded", "diffusers"])
def test_the_check_names_what_is_in_a_folder(published, layout, capsys):
    conf, folder, models = published
    check_weights.main([str(folder / layout), "--config", str(conf)])
    lines = capsys.readouterr().out.splitlines()
    parts = ["dit", "vae", "text_encoder", "text_encoder2"]
    assert [line.split()[:2] for line in lines[:4]] == [[part, "fits,"] for part in parts]
    assert [line.split()[:2] for line in lines[4:]] == [["tokenizer", "loads,"], ["tokenizer2", "loads,"]]
    numbers = sum(parameter.numel() for parameter in models["dit"].parameters())
    assert f"{4 * numbers / 1e9:6.2f} GB: {numbers / 1e9:.3f} billion numbers in F32" in lines[0]


@pytest.mark.parametrize("part", ["model", "vae", "text_encoder", "text_encoder2"])
@pytest.mark.parametrize("damage", ["missing", "shape", "quantised"])
def test_the_check_finds_a_tensor_that_does_not_fit(published, tmp_path, part, damage):
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy")
    (file,) = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(
        name
        for name in tensors
        if re.search(r"(layers|blocks)\.0\.", name) and not re.search("vis(ual|ion)_?(model)?\\.", name)
    )
    tensor = tensors.pop(name)
    if damage == "shape":
        tensors[name] = tensor.new_zeros(*tensor.shape, 2)
    if damage == "quantised":
        tensors[name] = tensor.to(torch.float8_e4m3fn)
    save_file(tensors, file, {"format": "pt"})
    messages = {"missing": "has no ", "shape": "is it made for another model", "quantised": "is in F8_E4M3, not in one"}
    with pytest.raises(CheckpointError, match=messages[damage]):
        check_weights.main([str(copy), "--config", str(conf)])


def test_the_check_finds_a_tensor_that_the_crossdit_lacks(published, tmp_path):
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy")
    (file,) = (copy / "model").glob("*.safetensors")
    save_file(load_file(file) | {"visual_transformer_blocks.9.extra": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="has visual_transformer_blocks.9.extra, which the model lacks"):
        check_weights.main([str(copy), "--config", str(conf)])


def test_the_check_finds_that_the_encoder_cannot_write(published, tmp_path):
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy")
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    save_file({name: x for name, x in load_file(file).items() if name != "lm_head.weight"}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="has no lm_head.weight"):
        check_weights.main([str(copy), "--config", str(conf)])


def test_an_encoder_may_write_with_its_embeddings(published, tmp_path, capsys):
    """Smaller language models have no weights of their own for it, and the file has none either."""
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy")
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    save_file({name: x for name, x in load_file(file).items() if name != "lm_head.weight"}, file, {"format": "pt"})
    settings = file.with_name("config.json")
    values = json.loads(settings.read_text()) | {"tie_word_embeddings": True}
    settings.write_text(json.dumps(values | {"text_config": values["text_config"] | {"tie_word_embeddings": True}}))
    check_weights.main([str(copy), "--config", str(conf)])
    pipe = get_T2V_pipeline("cpu", conf, weights=copy)
    embeddings = pipe.text_embedder.text_encoder.get_input_embeddings()
    assert torch.equal(pipe.text_embedder.writer.lm_head.weight, embeddings.weight)


def test_the_check_finds_a_tokenizer_that_is_not_there(published, tmp_path):
    """Where an encoder and its tokenizer share a folder, the folder alone does not show it."""
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy")
    (copy / "text_encoder2" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer_config.json is missing"):
        check_weights.main([str(copy), "--config", str(conf)])


def test_the_check_finds_encoders_that_have_changed_places(published, tmp_path):
    conf, folder, _ = published
    copy = shutil.copytree(folder / "downloaded", tmp_path / "copy", copy_function=shutil.os.link)
    (copy / "text_encoder").rename(copy / "other")
    (copy / "text_encoder2").rename(copy / "text_encoder")
    (copy / "other").rename(copy / "text_encoder2")
    with pytest.raises(CheckpointError, match="text_encoder holds a clip_text_model, not a qwen2_5_vl_text"):
        check_weights.main([str(copy), "--config", str(conf)])


def test_the_check_finds_an_encoder_of_another_width(published, tmp_path, tiny_values):
    conf, folder, _ = published
    values = yaml.safe_load(conf.read_text(encoding="utf-8"))
    values["dit"]["in_text_dim2"] = 64
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match="text_encoder2 is of width 32, but the CrossDiT's in_text_dim2 is 64"):
        check_weights.expected("text_encoder2", folder / "downloaded" / "text_encoder2", load_config(other))
