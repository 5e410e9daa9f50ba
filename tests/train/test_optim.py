"""Optimisers against NumPy loops; rules and their errors; schedules at their boundaries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsod_jax.errors import ConfigError
from wsod_jax.train.optim import make_optimizer
from wsod_jax.train.schedules import cosine, piecewise_constant, warm_up

PARAMS = {
    "backbone": {"kernel": np.array([1.0, -2.0], np.float32)},
    "head": {"kernel": np.array([0.5], np.float32), "bias": np.array([0.25], np.float32)},
}
RULES = [("head/bias", 20.0, 0.0), ("bias$", 2.0, 0.0), ("^head", 10.0, 1.0)]


def gradients(steps: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), PARAMS)
        for _ in range(steps)
    ]


def train(tx, grads):
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grad in grads:
        delta, state = update(grad, state, params)
        params = optax.apply_updates(params, delta)
    return params, state


def numpy_sgd(w, grads, *, rates, mult, decay, momentum, rule, resets=()):
    v = np.zeros_like(w)
    for step, (g, rate) in enumerate(zip(grads, rates, strict=True)):
        if step in resets:
            v = np.zeros_like(w)
        g = g + decay * w
        if rule == "caffe":
            v = momentum * v + rate * mult * g
            w = w - v
        else:
            v = momentum * v + g
            w = w - rate * mult * v
    return w


@pytest.mark.parametrize("rule", ["caffe", "pytorch"])
@pytest.mark.parametrize("resets", [(), (5,)])
def test_sgd_across_a_drop_of_the_rate(rule, resets):
    grads = gradients(7)
    tx = make_optimizer(
        schedule=piecewise_constant((0.01, 0.001), (4,)),
        weight_decay=0.1,
        groups=[RULES[0], RULES[2]],
        update_rule=rule,
        momentum_reset_steps=resets,
    )
    params, _ = train(tx, grads)
    rates = [0.01] * 4 + [0.001] * 3
    for block, name, mult, decay in [
        ("backbone", "kernel", 1.0, 0.1),
        ("head", "kernel", 10.0, 0.1),
        ("head", "bias", 20.0, 0.0),
    ]:
        expected = numpy_sgd(
            PARAMS[block][name],
            [g[block][name] for g in grads],
            rates=rates,
            mult=mult,
            decay=decay,
            momentum=0.9,
            rule=rule,
            resets=resets,
        )
        np.testing.assert_allclose(params[block][name], expected, rtol=1e-5)


def test_the_two_rules_differ_only_after_the_drop():
    def final(rule, steps):
        tx = make_optimizer(schedule=piecewise_constant((0.01, 0.001), (4,)), update_rule=rule)
        return np.asarray(train(tx, gradients(steps))[0]["backbone"]["kernel"])

    np.testing.assert_allclose(final("caffe", 4), final("pytorch", 4), rtol=1e-6)
    assert np.abs(final("caffe", 5) - final("pytorch", 5)).max() > 1e-3


def test_adamw_first_steps():
    grads = gradients(3)
    tx = make_optimizer(
        name="adamw",
        schedule=piecewise_constant((0.01,)),
        weight_decay=0.1,
        groups=[("bias", 2.0, 0.0)],
        frozen=["backbone"],
    )
    params, _ = train(tx, grads)
    for name, mult, decay in [("kernel", 1.0, 0.1), ("bias", 2.0, 0.0)]:
        w, m, v = PARAMS["head"][name].copy(), 0.0, 0.0
        for t, grad in enumerate(grads, start=1):
            g = grad["head"][name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            ratio = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - 0.01 * mult * (ratio + decay * w)
        np.testing.assert_allclose(params["head"][name], w, rtol=1e-4)
    np.testing.assert_array_equal(params["backbone"]["kernel"], PARAMS["backbone"]["kernel"])


def test_clipping_counts_trained_parameters_only():
    grads = {
        "backbone": {"kernel": np.array([1e6, 0.0], np.float32)},
        "head": {"kernel": np.array([3.0], np.float32), "bias": np.array([4.0], np.float32)},
    }
    tx = make_optimizer(
        schedule=piecewise_constant((1.0,)), frozen=["backbone"], clip_norm=1.0, momentum=0.0
    )
    params, _ = train(tx, [grads])
    np.testing.assert_allclose(params["head"]["kernel"], [0.5 - 0.6], rtol=1e-5)
    np.testing.assert_allclose(params["head"]["bias"], [0.25 - 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": [("haed", 10.0, 1.0)]}, "(?s)'haed'.*head/kernel"),
        ({"groups": [("bias", 2.0, 0.0), ("head/bias", 20.0, 0.0)]}, "'head/bias'.*earlier"),
        ({"frozen": ["conv1"]}, "frozen 'conv1'"),
        ({"frozen": ["."]}, "nothing would be trained"),
    ],
)
def test_rules_that_decide_nothing_are_refused(options, message):
    tx = make_optimizer(schedule=piecewise_constant((0.1,)), **options)
    with pytest.raises(ConfigError, match=message):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "'adam'.*'sgd' and 'adamw'"),
        ({"update_rule": "torch"}, "'torch'.*'caffe' and 'pytorch'"),
        ({"name": "adamw", "momentum_reset_steps": (3,)}, "momentum_reset_steps"),
        ({"name": "adamw", "momentum": 0.5}, "momentum belongs to 'sgd'.*drop it"),
        ({"name": "adamw", "update_rule": "pytorch"}, "update_rule belongs to 'sgd'"),
        ({"betas": [0.9, 0.99]}, "betas belongs to 'adamw'"),
        ({"eps": 1e-6}, "eps belongs to 'adamw'"),
        ({"frozen": ["("]}, "regular expression"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(schedule=piecewise_constant((0.1,)), **options)


def test_piecewise_boundary_belongs_to_the_later_value():
    schedule = piecewise_constant((1e-3, 1e-4, 1e-5), (40, 70))
    values = [float(schedule(step)) for step in (0, 39, 40, 69, 70, 10**6)]
    np.testing.assert_allclose(values, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6)


def test_warm_up_is_linear_from_its_factor():
    schedule = warm_up(piecewise_constant((0.3, 0.03), (500,)), steps=500, factor=1 / 3)
    values = [float(schedule(step)) for step in (0, 250, 499, 500)]
    np.testing.assert_allclose(values, [0.1, 0.2, 0.3 * (1 / 3 + 2 / 3 * 0.998), 0.03], rtol=1e-5)


def test_cosine_ends_and_stays():
    schedule = cosine(1.0, total_steps=10, final=0.1)
    values = [float(schedule(step)) for step in (0, 5, 10, 20)]
    np.testing.assert_allclose(values, [1.0, 0.55, 0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: piecewise_constant((1.0,), (3,)),
        lambda: piecewise_constant((1.0, 0.1, 0.01), (5, 5)),
        lambda: piecewise_constant((1.0, 0.1), (0,)),
        lambda: cosine(1.0, total_steps=0),
        lambda: warm_up(piecewise_constant((1.0,)), steps=10, factor=2.0),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(ConfigError):
        make()
