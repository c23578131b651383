"""Captions name what a scene shows, and the tokenizer and the configuration know their words."""

import random
import re

import pytest

from kandinsky_mini.config import load_config
from kandinsky_mini.world import captions
from kandinsky_mini.world.captions import (
    LANGUAGES,
    PARTIAL_PHRASINGS,
    PHRASINGS,
    UNSEEN_PHRASINGS,
    WORDS,
    caption,
    full_caption,
    plain_caption,
    unseen_caption,
)
from kandinsky_mini.world.scenes import ALLOWED, Scene, all_scenes
from kandinsky_mini.world.tokenizer import new_tokenizer

CAT = Scene("cat", "red", "jumps", "beach")


def names(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tokenizer_knows_every_caption(language):
    config, rng = load_config().text, random.Random(0)
    tokenizer = new_tokenizer(config.max_length)
    texts = [text for scene in all_scenes() for text in [plain_caption(scene, language)]]
    texts += [caption(scene, language, rng, partial=0.5) for scene in all_scenes() for _ in range(10)]
    tokens = tokenizer(texts)["input_ids"]
    strange = [text for text, ids in zip(texts, tokens, strict=True) if tokenizer.unk_token_id in ids]
    assert strange == []
    assert max(map(len, tokens)) <= min(config.max_length, config.pooled_max_length), "a caption would be cut off"


def test_the_tokenizer_tells_words_apart():
    tokenizer = new_tokenizer(64)
    words = [word for forms in WORDS["en"].values() for word in forms[0].split()]
    assert len({tuple(tokenizer(word)["input_ids"]) for word in words}) == len(set(words))


@pytest.mark.parametrize(("language", "start"), [("en", "a cat in a red hat"), ("ru", "кот в красной шляпе")])
def test_the_prompt_of_the_talk(language, start):
    assert plain_caption(CAT, language).startswith(f"{start} ")
    assert plain_caption(CAT, language) != plain_caption(Scene("cat", "red", "jumps", "snow"), language)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "make",
    [full_caption, lambda *args: caption(*args, partial=0), unseen_caption],
    ids=["full", "not partial", "unseen"],
)
def test_full_captions_name_everything(language, make):
    rng = random.Random(1)
    for scene in all_scenes():
        text = make(scene, language, rng)
        for attribute in ALLOWED:
            forms = WORDS[language][getattr(scene, attribute)]
            assert any(names(text, form) for form in forms), f"{text!r} does not name the {attribute} of {scene}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_unseen_phrasings_are_none_of_the_trained_ones(language):
    trained = {text.replace(",", "") for text in PHRASINGS[language] + PARTIAL_PHRASINGS[language]}
    assert [text for text in UNSEEN_PHRASINGS[language] if text.replace(",", "") in trained] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_unseen_captions_are_made_of_unseen_phrasings(language, monkeypatch):
    monkeypatch.setattr(captions, "_fill", lambda phrasing, *_: phrasing)
    made = {unseen_caption(CAT, language, random.Random(seed)) for seed in range(100)}
    assert made == set(UNSEEN_PHRASINGS[language])


def test_partial_captions_say_less_but_never_anything_wrong():
    rng = random.Random(2)
    texts = [caption(CAT, "en", rng, partial=1) for _ in range(200)]
    assert all(names(text, "cat") for text in texts)
    assert {names(text, "red") for text in texts} == {True, False}
    others = [form for word in ALLOWED["animal"][1:] + ALLOWED["motion"] for form in WORDS["en"][word]]
    jumps = WORDS["en"]["jumps"]
    assert [text for text in texts for form in others if form not in jumps and names(text, form)] == []


def test_captions_follow_their_random_numbers():
    first, again, other = ([caption(CAT, "ru", random.Random(seed)) for _ in range(3)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("attribute", ALLOWED)
def test_mini_says_that_it_knows(attribute):
    known = load_config().text.known_words
    assert [word for word in ALLOWED[attribute] if not names(known, word)] == []


MEANINGS = {  # a part of every word or phrase, by which a reader knows what is meant
    "cat": "cat|кот|кош", "dog": "dog|собак|пес", "rabbit": "rabbit|bunny|кролик|заяц", "bear": "bear|медведь|мишк",
    "duck": "duck|утк", "pig": "pig|свин|порос",
    "red": "red|красн", "yellow": "yellow|желт", "green": "green|зелен", "blue": "blue|син", "purple": "purple|фиолет",
    "black": "black|черн",
    "walks left": "left|лев", "walks right": "right|прав", "jumps": "jump|hop|прыг|скач", "dances": "danc|танц|пляш",
    "meadow": "meadow|grass|луг|трав", "beach": "beach|sea|пляж|мор", "snow": "snow|winter|снег|зим",
    "night": "night|stars|ноч|звезд|темн",
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_means_what_it_stands_for_and_nothing_else(language):
    """A word for the wrong direction, animal or colour would be trained, published and evaluated without an error."""
    assert set(WORDS[language]) == set(MEANINGS) == {word for words in ALLOWED.values() for word in words}
    for attribute, words in ALLOWED.items():
        for word in words:
            for form in WORDS[language][word]:
                meant = [other for other in words if re.search(rf"\b\w*({MEANINGS[other]})", form)]
                assert meant == [word], f"{form!r} stands for the {attribute} {word!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_s_captions_often_leave_attributes_out(language):
    """The talk's prompt does. A model that was trained on full captions only would not know what to do with it."""
    rng = random.Random(3)
    texts = [caption(CAT, language, rng) for _ in range(400)]
    full = [all(any(names(t, form) for form in WORDS[language][word]) for word in vars(CAT).values()) for t in texts]
    assert 0.6 < sum(full) / len(full) < 0.8
    hat = PARTIAL_PHRASINGS[language][0].format(
        a="a", animal=WORDS[language]["cat"][0], colour=WORDS[language]["red"][0]
    )
    assert hat in texts and hat == {"en": "a cat in a red hat", "ru": "кот в красной шляпе"}[language]


@pytest.mark.parametrize("partial", [0, 1])
def test_some_of_training_s_captions_end_with_a_dot_and_some_have_the_other_article(partial):
    """People type either, and none of them may surprise the model."""
    rng = random.Random(4)
    texts = [caption(CAT, "en", rng, partial=partial) for _ in range(400)]
    assert 0.15 < sum(text.endswith(".") for text in texts) / len(texts) < 0.35
    assert 0.35 < sum(names(text, "the cat") for text in texts) / len(texts) < 0.65
