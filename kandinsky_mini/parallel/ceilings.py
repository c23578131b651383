"""What one kind of GPU reaches at best, read from a record that launch/ceilings.py wrote."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from ..config import ROOT
from .ledger import RING

PUBLISHED_CEILINGS = ROOT / "assets" / "benchmarks" / "layouts"


@dataclass(frozen=True)
class Ceilings:
    """Measured times. Each mapping leads from a shape to its seconds, the median of several measurements.

    linear: (rows, columns in, columns out) -> seconds of one matrix product.
    attention: (tokens, heads) -> seconds of one attention over all tokens.
    elementwise: bytes read and written -> seconds, of one compiled operation on every number of the tokens.
    collectives: (kind, ranks, payload bytes) -> seconds.
    attention_kernel: the kernel of the attention that was measured.
    head_dim: the channels of a head of the attention that was measured.
    memory_bytes: the memory of one GPU.
    """

    device: str
    memory_bytes: int
    attention_kernel: str
    head_dim: int
    linear: dict[tuple[int, int, int], float]
    attention: dict[tuple[int, int], float]
    elementwise: dict[int, float]
    collectives: dict[tuple[str, int, int], float]

    def linear_seconds(self, rows: int, columns_in: int, columns_out: int) -> float:
        """Scale the time of the nearest measured shape by the number of multiplications."""
        shape = (rows, columns_in, columns_out)
        near = _nearest(self.linear, shape)
        return self.linear[near] * math.prod(shape) / math.prod(near)

    def attention_seconds(self, queries: int, keys: int, heads: int) -> float:
        """Scale the time of the nearest measured shape by the number of multiplications."""
        tokens, some_heads = near = _nearest(self.attention, (math.isqrt(queries * keys), heads))
        return self.attention[near] * (queries * keys * heads) / (tokens**2 * some_heads)

    def elementwise_seconds(self, nbytes: float) -> float:
        """Scale the measured time by the bytes that are read and written."""
        measured, seconds = next(iter(self.elementwise.items()))
        return seconds * nbytes / measured

    def collective_seconds(self, kind: str, ranks: int, payload: float) -> float:
        """Interpolate between the measured sizes, on the nearest number of ranks that was measured.

        Another number of ranks gets the same bandwidth, in bytes that each rank sends. A payload below the smallest
        measured one takes as long as that one, because then the latency decides.
        """
        measured = sorted({count for name, count, _ in self.collectives if name == kind})
        if not measured:
            raise ValueError(f"no {kind} was measured on {self.device}: run launch/ceilings.py on several GPUs")
        near = min(measured, key=lambda count: abs(math.log(count / ranks)))
        points = sorted(
            (size, time) for (name, count, size), time in self.collectives.items() if (name, count) == (kind, near)
        )
        payload *= RING[kind](ranks) / RING[kind](near)
        (size, time), *others = points
        if payload <= size:
            return time
        for larger, longer in others:
            if payload <= larger:
                share = (payload - size) / (larger - size)
                return time + share * (longer - time)
            size, time = larger, longer
        return time * payload / size


def _nearest(shapes: dict, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape whose sizes differ least from the wanted ones, as factors."""
    return min(shapes, key=lambda shape: sum(abs(math.log(a / b)) for a, b in zip(shape, wanted, strict=True)))


def load_ceilings(path: str | Path | None = None, folder: Path = PUBLISHED_CEILINGS) -> Ceilings:
    """Read a record of launch/ceilings.py, by default the folder's first one in alphabetical order.

    Raises:
        ValueError: the folder has no record, or the file is not a record.
    """
    if path is None:
        found = sorted(folder.glob("ceilings-*.json"))
        if not found:
            raise ValueError(f"{folder} has no ceilings-*.json: measure them on a GPU with launch/ceilings.py")
        path = found[0]
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        return Ceilings(
            device=record["device"],
            memory_bytes=int(record["memory_bytes"]),
            attention_kernel=str(record["attention_kernel"]),
            head_dim=int(record["head_dim"]),
            linear={tuple(each["shape"]): _median(each) for each in record["linear"]},
            attention={tuple(each["shape"]): _median(each) for each in record["attention"]},
            elementwise={int(each["bytes"]): _median(each) for each in record["elementwise"]},
            collectives={(c["kind"], c["ranks"], c["bytes"]): _median(c) for c in record["collectives"]},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of launch/ceilings.py: {error!r}") from error


def _median(measured: dict) -> float:
    return statistics.median(measured["seconds"])
