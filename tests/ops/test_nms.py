"""The fixed point equals the greedy walk: always, on ties, duplicates, chains and padding."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import nms as oracle
from wsod_jax.ops.nms import greedy_nms, nms_mask

SLOTS = 12
jitted_nms = jax.jit(nms_mask)


def run(boxes, scores, mask, iou_thr):
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    return np.asarray(jitted_nms(boxes, scores, np.asarray(mask), iou_thr=iou_thr))


corner = st.integers(0, 6)  # few, integer positions: duplicates, ties and exact IoUs abound
box = st.tuples(corner, corner, corner, corner).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
row = st.tuples(box, st.integers(0, 4), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(row, min_size=SLOTS, max_size=SLOTS), st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]))
def test_equals_the_greedy_walk(rows, iou_thr):
    boxes, scores, mask = (np.array(column) for column in zip(*rows, strict=True))
    np.testing.assert_array_equal(
        run(boxes, scores, mask, iou_thr), oracle.nms_mask(boxes, scores, mask, iou_thr)
    )


@pytest.mark.parametrize("iou_thr", [0.1, 0.3, 0.7])
def test_equals_the_greedy_walk_on_many_boxes(iou_thr):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 60, (150, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 40, (150, 2))], axis=1).astype(np.float32)
    boxes[100:] = boxes[:50]
    scores, mask = rng.integers(0, 30, 150), rng.random(150) < 0.9
    keep = run(boxes, scores, mask, iou_thr)
    np.testing.assert_array_equal(keep, oracle.nms_mask(boxes, scores, mask, iou_thr))
    np.testing.assert_array_equal(run(boxes, scores, keep, iou_thr), keep)  # idempotent


def test_a_chain_in_which_each_box_decides_about_the_next():
    start = np.arange(40, dtype=np.float32)  # neighbors overlap by IoU 1/3, others not enough
    boxes = np.stack([start, 0 * start, start + 2, 0 * start + 1], axis=1)
    keep = run(boxes, np.arange(40)[::-1], np.ones(40, bool), 0.2)
    np.testing.assert_array_equal(keep, np.arange(40) % 2 == 0)


def test_overlap_equal_to_the_threshold_survives():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 19]]
    np.testing.assert_array_equal(run(boxes, [3, 2, 1], [True] * 3, 0.5), [True, True, False])


def test_lowest_index_wins_ties_and_masked_boxes_do_nothing():
    boxes = [[0, 0, 5, 5]] * 4
    mask = [False, True, True, False]
    np.testing.assert_array_equal(run(boxes, [9, 1, 1, 1], mask, 0.5), [False, True, False, False])
    assert not run(boxes, [1] * 4, [False] * 4, 0.5).any()
    assert run(np.zeros((4, 4)), [1] * 4, [True] * 4, 0.0).all()  # no area, no overlap


@settings(max_examples=100, deadline=None)
@given(st.lists(row, min_size=SLOTS, max_size=SLOTS), st.sampled_from([0.0, 0.3, 0.5]))
def test_groups_are_walked_one_by_one(rows, iou_thr):
    boxes, scores, mask = (np.array(column) for column in zip(*rows, strict=True))
    groups = np.random.default_rng(int(boxes.sum())).integers(0, 3, SLOTS)
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    keep = jitted_nms(boxes, scores, mask, iou_thr=iou_thr, groups=groups)
    for group in range(3):
        own = groups == group
        expected = oracle.nms_mask(boxes[own], scores[own], mask[own], iou_thr)
        np.testing.assert_array_equal(np.asarray(keep)[own], expected)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(row, max_size=SLOTS),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([None, 1, 3]),
)
def test_the_walk_on_the_host_equals_the_one_on_the_device(rows, iou_thr, limit):
    rows = sorted(rows, key=lambda row: -row[1])
    boxes = np.array([box for box, *_ in rows]).reshape(-1, 4)
    expected = oracle.nms_mask(boxes, -np.arange(len(rows)), np.ones(len(rows), bool), iou_thr)
    found = greedy_nms(boxes, iou_thr=iou_thr, limit=limit)
    np.testing.assert_array_equal(found, np.flatnonzero(expected)[:limit])


def test_a_batch_equals_its_images():
    rng = np.random.default_rng(2)
    boxes = np.sort(rng.integers(0, 9, (3, SLOTS, 2, 2)), axis=2).reshape(3, SLOTS, 4)
    boxes, scores = boxes.astype(np.float32), rng.random((3, SLOTS), dtype=np.float32)
    mask = rng.random((3, SLOTS)) < 0.7
    batched = jax.vmap(functools.partial(nms_mask, iou_thr=0.3))(boxes, scores, mask)
    for i in range(3):
        np.testing.assert_array_equal(batched[i], run(boxes[i], scores[i], mask[i], 0.3))
