"""Drawings of speed show the seconds that they were given: speedups, Amdahl's curve, lanes of a run, and latency."""

import statistics

import pytest
from figure_checks import assert_text_is_readable
from matplotlib.colors import to_hex

from kandinsky_mini.lab.drawings import speed
from kandinsky_mini.lab.drawings.canvas import RANK_COLOURS

SECONDS = {"short": {1: [2.0, 8.0, 2.2], 2: [1.0, 1.2, 1.1]}, "long": {1: [8.0], 2: [4.0], 4: [3.2]}}
ALONE = {"text": 1.0, "vae": 4.0, "save": 0.5}


def texts(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts if text.get_text()]


def curves(axis) -> dict[str, list[float]]:
    """Return the heights of each labelled line and of each line with error bars."""
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines if not line.get_label().startswith("_")}
    return lines | {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in axis.containers}


def test_speedup_and_efficiency_are_those_of_the_medians():
    figure = speed.speedups(SECONDS)
    left, right = map(curves, figure.axes)
    assert left == {"ideal": [1, 2, 4], "short": pytest.approx([1, 2]), "long": pytest.approx([1, 2, 2.5])}
    assert right == {"ideal": [100] * 3, "short": pytest.approx([100, 100]), "long": pytest.approx([100, 100, 62.5])}
    assert texts(figure) == ["2.00", "2.00", "2.50", "100%", "100%", "62%"]


def test_error_bars_reach_from_the_slowest_to_the_fastest_measurement():
    short, _ = speed.speedups(SECONDS).axes[0].containers
    (low, high) = short.lines[2][0].get_segments()[1][:, 1]
    assert (low, high) == (pytest.approx(2.2 / 1.2), pytest.approx(2.2 / 1.0))
    assert statistics.median(SECONDS["short"][1]) == 2.2


def test_amdahl_s_curve():
    few, many = map(curves, speed.amdahl({"half": 0.5, "all": 1.0}, most=8).axes)
    assert few["half: 50.0% split"] == pytest.approx([1, 4 / 3, 1.5, 1.6])
    assert few["all: 100.0% split"] == pytest.approx([1, 2, 3, 4])
    assert few["ideal"] == [1, 2, 3, 4]
    assert many["half: 50.0% split"][-1] == pytest.approx(16 / 9)


def test_measured_speedups_are_drawn_beside_amdahl_s_curve():
    few, many = map(curves, speed.amdahl({"half": 0.5, "all": 1.0}, measured={"half": {2: 1.3, 4: 1.7}}).axes)
    assert few["half: measured"] == [1.3, 1.7]
    assert "all: measured" not in few and "half: measured" not in many


def heights(texts) -> dict[str, float]:
    """Return for each text how far it is above its point, in points."""
    return {text.get_text(): text.xyann[1] for text in texts}


def test_the_values_of_two_curves_stand_on_both_sides_of_them():
    figure = speed.speedups({"lower": {1: [4.0], 2: [2.5]}, "higher": {1: [4.0], 2: [2.0]}})
    left, right = (heights(axis.texts) for axis in figure.axes)
    assert left["1.60"] < 0 < left["2.00"] and right["80%"] < 0 < right["100%"]


def lanes(figure) -> list[tuple[str, float, float, float, str]]:
    """Return each part of a run as its name, its lane's height, its start and its length in seconds, and its colour."""
    parts = [patch for patch in figure.axes[0].patches if patch.get_gid()]
    unit = next(patch.get_width() for patch in parts if patch.get_gid() == "text")  # the text takes one second
    left = min(patch.get_x() for patch in parts)
    return [
        (p.get_gid(), p.get_y(), (p.get_x() - left) / unit, p.get_width() / unit, to_hex(p.get_facecolor()))
        for p in parts
    ]


def test_a_run_has_a_lane_for_each_rank_and_rank_0_alone_does_the_rest():
    figure = speed.whole_run({1: 20.0, 2: 11.0}, ALONE)
    drawn = lanes(figure)
    assert len({y for _, y, *_ in drawn}) == 3
    steps = [part for part in drawn if part[0] == "CrossDiT"]
    assert [length for *_, length, _ in steps] == pytest.approx([20, 11, 11])
    assert [colour for *_, colour in steps] == [RANK_COLOURS[0], RANK_COLOURS[0], RANK_COLOURS[1]]
    rank_0 = [part for part in drawn if part[1] == steps[1][1]]
    assert [name for name, *_ in rank_0] == ["text", "CrossDiT", "vae", "save"]
    assert [start for _, _, start, *_ in rank_0] == pytest.approx([0, 1, 12, 16])
    assert [length for *_, length, _ in rank_0] == pytest.approx([1, 11, 4, 0.5])
    assert [part[0] for part in drawn if part[1] == steps[2][1]] == ["CrossDiT"]
    assert {"25.5 s", "16.5 s"} <= set(texts(figure))


def test_no_rank_takes_a_step_before_the_text_is_there():
    starts = [start for name, _, start, *_ in lanes(speed.whole_run({4: 11.0}, ALONE)) if name == "CrossDiT"]
    assert starts == pytest.approx([1, 1, 1, 1])


def test_latency_stands_between_its_two_limits():
    seconds = {4: 1e-4, 32: 3e-4, 1024: 2e-4, 2**20: 1e-2}
    found = curves(speed.latency(seconds).axes[0])
    assert found["measured"] == [1e-4, 3e-4, 2e-4, 1e-2]
    assert found["latency: 200 µs"] == [2e-4] * 4
    assert found["bandwidth: 105 MB in a second"] == pytest.approx([4e-2 / 2**20, 1e-2 / 2**15, 1e-2 / 1024, 1e-2])


@pytest.mark.parametrize(
    "figure",
    [
        speed.speedups(SECONDS),
        speed.amdahl({"a step": 0.864}),
        speed.whole_run({1: 480.0, 2: 258.0, 4: 146.0}, ALONE),
        speed.latency({4: 1e-4, 2**24: 1e-2}),
    ],
)
def test_text_is_large_enough_and_inside_the_figure(figure):
    assert_text_is_readable(figure)
