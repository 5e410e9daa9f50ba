"""Soft proposals equal a walk done edge by edge, in blocks too; and what holds of every proposal map."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tests.oracles import soft_proposal as oracle
from wsod_jax.errors import ConfigError
from wsod_jax.ops.soft_proposal import random_walk, soft_proposals

RULES = {"side": lambda h, w: math.sqrt(h * w), "area": lambda h, w: h * w}
OPTIONS = ("solver", "epsilon_rule", "epsilon_factor", "tolerance", "block_nodes")
generate = jax.jit(soft_proposals, static_argnames=OPTIONS)


def draw(seed, *shape):
    """Return features as a ReLU leaves them: about half are 0."""
    return np.maximum(np.random.default_rng(seed).standard_normal(shape), 0).astype(np.float32)


def proposals(features, **options):
    """Return M [h, w] of one map that fills its canvas."""
    size = jnp.array([features.shape[:2]], jnp.int32)
    return np.asarray(generate(jnp.asarray(features)[None], size, **options)[0])


def expected(features, solver="walk", rule="side", factor=0.15, **walk):
    """Return M [h, w] edge by edge."""
    height, width = features.shape[:2]
    matrix = oracle.weight_matrix(features, factor * RULES[rule](height, width))
    if solver == "walk":
        mass = oracle.walk(matrix, **walk)
    else:
        mass = matrix.sum(axis=1) / matrix.sum()
    return mass.reshape(height, width)


def two_valued(height, width):
    """Return a map on whose graph every edge joins a cell of one kind with one of the other."""
    features = np.zeros((height, width, 1), np.float32)
    features[1, 1:3] = 1.0
    return features


@pytest.mark.parametrize("block_nodes", [None, 7])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("solver", ["walk", "stationary"])
@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 6), (6, 1), (1, 2)])
def test_equals_the_oracle(shape, solver, rule, block_nodes):
    features = draw(0, *shape, 6)
    found = proposals(features, solver=solver, epsilon_rule=rule, block_nodes=block_nodes)
    np.testing.assert_allclose(found, expected(features, solver, rule), rtol=2e-4, atol=1e-7)


def test_the_rules_of_epsilon_differ_and_the_factor_scales_it():
    features = draw(1, 5, 6, 4)
    maps = [
        proposals(features, epsilon_rule="side"),
        proposals(features, epsilon_rule="area"),
        proposals(features, epsilon_factor=0.6),
    ]
    np.testing.assert_allclose(maps[2], expected(features, factor=0.6), rtol=2e-4)
    assert min(np.abs(a - b).max() for a, b in zip(maps, maps[1:] + maps[:1], strict=True)) > 1e-3
    scaled = 0.15 * 30 / math.sqrt(30)  # the factor that makes "side" mean what "area" means
    np.testing.assert_allclose(proposals(features, epsilon_factor=scaled), maps[1], rtol=1e-5)


@pytest.mark.parametrize("solver", ["walk", "stationary"])
@pytest.mark.parametrize("block_nodes", [1, 4, 5, 7, 34, 35, 36, 1000])
def test_blocks_change_nothing(solver, block_nodes):
    features = draw(2, 5, 7, 6)
    found = proposals(features, solver=solver, block_nodes=block_nodes)
    np.testing.assert_allclose(found, proposals(features, solver=solver), rtol=1e-5)


@pytest.mark.parametrize("block_nodes", [None, 11])
@pytest.mark.parametrize("solver", ["walk", "stationary", "uniform"])
@pytest.mark.parametrize("margin", [(0, 3), (2, 0), (4, 5)])
def test_the_margin_is_inert(solver, margin, block_nodes):
    features = draw(3, 5, 6, 4)
    options = {"solver": solver, "block_nodes": block_nodes}
    alone = proposals(features, **options)
    for garbage in (1e6, np.nan, np.inf):
        wide = np.pad(features, ((0, margin[0]), (0, margin[1]), (0, 0)), constant_values=garbage)
        found = generate(jnp.asarray(wide)[None], jnp.array([[5, 6]]), **options)[0]
        np.testing.assert_allclose(found[:5, :6], alone, rtol=1e-5)
        outside = np.ones(wide.shape[:2], bool)
        outside[:5, :6] = False
        assert not np.any(np.asarray(found)[outside])


@pytest.mark.parametrize("block_nodes", [None, 4])
@pytest.mark.parametrize("solver", ["walk", "stationary", "uniform"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (1, 4), (5, 5)])
def test_equal_cells_get_exactly_equal_shares(size, value, solver, block_nodes):
    features = jnp.full((1, 5, 5, 3), value)
    found = generate(features, jnp.array([size]), solver=solver, block_nodes=block_nodes)[0]
    assert np.unique(found[: size[0], : size[1]]) == np.float32(1 / math.prod(size))
    assert np.count_nonzero(found) == math.prod(size)


@pytest.mark.parametrize("block_nodes", [None, 4])
@pytest.mark.parametrize("solver", ["walk", "stationary", "uniform"])
@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_no_cells_get_nothing(size, solver, block_nodes):
    features = jnp.asarray(draw(4, 1, 3, 3, 2))
    found = generate(features, jnp.array([size]), solver=solver, block_nodes=block_nodes)
    np.testing.assert_array_equal(found, np.zeros((1, 3, 3)))


def test_one_odd_cell_draws_the_mass_of_all_others():
    features = np.zeros((3, 5, 2), np.float32)
    features[1, 2] = 1.0
    found = proposals(features, solver="stationary", epsilon_factor=10.0)
    assert found[1, 2] == pytest.approx(0.5, rel=1e-5) and found.argmax() == 7
    before_hopping = proposals(features, num_steps=1)
    assert before_hopping[1, 2] == pytest.approx(14 / 15, rel=1e-5)


def test_mass_oscillates_between_two_kinds_where_a_patient_walk_settles():
    features = two_valued(4, 5)
    even, odd = (proposals(features, num_steps=steps, tolerance=0.0) for steps in (60, 61))
    assert np.abs(even - odd).max() > 0.1
    np.testing.assert_allclose(proposals(features, num_steps=62, tolerance=0.0), even, atol=1e-5)
    matrix = oracle.weight_matrix(features, 0.15 * math.sqrt(20))
    settled = oracle.damped_walk(matrix).reshape(4, 5)
    found = proposals(features, solver="stationary")
    np.testing.assert_allclose(found, settled, rtol=1e-5, atol=1e-8)
    assert np.abs(even - settled).max() > 0.05


@pytest.mark.parametrize("turn", [np.flipud, np.fliplr, lambda x: np.swapaxes(x, 0, 1), np.rot90])
@pytest.mark.parametrize("solver", ["walk", "stationary"])
def test_turned_maps_give_turned_proposals(turn, solver):
    features = draw(5, 4, 6, 5)
    found = proposals(np.ascontiguousarray(turn(features)), solver=solver)
    np.testing.assert_allclose(found, turn(proposals(features, solver=solver)), rtol=1e-4)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(0, 6),
    width=st.integers(0, 6),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    kinds=st.integers(1, 3),
    solver=st.sampled_from(["walk", "stationary", "uniform"]),
)
def test_a_proposal_map_is_a_distribution_over_the_valid_cells(
    seed, height, width, scale, kinds, solver
):
    """Cells of few kinds: ties, zero distances, and cells far from all that differ from them."""
    rng = np.random.default_rng(seed)
    palette = scale * rng.random((kinds, 2))
    features = palette[rng.integers(0, kinds, (6, 6))].astype(np.float32)
    found = generate(
        jnp.asarray(features)[None],
        jnp.array([[height, width]]),
        solver=solver,
        epsilon_factor=0.05,
    )[0]
    found = np.asarray(found)
    assert np.isfinite(found).all() and (found >= 0).all()
    assert found.sum() == pytest.approx(float(height * width > 0), abs=1e-5)
    assert not found[height:].any() and not found[:, width:].any()


@pytest.mark.parametrize("block_nodes", [None, 8])
def test_a_batch_equals_its_images(block_nodes):
    features = jnp.asarray(draw(6, 4, 5, 5, 3)).at[2].set(1.0)
    size = jnp.array([[5, 5], [3, 4], [5, 5], [0, 0]])
    together = generate(features, size, block_nodes=block_nodes)
    for i in range(4):
        alone = generate(features[i : i + 1], size[i : i + 1], block_nodes=block_nodes)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5)


def test_bfloat16_features_are_compared_in_float32():
    features = jnp.asarray(draw(7, 5, 5, 64), jnp.bfloat16)
    found = proposals(features)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, proposals(np.asarray(features, np.float32)))
    np.testing.assert_allclose(found, expected(np.asarray(features, np.float64)), rtol=2e-4)


def test_a_common_offset_of_all_cells_changes_little():
    """Distances of cells far from the origin are differences of large numbers if taken naively."""
    features = draw(8, 5, 5, 16)
    found = proposals(features + np.float32(1000))
    np.testing.assert_allclose(found, expected(features), rtol=2e-3)


@pytest.mark.parametrize("solver", ["walk", "stationary"])
def test_the_map_is_a_constant_to_gradients(solver):
    features = jnp.asarray(draw(9, 1, 4, 4, 3)).at[0, 0].set(0.0)  # equal cells: sqrt at 0

    def peak(x):
        return jnp.max(soft_proposals(x, jnp.array([[4, 4]]), solver=solver))

    np.testing.assert_array_equal(jax.jit(jax.grad(peak))(features), np.zeros(features.shape))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 20])
def test_takes_so_many_steps_at_most(num_steps):
    features = draw(10, 4, 5, 3)
    found = proposals(features, num_steps=num_steps, tolerance=0.0)
    want = expected(features, num_steps=num_steps, tolerance=0.0)
    np.testing.assert_allclose(found, want, rtol=2e-4)
    if num_steps == 0:
        assert np.unique(found) == np.float32(1 / 20)


def test_stops_before_the_step_that_falls_short():
    """A tolerance between the lengths of steps k and k + 1 leaves the map as it is after k steps."""
    features = draw(11, 4, 5, 3)
    visited = [proposals(features, num_steps=k, tolerance=0.0) for k in range(6)]
    lengths = [np.linalg.norm(b - a) for a, b in zip(visited, visited[1:], strict=False)]
    assert all(a > 1.5 * b for a, b in zip(lengths, lengths[1:], strict=False))
    for k in range(5):
        for share, taken in ((0.9, k + 1), (1.1, k)):  # step k + 1 has length lengths[k]
            found = proposals(features, tolerance=share * float(lengths[k]))
            np.testing.assert_allclose(found, visited[taken], rtol=1e-5)


def test_one_program_walks_any_number_of_steps():
    traced = []

    @jax.jit
    def walk(features, size, steps):
        traced.append(steps)
        return soft_proposals(features, size, num_steps=steps, tolerance=0.0)

    features, size = jnp.asarray(draw(12, 1, 4, 4, 3)), jnp.array([[4, 4]])
    for steps in (0, 1, 7):
        found = walk(features, size, jnp.int32(steps))[0]
        constant = proposals(features[0], num_steps=steps, tolerance=0.0)
        np.testing.assert_allclose(found, constant, rtol=1e-5)
    assert len(traced) == 1


def test_random_walk_stays_where_no_mass_would_be_left():
    start = jnp.array([0.25, 0.75])
    walk = functools.partial(random_walk, num_steps=3, tolerance=0.0)
    np.testing.assert_array_equal(walk(jnp.zeros_like, start), start)
    np.testing.assert_array_equal(walk(lambda x: x[::-1], start), start[::-1])  # an odd number
    np.testing.assert_allclose(walk(lambda x: 2 * x[::-1], start), start[::-1])  # renormalized


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "degree"}, "solver(.|\n)*degree"),
        ({"epsilon_rule": "sides"}, "epsilon_rule(.|\n)*sides"),
        ({"epsilon_factor": 0.0}, r"epsilon_factor.* 0.0"),
        ({"epsilon_factor": -1.0}, r"epsilon_factor.* -1.0"),
        ({"block_nodes": 0}, r"block_nodes.* 0"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises((ConfigError, TypeCheckError), match=message):
        soft_proposals(jnp.zeros((1, 2, 2, 1)), jnp.array([[2, 2]]), **options)
