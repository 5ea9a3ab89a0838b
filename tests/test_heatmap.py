"""Does the picture of a sweep hold the right numbers in the right cells, and can it be read?"""

import itertools
import json

import numpy as np
import pytest
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg

from decode import comparison, grid, quality
from train import figures, heatmap


def results(found, failed=(), names=("logprob", "tokens", "stopped")):
    """The numbers of a sweep whose measures are made up: `stopped` is the same in every arm."""
    rows = []
    for i, arm in enumerate(found.arms):
        values = dict.fromkeys(names, -100.0 * i)
        values.update(logprob=-i * i / 7, tokens=10.0 + i, stopped=0.25)
        measures = {
            name: quality.Estimate(values[name], values[name] + np.array([-0.1, 0.0, 0.1]))
            for name in names
        }
        rows.append(
            comparison.Result(arm, None, "broken")
            if i in failed
            else comparison.Result(arm, measures)
        )
    return comparison.numbers(found, rows, found.arms[0], 3)


GRIDS = {
    "two": {"top_k": "0,50", "temperature": "0.5,0.8,1"},
    "one": {"temperature": "0.25,0.5,0.75,1"},
    "texts": {"preset": "hf,strict,llama.cpp", "top_p": "0.9,0.95"},
    "three": {"repetition_penalty": "1,1.2", "temperature": "0.5,0.8,1,2", "top_p": "0.8,0.9,1"},
}
ROWS = [{"top_k": 5}, {"top_p": 0.9}, {"temperature": 0.7, "min_p": 0.1}, {}]


def made(name):
    return grid.of(ROWS) if name == "arms" else grid.arms(GRIDS[name])


def test_each_arm_has_its_cell_and_the_longer_axis_lies():
    numbers = heatmap.data(results(made("two")))
    assert [axis["name"] for axis in numbers["axes"]] == ["top_k", "temperature"]
    (logprob, tokens) = numbers["measures"]
    assert tokens["values"] == [[10, 11, 12], [13, 14, 15]]
    assert logprob["values"][1][2] == -25 / 7
    turned = heatmap.data(results(grid.arms(dict(reversed(GRIDS["two"].items())))))
    assert [axis["name"] for axis in turned["axes"]] == ["top_k", "temperature"]
    assert turned["measures"][1]["values"] == [[10, 12, 14], [11, 13, 15]]


def test_one_axis_has_intervals():
    numbers = heatmap.data(results(made("one")))
    assert [axis["name"] for axis in numbers["axes"]] == ["temperature"]
    assert numbers["measures"][1]["values"] == [[10, 11, 12, 13]]
    half = quality.Estimate(10.0, np.array([9.9, 10.0, 10.1])).half_width()
    np.testing.assert_allclose(numbers["measures"][1]["half_widths"], [[half] * 4])


def test_of_three_axes_the_shortest_is_averaged_over_and_said_so():
    """Arm (i, j, k) has 10 + 12 i + 3 j + k tokens, so that the mean over i adds 6."""
    numbers = heatmap.data(results(made("three")))
    assert [axis["name"] for axis in numbers["axes"]] == ["top_p", "temperature"]
    assert numbers["averaged"] == ["repetition_penalty"]
    expected = [[16.0 + 3 * j + k for j in range(4)] for k in range(3)]
    assert numbers["measures"][1]["values"] == expected
    texts = [text.get_text() for text in drawn(numbers).texts]
    assert any("mean over repetition_penalty" in text.replace("\n", " ") for text in texts)


def test_arms_that_are_no_grid_stand_on_one_axis():
    numbers = heatmap.data(results(made("arms")))
    (axis,) = numbers["axes"]
    assert axis == {
        "name": "arm",
        "values": ["top_k=5", "top_p=0.9", "temperature=0.7, min_p=0.1", "defaults"],
    }
    assert numbers["measures"][1]["values"] == [[10, 11, 12, 13]]


def test_what_is_the_same_everywhere_is_told_and_not_drawn():
    numbers = heatmap.data(results(made("two")))
    assert [(each["name"], each["value"]) for each in numbers["constant"]] == [("stopped", 0.25)]
    note = drawn(numbers).texts[-1].get_text().replace("\n", " ")
    assert note.endswith("No difference in share that stopped 0.250.")


def test_an_arm_that_failed_leaves_its_cell_empty():
    numbers = heatmap.data(results(made("two"), failed=(4,)))
    assert numbers["measures"][1]["values"] == [[10, 11, 12], [13, None, 15]]
    texts = [text.get_text() for text in drawn(numbers).axes[1].texts]
    assert texts == ["10.0", "11.0", "12.0", "13.0", "-", "15.0"]
    drawn(heatmap.data(results(made("one"), failed=(2,))))
    drawn(heatmap.data(results(made("arms"), failed=(0, 1, 2, 3))))


def test_the_picture_and_its_numbers_are_written_and_the_same_each_time(tmp_path):
    found = results(made("two"))
    first = heatmap.draw(found, tmp_path / "a")
    again = heatmap.draw(found, tmp_path / "b")
    assert first == tmp_path / "a" / "figures" / "sweep.png"
    assert first.read_bytes() == again.read_bytes()
    assert json.loads(first.with_suffix(".json").read_text("utf-8")) == heatmap.data(found)


def drawn(numbers):
    with style.context(["default", figures.STYLE]):
        figure = heatmap.panels(numbers)
        FigureCanvasAgg(figure).draw()
    return figure


def written(axes):
    """Every text of a panel; matplotlib also keeps the labels of ticks that are out of sight."""
    yield from (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts)
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        yield from (t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high)


@pytest.mark.parametrize("name", [*GRIDS, "arms"])
def test_no_text_runs_out_of_the_picture_or_into_another(name):
    found = results(made(name), names=tuple(quality.COLUMNS))
    for measure in found["measures"]:
        measure["title"] = "log-probability (nats/token)"  # the longest
    figure = drawn(heatmap.data(found))
    texts = [*figure.texts, *itertools.chain.from_iterable(map(written, figure.axes))]
    renderer = figure.canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    width, height = figure.canvas.get_width_height()
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, two)
