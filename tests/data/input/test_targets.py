"""Boxes to learn from: they move with the pixels, and are in the batches of a `BoxSet` alone."""

import io
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.pipeline import train_batches, view_batches
from wsod_jax.data.input.plan import Order
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import BoxSet, ImageBoxes, ImageRecord, ImageSet

SIZES = [(60, 90), (90, 60), (64, 64), (48, 110)]
BOXES = [
    [(10, 20, 40, 50), (60, 5, 90, 60)],
    [(0, 0, 30, 30)],
    [],
    [(30, 8, 100, 40), (5, 5, 5, 20), (1, 1, 12, 9)],  # the second has no area
]
THREADS = Loading(loader="threads")


def record(index):
    """An image that is white inside its first box and black elsewhere."""
    height, width = SIZES[index]
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in BOXES[index][:1]:
        pixels[y1:y2, x1:x2] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageRecord(f"i{index}", file.getvalue, height, width, (1, index % 2))


def image_boxes(boxes, *, ignore=(), weights=None):
    count = len(boxes)
    return ImageBoxes(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(count, dtype=np.int32) % 2,
        np.isin(np.arange(count), ignore),
        weights,
    )


@pytest.fixture
def box_set():
    images = ImageSet("set", ("cat", "dog"), tuple(record(i) for i in range(4)))
    last = image_boxes(BOXES[3], ignore=(2,), weights=np.float32([0.5, 1, 0.25]))
    return BoxSet(images, (*map(image_boxes, BOXES[:3]), last), "annotations")


@pytest.fixture
def proposals(box_set):
    sizes = {r.image_id: (r.height, r.width) for r in box_set.images.records}
    boxes = {i: np.float32([[0, 0, 20, 30], [5, 5, 40, 40]]) for i in sizes}
    return ProposalSet.from_images(sizes, boxes, None, generator="test")


def batches(data, count=8, *, proposals=None, canvases=None, loading=THREADS, **order):
    stream = train_batches(
        data,
        proposals,
        canvases=canvases or Canvases((48, 64), multiple=8),
        order=Order(**{"batch_size": 2, "seed": 3} | order),
        loading=loading,
    )
    taken = list(itertools.chain.from_iterable(itertools.islice(stream, count)))
    stream.close()
    return taken, stream.counts


VIEWS = [
    (Canvases((48, 64), multiple=8), None),
    (Canvases((40,), "long", multiple=8), None),
    (Canvases((48, 64), "warp"), None),
    (Canvases((48,), "short", multiple=8, crop_margin=24), None),
    (Canvases((48, 64), "warp", crop_margin=40), None),
    (Canvases((48, 64), multiple=8), (0.9, 0.9)),
    (Canvases((48, 64), "short", multiple=8), (0.4, 0.8)),
    (Canvases((40,), "long", multiple=8), (0.5, 1.0)),
    (Canvases((48, 64), "warp"), (0.5, 0.7)),
]


@pytest.mark.parametrize(("canvases", "crop"), VIEWS)
def test_targets_by_hand(box_set, canvases, crop):
    seen = set()
    for batch in batches(box_set, 24, canvases=canvases, crop=crop)[0]:
        targets = batch.targets
        assert targets.boxes.shape == (2, 3, 4) and targets.boxes.dtype == np.float32
        for i, index in enumerate(batch.image_index):
            expected = []
            height, width = batch.image_size[i]
            left, top = batch.views.offset[i]
            sx, sy = batch.views.scale[i]
            for x1, y1, x2, y2 in BOXES[index] if index >= 0 else []:
                xs = [min(max(x * sx - left, 0), width) for x in (x1, x2)]
                ys = [min(max(y * sy - top, 0), height) for y in (y1, y2)]
                if batch.views.flipped[i]:
                    xs = [width - xs[1], width - xs[0]]
                expected.append((xs[0], ys[0], xs[1], ys[1]))
            count = len(expected)
            np.testing.assert_allclose(
                targets.boxes[i, :count], np.reshape(expected, (-1, 4)), atol=1e-4
            )
            shown = [x2 > x1 and y2 > y1 for x1, y1, x2, y2 in expected]
            assert targets.mask[i].tolist() == shown + [False] * (3 - count)
            seen.add((int(index), bool(batch.views.flipped[i]), tuple(shown)))
    assert {(index, flip) for index, flip, _ in seen} >= set(
        itertools.product(range(4), (False, True))
    )


@pytest.mark.parametrize(("canvases", "crop"), VIEWS)
def test_targets_lie_where_the_pixels_are(box_set, canvases, crop):
    checked = 0
    for batch in batches(box_set, 24, canvases=canvases, crop=crop)[0]:
        for i in np.flatnonzero(batch.targets.mask[:, 0]):
            height, width = batch.image_size[i]
            white = batch.image[i, :height, :width, 0] > 127
            x1, y1, x2, y2 = batch.targets.boxes[i, 0]
            if min(x2 - x1, y2 - y1) < 3:
                continue  # resizing blurs its edges away
            rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose([x1, y1, x2, y2], found, atol=1.01)
            checked += 1
    assert checked > 15


def test_padding_weights_ignore_and_counts(box_set):
    taken, counts = batches(box_set, 2, batch_size=4, canvases=Canvases((48,), "warp"))
    for batch in taken:
        targets, rows = batch.targets, {int(i): row for row, i in enumerate(batch.image_index)}
        last, first, empty = rows[3], rows[0], rows[2]
        assert targets.mask[last].tolist() == [True, False, True]  # one has no area
        assert targets.ignore[last].tolist() == [False, False, True]
        assert targets.weights[last].tolist() == [0.5, 1, 0.25]
        assert targets.classes[last].tolist() == [0, 1, 0]
        assert targets.weights[first].tolist() == [1, 1, 0]
        assert targets.mask[first].tolist() == [True, True, False]
        assert not targets.ignore[first].any()
        # An image without boxes shows background: it is used.
        assert batch.image_mask.all() and not targets.mask[empty].any()
        for array, kind in (
            (targets.classes, np.int32),
            (targets.weights, np.float32),
            (targets.ignore, bool),
            (targets.mask, bool),
        ):
            assert array.shape == (4, 3) and array.dtype == kind
    assert counts["targets"] == 2 * 5 and counts["hidden_targets"] == 2 * 1


def test_a_window_hides_the_boxes_outside(box_set):
    far = BoxSet(
        box_set.images.select([2]), (image_boxes([(0, 0, 20, 20), (0, 0, 64, 64)]),), "annotations"
    )
    canvases = Canvases((32,), "warp", crop_margin=32)  # a quarter of the image
    taken, counts = batches(far, 30, batch_size=1, canvases=canvases)
    small = np.array([batch.targets.mask[0, 0] for batch in taken])
    assert 3 < small.sum() < 20 and all(batch.targets.mask[0, 1] for batch in taken)
    assert counts["hidden_targets"] == (~small).sum() and counts["targets"] == 30 + small.sum()
    for batch in taken:
        np.testing.assert_array_equal(batch.targets.boxes[0, 1], [0, 0, 32, 32])
        assert batch.image_mask.all()


def test_unreadable_images_and_fillers_have_no_targets(box_set):
    broken = ImageRecord("i0", lambda: b"no image", *SIZES[0], (1, 0))
    images = ImageSet("set", ("cat", "dog"), (broken, *box_set.images.records[1:]))
    taken, counts = batches(BoxSet(images, box_set.boxes, "annotations"), 6)
    masked = [(batch, i) for batch in taken for i in np.flatnonzero(~batch.image_mask)]
    assert {int(batch.image_index[i]) for batch, i in masked} == {0, -1}
    assert not any(batch.targets.mask[i].any() for batch, i in masked)
    assert counts["bad_images"] > 0


def test_targets_beside_proposals(box_set, proposals):
    without, _ = batches(box_set)
    for batch, bare in zip(batches(box_set, proposals=proposals)[0], without, strict=True):
        np.testing.assert_array_equal(batch.targets.boxes, bare.targets.boxes)
        assert batch.proposals.shape == (2, 2, 4) and bare.proposals is None


def test_only_a_box_set_has_targets(box_set, proposals):
    for given in (None, proposals):
        taken, counts = batches(box_set.images, proposals=given)
        assert all(batch.targets is None for batch in taken)
        assert counts["targets"] == counts["hidden_targets"] == 0
        options = dict(canvases=Canvases((48,)), loading=THREADS)
        assert all(b.targets is None for b in view_batches(box_set.images, given, **options))
        with pytest.raises(TypeError, match="found BoxSet"):
            view_batches(box_set, given, **options)


def test_the_rest_of_a_batch_is_the_same_with_and_without_boxes(box_set, proposals):
    with_boxes, _ = batches(box_set, proposals=proposals)
    labels_alone, _ = batches(box_set.images, proposals=proposals)
    for a, b in zip(with_boxes, labels_alone, strict=True):
        a = a.replace(targets=None)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
