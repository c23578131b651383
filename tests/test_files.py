"""A path never holds half a file or half a folder, whatever ends the process that writes it."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT

from kandinsky_mini.files import ASIDE, check_writable, held, write_json, write_text, written_aside

SECONDS = 60
# Write a folder, or a video that takes long, and say when half of it is there.
FOLDER = """
import sys, time
from kandinsky_mini.files import written_aside
with written_aside(sys.argv[1], replaces=("part*",)) as aside:
    aside.mkdir()
    (aside / "part1").write_text("new")
    print("half", flush=True)
    time.sleep(60)
    (aside / "part2").write_text("new")
"""
VIDEO = """
import sys, torch
from pathlib import Path
from kandinsky_mini.saving import save
frames = torch.randint(256, (3, 50, 128, 128), dtype=torch.uint8)
video = torch.cat([frames] * 100, dim=1)[None]
print("half", flush=True)
save(video, Path(sys.argv[1]))
"""
# Die between the two renames that exchange a folder.
EXCHANGE = """
import os, pathlib, sys
from kandinsky_mini.files import written_aside
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)
with written_aside(sys.argv[1], replaces=("part*",)) as aside:
    aside.mkdir()
"""
# Take a second to tidy up.
TIDY = """
import sys, time
from kandinsky_mini.files import written_aside
with written_aside(sys.argv[1]) as aside:
    try:
        print("half", flush=True)
        time.sleep(60)
    finally:
        print("tidying up", flush=True)
        time.sleep(1)
        print("tidy", flush=True)
"""
# Run as under nohup.
NOHUP = """
import signal, sys, time
from kandinsky_mini.files import written_aside
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with written_aside(sys.argv[1]) as aside:
    print("half", flush=True)
    sys.stdin.readline()
    aside.write_text("new")
"""
# Write files one after the other for some seconds.
WRITE = """
import sys, time
from pathlib import Path
from kandinsky_mini.files import write_text
print("half", flush=True)
end = time.monotonic() + 4
while time.monotonic() < end:
    write_text(Path(sys.argv[1]), "new")
"""
HOLD = """
import pathlib, sys, time
from kandinsky_mini.files import held
with held(pathlib.Path(sys.argv[1])):
    print("half", flush=True)
    time.sleep(60)
"""


def heed_signals() -> None:
    """Undo that nohup, or a shell that runs the tests in its background, lets all programs ignore these."""
    for each in (signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)


@pytest.fixture
def start():
    """A function that starts a program with an argument, and returns when it says "half". It is killed at the end."""
    running = []

    def run(program: str, argument: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(argument)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=heed_signals, **pipes))
        assert running[-1].stdout.readline() == "half\n", running[-1].stderr.read()
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def old_folder(path: Path) -> Path:
    path.mkdir()
    for name in ("part1", "part2", "part3"):
        (path / name).write_text("old")
    return path


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=lambda s: s.name)
def test_a_folder_is_never_half_new(start, tmp_path, how):
    folder = old_folder(tmp_path / "weights")
    before = contents(tmp_path)
    process = start(FOLDER, folder)
    process.send_signal(how)
    process.wait(SECONDS)
    assert process.returncode == -how
    if how == signal.SIGKILL:  # nobody can tidy up then; the next one that writes there does
        assert len(list(tmp_path.glob(f"{ASIDE}*"))) == 1
        check_writable(tmp_path / "other")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_second_signal_does_not_interrupt_the_tidying_up(start, tmp_path, again):
    """A person may be impatient, and a system that shuts down sends both."""
    process = start(TIDY, tmp_path / "cat.txt")
    process.terminate()
    assert process.stdout.readline() == "tidying up\n"
    process.send_signal(again)
    assert process.communicate(timeout=SECONDS)[0] == "tidy\n"
    assert process.returncode == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(start, tmp_path):
    """A run under nohup goes on when its terminal is closed."""
    process = start(NOHUP, tmp_path / "cat.txt")
    process.send_signal(signal.SIGHUP)
    process.communicate("\n", timeout=SECONDS)
    assert process.returncode == 0
    assert contents(tmp_path) == {"cat.txt": "new"}


def test_another_thread_writes_as_well(tmp_path):
    """Python lets only the main thread say what signals do."""
    with ThreadPoolExecutor() as pool:
        pool.submit(write_text, tmp_path / "cat.txt", "new").result()
    assert contents(tmp_path) == {"cat.txt": "new"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    with written_aside(old_folder(tmp_path / "weights"), replaces=("part*",)) as aside:
        aside.mkdir()
        (aside / "part1").write_text("new")
    assert contents(tmp_path) == {"weights/part1": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_folder_that_was_just_moved_away_comes_back(start, tmp_path):
    before = contents(old_folder(tmp_path / "weights"))
    done = subprocess.run([sys.executable, "-c", EXCHANGE, str(tmp_path / "weights")], cwd=ROOT, timeout=SECONDS)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "weights").exists()
    check_writable(tmp_path / "other")
    assert contents(tmp_path / "weights") == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_an_error_between_the_two_renames_puts_the_folder_back(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    folder = old_folder(tmp_path / "weights")
    before = contents(tmp_path)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"), written_aside(folder, replaces=("part*",)) as aside:
        aside.mkdir()
    assert contents(tmp_path) == before


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path):
    (old_folder(tmp_path / "weights") / "thesis.txt").touch()
    with pytest.raises(ValueError, match="weights holds thesis.txt, which would be lost: name a new"):
        check_writable(tmp_path / "weights", replaces=("part*",))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda s: s.name)
def test_a_signal_while_a_video_is_written(start, tmp_path, how):
    (tmp_path / "cat.mp4").write_text("old")
    process = start(VIDEO, tmp_path / "cat.mp4")
    while not any(file.stat().st_size for file in tmp_path.glob(f"{ASIDE}*/new/cat.mp4")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    process.wait(SECONDS)
    assert process.returncode == -how
    if how == signal.SIGKILL:
        write_text(tmp_path / "cat.mp4", "new")
    assert contents(tmp_path) == {"cat.mp4": "new" if how == signal.SIGKILL else "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]


def test_what_a_living_process_writes_is_left_alone(start, tmp_path):
    process = start(FOLDER, tmp_path / "weights")
    write_text(tmp_path / "cat.txt", "cat")
    (aside,) = tmp_path.glob(f"{ASIDE}*")
    assert (aside / "new" / "weights" / "part1").read_text() == "new"
    process.kill()


def test_what_is_written_aside_has_a_name_that_nobody_can_guess_and_is_nobody_else_s(tmp_path):
    names = set()
    for _ in range(3):
        with written_aside(tmp_path / "cat.mp4") as aside:
            folder = aside.parent.parent
            names.add(folder.name)
            assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
            aside.touch()
    assert len(names) == 3


def test_leftovers_behind_a_link_stay(tmp_path):
    """A link that looks like the folder of a dead process must not make us remove what it points to."""
    (tmp_path / "home" / "old").mkdir(parents=True)
    for name in ("lock", "thesis.txt"):
        (tmp_path / "home" / name).touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{ASIDE}abc").symlink_to(tmp_path / "home")
    write_text(tmp_path / "out" / "cat.txt", "cat")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_what_another_user_left_is_not_touched(tmp_path, monkeypatch):
    """Else anybody who shares a folder could put files into it under our name."""
    left = tmp_path / f"{ASIDE}abc"
    (left / "old").mkdir(parents=True)
    (left / "lock").touch()
    (left / "old" / "cat.txt").write_text("not ours")
    monkeypatch.setattr(os, "getuid", lambda: left.stat().st_uid + 1)
    write_text(tmp_path / "dog.txt", "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "dog.txt"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "cat.json").write_text("old")
    for name, target in (("cat.json", "cat.json"), ("new.json", "new.json"), ("dog.json", "blob")):
        (tmp_path / name).symlink_to(tmp_path / "disk" / target)
        with written_aside(tmp_path / name) as aside:
            assert aside.suffix == ".json"
            aside.write_text("new")
        assert (tmp_path / name).is_symlink() and (tmp_path / "disk" / target).read_text() == "new"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path / "pipe", tmp_path / "circle", Path("/dev/null")):
        with pytest.raises(ValueError, match="is a pipe, a device or a broken link, not a file"):
            write_text(path, "cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "pipe"]


def test_a_full_disk_keeps_the_old_record(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"step": 1.0})
    program = """
import resource, sys
from pathlib import Path
from kandinsky_mini.files import write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as on a disk with so much space
write_json(Path(sys.argv[1]), {"steps": [0.5] * 1000})
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, timeout=SECONDS)
    assert b"File too large" in done.stderr
    assert json.loads(path.read_text()) == {"step": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_word_for_what_is_not_finite(tmp_path, number):
    write_json(tmp_path / "record.json", {"step": 1.0})
    with pytest.raises(ValueError, match="record.json: a number that is not finite is no result"):
        write_json(tmp_path / "record.json", {"steps": [1.0, number]})
    assert json.loads((tmp_path / "record.json").read_text()) == {"step": 1.0}


def test_a_place_without_room_is_refused_before(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        check_writable(tmp_path / "cat.mp4", megabytes=1)
        with pytest.raises(ValueError, match="cat.mp4 is not writable: File too large"):
            check_writable(tmp_path / "cat.mp4", megabytes=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_second_holder_is_refused_and_the_first_is_named(start, tmp_path):
    lock = tmp_path / "vae.lock"
    process = start(HOLD, lock)
    with (
        pytest.raises(ValueError, match=f"vae.lock is held by process {process.pid} on .*: wait for its end"),
        held(lock),
    ):
        pass
    process.kill()
    process.wait(SECONDS)
    with held(lock):
        pass
    assert lock.read_text() == ""


def test_what_stands_beside_a_file_is_not_touched(tmp_path):
    """A broken link or a socket cannot be opened, opening a pipe waits for ever, and other files are not ours."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "broken").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        write_text(tmp_path / "cat.txt", "new")
    assert (tmp_path / "cat.txt").read_text() == "new"


def test_two_processes_write_beside_each_other(start, tmp_path):
    processes = [start(WRITE, tmp_path / name) for name in ("cat.txt", "dog.txt")]
    errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert contents(tmp_path) == {"cat.txt": "new", "dog.txt": "new"}
