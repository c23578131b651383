"""launch/generate.py does its work when it is started from the command line, as a user starts it."""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
from unittest import mock

import generate
import imageio.v3 as iio
import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file

from kandinsky_mini.parallel.layout import ParallelLayout
from kandinsky_mini.saving import latent_kept, save

SCRIPT = ROOT / "launch" / "generate.py"
SECONDS = 120  # no process may take longer than this


def command(tiny_config, *options: str) -> dict:
    return {
        "args": [sys.executable, str(SCRIPT), "--config", str(tiny_config), "--device", "cpu", *options],
        "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        "text": True,
        "encoding": "utf-8",
    }


def test_generates_a_video(tiny_config, tmp_path):
    done = subprocess.run(
        **command(tiny_config, "--prompt", "кот в красной шляпе с драконом", "--path", "cat.mp4", "--seed", "3"),
        cwd=tmp_path,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    first, saved, elapsed = done.stdout.splitlines()
    assert first == 'Generating "кот в красной шляпе с драконом"'
    assert saved == f"(1, 3, 25, 16, 32) saved to {tmp_path / 'cat.mp4'}"
    assert elapsed.startswith("TIME ELAPSED: ") and elapsed.endswith(" s")
    assert "tiny has never seen 'с', 'драконом'. It knows a cat" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]


def test_every_option_reaches_the_pipeline(monkeypatch):
    """Numbers that are all different show an option that is forgotten or mistaken for another one."""
    given = {"time_length": 2, "width": 48, "height": 32, "num_steps": 7, "guidance_weight": 2.5, "seed": 9}
    given |= {"scheduler_scale": 6.5, "negative_caption": "a dog"}
    options = [f"--{name.replace('_', '-').replace('caption', 'prompt')}={value}" for name, value in given.items()]
    built = {"--config": "mini", "--layout": "tp2", "--attention": "cudnn", "--weights": "lite"}
    words = [
        *options,
        *itertools.chain(*built.items()),
        "--offload",
        "--no-expand-prompts",
        "--prompt",
        "a pig",
        "--path",
        "pig.mp4",
    ]
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    pipe = mock.MagicMock()
    with mock.patch("kandinsky_mini.get_T2V_pipeline", return_value=pipe) as get:
        assert generate.generate(generate.parse_args(), "cpu") is pipe.return_value
    built["--layout"] = ParallelLayout("tp", 2)
    get.assert_called_once_with("cpu", *built.values(), True)
    pipe.assert_called_once_with("a pig", save_path="pig.mp4", expand_prompts=False, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "100"], "width must be a multiple of 16"),
        (["--time-length", "0"], "the suffix of this image must be .png"),
        (["--path", "nowhere/cat.mp4"], "there is no folder"),
        (["--num-steps", "0"], "num_steps"),
        (["--layout", "tp2"], "needs 2 ranks, but 1 were started"),
        (["--expand-prompts"], "cannot expand prompts"),
        (["--compile"], "compiling needs a"),
        (["--compile", "--device", "gpu"], "dit on 'gpu' does not work here"),
        (["--latent", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--latent", "cat.latent.safetensors", "--path", "cat.png"], "the suffix of this video must be .mp4"),
    ],
)
def test_a_mistake_shows_before_the_models_are_loaded(tmp_path, monkeypatch, options, message):
    """At the real size, loading takes minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setattr(sys, "argv", ["generate.py", *options])
    save_file({"latent": torch.zeros(2, 2, 4, 16)}, "cat.latent.safetensors")
    monkeypatch.setattr("kandinsky_mini.get_T2V_pipeline", lambda *args: pytest.fail("they were loaded"))
    monkeypatch.setattr("kandinsky_mini.build.build_decoder", lambda *args: pytest.fail("the VAE was loaded"))
    args = generate.parse_args()
    with pytest.raises(ValueError, match=message):
        (generate.decode_kept if args.latent else generate.generate)(args, args.device or "cpu")


@pytest.mark.skipif(shutil.which("c++") is None or " " in torch.__file__, reason="PyTorch's compiler needs these")
def test_compiled_blocks_make_the_same_picture(tiny_config, tmp_path):
    pictures = {}
    for name, options in {"eager.png": (), "compiled.png": ("--compile",)}.items():
        done = subprocess.run(
            **command(tiny_config, "--time-length", "0", "--path", name, *options),
            cwd=tmp_path,
            capture_output=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        pictures[name] = iio.imread(tmp_path / name).astype(int)
    assert abs(pictures["eager.png"] - pictures["compiled.png"]).max() <= 1


def test_a_kept_latent_becomes_the_video(tiny_config, tiny_pipe, tmp_path):
    latents = []
    video = tiny_pipe("a cat", seed=1, progress=False, callback=lambda step, latent: latents.append(latent))
    with pytest.raises(KeyboardInterrupt), latent_kept(latents[-1], tmp_path / "cat.mp4"):
        raise KeyboardInterrupt
    done = subprocess.run(
        **command(tiny_config, "--latent", "cat.latent.safetensors", "--path", "cat.mp4"),
        cwd=tmp_path,
        capture_output=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "Decoding cat.latent.safetensors"
    save(video, tmp_path / "expected.mp4")
    assert (iio.imread(tmp_path / "cat.mp4") == iio.imread(tmp_path / "expected.mp4")).all()


def test_a_kept_latent_is_not_decoded_by_every_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="--latent is decoded by one process, not by several ranks"):
        generate.decode_kept(argparse.Namespace(), "cpu")


def test_a_terminal_that_cannot_show_the_prompt(tiny_config, tmp_path):
    settings = command(tiny_config, "--prompt", "кот", "--time-length", "0", "--path", "cat.png")
    settings["env"] |= {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(**settings, cwd=tmp_path, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Generating "???"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--width", "40"],
            "error: width must be a multiple of 16 pixels, 16 to 8192, not 40; the nearest are 32 and 48",
        ),
        (["--config", "nowhere.yaml"], "error: cannot read the configuration nowhere.yaml: No such file or directory"),
    ],
)
def test_bad_input(tiny_config, tmp_path, options, message):
    done = subprocess.run(**command(tiny_config, *options), cwd=tmp_path, capture_output=True, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C in another way")
def test_ctrl_c_while_sampling(tiny_config, tmp_path):
    # At this size, sampling would take minutes.
    options = ["--width", "512", "--height", "512", "--num-steps", "1000"]
    process = subprocess.Popen(
        **command(tiny_config, *options), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=1
    )
    try:
        shown = ""
        while "1/1000" not in shown:
            letter = process.stderr.read(1)
            assert letter, f"it ended before it sampled: {shown}"
            shown += letter
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in shown + rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("ValueError('width must be 16')", "error: width must be 16"),
        ("FloatingPointError('the velocity in step 1 is not finite')", "error: the velocity in step 1 is not finite"),
        ("OSError(28, 'No space left on device')", "error: [Errno 28] No space left on device"),
        (
            "RuntimeError('CUDA out of memory. Tried\\n more')",
            "error: not enough memory for this size: CUDA out of memory.",
        ),
        ("MemoryError()", "error: not enough memory for this size: MemoryError"),
    ],
)
def test_what_a_person_can_cure_ends_a_script_with_a_line_and_the_way_on(error, line):
    program = f"""
from kandinsky_mini.command import run
def main():
    error = {error}
    error.add_note("The latent is kept.")
    raise error
run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith(line) and second == "The latent is kept."
