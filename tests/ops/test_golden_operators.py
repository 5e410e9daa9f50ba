"""Operators against numbers that other people's code gave; see tests/golden/operators/README.md."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import cases
from wsod_jax.ops.crf import CrfOptions, dense_crf
from wsod_jax.ops.nms import greedy_nms, nms_mask
from wsod_jax.ops.roi import roi_align, roi_max_pool
from wsod_jax.ops.soft_proposal import soft_proposals


def golden(name):
    """Run a test once for every case of a file."""
    return pytest.mark.parametrize(
        "of",
        [pytest.param(of, id=case) for case, of in cases(f"operators/{name}.npz")],
    )


def pool(operator, of, boxes, **options):
    """Pool boxes of a case by an operator; return [r, d, p, p] as the golden numbers lie."""
    features = jnp.asarray(of["features"].transpose(1, 2, 0))[None]
    out = operator(
        features,
        jnp.asarray(boxes)[None],
        jnp.ones((1, len(boxes)), bool),
        jnp.asarray([features.shape[1:3]]),
        output_size=int(of["size"]),
        spatial_scale=float(of["scale"]),
        **options,
    )
    return np.asarray(out)[0].transpose(0, 3, 1, 2)


@golden("roi_pool")
def test_roi_pooling_is_caffes(of):
    np.testing.assert_array_equal(pool(roi_max_pool, of, of["boxes"]), of["caffe"])


@golden("roi_align")
def test_roi_align(of):
    """Where the original chooses the number of samples by the box, boxes of as many rows as columns are compared."""
    boxes, ratio = of["boxes"], int(of["sampling_ratio"])
    extent = (boxes[:, 2:] - boxes[:, :2]) * of["scale"]
    samples = np.ceil(extent / of["size"]) if ratio == 0 else np.full((len(boxes), 2), ratio)
    compared = 0
    for count in np.unique(samples):
        rows = np.flatnonzero((samples == count).all(axis=1) & (count > 0))
        if len(rows):
            options = {"sampling_ratio": int(count), "aligned": bool(of["aligned"])}
            found = pool(roi_align, of, boxes[rows], **options)
            np.testing.assert_allclose(found, of["out"][rows], atol=2e-5)
        compared += len(rows)
    assert compared == len(boxes) if ratio else compared >= 2


@golden("nms")
def test_nms(of):
    boxes, scores, iou_thr = of["boxes"], of["scores"], float(of["threshold"])
    kept = nms_mask(
        jnp.asarray(boxes), jnp.asarray(scores), jnp.ones(len(boxes), bool), iou_thr=iou_thr
    )
    assert np.flatnonzero(kept).tolist() == sorted(of["kept"])
    order = np.argsort(-scores, kind="stable")
    assert order[greedy_nms(boxes[order], iou_thr=iou_thr)].tolist() == of["kept"].tolist()


@golden("spn")
def test_soft_proposals_are_the_released_ones(of):
    features = jnp.asarray(of["features"].transpose(0, 2, 3, 1))
    maps = soft_proposals(
        features,
        jnp.tile(jnp.asarray(features.shape[1:3]), (len(features), 1)),
        epsilon_rule="area" if of["rule_is_area"] else "side",
        epsilon_factor=float(of["epsilon_factor"]),
    )
    scale = of["proposals"].max()
    np.testing.assert_allclose(maps / scale, of["proposals"] / scale, atol=2e-6)
    coupled = features * maps[..., None]
    np.testing.assert_allclose(coupled.sum((1, 2)), of["pooled"], rtol=1e-5, atol=1e-12)
    if "coupled" in of:
        expected = of["coupled"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(coupled, expected, atol=2e-6 * np.abs(expected).max())


@golden("dense_crf")
def test_dense_crf(of, request):
    """The original approximates both kernels by a lattice, so single pixels differ where colors are noise."""
    p = jnp.asarray(of["prob"].transpose(1, 2, 0))
    options = CrfOptions(
        gaussian_weight=float(of["gauss_w"]),
        gaussian_xy=float(of["gauss_xy"]),
        bilateral_weight=float(of["bi_w"]),
        bilateral_xy=float(of["bi_xy"]),
        bilateral_rgb=float(of["bi_rgb"]),
        num_iterations=int(of["n_iter"]),
    )
    size = jnp.array([p.shape[:2]])
    found = dense_crf(p[None], jnp.asarray(of["image"])[None], size, options)[0]
    found, expected = np.asarray(found).transpose(2, 0, 1), of["Q"]
    structured = request.node.callspec.id.startswith(("two", "flat", "ramp-1x9"))
    same = (found.argmax(axis=0) == expected.argmax(axis=0)).mean()
    assert same >= (0.99 if structured else 0.97)
    assert np.abs(found - expected).mean() < (0.01 if structured else 0.02)
    assert np.abs((found - expected).mean(axis=(1, 2))).max() < (1e-3 if structured else 0.02)
