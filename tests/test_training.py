"""The training script runs through all its stages, continues after an interruption, and writes usable weights."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import evaluate_mini
import pytest
import torch
import train_mini
import yaml
from safetensors.torch import load_file

from kandinsky_mini import get_T2V_pipeline
from kandinsky_mini.config import CONFIGS, load_config
from kandinsky_mini.files import held
from kandinsky_mini.models.checkpoint import CheckpointError, load_checkpoint
from kandinsky_mini.models.dit import DiffusionTransformer3D
from kandinsky_mini.training import stages
from kandinsky_mini.training.budget import Budget
from kandinsky_mini.training.gradients import Gradients
from kandinsky_mini.training.run import Run, load_state
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


def test_exporting_again_replaces_the_weights_and_keeps_the_history(trained, tmp_path):
    out = tmp_path / "weights"
    shutil.copytree(trained["folder"] / "weights", out)
    (out / "training.jsonl").write_text("history")
    (out / "dit" / "dit-00001-of-00001.safetensors").write_text("an old shard")
    trained["run"]("export", "--out", str(out))
    assert (out / "training.jsonl").read_text() == "history"
    assert [path.name for path in (out / "dit").iterdir()] == ["dit.safetensors"]
    (out / "thesis.txt").touch()
    with pytest.raises(ValueError, match="weights holds thesis.txt, which would be lost"):
        trained["run"]("export", "--out", str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("stage", "missing", "needed"),
    [
        ("latents", "vae", "vae"),
        ("dit", "vae", "vae"),
        ("dit", "scorer.safetensors", "scorer"),
        ("dit", "latents-0-of-1.pt", "latents"),
        ("export", "vae", "vae"),
        ("export", "scorer.safetensors", "scorer"),
        ("export", "dit.pt", "dit"),
    ],
)
def test_a_stage_names_the_stage_that_must_come_first(trained, tmp_path, stage, missing, needed):
    for path in (trained["folder"] / "run").iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    out = tmp_path / "weights"
    with pytest.raises(
        ValueError, match=f"{missing} is missing: run `launch/train_mini.py {needed} --folder .*` first"
    ):
        trained["run"](stage, "--folder", str(tmp_path), *(["--out", str(out)] if stage == "export" else []))
    assert not out.exists()


def test_each_rank_renders_videos_of_its_own(trained, tmp_path, monkeypatch):
    """Else several GPUs would train on the same videos as one. Of images there are four times as many."""
    (tmp_path / "vae").symlink_to(trained["folder"] / "run" / "vae")
    monkeypatch.setattr(stages, "world_size", lambda: 2)
    args, config, cpu = SimpleNamespace(scenes=2, videos=1), load_config(trained["config"]), torch.device("cpu")
    for rank in range(2):
        monkeypatch.setattr(stages, "rank", lambda rank=rank: rank)
        stages.run_latents(args, Run(tmp_path), config, cpu)
    one, two = (load_state(tmp_path / f"latents-{rank}-of-2.pt", cpu) for rank in range(2))
    assert {frames: len(values) for frames, values in one.items()} == {1: 8, 7: 2, 13: 2}
    for frames, values in one.items():
        assert values.shape == two[frames].shape and not torch.equal(values, two[frames])


def without(run: Path, name: str, folder: Path) -> tuple[Path, bytes]:
    """Link all files of a run but one into a folder. Return the path of that one there, and what it should hold."""
    for path in run.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    return folder / name, (run / name).read_bytes()


@pytest.mark.parametrize("content", [b"", b"half", "half", "empty", "other", "object"])
def test_a_damaged_checkpoint_is_named(trained, tmp_path, content):
    path, good = without(trained["folder"] / "run", "dit.pt", tmp_path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        path.write_bytes(good[: len(good) // 2])
    elif content == "object":
        torch.save({"model": Path("code")}, path)
    else:
        torch.save({} if content == "empty" else dict.fromkeys(["model", "optimizer", "average", "budget"], {}), path)
    for stage in ("dit", "export"):
        with pytest.raises(CheckpointError, match="dit.pt"):
            trained["run"](stage, "--folder", str(tmp_path), "--out", str(tmp_path / "weights"))


class Evil:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["dit.pt", "latents-0-of-1.pt"])
def test_code_in_a_run_s_folder_is_not_run(tmp_path, name):
    """The folder of a training may be somebody else's."""
    torch.save({"model": Evil(tmp_path / "it_ran")}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load_state(tmp_path / name, torch.device("cpu"))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("content", ["half", "empty"])
def test_damaged_latents_are_named(trained, tmp_path, content):
    path, good = without(trained["folder"] / "run", "latents-0-of-1.pt", tmp_path)
    torch.save({}, path) if content == "empty" else path.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="latents-0-of-1.pt"):
        trained["run"]("dit", "--folder", str(tmp_path))


def test_two_runs_of_a_stage_in_one_folder(trained, tmp_path):
    with held(tmp_path / "vae.lock"):
        with pytest.raises(ValueError, match=f"vae.lock is held by process {os.getpid()} on .*: wait for its end"):
            trained["run"]("vae", "--folder", str(tmp_path), "--steps", "1")
        with pytest.raises(ValueError, match="vae is missing"):  # another stage may run in this folder
            trained["run"]("latents", "--folder", str(tmp_path))


@pytest.mark.parametrize("option", ["steps", "videos", "scenes", "phrasings", "shrink", "evaluate-every", "minutes"])
@pytest.mark.parametrize("value", ["0", "-5", "nan", "many", "9" * 400])
def test_counts_that_make_no_training(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        train_mini.main(["vae", "--folder", str(tmp_path), f"--{option}", value])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --{option}: must be a" in error and len(error) < 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--count", "1"], ["--count", "-3"], ["--seed", "-1"], ["--scorer-bar", "nan"]])
def test_an_evaluation_that_would_say_nothing_is_refused(capsys, options):
    with pytest.raises(SystemExit):
        evaluate_mini.main(options)
    assert f"argument {options[0]}: must be a" in capsys.readouterr().err


def test_an_evaluation_tries_first_whether_it_can_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "shares.json"):
        with pytest.raises(SystemExit):
            evaluate_mini.main(["--out", str(path)])
        assert "argument --out: " in capsys.readouterr().err


def test_a_training_that_diverged_keeps_its_last_checkpoint(tmp_path):
    run, model = Run(tmp_path), torch.nn.Linear(2, 2)
    run.save("vae", Budget(1, step=1), model=model)
    torch.nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="^bias in step 2 of vae is not finite"):
        run.save("vae", Budget(2, step=2), model=model)
    with pytest.raises(ValueError, match="'step': 2, 'loss': nan"):
        run.log("vae", {"step": 2, "loss": float("nan")})
    kept = run.load("vae", torch.device("cpu"), ("model",))
    assert kept["budget"]["step"] == 1 and kept["model"]["bias"].isfinite().all()
    assert [path.name for path in tmp_path.iterdir()] == ["vae.pt"]


def test_only_rank_0_writes_into_a_run_s_folder(tmp_path, monkeypatch):
    """All ranks share the folder. Two that write one checkpoint at once would spoil it."""
    monkeypatch.setattr("kandinsky_mini.training.run.rank", lambda: 1)
    run = Run(tmp_path)
    run.save("vae", Budget(1, step=1), model=torch.nn.Linear(2, 2))
    run.log("vae", {"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_know_its_steps_is_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "vae.pt")
    with pytest.raises(CheckpointError, match="vae.pt has no budget: remove it"):
        Run(tmp_path).load("vae", torch.device("cpu"), ("model",))


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
