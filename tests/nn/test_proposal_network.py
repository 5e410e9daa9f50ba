"""The network's objectness gate; its parts and the methods on it have tests of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import build, make_batch
from wsod_jax.nn.proposal_network import ProposalNetwork
from wsod_jax.types import FeatureMap


@pytest.fixture
def batch():
    """Two images whose proposals have scores; whatever stands in the masked row must not matter."""
    batch = make_batch(3)
    scores = np.random.default_rng(0).uniform(size=batch.proposal_mask.shape).astype(np.float32)
    scores[~np.asarray(batch.proposal_mask)] = np.nan
    return batch.replace(proposal_scores=scores)


def pooled(batch, gate: float) -> np.ndarray:
    size = batch.image_size // 8
    features = np.random.default_rng(1).normal(size=(2, 6, 8, 5)).astype(np.float32)
    net = build("wsddn", options={"score_gate": gate}).network
    maps = FeatureMap(jnp.asarray(features), size, 8.0)
    return np.asarray(net.apply({}, maps, batch, batch.proposal_mask, method=ProposalNetwork.pool))


def test_gate_multiplies_pooled_features_by_one_plus_gate_times_score(batch):
    plain, gated = pooled(batch, 0.0), pooled(batch, 10.0)
    assert np.any(plain[np.asarray(batch.proposal_mask)])
    factors = 1 + 10 * np.where(batch.proposal_mask, batch.proposal_scores, 0)
    np.testing.assert_allclose(gated, plain * factors[:, :, None, None, None], rtol=1e-6)
    assert not np.any(gated[~np.asarray(batch.proposal_mask)])


def test_no_gate_without_scores(batch):
    without = batch.replace(proposal_scores=None)
    np.testing.assert_array_equal(pooled(without, 10.0), pooled(batch, 0.0))


def test_gated_scores_do_not_depend_on_padding(batch):
    net = build("wsddn", options={"score_gate": 10.0}).network
    params = net.init(jax.random.key(0), batch)
    scores = np.asarray(net.apply(params, batch).mil_scores)
    zeros = np.where(batch.proposal_mask, batch.proposal_scores, 0)
    again = net.apply(params, batch.replace(proposal_scores=zeros)).mil_scores
    np.testing.assert_array_equal(scores, again)
    assert np.isfinite(scores).all() and scores.any()
