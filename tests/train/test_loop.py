"""The whole loop on the toy method: logs, resumes, signals, numbers that are not finite, pictures."""

from __future__ import annotations

import dataclasses
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.test_checkpoint import assert_bitwise, metadata
from tests.train.test_step import build
from tests.train.toy import Toy, toy_batches
from wsod_jax.errors import ConfigError, DataError, NonFiniteError
from wsod_jax.train.checkpoint import Checkpoints, checkpoint_steps
from wsod_jax.train.logging import JsonlWriter, read_jsonl
from wsod_jax.train.loop import Interrupted, Steps, Watchers, train

TOTAL = 7
STEPS = Steps(total=TOTAL, log_interval=2, checkpoint_interval=3)


def start(folder, *, batches=None, method=None, accumulate=1, steps=STEPS, cues=None, **watchers):
    """Run, or resume, as a script would: open the folder, restore, feed from that step."""
    state, step = build(method=method, accumulate=accumulate)
    checkpoints = Checkpoints(folder / "checkpoints", metadata())
    state = checkpoints.restore(state) or state
    done = int(state.step)
    feed = (batches or toy_batches(TOTAL * accumulate))[done * accumulate :]
    writer = JsonlWriter(folder / "metrics.jsonl", resume_step=done)
    try:
        return train(
            step,
            state,
            feed,
            steps,
            checkpoints=checkpoints,
            watchers=Watchers(writers=[writer], **watchers),
            cues=cues,
        )
    finally:
        writer.close()
        checkpoints.close()


def stop_after(step_number, number=signal.SIGTERM):
    def hook(step, state, micro_batches, metrics):
        if step == step_number:
            os.kill(os.getpid(), number)

    return hook


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_resumed_equals_straight(tmp_path, number, capsys):
    straight = start(tmp_path / "straight")
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match="0") as caught:
        start(tmp_path / "cut", hooks=[stop_after(4, number)], resume_command="python go.py")
    assert caught.value.code == 0
    assert re.search(f"{number.name} .* 4 of 7.*python go.py", caught.value.message)
    assert caught.value.message in capsys.readouterr().out
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert checkpoint_steps(tmp_path / "cut")[-1] == 4
    resumed = start(tmp_path / "cut")
    assert_bitwise(resumed, straight)
    logged = [
        [(e["step"], e["loss"]) for e in read_jsonl(tmp_path / run / "metrics.jsonl")]
        for run in ("straight", "cut")
    ]
    assert [step for step, _ in logged[0]] == [1, 2, 4, 6]
    assert logged[0] == logged[1]  # the cut fell on a logged step, so even the means agree


def test_second_ctrl_c_stops_at_once(tmp_path):
    def twice(step, state, micro_batches, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, hooks=[twice])
    assert checkpoint_steps(tmp_path) == [0]


def test_logs_hold_means_speed_and_rate(tmp_path):
    seen = []
    start(tmp_path, hooks=[lambda step, state, batches, metrics: seen.append((step, metrics))])
    losses = {step: float(metrics["loss"]) for step, metrics in seen}
    assert sorted(losses) == list(range(1, TOTAL + 1))
    first, *entries = read_jsonl(tmp_path / "metrics.jsonl")
    assert first["step"] == 1 and first["loss"] == losses[1] and "step_s" not in first
    for entry in entries:
        expected = (losses[entry["step"]] + losses[entry["step"] - 1]) / 2
        assert entry["loss"] == pytest.approx(expected, rel=1e-6)
        assert entry["images_per_s"] == pytest.approx(8 / entry["step_s"])
        assert 0 <= entry["input_wait"] <= 1
    np.testing.assert_allclose([e["lr"] for e in entries], [0.05, (0.05 + 0.005) / 2, 0.005])


def test_checkpoints_fall_on_updates_first_and_last(tmp_path):
    start(tmp_path, accumulate=2)
    assert checkpoint_steps(tmp_path) == [
        0,
        6,
        7,
    ]  # 3 was neither a milestone nor among the latest two


def test_nan_stops_naming_update_term_and_last_good_step(tmp_path):
    with pytest.raises(NonFiniteError, match="update 5: loss/rows = nan.*step 3"):
        start(tmp_path, method=Toy(poison_at=4))
    assert checkpoint_steps(tmp_path) == [0, 3]
    for value in read_jsonl(tmp_path / "metrics.jsonl")[-1].values():
        assert np.isfinite(value)


@pytest.mark.parametrize("poison_at", [2, 6])
def test_poisoned_state_is_not_saved_at_its_own_checkpoint(tmp_path, poison_at):
    with pytest.raises(NonFiniteError, match=f"update {poison_at + 1}"):
        start(tmp_path, method=Toy(poison_at=poison_at))
    assert poison_at + 1 not in checkpoint_steps(tmp_path)


def test_poison_that_no_metric_shows_is_not_saved(tmp_path):
    class Hidden(Toy):
        def init(self, key, batch):
            params, extras = super().init(key, batch)
            return params, {**extras, "center": jnp.zeros(2)}

        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch, key, step)
            center = jnp.where(step == 4, jnp.nan, extras["center"])
            return out.replace(extras={**out.extras, "center": center})

    with pytest.raises(NonFiniteError, match="update 6: extras/center"):
        start(tmp_path, method=Hidden())
    assert checkpoint_steps(tmp_path) == [0, 3]


def test_poison_found_while_stopping_is_not_saved(tmp_path):
    with pytest.raises(NonFiniteError, match="update 5"):
        start(tmp_path, method=Toy(poison_at=4), hooks=[stop_after(5)])
    assert checkpoint_steps(tmp_path) == [0, 3]


def test_disagreeing_normalizers_stop(tmp_path):
    with pytest.raises(ConfigError, match="normali"):
        start(tmp_path, method=Toy(tied=True))


def test_batches_that_end_early_say_so(tmp_path):
    with pytest.raises(DataError, match="2 updates.* 7"):
        start(tmp_path, batches=toy_batches(2))


def test_validation_scores_are_logged_and_choose_the_best(tmp_path):
    scores = {2: 0.9, 4: 0.3, 6: 0.2, 8: 0.1}
    state, step = build()
    checkpoints = Checkpoints(tmp_path, metadata(), best="map")
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    train(
        step,
        state,
        toy_batches(8),
        Steps(total=8, log_interval=2, checkpoint_interval=2),
        checkpoints=checkpoints,
        watchers=Watchers(writers=[writer], validate=lambda step, state: {"map": scores[step]}),
    )
    assert checkpoints.steps == [
        0,
        2,
        6,
        8,
    ]  # of the steps before the latest two, 2 was better than 4
    entries = read_jsonl(tmp_path / "metrics.jsonl")
    assert {e["step"]: e["map"] for e in entries if "map" in e} == scores


def test_compilation_is_announced_once_per_layout(tmp_path):
    said = []
    batches = toy_batches(3, rows=5) + toy_batches(4, rows=6)
    start(tmp_path, batches=batches, say=said.append)
    assert len(said) == 2
    assert "program 1" in said[0] and "[8, 5, 3]" in said[0]
    assert "program 2" in said[1] and "[8, 6, 3]" in said[1]


def test_constants_of_a_method_pass_the_transfer_guard(tmp_path):
    table = np.linspace(0, 1, 50_000, dtype=np.float32)

    class WithTable(Toy):
        def loss(self, params, extras, batch, key, step):
            out = super().loss(params, extras, batch, key, step)
            fit = out.terms["fit"]
            fit = fit.replace(total=fit.total + jnp.asarray(table)[batch.image_index])
            return out.replace(terms={**out.terms, "fit": fit})

    assert int(start(tmp_path, method=WithTable()).step) == TOTAL


def test_finished_run_stays_finished(tmp_path):
    first = start(tmp_path)
    again = start(tmp_path)
    assert_bitwise(first, again)


def test_profile_is_written(tmp_path):
    traced = dataclasses.replace(STEPS, profile=(2, 3))
    start(tmp_path, steps=traced, profile_folder=tmp_path / "profile")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ConfigError, match="profiling"):
        dataclasses.replace(STEPS, profile=(3, 2))
    with pytest.raises(ConfigError, match="folder"):
        start(tmp_path, steps=traced)
    with pytest.raises(ConfigError, match="checkpoint_interval=0"):
        dataclasses.replace(STEPS, checkpoint_interval=0)


def test_hook_can_examine_fixed_images(tmp_path):
    state, step = build()
    fixed = jax.device_put(toy_batches(1, seed=9)[0], jax.tree.leaves(state)[0].sharding)
    fits = []

    def hook(number, state, micro_batches, metrics):
        if number % 3 == 0:
            fits.append(float(step.examine(state, fixed).terms["fit"].mean()))

    train(step, state, toy_batches(TOTAL), STEPS, watchers=Watchers(hooks=[hook]))
    assert len(fits) == 2 and fits[0] != fits[1]
