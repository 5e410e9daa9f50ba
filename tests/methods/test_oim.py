"""OIM's own switches: the schedule of alpha, alpha 0 as OICR, and dropout that follows the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.methods.cases import KEY, assert_close, build, changed, make_batch, means, only, params
from wsod_jax.errors import ConfigError

PAPER = ((0, 5.0), (70_000, 2.0))


@pytest.mark.parametrize(
    ("step", "alpha"), [(0, 5.0), (1, 5.0), (69_999, 5.0), (70_000, 2.0), (89_999, 2.0)]
)
def test_alpha_follows_its_schedule(step, alpha):
    assert build("oim", options={"alpha": PAPER}).alpha_at(jnp.asarray(step)) == alpha


@pytest.mark.parametrize(
    "alpha", [(), ((1, 5.0),), ((0, 5.0), (0, 2.0)), ((0, 5.0), (9, 2.0), (3, 1.0))]
)
def test_wrong_schedules_are_refused(alpha):
    with pytest.raises(ConfigError, match="ascending"):
        build("oim", options={"alpha": alpha})


def test_the_sign_of_the_released_core_factor_is_an_option():
    with pytest.raises(TypeCheckError, match="release_core_sign"):
        build("oim", options={"reweight": "release", "release_core_sign": 0})


def test_oim_passes_the_sign_on():
    batch = make_batch(31)
    terms = [
        build("oim", options={"reweight": "release", "release_core_sign": sign})
        .loss(params("oim"), {}, batch, KEY, jnp.asarray(0))
        .terms
        for sign in (-1, 1)
    ]
    assert means(terms[0])["refine_1"] < means(terms[1])["refine_1"]


def test_alpha_zero_is_oicr_and_the_step_ends_it():
    oim = build("oim", options={"reweight": "off", "alpha": ((0, 0.0), (10, 50.0))})
    oicr = build("oicr", options={"ignore_iou_thr": 0.0})
    batch = make_batch(31)
    run = jax.jit(lambda p, step: oim.loss(p, {}, batch, KEY, step))
    plain = jax.jit(lambda p: oicr.loss(p, {}, batch, KEY, jnp.asarray(9)))(params("oim"))
    before, after = (run(params("oim"), jnp.asarray(step)) for step in (9, 10))
    assert_close(before.terms, plain.terms, 1e-6)
    assert means(before.metrics)["nodes"] == 0
    assert means(after.metrics)["nodes"] > 0
    assert sum(means(after.terms).values()) != sum(means(before.terms).values())


def test_dropout_is_one_mask_per_image_whatever_the_batch():
    method, batch = build("oim", dropout_rate=0.5), make_batch(32)
    run = jax.jit(lambda p, b, key: method.loss(p, {}, b, key, jnp.asarray(0)).terms)
    together = run(params("oim"), batch, KEY)
    swapped = run(params("oim"), jax.tree.map(lambda x: x[::-1], batch), KEY)
    apart = [run(params("oim"), only(batch, image), KEY) for image in range(2)]
    renamed = run(params("oim"), changed(batch, image_index=[7, 99]), KEY)
    rekeyed = run(params("oim"), batch, jax.random.key(6))
    for name, term in together.items():
        assert_close(term.total, np.concatenate([terms[name].total for terms in apart]))
        assert_close(term.total, swapped[name].total[::-1])
        assert_close(term.total[0], renamed[name].total[0])
        assert abs(term.total[1] - renamed[name].total[1]) > 1e-3
        assert np.abs(term.total - rekeyed[name].total).min() > 1e-3
