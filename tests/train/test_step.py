"""Updates: accumulation, devices, compilations, fillers, averages."""

from __future__ import annotations

import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.toy import Toy, part, toy_batches
from wsod_jax.errors import ConfigError
from wsod_jax.train.optim import Group, Optimizer
from wsod_jax.train.sharding import local_rows, make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep

SEED = 3
OPTIMIZER = Optimizer(
    learning_rate=0.05, decay_steps=(3,), weight_decay=0.01, groups=(Group("bias", 2.0, 0.0),)
)


def build(*, devices: int = 1, accumulate: int = 1, method: Toy | None = None, ema_decay=None):
    method = method or Toy()
    mesh = make_mesh(devices)
    tx, schedule = OPTIMIZER.transformation(6, ["^frozen"])
    state = init_state(
        method, tx, seed=SEED, batch=toy_batches(1)[0], mesh=mesh, ema=ema_decay is not None
    )
    step = TrainStep(
        method,
        tx,
        seed=SEED,
        mesh=mesh,
        accumulate=accumulate,
        ema_decay=ema_decay,
        schedule=schedule,
    )
    return state, step


def run(state, step, updates):
    metrics = []
    with jax.transfer_guard("disallow"):
        for micro_batches in updates:
            placed = [put(batch, step.mesh) for batch in micro_batches]
            state, report = step.update(state, placed)
            metrics.append(jax.device_get(report))
    return state, metrics


def assert_same(a, b, **tolerance):
    for path, leaf in jax.tree_util.tree_leaves_with_path(a):
        other = dict(jax.tree_util.tree_leaves_with_path(b))[path]
        np.testing.assert_allclose(leaf, other, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_objective_is_the_sum_of_masked_means():
    state, step = build()
    kernel = np.asarray(state.params["head"]["kernel"]) + 0.5
    batch = toy_batches(1)[0]
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (3,)) for i in range(8)])
    error = (batch.x + 0.1 * noise[:, None]) @ kernel - batch.y
    positive = batch.y > 0
    _, (metrics,) = run(state, step, [[batch]])
    np.testing.assert_allclose(metrics["loss/fit"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/rows"], np.sin(error)[positive].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss/fit"] + metrics["loss/rows"], rtol=1e-6
    )
    np.testing.assert_allclose(metrics["positives"], positive.sum() / 8, rtol=1e-6)
    assert metrics["lr"] == np.float32(0.05)
    assert metrics["normalizer_mismatch"] == 0.0


@pytest.mark.parametrize("splits", [(0, 2, 8), (0, 4, 8)])
def test_accumulation_equals_the_large_batch(splits):
    batches = toy_batches(4)
    whole, whole_metrics = run(*build(), [[batch] for batch in batches])
    micro = [[part(b, first, last) for first, last in itertools.pairwise(splits)] for b in batches]
    split, split_metrics = run(*build(accumulate=2), micro)
    assert_same(whole, split, rtol=1e-5, atol=1e-7)
    assert_same(whole_metrics, split_metrics, rtol=1e-5, atol=1e-6)
    assert int(split.extras["seen"]) == 32
    # The normalizers differ between the parts, so a mean of means would have been another number.
    counts = [
        np.sum(b.y[: splits[1]] > 0) / (b.y[: splits[1]].size) - np.mean(b.y > 0) for b in batches
    ]
    assert np.abs(counts).max() > 0.05


def test_four_devices_equal_one():
    updates = [[batch] for batch in toy_batches(4)]
    one, one_metrics = run(*build(devices=1), updates)
    four, four_metrics = run(*build(devices=4), updates)
    assert len(four.params["head"]["kernel"].sharding.device_set) == 4
    assert_same(one, four, rtol=1e-5, atol=1e-6)
    assert_same(one_metrics, four_metrics, rtol=1e-5, atol=1e-6)


def test_accumulation_on_four_devices():
    batches = toy_batches(2)
    one, _ = run(*build(), [[batch] for batch in batches])
    four, _ = run(
        *build(devices=4, accumulate=2), [[part(b, 0, 4), part(b, 4, 8)] for b in batches]
    )
    assert_same(one, four, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fillers_change_nothing_and_alone_give_zero(accumulate):
    real, filler = toy_batches(2)
    filler = filler.replace(image_mask=np.zeros(8, bool))
    if accumulate == 2:
        alone, metrics = run(*build(accumulate=2), [[filler, filler]])
        mixed, _ = run(*build(accumulate=2), [[real, filler]])
        plain, _ = run(*build(), [[real]])
        assert_same(mixed.params, plain.params, rtol=1e-6)
    else:
        alone, metrics = run(*build(), [[filler]])
    assert metrics[0]["grad_norm"] == 0.0
    assert metrics[0]["loss"] == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(alone)))


def test_one_compilation_per_layout_and_none_on_repeats():
    state, step = build(accumulate=2)
    short, tall = toy_batches(1, rows=5), toy_batches(1, rows=7)
    state, _ = run(state, step, [[short[0], tall[0]], [tall[0], short[0]], [short[0], short[0]]])
    assert step.num_compilations() == 2
    state, fused = build()
    run(state, fused, [[short[0]], [tall[0]], [short[0]]])
    assert fused.num_compilations() == 2
    assert len(fused.compile_seconds) == 2


def test_frozen_parameters_stay_and_have_no_memory():
    state, step = build()
    sizes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(sizes) == [(1,), (3,)]  # the head's bias and kernel; not a second (3,)
    start = np.array(state.params["head"]["kernel"])
    state, _ = run(state, step, [[batch] for batch in toy_batches(2)])
    np.testing.assert_array_equal(state.params["frozen"]["kernel"], np.full(3, 0.5, np.float32))
    assert np.abs(np.asarray(state.params["head"]["kernel"]) - start).max() > 1e-3


def test_average_follows_the_parameters():
    state, step = build(ema_decay=0.75)
    first = jax.device_get(state.params)
    state, _ = run(state, step, [[toy_batches(1)[0]]])
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, first, jax.device_get(state.params))
    assert_same(state.ema, expected, rtol=1e-6)


def test_loss_reads_the_average_and_step_keeps_it():
    class Consistent(Toy):
        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch, key, step)
            gap = params["head"]["kernel"][0] - extras["ema"]["head"]["kernel"][0]
            weight = out.terms["fit"].weight
            return out.replace(
                metrics={"gap": out.metrics["positives"].replace(total=gap * weight)}
            )

    state, step = build(method=Consistent(), ema_decay=0.5)
    before = state.params["head"]["kernel"][0]
    batches = toy_batches(2)
    state, first = run(state, step, [[batches[0]]])
    assert first[0]["gap"] == 0.0
    moved = float(state.params["head"]["kernel"][0]) - float(before)
    state, second = run(state, step, [[batches[1]]])
    np.testing.assert_allclose(second[0]["gap"], moved / 2, rtol=1e-4)
    assert set(state.extras) == {"seen"}


def test_wrong_normalizer_is_reported():
    state, step = build(method=Toy(tied=True))
    _, metrics = run(state, step, [[toy_batches(1)[0]]])
    assert metrics[0]["normalizer_mismatch"] > 0.1


def test_examine_keeps_the_state():
    state, step = build()
    out = step.examine(state, put(toy_batches(1)[0], step.mesh))
    assert out.terms["fit"].total.shape == (8,)
    _, metrics = run(state, step, [[toy_batches(1)[0]]])  # the state is still usable
    np.testing.assert_allclose(metrics[0]["loss/fit"], out.terms["fit"].mean(), rtol=1e-6)


def test_two_streams_of_their_own_sizes():
    class TwoStreams(Toy):
        def init(self, key, batch):
            return super().init(key, batch["weak"])

        def loss(self, params, extras, batch, key, step):
            weak = super().loss(params, extras, batch["weak"], key, step)
            strong = super().loss(params, weak.extras, batch["strong"], key, step)
            terms = {
                f"strong_{n}": t.replace(per=f"strong_{t.per}") for n, t in strong.terms.items()
            }
            return weak.replace(terms={**weak.terms, **terms}, extras=strong.extras)

    streams = {"weak": toy_batches(1)[0], "strong": toy_batches(1, images=4, seed=1)[0]}
    method, mesh = TwoStreams(), make_mesh(4)
    tx, _ = Optimizer(learning_rate=0.05, decay_steps=(3,)).transformation(6)
    state = init_state(method, tx, seed=SEED, batch=streams, mesh=mesh)
    step = TrainStep(method, tx, seed=SEED, mesh=mesh)
    state, metrics = run(state, step, [[streams]])
    assert int(state.extras["seen"]) == 12
    assert np.isfinite(metrics[0]["loss/strong_rows"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, b: TrainStep(None, None, seed=0, mesh=None, accumulate=0), "accumulate"),
        (lambda s, b: s.update(None, [b, b]), "found 2"),
        (lambda s, b: put(part(b, 0, 6), make_mesh(4)), "multiple of 4.* 8"),
        (lambda s, b: put({"scale": np.float32(1)}, make_mesh(4)), "scale.*scalar"),
        (lambda s, b: make_mesh(5), "5 .* 4"),
    ],
)
def test_impossible_requests_name_the_fix(change, message):
    _, step = build()
    with pytest.raises(ConfigError, match=message):
        change(step, toy_batches(1)[0])


def test_extras_that_change_shape_are_refused():
    class Growing(Toy):
        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch, key, step)
            return out.replace(extras={**out.extras, "new": step})

    state, step = build(method=Growing())
    with pytest.raises(ConfigError, match="extras"):
        run(state, step, [[toy_batches(1)[0]]])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_update_lowers_for_accelerators(platform):
    state, step = build(ema_decay=0.9)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, toy_batches(1)[0])
    )
    exported = jax.export.export(jax.jit(step.fused), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)
    assert "custom_call @xla_python" not in exported.mlir_module()


def test_figures_cost_nothing_unless_examined():
    class Drawing(Toy):
        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch, key, step)
            large = jnp.sin(batch.x @ jax.random.normal(key, (3, 64)))  # [b, n, 64]
            return out.replace(figures={"gram": jnp.einsum("bnd,bmd->bnm", large, large)})

    batch = toy_batches(1)[0]
    costs, counts = [], []
    for method in (Toy(), Drawing()):
        state, step = build(method=method)
        lowered = jax.jit(step.fused).lower(state, put(batch, step.mesh))
        counts.append(len(lowered.as_text().splitlines()))
        costs.append(lowered.compile().cost_analysis()["flops"])
    assert costs[0] == costs[1]
    assert counts[0] == counts[1]  # already gone from what XLA is given
    assert step.examine(state, put(batch, step.mesh)).figures["gram"].shape == (8, 5, 5)


def test_a_result_that_is_the_average_needs_one():
    class Averaged(Toy):
        result = "ema"

    with pytest.raises(ConfigError, match="Averaged .*ema_decay.*None"):
        build(method=Averaged())
    with pytest.raises(ConfigError, match="1.0"):
        build(method=Averaged(), ema_decay=1.0)
    state, step = build(method=Averaged(), ema_decay=lambda step: jnp.where(step < 1, 0.0, 0.5))
    for own, copy in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(own, copy)
        assert own.unsafe_buffer_pointer() != copy.unsafe_buffer_pointer()
    batches = toy_batches(2)
    state, _ = run(state, step, [[batches[0]]])
    assert_same(state.ema, state.params, rtol=1e-6)  # a decay of 0 forgets the start
    before = jax.device_get(state.ema)
    state, _ = run(state, step, [[batches[1]]])
    expected = jax.tree.map(lambda a, b: (a + b) / 2, before, jax.device_get(state.params))
    assert_same(state.ema, expected, rtol=1e-6)


def test_rows_put_come_back():
    batch = toy_batches(1)[0]
    for devices in (1, 4):
        placed = put(batch, make_mesh(devices))
        for sent, found in zip(
            jax.tree.leaves(batch), jax.tree.leaves(local_rows(placed)), strict=True
        ):
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(sent, found)
