"""The code that loads mini's text encoders also loads folders of the real classes."""

import dataclasses

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from kandinsky_mini.config import load_config
from kandinsky_mini.models.text_embedders import load_text_embedder
from kandinsky_mini.training.fresh_models import new_text_embedder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a tiny Qwen2.5-VL as it is released, with vision and head, and a tiny CLIP, both with their tokenizers.

    Return the folder of both, and the Qwen model.
    """
    embedder = new_text_embedder(load_config())
    folder = tmp_path_factory.mktemp("encoders")
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128}
    config = Qwen2_5_VLConfig(text_config=embedder.text_encoder.config.to_dict(), vision_config=vision)
    qwen = Qwen2_5_VLForConditionalGeneration(config).eval()
    qwen.save_pretrained(folder / "qwen")
    embedder.tokenizer.save_pretrained(folder / "qwen")
    embedder.text_encoder2.save_pretrained(folder / "clip")
    embedder.tokenizer2.save_pretrained(folder / "clip")
    return folder, qwen


def test_a_released_folder_gives_the_last_hidden_states_of_the_whole_model(folders):
    folder, qwen = folders
    embedder = load_text_embedder(folder / "qwen", folder / "clip", load_config().text, torch.float32)
    prompt = "a cat in a red hat"
    ids, _ = embedder.tokenize([prompt])
    with torch.no_grad():
        expected = qwen(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    embeds = embedder.encode(prompt)
    assert torch.equal(embeds.text, expected)
    assert embeds.pooled.shape == (1, 128)


def test_the_template_is_cut_off(folders):
    """Only the prompt after the template stays, but its tokens have seen the template."""
    folder, _ = folders
    plain = load_config().text
    config = dataclasses.replace(plain, prompt_template="the dog dances. {}", crop_start=5)
    text = {
        name: load_text_embedder(folder / "qwen", folder / "clip", c, torch.float32).encode("a cat").text
        for name, c in (("plain", plain), ("template", config))
    }
    assert len(text["template"]) == len(text["plain"]) - 1  # the start token is cut off with the template
    assert not torch.allclose(text["template"][0], text["plain"][1], atol=1e-3)


def test_a_batch_gives_what_its_prompts_give_alone(folders):
    folder, _ = folders
    embedder = load_text_embedder(folder / "qwen", folder / "clip", load_config().text, torch.float32)
    prompts = ["a cat in a red hat", "a pig in a blue hat"]
    with torch.no_grad():
        batch = embedder(*embedder.tokenize(prompts))
    for i, prompt in enumerate(prompts):
        alone = embedder.encode(prompt)
        assert torch.allclose(batch.text[i], alone.text, atol=1e-5)
        assert torch.allclose(batch.pooled[i], alone.pooled, atol=1e-5)


def test_clip_reads_prompts_of_one_length_as_it_was_trained(folders):
    """Padding changes nothing for one prompt, but prompts of different lengths fit into one batch of training."""
    folder, _ = folders
    config = load_config().text
    embedder = load_text_embedder(folder / "qwen", folder / "clip", config, torch.float32)
    shapes = {embedder.tokenize([prompt])[1].shape for prompt in ("a cat", "a pig in a blue hat at night", "cat " * 99)}
    assert shapes == {(1, config.pooled_max_length)}


TEMPLATE = "the dog dances. {}"  # with the token that starts a text, 5 tokens come before the prompt
LONG, SHORT = "a cat in a red hat walks left", "a cat"  # 8 and 2 words; one more token ends a text


@pytest.fixture
def with_template(folders):
    """An embedder that reads 4 tokens after its template."""
    folder, _ = folders
    templates = {"prompt_template": TEMPLATE, "crop_start": 5, "image_template": "red {}", "image_crop_start": 2}
    config = dataclasses.replace(load_config().text, **templates, max_length=4)
    return load_text_embedder(folder / "qwen", folder / "clip", config, torch.float32)


def test_the_template_takes_no_room_from_the_prompt(with_template):
    """A long prompt is cut to max_length tokens, however long the template is, and a short one stays whole."""
    assert with_template.encode(LONG).text.shape[0] == 4
    assert with_template.encode(SHORT).text.shape[0] == 3
    ids, _ = with_template.tokenize([LONG])
    words = with_template.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert words[:8] == ["<s>", "the", "dog", "dances", ".", "a", "cat", "in"]


@pytest.mark.parametrize(("prompt", "excess"), [(LONG, 5), (SHORT, 0), ("a cat in", 0), ("a cat in a", 1)])
def test_only_the_prompt_s_own_tokens_are_too_many(with_template, prompt, excess):
    """The warning about a prompt that is cut off counts neither the template nor what fits."""
    assert with_template.excess_tokens(prompt) == excess


def test_an_image_has_a_template_of_its_own(with_template, monkeypatch):
    """The prompt sees another text before it, and the room for the prompt stays the same."""
    ids, _ = with_template.tokenize([LONG], image=True)
    words = with_template.tokenizer.convert_ids_to_tokens(ids[0].tolist())
    assert words == ["<s>", "red", "a", "cat", "in", "</s>"]
    image, video = (with_template.encode(SHORT, kind).text for kind in (True, False))
    assert image.shape == video.shape and not torch.allclose(image, video, atol=1e-3)
    assert with_template.excess_tokens(LONG, image=True) == 5
    # The template of a video has one token fewer than it crops.
    config = dataclasses.replace(with_template.config, crop_start=6)
    monkeypatch.setattr(with_template, "config", config)
    assert (with_template.excess_tokens(LONG, image=True), with_template.excess_tokens(LONG)) == (5, 4)
