"""Lessons rely on this: predictions keep a guess, exercises say what is wrong, and pictures show live values."""

import ast
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import LESSONS
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kandinsky_mini import lab
from kandinsky_mini.lab.drawings.canvas import MIXED, RANK_COLOURS
from kandinsky_mini.lab.drawings.shards import on_ranks
from kandinsky_mini.parallel.ledger import Ledger


def test_without_a_guess_the_measurement_is_shown(capsys):
    guess = lab.predict("1 + 1 =", ["2", "3"])
    assert capsys.readouterr().out.startswith("1 + 1 =\n- 2\n- 3\n")
    guess.reveal("2")
    assert capsys.readouterr().out == "no guess; answer: 2\n"


def test_a_guess_is_shown_beside_the_measurement(capsys):
    guess = lab.predict("1 + 1 =", ["2", "3"])
    guess._buttons.value = "3"  # as a click does
    capsys.readouterr()
    guess.reveal("2")
    assert capsys.readouterr().out == "you guessed 3; answer: 2\n"


def test_a_measurement_that_nobody_could_guess_is_an_error():
    with pytest.raises(ValueError, match="measured '4', which is none of"):
        lab.predict("1 + 1 =", ["2", "3"]).reveal("4")


def own(mesh):
    return lab.own_tensor(lambda rank: torch.tensor([rank, 10.0 * rank]))


def summed(mesh, times=1):
    x = own(mesh)
    for _ in range(times):
        dist.all_reduce(x)
    return x


def gathered(mesh):
    return DTensor.from_local(own(mesh), mesh, [Shard(0)]).full_tensor().view(4, 2).sum(0)


def of_one_rank(mesh):
    return torch.full((2,), float(dist.get_rank()))


UNTRIED = "not tried yet; pass show_target=True to see which collectives a solution needs"
SUM = " Target: 1 all_reduce of 8 B."
ANSWERS = {
    UNTRIED: lambda mesh: ...,
    "right: 1 all_reduce of 8 B": summed,
    "not yet: rank 0 has [24.0, 240.0], not [6.0, 60.0]. "
    "This is 4 times too much: every rank adds all of it, or a division is missing." + SUM: lambda mesh: summed(
        mesh, times=2
    ),
    "not yet: rank 0 has [0.0, 0.0], not [6.0, 60.0]. "
    "The ranks' values add up to the right ones: the sum is not finished, each rank has a Partial() term." + SUM: own,
    "not yet: rank 0 has [1.0, 1.0], not [6.0, 60.0]. Ask." + SUM: lambda mesh: torch.ones(2),
    "not yet: rank 0 has shape (1,), not (2,). Ask." + SUM: lambda mesh: summed(mesh)[:1],
    "not yet: rank 0 has float64, not float32. Ask." + SUM: lambda mesh: summed(mesh).double(),
    "not yet: rank 0 returns int, not a tensor. Ask." + SUM: lambda mesh: 6,
    "not yet: rank 0 returns NoneType, not a tensor. Ask." + SUM: lambda mesh: None,
    "not yet: rank 0 returns 2 tensors, not 1. Ask." + SUM: lambda mesh: (summed(mesh), summed(mesh)),
    "not yet: ZeroDivisionError: division by zero. Ask." + SUM: lambda mesh: 1 / 0,
    "not yet: a mesh stands where a group is needed: write group=mesh.get_group(). Ask." + SUM: lambda mesh: (
        dist.all_reduce(torch.ones(2), group=mesh)
    ),
    "not yet: a placement needs brackets: write Shard(0), Replicate() or Partial(). Ask." + SUM: lambda mesh: (
        distribute_tensor(torch.ones(4, 4), mesh, [Shard])
    ),
    "not yet: placements are a list with one entry for each dimension of the mesh: write [Shard(0)]. Ask."
    + SUM: lambda mesh: distribute_tensor(torch.ones(4, 4), mesh, Shard(0)),
    "not yet: rank 0 has [0.0, 0.0], not [6.0, 60.0]. "
    "The call dist.get_rank() does not tell simulated ranks apart, though on real ranks it would. "
    "Here, lab.own_tensor(lambda rank: ...) gives each rank its own tensor." + SUM: of_one_rank,
    "not yet: rank 0 has [0.0, 0.0], not [6.0, 60.0]. "
    "The call mesh.get_local_rank() does not tell simulated ranks apart, though on real ranks it would. "
    "Here, lab.own_tensor(lambda rank: ...) gives each rank its own tensor." + SUM: lambda mesh: torch.full(
        (2,), 0.0 if mesh.get_local_rank() != 0 else 6.0
    ),
    "not yet: SystemExit: stop. Ask." + SUM: lambda mesh: exit("stop"),
    "not yet: ValueError: simulated ranks cannot send: use real ones, kind='processes'. Ask." + SUM: lambda mesh: (
        dist.send(torch.ones(1), dst=1)
    ),
    "right values, but they took 1 all_gather of 32 B." + SUM: gathered,
    "right values, but 1 all_gather of 32 B more than needed." + SUM: lambda mesh: (gathered(mesh), summed(mesh))[1],
}


@pytest.mark.parametrize("verdict", ANSWERS)
def test_an_exercise_says_what_is_wrong_and_why(verdict, capsys):
    expected = [torch.tensor([6.0, 60.0])] * 4
    lab.grade(ANSWERS[verdict], ranks=4, expected=expected, target=[("all_reduce", 8)], hint="Ask.")
    assert capsys.readouterr().out == verdict + "\n"


def test_a_cause_is_not_guessed_where_ranks_should_have_different_values(capsys):
    """The first rank alone is right here. That its values are the sum of all ranks' does not say why."""
    expected = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    answer = lambda mesh: lab.own_tensor(lambda rank: expected[0] * (rank == 0))  # noqa: E731
    lab.grade(answer, ranks=2, expected=expected, target=[("scatter", 16)], hint="Ask.")
    wrong = "not yet: rank 1 has [0.0, 0.0], not [3.0, 4.0]. Ask. Target: 1 scatter of 16 B.\n"
    assert capsys.readouterr().out == wrong


def test_the_target_is_shown_on_request(capsys):
    lab.grade(lambda mesh: ..., ranks=2, expected=[], target=[("all_reduce", 8)], show_target=True)
    assert capsys.readouterr().out == "not tried yet; target: 1 all_reduce of 8 B\n"


@pytest.mark.parametrize(
    "answer",
    [
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "bool", "complex"],
)
def test_the_grader_raises_for_no_answer(answer, capsys):
    lab.grade(lambda mesh: answer, ranks=2, expected=[torch.zeros(2)] * 2, target=[])
    assert capsys.readouterr().out.startswith("not yet: ")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64, torch.complex64])
def test_answers_of_every_dtype_are_graded(dtype, capsys):
    right = torch.ones(10, dtype=dtype)
    for answer in (right, torch.zeros(10, dtype=dtype)):
        lab.grade(lambda mesh, answer=answer: answer, ranks=2, expected=[right] * 2, target=[])
    graded, wrong = capsys.readouterr().out.splitlines()
    assert graded == "right: none"
    assert wrong.startswith("not yet: rank 0 is up to 1 away from the right values.")


@pytest.mark.parametrize("factor", [0.9, 1.001])
@pytest.mark.parametrize("rank", range(4))
def test_every_rank_is_graded(rank, factor, capsys):
    """Values that are off by a thousandth on a single rank are wrong."""
    right = torch.arange(20.0)

    def off(mesh):
        return lab.own_tensor(lambda each: right * (factor if each == rank else 1))

    lab.grade(off, ranks=4, expected=[right] * 4, target=[])
    assert capsys.readouterr().out.startswith(f"not yet: rank {rank} is up to ")


def test_bytes_are_graded_as_well_as_names(capsys):
    def sums(mesh):
        for count in (1, 3):
            dist.all_reduce(torch.ones(count))
        return torch.ones(1)

    for payload in (4, 8):
        target = [("all_reduce", payload), ("all_reduce", 12)]
        lab.grade(sums, ranks=2, expected=[torch.ones(1)] * 2, target=target)
    right, wrong = capsys.readouterr().out.splitlines()
    assert right == "right: 1 all_reduce of 4 B, 1 all_reduce of 12 B"
    assert wrong.startswith("right values, but they took 1 all_reduce of 4 B, 1 all_reduce of 12 B. Target: ")


MLP = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
PAIR = {"0": ColwiseParallel(), "2": RowwiseParallel()}
WASTEFUL = {"0": ColwiseParallel(output_layouts=Replicate()), "2": RowwiseParallel(input_layouts=Replicate())}
X = torch.randn(3, 8)
PLANS = {
    UNTRIED: ...,
    "right: 1 all_reduce of 96 B": PAIR,
    'not yet: the key 0 is a number, but submodules have names: write "0". ': {0: ColwiseParallel()},
    'not yet: "0" has a class for its style: write ColwiseParallel(). ': {"0": ColwiseParallel},
    'not yet: there is no submodule "first", so PyTorch would warn and split nothing. The submodules are 0, 1, 2. ': {
        "first": ColwiseParallel()
    },
    "not yet: ValueError: the linear layer 2 is not split. ": {"0": ColwiseParallel(output_layouts=Replicate())},
    "not yet: rank 0 is up to ": {"0": ColwiseParallel(), "2": RowwiseParallel(output_layouts=Partial())},
    "right values, but 1 all_gather of 192 B more than needed. ": WASTEFUL,
}


@pytest.mark.parametrize("verdict", PLANS)
def test_a_plan_is_told_what_is_wrong_and_why(verdict, capsys):
    lab.grade_plan(PLANS[verdict], MLP, X, ranks=4, target=[("all_reduce", 3 * 8 * 4)])
    printed = capsys.readouterr().out
    assert printed.startswith(verdict)
    assert printed.endswith("Target: 1 all_reduce of 96 B.\n") == verdict.startswith(("not yet", "right values"))


def test_a_function_can_shard_instead_of_a_plan(capsys):
    def by_hand(model, mesh):
        return parallelize_module(model, mesh, PAIR)

    lab.grade_plan(by_hand, MLP, X, ranks=4, target=[("all_reduce", 96)])
    lab.grade_plan(lambda model, mesh: ..., MLP, X, ranks=4, target=[])
    lab.grade_plan(lambda model, mesh: None, MLP, X, ranks=4, target=[])
    right, untried, nothing = capsys.readouterr().out.splitlines()
    assert (right, untried) == ("right: 1 all_reduce of 96 B", UNTRIED)
    assert "your function returns nothing: it must return the sharded module" in nothing


def test_bytes_can_be_the_goal_without_a_target_that_gives_the_answer_away(capsys):
    for how in (..., PAIR, WASTEFUL):
        lab.grade_bytes(how, MLP, X, ranks=4, most=2 * 3 / 4 * 96)
    untried, right, wrong = capsys.readouterr().out.splitlines()
    assert (untried, right) == ("not tried yet", "right: each rank sends 144 B")
    assert wrong.startswith("right values, but each rank sends 288 B: ") and "can be done with less" in wrong


ODD = torch.nn.Sequential(torch.nn.Linear(5, 5))


@pytest.mark.parametrize("style", [ColwiseParallel(), RowwiseParallel(input_layouts=Replicate())])
def test_a_width_that_does_not_divide_is_named(style, capsys):
    lab.grade_plan({"0": style}, ODD, torch.randn(4, 5), ranks=2, target=[])
    lab.grade_bytes({"0": style}, ODD, torch.randn(4, 5), ranks=2, most=100)
    assert [line.split(". ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "not yet: ValueError: 0.weight: 5 does not divide by 2",
        "not yet: ValueError: 0.weight: 5 does not divide by 2.",
    ]


def test_plans_are_graded_on_every_rank(capsys):
    def spoil(module, mesh):
        return torch.nn.Sequential(parallelize_module(module, mesh, PAIR), SpoiltOnRank1())

    lab.grade_plan(spoil, MLP, X, ranks=2, target=[("all_reduce", 96)])
    lab.grade_bytes(spoil, MLP, X, ranks=2, most=1000)
    assert all(line.startswith("not yet: rank 1 is up to 1 away ") for line in capsys.readouterr().out.splitlines())


def test_the_number_of_collectives_is_graded(capsys):
    for count in (1, 2, 3):
        lab.grade(
            lambda mesh: summed(mesh, 2),
            ranks=2,
            expected=[torch.tensor([2.0, 20.0])] * 2,
            target=[("all_reduce", 8)] * count,
        )
    few, right, many = capsys.readouterr().out.splitlines()
    assert few.startswith("right values, but 1 all_reduce of 8 B more than needed.")
    assert right == "right: 2 all_reduce of 8 B"
    assert many.startswith("right values, but they took 2 all_reduce of 8 B.")


def test_modules_are_compared_on_every_rank(capsys):
    assert lab.compare(MLP, PAIR, X, ranks=2) == "1 all_reduce of 96 B"
    unfinished = {"0": ColwiseParallel(), "2": RowwiseParallel(output_layouts=Partial())}
    assert lab.compare(MLP, unfinished, X, ranks=2) == "none"
    good, bad = capsys.readouterr().out.splitlines()
    assert good == "as unsharded on every rank: yes | 1 all_reduce of 96 B"
    assert bad.startswith("as unsharded on every rank: NO, rank 0 differs by ") and bad.endswith(" | none")


class SpoiltOnRank1(torch.nn.Module):
    def forward(self, x):
        return x + lab.own_tensor(lambda rank: torch.full((1,), float(rank == 1)))


def test_a_rank_that_alone_is_wrong_is_found(capsys):
    lab.compare(torch.nn.Identity(), lambda module, mesh: SpoiltOnRank1(), X, ranks=2)
    assert "NO, rank 1 differs by " in capsys.readouterr().out


def tagged_cells(path: Path) -> list[tuple[str, dict]]:
    """Return the exercises and solutions of a notebook in order, each as its tag and its cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tags = ("exercise", "solution")
    return [(tag, cell) for cell in cells for tag in cell["metadata"].get("tags", []) if tag in tags]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_exercises_are_untouched_and_their_solutions_are_right_and_folded(path):
    tagged = tagged_cells(path)
    assert [tag for tag, _ in tagged] == ["exercise", "solution"] * (len(tagged) // 2)
    for tag, cell in tagged:
        last = "".join(cell["outputs"][-1]["text"]).splitlines()[-1]
        assert last.startswith("not tried yet" if tag == "exercise" else "right: ")
        assert cell["metadata"].get("jupyter", {}).get("source_hidden", False) == (tag == "solution")


def values(path: Path, until: str) -> dict:
    """Return what a notebook defines before the cell `until`, without its real ranks, figures and timing."""
    names = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["id"] == until:
            return names
        for node in ast.parse("".join(cell["source"]) if cell["cell_type"] == "code" else "").body:
            code = ast.unparse(node)
            definition = isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))
            value = isinstance(node, (ast.Assign, ast.With)) and "ranks.run(" not in code and "processes" not in code
            if definition or value:
                exec(code, names)
    raise ValueError(f"{path} has no cell {until}")


@pytest.mark.parametrize(
    ("path", "cell"),
    [
        pytest.param(path, cell, id=f"{path.stem}-{cell['id']}")
        for path in LESSONS
        for tag, cell in tagged_cells(path)
        if tag == "exercise"
    ],
)
def test_an_exercise_does_not_take_what_it_starts_with_for_the_answer(path, cell, capsys):
    source = "".join(cell["source"])
    assert source.count("return ...") + source.count("plan = ...") == 1
    names = values(path, until=cell["id"])
    capsys.readouterr()
    exec(source.replace("return ...", "return x").replace("plan = ...", "plan = {}"), names)
    assert capsys.readouterr().out.startswith(("not yet: ", "right values, but "))


def colours(axis) -> list[str]:
    from matplotlib.colors import to_hex

    return [to_hex(patch.get_facecolor()) for patch in axis.patches]


def test_numbers_keep_the_colour_of_the_rank_they_came_from():
    before = [torch.tensor([1.0]), torch.tensor([2.0])]
    first, second = on_ranks({"before": before, "after": [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]}).axes
    assert colours(first) == list(RANK_COLOURS[:2])
    assert colours(second) == [*RANK_COLOURS[:2], MIXED]
    assert [text.get_text() for text in second.texts] == ["1", "2", "3"]
    (both,) = on_ranks({"before": [torch.tensor([7.0]), torch.tensor([7.0])]}).axes
    assert colours(both) == [MIXED, MIXED]


@pytest.mark.parametrize(
    ("source", "goal", "collective"),
    [
        (Partial(), Replicate(), "all_reduce"),
        (Partial(), Shard(0), "reduce_scatter"),
        (Shard(0), Replicate(), "all_gather"),
    ],
)
def test_the_ledger_counts_a_redistribution(source, goal, collective):
    def redistribute(mesh):
        with Ledger() as ledger:
            DTensor.from_local(torch.ones(4, 2), mesh, [source]).redistribute(placements=[goal]).to_local()
        return ledger.entries

    for entries in lab.ranks(2).run(redistribute):
        assert [entry.collective for entry in entries] == [collective]
