"""Figures show what they should, at any image size, without global state."""

import numpy as np
import pytest
from PIL import Image

from wsod_jax import viz
from wsod_jax.errors import DataError
from wsod_jax.types import PseudoBoxes, RefineTargets
from wsod_jax.viz.canvas import CORE, FALSE, HIT, NEUTRAL, NODE, TRUTH, Canvas

GRAY = np.full((120, 160, 3), 128, np.uint8)
LARGE = np.full((400, 400, 3), 128, np.uint8)  # is not enlarged
BOX = np.array([[20.0, 30.0, 80.0, 90.0]])


def has(figure, color, tolerance=12):
    """Return whether some pixel has about this color."""
    return bool((np.abs(figure.astype(int) - color).max(axis=-1) <= tolerance).any())


def has_at(figure, color, x, y, factor, reach=4):
    """Return whether the color occurs near a point of the original image."""
    x, y = round(x * factor), round(y * factor)
    window = figure[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    return has(window, color)


def test_boxes_lie_where_they_should_and_the_image_is_left_alone():
    image = GRAY.copy()
    figure = viz.draw_boxes(image, BOX, classes=[1], scores=[0.5], class_names=["a", "b"])
    factor = figure.shape[0] / 120
    assert factor == 3 and figure.dtype == np.uint8  # enlarged to at least 360 pixels
    color = viz.class_color(1)
    for x, y in ((20, 60), (80, 60), (50, 90)):
        assert has_at(figure, color, x, y, factor)
    assert not has_at(figure, color, 50, 60, factor)
    assert (image == 128).all()
    np.testing.assert_array_equal(viz.draw_boxes(LARGE, np.zeros((0, 4))), LARGE)


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (500, 2), (40, 40), (600, 900)])
@pytest.mark.parametrize("style", ["solid", "dashed", "corners"])
def test_any_image_size_and_boxes_outside_it(shape, style):
    image = np.zeros((*shape, 3), np.uint8)
    boxes = np.array([[-50, -50, 2000, 2000], [0, 0, 0, 0], [5, 5, 3, 3]], float)
    figure = viz.draw_boxes(image, boxes, scores=[1, 2, 3], classes=[0, 1, 9], style=style)
    assert figure.shape[2] == 3 and max(figure.shape) <= 4096
    assert has(figure, viz.class_color(0))


def test_wrong_images_are_refused():
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((5, 5, 4), np.uint8)):
        with pytest.raises(ValueError, match="needed"):
            Canvas(image)


def test_hits_false_ones_and_truth_differ_in_color():
    def draw(matched, **truth):
        return viz.draw_detections(GRAY, BOX, [0.9], [0], [matched], class_names=["cat"], **truth)

    for matched, color in ((1, HIT), (0, FALSE), (-1, NEUTRAL)):
        figure = draw(matched)
        assert has(figure, color)
        assert not any(has(figure, other) for other in {HIT, FALSE, TRUTH} - {color})
    truth = {"truth_boxes": [[100, 20, 150, 100]], "truth_classes": [0]}
    found, missed = draw(1, **truth, missed=[False]), draw(1, **truth, missed=[True])
    assert has_at(found, TRUTH, 100, 20, 3)
    green = [np.abs(p.astype(int) - TRUTH).max(axis=-1) <= 12 for p in (found, missed)]
    assert green[1].sum() > green[0].sum()  # the label's plate


def test_dashes_leave_gaps_and_corners_leave_sides_open():
    def line(style):
        figure = Canvas(GRAY).boxes(BOX, HIT, style=style, casing=False).array()
        return [has_at(figure, HIT, 20, y, 3, reach=1) for y in np.linspace(30, 90, 61)]

    assert all(line("solid"))
    dashed, corners = line("dashed"), line("corners")
    assert 15 < sum(dashed) < 55 and dashed[0] and dashed[-1]
    assert corners[0] and corners[-1] and not any(corners[25:36])


def test_labels_of_one_place_do_not_cover_each_other():
    dots = np.array([[20, 60, 22, 62], [20, 60, 22, 62]])
    one = Canvas(GRAY).boxes(dots, HIT, labels=["abc", ""]).array()
    two = Canvas(GRAY).boxes(dots, HIT, labels=["abc", "abc"]).array()
    red = [(np.abs(p.astype(int) - HIT).max(axis=-1) <= 12).sum() for p in (one, two)]
    assert red[1] > 1.5 * red[0]


def test_proposals_show_density_and_the_best_of_each_object():
    boxes = np.concatenate([np.repeat(BOX, 50, 0), [[100, 10, 150, 60]]])
    figure = viz.draw_proposals(
        LARGE, boxes, truth_boxes=BOX + 2, best_index=[50], best_iou=[0.123]
    )
    assert has_at(figure, HIT, 100, 40, 1) and has_at(figure, TRUTH, 22, 32, 1)
    bare = viz.draw_proposals(LARGE, boxes).astype(int)
    many, one = bare[60, 20], bare[40, 100]
    assert many[2] - many[0] > one[2] - one[0] > 0  # bluer where more outlines pass
    assert (bare[5, 5] == 128).all()
    assert viz.draw_proposals(LARGE, np.zeros((0, 4))).tolist() == LARGE.tolist()


def test_pseudo_labels_color_cores_nodes_and_members():
    boxes = np.array([[20, 30, 60, 90], [90, 30, 140, 90], [0, 0, 10, 10]], float)
    pseudo = PseudoBoxes(
        boxes=boxes,
        classes=np.array([0, 0, 0]),
        scores=np.array([0.9, 0.4, 0.2]),
        index=np.arange(3),
        is_seed=np.array([True, False, False]),
        mask=np.array([True, True, False]),
    )
    plain = viz.draw_pseudo_labels(GRAY, pseudo)
    assert has_at(plain, CORE, 20, 60, 3) and has_at(plain, NODE, 90, 60, 3)
    assert not has_at(plain, NODE, 10, 10, 3)  # masked slot
    members = viz.draw_pseudo_labels(
        GRAY,
        pseudo,
        proposals=np.array([[25, 25, 70, 100], [95, 20, 150, 80.0]]),
        targets=RefineTargets(
            labels=np.array([1, 0]),
            weights=np.ones(2),
            matched_idx=np.array([0, 1]),
            is_pseudo_box=np.zeros(2, bool),
            source_scores=np.ones(2),
        ),
    )
    assert not np.array_equal(plain[99 * 3 : 101 * 3], members[99 * 3 : 101 * 3])
    np.testing.assert_array_equal(
        plain[:, 145 * 3 :], members[:, 145 * 3 :]
    )  # background: not drawn


def test_graphs_draw_core_nodes_and_rejected():
    figure = viz.draw_graphs(
        GRAY,
        BOX[0],
        neighbors=BOX + 3,
        nodes=[[100, 30, 150, 90]],
        node_distances=[1.5],
        rejected=[[100, 95, 150, 118]],
        rejected_distances=[5.0],
    )
    assert has_at(figure, CORE, 20, 70, 3) and has_at(figure, NODE, 150, 60, 3)


def test_objectness_figures_are_finite_without_any_score():
    nothing = np.zeros((120, 160), np.float32)
    flat = viz.draw_objectness(GRAY, nothing)
    assert flat.std(axis=(0, 1)).max() == 0
    heat = nothing.copy()
    heat[40:80, 60:100] = 2.0
    figure = viz.draw_objectness(
        GRAY, heat, boxes=[[60, 40, 100, 80], [5, 5, 40, 40]], scores=[0.9, 0.2]
    )
    assert has_at(figure, HIT, 60, 60, 3) and has_at(figure, CORE, 40, 38, 3)
    sheet = viz.draw_evolution(GRAY, [nothing, heat], ["step 0", "step 9"])
    assert sheet.shape[1] == 3 * 320 + 4 * 8


def test_contact_sheet_holds_every_figure():
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [np.full((20 + 30 * i, 100, 3), color, np.uint8) for i, color in enumerate(colors)]
    sheet = viz.contact_sheet(images, captions=["long " * 50] * 5, columns=2, cell_px=120)
    assert all(has(sheet, color) for color in colors)
    assert sheet.shape[1] == 2 * 120 + 3 * 8
    assert viz.contact_sheet([]).shape[2] == 3
    single = viz.contact_sheet(images[:1], columns=4, cell_px=None)
    assert single.shape == (20 + 16, 100 + 16, 3)


def test_metric_series_sort_steps_and_keep_the_later_entry():
    entries = [
        {"step": 20, "loss": 3.0, "note": "text"},
        {"step": 10, "loss": 1, "lr": 0.1},
        {"step": 20, "loss": 2.0},
    ]
    series = viz.metric_series(entries)
    assert sorted(series) == ["loss", "lr"]
    assert series["loss"][0].tolist() == [10, 20] and series["loss"][1].tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match="step"):
        viz.metric_series([{"loss": 1}])


def test_training_charts_overlay_runs_and_choose_names():
    steps = np.arange(0, 100, 10)
    runs = {
        name: {
            "loss/mil": (steps, np.exp(-steps / scale)),
            "loss/refine": (steps, np.full(10, np.nan)),
            "lr": (steps, np.full(10, 0.1)),
        }
        for name, scale in (("a", 10), ("b", 50))
    }
    both = viz.plot_training(runs, smoothing=3)
    one = viz.plot_training({"a": runs["a"]})
    wide = viz.plot_training(runs, names=["lr", "loss/"])
    assert both.shape != wide.shape and wide.shape[1] == 3 * one.shape[1]
    color = viz.class_color(1)
    assert has(both, color) and not has(one, color)
    with pytest.raises(DataError, match="loss/mil"):
        viz.plot_training(runs, names=["typo"])
    with pytest.raises(DataError, match="plot"):
        viz.plot_training({})


def test_energy_charts():
    shares, energies = np.array([0.1, 0.3, 0.0]), np.array([0.2, 0.7, np.nan])
    methods = {"a": (shares, energies, np.array([0, 2.0, 0, 0]))}
    nothing = {"b": (shares, np.full(3, np.nan), np.full(4, np.nan))}
    both = viz.plot_energy_by_size(methods | {"b": (shares, energies / 2, np.zeros(4))})
    one = viz.plot_energy_by_size(methods | nothing, title="t")
    assert has(both, viz.class_color(1)) and not has(one, viz.class_color(1))
    assert not has(viz.plot_energy_by_size(nothing), viz.class_color(1))
    runs = {"a": (np.array([0, 4]), np.array([0.2, 0.5]))}
    plain, levels = (viz.plot_energy_over_training(runs, of) for of in ({}, {"p": 0.4}))
    assert has(levels, viz.class_color(1)) and not has(plain, viz.class_color(1))
    gray = viz.plot_energy_over_training(runs, {}, uniform=0.35)
    assert not np.array_equal(gray, plain)


def test_walk_charts_show_the_median_and_bear_zeros():
    moved, apart = np.geomspace(1e-2, 1e-6, 8)[None], np.geomspace(1, 1e-4, 9)[None]
    chart = viz.plot_walks(moved, apart, tolerance=1e-4, num_steps=3)
    assert has(chart, viz.class_color(0))  # the median; the lines of single images are paler
    still = viz.plot_walks(0 * moved, 0 * apart, tolerance=1e-4, num_steps=3)
    assert not np.array_equal(still, chart)


def test_color_key_is_a_line_below_the_figure():
    figure = np.full((40, 600, 3), 7, np.uint8)
    plain = viz.add_color_key(figure, "low", "high")
    noted = viz.add_color_key(figure, "low", "high", "what the ring means")
    assert 40 < plain.shape[0] < noted.shape[0] and plain.shape[1:] == figure.shape[1:]
    assert (plain[:40] == 7).all()
    bar = plain[40 + plain[40:].shape[0] // 2].astype(int)
    assert (bar[:, 2] - bar[:, 0]).argmax() < (bar[:, 0] - bar[:, 2]).argmax()  # blue to red


def test_precision_recall_and_instance_charts():
    curve = (np.array([0.1, 0.5, 0.5]), np.array([1.0, 1.0, 0.6]))
    other = (curve[0], curve[1] / 2)
    chart = viz.plot_precision_recall({"cat": curve, "dog": other}, ap={"cat": 0.5}, title="t")
    assert has(chart, viz.class_color(0)) and has(chart, viz.class_color(1))
    assert not has(viz.plot_precision_recall({}), viz.class_color(0))
    counts = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    bars = viz.plot_instances({"x": counts, "y": counts}, ["a", "b", "never"])
    assert has(bars, viz.class_color(0)) and has(bars, viz.class_color(1))
    with pytest.raises(DataError, match="needed"):
        viz.plot_instances({"x": counts}, ["a"])


def test_no_global_figure_is_left(tmp_path):
    from matplotlib import pyplot

    path = viz.save_image(tmp_path / "deep" / "x.png", viz.plot_precision_recall({}))
    assert Image.open(path).mode == "RGB"
    assert pyplot.get_fignums() == []
