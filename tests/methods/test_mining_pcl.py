"""PCL's miner: k-means on scores, centers of the graph."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import mining_cases
from tests.methods.mining_cases import check, pad, random_image, real_boxes, to_jax
from tests.oracles import mining as oracle
from wsod_jax.methods.pcl import Pcl, find_centers

mine = partial(mining_cases.mine, Pcl)


def run(scores, boxes, labels, **options):
    return mine(*to_jax(scores, boxes, np.ones(len(boxes), bool), labels), **options)


@pytest.mark.parametrize("options", [{}, {"max_centers": 2, "num_kmeans_clusters": 2}])
def test_agrees_with_the_loops(options):
    num_centers = 0
    for seed in range(5):
        for num_positive in (0, 1, 2, 5):
            scores, boxes, labels, _ = random_image(seed, count=60, num_positive=num_positive)
            expected = oracle.pcl(scores, boxes, labels, **options)
            mined = run(scores, boxes, labels, **options)
            check(mined, set_cores(expected), scores, boxes)
            assert mined.num_overflow == 0
            num_centers += len(expected)
    assert num_centers > 1.3 * 5 * (1 + 2 + 5)


def set_cores(expected):
    """Only the first center of a class is its core."""
    for n, box in enumerate(expected):
        box.is_seed = n == 0 or expected[n - 1].cls != box.cls
    return expected


def check_centers(pairs, scores, expected):
    joined = np.eye(len(scores), dtype=bool)
    for a, b in pairs:
        joined[a, b] = joined[b, a] = True
    kept = np.ones(len(scores), bool)
    values, is_pseudo_box = jax.jit(find_centers)(
        *to_jax(np.array(scores, np.float32), joined, kept)
    )
    assert list(np.flatnonzero(is_pseudo_box)) == sorted(expected)
    for n, score in expected.items():
        np.testing.assert_allclose(values[n], score)


def test_equal_degrees_go_to_the_last():
    """7 takes 6, 5 takes 4, each with its partner's better score; four are left: the end."""
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    check_centers(pairs, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], {7: 0.2, 5: 0.4})


def test_one_center_however_few_are_kept():
    check_centers([(0, 1)], [0.8, 0.7, 0.6], {1: 0.8})


def test_degrees_count_what_is_left():
    """0 takes 1 to 5. 11 loses its four partners with them, so that 7 comes next, not 11."""
    pairs = [(0, n) for n in range(1, 6)] + [(11, n) for n in range(1, 5)] + [(7, 6), (7, 8)]
    scores = [0.1, 0.9, 0.2, 0.2, 0.2, 0.5, 0.3, 0.2, 0.4, 0.8, 0.8, 0.8]
    check_centers(pairs, scores, {0: 0.9, 7: 0.4})


@pytest.mark.parametrize(("width", "centers"), [(4.0, [11, 10]), (4.001, [11])])
def test_overlap_at_the_threshold_does_not_join(width, centers):
    boxes = np.array([[0, 0, 10, 10], [0, 0, width, 10]] * 6, np.float32)
    scores = np.full((12, 1), 0.9, np.float32)
    mined = run(scores, boxes, np.array([1], np.int32))
    assert sorted(row[0] for row in real_boxes(mined)) == sorted(centers)


def test_centers_leave_the_pool_and_an_empty_pool_is_skipped():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    scores = np.array([[0.9, 0.9, 0.9], [0.1, 0.5, 0.5]], np.float32)
    mined = run(scores, boxes, np.ones(3, np.int32))
    assert [row[:2] for row in real_boxes(mined)] == [(0, 0), (1, 1)]
    np.testing.assert_array_equal(mined.targets.labels, [1, 2])


def test_padding_is_inert():
    scores, boxes, labels, _ = random_image(8, count=60)
    padded_scores, padded_boxes = pad([scores, boxes], 9)
    mined = mine(*to_jax(padded_scores, padded_boxes, np.arange(69) < 60, labels))
    check(mined, set_cores(oracle.pcl(scores, boxes, labels)), scores, boxes)


def test_permuting_proposals_permutes_targets():
    """Without equal degrees, of which the last wins: a group of 5, one of 3, and three singles."""
    left = np.array([0, 1, 2, 3, 4, 50, 52, 54, 100, 120, 140, 160, 180], np.float32)
    boxes = np.stack([left, left * 0, left + 6, left * 0 + 10], axis=1)
    scores = np.random.default_rng(0).uniform(0.80, 0.81, (13, 1)).astype(np.float32)
    scores[11:, 0] = 0.1, 0.4  # two lower clusters, so that the other eleven are kept
    order = np.random.default_rng(1).permutation(13)
    labels = np.array([1], np.int32)
    straight = run(scores, boxes, labels)
    shuffled = run(scores[order], boxes[order], labels)
    assert sorted(row[0] for row in real_boxes(straight)) == [2, 6]
    for name in ("labels", "weights", "matched_idx", "is_pseudo_box"):
        np.testing.assert_array_equal(
            np.asarray(getattr(straight.targets, name))[order], getattr(shuffled.targets, name)
        )


def test_classes_beyond_the_maximum_are_counted():
    scores, boxes, labels, _ = random_image(4, num_positive=5)
    arrays = to_jax(scores, boxes, np.ones(40, bool), labels)
    mined = mine(*arrays, max_classes=3)
    assert mined.num_overflow == 2
    labels[3:] = 0
    check(mined, set_cores(oracle.pcl(scores, boxes, labels)), scores, boxes)


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


def test_a_batch_is_its_images():
    images = [random_image(seed)[:3] for seed in range(3)]
    stacked = to_jax(*(np.stack(x) for x in zip(*images, strict=True)))
    over_images = jax.jit(jax.vmap(mine, in_axes=(0, 0, None, 0)))
    batch = jax.tree.map(np.asarray, over_images(*stacked[:2], jnp.ones(40, bool), stacked[2]))
    for n, image in enumerate(images):
        jax.tree.map(
            lambda x, y, n=n: np.testing.assert_allclose(x[n], y, rtol=1e-6), batch, run(*image)
        )


def test_nothing_carries_a_gradient():
    scores, boxes, labels, _ = random_image(5)

    def total(scores):
        mined = mine(scores, *to_jax(boxes, np.ones(40, bool), labels))
        return jnp.sum(mined.targets.weights + mined.targets.source_scores) + jnp.sum(
            mined.pseudo.scores
        )

    assert not jax.jit(jax.grad(total))(jnp.asarray(scores)).any()
