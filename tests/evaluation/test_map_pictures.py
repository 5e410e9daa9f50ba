"""Pictures of maps: one file per image and a sheet, whatever the maps look like."""

import numpy as np
import pytest

from tests.evaluation.test_maps import merged, read, view
from wsod_jax.data.images import read_image
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import ViewMaps
from wsod_jax.evaluation.map_pictures import draw_located, picture_maps
from wsod_jax.evaluation.maps import MapReading
from wsod_jax.evaluation.metrics.tables import TruthTable

NAMES = ("cat", "dog", "hen")
SHAPES = {0: (7, 9), 1: (6, 4), 2: (1, 1), 3: (5, 8)}  # of the set of tests/evaluation/test_maps.py


def pixels(index):
    return np.random.default_rng(index).integers(0, 256, (*SHAPES[index], 3), np.uint8)


def empty(cells):
    return ViewMaps(np.zeros((*cells, 3), np.float32), np.zeros(cells, np.float32), (32, 32))


TRUTH = TruthTable(
    [0, 0, 2], [1, 2, 0], [[1, 1, 5, 6], [0, 0, 9, 7], [0, 0, 1, 1]], [0, 1, 0], 4, 3
)


@pytest.mark.parametrize("truth", [None, TRUTH], ids=["unknown", "known"])
@pytest.mark.parametrize(
    ("scores", "panels"),
    [([0.9, 0.8, 0.7], 5), ([0.9, 0.1, 0.2], 3), ([0.1, 0.4, 0.2], 3), ([0.2, 0.2, 0.2], 3)],
)
@pytest.mark.parametrize(
    ("index", "maps"),
    [(0, view(1)), (1, empty((2, 3))), (2, view(3)), (2, empty((0, 0))), (3, empty((0, 4)))],
    ids=["wide", "constant", "dot", "no cells of a dot", "no rows"],
)
def test_a_row_has_the_image_its_proposal_map_and_its_classes(index, maps, scores, panels, truth):
    """Where no class is examined, one all the same."""
    located = read([merged(index, [maps], scores)], wanted=None)
    picture = draw_located(pixels(index), index, located, MapReading(), truth, class_names=NAMES)
    panels = 3 if located.too_small[index] else panels
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    cell = (picture.shape[1] - 8) / panels  # 320 pixels for the longer side, and a gap of 8
    assert cell == int(cell) and min(SHAPES[index]) / max(SHAPES[index]) * 319 <= cell - 8 <= 320
    assert picture[:320].std() > 10


def test_only_the_best_three_of_many_classes_are_shown():
    located = read([merged(0, [view(1)], [0.9, 0.8, 0.7])])
    three = draw_located(pixels(0), 0, located, MapReading(), None, class_names=NAMES)
    assert (three.shape[1] - 8) % 5 == 0
    fewer = read([merged(0, [view(1)], [0.9, 0.8, 0.3])], wanted=None)
    two = draw_located(pixels(0), 0, fewer, MapReading(), None, class_names=NAMES)
    assert two.shape[1] - 8 == (three.shape[1] - 8) // 5 * 4
    width = (three.shape[1] - 8) // 5
    np.testing.assert_array_equal(two[:, : 4 * width], three[:, : 4 * width])


def test_files_of_images_that_were_read_and_predicted(tmp_path):
    def unreadable():
        raise DataError("broken file")

    located = read([merged(i, [view(i)], [0.9, 0.1, 0.8]) for i in (0, 2, 3)])
    loads = [lambda: pixels(0), lambda: pixels(1), unreadable, lambda: pixels(3)]
    ids = ("a", "b", "c", "below/d")
    (picture,) = picture_maps(
        tmp_path, loads, located, MapReading(), TRUTH, image_ids=ids, class_names=NAMES
    )
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.png", "below_d.png"]
    sheet = read_image(picture.path)
    rows = [read_image(path) for path in sorted((tmp_path / "maps").iterdir())]
    assert sheet.shape[0] > sum(row.shape[0] for row in rows)
    for given, what in ((loads, read([])), ([], located)):
        ids_of = ids[: len(given)]
        folder = tmp_path / "none"
        options = dict(image_ids=ids_of, class_names=NAMES)
        assert picture_maps(folder, given, what, MapReading(), None, **options) == []
        assert not folder.exists()
