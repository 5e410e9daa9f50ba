"""Geometry of boxes against literal loops; NumPy stays NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import boxes as oracle
from wsod_jax.ops.boxes import (
    box_area,
    box_coverage,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    flip_boxes,
    pairwise_iou,
    scale_boxes,
    union_area,
)


def random_boxes(rng, num, span=50.0):
    low = rng.uniform(0, span, (num, 2))
    return np.concatenate([low, low + rng.uniform(0, span, (num, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_iou_matches_oracle_and_keeps_the_kind_of_array(convert):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 20), random_boxes(rng, 30)
    b[:5] = a[:5]
    iou = pairwise_iou(convert(a), convert(b))
    assert isinstance(iou, np.ndarray) == (convert is np.asarray)
    np.testing.assert_allclose(iou, oracle.pairwise_iou(a, b), atol=1e-6)


def test_iou_of_boxes_without_area_is_zero():
    boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [7, 7, 3, 3], [0, 0, 10, 10]], np.float32)
    expected = np.diag([0, 0, 0, 1]).astype(np.float32)
    np.testing.assert_array_equal(pairwise_iou(boxes, boxes), expected)
    gradient = jax.grad(lambda b: pairwise_iou(b, b).sum())(jnp.asarray(boxes))
    assert np.isfinite(gradient).all()


def test_iou_is_exact_where_its_terms_are():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 20]])
    assert pairwise_iou(boxes, boxes)[0, 1] == 0.5


def test_iou_of_bfloat16_boxes_is_computed_in_float32():
    boxes = jnp.array([[0, 0, 3, 1], [0, 0, 1, 1]], jnp.bfloat16)
    iou = pairwise_iou(boxes, boxes)
    assert iou.dtype == jnp.float32
    np.testing.assert_allclose(iou[0, 1], 1 / 3, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 4), min_size=1, max_size=8))
def test_iou_is_a_symmetric_fraction(corners):
    boxes = np.array(corners, np.float32)
    iou = pairwise_iou(boxes, boxes)
    assert (iou >= 0).all() and (iou <= 1).all()
    np.testing.assert_array_equal(iou, iou.T)


def test_area_of_inverted_boxes_is_zero():
    boxes = np.array([[1, 2, 4, 8], [4, 2, 1, 8], [1, 8, 4, 2], [4, 8, 1, 2]], np.float32)
    np.testing.assert_array_equal(box_area(boxes), [18, 0, 0, 0])


def test_clip_moves_edges_onto_the_border():
    boxes = np.array([[-5, -6, 7, 8], [20, 30, 40, 50]], np.float32)
    expected = [[0, 0, 7, 6], [10, 6, 10, 6]]
    np.testing.assert_array_equal(clip_boxes(boxes, 6, 10), expected)
    per_image = clip_boxes(
        jnp.asarray(boxes)[:, None], jnp.array([[6], [60]]), jnp.array([[10], [30]])
    )
    np.testing.assert_array_equal(per_image[:, 0], [[0, 0, 7, 6], [20, 30, 30, 50]])


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_flip_mirrors_and_restores(convert):
    boxes = convert(np.array([[1, 2, 4, 8]], np.float32))
    flipped = flip_boxes(boxes, 10)
    np.testing.assert_array_equal(flipped, [[6, 2, 9, 8]])
    np.testing.assert_array_equal(flip_boxes(flipped, 10), boxes)
    assert flipped.dtype == np.float32


def test_scale_multiplies_each_axis():
    boxes = np.array([[1, 2, 4, 8]], np.float32)
    np.testing.assert_array_equal(scale_boxes(boxes, 2.0, 0.5), [[2, 1, 8, 4]])
    assert scale_boxes(boxes, np.float64(2), 3).dtype == np.float32


GOLDEN = np.load(Path(__file__).parents[1] / "golden/boxes/d2_box_coder.npz")


@pytest.mark.parametrize("case", range(len(GOLDEN["names"])))
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_deltas_are_those_of_detectron2(case, convert):
    given = {
        field: GOLDEN[f"{case}/{field}"] for field in ("src", "tgt", "deltas", "raw", "decoded")
    }
    weights = tuple(GOLDEN[f"{case}/weights"].tolist())
    proposals = convert(given["src"])
    deltas = encode_boxes(proposals, convert(given["tgt"]), weights)
    assert isinstance(deltas, np.ndarray) == (convert is np.asarray) and deltas.dtype == np.float32
    np.testing.assert_allclose(deltas, given["deltas"], rtol=1e-6, atol=1e-5)
    raw = given["raw"].reshape(len(proposals), -1, 4)  # some sides would grow by e^40 / 5
    boxes = decode_boxes(proposals[:, None], convert(raw), weights)
    assert isinstance(boxes, np.ndarray) == (convert is np.asarray)
    np.testing.assert_allclose(boxes.reshape(len(raw), -1), given["decoded"], rtol=1e-5, atol=1e-3)


def test_deltas_agree_with_the_formula_and_are_undone():
    rng = np.random.default_rng(3)
    proposals, targets = (
        random_boxes(rng, 20) + [[0, 0, 1, 1]],
        random_boxes(rng, 20) + [[0, 0, 1, 1]],
    )
    deltas = encode_boxes(proposals, targets)
    expected = [oracle.encode(p, t) for p, t in zip(proposals, targets, strict=True)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(decode_boxes(proposals, deltas), targets, atol=1e-9)
    np.testing.assert_array_equal(encode_boxes(proposals, proposals), 0)
    np.testing.assert_allclose(decode_boxes(proposals, 0 * deltas), proposals, rtol=1e-12)


def test_a_side_grows_at_most_as_far_as_is_allowed():
    proposals = np.array([[10, 20, 12, 24]], np.float32)
    deltas = np.array([[0, 0, 5 * np.log(1000 / 16), 1e30]], np.float32)
    side = 2 * 1000 / 16
    np.testing.assert_allclose(
        decode_boxes(proposals, deltas),
        [[11 - side / 2, 22 - side, 11 + side / 2, 22 + side]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("proposals", [[5, 5, 5, 5], [5, 5, 5, 9], [7, 7, 3, 3]])
@pytest.mark.parametrize("targets", [[5, 5, 5, 5], [0, 0, 1e4, 1e4], [9, 9, 2, 2]])
def test_boxes_without_area_have_finite_deltas_and_gradients(proposals, targets):
    proposals, targets = (jnp.array([box], jnp.float32) for box in (proposals, targets))
    for function in (encode_boxes, decode_boxes):
        given = (proposals, targets)
        value, pull = jax.vjp(function, *given)
        assert np.isfinite(value).all()
        assert all(np.isfinite(g).all() for g in pull(jnp.ones_like(value)))


def test_coverage_sums_the_scores_of_covering_boxes():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-5, 25, (30, 4))
    boxes[:, 2:] += boxes[:, :2].clip(0) / 2
    scores, mask = rng.random((30, 3)), rng.random(30) < 0.8
    found = box_coverage(boxes, scores, height=12, width=20, mask=mask)
    expected = np.zeros((12, 20))
    for (x1, y1, x2, y2), score, real in zip(boxes, scores.sum(1), mask, strict=True):
        for y in range(12):
            for x in range(20):
                expected[y, x] += score * real * (x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    half = box_coverage(np.array([[0.5, 0, 2.5, 1]]), np.ones(1), height=1, width=4)
    assert half.tolist() == [[1, 1, 0, 0]]  # centers 0.5 inside, 2.5 outside
    for scores in (np.zeros(0), np.zeros((0, 3))):
        assert not box_coverage(np.zeros((0, 4)), scores, height=2, width=3).any()


def test_union_area_of_fractions_and_of_what_leaves_the_image():
    assert union_area(np.array([[0.5, 0, 1.25, 2], [1, 1, 2, 3.0]]), 10, 10) == 1.5 + 2 - 0.25
    assert union_area(np.array([[-5, -5, 5, 2], [90, 0, 99, 9.0]]), 10, 4) == 8
    assert union_area(np.zeros((0, 4)), 10, 10) == 0
