"""The rows of the evaluation are what they say: by language, with prompts that were swapped, and in new wording."""

import json
import random
from types import SimpleNamespace

import evaluate_mini
import pytest
import torch

from kandinsky_mini.training import scorer as scoring
from kandinsky_mini.training.scorer import ATTRIBUTES
from kandinsky_mini.world.captions import full_caption, unseen_caption

COUNT = 20


@pytest.fixture
def evaluation(monkeypatch, tmp_path):
    """Evaluate a model that understands English only. Return the record, and how each set of prompts was phrased.

    A video is a single number: the place of its scene among those that were asked for, or -1 if the prompt was Russian.
    """
    asked, known, phrased = [], {}, []
    draw_prompts = evaluate_mini.draw_prompts

    def draw(count, seed, phrase=full_caption):
        scenes, texts = draw_prompts(count, seed, phrase)
        phrased.append(phrase)
        asked.extend(scene for scene in scenes if scene not in asked)
        known.update({text: scene for text, scene in zip(texts, scenes, strict=True)})
        return scenes, texts

    def judge(scorer, videos, scenes):
        right = {name: torch.ones(len(videos), dtype=torch.bool) for name in ATTRIBUTES}
        right["all"] = torch.tensor([v >= 0 and asked[v] == s for v, s in zip(videos.tolist(), scenes, strict=True)])
        return right

    def generate(pipe, texts, seed):
        return torch.tensor([-1 if russian(text) else asked.index(known[text]) for text in texts])

    pipe = SimpleNamespace(config=SimpleNamespace(sampling=SimpleNamespace(height=16, width=16)))
    monkeypatch.setattr(evaluate_mini, "load_scorer", lambda path: None)
    monkeypatch.setattr(evaluate_mini, "get_T2V_pipeline", lambda *args: pipe)
    monkeypatch.setattr(evaluate_mini, "draw_prompts", draw)
    monkeypatch.setattr(evaluate_mini, "generate_all", generate)
    monkeypatch.setattr(
        evaluate_mini, "render_videos", lambda scenes, *others: torch.tensor([asked.index(scene) for scene in scenes])
    )
    for module in (scoring, evaluate_mini):
        monkeypatch.setattr(module, "judge", judge)
    out = tmp_path / "record.json"
    evaluate_mini.main(["--count", str(COUNT), "--seed", "4", "--device", "cpu", "--out", str(out)])
    return json.loads(out.read_text(encoding="utf-8")), phrased


def test_each_row_counts_the_videos_that_it_names(evaluation):
    shares = {row: values["all"] for row, values in evaluation[0]["shares"].items()}
    assert shares["rendered"] == 1 and shares["generated"] == shares["unseen phrasings"] == 0.5
    assert (shares["generated, en"], shares["generated, ru"]) == (1, 0)


def test_shuffled_prompts_are_those_of_other_videos(evaluation):
    """This row shows what chance gives. With each video's own prompt it would be as high as the others."""
    assert evaluation[0]["shares"]["shuffled prompts"]["all"] < 0.2
    scenes, _ = evaluate_mini.draw_prompts(120, 0)
    swapped = random.Random(0).sample(scenes, len(scenes))
    assert sum(a == b for a, b in zip(scenes, swapped, strict=True)) < 12


def test_the_new_wording_is_drawn_from_phrasings_that_were_never_trained(evaluation):
    assert evaluation[1] == [full_caption, unseen_caption]


def russian(text: str) -> bool:
    return any("а" <= letter <= "я" for letter in text)
