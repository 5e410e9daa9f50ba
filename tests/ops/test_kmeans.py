"""The highest cluster of the best clustering of numbers, against every way to cut them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import kmeans as oracle
from wsod_jax.ops import kmeans

top_cluster = jax.jit(kmeans.top_cluster, static_argnames="num_clusters")


def find(values, num_clusters, mask=None):
    values = np.asarray(values, np.float32)
    mask = np.ones(len(values), bool) if mask is None else mask
    return np.asarray(
        top_cluster(jnp.asarray(values), jnp.asarray(mask), num_clusters=num_clusters)
    )


def draw(kind, rng, count):
    """Draw scores as detectors give them, flat or nearly all low, and values of which many are equal."""
    if kind == "flat":
        return rng.random(count)
    if kind == "skewed":
        return rng.random(count) ** 9
    if kind == "equal":
        return rng.integers(0, 5, count) / 4
    if kind == "far":  # two scales: what divides the high values is lost in sums of squares
        return 0.9 * (rng.random(count) < 0.2) + 1e-4 * rng.random(count)
    return 1e-6 * rng.random(count) ** 3  # "tiny"


@pytest.mark.parametrize("kind", ["flat", "skewed", "equal", "far", "tiny"])
@pytest.mark.parametrize("num_clusters", [1, 2, 3, 4])
def test_no_clustering_is_better(kind, num_clusters):
    rng = np.random.default_rng(num_clusters)
    num_decided = 0
    for count in (1, 2, 3, 4, 7, 8, 9, 16, 20):
        values = draw(kind, rng, 20).astype(np.float32)
        mask = rng.permutation(np.arange(20) < count)
        found = find(np.where(mask, values, np.nan), num_clusters, mask)
        assert found.any() and not found[~mask].any()
        allowed = oracle.inertias(values[mask], num_clusters)
        best = min(allowed.values())
        assert allowed[found.sum()] <= best * (1 + 1e-5) + 1e-16
        assert values[found].min() > max(values[mask & ~found], default=-1)
        rivals = [size for size, inertia in allowed.items() if inertia <= best * (1 + 1e-4) + 1e-16]
        if rivals == [found.sum()]:
            expected = oracle.top_cluster(values[mask], num_clusters)
            np.testing.assert_array_equal(found[mask], expected)
            num_decided += 1
    assert num_decided >= 4


@pytest.mark.parametrize("seed", range(4))
def test_lloyds_algorithm_finds_nothing_better(seed):
    rng = np.random.default_rng(seed)
    values = rng.random(60).astype(np.float32) ** 6
    found = oracle.inertias(values, 3)[find(values, 3).sum()]
    starts = [np.linspace(values.min(), values.max(), 3)]
    starts += [rng.choice(values, 3, replace=False) for _ in range(10)]
    assert all(found <= oracle.lloyd(values, list(start)) * (1 + 1e-5) for start in starts)


def test_separate_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(m, 0.02, n) for m, n in ((0.1, 50), (0.5, 20), (0.9, 4))])
    np.testing.assert_array_equal(find(values, 3), values > 0.7)
    mask = np.arange(74) < 70  # without the highest group a lower one is
    found = find(values, 3, mask)
    assert found.any() and (values[found] > 0.3).all() and not found[70:].any()


def test_many_values_in_float32_are_cut_as_in_float64():
    """As large as images are: high inertia beside a cut that decides little of it."""
    rng = np.random.default_rng(1)
    values = (rng.random(2000) ** 12).astype(np.float32)
    ranked = np.sort(values.astype(np.float64))[::-1]
    sums = [np.concatenate([[0], np.cumsum(ranked**power)]) for power in (1, 2)]
    edge = np.arange(2001)

    def inertia(start, end):
        return (
            sums[1][end]
            - sums[1][start]
            - (sums[0][end] - sums[0][start]) ** 2 / np.maximum(end - start, 1)
        )

    pairs = inertia(0, edge[:, None]) + inertia(edge[:, None], edge) + inertia(edge, 2000)
    pairs = np.where((edge[:, None] > 0) & (edge[:, None] < edge), pairs, np.inf)
    assert pairs[find(values, 3).sum()].min() <= pairs.min() * (1 + 1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([0.2], [0]),
        ([0.2, 0.9], [1]),
        ([0.2, 0.9, 0.5], [1]),
        ([0.25] * 7, list(range(7))),
        ([0.3, 0.7, 0.3, 0.7, 0.7], [1, 3, 4]),
        ([0.0, 0.0, 1e-30], [2]),
    ],
)
def test_few_and_equal_values(values, expected):
    for num_clusters in (3, 5):
        assert np.flatnonzero(find(values, num_clusters)).tolist() == expected
    assert find(values, 1).all()


def test_nothing_takes_part():
    assert not find([0.1, 0.5], 3, np.zeros(2, bool)).any()


def test_of_equally_good_clusterings_the_lower_cluster_is_the_larger():
    assert find([0.0, 1.0, 2.0], 2).tolist() == [False, False, True]


def test_a_batch_is_its_rows():
    rng = np.random.default_rng(2)
    values = (rng.random((3, 40)) ** 4).astype(np.float32)
    mask = rng.random((3, 40)) < 0.8
    over_rows = jax.jit(jax.vmap(functools.partial(kmeans.top_cluster, num_clusters=3)))
    batch = over_rows(values, mask)
    for n in range(3):
        np.testing.assert_array_equal(batch[n], find(values[n], 3, mask[n]))


def test_memory_is_far_below_that_of_all_pairs():
    arguments = jax.ShapeDtypeStruct((2048,), jnp.float32), jax.ShapeDtypeStruct((2048,), bool)
    program = top_cluster.lower(*arguments, num_clusters=3).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 2048**2 / 4


def test_no_cluster_is_refused():
    with pytest.raises(ValueError, match="num_clusters.* 0"):
        top_cluster(jnp.ones(3), jnp.ones(3, bool), num_clusters=0)


def test_lowers_for_accelerators():
    exported = jax.export.export(top_cluster, platforms=["tpu", "cuda"])(
        jnp.ones(9), jnp.ones(9, bool), num_clusters=3
    )
    assert exported.platforms == ("tpu", "cuda")
