"""Rank the layouts of a model on a number of GPUs by the step time that the cost model predicts:

python launch/plan.py --gpus 8 --config lite_5s

It needs no GPU. The times come from a record of launch/ceilings.py for one kind of GPU, by default the published one.
They are good for models as large as Lite. For mini, launching a kernel takes longer than the kernel. Attention is
predicted in full, even if the model's is sparse.
"""

import argparse
import dataclasses

from kandinsky_mini.bench import options
from kandinsky_mini.command import run
from kandinsky_mini.config import Config, SamplingConfig, load_config
from kandinsky_mini.models.parallelize import check_divisible
from kandinsky_mini.parallel.ceilings import Ceilings, load_ceilings
from kandinsky_mini.parallel.cost import Prediction, predict
from kandinsky_mini.parallel.layout import ParallelLayout, layouts_of


def sort_out(config: Config, sampling: SamplingConfig, gpus: int) -> tuple[list[ParallelLayout], dict[str, str]]:
    """Return the layouts of exactly so many GPUs that can run, and for each reason the names of those that cannot."""
    fits, refused = [], {}
    for layout in layouts_of(gpus):
        try:
            check_divisible(config.dit, layout.size, layout.plan)
            layout.check_run(sampling, config.dit)
            fits.append(layout)
        except ValueError as error:
            reason = str(error).removeprefix(f"the layout {layout} ")
            refused[reason] = f"{refused[reason]}, {layout}" if reason in refused else str(layout)
    return fits, refused


def table(predictions: list[Prediction], one: Prediction, ceilings: Ceilings) -> str:
    """Return a line for each layout, the fastest first: its step, what the step consists of, its memory, its bytes."""
    heads = "".join(f"{part:>14}" for part in one.seconds)
    lines = [f"{'layout':15}{'s a step':>9}{'speedup':>9}{heads}{'GB a GPU':>10}{'GB sent':>9}"]
    for each in sorted(predictions, key=lambda each: each.step):
        parts = "".join(f"{seconds:14.3f}" for seconds in each.seconds.values())
        numbers = f"{each.step:9.3f}{one.step / each.step:8.2f}x{parts}{each.peak_bytes / 1e9:10.1f}"
        too_much = "  more than the GPU has" if each.peak_bytes > ceilings.memory_bytes else ""
        lines.append(f"{each.layout!s:15}{numbers}{each.wire_bytes / 1e9:9.1f}{too_much}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=options.at_least(1), required=True, help="number of GPUs to use, all of them")
    config = {"type": options.config_file, "required": True}
    parser.add_argument("--config", **config, help="YAML configuration or its name, such as lite_5s")
    parser.add_argument("--seconds", type=options.at_least(0), help="seconds of video (default: the configuration's)")
    parser.add_argument("--unguided", action="store_true", help="one forward a step, as with distilled weights")
    parser.add_argument("--ceilings", help="record of launch/ceilings.py (default: the published one)")
    args = parser.parse_args(argv)
    config = load_config(args.config)
    seconds = config.sampling.time_length if args.seconds is None else args.seconds
    weight = 1.0 if args.unguided else config.sampling.guidance_weight
    sampling = dataclasses.replace(config.sampling, time_length=seconds, guidance_weight=weight)
    try:
        ceilings = load_ceilings(args.ceilings)
    except ValueError as error:
        parser.error(str(error))

    layouts, refused = sort_out(config, sampling, args.gpus)
    one, *predictions = (predict(config.dit, sampling, each, ceilings) for each in [ParallelLayout(), *layouts])
    guided = "guided" if sampling.guided else "not guided"
    full = ", with full attention, as the cost model knows no sparse one" if config.dit.nabla else ""
    print(f"{config.name}, {seconds} s of video, {guided}, on {args.gpus} x {ceilings.device}: predicted{full}")
    if predictions:
        print(table(predictions, one, ceilings))
    else:
        fewer = next(gpus for gpus in range(args.gpus - 1, 0, -1) if sort_out(config, sampling, gpus)[0])
        print(f"no layout uses all {args.gpus} GPUs; the next smaller number with a layout is {fewer}")
    for reason, names in refused.items():
        print(f"cannot run: {names}: {reason}")


if __name__ == "__main__":
    run(main)
