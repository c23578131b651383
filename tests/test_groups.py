"""What a launcher's variables say is read in one place. What cannot be is refused in one line, which names a cure."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from kandinsky_mini import build, get_T2V_pipeline
from kandinsky_mini.parallel import groups

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", groups.SECONDS)
TWO = {"WORLD_SIZE": "2", "RANK": "1"}
MEETING = TWO | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def launcher(monkeypatch):
    """Set the variables of a launcher, and no others."""

    def start(**variables: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    start()
    return start


def test_without_a_launcher_there_is_one_rank(launcher):
    assert (groups.rank(), groups.world_size()) == (0, 1)
    assert groups.local_device("cuda") == "cuda"
    assert groups.timeout().total_seconds() == 120


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "RANK is set without WORLD_SIZE: unset RANK, or start the ranks with torchrun"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set without RANK: unset WORLD_SIZE, or start"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1, not '0': unset it, or use torchrun"),
        ({"WORLD_SIZE": "abc", "RANK": "0"}, "WORLD_SIZE must be a whole number from 1, not 'abc'"),
        ({"WORLD_SIZE": "", "RANK": "0"}, "WORLD_SIZE must be a whole number from 1, not ''"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK must be a whole number from 0, not '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "1.0"}, "RANK must be a whole number from 0, not '1.0'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE 2 has the ranks 0 to 1"),
    ],
)
@pytest.mark.parametrize("ask", [groups.rank, groups.world_size])
def test_variables_that_contradict_one_another_are_refused(launcher, ask, variables, message):
    launcher(**variables)
    with pytest.raises(groups.LauncherError, match=f"^{message}"):
        ask()


@pytest.mark.parametrize("seconds", ["abc", "", "nan", "inf", "-inf", "-1", "0", "1e9"])
def test_a_timeout_that_is_no_time_is_refused_before_ranks_meet(launcher, seconds):
    launcher(**MEETING, KANDINSKY_TIMEOUT_SECONDS=seconds)
    message = f"KANDINSKY_TIMEOUT_SECONDS must be a number of seconds, 1 to 1000000, not '{seconds}': unset it for 120"
    with pytest.raises(groups.LauncherError, match=message):
        groups.join_group("cpu")


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_refused(launcher, missing):
    launcher(**{name: value for name, value in MEETING.items() if name != missing})
    with pytest.raises(groups.LauncherError, match=f"^{missing} is not set, .* start the ranks with torchrun$"):
        groups.join_group("cpu")


def test_a_network_interface_that_does_not_exist_is_refused(launcher, monkeypatch):
    launcher(**MEETING)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    with pytest.raises(groups.LauncherError, match="GLOO_SOCKET_IFNAME is 'nowhere0', but .* here are .*: unset it"):
        groups.join_group("cpu")


def test_a_network_interface_that_is_named_is_kept_also_on_one_machine(launcher, monkeypatch):
    """Only where none is named, ranks on one machine take the loopback."""
    launcher(**MEETING, LOCAL_WORLD_SIZE="2")
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    with pytest.raises(groups.LauncherError, match="GLOO_SOCKET_IFNAME is 'nowhere0'"):
        groups.join_group("cpu")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    groups.join_group("cpu")
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")


def test_ranks_on_several_machines_do_not_take_the_loopback(launcher, monkeypatch):
    """They would wait for the others in vain."""
    launcher(**MEETING, LOCAL_WORLD_SIZE="1")
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    groups.join_group("cpu")
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_several_network_interfaces_may_be_named(launcher, monkeypatch):
    launcher(**MEETING)
    joined = []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1,eth0")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "eth1")])
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: joined.append(options))
    groups.join_group("cpu")
    assert [options["timeout"].total_seconds() for options in joined] == [120]


@pytest.mark.parametrize(
    ("gpus", "variables", "message"),
    [
        (0, {"LOCAL_RANK": "1"}, "'cuda' does not work here, because PyTorch finds no GPU: choose the device cpu"),
        (1, {"LOCAL_RANK": "1"}, "no GPU is left for rank 1: LOCAL_RANK is 1, .* torchrun --nproc-per-node 1"),
        (2, {}, "LOCAL_RANK is not set, .* start the ranks with torchrun"),
        (2, {"LOCAL_RANK": "one"}, "LOCAL_RANK must be a whole number from 0, not 'one'"),
    ],
)
def test_a_rank_without_a_gpu_of_its_own_is_refused(launcher, monkeypatch, gpus, variables, message):
    launcher(**TWO, **variables)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(groups.LauncherError, match=message):
        groups.local_device("cuda")


def test_each_rank_takes_a_gpu_of_its_own_and_makes_it_the_current_one(launcher, monkeypatch):
    """NCCL and Triton use the current GPU. By default that is GPU 0, on every rank."""
    launcher(**TWO, LOCAL_RANK="1")
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert groups.local_device("cuda") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.fixture
def rank_1_of_3(launcher, monkeypatch):
    """Be rank 1 of 3, which waits for the others 0.2 s and in vain."""
    launcher(WORLD_SIZE="3", RANK="1", KANDINSKY_TIMEOUT_SECONDS="1")
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(groups, "LOADING", 0.2)


def test_ranks_that_do_not_finish_loading_are_named_with_the_variable(rank_1_of_3):
    with pytest.raises(RuntimeError, match=r"ranks \[0, 2\] did not finish loading .* set KANDINSKY_TIMEOUT_SECONDS"):
        groups.wait_until_loaded()


def test_a_slow_text_encoder_is_waited_for_as_loading_is(tiny_pipe, rank_1_of_3):
    with pytest.raises(RuntimeError, match=r"ranks \[0, 2\] did not finish encoding the text within 0.2 s: if they"):
        tiny_pipe("a cat in a red hat")


def test_a_pipeline_is_ready_when_all_ranks_have_loaded(tiny_config, monkeypatch):
    events = []
    load_vae = build.load_vae
    monkeypatch.setattr(build, "load_vae", lambda *args: [events.append("vae"), load_vae(*args)][1])
    monkeypatch.setattr(build, "wait_until_loaded", lambda: events.append("wait"))
    get_T2V_pipeline("cpu", tiny_config)
    assert events == ["vae", "wait"]


@pytest.mark.parametrize(
    ("agent", "answers"),
    [("True", [True, False, True, False]), (None, [True, True, True, True])],
    ids=["torchrun", "another launcher"],
)
def test_one_rank_reports_an_error_in_each_attempt(launcher, monkeypatch, agent, answers):
    """torchrun --max-restarts starts the ranks again, and its store stays. Without a store nobody can tell."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launcher(**TWO, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if agent:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    said = []
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        said += [groups.is_first_to_fail() for _ in range(2)]
    assert said == answers


def test_what_a_rank_says_last_is_not_lost(monkeypatch):
    """torchrun turns buffers off, but ranks can be started without it, and their output may go to a file."""
    program = """
import sys, torch.distributed as dist
from kandinsky_mini.parallel.groups import leave_group
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print("saved to test.mp4", end="")
sys.stderr.write("a warning")
leave_group()
sys.exit("leaving ends the process")
"""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "saved to test.mp4"), done.stderr
    assert done.stderr.endswith("a warning")


def test_several_ranks_have_all_models_where_their_part_of_the_crossdit_is(launcher):
    launcher(**TWO)
    devices = {"dit": "cpu", "vae": "meta", "text_embedder": "meta"}
    assert build.resolve_devices(devices) == dict.fromkeys(devices, torch.device("cpu"))
