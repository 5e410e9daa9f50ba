"""The factors of the instance-reweighted loss."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.methods import mining_cases
from tests.methods.mining_cases import random_image, to_jax
from tests.oracles import losses as oracle
from wsod_jax.methods import oim
from wsod_jax.methods.oicr import Oicr, weighted_cross_entropy
from wsod_jax.types import RefineTargets

mine = partial(mining_cases.mine, Oicr, max_classes=3)
instance_multiplier = partial(oim.instance_multiplier, beta=0.2, release_core_sign=-1)
refinement_loss = partial(weighted_cross_entropy, normalizer="weighted")


def one_target(label, weight, source, is_pseudo_box):
    return RefineTargets(
        labels=jnp.array([label], jnp.int32),
        weights=jnp.array([weight], jnp.float32),
        matched_idx=jnp.array([0], jnp.int32),
        is_pseudo_box=jnp.array([is_pseudo_box]),
        source_scores=jnp.array([source], jnp.float32),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mode", "sign"), [("off", -1), ("paper", -1), ("release", -1), ("release", 1)]
)
def test_agrees_with_the_table(seed, mode, sign):
    scores, boxes, labels, _ = random_image(seed, num_positive=3)
    arrays = to_jax(scores, boxes, np.ones(40, bool), labels)
    targets = mine(*arrays).targets
    find = partial(instance_multiplier, mode=mode, beta=0.5, release_core_sign=sign)
    fields = {name: np.asarray(getattr(targets, name)) for name in targets.__dataclass_fields__}
    expected = oracle.multiplier(fields, mode, 0.5, sign)
    np.testing.assert_allclose(find(targets), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        (one_target(1, 0.9, 0.9, True), -0.2),  # core
        (one_target(1, 0.005, 0.005, True), 1.2),  # core, before the rule sets in
        (one_target(0, 0.9, 0.9, False), 1.0),  # background
        (one_target(0, 0.005, 0.005, False), 1.2),
        (one_target(1, 0.5, 0.6, False), 1.0),  # neighbor above its core
        (one_target(1, 0.5, 0.25, False), 1.2),
        (one_target(1, 0.5, 0.1, False), 1.0),  # weak neighbor
        (one_target(1, 0.5, 0.1500, False), 1.2),  # a ratio of 0.29999: the gate is 0.299, not 0.3
        (one_target(1, 0.5, 0.1496, False), 1.2),  # 0.29919
        (one_target(1, 0.5, 0.1494, False), 1.0),  # 0.29879
        (one_target(1, 0.5, 0.4994, True), 1.2),  # 0.99878: the upper gate is 0.999
        (one_target(1, 0.5, 0.4998, True), -0.2),  # 0.99958
        (one_target(0, 0.0, 0.0, False), 1.0),  # ignored
    ],
)
def test_release_values(target, factor):
    np.testing.assert_allclose(instance_multiplier(target, mode="release"), [factor], rtol=1e-6)


def test_paper_values():
    find = partial(instance_multiplier, mode="paper")
    np.testing.assert_allclose(find(one_target(3, 0.9, 0.9, True)), [0.2])
    np.testing.assert_allclose(find(one_target(3, 0.9, 0.1, False)), [1.2])
    np.testing.assert_allclose(find(one_target(0, 0.9, 0.9, False)), [1.0])


def test_off_is_the_plain_loss_and_paper_is_not():
    scores, boxes, labels, _ = random_image(0)
    mask = jnp.ones(40, bool)
    targets = mine(*to_jax(scores, boxes), mask, jnp.asarray(labels)).targets
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32))
    plain = refinement_loss(logits, targets, jnp.ones(40), mask)
    off = refinement_loss(logits, targets, instance_multiplier(targets, mode="off"), mask)
    paper = refinement_loss(logits, targets, instance_multiplier(targets, mode="paper"), mask)
    assert off == plain
    assert paper != plain


@pytest.mark.parametrize(
    "options", [{"mode": "printed"}, {"mode": "release", "release_core_sign": 0}]
)
def test_unknown_options_are_rejected(options):
    with pytest.raises(TypeCheckError, match="mode|sign"):
        instance_multiplier(one_target(1, 0.9, 0.9, True), **options)
