"""The machine check passes where the tests run. Where something is broken, it says so and names a cure."""

import socket
import subprocess
import sys
import time

import check_machine
import pytest

from kandinsky_mini.bench.machine import cpu_quota
from kandinsky_mini.models import attention


@pytest.fixture
def started(monkeypatch):
    """Collect the processes that a check starts. None of them may outlive it."""
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(check_machine.subprocess, "Popen", Recorded)
    yield processes
    assert all(process.returncode is not None for process in processes)


def test_help_checks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(check_machine, "CHECKS", ())
    with pytest.raises(SystemExit) as raised:
        check_machine.main(["--help"])
    assert raised.value.code == 0 and "Check whether this machine can run the workshop" in capsys.readouterr().out


def test_this_machine_is_ready(capsys, started):
    assert check_machine.main([]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] in ("good", "warn") for line in lines] == [True] * len(check_machine.CHECKS)
    assert last == "Ready for the workshop"
    assert len(started) >= 2


def test_wrong_network_interface(monkeypatch, capsys, started):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    monkeypatch.setattr(check_machine, "CHECKS", (check_machine.two_rank_all_reduce,))
    assert check_machine.main([]) == 1
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("bad") and "nowhere0" in line and "-> unset GLOO_SOCKET_IFNAME" in line
    assert last == "1 to mend"
    assert len(started) == 2


def test_ranks_that_hang_are_ended(started):
    with pytest.raises(TimeoutError, match="no answer within 1 s"):
        check_machine.all_reduce_in_two_processes(timeout=1, program="import time; time.sleep(60)")
    assert len(started) == 2


def test_a_dead_rank_ends_the_other_at_once(started):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="^no luck$"):
        check_machine.all_reduce_in_two_processes(
            program="import sys, time; sys.exit('no luck') if sys.argv[1] == '1' else time.sleep(60)"
        )
    assert time.monotonic() - start < 30
    assert len(started) == 2


def test_missing_codec(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    result = check_machine.mp4_codec()
    assert result.status == "bad" and "/nowhere/ffmpeg" in result.found
    assert "unset IMAGEIO_FFMPEG_EXE" in result.cure


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    result = check_machine.jupyter_widgets()
    assert result.status == "bad" and "ipywidgets" in result.found and "make check" in result.cure


def test_widgets_without_their_lab_extension(monkeypatch, tmp_path):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *parts: [str(tmp_path)])
    result = check_machine.jupyter_widgets()
    assert result.status == "bad" and "@jupyter-widgets/jupyterlab-manager" in result.found


@pytest.mark.parametrize(
    ("limit", "run"), [("OLDEST_PYTHON", check_machine.python_version), ("OLDEST_TORCH", check_machine.torch_build)]
)
def test_too_old(monkeypatch, limit, run):
    monkeypatch.setattr(check_machine, limit, (99, 0))
    result = run()
    assert result.status == "bad" and "99.0 or newer is needed" in result.found and result.cure


def test_a_host_name_without_an_address_is_a_warning_with_torchruns_option(monkeypatch):
    def unknown(*args):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = check_machine.host_name()
    assert result.status == "warn" and "torchrun would wait for ever" in result.found
    assert "--local-addr 127.0.0.1" in result.cure


def test_one_core_is_a_warning_only(monkeypatch, capsys):
    monkeypatch.setattr(check_machine, "effective_cores", lambda: 1.0)
    monkeypatch.setattr(check_machine, "CHECKS", (check_machine.cpu_cores,))
    assert check_machine.main([]) == 0
    assert capsys.readouterr().out.startswith("warn  CPU cores")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_cpu_quota(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores


def test_the_attention_kernel_is_named(monkeypatch):
    assert str(check_machine.attention_kernel()).split()[:4] == ["good", "attention", "sdpa,", "on"]
    monkeypatch.setattr(attention, "choose_kernel", lambda *_, **__: ("cudnn", "it is not installed"))
    result = check_machine.attention_kernel()
    assert (result.status, result.found) == ("warn", "cudnn, because it is not installed")
    assert "flash-attn-4 was faster on an H100" in result.cure
