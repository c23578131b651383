"""lab.ranks runs one function on simulated or on real ranks. Faults are readable and leave nothing behind."""

import copy
import os
import signal
import threading
import time
from collections import Counter

import psutil
import pytest
import torch
import torch.distributed as dist
from helpers import MODEL_BAR, MODULE_BAR, SMALL, TEXT_TOKENS, TOKENS, random_inputs, random_model, relative_difference
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.processes import ProcessRanks, describe
from kandinsky_mini.parallel.cost import predict_collectives
from kandinsky_mini.parallel.ledger import Ledger
from kandinsky_mini.parallel.simulation import own_tensor, per_rank, simulated_ranks


@pytest.fixture(scope="module")
def processes():
    with ProcessRanks(2, wait_seconds=8) as ranks:
        yield ranks


@pytest.fixture(params=["simulated", "processes"])
def two_ranks(request):
    return lab.ranks(2) if request.param == "simulated" else request.getfixturevalue("processes")


# The functions that the ranks run are defined inside the tests, as in a notebook, because other processes cannot import
# a test's module.


def test_each_rank_gives_its_own_tensor_or_shard(two_ranks):
    def placements(mesh, whole):
        own = own_tensor(lambda rank: torch.full((2,), float(rank + 1)))
        shard = DTensor.from_local(own, mesh, [Shard(0)])
        total = DTensor.from_local(own, mesh, [Partial()]).redistribute(placements=[Replicate()])
        return {"shard": shard, "total": total, "whole": whole, "ranks": mesh.size()}

    outputs = two_ranks.run(placements, torch.arange(3))
    assert [output["shard"].tolist() for output in outputs] == [[1, 1], [2, 2]]
    assert [output["total"].tolist() for output in outputs] == [[3, 3], [3, 3]]
    assert [output["whole"].tolist() for output in outputs] == [[0, 1, 2], [0, 1, 2]]
    assert [output["ranks"] for output in outputs] == [2, 2]


def test_each_rank_has_its_own_copy_of_the_inputs(two_ranks):
    def total(mesh, x, others):
        dist.all_reduce(x)
        return x, DTensor.from_local(others["y"], mesh, [Partial()]).full_tensor()

    x, y = torch.ones(2), torch.full((1,), 3.0)
    for of_x, of_y in two_ranks.run(total, x, {"y": y}):
        assert (of_x.tolist(), of_y.tolist()) == ([2, 2], [6])
    assert (x.tolist(), y.tolist()) == ([1, 1], [3])


def test_random_numbers_differ_between_ranks_unless_they_are_seeded(two_ranks):
    def draw(mesh):
        own = torch.rand(4)
        torch.manual_seed(7)
        return own, torch.rand(4)

    before = torch.get_rng_state()
    (own_0, seeded_0), (own_1, seeded_1) = two_ranks.run(draw)
    assert not torch.equal(own_0, own_1)
    assert torch.equal(seeded_0, seeded_1)
    assert torch.equal(torch.get_rng_state(), before)


def test_slow_work_of_rank_0_is_waited_for_longer_than_a_collective_waits(processes):
    def load(mesh):
        from kandinsky_mini.parallel.groups import from_rank_0, wait_until_loaded

        # The ranks wait 8 s for one another.
        encoded = from_rank_0(lambda: [time.sleep(10), "encoded"][1], long_work="encoding")
        wait_until_loaded()
        dist.all_reduce(torch.ones(1))
        return encoded

    assert processes.run(load) == ["encoded", "encoded"]


def test_each_wait_for_slow_work_is_one_of_its_own(processes):
    """That all ranks have loaded their models does not mean that the text is encoded."""

    def wait(mesh):
        from kandinsky_mini.parallel.groups import rank, wait_until_loaded

        seconds = []
        for _ in range(2):
            wait_until_loaded()
            started = time.monotonic()
            if rank() == 0:
                time.sleep(1.5)
            wait_until_loaded("encoding")
            seconds.append(time.monotonic() - started)
        return seconds

    _, waited = processes.run(wait)
    assert min(waited) > 1


SHARED = torch.ones(2)


@pytest.mark.parametrize(
    "collective",
    [
        lambda mesh: dist.all_reduce(SHARED),
        lambda mesh: dist.all_gather([torch.empty(2), torch.empty(2)], SHARED),
        lambda mesh: DTensor.from_local(SHARED, mesh, [Partial()]).full_tensor(),
    ],
    ids=["all_reduce", "all_gather", "DTensor"],
)
def test_a_collective_that_simulated_ranks_cannot_do_is_refused(collective):
    """A tensor from outside is one for all ranks, so adding it up over the ranks would silently do nothing."""
    with pytest.raises(ValueError, match="of a tensor that simulated ranks share.*lab.own_tensor"):
        lab.ranks(2).run(collective)
    assert SHARED.tolist() == [1, 1]


def test_simulated_ranks_cannot_send():
    with pytest.raises(ValueError, match="simulated ranks cannot send: use real ones, kind='processes'"):
        lab.ranks(2).run(lambda mesh: dist.send(torch.ones(1), dst=1))


@pytest.mark.parametrize(
    ("call", "ask"),
    [
        ("dist.get_rank()", lambda mesh: dist.get_rank() == 0),
        ("mesh.get_local_rank()", lambda mesh: mesh.get_local_rank() == 0),
        ("mesh.get_rank()", lambda mesh: mesh.get_rank() == 0),
    ],
)
def test_simulated_ranks_say_when_they_are_asked_who_they_are(call, ask, capsys):
    def branch(mesh):
        own_tensor(lambda rank: torch.ones(1))  # it switches the simulation off and on
        return "first" if ask(mesh) else "other"

    lab.ranks(2).run(branch)
    said = f"note: {call} does not tell simulated ranks apart, but lab.own_tensor(lambda rank: ...) does\n"
    assert capsys.readouterr().out == said
    lab.ranks(2).run(lambda mesh: own_tensor(lambda rank: torch.ones(1)))
    assert capsys.readouterr().out == ""


def test_the_talks_plan_gives_what_the_whole_model_gives_and_costs_what_the_formula_says(two_ranks):
    def sharded(mesh, model, inputs):
        from kandinsky_mini.models.parallelize import parallelize_dit

        model = parallelize_dit(copy.deepcopy(model), mesh)
        with Ledger(model) as ledger:
            return model(*inputs), ledger.entries

    model = random_model()
    inputs = random_inputs(model)
    with torch.no_grad():
        reference = model(*inputs)
    predicted = predict_collectives(SMALL, TOKENS, TEXT_TOKENS, bytes_each=4, ranks=2)
    for output, entries in two_ranks.run(sharded, model, inputs):
        assert relative_difference(output, reference) < MODEL_BAR
        assert Counter(entries) == Counter(predicted)


def test_the_ledger_counts_what_is_called_by_hand(processes):
    new = hasattr(dist, "all_gather_single")  # they have other names in older versions of torch

    def collectives(mesh):
        all_gather = dist.all_gather_single if new else dist.all_gather_into_tensor
        reduce_scatter = dist.reduce_scatter_single if new else dist.reduce_scatter_tensor
        x, half, parts = torch.ones(4), torch.ones(2), [torch.ones(4), torch.ones(4)]
        with Ledger() as ledger:
            dist.all_reduce(x)
            dist.all_gather(parts, x)
            all_gather(torch.ones(8), x)
            dist.reduce_scatter(half, list(x.split(2)))
            reduce_scatter(half, x)
            dist.broadcast(x, src=0)
            dist.scatter(half, list(x.split(2)) if mesh.get_local_rank() == 0 else None, src=0)
            dist.gather(half, [torch.empty(2), torch.empty(2)] if mesh.get_local_rank() == 0 else None, dst=0)
            dist.reduce(x, dst=0)
            dist.all_to_all_single(torch.empty(4), x)
            dist.send(half, dst=1) if mesh.get_local_rank() == 0 else dist.recv(half, src=0)
            dist.barrier()  # sends no data
        return [(entry.collective, entry.payload) for entry in ledger.entries]

    gathers, scatters = [("all_gather", 32)] * 2, [("reduce_scatter", 16)] * 2
    others = [("broadcast", 16), ("scatter", 16), ("gather", 16), ("reduce", 16), ("all_to_all", 32)]
    for counted, sent in zip(processes.run(collectives), ([("send", 8)], []), strict=True):
        assert counted == [("all_reduce", 16), *gathers, *scatters, *others, *sent]


def test_the_ledger_counts_what_inference_mode_adds(processes):
    """Under inference_mode, DTensor gathers a biased row-wise layer's input and weight. The output stays right."""

    def row_wise(mesh, layer, x, mode):
        layer = parallelize_module(copy.deepcopy(layer), mesh, RowwiseParallel(input_layouts=Replicate()))
        with mode(), Ledger() as ledger:
            y = layer(x)
        return y.clone(), [entry.collective for entry in ledger.entries]

    layer, x = torch.nn.Linear(16, 8), torch.randn(4, 16)
    for mode, expected in ((torch.no_grad, {"all_reduce"}), (torch.inference_mode, {"all_gather"})):
        for y, collectives in processes.run(row_wise, layer, x, mode):
            assert relative_difference(y, layer(x).detach()) < MODULE_BAR
            assert set(collectives) == expected


def test_a_function_without_output_gives_none_for_each_rank(two_ranks):
    assert two_ranks.run(lambda mesh: None) == [None, None]


def test_real_ranks_are_other_processes_and_print_in_order(processes, capsys):
    def who(mesh):
        print("hello")
        print("again")
        return os.getpid(), mesh.get_local_rank(), torch.is_grad_enabled()

    outputs = processes.run(who)
    assert len({os.getpid(), *(pid for pid, _, _ in outputs)}) == 3
    assert [rest for _, *rest in outputs] == [[0, False], [1, False]]
    assert capsys.readouterr().out == "rank 0: hello\nrank 0: again\nrank 1: hello\nrank 1: again\n"


def test_a_hang_names_who_waited_for_whom_and_the_ranks_can_be_used_again(processes):
    def one_forgets(mesh):
        if mesh.get_local_rank() == 0:
            dist.all_reduce(torch.ones(1))

    with pytest.raises(RuntimeError, match="a hang: rank 0 waited 8 s for rank 1\nrank 0: .*\nrank 1: returned"):
        processes.run(one_forgets)
    assert processes.run(lambda mesh: mesh.size()) == [2, 2]


def test_a_rank_that_lost_its_connection_in_a_hang_has_waited_as_well():
    gave_up, cut_off = RuntimeError("[1:apply] E: [/a/b.cc:78] Timed out"), RuntimeError("Connection reset by peer")
    lines = describe(4, {0: cut_off, 1: gave_up, 3: gave_up}, 15).splitlines()
    assert lines[:3] == [
        "a hang: ranks 0, 1 and 3 waited 15 s for rank 2",
        f"rank 0: {cut_off}",
        "rank 1: E: Timed out",
    ]
    assert describe(2, {0: gave_up, 1: gave_up}, 15).startswith("a hang: ranks 0 and 1 waited 15 s for one another\n")


def test_an_error_names_its_rank_and_the_ranks_can_be_used_again(processes):
    def fail(mesh):
        if mesh.get_local_rank() == 1:
            raise ValueError("18 columns do not divide by 4")

    with pytest.raises(RuntimeError, match="^rank 0: returned\nrank 1: .*ValueError: 18 columns do not divide by 4$"):
        processes.run(fail)
    assert processes.run(lambda mesh: mesh.size()) == [2, 2]


@pytest.fixture
def interrupt():
    """Press Ctrl-C after so many seconds."""
    timers = []

    def after(seconds: float) -> None:
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)))
        timers[-1].start()

    yield after
    for timer in timers:
        timer.cancel()


def test_ctrl_c_ends_the_run_on_the_ranks_too_and_they_can_be_used_again(processes, interrupt):
    def never_ends(mesh):
        while True:
            time.sleep(1)

    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        processes.run(never_ends)
    assert processes.run(lambda mesh: mesh.size()) == [2, 2]


@pytest.mark.parametrize("who", [(1,), (0, 1)], ids=["one rank", "all ranks"])
def test_ranks_that_left_their_group_in_a_run_can_be_used_again(processes, who):
    def leave(mesh):
        if dist.get_rank() in who:
            dist.destroy_process_group()

    def total(mesh):
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()

    assert processes.run(leave) == [None, None]
    assert processes.run(total) == [2, 2]


def test_nothing_listens_beyond_this_machine(processes):
    """Whoever reaches the store can read and set its keys, and ipyparallel's sockets run code."""
    here = psutil.Process()
    family = [here, *here.children(recursive=True)]
    processes.run(lambda mesh: dist.all_reduce(torch.ones(1)))
    listening = [
        (process.pid, connection.laddr.ip)
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert here.pid in dict(listening) and len(dict(listening)) > 3  # the store, the controller and two engines
    assert [ip for _, ip in listening if ip not in ("127.0.0.1", "::1")] == []


@pytest.mark.parametrize("kind", ["simulated", "processes"])
@pytest.mark.parametrize("count", [0, -1, 2.0, "2"])
def test_a_number_of_ranks_that_makes_no_sense_is_refused(count, kind):
    with pytest.raises(ValueError, match="the number of ranks must be a whole number from 1, not"):
        lab.ranks(count, kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of ranks 'threads': choose simulated or processes"):
        lab.ranks(2, kind="threads")


def test_canary_of_the_private_mode_that_simulates_ranks():
    """The lessons need this much of PyTorch's LocalTensorMode. If a new version changes it, this test fails first."""
    with simulated_ranks(4) as mesh, torch.no_grad():
        own = own_tensor(lambda rank: torch.full((2,), float(rank)))
        assert [x.tolist() for x in per_rank(own)] == [[0, 0], [1, 1], [2, 2], [3, 3]]
        assert [x.tolist() for x in per_rank(own + 1)] == [[1, 1], [2, 2], [3, 3], [4, 4]]
        gathered = DTensor.from_local(own, mesh, [Shard(0)]).full_tensor()
        assert all(x.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] for x in per_rank(gathered))
        summed = DTensor.from_local(own, mesh, [Partial()]).full_tensor()
        assert all(x.tolist() == [6, 6] for x in per_rank(summed))
    assert not dist.is_initialized()
