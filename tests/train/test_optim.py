"""Optimizers against NumPy loops and torch; groups and their errors; schedules at their boundaries."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsod_jax.errors import ConfigError
from wsod_jax.train.optim import Group, Optimizer

PARAMS = {
    "backbone": {"kernel": np.array([1.0, -2.0], np.float32)},
    "head": {"kernel": np.array([0.5], np.float32), "bias": np.array([0.25], np.float32)},
}
GROUPS = (Group("head/bias", 20.0, 0.0), Group("bias$", 2.0, 0.0), Group("^head", 10.0, 1.0))


def gradients(steps: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), PARAMS)
        for _ in range(steps)
    ]


def train(optimizer: Optimizer, grads, frozen=()):
    tx, _ = optimizer.transformation(len(grads), frozen)
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
    optimizer = Optimizer(
        learning_rate=0.01,
        decay_steps=(4,),
        weight_decay=0.1,
        groups=(GROUPS[0], GROUPS[2]),
        update_rule=rule,
        momentum_reset_steps=resets,
    )
    params, _ = train(optimizer, grads)
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
        optimizer = Optimizer(learning_rate=0.01, decay_steps=(4,), update_rule=rule)
        return np.asarray(train(optimizer, gradients(steps))[0]["backbone"]["kernel"])

    np.testing.assert_allclose(final("caffe", 4), final("pytorch", 4), rtol=1e-6)
    assert np.abs(final("caffe", 5) - final("pytorch", 5)).max() > 1e-3


def test_adamw_first_steps():
    grads = gradients(3)
    optimizer = Optimizer(
        name="adamw", learning_rate=0.01, weight_decay=0.1, groups=(Group("bias", 2.0, 0.0),)
    )
    params, state = train(optimizer, grads, frozen=["backbone"])
    for name, mult, decay in [("kernel", 1.0, 0.1), ("bias", 2.0, 0.0)]:
        w, m, v = PARAMS["head"][name].copy(), 0.0, 0.0
        for t, grad in enumerate(grads, start=1):
            g = grad["head"][name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            ratio = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - 0.01 * mult * (ratio + decay * w)
        np.testing.assert_allclose(params["head"][name], w, rtol=1e-4)
    np.testing.assert_array_equal(params["backbone"]["kernel"], PARAMS["backbone"]["kernel"])
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 2 + 2  # moments, two counts


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_does_what_torch_does(name):
    """With weight decay (inside the moments, or outside), a drop, a warm-up and groups of their own."""
    torch = pytest.importorskip("torch")
    optimizer = Optimizer(
        name=name,
        learning_rate=0.02,
        decay_steps=(6,),
        warmup_steps=3,
        weight_decay=0.3,
        betas=(0.8, 0.95),
        eps=1e-6,
        groups=(
            Group("bias", 2.0, 0.0),
            Group("^head", 0.5, 2.0, decay_steps=(4, 7), decay_factor=3.0, warmup_steps=0),
        ),
    )
    grads = gradients(10)
    params, _ = train(optimizer, grads)

    def common(step):
        return 0.02 * (0.1 if step >= 6 else 1) * (1 / 3 + 2 / 3 * min(step / 3, 1))

    def own(step):
        return 0.02 * 3 ** ((step >= 4) + (step >= 7))

    rates = {
        ("backbone", "kernel"): (common, 0.3),
        ("head", "bias"): (lambda step: 2 * common(step), 0.0),
        ("head", "kernel"): (lambda step: 0.5 * own(step), 0.6),
    }
    weights = {(b, n): torch.tensor(PARAMS[b][n], requires_grad=True) for b, n in rates}
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    groups = [{"params": [weights[key]], "weight_decay": rates[key][1]} for key in rates]
    reference = kind(groups, lr=1.0, betas=(0.8, 0.95), eps=1e-6)
    for step, grad in enumerate(grads):
        for group, (block, leaf) in zip(reference.param_groups, rates, strict=True):
            group["lr"] = rates[block, leaf][0](step)
            weights[block, leaf].grad = torch.tensor(grad[block][leaf])
        reference.step()
    for block, leaf in rates:
        expected = weights[block, leaf].detach().numpy()
        assert np.abs(expected - PARAMS[block][leaf]).min() > 0.02
        np.testing.assert_allclose(params[block][leaf], expected, rtol=2e-5)


def test_adam_clips_before_it_adds_the_decay():
    grads = [jax.tree.map(lambda w: 1e3 * np.ones_like(w), PARAMS)]
    optimizer = Optimizer(
        name="adam", learning_rate=0.1, weight_decay=1.0, clip_norm=1e-3, betas=(0.0, 0.0), eps=1.0
    )
    params, _ = train(optimizer, grads)
    grad = 1e-3 / 2 + PARAMS["backbone"]["kernel"]  # four values share the norm
    expected = PARAMS["backbone"]["kernel"] - 0.1 * grad / (np.abs(grad) + 1)
    np.testing.assert_allclose(params["backbone"]["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("rule", ["caffe", "pytorch"])
def test_a_group_follows_its_own_schedule(rule):
    """As the mask network of Concrete DropBlock: a lower rate that rises threefold where the others fall."""
    grads = gradients(8)
    optimizer = Optimizer(
        learning_rate=0.01,
        decay_steps=(3, 6),
        warmup_steps=2,
        update_rule=rule,
        groups=(
            Group("head/kernel", 0.01, decay_factor=3.0, warmup_steps=4),
            Group("bias", 2.0, warmup_steps=0),
        ),
    )
    params, _ = train(optimizer, grads)

    def ramp(step, steps):
        return 1 / 3 + 2 / 3 * min(step / steps, 1)

    dropped = [(step >= 3) + (step >= 6) for step in range(8)]
    for block, name, mult, rates in [
        ("backbone", "kernel", 1.0, [0.01 * 0.1**d * ramp(i, 2) for i, d in enumerate(dropped)]),
        ("head", "kernel", 0.01, [0.01 * 3.0**d * ramp(i, 4) for i, d in enumerate(dropped)]),
        ("head", "bias", 2.0, [0.01 * 0.1**d for d in dropped]),
    ]:
        expected = numpy_sgd(
            PARAMS[block][name],
            [g[block][name] for g in grads],
            rates=rates,
            mult=mult,
            decay=0.0,
            momentum=0.9,
            rule=rule,
        )
        np.testing.assert_allclose(params[block][name], expected, rtol=1e-5)


def test_a_group_may_drop_where_the_others_follow_a_cosine():
    optimizer = Optimizer(
        learning_rate=1.0, shape="cosine", momentum=0.0, groups=(Group("bias", decay_steps=(2,)),)
    )
    ones = jax.tree.map(np.ones_like, PARAMS)
    params, _ = train(optimizer, [ones] * 4)
    moved = jax.tree.map(lambda before, after: np.asarray(before - after), PARAMS, params)
    np.testing.assert_allclose(moved["head"]["bias"], [1 + 1 + 0.1 + 0.1], rtol=1e-6)
    cosine = sum(0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4))
    np.testing.assert_allclose(moved["head"]["kernel"], [cosine], rtol=1e-6)


def test_clipping_counts_trained_parameters_only():
    grads = {
        "backbone": {"kernel": np.array([1e6, 0.0], np.float32)},
        "head": {"kernel": np.array([3.0], np.float32), "bias": np.array([4.0], np.float32)},
    }
    optimizer = Optimizer(learning_rate=1.0, clip_norm=1.0, momentum=0.0)
    params, _ = train(optimizer, [grads], frozen=["backbone"])
    np.testing.assert_allclose(params["head"]["kernel"], [0.5 - 0.6], rtol=1e-5)
    np.testing.assert_allclose(params["head"]["bias"], [0.25 - 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("groups", "frozen", "message"),
    [
        ((Group("haed", 10.0),), (), "(?s)'haed'.*head/kernel"),
        ((Group("bias", 2.0, 0.0), Group("head/bias", 20.0)), (), "'head/bias'.*earlier"),
        ((), ("conv1",), "frozen 'conv1'"),
        ((), (".",), "nothing"),
    ],
)
def test_rules_that_decide_nothing_are_refused(groups, frozen, message):
    tx, _ = Optimizer(learning_rate=0.1, groups=groups).transformation(1, frozen)
    with pytest.raises(ConfigError, match=message):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adagrad"}, "'adagrad'.*'sgd'.*'adam'.*'adamw'"),
        ({"update_rule": "torch"}, "'torch'.*'caffe'.*'pytorch'"),
        ({"name": "adamw", "momentum_reset_steps": (3,)}, "momentum_reset_steps"),
        ({"name": "adamw", "momentum": 0.5}, "momentum .*'sgd'"),
        ({"name": "adam", "momentum": 0.5}, "momentum .*'sgd'"),
        ({"name": "adamw", "update_rule": "pytorch"}, "update_rule .*'sgd'"),
        ({"betas": (0.9, 0.99)}, "betas .*'adam'.*'adamw'"),
        ({"eps": 1e-6}, "eps .*'adam'.*'adamw'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Optimizer(learning_rate=0.1, **options)


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ConfigError, match="regular expression"):
        Optimizer(learning_rate=0.1).transformation(1, ["("])
    with pytest.raises(ConfigError, match=r"config\.optim\.groups\[1\]\.pattern .*'\('"):
        Optimizer(learning_rate=0.1, groups=(Group("a"), Group("(")))


# -- schedules


def rates_of(steps, num_steps=100, **options):
    _, schedule = Optimizer(**options).transformation(num_steps)
    values = [schedule(step) for step in steps]
    assert all(value.dtype == jnp.float32 and value.shape == () for value in values)
    return [float(value) for value in values]


def test_piecewise_boundary_belongs_to_the_later_value():
    values = rates_of((0, 39, 40, 69, 70, 10**6), learning_rate=1e-3, decay_steps=(40, 70))
    np.testing.assert_allclose(values, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-6)


def test_warm_up_is_linear_from_its_factor():
    values = rates_of((0, 250, 499, 500), learning_rate=0.3, decay_steps=(500,), warmup_steps=500)
    np.testing.assert_allclose(values, [0.1, 0.2, 0.3 * (1 / 3 + 2 / 3 * 0.998), 0.03], rtol=1e-5)


def test_cosine_ends_and_stays():
    values = rates_of((0, 5, 10, 20), num_steps=10, learning_rate=1.0, shape="cosine")
    np.testing.assert_allclose(values, [1.0, 0.5, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("warmup", [(0, 1 / 3), (7, 1 / 3), (50, 0.0), (1, 1.0)])
@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.01},
        {"learning_rate": 1e-3, "decay_steps": (40,)},
        {"learning_rate": 0.01, "decay_steps": (1, 7, 50), "decay_factor": 3.0},
        {"learning_rate": 3e-4, "decay_steps": (7, 8), "decay_factor": 0.0},
        {"learning_rate": 2e-3, "shape": "cosine"},
    ],
)
def test_schedules_are_their_formulas_in_float32(options, warmup):
    """Every operation rounded to float32, values of steps computed before that: what version 0.1 trained with."""
    steps, factor = warmup
    _, schedule = Optimizer(**options, warmup_steps=steps, warmup_factor=factor).transformation(60)
    one, drops = np.float32(1), options.get("decay_steps", ())
    rates = jax.jit(jax.vmap(schedule))(jnp.arange(70))
    for step in range(70):
        if options.get("shape") == "cosine":
            share = np.minimum(np.float32(step) / np.float32(60), one)
            wave = one + np.cos(np.float32(np.pi) * share, dtype=np.float32)
            expected = np.float32(options["learning_rate"] * 0.5) * wave
        else:
            passed = sum(step >= drop for drop in drops)
            expected = np.float32(
                options["learning_rate"] * options.get("decay_factor", 0.1) ** passed
            )
        if steps:
            share = np.minimum(np.float32(step) / np.float32(steps), one)
            expected *= np.float32(factor) + np.float32(1 - factor) * share
        ulps = 2e-7 * options["learning_rate"] if "shape" in options else 0  # of another cosine
        np.testing.assert_allclose(rates[step], expected, rtol=2e-7, atol=ulps)
        np.testing.assert_allclose(schedule(step), expected, rtol=2e-7, atol=ulps)


@pytest.mark.parametrize(
    "options",
    [
        {"decay_steps": (5, 5)},
        {"decay_steps": (7, 5)},
        {"decay_steps": (0,)},
        {"decay_factor": -0.1},
        {"shape": "triangle"},
        {"shape": "cosine", "decay_steps": (5,)},
        {"shape": "cosine", "decay_factor": 0.5},
        {"warmup_steps": -1},
        {"warmup_steps": 10, "warmup_factor": 2.0},
        {"groups": (Group("bias", decay_steps=(5, 5)),)},
        {"groups": (Group("bias", warmup_steps=-1),)},
        {"shape": "cosine", "groups": (Group("bias", decay_factor=0.5),)},
    ],
)
def test_impossible_schedules_are_refused(options):
    with pytest.raises(ConfigError, match=r"optim\.(decay|shape|warmup|groups, 'bias': )"):
        Optimizer(learning_rate=1.0, **options)


def test_a_cosine_over_no_update_is_refused():
    with pytest.raises(ConfigError, match=r"train\.num_steps.* 0"):
        Optimizer(learning_rate=1.0, shape="cosine").transformation(0)
