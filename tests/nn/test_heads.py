"""Neck, heads and dropout: the printed formulas, masks, keys per image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.heads import BoxRegression, CamHead, GapClassifier, MidnHead, RefinementHeads
from wsod_jax.nn.layers import per_image_dropout
from wsod_jax.types import FeatureMap


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_midn_is_the_product_of_two_softmaxes(rng, temperature):
    features = jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32)
    mask = jnp.array([[True] * 6, [True, False, True, True, False, False]])
    head = MidnHead(3, det_temperature=temperature)
    params = head.init(jax.random.key(0), features, mask)
    params = jax.tree.map(lambda x: x * 50 + 0.1, params)
    scores = head.apply(params, features, mask)
    det, cls = (
        np.asarray(features) @ np.asarray(params["params"][name]["kernel"]) + 0.1
        for name in ("det", "cls")
    )
    for b in range(2):
        real = np.flatnonzero(mask[b])
        expected = np.zeros((6, 3))
        expected[real] = softmax(det[b][real] / temperature, 0) * softmax(cls[b][real], 1)
        np.testing.assert_allclose(scores[b], expected, atol=1e-6)


def test_midn_without_proposals_gives_zeros_and_finite_gradients(rng):
    features = jnp.asarray(rng.normal(size=(1, 4, 5)), jnp.float32)
    mask = jnp.zeros((1, 4), bool)
    head = MidnHead(3, 1.0)
    params = head.init(jax.random.key(0), features, mask)
    assert not np.any(head.apply(params, features, mask))
    grads = jax.grad(lambda p: head.apply(p, features, mask).sum())(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_refinement_heads_are_independent_linear_layers(rng):
    features = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.bfloat16)
    head = RefinementHeads(3, num_stages=2)
    params = head.init(jax.random.key(0), features)
    params["params"]["bias"] = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    logits = head.apply(params, features)
    assert logits.shape == (2, 2, 4, 4) and logits.dtype == jnp.float32
    for s in range(2):
        expected = np.asarray(features, np.float32) @ np.asarray(
            params["params"]["kernel"][s]
        ) + np.asarray(params["params"]["bias"][s])
        np.testing.assert_allclose(logits[:, s], expected, atol=1e-6)


def test_box_regression_is_a_linear_layer_per_stage_and_class(rng):
    features = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.bfloat16)
    head = BoxRegression(3, num_stages=2)
    params = head.init(jax.random.key(0), features)
    params["params"]["bias"] = jnp.asarray(rng.normal(size=(2, 12)), jnp.float32)
    deltas = head.apply(params, features)
    assert deltas.shape == (2, 2, 4, 3, 4) and deltas.dtype == jnp.float32
    kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
    for s, c in np.ndindex(2, 3):
        own = slice(4 * c, 4 * c + 4)
        expected = np.asarray(features, np.float32) @ kernel[s][:, own] + bias[s, own]
        np.testing.assert_allclose(deltas[:, s, :, c], expected, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [MidnHead(3, 1.0), RefinementHeads(3, 3), BoxRegression(3, 3), CamHead(3, 0.5)],
)
def test_products_are_float32_on_accelerators_too(head):
    given = {
        MidnHead: (jnp.zeros((1, 4, 5)), jnp.ones((1, 4), bool)),
        RefinementHeads: (jnp.zeros((1, 4, 5)),),
        BoxRegression: (jnp.zeros((1, 4, 5)),),
        CamHead: (FeatureMap(jnp.zeros((1, 2, 2, 5)), jnp.array([[2, 2]]), 8.0), None),
    }[type(head)]
    params = head.init(jax.random.key(0), *given)
    products = [
        equation.params["precision"]
        for equation in jax.make_jaxpr(head.apply)(params, *given).eqns
        if equation.primitive.name == "dot_general"
    ]
    highest = jax.lax.Precision.HIGHEST
    assert products and all(found == (highest, highest) for found in products)


@pytest.mark.parametrize(("head", "deviation"), [(RefinementHeads, 0.01), (BoxRegression, 0.001)])
def test_head_kernels_start_small(head, deviation):
    params = head(20, 3).init(jax.random.key(0), jnp.zeros((1, 1, 512)))["params"]
    assert np.isclose(np.std(params["kernel"]), deviation, rtol=0.05)
    assert not np.any(params["bias"])


def test_gap_classifier_averages_valid_cells_only(rng):
    features = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    size = jnp.array([[3, 2], [0, 0]])
    head = GapClassifier(3)
    params = head.init(jax.random.key(0), FeatureMap(features, size, 8.0))
    logits = head.apply(params, FeatureMap(features, size, 8.0))
    mean = np.asarray(features)[0, :3, :2].mean((0, 1))
    np.testing.assert_allclose(
        logits[0], mean @ np.asarray(params["params"]["cls"]["kernel"]), atol=1e-6
    )
    np.testing.assert_array_equal(logits[1], 0)


def test_box_head_flattens_rows_columns_channels(rng):
    pooled = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    head = BoxHead((6, 5))
    params = head.init(jax.random.key(0), pooled)
    assert params["params"]["fc6"]["kernel"].shape == (16, 6)
    out = head.apply(params, pooled)
    x = np.asarray(pooled)
    for name in ("fc6", "fc7"):
        layer = params["params"][name]
        x = np.maximum(
            x.reshape(2, 3, -1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0
        )
    np.testing.assert_allclose(out.features, x, atol=1e-5)
    np.testing.assert_array_equal(out.features, out.clean)


def test_box_head_drops_after_each_layer_and_keeps_the_clean_features(rng):
    pooled = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 4)), jnp.float32)
    head = BoxHead((64, 64), dropout_rate=0.25)
    params = head.init(jax.random.key(0), pooled)
    keys = jax.random.split(jax.random.key(1), 2)
    out = head.apply(params, pooled, keys)
    kept = np.asarray(out.features != 0)
    assert np.any(~kept & np.asarray(out.clean > 0))
    np.testing.assert_allclose(
        np.asarray(out.features)[kept], np.asarray(out.clean)[kept] / 0.75, rtol=1e-6
    )
    assert not np.allclose(out.clean, head.apply(params, pooled).clean)
    alone = head.apply(params, pooled[1:], keys[1:])
    np.testing.assert_allclose(alone.features[0], out.features[1], rtol=1e-6)


def test_dropout_rate_scale_and_independence_of_batch_and_padding():
    keys = jax.random.split(jax.random.key(3), 3)
    x = jnp.ones((3, 50, 200))
    dropped = per_image_dropout(x, keys, 0.3)
    assert abs(float(jnp.mean(dropped == 0)) - 0.3) < 0.01
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert not np.array_equal(dropped[0], dropped[1])
    np.testing.assert_array_equal(per_image_dropout(x[1:2], keys[1:2], 0.3)[0], dropped[1])
    longer = per_image_dropout(jnp.ones((3, 64, 200)), keys, 0.3)
    np.testing.assert_array_equal(longer[:, :50], dropped)
    np.testing.assert_array_equal(per_image_dropout(x, keys, 0.0), x)


def test_cam_head_sums_cells_and_says_where_they_are(rng):
    features = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.bfloat16).at[1, 2:].set(0)
    maps = FeatureMap(features, jnp.array([[3, 4], [2, 4]]), 8.0)
    head = CamHead(3, dropout_rate=0.5)
    params = head.init(jax.random.key(0), maps, None)
    logits, cams = head.apply(params, maps, None)
    kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
    assert logits.dtype == cams.dtype == jnp.float32
    expected = np.asarray(features, np.float32) @ kernel
    np.testing.assert_allclose(cams, expected, atol=1e-6)
    np.testing.assert_allclose(logits, expected.sum(axis=(1, 2)) + bias, atol=1e-5)
    assert np.any(bias) and not np.any(cams[1, 2:])


def test_cam_head_drops_sums_and_no_cams(rng):
    maps = FeatureMap(
        jnp.asarray(rng.normal(size=(2, 3, 4, 64)), jnp.float32), jnp.array([[3, 4]] * 2), 8.0
    )
    head, keys = CamHead(3, dropout_rate=0.25), jax.random.split(jax.random.key(1), 2)
    params = head.init(jax.random.key(0), maps, None)
    (clean, cams), (logits, same) = (head.apply(params, maps, k) for k in (None, keys))
    np.testing.assert_array_equal(cams, same)
    sums = per_image_dropout(jnp.sum(maps.features, axis=(1, 2)), keys, 0.25)
    expected = np.asarray(sums) @ params["params"]["kernel"] + params["params"]["bias"][None]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits - clean).min() > 1e-3
    alone = FeatureMap(maps.features[1:], maps.size[1:], 8.0)
    np.testing.assert_allclose(head.apply(params, alone, keys[1:])[0][0], logits[1], atol=1e-6)


def test_cam_head_of_no_cells_says_its_bias():
    maps = FeatureMap(jnp.zeros((1, 2, 2, 400)), jnp.array([[0, 0]]), 8.0)
    params = CamHead(500, 0.5).init(jax.random.key(0), maps, None)
    logits, cams = CamHead(500, 0.5).apply(params, maps, None)
    np.testing.assert_array_equal(logits[0], params["params"]["bias"])
    assert not np.any(cams)
    for name in ("kernel", "bias"):  # U(-1/20, 1/20)
        values = np.asarray(params["params"][name])
        assert 0.049 < np.abs(values).max() <= 0.05
        assert np.isclose(values.std(), 0.05 / 3**0.5, rtol=0.1)
