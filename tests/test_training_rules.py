"""What the training's page and options promise: when it ends, its learning rate, what it is shown, what ranks share."""

import dataclasses
import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kandinsky_mini.config import FPS, FRAMES_PER_LATENT, ROOT, SamplingConfig, load_config
from kandinsky_mini.models.checkpoint import open_tensors
from kandinsky_mini.models.text_embeds import TextEmbeds
from kandinsky_mini.models.vae import decode, encode
from kandinsky_mini.sampling import draw_noise, generate
from kandinsky_mini.training import budget as budgets
from kandinsky_mini.training import dit as dit_training
from kandinsky_mini.training import gradients as training_gradients
from kandinsky_mini.training import run as runs
from kandinsky_mini.training import stages
from kandinsky_mini.training import vae as vae_training
from kandinsky_mini.training.budget import Budget
from kandinsky_mini.training.dataset import CaptionBuckets
from kandinsky_mini.training.dit import LENGTHS, TextToLatent, flow_loss, generate_videos, length_weights, train_dit
from kandinsky_mini.training.fresh_models import new_text_embedder, new_vae
from kandinsky_mini.training.gradients import Gradients
from kandinsky_mini.training.scorer import score
from kandinsky_mini.training.vae import normalise_latents, train_vae
from kandinsky_mini.world.captions import WORDS
from kandinsky_mini.world.scenes import ALLOWED, Scene, all_scenes

WITHOUT_END = 10**9  # steps


@pytest.fixture
def clock(monkeypatch):
    """Set clock.seconds to what the clock shows."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(budgets, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


@pytest.mark.parametrize("earlier", [0.0, 90.0], ids=["fresh", "continued"])
def test_a_training_ends_after_its_minutes(clock, earlier):
    """`--minutes 2` counts what an interrupted run had already spent."""
    budget = Budget(WITHOUT_END, minutes=2, seconds=earlier, started=0.0)
    for seconds, spent in ((119.0, False), (120.0, True)):
        clock.seconds = seconds - earlier
        budget.count_step()
        assert budget.spent == spent and budget.progress == pytest.approx(seconds / 120)


def test_a_checkpoint_knows_all_seconds_that_were_spent(clock):
    budget = Budget(WITHOUT_END, seconds=90.0, started=0.0)
    budget.count_step()
    clock.seconds = 30.0
    assert budget.state() == {"step": 1, "seconds": 120.0}


def test_a_training_ends_after_its_steps():
    budget = Budget(steps=3)
    for spent in (False, False, True):
        budget.count_step()
        assert budget.spent == spent


def test_all_ranks_end_at_the_same_step_by_the_clock_of_rank_0(clock, monkeypatch):
    """A rank that went by a clock of its own would leave the others waiting for it."""
    clock.seconds = 1e6
    monkeypatch.setattr(budgets, "world_size", lambda: 2)
    monkeypatch.setattr(budgets, "from_rank_0", lambda function: 0.5)
    budget = Budget(WITHOUT_END, minutes=1, started=0.0)
    for _ in range(40):
        budget.count_step()
    assert budget.progress == 0.5


def test_ranks_ask_rank_0_for_its_clock_every_20_steps(clock, monkeypatch):
    """Asking is a broadcast, which all of them must make at the same step."""
    monkeypatch.setattr(budgets, "world_size", lambda: 2)
    budget, asked = Budget(WITHOUT_END, minutes=1, started=0.0), []
    monkeypatch.setattr(budgets, "from_rank_0", lambda make: (asked.append(budget.step), make())[1])
    clock.seconds = 61.0
    for _ in range(40):
        budget.count_step()
    assert asked == [20, 40] and budget.spent


def test_the_learning_rate_warms_up_and_then_falls_along_a_cosine_to_zero():
    rates = {step: Budget(steps=4000, step=step).lr_factor for step in (0, 99, 1000, 2000, 3000, 4000)}
    assert rates[0] == pytest.approx(1 / 200, rel=1e-3) and rates[99] == pytest.approx(1 / 2, rel=1e-2)
    cosine = {1000: 0.5 + math.sqrt(2) / 4, 2000: 0.5, 3000: 0.5 - math.sqrt(2) / 4, 4000: 0.0}
    assert {step: rates[step] for step in cosine} == pytest.approx(cosine)


COSINE = [1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]  # in four steps without a warm-up


def test_the_vae_is_trained_at_that_rate():
    videos = torch.randint(0, 256, (2, 3, 1, 16, 16), dtype=torch.uint8)
    steps = train_vae(new_vae(16), videos, Budget(steps=4, warmup=1), clips=((1, 1), (1, 1), (1, 1)), lr=1e-4)
    rates = [optimizer.param_groups[0]["lr"] for _, optimizer, _ in steps]
    assert rates == pytest.approx([1e-4 * factor for factor in COSINE])


SCENES, REPEATS = 5, 3


class Captions:
    """Captions whose first token is the number of their scene, and an empty one whose first token is -1."""

    num_scenes = SCENES
    empty = (torch.tensor([[-1]]), torch.tensor([[-1]]))

    def draw(self, batch, common, own):
        scenes = torch.randint(SCENES, (batch,), generator=own)
        return scenes, scenes[:, None], scenes[:, None]


def shown(steps: int, refine: bool = False) -> tuple[list[tuple], list[float]]:
    """Return what a training shows in each step, as latents and tokens, and its learning rates.

    Each number of a latent is the number of the scene that it shows.
    """
    model, seen = nn.Linear(1, 1), []
    numbers = torch.arange(SCENES * REPEATS) % SCENES
    latents = {frames: numbers.view(-1, 1, 1, 1, 1).expand(-1, frames, 1, 1, 1) for frames, _ in LENGTHS}

    def gradients(*inputs):
        seen.append(inputs)
        return {}

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    average = SimpleNamespace(update_parameters=lambda model: None)
    budget, lengths = Budget(steps, warmup=1), tuple((frames, 4) for frames, _ in LENGTHS)
    settings = {"lengths": lengths, "lr": 1e-3, "refine": refine}
    training = train_dit(model, gradients, average, latents, Captions(), budget, **settings)
    return seen, [optimizer.param_groups[0]["lr"] for _, optimizer, _ in training]


def test_the_dit_is_trained_at_that_rate():
    assert shown(4)[1] == pytest.approx([1e-3 * factor for factor in COSINE])


def test_captions_belong_to_their_videos_and_a_tenth_of_the_steps_have_none():
    seen, _ = shown(600)
    empty = [bool((ids == -1).all()) for _, ids, _ in seen]
    for (latents, ids, ids2), without in zip(seen, empty, strict=True):
        assert torch.equal(ids, ids2) and (without or torch.equal(latents[:, 0, 0, 0], ids))
    assert 0.06 < sum(empty) / len(empty) < 0.14


def be_rank(monkeypatch, rank: int) -> None:
    for module in (budgets, dit_training, vae_training):
        monkeypatch.setattr(module, "rank", lambda: rank)


def taken(training, budget: Budget, steps: int) -> None:
    """Take so many steps of a training."""
    for _ in training:
        if budget.step >= steps:
            return


def dit_steps(monkeypatch, rank: int = 0, first: int = 0, steps: int = 60) -> list[tuple]:
    """Return for each step of a rank what length it has, if captions are left out, its scenes, repeats and noise."""
    be_rank(monkeypatch, rank)
    model, seen = nn.Linear(1, 1), []
    numbers = torch.arange(SCENES * REPEATS)
    latents = {frames: numbers.view(-1, 1, 1, 1, 1).expand(-1, frames, 1, 1, 1) for frames, _ in LENGTHS}

    def gradients(latents, ids, ids2):
        rows = latents[:, 0, 0, 0, 0]
        repeats = (rows // SCENES).tolist()
        seen.append((latents.shape[1], bool((ids == -1).all()), (rows % SCENES).tolist(), repeats, torch.rand(3)))
        return {}

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    average, budget = SimpleNamespace(update_parameters=lambda model: None), Budget(100, step=first)
    lengths = tuple((frames, 4) for frames, _ in LENGTHS)
    taken(train_dit(model, gradients, average, latents, Captions(), budget, lengths=lengths), budget, first + steps)
    return seen


def test_ranks_agree_on_the_lengths_of_a_step_and_on_nothing_else(monkeypatch):
    """A step in which one rank has longer videos lasts longer on all. The videos and the noise differ."""
    one, two = (list(zip(*dit_steps(monkeypatch, rank), strict=True)) for rank in (0, 1))
    lengths, empty, scenes, repeats, noise = zip(one, two, strict=True)
    assert lengths[0] == lengths[1] and len(set(lengths[0])) == len(LENGTHS)
    assert empty[0] == empty[1] and len(set(empty[0])) == 2
    for mine, yours in (scenes, repeats):
        assert sum(a == b for a, b in zip(mine, yours, strict=True)) < 10  # of 60
    assert not torch.equal(noise[0][0], noise[1][0])


def test_a_training_that_goes_on_does_not_begin_with_the_same_noise(monkeypatch):
    first, again, later = (dit_steps(monkeypatch, first=step, steps=1)[0][-1] for step in (0, 0, 30))
    assert torch.equal(first, again) and not torch.equal(first, later)


def vae_steps(monkeypatch, rank: int = 0, first: int = 0, steps: int = 60, refine: bool = False) -> list[tuple]:
    """Return for each step of a rank how long its clips are, where they begin, and its noise."""
    be_rank(monkeypatch, rank)
    vae, seen = nn.Linear(1, 1), []
    videos = torch.arange(8 * 25, dtype=torch.uint8).view(8, 1, 25, 1, 1).expand(8, 3, 25, 1, 1)

    def loss(vae, clips):
        seen.append((clips.shape[2], clips[:, 0, 0, 0, 0].tolist(), torch.rand(3)))
        return {"loss": 0.0 * vae.weight.sum() + 0.0 * vae.bias.sum()}

    monkeypatch.setattr(vae_training, "vae_loss", loss)
    budget = Budget(100, step=first)
    taken(train_vae(vae, videos, budget, clips=((1, 4), (9, 4), (17, 4)), refine=refine), budget, first + steps)
    return seen


def test_ranks_train_the_vae_on_clips_of_one_length_and_each_on_its_own(monkeypatch):
    one, two = (list(zip(*vae_steps(monkeypatch, rank), strict=True)) for rank in (0, 1))
    lengths, starts, noise = zip(one, two, strict=True)
    assert lengths[0] == lengths[1] and len(set(lengths[0])) == 3
    assert sum(a == b for a, b in zip(*starts, strict=True)) < 10  # of 60
    assert not torch.equal(noise[0][0], noise[1][0])


def test_a_vae_s_training_that_goes_on_does_not_begin_with_the_same_noise(monkeypatch):
    first, again, later = (vae_steps(monkeypatch, first=step, steps=1)[0][-1] for step in (0, 0, 30))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_images_come_first_and_then_videos_of_one_and_two_seconds():
    assert [(frames - 1) * FRAMES_PER_LATENT / FPS for frames, _ in LENGTHS] == [0, 1, 2]
    seen, _ = shown(400)
    images = [latents.shape[1] == 1 for latents, _, _ in seen]
    assert sum(images[:100]) > 60 > 30 > sum(images[-100:])
    assert {latents.shape[1] for latents, _, _ in seen} == {frames for frames, _ in LENGTHS}
    for progress in (0.0, 0.3, 1.0):
        assert length_weights(progress).sum() == pytest.approx(1)


def test_a_refinement_begins_with_the_lengths_that_a_training_ends_with(monkeypatch):
    def images(lengths: list[int]) -> int:
        return sum(frames == 1 for frames in lengths)

    anew, on = (images([latents.shape[1] for latents, _, _ in shown(400, refine)[0][:100]]) for refine in (False, True))
    assert anew > 60 > 30 > on
    anew, on = (images([step[0] for step in vae_steps(monkeypatch, refine=refine)]) for refine in (False, True))
    assert anew > 2 * on


def perfect(clean: float, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Return the true velocity from noise to a latent in which every number is `clean`."""
    return (x - clean) / time[..., None, None, None]


def test_a_perfect_model_has_no_loss():
    latents = torch.full((8, 3, 2, 2, 4), 0.7)
    loss = flow_loss(lambda x, time, ids, ids2: perfect(0.7, x, time), latents, None, None)["loss"]
    assert loss < 1e-6
    assert flow_loss(lambda x, time, ids, ids2: perfect(0.5, x, time), latents, None, None)["loss"] > 1e-2


@pytest.mark.parametrize("steps", [1, 7])
def test_sampling_follows_the_velocity_that_training_teaches(steps):
    """From any noise, the Euler steps of a perfect model end at its latent."""

    class Perfect(nn.Module):
        config, dtype = SimpleNamespace(visual_cond=False, patch_size=(1, 2, 2)), torch.float32

        def forward(self, x, text, pooled, time, *others):
            return perfect(0.7, x, time / 1000)

    text = TextEmbeds(torch.zeros(1, 1), torch.zeros(1, 1))
    sampling = SamplingConfig(0, 32, 32, steps, 1.0, 10.0, (1.0, 1.0, 1.0))
    latent = generate(Perfect(), torch.randn(1, 4, 4, 2), text, None, sampling)
    torch.testing.assert_close(latent, torch.full_like(latent, 0.7))


def test_ranks_share_the_videos_of_a_step(monkeypatch):
    batches = ((1, 512), (13, 48))
    monkeypatch.setattr(stages, "world_size", lambda: 4)
    assert stages.per_rank(batches, SimpleNamespace(shrink=1)) == ((1, 128), (13, 12))
    assert stages.per_rank(batches, SimpleNamespace(shrink=6)) == ((1, 21), (13, 2))


def test_a_checkpoint_is_written_once_a_minute_and_at_the_end(monkeypatch, tmp_path):
    now, written = SimpleNamespace(seconds=0.0), []
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(runs, "save_state", lambda state, path: written.append(now.seconds))
    run, budget = runs.Run(tmp_path), Budget(steps=9)
    for now.seconds in range(0, 180, 20):
        budget.count_step()
        run.save("vae", budget, model=nn.Linear(1, 1))
    assert written == [60, 120, 160]


@pytest.mark.parametrize("max_norm", [1e9, 0.1])
def test_ranks_average_their_gradients(monkeypatch, max_norm):
    """Two ranks with half of a batch each take the step that one would take with all of it, cut to the same norm."""
    model, batches = nn.Linear(5, 4), (torch.randn(7, 5), torch.randn(7, 5))

    def loss(x):
        return {"loss": model(x).square().mean()}

    whole = torch.cat([g.flatten() for g in torch.autograd.grad(loss(torch.cat(batches))["loss"], model.parameters())])
    other = torch.cat([g.flatten() for g in torch.autograd.grad(loss(batches[1])["loss"], model.parameters())])
    monkeypatch.setattr(training_gradients, "world_size", lambda: 2)
    monkeypatch.setattr(training_gradients, "dist", SimpleNamespace(all_reduce=lambda mine: mine.add_(other)))
    gradients = Gradients(loss, model.parameters(), max_norm)
    gradients(batches[0])
    torch.testing.assert_close(gradients.flat, whole * min(1.0, max_norm / whole.norm().item()))


def test_captions_are_in_both_languages_and_some_have_an_unknown_word():
    embedder = new_text_embedder(load_config())
    scenes = all_scenes()[::6]
    buckets = CaptionBuckets(embedder, scenes, 4, 0, torch.device("cpu"))
    tokens = [embedder.tokenizer.decode(ids) for _, rows, _ in buckets.groups for ids in rows]
    assert len(tokens) == len(scenes) * 2 * 4
    assert sum(bool(re.search("[а-я]", text)) for text in tokens) == len(tokens) / 2
    assert 0.05 < sum("<unk>" in text for text in tokens) / len(tokens) < 0.15
    for index, rows, rows2 in buckets.groups:
        assert (rows2[:, 0] == embedder.tokenizer2.bos_token_id).all()  # CLIP's prompt begins as in the pipeline
        for scene, ids in zip(index.tolist(), rows, strict=True):
            forms = [form for words in WORDS.values() for form in words[scenes[scene].animal]]
            text = embedder.tokenizer.decode(ids)
            assert "<unk>" in text or any(form in text for form in forms), text


def test_captions_are_drawn_as_often_as_there_are_some_of_their_length():
    """And ranks agree on the length, while each draws captions of its own."""
    scenes, cpu = all_scenes()[::6], torch.device("cpu")
    buckets = CaptionBuckets(new_text_embedder(load_config()), scenes, 4, 0, cpu)

    def generator(seed):
        return torch.Generator("cpu").manual_seed(seed)

    common, own = generator(0), generator(1)
    drawn = Counter(buckets.draw(1, common, own)[1].shape[1] for _ in range(2000))
    there = {ids.shape[1]: len(ids) for _, ids, _ in buckets.groups}
    assert max(there.values()) > 3 * min(there.values())
    shares = {length: count / sum(there.values()) for length, count in there.items()}
    assert {length: drawn[length] / 2000 for length in there} == pytest.approx(shares, abs=0.04)
    one, two = ([buckets.draw(16, generator(seed), generator(rank)) for seed in range(20)] for rank in (1, 2))
    assert all(a[1].shape == b[1].shape and not torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def test_latents_are_normalised_without_changing_the_videos():
    """Noise has mean 0 and deviation 1 in each channel, so latents must have them as well."""
    torch.manual_seed(0)
    vae, videos = new_vae(16).eval(), torch.randint(0, 256, (4, 3, 5, 32, 32), dtype=torch.uint8)
    before = decode(vae, encode(vae, videos))
    spread = [vae.encode(videos / 127.5 - 1).latent_dist]
    normalise_latents(vae, videos)
    spread.append(vae.encode(videos / 127.5 - 1).latent_dist)
    # What the encoder calls its own uncertainty is scaled as the latents are.
    scale = spread[0].mean.std((0, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(spread[1].std * scale, spread[0].std, rtol=1e-3, atol=0)
    latents = encode(vae, videos)
    torch.testing.assert_close(latents.mean((0, 1, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 1, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)
    assert (decode(vae, latents).int() - before.int()).abs().max() <= 1


def test_a_prompt_came_true_only_if_all_of_its_attributes_did():
    """The evaluation's last column is what pages quote."""
    scenes = [
        Scene("cat", "red", "jumps", "snow"),
        Scene("dog", "red", "jumps", "snow"),
        Scene("cat", "red", "jumps", "night"),
    ]
    said = {
        "animal": "cat",
        "colour": "red",
        "motion": "jumps",
        "background": "snow",
    }  # what the scorer sees everywhere

    def scorer(videos):
        places = {name: ALLOWED[name].index(value) for name, value in said.items()}
        return {name: nn.functional.one_hot(torch.tensor([place] * len(videos)), 6) for name, place in places.items()}

    shares = score(scorer, torch.zeros(3, 3, 1, 8, 8, dtype=torch.uint8), scenes)
    expected = {"animal": 2 / 3, "colour": 1.0, "motion": 1.0, "background": 2 / 3, "all": 1 / 3}
    assert shares == pytest.approx(expected)


def test_fresh_models_have_the_sizes_of_the_published_ones():
    """Training could not go on from the published weights otherwise."""
    config = load_config()
    embedder = new_text_embedder(config)
    fresh = {"text_encoder": embedder.text_encoder, "text_encoder2": embedder.text_encoder2}
    fresh["vae"] = new_vae(config.dit.in_visual_dim)
    for part, model in fresh.items():
        stored = open_tensors(ROOT / getattr(config.weights, part))
        shapes = {name: tuple(tensors.get_slice(key).get_shape()) for name, (_, tensors, key) in stored.items()}
        assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes, part


def test_videos_to_judge_are_those_of_the_pipeline_whatever_the_lengths_of_the_prompts(tiny_pipe):
    prompts, config = ["a cat in a red hat", "a dog", "a pig in a red hat"], tiny_pipe.config
    picture = dataclasses.replace(config.sampling, time_length=0, num_steps=1)
    shape = (*picture.latent_size, config.dit.in_visual_dim)
    noise = torch.stack([draw_noise(shape, seed) for seed in range(3)])
    model = TextToLatent(tiny_pipe.dit, tiny_pipe.text_embedder)
    videos = generate_videos(model, tiny_pipe.vae, prompts, noise, picture)
    for seed, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        alone = tiny_pipe(prompt, time_length=0, num_steps=1, seed=seed, progress=False)[0]
        assert (video.int() - alone.int()).abs().max() <= 1, prompt  # a batch rounds in another way


def test_a_stage_waits_until_its_file_is_there(tmp_path, monkeypatch):
    path, slept = tmp_path / "latents", []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            path.touch()

    monkeypatch.setattr(stages, "time", SimpleNamespace(sleep=sleep))
    stages.wait_for(path)
    assert len(slept) == 3
    stages.wait_for(path)
    assert len(slept) == 3
