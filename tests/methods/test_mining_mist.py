"""MIST's miner."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import mining_cases
from tests.methods.mining_cases import check, pad, random_image, real_boxes, to_jax
from tests.oracles import mining as oracle
from wsod_jax.methods.mist import Mist

mine = partial(mining_cases.mine, Mist)


def run(scores, boxes, labels, **options):
    return mine(*to_jax(scores, boxes, np.ones(len(boxes), bool), labels), **options)


@pytest.mark.parametrize("top_fraction", [0.15, 0.6])
def test_agrees_with_the_loops(top_fraction):
    for seed in range(5):
        for num_positive in (0, 1, 2, 5):
            scores, boxes, labels, _ = random_image(seed, num_positive=num_positive)
            expected = oracle.mist(scores, boxes, labels, top_fraction)
            mined = run(scores, boxes, labels, top_fraction=top_fraction)
            check(mined, expected, scores, boxes)
            assert mined.num_overflow == 0
            if top_fraction == 0.6 and num_positive:
                assert len(expected) > num_positive


def test_dropped_boxes_still_drop():
    """B falls to A and C to B, although A and C are apart: greedy suppression would keep C."""
    boxes = np.array([[0, 0, 10, 10], [6, 0, 16, 10], [12, 0, 22, 10], [60, 0, 70, 10]], np.float32)
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    mined = run(scores, boxes, np.array([1], np.int32), top_fraction=1.0)
    assert [row[0] for row in real_boxes(mined)] == [0, 3]


@pytest.mark.parametrize(("width", "apart"), [(2.0, False), (1.999, True)])
def test_overlap_at_the_threshold_drops(width, apart):
    boxes = np.array([[0, 0, 10, 10], [0, 0, width, 10]], np.float32)
    scores = np.array([[0.9], [0.8]], np.float32)
    mined = run(scores, boxes, np.array([1], np.int32), top_fraction=1.0)
    assert len(real_boxes(mined)) == 1 + apart


@pytest.mark.parametrize(("count", "listed"), [(1, 1), (6, 1), (13, 1), (14, 2), (20, 3), (40, 6)])
def test_length_of_the_list(count, listed):
    left = np.arange(40, dtype=np.float32) * 20
    boxes = np.stack([left, left * 0, left + 10, left * 0 + 10], axis=1)
    scores = np.linspace(1, 0.5, 40, dtype=np.float32)[:, None]
    mask = np.arange(40) < count
    mined = mine(*to_jax(scores, boxes, mask, np.array([1], np.int32)))
    assert [row[0] for row in real_boxes(mined)] == list(range(listed))


def test_classes_do_not_see_each_other():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    scores = np.array([[0.9, 0.8], [0.1, 0.5]], np.float32)
    mined = run(scores, boxes, np.array([1, 1], np.int32))
    assert [row[:2] for row in real_boxes(mined)] == [(0, 0), (0, 1)]
    np.testing.assert_array_equal(mined.targets.labels, [1, 0])


def test_padding_and_order_are_inert():
    scores, boxes, labels, _ = random_image(7)
    expected = oracle.mist(scores, boxes, labels)
    padded_scores, padded_boxes = pad([scores, boxes], 9)
    mined = mine(*to_jax(padded_scores, padded_boxes, np.arange(49) < 40, labels))
    check(mined, expected, scores, boxes)
    order = np.random.default_rng(0).permutation(40)
    shuffled = run(scores[order], boxes[order], labels).targets
    for name in ("labels", "weights", "matched_idx", "is_pseudo_box"):
        np.testing.assert_array_equal(
            np.asarray(getattr(mined.targets, name))[order], getattr(shuffled, name)
        )


def test_boxes_beyond_the_maximum_are_counted():
    scores, boxes, labels, _ = random_image(7)
    full = run(scores, boxes, labels, top_fraction=0.6)
    short = run(scores, boxes, labels, top_fraction=0.6, max_boxes=2)
    assert short.num_overflow == len(real_boxes(full)) - len(real_boxes(short)) > 0
    for c in np.flatnonzero(labels):
        ours, theirs = ([row for row in real_boxes(x) if row[1] == c] for x in (short, full))
        assert ours == theirs[:2]


def test_degenerate_images_are_finite():
    scores, boxes, labels, _ = random_image(3)
    for s, b, y, m in [
        (scores, boxes, np.zeros(5, np.int32), np.ones(40, bool)),
        (scores, boxes, labels, np.zeros(40, bool)),
        (np.zeros_like(scores), np.tile(boxes[:1], (40, 1)), labels, np.ones(40, bool)),
    ]:
        mined = mine(*to_jax(s, b, m, y))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(mined))
        assert not mined.targets.weights.any()


def test_nothing_carries_a_gradient():
    scores, boxes, labels, _ = random_image(5)

    def total(scores):
        mined = mine(scores, *to_jax(boxes, np.ones(40, bool), labels))
        return jnp.sum(mined.targets.weights + mined.targets.source_scores) + jnp.sum(
            mined.pseudo.scores
        )

    assert not jax.jit(jax.grad(total))(jnp.asarray(scores)).any()


@pytest.mark.parametrize("top_fraction", [0.0, 1.5])
def test_an_impossible_fraction_is_rejected(top_fraction):
    with pytest.raises(ValueError, match="top_fraction"):
        run(*random_image(0)[:3], top_fraction=top_fraction)
