"""lab.compare says "yes" only where every number on every rank is the unsharded one, up to rounding."""

import pytest
import torch
from torch import nn

from kandinsky_mini import lab
from kandinsky_mini.lab.parity import difference

X = torch.linspace(-2, 2, 24).view(3, 8)


class Spoilt(nn.Module):
    """Return X, in which rank 1 adds something to a single number."""

    def __init__(self, added: float):
        super().__init__()
        self.outputs = [X, X.index_put((torch.tensor(1), torch.tensor(5)), X[1, 5] + added)]

    def forward(self, x):
        return lab.own_tensor(lambda rank: self.outputs[rank])


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (1e-6, "yes"),
        (1e-3, "NO, rank 1 differs by 0.001 x the largest value"),
        (-1e-3, "NO, rank 1 differs by 0.001 x the largest value"),
        (float("nan"), "NO, rank 1 differs by nan x the largest value"),
        (float("inf"), "NO, rank 1 differs by inf x the largest value"),
    ],
)
def test_a_single_number_on_a_single_rank_is_enough(share, verdict, capsys):
    """A thousandth is far more than rounding, and a number that is none is never right."""
    lab.compare(nn.Identity(), lambda module, mesh: Spoilt(share * X.abs().max()), X, ranks=2)
    assert capsys.readouterr().out == f"as unsharded on every rank: {verdict} | none\n"


def test_all_outputs_of_a_module_are_compared():
    right, wrong = torch.ones(3), torch.ones(3) + torch.tensor([0.0, 0.0, 0.5])
    assert difference((right, right), (right, right)) == 0
    assert difference((right, wrong), (right, right)) == pytest.approx(0.5)
    assert difference({"a": right, "b": wrong}, {"a": right, "b": right}) == pytest.approx(0.5)
    assert difference(right, torch.ones(4)) == float("inf")
    assert difference((right,), (right, right)) == difference(right, (right, right)) == float("inf")
