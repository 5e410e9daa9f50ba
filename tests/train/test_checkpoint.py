"""Checkpoints: bitwise resume, what is kept, whose they are, damage, full disks, loading for evaluation."""

from __future__ import annotations

import errno
import resource
import signal
import sys

import jax
import numpy as np
import pytest

from tests.train.test_step import build, run
from tests.train.toy import toy_batches
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.train.checkpoint import Checkpoints, checkpoint_steps, load_checkpoint
from wsod_jax.train.identity import run_metadata

CONFIG = {"optim": {"lr": 0.01, "drops": (40, 70)}, "total_steps": 100}


def metadata(**changes):
    given = {
        "method": "toy",
        "class_names": ["cat", "dog"],
        "config": CONFIG,
        "split": "train",
        "seed": 3,
    }
    return run_metadata(**{**given, **changes})


def assert_bitwise(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("devices", [1, 4])
def test_resumed_run_is_bitwise_the_straight_one(tmp_path, devices):
    updates = [[batch] for batch in toy_batches(6)]
    options = {"devices": devices, "ema_decay": 0.9}
    straight, _ = run(*build(**options), updates)

    state, step = build(**options)
    state, _ = run(state, step, updates[:4])  # past the drop of the rate at 3, momentum not zero
    checkpoints = Checkpoints(tmp_path, metadata())
    checkpoints.save(4, state)
    checkpoints.close()

    fresh, step = build(**options)
    checkpoints = Checkpoints(tmp_path, metadata())
    restored = checkpoints.restore(fresh)
    assert_bitwise(restored, state)
    assert len(restored.params["head"]["kernel"].sharding.device_set) == devices
    resumed, _ = run(restored, step, updates[4:])
    assert_bitwise(resumed, straight)
    assert step.num_compilations() == 1


def test_resume_on_other_devices(tmp_path):
    updates = [[batch] for batch in toy_batches(4)]
    straight, _ = run(*build(), updates)
    state, _ = run(*build(devices=4), updates[:2])
    Checkpoints(tmp_path, metadata()).save(2, state)
    fresh, step = build()
    resumed, _ = run(Checkpoints(tmp_path, metadata()).restore(fresh), step, updates[2:])
    for x, y in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_first_latest_periods_and_best_are_kept(tmp_path):
    state, _ = build()
    checkpoints = Checkpoints(tmp_path, metadata(), keep_period=4, best="val/map")
    for step, score in enumerate([0.0, 0.1, 0.9, 0.2, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]):
        checkpoints.save(step, state, {"val/map": score})
    assert checkpoints.steps == [0, 2, 4, 8, 9, 10]
    assert checkpoints.latest == 10  # not the best one
    with pytest.raises(ConfigError, match="'val/map'.*corloc"):
        checkpoints.save(11, state, {"corloc": 0.5})


def test_empty_folder_restores_nothing(tmp_path):
    state, _ = build()
    assert Checkpoints(tmp_path / "new", metadata()).restore(state) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "oicr"}, "method: 'toy'.*'oicr'"),
        ({"class_names": ["cat", "dog", "fox"]}, "class_names: .*fox"),
        ({"seed": 4}, "seed: 3.* 4"),
        (
            {"config": {**CONFIG, "optim": {"lr": 0.1}}},
            r"(?s)drops: \[40, 70\].*lr: 0.01.* 0.1",
        ),
    ],
)
def test_other_runs_are_refused(tmp_path, changes, message):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    with pytest.raises(ConfigError, match=message) as caught:
        Checkpoints(tmp_path, metadata(**changes))
    assert "--workdir" in str(caught.value)


def test_named_differences_are_allowed_and_versions_warned_about(tmp_path):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    longer = metadata(config={**CONFIG, "total_steps": 200})
    Checkpoints(tmp_path, longer, may_differ=["config.total_steps"])
    with pytest.raises(ConfigError, match="total_steps"):
        Checkpoints(tmp_path, longer, may_differ=["config.total"])
    longer = metadata()
    longer["versions"]["jax"] = "0.0.1"
    with pytest.warns(UserWarning, match="jax .* -> 0.0.1"):
        Checkpoints(tmp_path, longer)


def test_other_network_is_refused(tmp_path):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    wider = state.replace(
        params={**state.params, "extra": {"kernel": state.params["head"]["kernel"]}}
    )
    with pytest.raises(ConfigError, match="params/extra/kernel: absent there"):
        Checkpoints(tmp_path, metadata()).restore(wider)


def largest_file(folder):
    """Return the largest file of a folder."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(largest_file(folder / "weights")),
        lambda folder: largest_file(folder / "optimizer").write_bytes(b""),
        lambda folder: largest_file(folder / "weights").unlink(),
        lambda folder: (folder / "metadata" / "metadata").write_text("{"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
    ],
)
def test_damaged_newest_falls_back_loudly(tmp_path, damage):
    state, step = build()
    checkpoints = Checkpoints(tmp_path, metadata())
    checkpoints.save(0, state)
    kept = jax.device_get(state)
    state, _ = run(state, step, [[toy_batches(1)[0]]])
    checkpoints.save(1, state)
    damage(tmp_path / "1")
    with pytest.warns(UserWarning, match="damaged-1.*step 0"):
        checkpoints = Checkpoints(tmp_path, metadata())
    assert checkpoints.latest == 0
    assert_bitwise(checkpoints.restore(state).params, kept.params)
    checkpoints.save(1, state)  # the step's name is free again
    assert checkpoint_steps(tmp_path) == [0, 1]


def test_all_damaged_never_starts_over_silently(tmp_path):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    flip(largest_file(tmp_path / "0" / "weights"))
    for _ in range(2):
        with pytest.raises(DataError, match="every checkpoint.*step 0"):
            Checkpoints(tmp_path, metadata())


def big(state):
    noise = jax.random.normal(jax.random.key(0), (300_000,))
    return state.replace(params={"head": {"kernel": noise}, "frozen": {}})


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_writer_that_fails_midway_keeps_the_earlier_ones(tmp_path):
    state, _ = build()
    state = big(state)
    checkpoints = Checkpoints(tmp_path, metadata())
    checkpoints.save(0, state)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (200_000, limits[1])
    )  # the system refuses longer files
    try:
        with pytest.raises(OSError, match="step 1.*step 0"):
            checkpoints.save(1, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in tmp_path.iterdir()] == ["0"]  # no half-written folder stays
    assert_bitwise(Checkpoints(tmp_path, metadata()).restore(state).params, state.params)
    checkpoints.save(1, state)
    assert checkpoints.steps == [0, 1]


def test_full_disk_says_so(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    state, _ = build()
    checkpoints = Checkpoints(tmp_path, metadata())
    checkpoints.save(0, state)
    monkeypatch.setattr("wsod_jax.train.checkpoint.write_manifest", full)
    with pytest.raises(OSError, match="disk.*step 0") as caught:
        checkpoints.save(1, state)
    assert caught.value.errno == errno.ENOSPC
    assert checkpoints.steps == [0]


def test_load_for_evaluation_needs_no_optimizer(tmp_path):
    state, step = build(ema_decay=0.5)
    checkpoints = Checkpoints(tmp_path / "checkpoints", metadata())
    checkpoints.save(0, state)
    state, _ = run(state, step, [[toy_batches(1)[0]]])
    checkpoints.save(1, state)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "1"):
        loaded = load_checkpoint(path)
        assert_bitwise(loaded.params, state.params)
        assert_bitwise(loaded.extras, state.extras)
        assert loaded.metadata["step"] == 1
        assert loaded.metadata["class_names"] == ["cat", "dog"]
    assert_bitwise(load_checkpoint(tmp_path, weights="ema").params, state.ema)
    assert load_checkpoint(tmp_path, step=0).metadata["step"] == 0
    with pytest.raises(DataError, match=r"step 7 .*\[0, 1\]"):
        load_checkpoint(tmp_path, step=7)
    with pytest.raises(DataError, match="no checkpoint"):
        load_checkpoint(tmp_path / "elsewhere")
    flip(largest_file(tmp_path / "checkpoints" / "1" / "weights"))
    with pytest.raises(DataError, match=r"weights/"):
        load_checkpoint(tmp_path)


def test_the_weights_that_are_the_detector_are_loaded(tmp_path):
    state, step = build(ema_decay=0.5)
    state, _ = run(state, step, [[toy_batches(1)[0]]])
    Checkpoints(tmp_path, metadata(result="ema")).save(1, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded.metadata["result"] == "ema"
    assert_bitwise(loaded.params, state.ema)
    assert_bitwise(load_checkpoint(tmp_path, weights="params").params, state.params)


def test_checkpoints_of_another_generation_are_refused(tmp_path):
    state, _ = build()
    old = {name: value for name, value in metadata().items() if name not in ("format", "result")}
    old["versions"]["wsod_jax"] = "0.1.0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsod_jax.train.checkpoint.check_format", lambda metadata, folder: None)
        Checkpoints(tmp_path, old).save(0, state)
    message = r"wsod_jax 0\.1\.0"
    with pytest.raises(DataError, match=message):
        load_checkpoint(tmp_path)
    with pytest.raises(DataError, match=message):
        Checkpoints(tmp_path, metadata())


def test_load_without_an_average_says_so(tmp_path):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    with pytest.raises(DataError, match="average"):
        load_checkpoint(tmp_path, weights="ema")


def test_leftovers_of_a_killed_writer_are_swept(tmp_path):
    state, _ = build()
    Checkpoints(tmp_path, metadata()).save(0, state)
    (tmp_path / "7.orbax-checkpoint-tmp" / "weights").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, metadata())
    assert checkpoints.latest == 0
    checkpoints.save(7, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "7"]
