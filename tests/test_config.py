"""Good configurations load. Wrong ones are refused with an error that names the file and the key."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from kandinsky_mini.config import CONFIGS, ConfigError, check_sampling, load_config

MISSING = object()


@pytest.fixture
def changed(tiny_values, tmp_path):
    """A function that writes the tiny configuration with one value changed, or with MISSING without the key.

    changed("dit.model_dim", 5) returns the path of the new file.
    """

    def change(key: str, value: object):
        values = copy.deepcopy(tiny_values)
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
        if value is MISSING:
            del section[last]
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return change


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_configurations_load(path):
    config = load_config(path)
    assert config.name == path.stem
    assert load_config(str(path)) == config
    assert config.dit.model_dim % sum(config.dit.axes_dims) == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"


def test_mini_is_the_default():
    assert load_config() == load_config(CONFIGS / "mini.yaml")


def test_a_configuration_of_ours_has_a_short_name(tiny_config, tmp_path, monkeypatch):
    """A path is still a path, even to a file that is named like one of ours."""
    assert load_config("lite_5s") == load_config(Path("lite_5s")) == load_config(CONFIGS / "lite_5s.yaml")
    monkeypatch.chdir(tmp_path)
    for path in ("lite_5s.yaml", "./own/lite_5s"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(tiny_config.read_bytes())
        assert load_config(str(tmp_path / path)).name == "tiny"
    assert load_config("lite_5s.yaml").name == load_config("./own/lite_5s").name == "tiny"
    assert load_config("lite_5s").name == "lite_5s"
    with pytest.raises(ConfigError, match="cannot read the configuration lite_9s: "):
        load_config("lite_9s")


def test_a_whole_number_is_a_float_too(changed):
    weight = load_config(changed("sampling.guidance_weight", 5)).sampling.guidance_weight
    assert (weight, type(weight)) == (5.0, float)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", 1, "unknown key 'colour'; known are name, dit, text, vae, sampling, weights"),
        ("dit.depth", 1, "dit: unknown key 'depth'; known are in_visual_dim, .*visual_cond"),
        ("dit.model_dim", MISSING, "dit: missing key 'model_dim'"),
        ("weights", MISSING, "missing key 'weights'"),
        ("dit.model_dim", True, "dit: model_dim: True is not of type int"),
        ("dit.model_dim", 32.0, "dit: model_dim: 32.0 is not of type int"),
        ("dit.model_dim", None, "dit: model_dim: None is not of type int"),
        ("dit.visual_cond", 1, "dit: visual_cond: 1 is not of type bool"),
        ("sampling.guidance_weight", "5.0", "sampling: guidance_weight: '5.0' is not of type float"),
        ("sampling.guidance_weight", True, "sampling: guidance_weight: True is not of type float"),
        ("dit.patch_size", [1, 2], r"dit: patch_size: \[1, 2\] is not a list of 3"),
        ("dit.patch_size", 2, "dit: patch_size: 2 is not a list of 3"),
        ("dit.axes_dims", [4, "6", 6], r"dit: axes_dims\[1\]: '6' is not of type int"),
        ("sampling.scale_factor", [1, 1, True], r"scale_factor\[2\]: True is not of type float"),
        ("text.known_words", 5, "text: known_words: 5 is not of type str"),
        ("text", "a cat", "text: expected the keys prompt_template, "),
        ("text.prompt_template", "no place for it", "text: prompt_template: 'no place for it' needs one {}"),
        ("text.prompt_template", "{} and {}", "text: prompt_template: '{} and {}' needs one {}"),
        ("text.prompt_template", "{} {colour}", "'{} {colour}' needs one {}, and no other braces"),
        ("text.prompt_template", "{{}}", "'{{}}' needs one {}, and no other braces"),
        ("text.image_template", "no place for it", "text: image_template: 'no place for it' needs one {}"),
        ("text.image_crop_start", -1, "text: image_crop_start must be a whole number, 0 to 131072, not -1"),
        ("text.max_length", 0, "text: max_length must be a whole number, 1 to 131072, not 0; the nearest is 1"),
        ("text.expansion_template", "more", "text: expansion_template: 'more' needs one {}, and no other braces"),
        ("text.crop_start", -1, "text: crop_start must be a whole number, 0 to 131072, not -1; the nearest is 0"),
        ("dit.num_visual_blocks", 0, "dit: num_visual_blocks must be a whole number, 1 to 1000, not 0"),
        ("dit.num_visual_blocks", 10**7, "dit: num_visual_blocks must be a whole number, 1 to 1000, not 10000000"),
        ("dit.ff_dim", -64, "dit: ff_dim must be a whole number, 1 to 131072, not -64"),
        ("dit.axes_dims", [0, 0, 0], "dit: axes_dims must be a multiple of 2, 2 to 1024, not 0; the nearest is 2"),
        ("dit.axes_dims", [3, 6, 7], "dit: axes_dims must be a multiple of 2, 2 to 1024, not 3"),
        ("dit.axes_dims", [4, 6, 8], "dit: model_dim 32 is not a multiple of the sum of axes_dims, 18"),
        ("dit.patch_size", [1, 0, 2], "dit: patch_size must be a multiple of 1, 1 to 16, not 0"),
        ("sampling.num_steps", 0, "sampling: num_steps must be a whole number, 1 to 1000, not 0"),
        ("sampling.width", 40, "sampling: width must be a multiple of 16 pixels"),
        ("sampling.guidance_weight", float("nan"), "sampling: guidance_weight must be a finite number"),
        ("sampling.guidance_weight", 10**400, "sampling: guidance_weight must be a finite number"),
        ("sampling.scale_factor", [1, 0, 1], "sampling: scale_factor must be a finite number, 0.001 to 1000, not 0"),
        ("name", "../tiny", "name: '../tiny' may have only letters, digits and _ . -"),
    ],
)
def test_wrong_value(changed, key, value, message):
    path = changed(key, value)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < len(str(path)) + 300


def test_a_configuration_holds_what_differs_from_its_base(tiny_config, tmp_path):
    shutil.copy(tiny_config, tmp_path / "tiny.yaml")
    path = tmp_path / "other.yaml"
    path.write_text("base: tiny.yaml\nname: other\nsampling: {num_steps: 3}\ndit: {axes_dims: [8, 4, 4]}")
    base, config = load_config(tiny_config), load_config(path)
    assert config.sampling == dataclasses.replace(base.sampling, num_steps=3)
    assert config.dit == dataclasses.replace(base.dit, axes_dims=(8, 4, 4))
    assert (config.name, config.text, config.weights) == ("other", base.text, base.weights)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("../tiny.yaml", r"other.yaml: base: '../tiny.yaml' is not the name of a file in the same folder"),
        ("5", r"other.yaml: base: 5 is not the name of a file"),
        ("nowhere.yaml", r"cannot read the configuration .*nowhere.yaml: No such file"),
        ("other.yaml", r"other.yaml: unknown key 'base'"),
    ],
)
def test_a_base_that_is_none(tmp_path, base, message):
    path = tmp_path / "other.yaml"
    path.write_text(f"base: {base}\nname: other")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the keys name, dit"),
        (b"# nothing\n", "expected the keys name, dit"),
        (b"[1, 2]", "expected the keys name, dit"),
        (b"name: [unclosed", "is not YAML"),
        (b"a: b: c", "is not YAML"),
        (b"\xff\xfe\x80", "is not YAML"),
        (b"name: 2024-13-45", "is not YAML"),
        (b"name: a\nname: b", "is not YAML: the key 'name' is there twice, in lines 1 and 2"),
        (b"dit: {time_dim: 1, time_dim: 2}", "the key 'time_dim' is there twice, in lines 1 and 1"),
        (b"[" * 10_000, "is nested too deeply"),
        (b"name: &a [*a, *a]", "missing key"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\nname: [*b, *b]", "unknown key 'a'"),
        (b"name: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_file_that_is_no_configuration(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_missing_file(tmp_path):
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert str(error.value).startswith(f"cannot read the configuration {path}: ")


def test_each_side_holds_whole_patches_of_its_own():
    """No published model has patches that are not square, but the configuration allows them."""
    config = load_config()
    dit, sampling = config.dit, dataclasses.replace(config.sampling, width=96, height=48)
    assert check_sampling(sampling, dataclasses.replace(dit, patch_size=(1, 2, 4)).unit) == sampling
    with pytest.raises(ValueError, match="height must be a multiple of 32 pixels"):
        check_sampling(sampling, dataclasses.replace(dit, patch_size=(1, 4, 2)).unit)
