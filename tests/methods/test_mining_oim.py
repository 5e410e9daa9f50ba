"""OIM's miner: spatial graphs, the appearance graph, and their switches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.methods import mining_cases
from tests.methods.mining_cases import check, pad, random_image, real_boxes, to_jax
from tests.oracles import mining as oracle
from wsod_jax.methods import oim
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.oim import Oim

mine_oicr = partial(mining_cases.mine, Oicr)


def mine(scores, boxes, mask, labels, features, alpha, **options):
    arrays = scores, boxes, mask, labels, features
    return mining_cases.mine(Oim, *arrays, alpha=((0, alpha),), **options)


def run(scores, boxes, labels, features, alpha, max_nodes=40, **options):
    mask = np.ones(len(boxes), bool)
    arrays = to_jax(scores, boxes, mask, labels, features)
    return mine(*arrays, float(alpha), max_nodes=max_nodes, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"node_neighbors": "release"},
        {"graphs": "appearance"},
        {"graphs": "spatial"},
        {"davg_includes_core": False},
    ],
)
def test_agrees_with_the_loops(options):
    num_nodes = 0
    for seed in range(6):
        for num_positive, alpha in ((0, 2.0), (2, 1.2), (2, 3.0), (5, 1.5)):
            scores, boxes, labels, features = random_image(seed, num_positive=num_positive)
            mined = run(scores, boxes, labels, features, alpha, **options)
            expected = oracle.oim(scores, boxes, labels, features, alpha, **options)
            check(mined, expected, scores, boxes)
            assert mined.num_overflow == 0
            num_nodes += len(expected) - num_positive
    assert (num_nodes == 0) == (options.get("graphs") == "spatial")


def test_nodes_are_near_apart_and_in_order():
    scores, boxes, labels, features = random_image(12, num_positive=1)
    mined = run(scores, boxes, labels, features, 2.5)
    core, *nodes = (row[0] for row in real_boxes(mined))
    assert len(nodes) > 3
    distances = np.linalg.norm(features - features[core], axis=1)
    assert (np.diff(distances[nodes]) > 0).all()
    chosen = boxes[[core, *nodes]]
    overlaps = [oracle.iou(a, b) for n, a in enumerate(chosen) for b in chosen[:n]]
    assert max(overlaps) < 1e-6


@pytest.mark.parametrize("graphs", ["both", "spatial"])
def test_alpha_zero_is_oicr(graphs):
    scores, boxes, labels, features = random_image(12)
    mined = run(scores, boxes, labels, features, 0.0, graphs=graphs)
    plain = mine_oicr(*to_jax(scores, boxes, np.ones(40, bool), labels))
    assert [row[:3] for row in real_boxes(mined)] == [row[:3] for row in real_boxes(plain)]
    for name in ("labels", "weights", "is_pseudo_box", "source_scores"):
        np.testing.assert_array_equal(getattr(mined.targets, name), getattr(plain.targets, name))


def test_an_isolated_core_is_oicr():
    """Without a neighbor D_avg is 0, and no alpha finds a node."""
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    scores = np.array([[0.9], [0.5], [0.4]], np.float32)
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]], np.float32)  # one looks just like it
    for includes_core in (True, False):
        mined = run(scores, boxes, [1], features, 1e6, davg_includes_core=includes_core)
        assert [row[0] for row in real_boxes(mined)] == [0]
        np.testing.assert_array_equal(mined.targets.labels, [1, 0, 0])


@pytest.mark.parametrize("width", [8, 4096])
def test_equal_features_are_at_distance_0_and_make_no_node(width):
    """All look alike, so that D_avg = 0, and no distance is below alpha times it."""
    scores, boxes, labels, _ = random_image(4)
    features = np.tile(np.random.default_rng(0).random(width, dtype=np.float32), (40, 1))
    distances = jax.jit(oim.appearance_distances)(jnp.asarray(features), jnp.int32(7))
    np.testing.assert_array_equal(distances, 0)
    mined = run(scores, boxes, labels, features, 1e6)
    assert all(row[3] for row in real_boxes(mined)) and len(real_boxes(mined)) == labels.sum()


def test_distances_are_those_of_float64():
    rng = np.random.default_rng(1)
    features = (5 + 1e-3 * rng.random((30, 4096))).astype(np.float32)  # alike, and far from 0
    distances = jax.jit(oim.appearance_distances)(jnp.asarray(features), jnp.int32(3))
    wide = features.astype(np.float64)
    np.testing.assert_allclose(distances, np.linalg.norm(wide - wide[3], axis=1), rtol=1e-5)


def test_distances_store_no_differences():
    arguments = jax.ShapeDtypeStruct((500, 512), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.int32)
    of_stages = jax.vmap(oim.appearance_distances, in_axes=(None, 0))
    program = jax.jit(of_stages).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 500 * 512 / 10


def average_case(node_distance):
    """A core with three neighbors at distance 3, and one box elsewhere at `node_distance`."""
    boxes = [[0, 0, 10, 10], [0, 0, 9, 10], [0, 0, 8, 10], [0, 0, 7, 10], [50, 50, 60, 60]]
    features = np.zeros((5, 4))
    features[1, 0] = features[2, 1] = features[3, 2] = 3.0
    features[4, 3] = node_distance
    scores = np.array([[0.9], [0.5], [0.4], [0.3], [0.2]])
    return (np.asarray(x, np.float32) for x in (scores, boxes, [1], features))


@pytest.mark.parametrize(
    ("node_distance", "alpha", "includes_core", "is_node"),
    [
        (2.24, 1.0, True, True),  # D_avg = (0 + 3 + 3 + 3) / 4 = 2.25
        (2.25, 1.0, True, False),  # "<" excludes the limit itself
        (4.49, 2.0, True, True),
        (4.51, 2.0, True, False),
        (2.99, 1.0, False, True),  # D_avg = 3 without the core's own 0
        (3.00, 1.0, False, False),
    ],
)
def test_average_distance(node_distance, alpha, includes_core, is_node):
    scores, boxes, labels, features = average_case(node_distance)
    mined = run(
        scores, boxes, labels.astype(np.int32), features, alpha, davg_includes_core=includes_core
    )
    assert [row[0] for row in real_boxes(mined)] == ([0, 4] if is_node else [0])
    assert mined.targets.labels[4] == is_node
    np.testing.assert_allclose(mined.targets.weights[4], 0.2 if is_node else 0.9)


@pytest.mark.parametrize(("width", "is_near"), [(5.0, True), (4.99, False)])
def test_overlap_of_exactly_t_is_near(width, is_near):
    """IoU = T: in the mean D_avg = (0 + 3) / 2, so that a node at 1.4 is found, and of the core's class."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, width, 10], [50, 50, 60, 60]], np.float32)
    features = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.4]], np.float32)
    scores = np.array([[0.9], [0.5], [0.2]], np.float32)
    mined = run(scores, boxes, [1], features, 1.0)
    assert [row[0] for row in real_boxes(mined)] == ([0, 2] if is_near else [0])
    np.testing.assert_array_equal(mined.targets.labels, [1, is_near, is_near])


def graph_case():
    """Core 0 with neighbor 1; node 2 with neighbor 3; 4 elsewhere and unlike."""
    boxes = [[0, 0, 10, 10], [0, 0, 8, 10], [30, 0, 40, 10], [30, 0, 38, 10], [60, 0, 70, 10]]
    features = [[0, 0], [1, 0], [0, 0.4], [0, 0.6], [9, 9]]
    scores = [[0.9], [0.5], [0.6], [0.3], [0.1]]
    return (np.asarray(x, np.float32) for x in (scores, boxes, features))


@pytest.mark.parametrize(
    ("options", "labels", "weights"),
    [
        ({}, [1, 1, 1, 1, 0], [0.9, 0.9, 0.6, 0.6, 0.9]),
        ({"node_neighbors": "release"}, [1, 1, 1, 0, 0], [0.9, 0.9, 0.6, 0.6, 0.9]),
        ({"graphs": "appearance"}, [1, 0, 1, 0, 0], [0.9, 0.9, 0.6, 0.6, 0.9]),
        ({"graphs": "spatial"}, [1, 1, 0, 0, 0], [0.9, 0.9, 0.9, 0.9, 0.9]),
    ],
)
def test_who_is_foreground(options, labels, weights):
    scores, boxes, features = graph_case()
    mined = run(scores, boxes, np.array([1], np.int32), features, 1.0, **options)
    np.testing.assert_array_equal(mined.targets.labels, labels)
    np.testing.assert_allclose(mined.targets.weights, weights)
    nodes = [True, False, options.get("graphs") != "spatial", False, False]
    np.testing.assert_array_equal(mined.targets.is_pseudo_box, nodes)
    np.testing.assert_array_equal(
        mined.targets.source_scores, np.where(labels, scores[:, 0], weights).astype(np.float32)
    )


def test_of_equally_distant_proposals_the_first_is_the_node():
    scores, boxes, features = graph_case()
    features[3] = features[2]  # proposals 2 and 3 overlap
    for order in ([0, 1, 2, 3, 4], [0, 1, 3, 2, 4]):
        mined = run(scores[order], boxes[order], np.array([1], np.int32), features[order], 1.0)
        assert [row[0] for row in real_boxes(mined)] == [0, 2]


def test_a_later_class_takes_earlier_instances_without_weight():
    scores, boxes, features = graph_case()
    scores = np.concatenate([scores, scores[:, :1]], axis=1)
    scores[1, 1] = 0.2
    mined = run(scores, boxes, np.array([1, 1], np.int32), features, 1.0)
    assert [row[:2] for row in real_boxes(mined)][:3] == [(0, 0), (2, 0), (3, 1)]
    check(mined, oracle.oim(scores, boxes, [1, 1], features, 1.0), scores, boxes)


def test_nodes_beyond_the_maximum_are_counted():
    scores, boxes, labels, features = random_image(12, num_positive=1)
    full = run(scores, boxes, labels, features, 2.5)
    short = run(scores, boxes, labels, features, 2.5, max_nodes=2)
    assert real_boxes(short) == real_boxes(full)[:3]
    assert short.num_overflow == len(real_boxes(full)) - 3 > 0
    check(short, oracle.oim(scores, boxes, labels, features, 2.5)[:3], scores, boxes)


def test_classes_beyond_the_maximum_are_counted():
    scores, boxes, labels, features = random_image(12, num_positive=5)
    arrays = to_jax(scores, boxes, np.ones(40, bool), labels, features)
    mined = mine(*arrays, 2.0, max_classes=3, max_nodes=1)
    labels[3:] = 0
    full = real_boxes(run(scores, boxes, labels, features, 2.0))
    lost_nodes = sum(max(sum(row[1] == c for row in full) - 2, 0) for c in range(3))
    assert lost_nodes > 0
    assert mined.num_overflow == 2 + lost_nodes


def test_padding_is_inert():
    for seed in (7, 8):
        scores, boxes, labels, features = random_image(seed)
        padded = pad([scores, boxes, features], 9)
        arrays = to_jax(padded[0], padded[1], np.arange(49) < 40, labels, padded[2])
        mined = mine(*arrays, 2.0, max_nodes=40)
        check(mined, oracle.oim(scores, boxes, labels, features, 2.0), scores, boxes)


def test_permuting_proposals_permutes_targets():
    scores, boxes, labels, features = random_image(9)
    order = np.random.default_rng(0).permutation(40)
    straight = run(scores, boxes, labels, features, 2.0).targets
    shuffled = run(scores[order], boxes[order], labels, features[order], 2.0).targets
    for name in ("labels", "weights", "is_pseudo_box", "source_scores", "matched_idx"):
        np.testing.assert_array_equal(
            np.asarray(getattr(straight, name))[order], getattr(shuffled, name)
        )


def test_images_and_stages_batch():
    """vmap over images, and within them over stages that share boxes and features."""
    images = [random_image(seed) for seed in range(3)]
    scores, boxes, labels, features = (np.stack(x) for x in zip(*images, strict=True))
    stages = np.stack([scores, scores[::-1] ** 2], axis=1)  # [b, s, r, c]
    mask = np.ones(40, bool)
    one = partial(mine, alpha=2.0, max_nodes=40)
    over_stages = jax.vmap(one, in_axes=(0, None, None, None, None))
    over_images = jax.jit(jax.vmap(over_stages, in_axes=(0, 0, None, 0, 0)))
    batch = over_images(*to_jax(stages, boxes, mask, labels, features))
    batch = jax.tree.map(np.asarray, batch)
    for b in range(3):
        for s in range(2):
            single = run(stages[b, s], boxes[b], labels[b], features[b], 2.0)
            jax.tree.map(
                lambda x, y, b=b, s=s: np.testing.assert_allclose(x[b, s], y, rtol=1e-6),
                batch,
                single,
            )


def test_degenerate_images_are_finite():
    scores, boxes, labels, features = random_image(3)
    twins, points = np.tile(boxes[:1], (40, 1)), np.zeros_like(boxes)
    cases = [
        (scores, boxes, np.zeros(5, np.int32), features, np.ones(40, bool)),
        (scores, boxes, labels, features, np.zeros(40, bool)),
        (scores, twins, labels, np.zeros_like(features), np.ones(40, bool)),
        (scores, points, labels, features, np.ones(40, bool)),
        (np.zeros_like(scores), boxes, labels, features, np.ones(40, bool)),
        (scores, boxes, labels, features, np.arange(40) == 13),
    ]
    for n, (s, b, y, f, m) in enumerate(cases):
        mined = mine(*to_jax(s, b, m, y, f), 2.0, max_nodes=40)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(mined))
        if n < 2:
            assert not mined.targets.weights.any() and not mined.pseudo.mask.any()
        if n == 2:  # all are one box: the first class has them all
            assert (mined.targets.labels == 1 + np.flatnonzero(labels)[0]).all()
        if n == 3:
            assert not mined.targets.labels.any()
        if n == 5:
            assert mined.targets.labels[13] > 0 and np.count_nonzero(mined.targets.weights) == 1


def test_nothing_carries_a_gradient():
    scores, boxes, labels, features = random_image(5)
    mask = np.ones(40, bool)

    def total(scores, features):
        mined = mine(
            scores, *to_jax(boxes, mask, labels), features, 2.0, max_classes=2, max_nodes=8
        )
        return jnp.sum(mined.targets.weights + mined.targets.source_scores) + jnp.sum(
            mined.pseudo.scores
        )

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(*to_jax(scores, features))
    assert not any(np.any(x) for x in gradients)


@pytest.mark.parametrize("options", [{"graphs": "none"}, {"node_neighbors": "code"}])
def test_unknown_options_are_rejected(options):
    image = random_image(0)
    with pytest.raises((ValueError, TypeCheckError), match="|".join(options)):
        run(*image, 2.0, **options)
