"""Measure what this kind of GPU reaches at best, for the cost model of launch/plan.py, and write one record as JSON:

python launch/ceilings.py                               # arithmetic only, with cuDNN's attention
python launch/ceilings.py --attention flash4            # the same with flash-attn-4
torchrun --nproc-per-node 4 launch/ceilings.py          # and collectives between 2 and 4 GPUs

The shapes are those of the real model for videos of 5 and 10 seconds, whole and split over 2 and 4 ranks.
"""

import argparse
from collections.abc import Callable
from datetime import date

import torch
import torch.distributed as dist
from torch import nn

from kandinsky_mini.bench import options
from kandinsky_mini.bench.machine import device_name, interconnect
from kandinsky_mini.bench.measure import timed
from kandinsky_mini.bench.records import FOLDER, command_line, slug, versions
from kandinsky_mini.command import run
from kandinsky_mini.config import load_config
from kandinsky_mini.files import write_json
from kandinsky_mini.models.attention import Attention, choose_kernel, preferred_kernels, set_kernel
from kandinsky_mini.models.nn import gated_sum
from kandinsky_mini.parallel.groups import join_group, leave_group, local_device, rank, world_size

SPLITS = (1, 2, 4)
TOKENS = (47_616, 93_696)  # visual tokens of 5 and 10 seconds at 512 x 768
TEXT_TOKENS = 256
SMALL_PAYLOADS = (2**15, 2**20, 2**24)
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def repeated(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Return the seconds of one call, measured several times over a batch of calls, as many as fill 50 ms."""
    call()
    call()
    batch = max(1, min(200, int(0.05 / timed(call, device))))
    return [timed(lambda: [call() for _ in range(batch)], device) / batch for _ in range(repeats)]


def measure_linear(D: int, F: int, device: torch.device, repeats: int) -> list[dict]:
    """Time linear layers with the shapes that the layouts give them."""
    shapes = {(rows, D, D) for rows in (TOKENS[0], TOKENS[0] // 2, TOKENS[0] // 4, TEXT_TOKENS)}
    for parts in SPLITS:
        widths = ((D, D // parts), (D // parts, D), (D, F // parts), (F // parts, D))
        shapes |= {(TOKENS[0], *each) for each in widths}
    shapes |= {(rows, *each) for rows in (TOKENS[0] // 4, TEXT_TOKENS) for each in ((D, F), (F, D))}
    found = []
    for rows, columns_in, columns_out in sorted(shapes):
        layer = nn.Linear(columns_in, columns_out, device=device, dtype=torch.bfloat16)
        x = torch.randn(rows, columns_in, device=device, dtype=torch.bfloat16)
        seconds = repeated(lambda layer=layer, x=x: layer(x), device, repeats)
        found.append({"shape": [rows, columns_in, columns_out], "seconds": seconds})
    return found


def measure_attention(heads: int, head_dim: int, kernel: str, device: torch.device, repeats: int) -> list[dict]:
    """Time a kernel of attention over all tokens, with all heads and with the share of one rank."""
    attention, found = Attention(), []
    set_kernel(attention, kernel)
    for tokens in TOKENS:
        for count in (heads // parts for parts in SPLITS):
            qkv = [torch.randn(tokens, count, head_dim, device=device, dtype=torch.bfloat16) for _ in range(3)]
            seconds = repeated(lambda qkv=qkv: attention(*qkv), device, repeats)
            found.append({"shape": [tokens, count], "seconds": seconds})
    return found


def measure_elementwise(D: int, device: torch.device, repeats: int) -> list[dict]:
    """Time the gated sum of the model's blocks, which reads two tensors of all tokens and writes one."""
    x, out = (torch.randn(TOKENS[0], D, device=device, dtype=torch.bfloat16) for _ in range(2))
    gate = torch.randn(1, D, device=device)
    add = torch.compile(gated_sum)
    return [{"bytes": 3 * x.nbytes, "seconds": repeated(lambda: add(x, out, gate), device, repeats)}]


def measure_collectives(D: int, device: torch.device, repeats: int) -> list[dict]:
    """Time the collectives of bfloat16 tensors between the first 2, 4, ... ranks. The others wait."""
    payloads = (*SMALL_PAYLOADS, *(2 * tokens * D for tokens in TOKENS))
    found = []
    for count in (count for count in (2, 4, 8) if count <= world_size()):
        group = dist.new_group(list(range(count)))
        for kind in KINDS if rank() < count else ():
            for payload in payloads:
                call = collective(kind, payload // 2, count, group, device)
                seconds = in_step(call, device, repeats)
                found.append({"kind": kind, "ranks": count, "bytes": payload, "seconds": seconds})
        dist.barrier()
    return found


def collective(kind: str, numbers: int, count: int, group: dist.ProcessGroup, device: torch.device) -> Callable:
    """Return a call that runs the collective once. numbers counts the whole payload."""
    whole, part = (torch.zeros(size, device=device, dtype=torch.bfloat16) for size in (numbers, numbers // count))
    if kind == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    if kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
    received = torch.empty_like(part)
    return lambda: dist.all_to_all_single(received, part, group=group)


def in_step(call: Callable, device: torch.device, repeats: int) -> list[float]:
    """Return the seconds of one collective. The number of calls is fixed, because all ranks must make the same."""
    for _ in range(3):
        call()
    return [timed(lambda: [call() for _ in range(20)], device) / 20 for _ in range(repeats)]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=options.at_least(1), default=5, help="number of times that each is measured")
    parser.add_argument("--attention", choices=("cudnn", "flash4"), default="cudnn", help="kernel of attention")
    parser.add_argument("--out", type=options.folder, default=str(FOLDER), help="folder for the record")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("ceilings are those of a GPU, and there is none here")
    device = torch.device(local_device("cuda"))
    config, kernel = load_config("lite_5s").dit, args.attention
    if kernel == "flash4":
        choose_kernel(kernel, device, torch.bfloat16, config.head_dim)  # refuses where it cannot run
    several = world_size() > 1
    if several:
        join_group(device.type)
    with preferred_kernels(kernel):
        record = {
            "command": command_line(),
            "device": device_name(device),
            "interconnect": interconnect(world_size()),
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
            "attention_kernel": kernel,
            "head_dim": config.head_dim,
            "linear": measure_linear(config.model_dim, config.ff_dim, device, args.repeats),
            "attention": measure_attention(config.num_heads, config.head_dim, kernel, device, args.repeats),
            "elementwise": measure_elementwise(config.model_dim, device, args.repeats),
            "collectives": measure_collectives(config.model_dim, device, args.repeats) if several else [],
            "date": date.today().isoformat(),
            "versions": versions(),
        }
    if rank() == 0:
        name = slug(record["device"].removeprefix("NVIDIA ")) + ("-flash4" if kernel == "flash4" else "")
        path = args.out / f"ceilings-{name}.json"
        write_json(path, record)
        print(path)
    leave_group()


if __name__ == "__main__":
    run(main)
