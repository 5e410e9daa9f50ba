"""Whole losses, term by term, against NumPy loops over the network's own scores and features."""

import functools
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.methods.cases import (
    KEY,
    STEP,
    build,
    changed,
    make_batch,
    means,
    params,
    predict_function,
)
from tests.oracles import losses, mining

ALPHA = 1.2


def evaluate(method, name, batch):
    """Return the method's output, and what its network says of the same batch with the same dropout."""

    @jax.jit
    def run(values, batch):
        outputs = method.score(values, batch, KEY)
        return method.loss(values, {}, batch, KEY, STEP), outputs

    out, outputs = run(params(name), batch)
    arrays = {
        field: np.asarray(value) for field, value in vars(outputs).items() if value is not None
    }
    return out, SimpleNamespace(**arrays)


def per_image(outputs, batch):
    """Yield (labels, boxes, sources per stage, logits per stage, features, clean) of real proposals."""
    for image in range(len(batch.labels)):
        real = outputs.mask[image]
        refined = [losses.softmax(stage)[:, 1:] for stage in outputs.refine_logits[image][:, real]]
        sources = [outputs.mil_scores[image][real], *refined[:-1]]
        yield (
            np.asarray(batch.labels[image]),
            np.asarray(batch.proposals[image])[real],
            sources,
            outputs.refine_logits[image][:, real],
            outputs.features[image][real],
            outputs.clean[image][real],
        )


def compare(out, name, values):
    np.testing.assert_allclose(out.terms[name].total, values, rtol=2e-5, err_msg=name)


def weighted(logits, targets, factor=1.0, mode="off", core_sign=-1, normalizer="weighted"):
    multiplier = losses.multiplier(targets, mode, 0.2, core_sign)
    labels, weights = targets["labels"], targets["weights"]
    return factor * losses.refinement(logits, labels, weights, multiplier, normalizer)


def check_stages(out, outputs, batch, stage_loss):
    """Compare all refinement terms with `stage_loss(image, stage)`; each must say something."""
    images = list(per_image(outputs, batch))
    for stage in range(3):
        values = [stage_loss(image, stage) for image in images]
        assert np.abs(values).max() > 1e-2
        compare(out, f"refine_{stage + 1}", values)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_wsddn(reduction):
    method = build("wsddn", options={"mil_reduction": reduction, "mil_scale": 4.0})
    shifts = np.array(list(itertools.product([0, 8], repeat=4)))  # 16 boxes that overlap much
    crowded = np.minimum(np.array([4, 4, 44, 32]) + shifts, [56, 40, 56, 40])
    batch = make_batch(21, labels=[[1, 0, -1], [1, 1, 0]])
    batch = changed(batch, proposals=np.stack([crowded, crowded]))
    out, outputs = evaluate(method, "wsddn", batch)
    images = list(per_image(outputs, batch))
    phi = [sources[0].sum(axis=0) for _, _, sources, *_ in images]
    expected = [
        losses.mil(p, image[0], reduction, 4.0) for p, image in zip(phi, images, strict=True)
    ]
    compare(out, "mil", expected)
    smooth = [
        0.01 * losses.spatial(image[2][0], image[1], image[0], image[4], mining.iou)
        for image in images
    ]
    assert max(smooth) > 0
    compare(out, "spatial", smooth)
    assert means(out.metrics)["phi_present"] == pytest.approx(
        np.mean([phi[0][0], phi[1][0], phi[1][1]]), rel=1e-5
    )


@pytest.mark.parametrize(
    ("mode", "sign", "normalizer"),
    [(None, -1, "weighted"), ("off", -1, "weighted"), ("paper", -1, "weighted")]
    + [("release", -1, "weighted"), ("release", 1, "real")],
)
def test_oicr(mode, sign, normalizer):
    """OICR, and OIM's loss on what OICR mines: the row "IR alone" of OIM's Table 6."""
    options = {"first_stage_scale": 3.0, "ignore_iou_thr": 0.1, "normalizer": normalizer}
    if mode is not None:
        options |= {"graphs": "spatial", "reweight": mode, "release_core_sign": sign}
    name = "oicr" if mode is None else "oim"
    batch = make_batch(22)
    out, outputs = evaluate(build(name, options=options), name, batch)

    def stage_loss(image, stage):
        labels, boxes, sources, logits, _, _ = image
        mined = mining.oicr(sources[stage], boxes, labels)
        targets = mining.assign(mined, sources[stage], boxes, ignore_iou_thr=0.1)
        scale = 3.0 if stage == 0 else 1.0
        return weighted(logits[stage], targets, scale, mode or "off", sign, normalizer)

    check_stages(out, outputs, batch, stage_loss)
    phi, labels = outputs.mil_scores.sum(axis=1), np.asarray(batch.labels)
    compare(out, "mil", [losses.mil(p, y) for p, y in zip(phi, labels, strict=True)])


def test_pcl():
    batch = make_batch(23)
    out, outputs = evaluate(build("pcl"), "pcl", batch)

    def stage_loss(image, stage):
        labels, boxes, sources, logits, _, _ = image
        mined = mining.pcl(sources[stage], boxes, labels)
        targets = mining.assign(mined, sources[stage], boxes)
        return losses.cluster(
            logits[stage], targets["labels"], targets["weights"], targets["matched_idx"]
        )

    check_stages(out, outputs, batch, stage_loss)


def test_mist():
    batch = make_batch(24)
    out, outputs = evaluate(build("mist"), "mist", batch)

    def stage_loss(image, stage):
        labels, boxes, sources, logits, _, _ = image
        mined = mining.mist(sources[stage], boxes, labels, top_fraction=0.3)
        targets = mining.assign(mined, sources[stage], boxes)
        return weighted(logits[stage], targets, 3.0 if stage == 0 else 1.0)

    check_stages(out, outputs, batch, stage_loss)


@functools.cache
def mined_with(tap):
    """OIM's output with dropout on, mining from features after or before the last dropout."""
    options = {"reweight": "paper", "alpha": ((0, ALPHA),), "mining_feature": tap, "max_nodes": 15}
    method = build("oim", dropout_rate=0.5, options=options)
    return evaluate(method, "oim", make_batch(25))


@pytest.mark.parametrize("tap", ["fc7_dropout", "fc7_clean"])
def test_oim(tap):
    batch = make_batch(25)
    out, outputs = mined_with(tap)
    nodes = []

    def stage_loss(image, stage):
        labels, boxes, sources, logits, features, clean = image
        seen = clean if tap == "fc7_clean" else features
        mined = mining.oim(sources[stage], boxes, labels, seen, ALPHA)
        nodes.append(len(mined) - labels.sum())
        targets = mining.assign(mined, sources[stage], boxes)
        return weighted(logits[stage], targets, mode="paper")

    check_stages(out, outputs, batch, stage_loss)
    assert sum(nodes) > 0
    assert means(out.metrics)["nodes"] == pytest.approx(np.mean(nodes))


def test_taps_of_oim_mine_differently():
    boxes = [np.asarray(mined_with(tap)[0].pseudo.index) for tap in ("fc7_dropout", "fc7_clean")]
    assert np.any(boxes[0] != boxes[1])


@pytest.mark.parametrize("name", ["wsddn", "oicr"])
def test_prediction_is_the_mean_of_the_heads(name):
    method, batch = build(name, dropout_rate=0.5), make_batch(26)
    detections = predict_function(method)(params(name), {}, batch)
    outputs = jax.jit(method.score)(params(name), batch)
    scores = outputs.mil_scores if name == "wsddn" else losses.softmax(outputs.refine_logits)
    if name == "oicr":
        scores = scores[..., 1:].mean(axis=1) * np.asarray(outputs.mask)[..., None]
    np.testing.assert_allclose(detections.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(detections.boxes, batch.proposals)
    phi = np.asarray(outputs.mil_scores).sum(axis=1)
    np.testing.assert_allclose(detections.image_scores, phi, rtol=1e-5)
