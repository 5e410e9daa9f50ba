"""The network of SPN: M-weighted means, canvases, caches, and the module inside a backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import assert_close
from tests.methods.spn_cases import (
    TINY,
    final_features,
    on_canvas,
    spn_batch,
    spn_network,
    spn_params,
)
from tests.oracles import soft_proposal as oracle
from wsod_jax.errors import ConfigError
from wsod_jax.nn.googlenet import GoogLeNet
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.types import FeatureMap


def run(network, batch, params=None):
    values = spn_params(network) if params is None else params
    return jax.jit(network.apply)({"params": values}, batch)


@pytest.mark.parametrize("solver", ["walk", "stationary", "uniform"])
def test_logits_are_the_means_weighted_by_the_literal_map(solver):
    network, batch = spn_network(solver=solver), spn_batch(0)
    params, out = spn_params(network), run(network, batch)
    _, final = jax.jit(lambda p, b: final_features(network, p, b))(params, batch)
    kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
    for image, (h, w) in enumerate(np.asarray(out.maps.size)):
        features = np.asarray(final.features[image, :h, :w], np.float64)
        matrix = oracle.weight_matrix(features, 0.15 * np.sqrt(h * w))
        count = h * w
        mass = {
            "walk": lambda m=matrix: oracle.walk(m),
            "stationary": lambda m=matrix: m.sum(axis=1) / m.sum(),
            "uniform": lambda n=count: np.full(n, 1 / n),
        }[solver]()
        np.testing.assert_allclose(
            out.maps.proposal_map[image, :h, :w].reshape(-1), mass * count, rtol=1e-3, atol=1e-4
        )
        mean = np.einsum("n,nd->d", mass, features.reshape(h * w, -1))
        np.testing.assert_allclose(out.logits[image], mean @ kernel + bias, rtol=1e-3, atol=1e-4)
    assert np.ptp(out.logits) > 0.5


@pytest.mark.parametrize("insert_after", [None, "conv2_2"])
def test_logits_are_the_mean_of_the_cams_and_the_bias(insert_after):
    network = spn_network(insert_after=insert_after, unit_mean=insert_after is not None)
    out = run(network, spn_batch(1))
    total = np.asarray(out.maps.cams).sum(axis=(1, 2))
    total = total / np.prod(np.asarray(out.maps.size), axis=1)[:, None]
    bias = np.asarray(spn_params(network)["head"]["bias"])
    np.testing.assert_allclose(out.logits, total + bias, rtol=1e-5, atol=1e-5)
    assert np.abs(total).min() > 1e-2


@pytest.mark.parametrize("insert_after", [None, "conv3_1"])
@pytest.mark.parametrize("extra_channels", [None, 6])
def test_canvas_is_inert(insert_after, extra_channels):
    options = dict(insert_after=insert_after, unit_mean=insert_after is not None)
    network, batch = spn_network(extra_channels=extra_channels, **options), spn_batch(2)
    short, long = run(network, batch), run(network, on_canvas(batch))
    np.testing.assert_allclose(short.logits, long.logits, atol=1e-5)
    np.testing.assert_array_equal(short.maps.size, long.maps.size)
    np.testing.assert_array_equal(short.maps.proposal_size, long.maps.proposal_size)
    for name, sizes in (("cams", short.maps.size), ("proposal_map", short.maps.proposal_size)):
        for image, (h, w) in enumerate(np.asarray(sizes)):
            a, b = (np.asarray(getattr(out.maps, name))[image] for out in (short, long))
            np.testing.assert_allclose(a[:h, :w], b[:h, :w], rtol=1e-4, atol=1e-5)
            for values in (a, b):
                assert not values[h:].any() and not values[:, w:].any()
    cells = np.prod(long.maps.proposal_size, axis=1)  # the mean is 1
    np.testing.assert_allclose(
        np.asarray(long.maps.proposal_map).sum(axis=(1, 2)), cells, rtol=1e-5
    )


def test_cached_features_give_what_images_give():
    network, batch = spn_network(), spn_batch(3)
    params = spn_params(network)
    maps, _ = final_features(network, params, batch)
    cached = run(network, batch.replace(image=None, features={"c5": maps}))
    direct = run(network, batch)
    assert_close(cached, direct, 1e-5)


def sizes_after(cells):
    """TinyNet's layers, whose maps halve after stages 1 to 3."""
    return {f"conv{s}_{i}": cells[s - 1] for s in (1, 2, 3, 4) for i in (1, 2)}


INSIDE = [
    *(
        (TINY, layer, size)
        for layer, size in sizes_after([(40, 56), (20, 28), (10, 14), (5, 7)]).items()
    ),
    (TinyNet(widths=(4, 4, 8, 8), stride=4), "conv3_2", (10, 14)),
    (Vgg16(frozen=(), dilated=False), "conv4_3", (5, 7)),
    (SqueezeNet(), "fire5", (4, 6)),  # 40x56, conv1 19x27, pools 9x13, 4x6
    (GoogLeNet(), "inception4a", (2, 3)),  # 20x28, pools 10x14, 5x7, 2x3
]


@pytest.mark.parametrize(
    ("backbone", "layer", "size"), INSIDE, ids=[f"{type(b).__name__}-{n}" for b, n, _ in INSIDE]
)
def test_module_inside_a_backbone(backbone, layer, size):
    """M is of the layer's size, is used, and lets gradients through to the layers before."""
    network = spn_network(backbone=backbone, insert_after=layer, unit_mean=True)
    params, batch = spn_params(network), spn_batch(4)

    def score(values):
        out = network.apply({"params": values}, batch)
        return jnp.sum(out.logits**2), out

    grads, out = jax.jit(jax.grad(score, has_aux=True))(params)
    assert tuple(out.maps.proposal_size[1]) == size
    peaks = np.asarray(out.maps.proposal_map)[1, : size[0], : size[1]]
    np.testing.assert_allclose(peaks.mean(), 1, rtol=1e-5)
    assert np.ptp(peaks) > 0.1
    np.testing.assert_array_equal(out.maps.size, backbone.output_size(batch.image_size))
    for name in backbone.layers:
        leaves = jax.tree.leaves(grads["backbone"][name])
        assert any(np.any(leaf) for leaf in leaves), name
        assert all(np.isfinite(leaf).all() for leaf in leaves), name
    uniform = spn_network(backbone=backbone, insert_after=layer, unit_mean=True, solver="uniform")
    assert np.abs(run(uniform, batch, params).logits - out.logits).max() > 1e-4


def test_after_the_last_layer_is_at_the_end():
    """Averaging n · U∘M over n cells is summing U∘M; the activations agree too."""
    batch = spn_batch(5)
    end = spn_network(extra_channels=None)
    params = spn_params(end)
    inside = spn_network(extra_channels=None, insert_after="conv4_2", unit_mean=True)
    assert_close(run(end, batch), run(inside, batch, params), 1e-5)


@pytest.mark.parametrize(
    ("backbone", "layer"),
    [(TINY, "conv5_3"), (TINY, "conv1"), (TINY, ""), (GoogLeNet(), "branch1")],
)
def test_layers_that_do_not_exist_are_named_with_those_that_do(backbone, layer):
    network = spn_network(backbone=backbone, insert_after=layer, unit_mean=True)
    with pytest.raises(ConfigError, match=f"'{layer}'.*conv1.*{backbone.layers[-1]}"):
        jax.eval_shape(network.init, jax.random.key(0), spn_batch(6))


def test_no_layer_is_inside_cached_features():
    inside = spn_network(insert_after="conv2_1", unit_mean=True)
    batch = spn_batch(7)
    batch = batch.replace(
        image=None, features={"c5": FeatureMap(jnp.zeros((2, 6, 8, 8)), batch.image_size // 8, 8.0)}
    )
    with pytest.raises(ConfigError, match="insert_after.*'conv2_1'.*train.cache"):
        jax.eval_shape(inside.apply, {"params": spn_params(inside)}, batch)
