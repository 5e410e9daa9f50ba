"""Boxes go to views and back; label maps against the literal loop and by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.test_inference import CLASSES, IMAGES, random_view, whole_view
from tests.oracles import inference as oracle
from wsod_jax.ops.crf import CrfOptions
from wsod_jax.ops.views import class_maps, label_map, to_original, to_view
from wsod_jax.types import FeatureMap


def test_boxes_go_to_views_and_back():
    rng = np.random.default_rng(0)
    batch = random_view(rng, range(IMAGES))
    width = jnp.asarray(batch.image_size[:, 1], jnp.float32)
    for shape in ((IMAGES, 5, 4), (IMAGES, 5, CLASSES, 4)):
        boxes = rng.uniform(0, 90, shape).astype(np.float32)
        back = to_original(to_view(boxes, batch.views, width), batch.views, width)
        np.testing.assert_allclose(back, boxes, atol=1e-3)
    assert not np.allclose(to_view(boxes, batch.views, width), boxes)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("num_views", [1, 3])
def test_label_maps_equal_the_loop(num_views, threshold):
    rng = np.random.default_rng(num_views)
    size, canvas = (23, 37), (40, 70)
    views = [random_view(rng, range(3), size=size, windowed=False) for _ in range(num_views)]
    maps = []
    for view in views:
        cells = np.ceil(view.image_size / 8).astype(np.int32)
        values = rng.integers(0, 5, (3, *(cells.max(axis=0) + 1), CLASSES)) / 4  # ties
        maps.append(FeatureMap(values.astype(np.float32), cells, 8.0))
    found = np.asarray(label_map(maps, views, canvas, threshold))
    assert found.shape == (3, *canvas) and found.dtype == np.uint8
    for b in range(3):
        expected = oracle.label_map(maps, views, b, size, threshold)
        same = found[b][: size[0], : size[1]] == expected
        assert same.mean() > 0.99  # a pixel between two classes may fall to either


@pytest.mark.parametrize("flipped", [False, True])
def test_label_maps_by_hand(flipped):
    """Cells of 8 pixels: the border lies between their centers; ties are of the lower class."""
    view = whole_view((8, 16), flipped=flipped)
    values = np.zeros((2, 1, 3, CLASSES), np.float32)
    values[:, 0, 0, 1], values[:, 0, 1, 2], values[:, 0, 2] = 0.9, 0.9, 7.0
    values = values[:, :, [1, 0, 2]] if flipped else values
    found = FeatureMap(values, np.array([[1, 2], [1, 2]], np.int32), 8.0)
    labels = np.asarray(label_map([found], [view], (8, 16), 0.3))[0]
    assert labels.tolist() == [[2] * 8 + [3] * 8] * 8
    assert not np.asarray(label_map([found], [view], (8, 16), 0.9)).any()  # exclusive
    even = found.replace(features=np.full_like(values, 0.5))
    assert (np.asarray(label_map([even], [view], (8, 16), 0.3)) == 1).all()
    tiny = found.replace(size=np.array([[0, 2], [1, 2]], np.int32))
    labels = np.asarray(label_map([tiny], [view], (8, 16), 0.3))
    assert not labels[0].any() and labels[1].any()


@pytest.mark.parametrize("side", [12, 500])
def test_class_maps_sample_the_mean_of_views(side):
    rng = np.random.default_rng(5)
    size = (15, 24)
    views = [random_view(rng, range(2), size=size, windowed=False) for _ in range(2)]
    maps = []
    for view in views:
        cells = np.ceil(view.image_size / 8).astype(np.int32)
        values = rng.random((2, *(cells.max(axis=0) + 1), CLASSES))
        maps.append(FeatureMap(values.astype(np.float32), cells, 8.0))
    found = class_maps(maps, views, (32, 32), side, None)
    scale = min(1, side / 24)
    rows, columns = int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
    np.testing.assert_array_equal(found.size, [[rows, columns]] * 2)
    for i, j in np.ndindex(rows, columns):
        place = ((i + 0.5) / scale - 0.5, (j + 0.5) / scale - 0.5)
        expected = np.mean(
            [
                oracle._probabilities(one, view, 0, *place)
                for one, view in zip(maps, views, strict=True)
            ],
            axis=0,
        )
        np.testing.assert_allclose(found.maps[0, i, j], expected, atol=1e-4)
    view = found.as_view(views[0])
    labels = label_map([view[0]], [view[1]], (16, 32), 0.4)
    if side == 500:
        direct = label_map(maps, views, (16, 32), 0.4)
        assert (labels == direct)[:, : size[0], : size[1]].mean() > 0.99


def test_class_maps_follow_the_edges_of_the_image_with_a_crf():
    """Left half black, right half white; the map's border lies two pixels beside the edge."""
    size = (16, 24)
    view = whole_view(size)
    image = np.zeros((2, 16, 24, 3), np.float32)
    image[:, :, 12:] = 255
    values = np.full((2, 16, 24, CLASSES), 0.05, np.float32)
    values[:, :, 12:14, 1], values[:, :, 14:, 1] = 0.4, 0.9
    maps = FeatureMap(values, np.array([size, size], np.int32), 1.0)
    batch = dataclasses.replace(view, image=image)
    found = class_maps([maps], [batch], (32, 32), 500, CrfOptions())
    inside = np.asarray(found.maps)[0, :16, :24]
    assert (inside[:, 12:14, 1] > 0.5).mean() > 0.9  # two columns of background are won over
    assert (inside[:, 14:, 1] > 0.5).all() and (inside[:, :12, 1] < 0.5).all()
    assert (inside[..., [0, 2]] < 0.5).all()
