"""Check whether this machine can run the workshop. `python launch/check_machine.py` prints a line per requirement.

Each check is a small function that either returns a description of what it found or raises an exception. The decorator
turns both into a `Result`. If the check raised, the result names a cure. A Warning is worth knowing, but it stops
nobody. After any other exception the exit status is 1.
"""

import argparse
import functools
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kandinsky_mini.bench.machine import effective_cores

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
REINSTALL = "install it again: make clean, then make check (or pip install -r requirements.lock)"


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # good, warn or bad
    found: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"{self.status:4}  {self.name:16}  {self.found}"
        return f"{line} -> {self.cure}" if self.cure else line


def check(name: str, cure: str) -> Callable[[Callable[[], str]], Callable[[], Result]]:
    """Decorate a function that describes what it found, or raises, so that it returns a Result instead."""

    def decorate(probe: Callable[[], str]) -> Callable[[], Result]:
        @functools.wraps(probe)
        def run() -> Result:
            try:
                return Result(name, "good", probe())
            except Warning as warning:
                return Result(name, "warn", str(warning), cure)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                return Result(name, "bad", reason, cure)

        return run

    return decorate


@check("Python", cure="make .venv with a newer one: make clean, then make check PYTHON=python3.12")
def python_version() -> str:
    if sys.version_info < OLDEST_PYTHON:
        raise RuntimeError(f"{platform.python_version()}, but {dotted(OLDEST_PYTHON)} or newer is needed")
    return platform.python_version()


@check("PyTorch", cure=REINSTALL)
def torch_build() -> str:
    import torch

    if torch.__version__ < OLDEST_TORCH:
        raise RuntimeError(f"{torch.__version__}, but {dotted(OLDEST_TORCH)} or newer is needed")
    if torch.version.cuda is None:
        return f"{torch.__version__}, CPU build"
    return f"{torch.__version__}, CUDA {torch.version.cuda} build, {torch.cuda.device_count()} GPUs"


@check("attention", cure="cuDNN's kernel works as well; flash-attn-4 was faster on an H100")
def attention_kernel() -> str:
    import torch

    from kandinsky_mini.models.attention import choose_kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernel, missing = choose_kernel("auto", device, torch.bfloat16, head_dim=64)
    if missing:
        raise UserWarning(f"{kernel}, because {missing}")
    return f"{kernel}, on the {'GPU' if device.type == 'cuda' else 'CPU'}"


@check("CPU cores", cure="this works, but the ranks take turns: close other programs, or allow more cores")
def cpu_cores() -> str:
    if (cores := effective_cores()) < 2:
        raise UserWarning(f"{cores:g} to use, 2 or more are better")
    return f"{cores:g} to use"


@check("2-rank all-reduce", cure="unset GLOO_SOCKET_IFNAME, and let no firewall block 127.0.0.1")
def two_rank_all_reduce() -> str:
    start = time.perf_counter()
    all_reduce_in_two_processes()
    return f"gloo over {loopback()}, {time.perf_counter() - start:.1f} s including the start"


@check("host name", cure="add --local-addr 127.0.0.1 to the options of torchrun, or the name to /etc/hosts")
def host_name() -> str:
    name = socket.getfqdn()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        raise UserWarning(f"{name} has no address, so torchrun would wait for ever") from None
    return f"{name} has an address"


@check("mp4 codec", cure=f"unset IMAGEIO_FFMPEG_EXE, or {REINSTALL}")
def mp4_codec() -> str:
    import imageio.v3 as iio
    import numpy as np

    ramp = np.linspace(0, 255, 64).astype("uint8")
    clip = np.stack([np.broadcast_to(np.roll(ramp, 8 * t)[None, :, None], (48, 64, 3)) for t in range(4)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        iio.imwrite(path, clip, plugin="FFMPEG", fps=24, codec="libx264")
        back = iio.imread(path, plugin="FFMPEG")
    if back.shape != clip.shape:
        raise RuntimeError(f"wrote frames {clip.shape}, read {back.shape}")
    if (error := np.abs(back.astype(int) - clip).mean()) > 10:
        raise RuntimeError(f"frames come back changed, by {error:.0f} of 255 on average")
    return f"H.264, {len(clip)} frames written and read"


@check("Jupyter widgets", cure=REINSTALL)
def jupyter_widgets() -> str:
    import ipywidgets
    from jupyter_core.paths import jupyter_path

    extension = Path("@jupyter-widgets", "jupyterlab-manager", "package.json")
    if not any((Path(folder) / extension).is_file() for folder in jupyter_path("labextensions")):
        raise RuntimeError("JupyterLab has no @jupyter-widgets/jupyterlab-manager, so sliders would not show")
    return f"ipywidgets {ipywidgets.__version__}, shown by JupyterLab"


CHECKS = (
    python_version,
    torch_build,
    attention_kernel,
    cpu_cores,
    two_rank_all_reduce,
    host_name,
    mp4_codec,
    jupyter_widgets,
)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def loopback() -> str:
    """Return the network interface that gloo uses between local ranks. An explicit GLOO_SOCKET_IFNAME wins."""
    return os.environ.get("GLOO_SOCKET_IFNAME") or ("lo0" if sys.platform == "darwin" else "lo")


# Rank 0 listens on a socket that its parent opened. The socket is bound to 127.0.0.1 only, and no other program can
# take its port in the meantime.
RANK = """
import datetime, sys, torch, torch.distributed as dist
sys.excepthook = lambda kind, error, _: print(str(error) or kind.__name__, file=sys.stderr)
rank, port, fd = map(int, sys.argv[1:])
wait = datetime.timedelta(seconds=30)
listen = {"is_master": True, "master_listen_fd": fd} if rank == 0 else {"is_master": False}
store = dist.TCPStore("127.0.0.1", port, world_size=2, timeout=wait, **listen)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
dist.destroy_process_group()
sys.exit(0 if total.item() == 3 else f"1 + 2 gave {total.item()}")
"""


def all_reduce_in_two_processes(timeout: float = 60, program: str = RANK) -> None:
    """Let two processes add 1 + 2 in an all-reduce, and leave neither of them behind.

    Raises:
        TimeoutError: they do not answer within `timeout` seconds.
        RuntimeError: one of them fails, or gets another sum. The message gives the reason.
    """
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback()}
    deadline = time.monotonic() + timeout
    ranks: list[subprocess.Popen] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, fd = server.getsockname()[1], server.fileno()
        try:
            for rank in range(2):
                command = [sys.executable, "-c", program, str(rank), str(port), str(fd)]
                pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
                ranks.append(subprocess.Popen(command, env=environment, pass_fds=[fd], text=True, **pipes))
            while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no answer within {timeout:g} s")
                time.sleep(0.05)
        finally:
            for rank in ranks:
                rank.kill()
            errors = [rank.communicate()[1].strip() for rank in ranks]
    for code, error in zip(codes, errors, strict=True):
        if code:
            raise RuntimeError(error or f"a rank ended with exit status {code}")


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args(argv)
    results = []
    for run in CHECKS:
        results.append(run())
        print(results[-1], flush=True)
    bad = sum(result.status == "bad" for result in results)
    print(f"{bad} to mend" if bad else "Ready for the workshop")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
