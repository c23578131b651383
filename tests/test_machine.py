"""The parallel capacity of a machine is what several processes really do at once, as many as one could do alone."""

import os
from argparse import ArgumentTypeError
from types import SimpleNamespace

import pytest
import torch

from kandinsky_mini.bench import machine, options


@pytest.mark.parametrize(
    ("alone", "together", "capacity"),
    [
        (2.0, 2.0, 2.0),  # two idle cores: two processes take no longer than one
        (2.0, 4.0, 1.0),  # one core: they take turns
        (2.0, 3.2, 1.25),  # two cores beside other work
        (2.0, 1.9, 2.0),  # two processes cannot do the work of more than two
    ],
)
def test_the_capacity_counts_processes(monkeypatch, alone, together, capacity):
    """Two copies that together take as long as one alone do twice the work. The quickest of three tries counts."""
    tries = [[alone + 1], [alone], [alone + 2], [together, together + 1], [together - 1, together], [3.0, together + 3]]
    times = iter(sum(tries, []))

    def start(*command, **options):
        seconds = next(times)
        return SimpleNamespace(communicate=lambda: (f"{seconds}\n".encode(), b""))

    monkeypatch.setattr(machine.subprocess, "Popen", start)
    assert machine.parallel_capacity(2) == pytest.approx(capacity)
    assert list(times) == []


def test_the_capacity_is_measured_by_processes_that_run_at_once(monkeypatch):
    monkeypatch.setattr(machine, "BUSY", "print(2.5)")
    assert machine.parallel_capacity(3) == 3.0


def test_the_work_of_a_process_is_timed_on_one_thread(one_thread, capsys):
    torch.set_num_threads(2)
    exec(machine.BUSY.replace("range(400)", "range(1)"), {})
    assert torch.get_num_threads() == 1
    assert 0 < float(capsys.readouterr().out) < 60


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_container_s_limit_is_known(tmp_path, files, cores):
    """Both versions of control groups give a quota of microseconds for each period. A sweep starts no more ranks."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == cores


def test_the_limit_of_a_container_beats_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, cores in ((1.5, 1.5), (64.0, 8), (float("inf"), 8)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert machine.effective_cores() == cores


def test_the_interconnect_is_that_of_the_first_two_gpus(monkeypatch, tmp_path):
    """A program takes the place of the driver's, which this machine may lack."""
    table, program = tmp_path / "table", tmp_path / "nvidia-smi"
    table.write_text("\tGPU0\tGPU1\tGPU2\tCPU\nGPU0\t X \tNV18\tSYS\t0-15\nGPU1\tNV18\t X \tPIX\t0-15\n")
    program.write_text(f'#!/bin/sh\n[ "$*" = "topo -m" ] && cat "{table}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [machine.interconnect(gpus) for gpus in (1, 2, 4)] == ["none", "NV18", "NV18"]


def test_a_gpu_is_counted_from_0(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert options.device("cuda:1") == "cuda:1" and options.device("cuda") == "cuda"
    with pytest.raises(ArgumentTypeError, match="'cuda:2' does not exist here: PyTorch finds 2 GPUs"):
        options.device("cuda:2")


def test_without_nvidia_smi_a_measurement_is_not_lost(monkeypatch, tmp_path):
    """Some containers lack it, and the link is asked for after all steps have been measured."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.interconnect(2) == "unknown"
