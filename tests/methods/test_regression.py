"""Box regression of the refinement heads: loss, mining and prediction against loops and other people's numbers."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import (
    KEY,
    NUM_CLASSES,
    STEP,
    assert_close,
    assert_finite,
    build,
    changed,
    make_batch,
    params,
    predict_function,
)
from tests.methods.mining_cases import make, pad, random_image, to_jax
from tests.oracles import boxes as geometry
from tests.oracles import losses, mining
from wsod_jax.losses.box_regression import smooth_l1
from wsod_jax.methods.oicr import Oicr
from wsod_jax.methods.regression import Regression
from wsod_jax.types import Source

GOLDEN = np.load(Path(__file__).parents[1] / "golden/boxes/pdsl_refine.npz")


@jax.jit
def mine(scores, proposals, mask, labels, boxes=None):
    """OICR's mining of one image, by default among the proposals."""
    source = Source.of(scores, proposals, mask, labels, boxes=boxes)
    return make(Oicr, num_classes=scores.shape[1]).mine(source, STEP)


@functools.cache
def loss_and_gradient(beta, scale=1.0):
    return jax.jit(jax.value_and_grad(Regression(beta=beta, scale=scale).loss))


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_smooth_l1_is_quadratic_below_beta(beta):
    differences = np.array([-3, -beta, -beta / 2, 0, beta / 4, beta, 2], np.float32)
    expected = [d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2 for d in differences]
    np.testing.assert_allclose(smooth_l1(jnp.asarray(differences), beta), expected, rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda d: smooth_l1(d, beta)))(jnp.asarray(differences))
    expected = [d / beta if abs(d) < beta else np.sign(d) for d in differences]
    np.testing.assert_allclose(slopes, expected, rtol=1e-6)


@pytest.mark.parametrize("case", range(len(GOLDEN["names"])))
def test_loss_is_the_released_one_of_pdsl(case):
    def given(field):
        return GOLDEN[f"{case}/{field}"]

    proposals, before = jnp.asarray(given("proposals")), jnp.asarray(given("prev_boxes"))
    count, num_classes = given("scores").shape
    boxes = before.reshape(count, num_classes, 4) if len(before) else None
    real, labels = jnp.ones(count, bool), jnp.asarray(given("labels"), jnp.int32)
    mined = mine(jnp.asarray(given("scores")), proposals, real, labels, boxes)
    used = np.asarray(mined.pseudo.mask)
    np.testing.assert_array_equal(np.asarray(mined.pseudo.boxes)[used], given("pgt_boxes"))
    labels = np.asarray(mined.targets.labels)
    np.testing.assert_array_equal(
        np.where(labels > 0, labels - 1, num_classes), given("out_classes")
    )
    foreground = labels > 0
    assigned = np.asarray(mined.pseudo.boxes)[np.asarray(mined.targets.matched_idx)]
    np.testing.assert_array_equal(assigned[foreground], given("out_gt")[foreground])

    weights = jnp.asarray(given("out_weights"))  # PDSL's are the image's class scores
    mined = mined._replace(targets=mined.targets.replace(weights=weights))
    deltas = jnp.asarray(given("deltas").reshape(count, num_classes, 4))
    loss, gradient = loss_and_gradient(0.0)(deltas, mined, proposals, real)
    assert loss > 0
    np.testing.assert_allclose(loss, given("reg"), rtol=1e-5)
    touched = np.asarray(gradient).any(axis=2)
    assert not touched[~foreground].any() and (touched.sum(axis=1)[foreground] == 1).all()


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("num_positive", [0, 1, 5])
def test_loss_agrees_with_the_sum_whatever_masked_rows_hold(num_positive, beta):
    scores, boxes, labels, _ = random_image(3, num_positive=num_positive)
    deltas = np.random.default_rng(0).normal(0, 1, (len(boxes), 5, 4)).astype(np.float32)
    mined_boxes = mining.oicr(scores, boxes, labels)
    targets = mining.assign(mined_boxes, scores, boxes)
    corners = [boxes[box.index] for box in mined_boxes]
    expected = 2 * losses.regression(deltas, boxes, corners, targets, beta)
    assert (expected > 0) == (num_positive > 0)

    flat = deltas.reshape(len(boxes), 20)
    mask = np.arange(len(boxes) + 6) < len(boxes)
    scores, padded, flat = pad([scores, boxes, flat], 6)  # NaN
    arrays = to_jax(scores, padded, mask, labels)
    loss, gradient = loss_and_gradient(beta, 2.0)(
        jnp.asarray(flat.reshape(-1, 5, 4)), mine(*arrays), arrays[1], arrays[2]
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and not gradient[len(boxes) :].any()


DEGENERATE = {
    "one proposal": [[3, 4, 20, 30]],
    "identical boxes": [[3, 4, 20, 30]] * 5,
    "a thin box": [[3, 4, 3.001, 30]] * 2,
    "no proposal": np.zeros((0, 4)),
}


@pytest.mark.parametrize("case", list(DEGENERATE))
def test_degenerate_images_have_a_defined_loss(case):
    boxes = jnp.asarray(np.reshape(DEGENERATE[case], (-1, 4)), jnp.float32)
    count = max(len(boxes), 1)
    mask = jnp.arange(count) < len(boxes)
    boxes = jnp.zeros((count, 4)).at[: len(boxes)].set(boxes)
    scores, deltas = jnp.full((count, 2), 0.5), jnp.full((count, 2, 4), 3.0)
    mined = mine(scores, boxes, mask, jnp.array([0, 1]))
    loss, gradient = loss_and_gradient(1.0)(deltas, mined, boxes, mask)
    # the target is the proposal itself: four deltas 3 too large, at weight 0.5
    assert loss == pytest.approx(0.5 * 4 * 2.5 if np.any(mask) else 0.0)
    assert np.isfinite(gradient).all() and not gradient[:, 0].any()


# ---------------------------------------------------------------- the methods


@functools.cache
def drawn(name, num_stages):
    """Random parameters as `cases.params`, for another number of heads."""
    if num_stages == 3:
        return params(name)
    method = build(name, options={"num_stages": num_stages})
    one = jax.tree.map(lambda x: x[:num_stages], {k: params(name)[k] for k in HEADED})
    return method.init(jax.random.key(1), make_batch(0))[0] | params(name) | one


HEADED = ("refine", "refine_boxes")


def run(method, values, batch):
    """Return the method's output, and what its network says as NumPy."""

    @jax.jit
    def compiled(values, batch):
        return method.loss(values, {}, batch, KEY, STEP), method.score(values, batch, KEY)

    out, scored = compiled(values, batch)
    return out, arrays(scored)


def arrays(scored):
    return SimpleNamespace(**{field: np.asarray(value) for field, value in vars(scored).items()})


@pytest.mark.parametrize(
    ("name", "mined_boxes", "num_stages"),
    [
        ("oicr_reg", "proposals", 1),
        ("oicr_reg", "regressed", 3),
        ("mist_reg", "proposals", 3),
        ("mist_reg", "regressed", 3),
    ],
)
def test_whole_loss_agrees_with_loops(name, mined_boxes, num_stages):
    beta, first = 0.5, 3.0
    regression = Regression(beta=beta, mined_boxes=mined_boxes)
    options = {"num_stages": num_stages, "first_stage_scale": first, "regression": regression}
    batch = make_batch(31)
    out, scored = run(build(name, options=options), drawn(name, num_stages), batch)
    moved = 0.0
    for image in range(2):
        real, size = scored.mask[image], np.asarray(batch.image_size[image])
        proposals = np.asarray(batch.proposals[image])[real]
        labels, deltas = np.asarray(batch.labels[image]), scored.deltas[image][:, real]
        logits = scored.refine_logits[image][:, real]
        scores, boxes = (
            scored.mil_scores[image][real],
            np.repeat(proposals[:, None], NUM_CLASSES, 1),
        )
        for stage in range(num_stages):
            mined = mine_with(name, scores, boxes, labels)
            targets = mining.assign(mined, scores, proposals)
            corners = [box.corners for box in mined]
            factor = first if stage == 0 else 1.0
            expected = losses.regression(deltas[stage], proposals, corners, targets, beta)
            found = out.terms[f"regress_{stage + 1}"].total[image]
            np.testing.assert_allclose(found, factor * expected, rtol=1e-4, atol=1e-7)
            expected = losses.refinement(
                logits[stage], targets["labels"], targets["weights"], np.ones(len(proposals))
            )
            found = out.terms[f"refine_{stage + 1}"].total[image]
            np.testing.assert_allclose(found, factor * expected, rtol=1e-4)
            used = np.asarray(out.pseudo.mask[image, stage])
            np.testing.assert_allclose(out.pseudo.boxes[image, stage][used], corners, atol=1e-4)
            scores = losses.softmax(logits[stage])[:, 1:]
            if mined_boxes == "regressed":
                boxes = decoded(proposals, deltas[stage], size)
                moved = max(moved, np.abs(boxes - proposals[:, None]).max())
    assert mined_boxes == "proposals" or moved > 3  # pixels
    assert max(float(out.terms[f"regress_{s + 1}"].mean()) for s in range(num_stages)) > 1e-3


def mine_with(name, scores, boxes, labels):
    """Mine one image by the oracle among `boxes` [r, c, 4]; every box has its corners."""
    if name == "oicr_reg":
        mined = mining.oicr(scores, boxes[:, 0], labels)
    else:
        alone = np.eye(len(labels), dtype=int) * labels
        mined = [
            box
            for c in range(len(labels))
            for box in mining.mist(scores, boxes[:, c], alone[c], top_fraction=0.3)
        ]
    for box in mined:
        box.corners = boxes[box.index, box.cls]
    return mined


def decoded(proposals, deltas, size):
    """The box of every proposal and class."""
    return np.array(
        [
            [geometry.decode(p, d, size) for d in row]
            for p, row in zip(proposals, deltas, strict=True)
        ]
    )


@pytest.mark.parametrize("num_stages", [1, 3])
def test_prediction_decodes_the_mean_deltas_once_and_clips(num_stages):
    method, batch = build("mist_reg", options={"num_stages": num_stages}), make_batch(32)
    values = drawn("mist_reg", num_stages)
    found = predict_function(method)(values, {}, batch)
    scored = arrays(jax.jit(method.score)(values, batch))
    assert found.boxes.shape == (2, 16, NUM_CLASSES, 4)
    for image in range(2):
        size = np.asarray(batch.image_size[image])
        expected = decoded(np.asarray(batch.proposals[image]), scored.deltas[image].mean(0), size)
        np.testing.assert_allclose(found.boxes[image], expected, atol=1e-3)
    outside = np.asarray(found.boxes) == np.asarray(batch.image_size)[:, None, None, [1, 0, 1, 0]]
    assert outside.any()  # the clipping did something
    scores = losses.softmax(scored.refine_logits)[..., 1:].mean(1) * scored.mask[..., None]
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(found.mask, batch.proposal_mask)


@pytest.mark.parametrize("name", ["oicr", "pcl", "mist", "oim"])
def test_the_other_layers_are_drawn_as_without_regression(name):
    batch = make_batch(33)
    plain, _ = build(name).init(jax.random.key(2), batch)
    with_boxes, _ = build(f"{name}_reg").init(jax.random.key(2), batch)
    boxes = with_boxes.pop("refine_boxes")
    jax.tree.map(np.testing.assert_array_equal, plain, with_boxes)
    assert boxes["kernel"].shape == (3, 16, 4 * NUM_CLASSES)


@pytest.mark.parametrize("name", ["oicr", "mist"])
def test_untrained_regression_changes_neither_mining_nor_scores(name):
    """Zero deltas move nothing, so the regressed boxes are the proposals up to rounding."""
    options = {"regression": Regression(mined_boxes="regressed")}
    batch, plain = make_batch(34), params(name)
    heads = jax.tree.map(jnp.zeros_like, params(f"{name}_reg")["refine_boxes"])
    out, _ = run(build(name, options=options), plain | {"refine_boxes": heads}, batch)
    without, _ = run(build(name), plain, batch)
    for term in without.terms:
        assert_close(out.terms[term], without.terms[term])
    assert_close(out.pseudo, without.pseudo, 1e-4)


def test_rubbish_in_masked_rows_is_inert():
    method, batch = build("oicr_reg"), make_batch(35)
    rows = ~np.asarray(batch.proposal_mask)[..., None]

    def objective(values, batch):
        out = method.loss(values, {}, batch, KEY, STEP)
        return sum(term.mean() for term in out.terms.values()), out

    compiled = jax.jit(jax.value_and_grad(objective, has_aux=True))
    expected = compiled(params("oicr_reg"), batch)
    for rubbish in (np.nan, np.inf, 1e30):
        other = changed(batch, proposals=np.where(rows, rubbish, batch.proposals))
        found = compiled(params("oicr_reg"), other)
        assert_finite((found[0][1].terms, found[1]))
        assert_close((found[0][1].terms, found[1]), (expected[0][1].terms, expected[1]), 1e-6)
