"""The image classifier: cross-entropies by hand, unknown labels, fillers, larger canvases."""

import jax
import numpy as np
import pytest

from tests.methods.cases import (
    KEY,
    STEP,
    assert_close,
    assert_finite,
    changed,
    make_batch,
    means,
    predict_function,
)
from tests.oracles.losses import softmax
from wsod_jax.methods.classifier import Classifier
from wsod_jax.nn.tiny import TinyNet


def build(activation):
    backbone = TinyNet(widths=(4, 4, 8, 8))
    return Classifier(backbone=backbone, num_classes=3, activation=activation)


def batch_of(seed, **fields):
    return changed(make_batch(seed), **fields).replace(
        proposals=None, proposal_mask=None, representative=None
    )


@pytest.fixture(scope="module")
def params():
    drawn, _ = build("softmax").init(jax.random.key(0), batch_of(0))
    return drawn | {"head": jax.tree.map(lambda x: 100 * x, drawn["head"])}


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def activation(request):
    return request.param


@pytest.fixture(scope="module")
def run(activation):
    method = build(activation)

    def objective(values, batch):
        out = method.loss(values, {}, batch, KEY, STEP)
        return sum(term.mean() for term in out.terms.values()), out

    loss = jax.jit(jax.grad(objective, has_aux=True))
    predict = predict_function(method)
    return lambda values, batch: (*loss(values, batch), predict(values, {}, batch).image_scores)


def test_cross_entropy_of_its_own_probabilities(activation, run, params):
    labels = np.array(
        [[0, 1, 0], [1, 0, 0]] if activation == "softmax" else [[0, 1, -1], [1, 1, 0]]
    )
    grads, out, probabilities = run(params, batch_of(1, labels=labels))
    p = np.asarray(probabilities, np.float64)
    assert np.ptp(p) > 0.05
    if activation == "softmax":
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        expected = -np.log(p[labels == 1])
    else:
        every = np.where(labels == 1, -np.log(p), -np.log1p(-p)) * (labels >= 0)
        expected = every.sum(axis=1) / (labels >= 0).sum(axis=1)
    np.testing.assert_allclose(out.terms["classification"].total, expected, rtol=1e-4)
    hits = labels[[0, 1], p.argmax(axis=1)] == 1
    assert means(out.metrics) == {"top1": hits.mean()}
    assert set(out.terms) == {"classification"} and out.pseudo is None
    assert any(np.any(g) for g in jax.tree.leaves(grads["backbone"]))


@pytest.mark.parametrize(
    "fields",
    [
        dict(labels=np.zeros((2, 3))),
        dict(labels=-np.ones((2, 3))),
        dict(labels=np.ones((2, 3))),
        dict(image_mask=[False, False], image_size=[[1, 1], [1, 1]]),
    ],
)
def test_degenerate_batches_are_finite(run, params, fields):
    grads, out, _ = run(params, batch_of(2, **fields))
    assert_finite((grads, out.terms, out.metrics))
    if "image_mask" in fields:
        assert means(out.terms) == {"classification": 0.0}


def test_margin_and_fillers_change_nothing(run, params):
    batch = batch_of(3, image_mask=[True, False])
    image = np.full((2, 64, 96, 3), 77.0, np.float32)
    image[0, :48, :64] = batch.image[0]
    grads, out, scores = run(params, batch)
    more_grads, more, more_scores = run(params, batch.replace(image=image))
    assert_close((grads, out.terms, scores[0]), (more_grads, more.terms, more_scores[0]))
    assert out.terms["classification"].weight[1] == 0


def test_probabilities_are_the_softmax_of_the_logits(params):
    method, batch = build("softmax"), batch_of(4)
    logits = method.network.apply({"params": params}, batch)
    scores = method.predict(params, {}, batch, method.outputs).image_scores
    np.testing.assert_allclose(scores, softmax(logits), rtol=1e-5)
