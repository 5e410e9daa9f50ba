"""Boxes go to views and back; label maps against the literal loop and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.test_inference import CLASSES, IMAGES, random_view, whole_view
from tests.oracles import inference as oracle
from wsod_jax.ops.views import label_map, to_original, to_view
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
