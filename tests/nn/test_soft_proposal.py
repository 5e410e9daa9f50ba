"""The soft proposal module couples a map with M, in the gradient too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import soft_proposal as oracle
from wsod_jax.nn.spn_network import SoftProposal
from wsod_jax.ops.soft_proposal import soft_proposals
from wsod_jax.types import FeatureMap

SIZE = jnp.array([[4, 5], [3, 2]])


@pytest.fixture
def features():
    values = np.random.default_rng(0).standard_normal((2, 4, 5, 6))
    values[1, 3:] = values[1, :, 2:] = 0.0
    return jnp.asarray(np.maximum(values, 0), jnp.float32)


def couple(features, size=SIZE, **options):
    module = SoftProposal(**options)
    return jax.jit(lambda *maps: module.apply({}, FeatureMap(*maps, 8.0)))(features, size)


def test_has_no_parameters(features):
    maps = FeatureMap(features, SIZE, 8.0)
    assert jax.eval_shape(SoftProposal().init, jax.random.key(0), maps) == {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "stationary"},
        {"solver": "uniform"},
        {"epsilon_rule": "area", "epsilon_factor": 0.3},
        {"num_steps": 2, "tolerance": 0.0},
        {"block_nodes": 3},
    ],
)
def test_every_channel_is_multiplied_with_the_proposal_map(features, options):
    coupled = couple(features, **options)
    expected = soft_proposals(features, SIZE, **options)
    np.testing.assert_allclose(coupled.proposal_map, expected, rtol=1e-6)
    np.testing.assert_allclose(
        coupled.maps.features, features * coupled.proposal_map[..., None], rtol=1e-6
    )
    np.testing.assert_array_equal(coupled.maps.size, SIZE)


def test_options_reach_the_walk(features):
    first = couple(features).proposal_map
    for options in (
        {"solver": "stationary"},
        {"solver": "uniform"},
        {"epsilon_rule": "area"},
        {"epsilon_factor": 0.3},
        {"num_steps": 1},
        {"tolerance": 0.05},
    ):
        assert np.abs(couple(features, **options).proposal_map - first).max() > 1e-5, options


def test_the_sum_over_cells_is_a_mean_weighted_with_the_map(features):
    coupled = couple(features)
    summed = jnp.sum(coupled.maps.features, axis=(1, 2))
    for b, (height, width) in enumerate(np.asarray(SIZE)):
        image = np.asarray(features[b, :height, :width], np.float64)
        mass = oracle.walk(oracle.weight_matrix(image, 0.15 * np.sqrt(height * width)))
        expected = np.average(image.reshape(-1, 6), axis=0, weights=mass)
        np.testing.assert_allclose(summed[b], expected, rtol=1e-3)


def test_unit_mean_multiplies_with_a_map_of_mean_one(features):
    plain, scaled = couple(features), couple(features, unit_mean=True)
    cells = np.prod(SIZE, axis=1)[:, None, None, None]
    np.testing.assert_allclose(scaled.maps.features, plain.maps.features * cells, rtol=1e-6)
    np.testing.assert_array_equal(scaled.proposal_map, plain.proposal_map)  # M itself sums to 1
    uniform = couple(features, solver="uniform", unit_mean=True)
    np.testing.assert_allclose(uniform.maps.features, features, rtol=1e-6)


@pytest.mark.parametrize("unit_mean", [False, True])
def test_the_gradient_is_the_map_times_what_arrives(features, unit_mean):
    coupled, pullback = jax.vjp(lambda x: couple(x, unit_mean=unit_mean).maps.features, features)
    arriving = jnp.asarray(np.random.default_rng(1).standard_normal(features.shape), jnp.float32)
    factor = soft_proposals(features, SIZE)[..., None]
    if unit_mean:
        factor = factor * jnp.prod(SIZE, axis=1)[:, None, None, None]
    np.testing.assert_allclose(pullback(arriving)[0], factor * arriving, rtol=1e-5)


def test_the_gradient_is_that_of_a_map_held_fixed_and_not_of_a_free_one(features):
    weight = jnp.asarray(np.random.default_rng(2).standard_normal(features.shape), jnp.float32)
    fixed = soft_proposals(features, SIZE)[..., None]
    direction = jnp.where(features > 0.2, weight, 0.0)

    def energy(x, proposal_map=None):
        coupled = x * proposal_map if proposal_map is not None else couple(x).maps.features
        return jnp.sum(jnp.sin(coupled) * weight)

    def slope(*held):
        step = 1e-2
        ends = (energy(features + sign * step * direction, *held) for sign in (1, -1))
        return float(next(ends) - next(ends)) / (2 * step)

    analytic = float(jnp.sum(jax.grad(energy)(features) * direction))
    assert slope(fixed) == pytest.approx(analytic, rel=1e-3)
    assert abs(slope() - analytic) > 0.01 * abs(analytic)


def test_keeps_the_type_of_the_features(features):
    coupled = couple(features.astype(jnp.bfloat16), unit_mean=True)
    assert coupled.maps.features.dtype == jnp.bfloat16
    assert coupled.proposal_map.dtype == jnp.float32


def test_an_image_without_cells_passes_as_zeros(features):
    coupled = couple(features * 0, jnp.zeros((2, 2), jnp.int32), unit_mean=True)
    np.testing.assert_array_equal(coupled.maps.features, np.zeros(features.shape))
    np.testing.assert_array_equal(coupled.proposal_map, np.zeros((2, 4, 5)))
