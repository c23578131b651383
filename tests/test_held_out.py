"""No stage of the training sees a held-out scene, and every evaluation asks for held-out scenes only.

The evaluation's honesty rests on this. A model that had been trained on them would pass it as well, or better.
"""

from types import SimpleNamespace

import evaluate_mini
import pytest
import torch
import train_mini
import yaml

from kandinsky_mini.config import CONFIGS
from kandinsky_mini.training import dataset, stages
from kandinsky_mini.training import dit as dit_training
from kandinsky_mini.training import vae as vae_training
from kandinsky_mini.world.scenes import Scene, all_scenes, is_held_out

TINY = {
    "dit": {"model_dim": 32, "ff_dim": 32, "num_visual_blocks": 1, "in_text_dim": 32, "in_text_dim2": 32},
    "sampling": {"height": 16, "width": 16},
}


class TrainingBegins(Exception):
    pass


def begin(*args, **options):
    raise TrainingBegins


@pytest.fixture
def train(monkeypatch, tmp_path):
    """A function that runs a stage up to where its training begins, and returns the scenes that it was given.

    All of the training's scenes are asked for. Nothing is painted: videos are black.
    """
    config = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
    for section, values in TINY.items():
        config[section] |= values
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # What earlier stages leave
    (tmp_path / "vae").mkdir()
    (tmp_path / "scorer.safetensors").touch()
    torch.save({frames: torch.zeros(1) for frames in (1, 7, 13)}, tmp_path / "latents-0-of-1.pt")
    given: list[Scene] = []

    def render(scenes, frames, generator, height, width, **options):
        given.extend(scenes)
        return torch.zeros(len(scenes), 3, frames, height, width, dtype=torch.uint8)

    monkeypatch.setattr(dataset, "render", render)
    model = SimpleNamespace(to=lambda device: model)
    monkeypatch.setattr(stages, "load_vae", lambda *args: model)
    monkeypatch.setattr(stages, "load_scorer", lambda path: model)

    def run(stage: str) -> list[Scene]:
        common = ["--folder", str(tmp_path), "--config", str(tmp_path / "tiny.yaml"), "--device", "cpu"]
        with pytest.raises(TrainingBegins):
            train_mini.main([stage, *common, "--steps", "1", "--videos", "480"])
        return given

    return run


def check_training(scenes: list[Scene]) -> None:
    """Every scene that may be shown is shown, and no other."""
    assert set(scenes) == {scene for scene in all_scenes() if not is_held_out(scene)}


def test_they_are_those_that_the_published_weights_were_trained_without():
    """Another choice would be as good, but then the evaluation of these weights would ask for scenes that they know."""
    cats = [scene for scene in all_scenes() if (scene.animal, scene.background) == ("cat", "meadow")]
    held_out = {(scene.colour, scene.motion) for scene in cats if is_held_out(scene)}
    assert held_out == {("red", "walks left"), ("blue", "dances"), ("purple", "jumps"), ("black", "walks right")}


def test_the_vae_is_trained_without_them(train, monkeypatch):
    monkeypatch.setattr(vae_training, "train_vae", begin)
    check_training(train("vae"))


def test_the_scorer_is_trained_without_them(train, monkeypatch):
    monkeypatch.setattr(stages, "train_scorer", begin)
    check_training(train("scorer"))


def test_latents_are_made_without_them(train, monkeypatch):
    monkeypatch.setattr(dataset, "encode", begin)
    check_training(train("latents"))


def test_captions_are_written_without_them(train, monkeypatch):
    given = []

    def captions(embedder, scenes, *others):
        given.extend(scenes)
        begin()

    monkeypatch.setattr(dataset, "CaptionBuckets", captions)
    train("dit")
    check_training(given)


def test_the_evaluation_on_the_way_asks_only_for_them(train, monkeypatch):
    asked = []

    def prompts(scenes):
        asked.extend(scenes)
        begin()

    monkeypatch.setattr(dataset, "CaptionBuckets", lambda *args: None)
    monkeypatch.setattr(dit_training, "prepare", lambda *args: SimpleNamespace(recorded=[]))
    monkeypatch.setattr(dit_training, "evaluation_prompts", prompts)
    train("dit")
    assert len(set(asked)) == 48 and all(is_held_out(scene) for scene in asked)


def test_the_final_evaluation_asks_only_for_them():
    for phrase in (evaluate_mini.full_caption, evaluate_mini.unseen_caption):
        scenes, _ = evaluate_mini.draw_prompts(120, 0, phrase)
        assert len(set(scenes)) > 40 and all(is_held_out(scene) for scene in scenes)


def test_held_out_videos_show_only_them(train):
    args, config = SimpleNamespace(shrink=1), SimpleNamespace(sampling=SimpleNamespace(height=16, width=16))
    videos, scenes = stages.held_out_videos(args, config, torch.device("cpu"))
    assert len(videos) == 96 and set(scenes) == {scene for scene in all_scenes() if is_held_out(scene)}
