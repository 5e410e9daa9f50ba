"""OICR's miner and the assignment that all miners share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import mining_cases
from tests.methods.mining_cases import check, pad, random_image, real_boxes, to_jax
from tests.oracles import mining as oracle
from wsod_jax.methods.oicr import Oicr

mine = partial(mining_cases.mine, Oicr)


def run(scores, boxes, labels, **options):
    return mine(*to_jax(scores, boxes, np.ones(len(boxes), bool), labels), **options)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_positive", [0, 1, 2, 5])
def test_agrees_with_the_loops(seed, num_positive):
    scores, boxes, labels, _ = random_image(seed, num_positive=num_positive)
    for ignore in (0.0, 0.1):
        mined = run(scores, boxes, labels, ignore_iou_thr=ignore)
        expected = oracle.oicr(scores, boxes, labels)
        check(mined, expected, scores, boxes, ignore_iou_thr=ignore)
        assert mined.num_overflow == 0


def test_padding_is_inert():
    scores, boxes, labels, _ = random_image(7)
    padded_scores, padded_boxes = pad([scores, boxes], 9)
    mask = np.arange(49) < 40
    mined = mine(*to_jax(padded_scores, padded_boxes, mask, labels))
    check(mined, oracle.oicr(scores, boxes, labels), scores, boxes)
    assert (np.asarray(mined.targets.matched_idx)[40:] == -1).all()


def test_masked_rows_in_the_middle_are_inert():
    scores, boxes, labels, _ = random_image(8)
    mask = np.ones(40, bool)
    mask[[0, 3, 17, 30]] = False
    bright = scores.copy()
    bright[~mask] = 2.0  # would win if it were seen
    mined = mine(*to_jax(bright, boxes, mask, labels))
    short = run(scores[mask], boxes[mask], labels)
    for name in ("labels", "weights", "is_pseudo_box", "source_scores"):
        np.testing.assert_array_equal(
            np.asarray(getattr(mined.targets, name))[mask], getattr(short.targets, name)
        )
        assert not np.asarray(getattr(mined.targets, name))[~mask].any()


def test_permuting_proposals_permutes_targets():
    scores, boxes, labels, _ = random_image(9)
    order = np.random.default_rng(0).permutation(40)
    straight, shuffled = (
        run(scores, boxes, labels).targets,
        run(scores[order], boxes[order], labels).targets,
    )
    for name in ("labels", "weights", "is_pseudo_box", "source_scores", "matched_idx"):
        np.testing.assert_array_equal(
            np.asarray(getattr(straight, name))[order], getattr(shuffled, name)
        )


def test_a_batch_is_its_images():
    images = [random_image(seed)[:3] for seed in range(3)]
    mask = np.ones(40, bool)
    singles = [mine(*to_jax(s, b, mask, y)) for s, b, y in images]
    stacked = to_jax(*(np.stack(x) for x in zip(*images, strict=True)))
    over_images = jax.jit(jax.vmap(mine, in_axes=(0, 0, None, 0)))
    batch = over_images(stacked[0], stacked[1], jnp.asarray(mask), stacked[2])
    batch = jax.tree.map(np.asarray, batch)
    for n, single in enumerate(singles):
        jax.tree.map(lambda x, y, n=n: np.testing.assert_array_equal(x[n], y), batch, single)


def test_two_classes_with_one_favorite():
    """The first class takes the shared box, the second its own second best."""
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    scores = np.array([[0.9, 0.8], [0.1, 0.5], [0.2, 0.1]], np.float32)
    mined = run(scores, boxes, np.array([1, 1], np.int32))
    assert [row[:2] for row in real_boxes(mined)] == [(0, 0), (1, 1)]
    np.testing.assert_array_equal(mined.targets.labels, [1, 2, 0])
    np.testing.assert_allclose(mined.targets.weights, [0.9, 0.5, 0.9])  # far from all: the first's


def test_equal_scores_and_equal_overlaps_go_to_the_first():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]], np.float32)
    scores = np.array([[0.5, 0.3], [0.5, 0.1], [0.5, 0.6]], np.float32)
    mined = run(scores, boxes, np.array([1, 1], np.int32))
    assert [row[0] for row in real_boxes(mined)] == [0, 2]
    # proposal 2 is class 1's box, but its twin, class 0's box, was recorded first
    np.testing.assert_array_equal(mined.targets.labels, [1, 0, 1])
    np.testing.assert_array_equal(mined.targets.is_pseudo_box, [True, False, False])


@pytest.mark.parametrize(("width", "label"), [(5.0, 1), (4.999, 0), (20.0, 1), (20.01, 0)])
def test_overlap_of_exactly_one_half_is_foreground(width, label):
    boxes = np.array([[0, 0, 10, 10], [0, 0, width, 10]], np.float32)
    mined = run(np.array([[0.9], [0.1]], np.float32), boxes, np.array([1], np.int32))
    assert mined.targets.labels[1] == label


@pytest.mark.parametrize(("width", "ignored"), [(5.0, False), (4.999, True)])
def test_overlap_at_the_ignore_threshold_counts(width, ignored):
    boxes = np.array([[0, 0, 20, 10], [0, 0, width, 10]], np.float32)
    scores = np.array([[0.9], [0.1]], np.float32)
    mined = run(scores, boxes, np.array([1], np.int32), ignore_iou_thr=0.25)
    assert (mined.targets.weights[1] == 0) == ignored
    assert mined.targets.labels[1] == 0


@pytest.mark.parametrize(
    ("width", "weight", "label"),
    [(12.0, 0.9, 1), (11.99, 0.0, 0), (10.0, 0.0, 0), (9.99, 0.9, 0), (20.0, 0.9, 1)],
)
def test_between_the_thresholds_nothing_counts(width, weight, label):
    """IoU >= 0.6 is foreground, < 0.5 background; [0.5, 0.6) has no weight."""
    boxes = np.array([[0, 0, 20, 10], [0, 0, width, 10]], np.float32)
    scores = np.array([[0.9], [0.1]], np.float32)
    mined = run(scores, boxes, np.array([1], np.int32), iou_thrs=(0.5, 0.6))
    assert mined.targets.labels[1] == label
    np.testing.assert_allclose(mined.targets.weights[1], weight)


def test_one_proposal_for_two_classes():
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    mined = run(np.array([[0.4, 0.7]], np.float32), boxes, np.array([1, 1], np.int32))
    assert [row[:2] for row in real_boxes(mined)] == [(0, 0), (0, 1)]
    np.testing.assert_allclose(mined.pseudo.scores[:2], [0.4, 0.0])
    np.testing.assert_array_equal(mined.targets.labels, [1])


def test_no_positive_class_no_proposal_no_weight():
    scores, boxes, labels, _ = random_image(3)
    nothing = [
        run(scores, boxes, np.zeros(5, np.int32)),
        run(scores, boxes, np.array([0, -1, 0, -1, 0], np.int32)),
        mine(*to_jax(scores, boxes, np.zeros(40, bool), labels)),
        run(scores, np.zeros_like(boxes), np.zeros(5, np.int32)),
    ]
    for mined in nothing:
        assert not mined.targets.weights.any() and not mined.targets.labels.any()
        assert not mined.pseudo.mask.any() and (mined.targets.matched_idx == -1).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(mined))


def test_boxes_without_area_are_background():
    scores, boxes, labels, _ = random_image(3)
    mined = run(scores, np.zeros_like(boxes), labels)
    assert not mined.targets.labels.any() and not mined.targets.is_pseudo_box.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(mined))


def test_classes_beyond_the_maximum_are_counted():
    scores, boxes, labels, _ = random_image(4, num_positive=5)
    mined = run(scores, boxes, labels, max_classes=3)
    assert mined.num_overflow == 2
    labels[3:] = 0
    check(mined, oracle.oicr(scores, boxes, labels), scores, boxes)


def test_nothing_carries_a_gradient():
    scores, boxes, labels, _ = random_image(5)

    def total(scores):
        mined = mine(scores, *to_jax(boxes, np.ones(40, bool), labels))
        return jnp.sum(mined.targets.weights + mined.targets.source_scores) + jnp.sum(
            mined.pseudo.scores
        )

    assert not jax.jit(jax.grad(total))(jnp.asarray(scores)).any()
