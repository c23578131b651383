"""Record what simulated ranks do in a forward of a sharded module, step by step. Drawings are made from the record."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Placement

from ...parallel.ledger import Entry, Ledger
from ...parallel.simulation import per_rank
from ...parallel.tensors import local_value, placement_of


@dataclass
class Step:
    """A module's turn in a forward on simulated ranks: what each rank is given, what it computes, and what it hands on.

    After the ranks have computed their results, the plan may communicate before they hand them on. `computed` and
    `placement` describe the results before this communication, and `handed_on` holds them after it.
    """

    name: str
    module: nn.Module
    given: list[torch.Tensor]
    computed: list[torch.Tensor]
    placement: Placement | None
    handed_on: list[torch.Tensor] = field(default_factory=list)


def alike(tensors: list[torch.Tensor]) -> bool:
    """Return whether all ranks have the same tensor."""
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def trace(module: nn.Module, *inputs: torch.Tensor) -> list[Step | Entry]:
    """Run a sharded module on simulated ranks. Return the steps of its smallest parts and its collectives in order.

    Raises:
        ValueError: no weight of the module is sharded.
        TypeError: the ranks are not simulated, so one rank cannot see what the others have.
    """
    sharded = [parameter for parameter in module.parameters() if isinstance(parameter, DTensor)]
    if not sharded:
        raise ValueError("no weight of this module is sharded: call parallelize_module first, on two ranks or more")
    ranks = len(per_rank(sharded[0]))
    names = {part: name for name, part in module.named_modules() if not any(part.children())}
    ledger, events, hooks, begun = Ledger(module), [], [], []

    def on_each(value: torch.Tensor) -> list[torch.Tensor]:
        value = local_value(value)
        return [value] * ranks if type(value) is torch.Tensor else per_rank(value)

    def note_collectives() -> None:
        events.extend(ledger.entries[sum(isinstance(event, Entry) for event in events) :])

    def begin(_, args: tuple) -> None:
        begun.append(on_each(args[0]))

    def compute(part: nn.Module, _, output: torch.Tensor) -> None:
        note_collectives()
        events.append(Step(names[part], part, begun.pop(), on_each(output), placement_of(output)))

    def hand_on(_, __, output: torch.Tensor) -> None:
        events[-1].handed_on = on_each(output)

    for part in names:  # begin and compute run before the plan's own hooks, and hand_on runs after them
        hooks += [part.register_forward_pre_hook(begin, prepend=True)]
        hooks += [part.register_forward_hook(compute, prepend=True), part.register_forward_hook(hand_on)]
    try:
        with ledger:
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    note_collectives()
    return events
