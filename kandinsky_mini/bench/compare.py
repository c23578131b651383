"""Which records figures compare, and what the cost model says about them."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from ..config import CONFIGS, Config, load_config
from ..parallel.ceilings import PUBLISHED_CEILINGS, Ceilings, load_ceilings
from ..parallel.cost import predict
from ..parallel.layout import ParallelLayout
from .records import Record


class NoRecords(Exception):
    """The message says which records are missing, and which script writes them."""


def by_workload(records: list[Record]) -> list[list[Record]]:
    """Return our steps on GPUs for each workload of which several layouts were measured on the same number of ranks.

    Those on the fewest ranks come first, and of them the slowest.
    """
    groups = defaultdict(list)
    for record in records:
        if record.gpus and record.engine == "ours" and not record.parts:
            groups[record.workload].append(record)
    compared = [
        sorted(group, key=lambda record: (record.ranks, -record.step))
        for group in groups.values()
        if len({record.layout for record in group}) > len({record.ranks for record in group})
    ]
    if not compared:
        raise NoRecords("several layouts on the same number of GPUs. launch/sweep.py --layouts writes them")
    return compared


def predicted_steps(group: list[Record], folder: Path) -> list[float | None]:
    """Return what the cost model predicts for each record, by the ceilings of its kind of GPU.

    The ceilings come from the folder or, if it has none for this GPU, from the published records. A prediction is None
    where there are no ceilings with its kernel, where those have no collectives and there are several ranks, where the
    configuration is unknown, where attention is sparse, or where the blocks were not compiled.
    """
    ceilings = ceilings_of(group[0].device, folder)
    known = {each.attention_kernel: each for each in ceilings}
    config = workload_of(group[0])
    if config is None:
        return [None] * len(group)
    tokens = tuple(group[0].text_tokens)  # one number for each forward of a step
    return [
        predict(config.dit, config.sampling, record.layout, known[record.attention], tokens).step
        if record.attention in known and (record.ranks == 1 or known[record.attention].collectives)
        else None
        for record in group
    ]


def by_video_and_ranks(records: list[Record]) -> list[list[Record]]:
    """Return the steps on GPUs for each video and number of ranks on which several libraries ran, the slowest first."""
    groups = defaultdict(list)
    for record in records:
        if record.gpus and not record.parts:
            same = dataclasses.replace(record, engine="any", attention="any").workload
            groups[same, record.ranks].append(record)
    compared = [sorted(group, key=lambda record: -record.step) for group in groups.values()]
    compared = [group for group in compared if len({record.engine for record in group}) > 1]
    if not compared:
        raise NoRecords("several libraries on the same number of GPUs. launch/benchmark.py --engine writes them")
    return sorted(compared, key=lambda group: (group[0].seconds_of_video, group[0].ranks))


def floor(record: Record, folder: Path) -> float | None:
    """Return the seconds of a step that only consists of its matrix products, split evenly over the record's GPUs.

    They take as long as alone, with the fastest kernel of attention that was measured on this kind of GPU. The floor is
    None where there are no ceilings, or where workload_of is None.
    """
    config, known = workload_of(record), ceilings_of(record.device, folder)
    if config is None or not known:
        return None
    tokens = tuple(record.text_tokens)
    each = [predict(config.dit, config.sampling, ParallelLayout(), ceilings, tokens).seconds for ceilings in known]
    return min(seconds["attention"] + seconds["linear"] for seconds in each) / record.ranks


def ceilings_of(device: str, folder: Path) -> list[Ceilings]:
    """Return the ceilings of this kind of GPU, those of the folder before those that are published.

    Where only one kernel of attention was measured together with collectives, these count for the other one, too.
    """
    paths = [path for place in (PUBLISHED_CEILINGS, folder) for path in sorted(place.glob("ceilings-*.json"))]
    found = {each.attention_kernel: each for each in map(load_ceilings, paths) if each.device == device}
    collectives = next((each.collectives for each in found.values() if each.collectives), {})
    return [dataclasses.replace(each, collectives=each.collectives or collectives) for each in found.values()]


def workload_of(record: Record) -> Config | None:
    """Return the configuration of a run that the cost model knows.

    That is None if the configuration is unknown, if attention is sparse, or if the blocks were not compiled.
    """
    path = CONFIGS / f"{record.config}.yaml"
    if not (path.exists() and record.compiled) or record.density is not None:
        return None
    config = load_config(path)
    sampling = dataclasses.replace(config.sampling, time_length=record.seconds_of_video)
    return dataclasses.replace(config, sampling=sampling)
