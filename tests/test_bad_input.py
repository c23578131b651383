"""Bad input raises an error before any model runs. The error says what was given and what is allowed."""

import contextlib
import json
import os
import resource
import shutil
import warnings
from pathlib import Path
from unittest import mock

import imageio.v3 as iio
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kandinsky_mini import get_T2V_pipeline, saving
from kandinsky_mini.config import load_config
from kandinsky_mini.models.checkpoint import CheckpointError
from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.saving import load_latent
from kandinsky_mini.validation import check_request

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "a cat in a red hat"
FRAMES = 25  # of the tiny configuration's video
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def idle_pipe(tiny_pipe, monkeypatch):
    """A pipeline whose models must not run: the test fails when one of them does."""

    def fail(*args, **kwargs):
        pytest.fail("a model ran")

    for model in (tiny_pipe.dit, tiny_pipe.text_embedder, tiny_pipe.vae.decoder):
        monkeypatch.setattr(model, "forward", fail)
    return tiny_pipe


def test_the_idle_pipeline_really_watches(idle_pipe):
    with pytest.raises(pytest.fail.Exception, match="a model ran"):
        idle_pipe(PROMPT)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_empty_prompt(idle_pipe, prompt):
    with pytest.raises(ValueError, match="the prompt is empty"):
        idle_pipe(prompt)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text", None, "the prompt must be text, not NoneType"),
        ("text", 5, "the prompt must be text, not int"),
        ("text", [PROMPT], "the prompt must be text, not list"),
        ("text", b"cat", "the prompt must be text, not bytes"),
        ("negative_caption", 5, "the negative caption must be text, not int"),
        ("negative_caption", [PROMPT], "the negative caption must be text, not list"),
    ],
)
def test_prompt_that_is_not_text(idle_pipe, name, value, message):
    with pytest.raises(ValueError, match=message):
        idle_pipe(**{"text": PROMPT, name: value})


def test_half_a_character(idle_pipe):
    with pytest.raises(ValueError, match="broken character at position 6"):
        idle_pipe("a cat \ud83d")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", 40, "width must be a multiple of 16 pixels, 16 to 8192, not 40; the nearest are 32 and 48"),
        ("height", 510, "height must be a multiple of 16 pixels, 16 to 8192, not 510; the nearest are 496 and 512"),
        ("width", 0, "not 0; the nearest is 16"),
        ("width", -32, "not -32; the nearest is 16"),
        ("height", 48.0, "not 48.0; the nearest is 48"),
        ("height", 10**6, "not 1000000; the nearest is 8192"),
        ("height", INF, "not inf; the nearest is 8192"),
        ("time_length", -1, "time_length must be whole seconds, 0 to 3600, not -1; the nearest is 0"),
        ("time_length", 1.5, "not 1.5; the nearest are 1 and 2"),
        ("time_length", 10**400, "the nearest is 3600"),
        ("num_steps", 0, "num_steps must be a whole number, 1 to 1000, not 0; the nearest is 1"),
        ("num_steps", 2.5, "not 2.5; the nearest are 2 and 3"),
        ("num_steps", 10**9, "the nearest is 1000"),
        ("guidance_weight", INF, "guidance_weight must be a finite number, -1000 to 1000, not inf"),
        ("guidance_weight", 1e30, "guidance_weight must be a finite number, -1000 to 1000, not 1e[+]30"),
        ("scheduler_scale", 0, "scheduler_scale must be a finite number, 0.001 to 1000, not 0"),
        ("scheduler_scale", -2.0, "not -2.0"),
        ("seed", -1, "seed must be a whole number, 0 to 18446744073709551615, not -1; the nearest is 0"),
        ("seed", 2**64, "not 18446744073709551616"),
        ("seed", 1.5, "the nearest are 1 and 2"),
    ],
)
def test_number_out_of_range(idle_pipe, tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        idle_pipe(PROMPT, **{name: value, "save_path": tmp_path / "cat.mp4"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [NAN, "2", "many", True, [2], (), torch.tensor(2), 1j], ids=repr)
@pytest.mark.parametrize(
    "name", ["time_length", "width", "height", "num_steps", "guidance_weight", "scheduler_scale", "seed"]
)
def test_not_a_number(idle_pipe, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*, not ") as error:
        idle_pipe(PROMPT, **{name: value})
    assert str(error.value).endswith(repr(value))


@pytest.mark.parametrize("name", ["guidance_weight", "scheduler_scale"])
@pytest.mark.parametrize("value", [10**400, -(10**400), -INF])
def test_far_too_large(idle_pipe, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a finite number"):
        idle_pipe(PROMPT, **{name: value})


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a dragon in a red hat", "'dragon'"),
        ("A Dragon flies, a dragon flies!", "'Dragon', 'flies', 'dragon'"),
        ("дракон в красной шляпе", "'дракон'"),
        ("🐱", "'🐱'"),
    ],
)
def test_words_never_seen(tiny_pipe, prompt, words):
    with pytest.warns(UserWarning) as caught:
        video = tiny_pipe(prompt, time_length=0, progress=False)
    assert video.shape == (1, 3, 1, 16, 32)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"tiny has never seen {words}. It knows a cat, dog, rabbit")
    assert Path(caught[0].filename) == Path(__file__), "the warning does not point at the call"


def test_a_prompt_that_is_too_long(tiny_pipe):
    fits = "a cat in a red hat " * 10  # these are 60 words, with one token before and one after them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipe(fits, time_length=0, num_steps=1, progress=False)
    with pytest.warns(UserWarning, match="^the prompt has 68 tokens, tiny reads 64: the rest is cut off$") as caught:
        tiny_pipe(fits + "a cat in a red hat", time_length=0, num_steps=1, progress=False)
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]


def test_the_negative_prompt_gets_the_same_warnings(tiny_pipe):
    with pytest.warns(UserWarning) as caught:
        tiny_pipe(PROMPT, time_length=0, num_steps=1, negative_caption="a dragon " + "a cat " * 40, progress=False)
    unknown, long = [str(warning.message) for warning in caught]
    assert unknown.startswith("tiny has never seen 'dragon' in the negative caption. It knows a cat")
    assert long == "the negative caption has 84 tokens, tiny reads 64: the rest is cut off"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without guidance it is not read
        tiny_pipe(PROMPT, time_length=0, num_steps=1, guidance_weight=1, negative_caption="a dragon", progress=False)


@pytest.mark.parametrize(
    "prompt", ["A CAT in a red hat.", "Кот в ЖЁЛТОЙ шляпе", "Пёс идёт налево", "the pig, at night!"]
)
def test_capital_letters_and_dots_do_not_matter(tiny_pipe, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipe(prompt, time_length=0, num_steps=1, progress=False)


def test_spelling_does_not_change_the_picture(tiny_pipe):
    """Some systems write ё as two characters: е, and its dots."""
    spellings = ("кот в желтой шляпе", "КОТ в  Жёлтой шляпе", "кот в же\u0308лтой шляпе")
    plain, *others = (tiny_pipe(prompt, time_length=0, seed=1, progress=False) for prompt in spellings)
    assert all(torch.equal(plain, other) for other in others)


@pytest.mark.parametrize(
    ("time_length", "name", "message"),
    [
        (1, "cat.avi", "cat.avi: the suffix of this video must be .mp4, not '.avi'"),
        (1, "cat", "the suffix of this video must be .mp4, not ''"),
        (1, "cat.png", "the suffix of this video must be .mp4, not '.png'"),
        (0, "cat.mp4", "the suffix of this image must be .png, not '.mp4'"),
        (1, "nowhere/cat.mp4", "there is no folder .*nowhere"),
        (1, "folder.mp4", "folder.mp4 is a folder, not a file"),
        (1, "c" * 300 + ".mp4", "is not writable: File name too long"),
        (1, "c\0at.mp4", "null"),
        (1, "file.txt/cat.mp4", "there is no folder .*file.txt"),
    ],
)
def test_path_that_cannot_work(idle_pipe, tmp_path, time_length, name, message):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        idle_pipe(PROMPT, time_length=time_length, save_path=tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["", ".", "/", 5, b"cat.mp4", True])
def test_value_that_is_no_file_path(idle_pipe, path):
    with pytest.raises(ValueError, match="suffix of this video|must be a path"):
        idle_pipe(PROMPT, save_path=path)


def test_read_only_disk(idle_pipe, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ValueError, match="cat.mp4 is not writable: Read-only file system"):
        idle_pipe(PROMPT, save_path=tmp_path / "cat.mp4")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("protected", ["folder", "file"])
def test_no_permission(idle_pipe, tmp_path, protected):
    path = tmp_path / "cat.mp4"
    path.write_bytes(b"old")
    (tmp_path if protected == "folder" else path).chmod(0o555)
    try:
        with pytest.raises(ValueError, match="cat.mp4 is not writable"):
            idle_pipe(PROMPT, save_path=path)
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == b"old"


def stop(error):
    def callback(step, latent):
        if step == 2:
            raise error

    return callback


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("when", ["sampling", "writing"])
def test_failed_run_leaves_no_half_video(tiny_pipe, tmp_path, monkeypatch, when, error, there_before):
    def write_half(path, frames, **options):
        if len(frames) == FRAMES:
            Path(path).write_bytes(b"half")
            raise error
        imwrite(path, frames, **options)  # the trial before sampling

    imwrite = iio.imwrite
    path = tmp_path / "cat.mp4"
    if there_before:
        path.write_bytes(b"old")
    if when == "writing":
        monkeypatch.setattr("imageio.v3.imwrite", write_half)
    with pytest.raises(type(error)):
        tiny_pipe(PROMPT, save_path=path, progress=False, callback=stop(error) if when == "sampling" else None)
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert (left.pop("cat.latent.safetensors", None) is not None) == (when == "writing"), "the latent is not kept"
    assert left == ({"cat.mp4": b"old"} if there_before else {})


def test_full_disk(tiny_pipe, tmp_path, monkeypatch):
    """When the disk is full, ffmpeg reports no error and leaves only the beginning of the video."""

    def write_the_beginning(path, frames, **options):
        imwrite(path, frames, **options)
        if len(frames) == FRAMES:
            os.truncate(path, path.stat().st_size // 2)

    imwrite = iio.imwrite
    monkeypatch.setattr(iio, "imwrite", write_the_beginning)
    path = tmp_path / "cat.mp4"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="cat.mp4 could not be written whole: is the disk full?"):
        tiny_pipe(PROMPT, save_path=path, progress=False)
    assert path.read_bytes() == b"old"
    assert {file.name for file in tmp_path.iterdir()} == {"cat.mp4", "cat.latent.safetensors"}


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), KeyboardInterrupt()], ids=type)
def test_a_latent_that_cannot_be_decoded_is_kept(tiny_pipe, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    expected = tiny_pipe(PROMPT, seed=1, progress=False)
    path = tmp_path / "cat.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(tiny_pipe.vae.decoder, "forward", fail)
        with pytest.raises(type(error)) as raised:
            tiny_pipe(PROMPT, seed=1, save_path=path, progress=False)
    (kept,) = tmp_path.iterdir()
    (note,) = raised.value.__notes__
    assert note.endswith(f"python launch/generate.py --latent {kept} --path {path}")
    assert torch.equal(tiny_pipe.decode(load_latent(kept, 16)), expected)


@pytest.mark.parametrize("content", [b"", b"half", "scorer"])
def test_a_file_that_is_no_latent(tmp_path, content):
    path = tmp_path / "cat.latent.safetensors"
    if content == "scorer":
        save_file({"latent": torch.zeros(7, 2, 4, 4)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cat.latent.safetensors"):
        load_latent(path, 16)


@pytest.mark.parametrize("encoder", ["nowhere", "broken"])
def test_a_missing_encoder_is_found_before_sampling(idle_pipe, tmp_path, monkeypatch, encoder):
    (tmp_path / "broken").touch(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / encoder))
    with pytest.raises(ValueError, match="cat.mp4.*does not work here.*unset IMAGEIO_FFMPEG_EXE"):
        idle_pipe(PROMPT, save_path=tmp_path / "cat.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_full_disk_is_found_before_sampling(idle_pipe, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # as on a disk with 1 MB left
    try:
        with pytest.raises(ValueError, match="cat.mp4 is not writable: File too large"):
            idle_pipe(PROMPT, save_path=tmp_path / "cat.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_the_latent_is_found_before_sampling(tmp_path):
    """It must fit beside the video. Ten seconds at the real size have 23 MiB."""
    config, room = load_config("lite_10s"), 30 * 2**20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # as on a disk with 30 MB left
    try:
        with pytest.raises(ValueError, match="cat.mp4 is not writable: File too large"):
            check_request(config, ParallelLayout(), PROMPT, save_path=tmp_path / "cat.mp4")
        check_request(config, ParallelLayout(), PROMPT, save_path=tmp_path / "cat.mp4", time_length=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_latent_that_cannot_be_kept_is_decoded_all_the_same(tiny_pipe, tmp_path, monkeypatch):
    def fail(*args):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.warns(UserWarning, match="decoded without being kept: .*cat.latent.safetensors .*No space left"):
        tiny_pipe(PROMPT, save_path=tmp_path / "cat.mp4", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["cat.mp4"]
    monkeypatch.setattr(tiny_pipe.vae.decoder, "forward", mock.Mock(side_effect=MemoryError()))
    with pytest.warns(UserWarning), pytest.raises(MemoryError) as raised:
        tiny_pipe(PROMPT, save_path=tmp_path / "cat.mp4", progress=False)
    assert not hasattr(raised.value, "__notes__"), "it says that the latent is kept"


def test_a_kept_latent_survives_later_runs_to_the_same_path(tiny_pipe, tmp_path, monkeypatch):
    kept, path = tmp_path / "cat.latent.safetensors", tmp_path / "cat.mp4"
    kept.write_bytes(b"hours of work")
    tiny_pipe(PROMPT, save_path=path, progress=False)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, kept.name}
    monkeypatch.setattr(tiny_pipe.vae.decoder, "forward", mock.Mock(side_effect=MemoryError()))
    with pytest.raises(MemoryError) as raised:
        tiny_pipe(PROMPT, save_path=path, progress=False)
    assert kept.read_bytes() == b"hours of work"
    second = tmp_path / "cat-2.latent.safetensors"
    assert second.exists() and f"--latent {second} " in raised.value.__notes__[0]


def test_a_place_that_cannot_keep_a_latent_is_found_before_sampling(idle_pipe, tmp_path):
    (tmp_path / "cat.latent.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"cat\.latent\.safetensors"):
        idle_pipe(PROMPT, save_path=tmp_path / "cat.mp4")


def damage(module: torch.nn.Module, name: str, value: float, monkeypatch) -> None:
    weight = module.get_parameter(name)
    damaged = weight.detach().clone()
    damaged.view(-1)[0] = value
    monkeypatch.setattr(weight, "data", damaged)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("dit", "visual_embeddings.in_layer.weight", NAN, "the velocity in step 1 of 3 is not finite"),
        ("dit", "out_layer.out_layer.bias", INF, "the velocity in step 1 of 3 is not finite"),
        ("vae", "decoder.conv_out.conv.bias", INF, "the decoded video is not finite"),
        ("text_embedder", "text_encoder.norm.weight", NAN, "the text embedding is not finite"),
        ("text_embedder", "text_encoder2.final_layer_norm.weight", INF, "the pooled text embedding is not finite"),
    ],
)
def test_what_is_not_finite_is_no_video(tiny_pipe, tmp_path, monkeypatch, part, name, value, message):
    model = getattr(tiny_pipe, part)
    if name not in dict(model.named_parameters()):  # another version of transformers has another level of names
        name = next(each for each, _ in model.named_parameters() if each.endswith(name.split(".", 1)[1]))
    damage(model, name, value, monkeypatch)
    with pytest.raises(FloatingPointError, match=f"^{message}: are the weights damaged"):
        tiny_pipe(PROMPT, save_path=tmp_path / "cat.mp4", progress=False)
    assert not (tmp_path / "cat.mp4").exists()


def test_a_scaling_factor_of_zero_is_no_video(tiny_pipe, monkeypatch):
    monkeypatch.setattr(
        tiny_pipe.vae, "_internal_dict", type(tiny_pipe.vae.config)(tiny_pipe.vae.config | {"scaling_factor": 0})
    )
    with pytest.raises(FloatingPointError, match="the decoded video is not finite"):
        tiny_pipe(PROMPT, time_length=0, progress=False)


def test_a_pipeline_works_on_after_an_interruption(tiny_pipe):
    before = tiny_pipe(PROMPT, time_length=0, seed=1, progress=False)
    with pytest.raises(KeyboardInterrupt):
        tiny_pipe(PROMPT, time_length=0, progress=False, callback=stop(KeyboardInterrupt()))
    assert torch.equal(tiny_pipe(PROMPT, time_length=0, seed=1, progress=False), before)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "meta", None, ["cpu"], "hpu"], ids=repr)
def test_device_that_does_not_work(tiny_config, device):
    with pytest.raises(ValueError) as error:
        get_T2V_pipeline(device, tiny_config)
    assert str(error.value).startswith(f"device_map: dit on {device!r} does not work here: ")


def test_error_names_the_component(tiny_config):
    with pytest.raises(ValueError, match="device_map: vae on 'gpu' does not work here"):
        get_T2V_pipeline({"dit": "cpu", "vae": "gpu", "text_embedder": "cpu"}, tiny_config)


@pytest.mark.parametrize(
    ("device_map", "given"),
    [
        ({}, "[]"),
        ({"dit": "cpu"}, "['dit']"),
        ({"dit": "cpu", "vae": "cpu", "text": "cpu"}, "['dit', 'text', 'vae']"),
        ({1: "cpu", "dit": "cpu"}, "['1', 'dit']"),
        (dict.fromkeys(("dit", "vae", "text_embedder", "text"), "cpu"), "['dit', 'text', 'text_embedder', 'vae']"),
    ],
)
def test_device_map_with_wrong_keys(tiny_config, device_map, given):
    with pytest.raises(ValueError) as error:
        get_T2V_pipeline(device_map, tiny_config)
    assert str(error.value) == f"device_map has the keys {given}; it needs dit, vae, text_embedder"


FILES = {
    "dit": "dit.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder2": "model.safetensors",
}


@pytest.fixture
def copied(tiny_values, tiny_config, tmp_path):
    """A function that copies one model's weights. It returns a configuration that uses the copy, and its folder."""

    def copy(name: str) -> tuple[Path, Path]:
        folder = shutil.copytree(tiny_values["weights"][name], tmp_path / name)
        values = tiny_values | {"weights": tiny_values["weights"] | {name: str(folder)}}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return tmp_path / "tiny.yaml", folder

    return copy


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 4, 5000])
def test_truncated_weights(copied, name, size):
    config, folder = copied(name)
    os.truncate(folder / FILES[name], size)
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert f"{folder / FILES[name]} is not a whole safetensors file" in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(copied, name):
    config, folder = copied(name)
    (folder / FILES[name]).unlink()
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert f"no .safetensors file in {folder}" in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_weights_are_not_drawn_at_random(copied, name):
    config, folder = copied(name)
    tensors = load_file(folder / FILES[name])
    lost = sorted(tensors)[3]
    del tensors[lost]
    save_file(tensors, folder / FILES[name], metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 missing: ") as error:
        get_T2V_pipeline("cpu", config)
    assert str(folder) in str(error.value) and lost.rpartition(".")[2] in str(error.value)


def test_weights_of_the_other_text_encoder(copied, tiny_values):
    config, folder = copied("text_encoder2")
    shutil.copytree(tiny_values["weights"]["text_encoder"], folder, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="does not fit CLIPTextModel") as error:
        get_T2V_pipeline("cpu", config)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_folder(copied, name):
    config, folder = copied(name)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert str(error.value) == f"tiny has no weights for {name}: {folder} does not exist"


def test_an_install_without_its_weights_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("kandinsky_mini.build.ROOT", tmp_path)  # as from a wheel, which has no assets beside it
    with pytest.raises(CheckpointError, match="mini has no weights for dit.*: clone it, and pip install -e . there"):
        get_T2V_pipeline("cpu")


@pytest.mark.parametrize(
    ("name", "file"),
    [("vae", "config.json"), ("text_encoder", "tokenizer.json"), ("text_encoder2", "config.json")],
)
def test_damaged_settings(copied, name, file):
    config, folder = copied(name)
    os.truncate(folder / file, 50)
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Tokenizer"])
def test_code_in_a_weights_folder_is_not_run(copied, tmp_path, monkeypatch, tokenizer_class):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the library would ask whether to run it
    config, folder = copied("text_encoder")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": tokenizer_class, "auto_map": {"AutoTokenizer": ["evil.Tokenizer"] * 2}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code = f"from transformers import PreTrainedTokenizerFast as Tokenizer\nopen({str(tmp_path / 'it_ran')!r}, 'w')\n"
    (folder / "evil.py").write_text(code)
    with contextlib.suppress(CheckpointError):  # where our own class is named, the folder's code is passed over
        get_T2V_pipeline("cpu", config)
    assert not (tmp_path / "it_ran").exists()


class Evil:
    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("name", "file"),
    [("vae", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin"), ("dit", "dit.bin")],
)
@pytest.mark.parametrize("content", ["evil", "good"])
def test_weights_are_never_unpickled(copied, tmp_path, name, file, content):
    """Not even if another safetensors file beside the pickled one lets the folder look whole."""
    config, folder = copied(name)
    torch.save(Evil(tmp_path / "it_ran") if content == "evil" else load_file(folder / FILES[name]), folder / file)
    (folder / FILES[name]).unlink()
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert str(folder) in str(error.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (n, f)
        for n in ("text_encoder", "text_encoder2", "vae")
        for f in ("tokenizer_config.json", "tokenizer.json", "config.json")
        if n != "vae" or f == "config.json"
    ],
)
def test_a_missing_file_is_noticed_and_not_fetched(copied, monkeypatch, name, file):
    def refuse(*args):
        pytest.fail("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    config, folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(CheckpointError) as error:
        get_T2V_pipeline("cpu", config)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_two_checkpoints_in_a_folder_of_a_library(copied, name):
    """The libraries read the whole file and pass over the shards, without a word."""
    config, folder = copied(name)
    shutil.copy(folder / FILES[name], folder / "part.safetensors")
    keys = dict.fromkeys(load_file(folder / FILES[name]), "part.safetensors")
    (folder / f"{FILES[name]}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": keys}))
    with pytest.raises(CheckpointError, match=f"{FILES[name]} and .*index.json are two checkpoints: remove the one"):
        get_T2V_pipeline("cpu", config)
