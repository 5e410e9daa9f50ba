"""SPN: degenerate batches, canvases, fillers; its equations in float64; baselines that it contains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import (
    CANVAS,
    KEY,
    STEP,
    assert_close,
    assert_finite,
    changed,
    loss_function,
    means,
    only,
    predict_function,
)
from tests.methods.spn_cases import (
    TINY,
    WIDTH,
    final_features,
    logits_given,
    on_canvas,
    spn,
    spn_batch,
    spn_params,
)
from tests.oracles import losses as loss_oracle
from tests.oracles import soft_proposal as map_oracle
from tests.oracles import spn as oracle
from wsod_jax.errors import ConfigError
from wsod_jax.methods.classifier import Classifier
from wsod_jax.methods.spn import proposal_peak
from wsod_jax.nn.squeezenet import SqueezeNet
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.train.optim import Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep

METHOD = spn(dropout_rate=0.5)
ONE_CLASS = [[1, 0, 0], [0, 0, 1]]


@pytest.fixture(scope="module", params=["sigmoid", "softmax"])
def method(request):
    return dataclasses.replace(METHOD, activation=request.param)


@pytest.fixture(scope="module")
def loss(method):
    """The compiled loss and gradient; one program for all batches of one shape."""
    return loss_function(method)


@pytest.fixture(scope="module")
def predict(method):
    return predict_function(method)


PARAMS = functools.partial(spn_params, METHOD.network)
SECOND = np.array([[False], [True]])  # the batch's second image
DEGENERATE = {
    "no positive label": dict(labels=np.zeros((2, 3))),
    "unknown labels": dict(labels=-np.ones((2, 3))),
    "every class present": dict(labels=np.ones((2, 3))),
    "black image": dict(image=np.zeros((2, *CANVAS, 3))),
    "one pixel": dict(image_size=[[1, 1], [40, 1]]),
    "no pixel": dict(image_size=[[0, 0], [0, 56]]),
    "filler image": dict(image_mask=[True, False], image_size=[[48, 64], [1, 1]]),
    "fillers only": dict(image_mask=[False, False], image_size=[[1, 1], [0, 0]]),
}


@pytest.mark.parametrize("case", list(DEGENERATE))
def test_degenerate_batches_are_finite(method, loss, predict, case):
    batch = changed(spn_batch(3), **DEGENERATE[case])
    out, grads = loss(PARAMS(), batch)
    found = predict(PARAMS(), {}, batch)
    assert_finite((out.terms, out.metrics, grads, found))
    assert set(out.terms) == {"classification"} and out.pseudo is None
    nothing = case in ("unknown labels", "fillers only")
    nothing |= case == "no positive label" and method.activation == "softmax"
    assert (means(out.terms)["classification"] == 0) == nothing
    assert any(np.any(g) for g in jax.tree.leaves(grads)) != nothing


@pytest.mark.parametrize("options", [{}, {"insert_after": "fire2", "unit_mean": True}])
def test_image_smaller_than_one_cell(options):
    """Its map has no cell: it says what the bias says, and teaches the bias alone."""
    method = spn(backbone=SqueezeNet(), **options)
    params = spn_params(method.network)
    batch = changed(spn_batch(4), image_size=[[1, 1], [40, 56]], labels=ONE_CLASS)
    out, grads = loss_function(method)(params, batch)
    found = predict_function(method)(params, {}, batch)
    assert_finite((out.terms, out.metrics, grads, found))
    np.testing.assert_array_equal(
        found.maps.size, [[0, 0], method.backbone.output_size(np.array([[40, 56]]))[0]]
    )
    assert not np.any(found.maps.cams[0])
    if not options:
        assert not np.any(found.maps.proposal_map[0])
        assert out.metrics["proposal_peak"].total[0] == 0
    bias = np.asarray(params["head"]["bias"], np.float64)
    np.testing.assert_allclose(found.image_scores[0], 1 / (1 + np.exp(-bias)), rtol=1e-5)
    _, alone = loss_function(method)(params, changed(batch, image_mask=[True, False]))
    assert np.all(alone["head"]["bias"])
    assert not any(np.any(g) for g in jax.tree.leaves((alone["backbone"], alone["extra"])))


def test_filler_image_changes_nothing(loss):
    filled = changed(
        spn_batch(5),
        image_mask=[True, False],
        image=np.where(SECOND[:, :, None, None], 255, spn_batch(5).image),
        labels=ONE_CLASS,
    )
    out, grads = loss(PARAMS(), filled)
    for kind in (out.terms, out.metrics):
        for key, term in kind.items():
            assert term.total[1] == 0 and term.weight[1] == 0, key
    again, grads_again = loss(PARAMS(), changed(filled, image=spn_batch(5).image))
    assert_close((out.terms, grads), (again.terms, grads_again), 0)


def test_batch_is_its_images_each_on_another_canvas(method, loss):
    """With dropout on: an image's mask depends on its key alone."""
    batch = spn_batch(6, labels=ONE_CLASS)
    together, grads = loss(PARAMS(), batch)
    single = loss_function(method)
    apart = [single(PARAMS(), on_canvas(only(batch, image))) for image in range(2)]
    for kind in ("terms", "metrics"):
        for key, term in getattr(together, kind).items():
            parts = [getattr(out, kind)[key] for out, _ in apart]
            assert_close(term.total, np.concatenate([p.total for p in parts]))
            assert_close(term.weight, np.concatenate([p.weight for p in parts]))
    average = jax.tree.map(lambda a, b: (a + b) / 2, apart[0][1], apart[1][1])
    assert_close(grads, average)


def test_order_of_images_does_not_matter_and_dropout_follows_the_image(loss):
    batch = spn_batch(7, labels=ONE_CLASS)
    out, grads = loss(PARAMS(), batch)
    swapped, swapped_grads = loss(PARAMS(), jax.tree.map(lambda x: x[::-1], batch))
    totals = np.asarray(out.terms["classification"].total)
    assert_close(totals, swapped.terms["classification"].total[::-1])
    assert_close(grads, swapped_grads)
    renamed, _ = loss(PARAMS(), changed(batch, image_index=[7, 99]))
    rekeyed, _ = loss(PARAMS(), batch, jax.random.key(6))
    moved = np.abs(totals - renamed.terms["classification"].total)
    assert moved[0] < 1e-5 and moved[1] > 1e-3
    assert np.abs(totals - rekeyed.terms["classification"].total).min() > 1e-3


def test_prediction_is_the_same_on_any_canvas(predict):
    batch = spn_batch(8)
    short, long = (predict(PARAMS(), {}, b) for b in (batch, on_canvas(batch)))
    assert short.boxes is short.scores is short.mask is None
    assert_close(short.image_scores, long.image_scores)
    maps = short.maps
    np.testing.assert_array_equal(maps.size, [[6, 8], [5, 7]])
    for name in ("cams", "proposal_map"):
        a, b = (np.asarray(getattr(found.maps, name)) for found in (short, long))
        assert_close(a / 48, b[:, :6, :8] / 48)  # of 48 cells, whose mean is the logit, or 1
        assert not b[:, 6:].any() and not b[:, :, 8:].any() and not a[1, 5:].any()
    np.testing.assert_allclose(np.sum(maps.proposal_map, axis=(1, 2)), [48, 35], rtol=1e-5)


def test_prediction_metrics_and_loss_tell_one_story(method, predict):
    """Without dropout the loss is the cross-entropy of what is predicted."""
    plain = spn(activation=method.activation)
    batch = spn_batch(9, labels=ONE_CLASS)
    found, (out, _) = predict(PARAMS(), {}, batch), loss_function(plain)(PARAMS(), batch)
    logits = np.asarray(found.maps.cams, np.float64).sum(axis=(1, 2)) / [[48], [35]]
    logits += np.asarray(PARAMS()["head"]["bias"])
    scores = 1 / (1 + np.exp(-logits))
    if method.activation == "softmax":
        scores = loss_oracle.softmax(logits)
    np.testing.assert_allclose(found.image_scores, scores, rtol=1e-4)
    expected = [
        loss_oracle.classification(*row, method.activation)
        for row in zip(logits, ONE_CLASS, strict=True)
    ]
    np.testing.assert_allclose(out.terms["classification"].total, expected, rtol=1e-4)
    values = means(out.metrics)
    hits = np.array(ONE_CLASS)[[0, 1], logits.argmax(axis=1)] == 1
    peaks = np.asarray(found.maps.proposal_map).reshape(2, -1).max(axis=1)
    assert set(values) == {"top1", "proposal_peak"} and values["top1"] == hits.mean()
    assert values["proposal_peak"] == pytest.approx(peaks.mean(), rel=1e-5)


def test_module_before_the_end_goes_with_a_map_of_mean_one():
    for options in ({"insert_after": "conv2_1"}, {"unit_mean": True}):
        with pytest.raises(ConfigError, match="insert_after.*unit_mean"):
            spn(**options)


def test_peak_of_a_uniform_map_is_one():
    maps = np.zeros((3, 4, 5), np.float32)
    maps[0, :2, :3], maps[1, 0, 0] = 1, 20
    np.testing.assert_allclose(proposal_peak(jnp.asarray(maps)), [1, 20, 0], rtol=1e-6)


# -- equations


def literal(params, features, proposal_maps, kernel):
    """Return the mean loss in float64, given the backbone's maps, M, and the extra convolution's kernel."""
    head = {name: np.asarray(value, np.float64) for name, value in params["head"].items()}
    bias = np.asarray(params["extra"]["bias"], np.float64)
    total = 0.0
    for values, mass, labels in zip(features, proposal_maps, ONE_CLASS, strict=True):
        final = oracle.extra_convolution(values, kernel, bias, 2)
        if mass is None:
            matrix = map_oracle.weight_matrix(final, 0.15 * np.sqrt(final[..., 0].size))
            mass = map_oracle.walk(matrix).reshape(final.shape[:2])
        logits = oracle.logits(final, mass, head["kernel"], head["bias"])
        total += loss_oracle.classification(logits, labels, "sigmoid") / len(features)
    return total


def test_gradient_is_that_of_the_printed_loss_with_the_map_held_fixed():
    """Equations 6 to 8. With M made anew for every kernel the differences come out otherwise."""
    method = spn()
    network, params = method.network, spn_params(method.network)
    batch = spn_batch(10, labels=ONE_CLASS)
    out, grads = loss_function(method)(params, batch)
    maps, _ = final_features(network, params, batch)
    found = method.predict(params, {}, batch, method.outputs).maps
    sizes = np.asarray(maps.size)
    cut = [np.asarray(maps.features[i, :h, :w], np.float64) for i, (h, w) in enumerate(sizes)]
    fixed = [np.asarray(found.proposal_map[i, :h, :w]) / (h * w) for i, (h, w) in enumerate(sizes)]
    kernel = np.asarray(params["extra"]["kernel"], np.float64)
    value = means(out.terms)["classification"]
    assert value == pytest.approx(literal(params, cut, fixed, kernel), rel=1e-5)
    slopes = np.asarray(grads["extra"]["kernel"])
    differences = []
    for entry in np.argsort(-np.abs(slopes), axis=None)[[0, 1, 5, 20]]:
        step = np.zeros(slopes.size)
        step[entry] = 1e-5
        step = step.reshape(slopes.shape)
        held, anew = (
            (literal(params, cut, m, kernel + step) - literal(params, cut, m, kernel - step)) / 2e-5
            for m in (fixed, [None, None])
        )
        assert slopes.flat[entry] == pytest.approx(held, rel=2e-3)
        differences.append(abs(anew / held - 1))
    assert max(differences) > 0.02


def test_whole_gradient_is_that_of_a_network_given_the_map():
    method = spn()
    network, params = method.network, spn_params(method.network)
    batch = spn_batch(11, labels=ONE_CLASS)
    maps = predict_function(method)(params, {}, batch).maps
    proposal_map = maps.proposal_map / jnp.prod(maps.proposal_size, axis=1)[:, None, None]

    def given(values):
        logits = logits_given(network, values, batch, proposal_map)
        known = jnp.asarray(ONE_CLASS, jnp.float32)
        return -jnp.mean(
            known * jax.nn.log_sigmoid(logits) + (1 - known) * jax.nn.log_sigmoid(-logits)
        )

    _, grads = loss_function(method)(params, batch)
    assert_close(grads, jax.jit(jax.grad(given))(params), 1e-5)


def test_uniform_map_is_the_image_classifier():
    """Same weights, same logits, same gradients as averaging the map and classifying the mean."""
    cam = spn(extra_channels=None, solver="uniform", activation="softmax")
    classifier = Classifier(backbone=TINY, num_classes=3)
    params, batch = spn_params(cam.network), spn_batch(12, labels=ONE_CLASS)
    renamed = params | {"head": {"cls": params["head"]}}
    (out, grads), (same, same_grads) = (
        loss_function(m)(p, batch) for m, p in ((cam, params), (classifier, renamed))
    )
    assert_close(out.terms, same.terms, 1e-6)
    assert_close(grads, same_grads | {"head": same_grads["head"]["cls"]}, 1e-6)
    scores = [
        m.predict(p, {}, batch, m.outputs).image_scores
        for m, p in ((cam, params), (classifier, renamed))
    ]
    assert_close(*scores, 1e-6)
    assert np.ptp(scores[0]) > 0.1


# -- layers and types


def test_frozen_layers_get_no_gradient_but_the_image_does():
    method = spn(backbone=TinyNet(widths=(4, 4, 8, 8), frozen=("conv1", "conv2")))
    params, batch = PARAMS(), spn_batch(14)

    def objective(values, image):
        out = method.loss(values, {}, batch.replace(image=image), KEY, STEP)
        return out.terms["classification"].mean()

    grads, to_image = jax.jit(jax.grad(objective, argnums=(0, 1)))(params, batch.image)
    for layer, values in grads["backbone"].items():
        reached = any(np.any(g) for g in jax.tree.leaves(values))
        assert reached == (not layer.startswith(("conv1", "conv2"))), layer
    assert np.any(to_image) and not np.any(to_image[1, 40:])


def test_bfloat16_runs_and_stays_close():
    method = spn(backbone=TinyNet(widths=(4, 4, 8, 8), dtype=jnp.bfloat16))
    batch = spn_batch(15, labels=ONE_CLASS)
    out, grads = loss_function(method)(PARAMS(), batch)
    assert_finite((out.terms, out.metrics, grads))
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    exact, _ = loss_function(spn())(PARAMS(), batch)
    values = [means(o.terms)["classification"] for o in (exact, out)]
    assert values[0] != values[1] and values[0] == pytest.approx(values[1], rel=0.05)


def test_canvas_smaller_than_one_cell():
    """The map itself is an array without elements."""
    method, batch = spn(backbone=SqueezeNet()), spn_batch(17, images=1)
    batch = changed(batch.replace(image=batch.image[:, :8, :8]), image_size=[[8, 8]])
    out, grads = loss_function(method)(spn_params(method.network), batch)
    found = predict_function(method)(spn_params(method.network), {}, batch)
    assert found.maps.proposal_map.size == found.maps.cams.size == 0
    assert_finite((out.terms, out.metrics, grads, found.image_scores))


def test_parameters_are_drawn_as_announced():
    params, extras = METHOD.init(jax.random.key(0), spn_batch(0))
    assert extras == {} and set(params) == {"backbone", "extra", "head"}
    assert params["extra"]["kernel"].shape == (3, 3, 4, WIDTH)  # two groups
    assert params["head"]["kernel"].shape == (WIDTH, 3)
    bound = (3 * 3 * 4) ** -0.5
    for value in params["extra"].values():
        assert np.any(value) and np.abs(value).max() <= bound


def test_four_devices_train_as_one_does():
    """Two updates of four images, the last one a filler; dropout on."""
    method = METHOD
    batch = jax.device_get(
        spn_batch(16, images=4, labels=[[1, 0, 0], [0, 1, -1], [1, 1, 0], [1] * 3])
    )
    batch = batch.replace(image_mask=np.array([True, True, True, False]))
    states, reports = [], []
    for devices in (1, 4):
        mesh, (tx, _) = make_mesh(devices), Optimizer(learning_rate=0.05).transformation(2)
        state = init_state(method, tx, seed=0, batch=batch, mesh=mesh)
        step = TrainStep(method, tx, seed=0, mesh=mesh)
        for _ in range(2):
            state, report = step.update(state, [put(batch, mesh)])
        assert len(state.params["head"]["kernel"].sharding.device_set) == devices
        states.append(jax.device_get(state.params))
        reports.append(jax.device_get(report))
    assert_close(*states, 1e-5)
    assert_close(*reports, 1e-5)
    assert reports[0]["loss"] > 0 and reports[0]["proposal_peak"] > 1
