"""The network's objectness gate; its parts and the methods on it have tests of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import build, make_batch
from wsod_jax.nn.efficientnet_lite import EfficientNetLite0
from wsod_jax.nn.proposal_network import ProposalNetwork
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.vgg import Vgg16
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
    mask = batch.proposal_mask
    plain = net.apply({}, maps, batch, mask, method=ProposalNetwork.pool)
    return np.asarray(net.apply({}, plain, batch, mask, method=ProposalNetwork.gate))


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


@pytest.mark.parametrize(
    "backbone", [SqueezeNet(roi_mapping="receptive_field"), EfficientNetLite0()]
)
@pytest.mark.parametrize("pooling, reach", [("max", 0.0), ("align", 0.5)])
def test_cells_are_found_where_the_backbone_has_them(backbone, pooling, reach):
    """A box over cells 2 to 4 by 1 to 3, through the outer ones' centers or around them, gives just these cells."""
    y, x = pooled_corners(backbone, pooling, reach, first_px=15.5)
    np.testing.assert_allclose(y, [2, 3, 4], atol=1e-5)
    np.testing.assert_allclose(x, [1, 2, 3], atol=1e-5)


@pytest.mark.parametrize("backbone", [Vgg16(dilated=False), SqueezeNet()])
@pytest.mark.parametrize("pooling, reach", [("max", 0.0), ("align", 0.5)])
def test_published_models_divide_edges_by_the_stride(backbone, pooling, reach):
    y, x = pooled_corners(backbone, pooling, reach, first_px=16 * reach)
    np.testing.assert_allclose(y, [2, 3, 4], atol=1e-5)
    np.testing.assert_allclose(x, [1, 2, 3], atol=1e-5)


def pooled_corners(backbone, pooling, reach, first_px):
    """Return rows and columns that 3x3 bins of one box see, of a map whose cells say where they are."""
    rows, columns = np.mgrid[:8, :9].astype(np.float32)
    maps = FeatureMap(jnp.stack([rows, columns], -1)[None], jnp.array([[8, 9]]), 16.0)
    low, high = np.array([1, 2]) - reach, np.array([3, 4]) + reach  # x, y, in cells
    box = np.concatenate([low, high]) * 16 + first_px
    batch = make_batch(3)
    boxes = np.zeros_like(batch.proposals)[:1]
    boxes[0, 0] = box
    batch = batch.replace(proposals=jnp.asarray(boxes), proposal_scores=None)
    mask = jnp.zeros(boxes.shape[:2], bool).at[0, 0].set(True)
    net = build("wsddn", options={"pooling": pooling}).network
    net = net.clone(backbone=backbone)
    found = np.asarray(net.apply({}, maps, batch, mask, method=ProposalNetwork.pool))[0, 0]
    assert (found[:, :, 0] == found[:, :1, 0]).all() and (found[..., 1] == found[:1, :, 1]).all()
    return found[:, 0, 0], found[0, :, 1]
