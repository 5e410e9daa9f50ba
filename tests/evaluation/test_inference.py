"""Views are merged in original pixels; selection equals the literal rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import evals as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import MergedImage, infer, original_boxes
from wsod_jax.evaluation.selection import adaptive_thresholds, select, suppress
from wsod_jax.types import Batch, Predictions, Views

ROWS, CLASSES = 6, 3


def view(index, boxes, *, scale=1.0, flip=False, width=100, mask=None, representative=None):
    """Make one batch of one image: `boxes` are original pixels, moved into the view."""
    moved = np.asarray(boxes, np.float32) * np.float32(scale)
    width = round(width * scale)
    if flip:
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1)
    rows = len(moved)
    return Batch(
        image=None,
        image_size=np.array([[round(80 * scale), width]], np.int32),
        image_mask=np.array([True]),
        image_index=np.array([index], np.int32),
        proposals=moved[None],
        proposal_mask=np.ones((1, rows), bool) if mask is None else np.asarray(mask)[None],
        representative=np.arange(rows)[None] if representative is None else representative,
        views=Views(
            scale=np.full((1, 2), scale, np.float32),
            offset=np.zeros((1, 2), np.int32),
            flipped=np.array([flip]),
            original_size=np.array([[80, 100]], np.int32),
        ),
    )


def join(*batches):
    """Stack batches of one image into one batch."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


@jax.jit
def width_step(batch):
    """Score every row by its box's width and height in the view; masked rows get a wrong score."""
    size = batch.proposals[..., 2:] - batch.proposals[..., :2]
    scores = jnp.stack([size[..., 0], size[..., 1], size.sum(-1)], -1)
    scores = jnp.where(batch.proposal_mask[..., None], scores, -99.0)
    return Predictions(batch.proposals, scores, batch.proposal_mask, scores.sum(1))


BOXES = np.array([[i, 2 * i, 3 * i + 10, 2 * i + 8] for i in range(ROWS)], np.float32)


def test_views_come_back_to_original_pixels_and_average():
    views = [(1.0, False), (1.0, True), (2.5, False), (2.5, True)]
    batches = [view(7, BOXES, scale=scale, flip=flip) for scale, flip in views]
    (image,) = infer(width_step, batches, num_views=4)
    assert image.image_index == 7 and image.mask.all()
    np.testing.assert_allclose(image.boxes, BOXES, atol=1e-4)
    mean_scale = np.mean([scale for scale, _ in views])
    np.testing.assert_allclose(image.scores[:, 0], mean_scale * (10 + 2 * np.arange(ROWS)), 1e-6)
    (summed,) = infer(width_step, batches, num_views=4, merge="sum")
    np.testing.assert_allclose(summed.scores, 4 * image.scores, rtol=1e-6)
    np.testing.assert_allclose(image.image_scores, image.scores.sum(0), rtol=1e-5)


def test_union_keeps_the_rows_of_all_views():
    batches = [view(0, BOXES), view(0, BOXES, flip=True)]
    (image,) = infer(width_step, batches, num_views=2, merge="union")
    np.testing.assert_allclose(image.boxes, np.concatenate([BOXES, BOXES]), atol=1e-4)
    assert image.scores.shape == (2 * ROWS, CLASSES)


def test_merged_rows_take_their_representatives_score_and_padding_stays_masked():
    mask = np.array([True, True, False, True, False, False])
    representative = np.array([[0, 1, 1, 3, 3, 5]])  # row 5 is padding: it names itself
    (image,) = infer(
        width_step, [view(0, BOXES, mask=mask, representative=representative)], num_views=1
    )
    assert image.mask.tolist() == [True] * 5 + [False]
    np.testing.assert_array_equal(image.scores[2], image.scores[1])
    np.testing.assert_array_equal(image.scores[4], image.scores[3])
    assert not image.scores[5].any()
    np.testing.assert_allclose(image.boxes[2], BOXES[2])


def test_row_missing_in_one_view_is_averaged_over_the_others():
    mask = np.array([True] * 5 + [False])
    batches = [view(0, BOXES), view(0, BOXES, scale=2.0, mask=mask)]
    (image,) = infer(width_step, batches, num_views=2)
    assert image.mask.all()
    np.testing.assert_allclose(image.scores[5, 0], 20.0)
    np.testing.assert_allclose(image.boxes[5], BOXES[5])


def test_batches_of_several_images_and_fillers_equal_single_images():
    alone = []
    for index in (4, 2, 9):
        views = [view(index, BOXES + index), view(index, BOXES + index, flip=True)]
        alone += list(infer(width_step, views, num_views=2))
    filler = view(0, BOXES).replace(image_mask=np.array([False]))
    groups = [
        join(view(4, BOXES + 4), view(2, BOXES + 2)),
        join(view(4, BOXES + 4, flip=True), view(2, BOXES + 2, flip=True)),
        join(view(9, BOXES + 9), filler),
        join(view(9, BOXES + 9, flip=True), filler),
    ]
    together = list(infer(width_step, groups, num_views=2))
    assert [image.image_index for image in together] == [4, 2, 9]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_next_batch_is_dispatched_before_the_previous_is_fetched():
    events = []

    class Watched:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.name}")
            return self.value

    def step(batch):
        name = int(batch.image_index[0])
        events.append(f"dispatch {name}")
        return Predictions(None, None, None, Watched(name, np.zeros((1, 2), np.float32)))

    images = list(infer(step, [view(i, BOXES) for i in range(3)], num_views=1))
    assert events == [
        "dispatch 0",
        "dispatch 1",
        "fetch 0",
        "dispatch 2",
        "fetch 1",
        "fetch 2",
    ]
    assert images[0].boxes is None and images[0].image_scores.shape == (2,)


def test_missing_views_and_unknown_merges_are_errors():
    with pytest.raises(DataError, match="1 of 2 views"):
        list(infer(width_step, [view(3, BOXES)], num_views=2))
    with pytest.raises(ValueError, match="allowed"):
        list(infer(width_step, [], num_views=2, merge="max"))
    assert list(infer(width_step, [], num_views=2)) == []


def test_compilations_are_one_per_canvas():
    step = jax.jit(lambda batch: Predictions(None, None, None, batch.image_index[:, None] * 1.0))
    canvases = [view(i, np.tile(BOXES, (1 + i % 2, 1))) for i in range(6)]
    list(infer(step, canvases, num_views=1))
    assert step._cache_size() == 2


def test_original_boxes_undo_flip_and_anisotropic_scale():
    found = original_boxes(
        np.array([[60.0, 10, 80, 30]]), scale=np.array([2.0, 5.0]), flipped=True, width_px=100
    )
    np.testing.assert_allclose(found, [[10, 2, 20, 6]])


def random_images(rng, num_images, rows=12):
    """Draw merged images with tied scores and masked rows."""
    for index in rng.permutation(num_images):
        corner = rng.integers(0, 8, (rows, 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, 8, (rows, 2))], axis=1)
        yield MergedImage(
            image_index=int(index),
            boxes=boxes.astype(np.float32),
            scores=(rng.integers(0, 20, (rows, CLASSES)) / 16).astype(np.float32),
            mask=rng.random(rows) < 0.8,
            image_scores=np.full(CLASSES, index, np.float32),
        )


@pytest.mark.parametrize("average_per_image", [None, 2, 40])
def test_selection_equals_the_released_loop(average_per_image):
    images = list(random_images(np.random.default_rng(0), num_images=5))
    results = select(
        images,
        num_images=6,
        num_classes=CLASSES,
        top_k=8,
        nms_thr=0.3,
        average_per_image=average_per_image,
    )
    expected = []
    for c in range(CLASSES):
        scores = [image.scores[image.mask, c].tolist() for image in images]
        limit = 10**9 if average_per_image is None else average_per_image * 6
        thr = oracle.running_heap_threshold(scores, limit, top_k=8)
        assert results.score_thrs[c] == np.float32(thr)
        for image in images:
            rows = [r for r in range(len(image.mask)) if image.mask[r]]
            rows = sorted(rows, key=lambda r: (-image.scores[r, c], r))[:8]
            rows = [r for r in rows if image.scores[r, c] > thr]
            kept = oracle.greedy_nms(
                image.boxes[rows].tolist(), image.scores[rows, c].tolist(), 0.3
            )
            for i in kept:
                row = rows[i]
                expected.append((image.image_index, c, image.scores[row, c], *image.boxes[row]))
    table = results.detections
    found = np.c_[table.image_index, table.classes, table.scores, table.boxes]
    order = sorted(range(len(expected)), key=lambda i: expected[i][:2])  # stable: score order stays
    np.testing.assert_array_equal(found, np.array([expected[i] for i in order], np.float32))


def test_top_boxes_are_the_best_candidates_whatever_the_thresholds():
    images = list(random_images(np.random.default_rng(1), num_images=4))
    results = select(images, num_images=5, num_classes=CLASSES, top_k=4, score_thr=99.0)
    assert len(results.detections) == 0
    assert results.top_valid[:4].all() and not results.top_valid[4].any()
    for image in images:
        masked = np.where(image.mask[:, None], image.scores, -np.inf)
        best = masked.argmax(axis=0)
        np.testing.assert_array_equal(results.top_boxes[image.image_index], image.boxes[best])
        np.testing.assert_array_equal(results.top_scores[image.image_index], masked.max(axis=0))
    assert np.isnan(results.image_scores[4]).all()
    np.testing.assert_array_equal(results.image_scores[:4, 0], np.arange(4))


def test_selection_compiles_once():
    before = suppress._cache_size()
    images = random_images(np.random.default_rng(2), num_images=3, rows=11)
    select(images, num_images=3, num_classes=CLASSES, top_k=5)
    assert suppress._cache_size() == before + 1


def test_selection_of_nothing():
    empty = MergedImage(0, np.zeros((3, 4), np.float32), np.zeros((3, 2)), np.zeros(3, bool), None)
    classifier = MergedImage(1, None, None, None, np.ones(2, np.float32))
    for images in ([], [empty], [classifier]):
        results = select(images, num_images=2, num_classes=2, average_per_image=40)
        assert len(results.detections) == 0 and not results.top_valid.any()
    assert results.image_scores[1].tolist() == [1, 1]


def test_repeated_and_diverged_images_are_errors():
    image = MergedImage(0, np.zeros((1, 4)), np.full((1, 2), np.nan), np.ones(1, bool), None)
    with pytest.raises(DataError, match="image 0 are not finite"):
        select([image], num_images=1, num_classes=2)
    nothing = MergedImage(0, None, None, None, None)
    with pytest.raises(DataError, match="twice"):
        select([nothing, nothing], num_images=1, num_classes=2)


def test_adaptive_threshold_needs_more_candidates_than_the_limit():
    scores = [np.array([0.1, 0.4, 0.3], np.float32)]
    assert adaptive_thresholds(scores, 3)[0] == -np.inf
    assert adaptive_thresholds(scores, 2)[0] == np.float32(0.3)
