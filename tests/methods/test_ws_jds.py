"""WS-JDS: localization maps, guidance and its gates, what stays WSDDN, and padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.methods.cases import (
    CANVAS,
    KEY,
    NUM_CLASSES,
    NUM_PROPOSALS,
    STEP,
    assert_close,
    assert_finite,
    changed,
    loss_function,
    make_batch,
    means,
    only,
    predict_function,
)
from tests.methods.test_contract import DEGENERATE, SECOND
from wsod_jax.errors import ConfigError
from wsod_jax.methods.prior_guidance import class_weights, evidence_scores, prior_weights
from wsod_jax.methods.ws_jds import WsJds
from wsod_jax.methods.wsddn import Wsddn
from wsod_jax.nn.aspp import Aspp
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.ops.crf import CrfOptions
from wsod_jax.ops.resize import upsample

BRANCH = Aspp(dilations=(1, 2), channels=8, dropout_rate=0.5)
GUIDANCE = ("both", "to_segmentation", "to_detection", "none")


def build(cls=WsJds, *, frozen=("conv",), dropout_rate=0.5, **options):
    """Make the method on a tiny network; by default every present class of the batches is confident."""
    if cls is WsJds:
        options = {
            "confidence_thr": 0.0,
            "segmentation": dataclasses.replace(BRANCH, dropout_rate=dropout_rate),
            "crf": CrfOptions(num_iterations=3),
            **options,
        }
    return cls(
        backbone=TinyNet(widths=(4, 4, 8, 8), frozen=frozen),
        num_classes=NUM_CLASSES,
        max_classes=NUM_CLASSES,
        box_head=BoxHead(dims=(16, 16), dropout_rate=dropout_rate),
        roi_size=3,
        **options,
    )


@functools.cache
def params():
    """Random parameters whose scores are far from equal."""
    drawn, _ = build().init(jax.random.key(1), make_batch(0))
    return drawn | {"midn": jax.tree.map(lambda x: 10 * x, drawn["midn"])}


@functools.cache
def compiled(**options):
    return loss_function(build(dropout_rate=0.0, **options))


def maps_of(method, batch, classes):
    return jax.jit(method.localization_maps)(params(), batch, KEY, jnp.asarray(classes))


# -- localization maps


@pytest.mark.parametrize("map_seed", ["ones", "scores"])
def test_localization_map_is_the_gradient_of_the_score(map_seed):
    """Against finite differences of the score, dropout included, at the pixels where the map is largest."""
    method, batch, step = build(map_seed=map_seed), only(make_batch(0), 0), 0.5

    @functools.partial(jax.jit, static_argnums=1)
    def score(image, c):
        row = method.score(params(), batch.replace(image=image), KEY).mil_scores[0, :, c]
        return jnp.sum(row) if map_seed == "ones" else 0.5 * jnp.sum(row**2)

    found = np.asarray(maps_of(method, batch, [[0, 2, -1]]))[0]
    for slot, c in enumerate((0, 2)):
        assert found[slot].max() == pytest.approx(1.0)
        best = np.argsort(found[slot].ravel())[:-6:-1]
        sizes = []
        for y, x in zip(*np.unravel_index(best, CANVAS), strict=True):
            above, below = (
                [score(batch.image.at[0, y, x, k].add(h), c) for k in range(3)]
                for h in (step, -step)
            )
            sizes.append(np.abs(np.subtract(above, below)).max() / (2 * step))
        expected = found[slot].ravel()[best]
        np.testing.assert_allclose(np.array(sizes) / sizes[0], expected / expected[0], rtol=0.1)
    np.testing.assert_array_equal(found[2], 0.0)


def test_localization_maps_need_no_trainable_backbone():
    batch, classes = make_batch(0), [[0, 2, -1], [1, -1, -1]]
    frozen, trained = (maps_of(build(frozen=f), batch, classes) for f in (("conv",), ()))
    np.testing.assert_allclose(frozen, trained, atol=1e-6)
    np.testing.assert_allclose(frozen.max(axis=(2, 3)), [[1, 1, 0], [1, 0, 0]], rtol=1e-6)


def test_margin_of_a_map_is_zero():
    found = maps_of(build(), make_batch(0), [[0, -1, -1], [1, -1, -1]])
    height, width = make_batch(0).image_size[1]
    np.testing.assert_array_equal(found[1, :, height:], 0.0)
    np.testing.assert_array_equal(found[1, :, :, width:], 0.0)


def test_both_branches_share_one_forward_pass():
    """The maps add one backward convolution for each layer of the backbone; their forward pass is the loss's."""

    def convolutions(guidance):
        method = build(guidance=guidance)

        def objective(values, batch):
            terms = method.loss(values, {}, batch, KEY, STEP).terms.values()
            return sum(term.mean() for term in terms)

        compiled = jax.jit(jax.grad(objective)).lower(params(), make_batch(0)).compile()
        return compiled.as_text().count(" convolution(")

    assert convolutions("to_segmentation") == convolutions("none") + len(TinyNet.layers)


# -- gates


def test_closed_gates_leave_wsddn_times_1_1_and_no_seeds():
    batch = make_batch(0)
    out, _ = compiled(confidence_thr=1.0)(params(), batch)
    np.testing.assert_array_equal(out.figures["classes"], -1)
    np.testing.assert_array_equal(out.figures["localization_maps"], 0.0)
    plain, _ = compiled(guidance="none")(params(), batch)
    terms, mil = means(out.terms), means(plain.terms)["mil"]
    assert terms["prior_localization"] == pytest.approx(mil, abs=1e-4)
    assert terms["prior_mask"] == pytest.approx(0.1 * mil, abs=1e-4)
    absent = changed(batch, labels=np.zeros((2, 3)))
    assert terms["seed"] < means(compiled(confidence_thr=1.0)(params(), absent)[0].terms)["seed"]


def test_confident_classes_at_the_threshold():
    method, batch = build(confidence_thr=0.5), make_batch(0)
    scores = jnp.zeros((2, NUM_PROPOSALS, 3)).at[:, 0].set(jnp.asarray([0.5, 0.9, 0.49]))
    scored = method.score(params(), batch).replace(mil_scores=scores)
    found = method.confident_classes(
        scored, batch, True
    )  # classes 0 and 2, and class 1, are present
    np.testing.assert_array_equal(found, [[0, -1, -1], [1, -1, -1]])
    assert (method.confident_classes(scored, batch, False) == -1).all()


def test_guidance_ends():
    batch = make_batch(0)
    loss = compiled(guidance_steps=5)
    before, after = (loss(params(), batch, KEY, jnp.asarray(step))[0] for step in (4, 5))
    assert (before.figures["classes"] >= 0).any() and (after.figures["classes"] == -1).all()
    assert means(after.terms)["seed"] == 0 < means(before.terms)["seed"]
    assert means(after.terms)["boundary"] == means(before.terms)["boundary"] > 0
    assert build(guidance_steps=5).changes_at() == {"guidance": (5,)}


def test_prior_follows_equation_4():
    """φ⁺ and φ⁻ of one image, from the weights that its own localization maps give."""
    batch, method = make_batch(0), build(dropout_rate=0.0)
    out, _ = compiled(evidence_thr=0.6)(params(), batch)
    x = np.asarray(method.score(params(), batch).mil_scores, np.float64)
    totals, guided = [], False
    for b in range(2):
        mask, classes = batch.proposal_mask[b], out.figures["classes"][b].tolist()
        total = 0.0
        for c in range(3):
            weights = np.ones(NUM_PROPOSALS)
            if c in classes:
                evidence = out.figures["localization_maps"][b, classes.index(c)] >= 0.6
                scores = evidence_scores(evidence, batch.proposals[b], batch.image_size[b])
                weights = np.asarray(prior_weights(scores, mask, x[b, :, c].sum()))
                guided |= (weights < 1).any()
            plus = np.clip((np.maximum(weights, 0) * x[b, :, c]).sum(), 1e-6, 1 - 1e-6)
            minus = np.clip((np.maximum(-weights, 0) * x[b, :, c]).sum(), 1e-6, 1 - 1e-6)
            present = batch.labels[b, c] == 1
            total -= (np.log(plus) if present else np.log1p(-plus)) + np.log1p(-minus)
        totals.append(total)
    assert guided
    assert means(out.terms)["prior_localization"] == pytest.approx(np.mean(totals), rel=1e-4)


def upsampled(cells, valid, stride, shape):
    """One class's cells at pixels."""
    return np.array(upsample(jnp.asarray(cells), jnp.asarray(valid), stride, shape))


def test_mask_prior_uses_segmentation_relative_to_its_maximum():
    batch, method = make_batch(0), build(dropout_rate=0.0)
    out, _ = compiled(evidence_thr=0.6)(params(), batch)
    x = np.asarray(method.score(params(), batch).mil_scores)
    valid = method.backbone.output_size(batch.image_size)
    losses = []
    for b, (height, width) in enumerate(np.asarray(batch.image_size)):
        classes, evidence = out.figures["classes"][b], []
        for c in classes.tolist():
            found = upsampled(out.figures["segmentation"][b, ..., c], valid[b], 8.0, CANVAS)
            found[height:], found[:, width:] = 0, 0
            evidence.append((found / found.max() >= 0.6) & (c >= 0))
        weights = class_weights(
            jnp.asarray(np.stack(evidence)),
            classes,
            jnp.asarray(x[b]),
            batch.proposals[b],
            batch.proposal_mask[b],
            batch.image_size[b],
            region="frame",
            area="plain",
        )
        plus = np.clip((np.maximum(weights, 0) * x[b]).sum(axis=0), 1e-6, 1 - 1e-6)
        minus = np.clip((np.maximum(-weights, 0) * x[b]).sum(axis=0), 1e-6, 1 - 1e-6)
        present = np.asarray(batch.labels[b]) == 1
        losses.append(-np.where(present, np.log(plus), np.log1p(-plus)) - np.log1p(-minus))
    expected = 0.1 * np.mean(np.sum(losses, axis=1))
    assert means(out.terms)["prior_mask"] == pytest.approx(expected, rel=1e-4)


def test_seed_loss_sums_classes_at_the_pixels():
    batch = make_batch(0)
    out, _ = compiled()(params(), batch)
    valid = build().backbone.output_size(batch.image_size)
    total = 0.0
    for b, (height, width) in enumerate(np.asarray(batch.image_size)):
        classes = out.figures["classes"][b].tolist()
        for c in range(NUM_CLASSES):
            s = np.asarray(out.figures["segmentation"][b, ..., c], np.float64)
            logits = upsampled(np.log(s / (1 - s)), valid[b], 8.0, CANVAS)[:height, :width]
            seeds = np.zeros((height, width))
            if c in classes:
                found = out.figures["localization_maps"][b, classes.index(c), :height, :width]
                seeds = np.where(found >= 0.1, 1, np.where(found <= 0.005, 0, -1))
            for value, sign in ((1, -1), (0, 1)):
                if (seeds == value).any():
                    total += np.log1p(np.exp(sign * logits[seeds == value])).mean()
    assert means(out.terms)["seed"] == pytest.approx(total / 2, rel=1e-4)


def test_a_map_of_zeros_seeds_nothing():
    batch, method = make_batch(0), build()
    logits = method.segment(
        params(), method.backbone.apply({"params": params()["backbone"]}, batch)["c5"]
    )
    nothing = jnp.zeros((2, NUM_CLASSES, *CANVAS))
    losses = jax.jit(lambda classes: method.seed_losses(logits, nothing, classes, batch))
    zero_maps = losses(jnp.asarray([[0, 2, -1], [1, -1, -1]]))
    np.testing.assert_array_equal(zero_maps, losses(jnp.full((2, NUM_CLASSES), -1)))


def test_a_batch_equals_its_images():
    batch = make_batch(0)
    out, _ = compiled()(params(), batch)
    for b in range(2):
        alone, _ = compiled()(params(), only(batch, b))
        for name, term in out.terms.items():
            assert float(term.total[b]) == pytest.approx(
                float(alone.terms[name].total[0]), rel=1e-4
            )


# -- ablations


@pytest.mark.parametrize("guidance", ["none", "to_segmentation"])
def test_with_a_frozen_backbone_detection_learns_as_wsddn(guidance):
    """Bit by bit, over three updates, with dropout."""
    method, plain = build(guidance=guidance), build(Wsddn, mil_reduction="sum", score_gate=1.0)
    batch, tx = make_batch(0), optax.sgd(0.1)

    def train(method):
        values, _ = method.init(jax.random.key(1), batch)

        def objective(values, key):
            terms = method.loss(values, {}, batch, key, STEP).terms.values()
            return sum(term.mean() for term in terms)

        @jax.jit
        def update(values, state, key):
            updates, state = tx.update(jax.grad(objective)(values, key), state)
            return optax.apply_updates(values, updates), state

        state = tx.init(values)
        for step in range(3):
            values, state = update(values, state, jax.random.fold_in(KEY, step))
        return values

    joint, alone = train(method), train(plain)
    for name in ("midn", "box_head"):
        for a, b in zip(jax.tree.leaves(joint[name]), jax.tree.leaves(alone[name]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_terms_of_every_ablation(guidance):
    out, grads = compiled(guidance=guidance)(params(), make_batch(0))
    detection = (
        {"mil"}
        if guidance in ("none", "to_segmentation")
        else {
            "prior_localization",
            "prior_mask",
        }
    )
    segmentation = (
        {"segmentation"}
        if guidance in ("none", "to_detection")
        else {
            "seed",
            "boundary",
        }
    )
    assert set(out.terms) == detection | segmentation
    assert_finite((out.terms, grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads["segmentation"]))
    assert not any(np.any(g) for g in jax.tree.leaves(grads["backbone"]))


VARIANTS = {
    "released": dict(boundary_loss="released", map_seed="scores", entropy_weight=0.1),
    "paper": dict(
        prior_region="box", mask_area="root", negative_weights="sum", seed_balance="plain"
    ),
    "no boundary": dict(boundary_loss="off"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_are_finite(variant):
    out, grads = compiled(**VARIANTS[variant])(params(), make_batch(0))
    assert_finite((out.terms, grads))
    assert ("entropy" in out.terms) == (variant == "released")
    assert ("boundary" in out.terms) == (variant != "no boundary")


# -- degenerate input and padding


@pytest.mark.parametrize("case", list(DEGENERATE))
def test_degenerate_batches_are_finite(case):
    out, grads = compiled()(params(), changed(make_batch(3), **DEGENERATE[case]))
    assert_finite((out.terms, out.metrics, grads))
    values = means(out.terms)
    if case == "unknown labels":
        assert values["seed"] == values["prior_localization"] == values["prior_mask"] == 0
    if case == "fillers only":
        assert set(values.values()) == {0.0}
        assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_filler_image_changes_nothing():
    batch = make_batch(0)
    filled = changed(batch, image_mask=~SECOND[:, 0], proposal_mask=batch.proposal_mask & ~SECOND)
    out, grads = compiled()(params(), filled)
    alone, alone_grads = compiled()(params(), only(batch, 0))
    assert_close(means(out.terms), means(alone.terms), 2e-5)
    assert_close(grads, alone_grads, 1e-4)


def test_a_larger_canvas_changes_nothing():
    batch = make_batch(0)
    pad = ((0, 0), (0, 16), (0, 32), (0, 0))
    larger = dataclasses.replace(batch, image=jnp.pad(batch.image, pad))
    out, grads = compiled()(params(), batch)
    padded, padded_grads = compiled()(params(), larger)
    assert_close(means(out.terms), means(padded.terms), 2e-5)
    assert_close(grads, padded_grads, 1e-4)
    predict = predict_function(build())
    small, large = (predict(params(), {}, b) for b in (batch, larger))
    assert_close(small.scores, large.scores)
    rows, columns = small.semantic.features.shape[1:3]
    first = small.semantic.size[0]
    assert (first == jnp.asarray([rows, columns])).all()
    assert_close(small.semantic.features[0], large.semantic.features[0, :rows, :columns])


def test_masked_proposals_change_nothing():
    batch = make_batch(0)
    moved = batch.proposals.at[:, NUM_PROPOSALS - 2].set(jnp.asarray([0.0, 0.0, 40.0, 40.0]))
    out, _ = compiled()(params(), batch)
    again, _ = compiled()(params(), changed(batch, proposals=moved))
    assert_close(means(out.terms), means(again.terms), 1e-6)


# -- the branch starts from the box head


def test_branches_start_from_fc6_and_fc7():
    method, batch = build(), make_batch(0)
    drawn = params()
    started = method.start_from(drawn, frozenset({"box_head/fc6/kernel", "box_head/fc7/kernel"}))
    fc6 = drawn["box_head"]["fc6"]["kernel"].reshape(3, 3, 8, 16)
    kept = np.arange(8) * 2  # every second of 16
    for branch in ("branch0", "branch1"):
        window = started["segmentation"][f"{branch}_fc6"]["kernel"]
        np.testing.assert_array_equal(window, fc6[..., kept])
        square = started["segmentation"][f"{branch}_fc7"]["kernel"][0, 0]
        fc7 = drawn["box_head"]["fc7"]["kernel"]
        np.testing.assert_array_equal(square, fc7[kept][:, kept])
    assert jax.tree.structure(started) == jax.tree.structure(drawn)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, drawn)
    out, _ = compiled()(started, batch)
    assert_finite(out.terms)
    for paths in (
        {"backbone/conv1_1/kernel"},
        {"box_head/fc6/kernel", "box_head/fc7/kernel", "segmentation/branch0_fc6/kernel"},
    ):
        assert method.start_from(drawn, frozenset(paths)) is drawn


def test_thresholds_in_the_wrong_order():
    with pytest.raises(ConfigError, match="seed_thrs"):
        build(seed_thrs=(0.1, 0.1))
