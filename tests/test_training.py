"""The training script runs through all its stages, continues after an interruption, and writes usable weights."""

import json
from pathlib import Path

import evaluate_mini
import pytest
import torch
import train_mini
import yaml
from safetensors.torch import load_file

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.models.checkpoint import load_checkpoint
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.training.gradients import Gradients
from kandinsky_mini.world.scenes import is_held_out

SMALL = {
    "dit": {"model_dim": 32, "ff_dim": 32, "time_dim": 16, "in_text_dim": 32, "in_text_dim2": 32},
    "sampling": {"height": 32, "width": 48, "num_steps": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """Run all stages of the training, with two or three optimiser steps each, and export the weights.

    "config" is the path of a configuration that loads them.
    """
    folder = tmp_path_factory.mktemp("training")
    config = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
    for section, values in SMALL.items():
        config[section] |= values
    config["weights"] = {name: str(folder / "weights" / Path(path).name) for name, path in config["weights"].items()}
    config_path = folder / "small.yaml"
    config_path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")

    def run(stage: str, *options: str) -> None:
        common = ["--folder", str(folder / "run"), "--config", str(config_path), "--scenes", "2", "--shrink", "96"]
        train_mini.main([stage, *common, *options])

    run("vae", "--steps", "2", "--videos", "2")
    run("scorer", "--steps", "2", "--videos", "2")
    run("latents", "--videos", "1")
    run("dit", "--steps", "2", "--evaluate-every", "2")
    run("dit", "--steps", "3")  # continues as after an interruption
    run("export", "--out", str(folder / "weights"))
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return {"folder": folder, "run": run, "config": config_path, "log": log}


def records(log: list[dict], stage: str, key: str) -> list:
    return [record[key] for record in log if record["stage"] == stage and key in record]


def test_the_log_tells_how_good_each_stage_is(trained):
    log = trained["log"]
    assert 0 < records(log, "vae", "psnr_held_out")[0] < 60
    for scores in (records(log, "scorer", "rendered")[0], records(log, "dit", "came_true")[0]):
        assert set(scores) == {"animal", "colour", "motion", "background", "all"}
        assert all(0 <= share <= 1 for share in scores.values())
    # The VAE normalises its latents, because the DiT expects a standard deviation of about 1.
    assert all(0.3 < std < 3 for std in records(log, "latents", "std"))


def test_an_interrupted_training_goes_on_where_it_was(trained):
    assert records(trained["log"], "dit", "step") == [2, 2, 3, 3]


def test_the_pipeline_runs_on_the_exported_weights(trained):
    pipe = get_T2V_pipeline(device_map="cpu", conf_path=trained["config"])
    assert pipe("a cat in a red hat", time_length=0, seed=1, progress=False).shape == (1, 3, 1, 32, 48)


def test_exported_weights_do_not_say_where_they_were_made(trained):
    configs = [path.read_text() for path in (trained["folder"] / "weights").rglob("*.json")]
    assert configs and not any(str(trained["folder"]) in text for text in configs)


def test_refining_starts_from_the_exported_weights(trained):
    """After one tiny step, the exported weights are still nearly those that refining started from."""
    folder, refined = trained["folder"], ("--folder", str(trained["folder"] / "refined"), "--refine")
    for name in ("scorer.safetensors", "latents-0-of-1.pt", "vae"):
        (folder / "refined").mkdir(exist_ok=True)
        (folder / "refined" / name).symlink_to(folder / "run" / name)
    trained["run"]("dit", *refined, "--steps", "1", "--minutes", "1e-9")
    trained["run"]("export", *refined, "--out", str(folder / "again"))
    for path in (folder / "weights").rglob("*.safetensors"):
        if path.parent.name in ("dit", "text_encoder", "text_encoder2"):
            again = load_file(folder / "again" / path.relative_to(folder / "weights"))
            for key, value in load_file(path).items():
                torch.testing.assert_close(again[key].float(), value.float(), rtol=1e-2, atol=1e-3, msg=key)


def evaluate(trained: dict, out: Path, *options: str) -> None:
    scorer = trained["folder"] / "weights" / "scorer.safetensors"
    arguments = ["--config", str(trained["config"]), "--scorer", str(scorer), "--device", "cpu"]
    evaluate_mini.main([*arguments, "--count", "4", "--out", str(out), *options])


def test_evaluation_writes_the_shares_of_prompts_that_came_true(trained, tmp_path, capsys):
    evaluate(trained, tmp_path / "shares.json", "--scorer-bar", "0")
    record = json.loads((tmp_path / "shares.json").read_text())
    shares = record["shares"]
    generated = ["generated", "generated, en", "generated, ru", "shuffled prompts", "unseen phrasings"]
    assert list(shares) == ["rendered", *generated]
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["", *shares, "bar"]
    for name in ("animal", "colour", "motion", "background"):
        wrong = sum(name in prompt["wrong"] for prompt in record["prompts"])
        assert shares["generated"][name] == pytest.approx(1 - wrong / 4)


def test_a_scorer_that_fails_on_rendered_videos_is_not_believed(trained, tmp_path):
    with pytest.raises(SystemExit, match="the scorer is right on only 0.0% of the rendered videos"):
        evaluate(trained, tmp_path / "shares.json")
    assert list(tmp_path.iterdir()) == []


def test_evaluation_asks_for_what_training_never_showed():
    scenes, prompts = evaluate_mini.draw_prompts(20, seed=3)
    assert all(is_held_out(scene) for scene in scenes)
    assert [any("а" <= letter <= "я" for letter in prompt) for prompt in prompts] == [False, True] * 10


@pytest.mark.parametrize("max_norm", [1e9, 0.1])
def test_gradients_are_those_of_autograd_cut_to_the_norm(max_norm):
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.GELU(), torch.nn.Linear(4, 3))
    gradients = Gradients(lambda x: {"loss": model(x).square().sum()}, model.parameters(), max_norm)
    gradients(torch.randn(7, 5))  # the gradients of an earlier batch must not count
    x = torch.randn(7, 5)
    gradients(x)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    norm = torch.cat([grad.flatten() for grad in expected]).norm()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad * min(1.0, max_norm / norm))


def test_the_averaged_weights_are_published(trained):
    """They are smoother than those of the last step."""
    state = torch.load(trained["folder"] / "run" / "dit.pt")
    name = "dit.visual_embeddings.in_layer.weight"
    averaged, last = state["average"][f"module.{name}"], state["model"][name]
    published = load_checkpoint(
        DiffusionTransformer3D(load_config(trained["config"]).dit), trained["folder"] / "weights" / "dit"
    )
    assert torch.equal(published.visual_embeddings.in_layer.weight, averaged.bfloat16().float())
    assert not torch.equal(averaged.bfloat16(), last.bfloat16())
