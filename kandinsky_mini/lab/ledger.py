"""The communication ledger: which collective ran, in which module, with how many bytes; and what a formula expects.

Payload: bytes of the whole logical tensor. Wire: bytes that each rank sends in a ring of P ranks, the least known
way for large tensors (Patarasuk and Yuan 2009): all-reduce 2 (P-1)/P, all-gather and reduce-scatter (P-1)/P of the
payload, all-to-all (P-1)/P^2.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..models.dit import DiffusionTransformer3D

RING = {
    "all_reduce": lambda p: 2 * (p - 1) / p,
    "all_gather": lambda p: (p - 1) / p,
    "reduce_scatter": lambda p: (p - 1) / p,
    "all_to_all": lambda p: (p - 1) / p**2,
    "broadcast": lambda p: (p - 1) / p,  # on average: the last of the ring sends nothing
}
# PyTorch's operators: our name, which argument goes in, and whether that is only one of P parts of the payload.
COLLECTIVES = {
    "_c10d_functional::all_reduce": ("all_reduce", 0, False),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", 0, True),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0, False),
    "_c10d_functional::all_to_all_single": ("all_to_all", 0, True),
    "_dtensor::shard_dim_alltoall": ("all_to_all", 0, True),
    # Those of torch.distributed's own functions, dist.all_reduce and so on, some of which take lists of tensors.
    "c10d::allreduce_": ("all_reduce", 0, False),
    "c10d::allgather_": ("all_gather", 1, True),
    "c10d::_allgather_base_": ("all_gather", 1, True),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1, False),
    "c10d::reduce_scatter_": ("reduce_scatter", 1, True),
    "c10d::broadcast_": ("broadcast", 0, False),
}


@dataclass(frozen=True)
class Entry:
    """One collective: the module that made it, its kind, and its payload in bytes."""

    module: str
    collective: str
    payload: int

    def wire(self, ranks: int) -> float:
        """Bytes that each rank sends."""
        return RING[self.collective](ranks) * self.payload


class Ledger(TorchDispatchMode):
    """Counts the collectives while it is active, by the module that makes them, if a model is given.

    `with Ledger(ranks, dit) as ledger: dit(...)`
    """

    def __init__(self, ranks: int, model: nn.Module | None = None):
        super().__init__()
        self.ranks, self.model = ranks, model or nn.Module()
        self.entries: list[Entry] = []
        self._inside: list[str] = []
        self._hooks: list = []

    def __enter__(self):
        for name, module in self.model.named_modules():
            # First in and last out, so that the collectives of the plan's own hooks belong to their module.
            enter = module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name), prepend=True)
            leave = module.register_forward_hook(self._leave, always_call=True)
            self._hooks += [enter, leave]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def _leave(self, *_) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in COLLECTIVES:
            collective, index, from_part = COLLECTIVES[func._schema.name]
            tensor = args[index]
            while isinstance(tensor, list):
                tensor = tensor[0]
            payload = tensor.numel() * tensor.element_size() * (self.ranks if from_part else 1)
            self.entries.append(Entry(self._inside[-1] if self._inside else "", collective, payload))
        return func(*args, **(kwargs or {}))


def predict_tensor_parallel(dit: DiffusionTransformer3D, tokens: int, text_tokens: int, bytes_each: int) -> list[Entry]:
    """What one forward of the talk's plan costs, from the sizes of the unsharded model alone."""
    time_dim = dit.time_embeddings.out_layer.out_features
    model_dim = dit.visual_embeddings.in_layer.out_features
    out_width = dit.out_layer.out_layer.out_features
    activation = tokens * model_dim * bytes_each  # S x D
    entries = [
        Entry("time_embeddings.out_layer", "all_reduce", time_dim * bytes_each),
        Entry("pooled_text_embeddings.in_layer", "all_gather", time_dim * bytes_each),
        Entry("text_embeddings.in_layer", "all_gather", text_tokens * model_dim * bytes_each),
        Entry("visual_embeddings.in_layer", "all_gather", activation),
    ]
    for i in range(len(dit.visual_transformer_blocks)):
        block = f"visual_transformer_blocks.{i}"
        entries += [
            Entry(f"{block}.visual_modulation.out_layer", "all_gather", 9 * model_dim * bytes_each),
            Entry(f"{block}.out_layer_self", "all_reduce", activation),
            Entry(f"{block}.out_layer_cross", "all_reduce", activation),
            Entry(f"{block}.feed_forward.out_layer", "all_reduce", activation),
        ]
    return [*entries, Entry("out_layer.out_layer", "all_gather", tokens * out_width * bytes_each)]


def summary(entries: list[Entry]) -> str:
    """The collectives in words: 1 all_reduce of 64 KiB, 2 all_gather of 16 B."""
    counts = Counter((entry.collective, entry.payload) for entry in entries)
    return ", ".join(f"{count} {name} of {size(payload)}" for (name, payload), count in counts.items()) or "none"


def compare(predicted: list[Entry], counted: list[Entry], ranks: int) -> str:
    """A table: for each module its collectives with their payload; at the end, what each rank sends in all."""

    def by_module(entries: list[Entry]) -> dict[str, str]:
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.module, []).append(entry)
        return {module: summary(group) for module, group in groups.items()}

    def with_sum(entries: list[Entry]) -> dict[str, str]:
        return by_module(entries) | {"sent by each rank": size(sum(entry.wire(ranks) for entry in entries))}

    left, right = with_sum(predicted), with_sum(counted)
    modules = sorted(left | right, key="sent by each rank".__eq__)  # the sum last
    widths = [max(map(len, column)) for column in (["module", *modules], ["predicted", *left.values()])]
    lines = [f"{'module':{widths[0]}}  {'predicted':{widths[1]}}  counted"]
    for module in modules:
        lines.append(f"{module:{widths[0]}}  {left.get(module, '-'):{widths[1]}}  {right.get(module, '-')}")
    return "\n".join(lines)


def size(count: float) -> str:
    """A number of bytes in words."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}".replace(".0 ", " ")
    return f"{count:.0f} B"
