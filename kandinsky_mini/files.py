"""Files and folders are written aside and swapped in at the end, so that no path ever holds half of one.

Each is made in a folder of its own beside its place. Nobody can guess this folder's name, and only its owner may enter.
A lock in it shows that its process is alive. The system takes the lock away with the process, even after kill -9, so
the next one that writes there knows what it may clear.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ASIDE = ".kandinsky-unfinished-"  # how the folders' names begin


@contextlib.contextmanager
def written_aside(path: str | Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a path to write a file or a folder to. When the block ends, what is there takes the place of `path`.

    If the block raises, or a signal ends it, `path` stays as it was. A link at `path` stays; its target is replaced.

    Args:
        replaces: for a folder, the patterns of the names that it may hold by now. Replacing it removes them.

    Raises:
        ValueError: something else is at `path`, or it has no folder.
        OSError: the disk is full, or the folder is read-only.
    """
    place = _place(path, replaces)
    with _aside(path, place) as (new, old):
        yield new
        _flush(new, *new.rglob("*"))
        try:
            if place.is_dir():  # the system swaps files in one go, but not folders
                place.rename(old)
            new.replace(place)
        finally:
            _put_back(old, place)
        _flush(place.parent)


def check_writable(path: str | Path, replaces: tuple[str, ...] = (), megabytes: int = 1) -> None:
    """Refuse, before hours of work, a path at which nothing could be written afterwards.

    Raises:
        ValueError: the path is refused by written_aside, or so many megabytes cannot be written there.
    """
    with trial(path, replaces) as aside:
        aside.write_bytes(bytes(megabytes * 2**20))


@contextlib.contextmanager
def trial(path: str | Path, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a path as written_aside does, but throw away what is written to it.

    Raises:
        ValueError: the path is refused by written_aside, or cannot be written. Only trying tells that a disk is full.
    """
    place = _place(path, replaces)
    try:
        with _aside(path, place) as (new, _):
            yield new
    except OSError as error:
        raise ValueError(f"{path} is not writable: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, completely or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, completely or not at all.

    Raises:
        ValueError: the value holds NaN or an infinity. JSON has no word for them, and they are no result.
    """
    write_text(path, to_json(value, str(path), indent=1) + "\n")


def to_json(value: object, name: str, indent: int | None = None) -> str:
    """Return the value as JSON. Numbers that are not finite raise a ValueError that begins with the name."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{name}: a number that is not finite is no result, so nothing is written: {error}") from error


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file during the block. The lock ends with this process, however it ends.

    Raises:
        ValueError: another process holds it. The message names that process.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            raise ValueError(f"{path} is held by {owner}: wait for its end, or use another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


@contextlib.contextmanager
def signals_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the block, so that it can tidy up. Then die of the signal.

    By default both end a process at once. A signal that is ignored, as under nohup, stays ignored. Only the main thread
    can be interrupted, so in other threads nothing changes.
    """
    received = []

    def interrupt(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # once is enough: nothing may interrupt the tidying up
        received.append(number)
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP) if here}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in received:
            os.kill(os.getpid(), number)


def _place(path: str | Path, replaces: tuple[str, ...]) -> Path:
    """Return where a path leads, or raise a ValueError if no file, or no folder, can be written there."""
    place = Path(os.path.realpath(path))
    if not os.path.isdir(place.parent):
        raise ValueError(f"{path}: there is no folder {place.parent}")
    if os.path.isdir(place) and not replaces:
        raise ValueError(f"{path} is a folder, not a file")
    if replaces and os.path.isdir(place):
        for name in sorted(os.listdir(place)):
            if not any(fnmatch(name, pattern) for pattern in replaces):
                raise ValueError(f"{path} holds {name}, which would be lost: name a new or an empty folder")
    elif os.path.lexists(place):
        if not os.path.isfile(place):
            raise ValueError(f"{path} is a pipe, a device or a broken link, not a file: name a file")
        if replaces:
            raise ValueError(f"{path} is a file, not a folder")
        if not os.access(place, os.W_OK):
            raise ValueError(f"{path} is not writable")
    return place


@contextlib.contextmanager
def _aside(path: str | Path, place: Path) -> Iterator[tuple[Path, Path]]:
    """Make a folder beside the place that a path leads to, and yield where in it the new and the old content belong.

    The new one has the path's own name, because its suffix says of what kind it is. That of a link's target may not.
    """
    with signals_like_ctrl_c():
        _clear(place.parent)
        folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=place.parent))
        with (folder / "starting").open("w") as lock:
            try:
                for name in ("new", "old"):
                    (folder / name).mkdir()
                fcntl.flock(lock, fcntl.LOCK_EX)
                (folder / "starting").rename(folder / "lock")  # nobody ever sees this name without its lock
                yield folder / "new" / Path(path).name, folder / "old" / place.name
            finally:
                shutil.rmtree(folder)


def _clear(folder: Path) -> None:
    """Remove what this user's dead processes left in a folder."""
    for left in folder.glob(f"{ASIDE}*"):
        try:
            if left.is_symlink() or left.stat().st_uid != os.getuid():
                continue
        except FileNotFoundError:  # its process has just ended
            continue
        # Without its lock, a folder is only just being made. If the lock is taken, its process is alive.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), (left / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for old in (left / "old").iterdir():
                _put_back(old, folder / old.name)
            shutil.rmtree(left)


def _put_back(old: Path, place: Path) -> None:
    """Undo the first half of an exchange of folders if the second half did not happen."""
    if old.exists() and not place.exists():
        old.rename(place)


def _flush(*paths: Path) -> None:
    """Make the system write files, and the lists of names of folders, to the disk, so that a power cut loses none."""
    for each in paths:
        file = os.open(each, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
