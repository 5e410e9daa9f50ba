"""Detections equal those of literal loops: ties, padding, boxes per class, more slots than candidates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import detect as oracle
from wsod_jax.ops.detect import detect, detect_again
from wsod_jax.types import Detections

ROWS, CLASSES = 10, 3
OPTIONS = {"score_thr": 1.0, "iou_thr": 0.3, "top_k": 8}


def expect(found, boxes, scores, mask, options):
    """Compare the detections of one image with the oracle's."""
    expect_rows(found, oracle.detect(boxes, scores, mask, **options), options["top_k"])


def expect_rows(found, expected, top_k):
    """Compare detections with (score, row, class, box), the best first."""
    count = len(expected)
    assert np.asarray(found.mask).tolist() == [True] * count + [False] * (top_k - count)
    assert np.asarray(found.row)[:count].tolist() == [row for _, row, _, _ in expected]
    assert np.asarray(found.classes)[:count].tolist() == [c for _, _, c, _ in expected]
    np.testing.assert_array_equal(found.scores[:count], [score for score, *_ in expected])
    for slot, (*_, box) in enumerate(expected):
        np.testing.assert_array_equal(found.boxes[slot], box)
    for values in (found.boxes, found.scores, found.classes, found.row):
        assert not np.asarray(values)[count:].any()


def random_image(seed, per_class=False, rows=ROWS):
    """Boxes on a coarse grid and few scores, so that exact overlaps and ties abound."""
    rng = np.random.default_rng(seed)
    shape = (rows, CLASSES, 2) if per_class else (rows, 2)
    low = rng.integers(0, 6, shape)
    boxes = np.concatenate([low, low + rng.integers(0, 6, shape)], axis=-1).astype(np.float32)
    scores = rng.integers(0, 5, (rows, CLASSES)).astype(np.float32)
    return boxes, scores, rng.random(rows) < 0.8


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([-np.inf, 0.0, 1.0, 4.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([1, 8, 50]),
    st.sampled_from([None, 1, 4, 20]),
)
def test_equals_the_loops(seed, per_class, score_thr, iou_thr, top_k, class_top_k):
    image = random_image(seed, per_class)
    options = {"score_thr": score_thr, "iou_thr": iou_thr, "top_k": top_k}
    options["class_top_k"] = class_top_k
    expect(detect(*map(jnp.asarray, image), **options), *image, options)


@pytest.mark.parametrize("per_class", [False, True])
def test_equals_the_loops_on_many_boxes(per_class):
    rng = np.random.default_rng(0)
    shape = (120, CLASSES, 2) if per_class else (120, 2)
    low = rng.uniform(0, 60, shape)
    boxes = np.concatenate([low, low + rng.uniform(5, 40, shape)], axis=-1).astype(np.float32)
    image = boxes, rng.random((120, CLASSES), dtype=np.float32), rng.random(120) < 0.9
    options = {"score_thr": 0.05, "iou_thr": 0.3, "top_k": 100}
    found = detect(*map(jnp.asarray, image), **options)
    assert found.mask.sum() > 60
    expect(found, *image, options)


def test_of_equal_scores_the_lowest_row_comes_first_then_the_lowest_class():
    boxes = np.array([[20, 0, 30, 9], [0, 0, 10, 9], [0, 0, 10, 9]], np.float32)
    found = detect(
        jnp.asarray(boxes), jnp.ones((3, 2)), jnp.ones(3, bool), score_thr=0, iou_thr=0.5, top_k=6
    )
    assert found.mask.tolist() == [True] * 4 + [False] * 2  # row 2 is suppressed by row 1
    assert found.row[:4].tolist() == [0, 0, 1, 1] and found.classes[:4].tolist() == [0, 1, 0, 1]


def test_thresholds_are_exclusive():
    boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 20.0]])  # IoU 1/2
    scores = jnp.array([[0.75], [0.5]])
    found = functools.partial(detect, boxes, scores, jnp.ones(2, bool), top_k=2)
    assert found(score_thr=0.5, iou_thr=0.5).mask.tolist() == [True, False]
    assert found(score_thr=0.49, iou_thr=0.5).mask.tolist() == [True, True]
    assert found(score_thr=0.49, iou_thr=0.49).mask.tolist() == [True, False]


@pytest.mark.parametrize("per_class", [False, True])
def test_one_box_identical_boxes_and_none(per_class):
    box = np.float32([3, 4, 30, 40])
    boxes = np.tile(box, (5, CLASSES, 1) if per_class else (5, 1))
    scores = np.random.default_rng(0).random((5, CLASSES), dtype=np.float32)
    found = detect(
        *map(jnp.asarray, (boxes, scores, np.ones(5, bool))), **OPTIONS | {"score_thr": 0}
    )
    assert found.mask.sum() == CLASSES  # the best of each class
    assert sorted(found.scores[:CLASSES].tolist()) == sorted(scores.max(axis=0).tolist())
    for mask in (np.arange(5) == 2, np.zeros(5, bool)):
        options = OPTIONS | {"score_thr": -np.inf}
        expect(
            detect(*map(jnp.asarray, (boxes, scores, mask)), **options),
            boxes,
            scores,
            mask,
            options,
        )
    empty = detect(jnp.asarray(boxes[:0]), jnp.zeros((0, CLASSES)), jnp.zeros(0, bool), **OPTIONS)
    assert empty.boxes.shape == (8, 4) and not empty.mask.any()


@pytest.mark.parametrize("per_class", [False, True])
def test_padding_is_inert_whatever_it_holds(per_class):
    boxes, scores, mask = random_image(3, per_class)
    found = detect(*map(jnp.asarray, (boxes, scores, mask)), **OPTIONS)
    for value in (np.nan, np.inf, 7.0):
        more = [
            np.concatenate([x, np.full((4, *x.shape[1:]), value, np.float32)])
            for x in (boxes, scores)
        ]
        padded = detect(*map(jnp.asarray, (*more, np.pad(mask, (0, 4)))), **OPTIONS)
        jax.tree.map(np.testing.assert_array_equal, padded, found)


def test_candidates_without_a_number_take_no_part():
    boxes, scores, mask = random_image(4)
    scores[2, 1] = np.nan
    found = detect(*map(jnp.asarray, (boxes, scores, mask)), **OPTIONS)
    expect(found, boxes, np.nan_to_num(scores, nan=-1), mask, OPTIONS)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_batch_is_its_images(per_class):
    images = [random_image(seed, per_class) for seed in range(3)]
    batch = detect(*(jnp.asarray(np.stack(x)) for x in zip(*images, strict=True)), **OPTIONS)
    for n, image in enumerate(images):
        expect(jax.tree.map(lambda x, n=n: x[n], batch), *image, OPTIONS)


def test_permuting_rows_permutes_the_rows_found():
    rng = np.random.default_rng(5)
    boxes, _, mask = random_image(5)
    scores = rng.permutation(ROWS * CLASSES).reshape(ROWS, CLASSES).astype(np.float32)  # no ties
    order = rng.permutation(ROWS)
    found = detect(*map(jnp.asarray, (boxes, scores, mask)), **OPTIONS)
    shuffled = detect(*map(jnp.asarray, (boxes[order], scores[order], mask[order])), **OPTIONS)
    np.testing.assert_array_equal(order[shuffled.row][shuffled.mask], found.row[found.mask])
    np.testing.assert_array_equal(shuffled.scores, found.scores)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([1, 6, 20]))
def test_detecting_again_equals_the_loops(seed, iou_thr, top_k):
    """Slots in any order, some empty; rows decide between equal scores."""
    rng = np.random.default_rng(seed)
    boxes, scores, _ = random_image(seed, rows=12)
    slots = Detections(
        boxes, scores[:, 0], rng.integers(0, 2, 12), rng.random(12) < 0.8, rng.permutation(12)
    )
    columns = (slots.scores.tolist(), slots.row.tolist(), slots.classes.tolist(), slots.boxes)
    real = [
        one for one, is_real in zip(zip(*columns, strict=True), slots.mask, strict=True) if is_real
    ]
    expected = oracle.detect_again(real, iou_thr, top_k)
    options = dict(iou_thr=iou_thr, top_k=top_k, num_classes=2, class_top_k=12)
    found = detect_again(jax.tree.map(jnp.asarray, slots), **options)
    expect_rows(found, expected, top_k)
    batch = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), slots)
    for one in range(2):
        of_batch = jax.tree.map(lambda x, one=one: x[one], detect_again(batch, **options))
        expect_rows(of_batch, expected, top_k)
    many = 2100  # too many slots to compare all with all: class by class
    padded = jax.tree.map(lambda x: jnp.resize(x, (many, *x.shape[1:])), slots)
    padded = padded.replace(mask=jnp.pad(jnp.asarray(slots.mask), (0, many - 12)))
    expect_rows(detect_again(padded, **options), expected, top_k)


@pytest.mark.parametrize("rows", [400, 1100])
def test_memory_does_not_grow_with_the_classes(rows):
    """As many classes at a time as 2^20 overlaps allow, at least one; each takes 4 rows^2 bytes."""

    def temporary(num_classes):
        shapes = [(rows, 4), (rows, num_classes)]
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        program = detect.lower(*arguments, jax.ShapeDtypeStruct((rows,), bool), **OPTIONS).compile()
        return program.memory_analysis().temp_size_in_bytes

    at_once = max(1, 2**20 // rows**2)
    assert temporary(40) < 1.5 * temporary(at_once) + 40 * rows * 64


def test_nothing_carries_a_gradient():
    boxes, scores, mask = map(jnp.asarray, random_image(6))

    def total(boxes, scores):
        found = detect(boxes, scores, mask, **OPTIONS)
        return jnp.sum(found.boxes) + jnp.sum(found.scores)

    assert not any(np.any(x) for x in jax.grad(total, argnums=(0, 1))(boxes, scores))


def test_misuse_is_refused():
    boxes, scores, mask = map(jnp.asarray, random_image(7))
    with pytest.raises(ValueError, match=r"boxes.*\(9, 4\).*\(10, 4\).*\(10, 3, 4\)"):
        detect(boxes[:9], scores, mask, **OPTIONS)
    with pytest.raises(ValueError, match=r"\btop_k.* 0"):
        detect(boxes, scores, mask, **OPTIONS | {"top_k": 0})
    with pytest.raises(ValueError, match="class_top_k.* 0"):
        detect(boxes, scores, mask, **OPTIONS, class_top_k=0)


def test_lowers_for_accelerators():
    image = map(jnp.asarray, random_image(8))
    exported = jax.export.export(detect, platforms=["tpu", "cuda"])(*image, **OPTIONS)
    assert exported.platforms == ("tpu", "cuda")
