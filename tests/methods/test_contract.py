"""What holds for every proposal method: finite on degenerate batches, and nothing but real rows counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import (
    CANVAS,
    KEY,
    METHODS,
    NUM_PROPOSALS,
    STEP,
    assert_close,
    assert_finite,
    build,
    changed,
    loss_function,
    make_batch,
    means,
    only,
    params,
    predict_function,
)

SECOND = np.array([[False], [True]])  # the batch's second image


@pytest.fixture(scope="module", params=list(METHODS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loss(name):
    """The compiled loss and gradient; one program for all batches of one shape."""
    return loss_function(build(name))


def only_of(*names):
    """Run a test for these methods only."""
    return pytest.mark.parametrize("name", names, indirect=True)


def same(value):
    return np.broadcast_to(np.asarray(value, np.float32), (2, NUM_PROPOSALS, 4))


DEGENERATE = {
    "no positive label": dict(labels=np.zeros((2, 3))),
    "unknown labels": dict(labels=-np.ones((2, 3))),
    "every class present": dict(labels=np.ones((2, 3))),
    "one proposal": dict(proposal_mask=np.arange(NUM_PROPOSALS) == [[0], [3]]),
    "no proposal": dict(proposal_mask=np.zeros((2, NUM_PROPOSALS))),
    "identical boxes": dict(proposals=same([8, 8, 40, 40])),
    "boxes without area": dict(proposals=same([8, 8, 8, 8])),
    "boxes of the whole image": dict(proposals=same([0, 0, 56, 40])),
    "black image": dict(image=np.zeros((2, *CANVAS, 3))),
    "filler image": dict(image_mask=[True, False], image_size=[[48, 64], [1, 1]]),
    "fillers only": dict(image_mask=[False, False], proposal_mask=np.zeros((2, NUM_PROPOSALS))),
}


@pytest.mark.parametrize("case", list(DEGENERATE))
def test_degenerate_batches_are_finite(name, loss, case):
    batch = changed(make_batch(3), **DEGENERATE[case])
    out, grads = loss(params(name), batch)
    assert_finite((out.terms, out.metrics, out.pseudo, grads))
    values = means(out.terms)
    if case in ("no positive label", "unknown labels", "no proposal", "fillers only"):
        others = {n: v for n, v in values.items() if n != "mil"}
        assert set(others.values()) == {0.0}, others
    if case == "unknown labels":
        assert values["mil"] == 0
    if case == "fillers only":
        assert set(values.values()) == {0.0}
        assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_filler_image_changes_nothing(name, loss):
    batch = make_batch(4)
    filled = changed(
        batch,
        image_mask=[True, False],
        image=np.where(SECOND[:, :, None, None], 255, batch.image),
        labels=np.where(SECOND, 1, batch.labels),
    )
    out, grads = loss(params(name), filled)
    for kind in (out.terms, out.metrics):
        for key, term in kind.items():
            assert term.total[1] == 0 and term.weight[1] == 0, key
    again, grads_again = loss(params(name), changed(filled, image=batch.image))
    assert_close((out.terms, grads), (again.terms, grads_again), 0)


def padded(batch, canvas=(64, 96), extra=5):
    """The same images on a larger canvas, rubbish in the margin, rubbish in more masked proposals."""
    rng = np.random.default_rng(0)
    images, rows = batch.proposals.shape[:2]
    image = np.asarray(rng.integers(0, 256, (images, *canvas, 3)), np.float32)
    for row, (height, width) in enumerate(np.asarray(batch.image_size)):
        image[row, :height, :width] = batch.image[row, :height, :width]
    rubbish = rng.uniform(-50, 500, (images, extra, 4)).astype(np.float32)
    return changed(
        batch,
        image=image,
        proposals=np.concatenate([batch.proposals, rubbish], axis=1),
        proposal_mask=np.pad(batch.proposal_mask, ((0, 0), (0, extra))),
        representative=np.tile(np.arange(rows + extra), (images, 1)),
    )


def test_batch_is_its_images_each_on_another_canvas_with_more_rows(name, loss):
    batch = make_batch(5)
    together, grads = loss(params(name), batch)
    single = loss_function(build(name))
    apart = [single(params(name), padded(only(batch, image))) for image in range(2)]
    for kind in ("terms", "metrics"):
        for key, term in getattr(together, kind).items():
            parts = [getattr(out, kind)[key] for out, _ in apart]
            assert_close(term.total, np.concatenate([p.total for p in parts]))
            assert_close(term.weight, np.concatenate([p.weight for p in parts]))
    average = jax.tree.map(lambda a, b: (a + b) / 2, apart[0][1], apart[1][1])
    assert_close(grads, average)


@only_of("wsddn", "oicr", "oicr_reg")  # the others predict as OICR does
def test_predictions_do_not_depend_on_canvas_or_padding(name):
    batch, predict = make_batch(6), predict_function(build(name))
    short, long = predict(params(name), {}, batch), predict(params(name), {}, padded(batch))
    real = np.asarray(batch.proposal_mask)
    assert_close(short.boxes[real], long.boxes[:, :NUM_PROPOSALS][real], 1e-4)
    assert_close(short.image_scores, long.image_scores)
    assert_close(short.scores, long.scores[:, :NUM_PROPOSALS])
    assert not np.any(long.scores[:, NUM_PROPOSALS:]) and not np.any(long.mask[:, NUM_PROPOSALS:])
    assert not np.any(np.asarray(short.scores)[~np.asarray(short.mask)])
    np.testing.assert_array_equal(short.mask, batch.proposal_mask)
    assert np.ptp(np.asarray(short.scores)[short.mask]) > 0.05  # X sums to at most 1 over proposals


# PCL takes centers with equally many neighbors by their row.
@only_of(*(name for name in METHODS if not name.startswith("pcl")))
def test_order_of_proposals_does_not_matter(name, loss):
    batch = make_batch(7)
    order = np.random.default_rng(1).permutation(NUM_PROPOSALS)
    shuffled = changed(
        batch,
        proposals=batch.proposals[:, order],
        proposal_mask=batch.proposal_mask[:, order],
    )
    out, grads = loss(params(name), batch)
    other, other_grads = loss(params(name), shuffled)
    assert_close((out.terms, out.metrics, grads), (other.terms, other.metrics, other_grads))


def test_metrics_and_pseudo_boxes(name, loss):
    batch = make_batch(8)
    out, _ = loss(params(name), batch)
    common = {"phi_present", "phi_absent", "proposals"}
    stages = {f"refine_{s}" for s in (1, 2, 3)}
    if name == "wsddn":
        assert set(out.terms) == {"mil", "spatial"}
        assert set(out.metrics) == common and out.pseudo is None
        return
    if name.endswith("_reg"):
        stages |= {f"regress_{s}" for s in (1, 2, 3)}
    assert set(out.terms) == {"mil"} | stages
    mining = {"pseudo_boxes", "nodes", "positives", "core_score", "node_score", "mining_overflow"}
    assert set(out.metrics) == common | mining
    values = means(out.metrics)
    used = np.asarray(out.pseudo.mask)
    cores = used & np.asarray(out.pseudo.is_seed)
    assert used.shape[:2] == (2, 3)
    assert values["pseudo_boxes"] == pytest.approx(used.sum() / 6)
    assert values["nodes"] == pytest.approx((used & ~cores).sum() / 6)
    scores = np.asarray(out.pseudo.scores)
    assert values["core_score"] == pytest.approx(scores[cores].mean(), rel=1e-5)
    assert values["proposals"] == NUM_PROPOSALS - 1
    assert values["mining_overflow"] == 0
    present = np.asarray(batch.labels) == 1
    classes = np.asarray(out.pseudo.classes)
    for image in range(2):
        assert set(classes[image][used[image]]) == set(np.flatnonzero(present[image]))
        of_proposals = used[image]
        if name.endswith("_reg") and build(name).regression.mined_boxes == "regressed":
            of_proposals = used[image] & (np.arange(3) == 0)[:, None]
        boxes = np.asarray(out.pseudo.boxes)[image][of_proposals]
        index = np.asarray(out.pseudo.index)[image][used[image]]
        own = np.asarray(out.pseudo.index)[image][of_proposals]
        np.testing.assert_array_equal(boxes, np.asarray(batch.proposals)[image][own])
        assert np.asarray(batch.proposal_mask)[image][index].all()


@only_of("oim")
def test_more_classes_than_slots_are_counted(name):
    batch = make_batch(9, labels=np.ones((2, 3)))
    method = build(name, max_classes=1)
    out = jax.jit(lambda p: method.loss(p, {}, batch, KEY, STEP))(params(name))
    assert_finite(out.terms)
    assert float(out.metrics["mining_overflow"].mean()) >= 2 * 3  # two classes, three stages


@only_of("wsddn", "oim")  # the others differ in their miners only
def test_frozen_layers_get_no_gradient_but_the_image_does(name):
    frozen = ("conv1", "conv2")
    method, batch = build(name, frozen=frozen), make_batch(10)

    def objective(values, image):
        out = method.loss(values, {}, batch.replace(image=image), KEY, STEP)
        return sum(term.mean() for term in out.terms.values())

    grads, to_image = jax.jit(jax.grad(objective, argnums=(0, 1)))(params(name), batch.image)
    for layer, values in grads["backbone"].items():
        reached = any(np.any(g) for g in jax.tree.leaves(values))
        assert reached == (not layer.startswith(frozen)), layer
    to_image = np.asarray(to_image)
    assert np.any(to_image)
    assert not np.any(to_image[1, 40:]) and not np.any(to_image[1, :, 56:])  # the margin


@only_of("wsddn", "oim")  # the others differ in their miners only
def test_bfloat16_runs_and_stays_close(name):
    batch = make_batch(11)
    method = build(name, dtype=jnp.bfloat16)
    out, grads = loss_function(method)(params(name), batch)
    assert_finite((out.terms, out.metrics, grads))
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    exact = jax.jit(lambda p: build(name).loss(p, {}, batch, KEY, STEP))(params(name))
    scores = [float(o.metrics["phi_present"].mean()) for o in (exact, out)]
    assert scores[0] != scores[1]
    assert scores[0] == pytest.approx(scores[1], rel=0.05)
    assert means(out.terms)["mil"] == pytest.approx(means(exact.terms)["mil"], rel=0.05)
