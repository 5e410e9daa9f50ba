"""The order of images: every one once per epoch, grouped by orientation, the same however it is read."""

import numpy as np
import pytest

from wsod_jax.data.input.plan import FILLER, Order, TrainPlan, ViewPlan, group_by_orientation
from wsod_jax.errors import ConfigError, DataError

PORTRAIT = tuple(bool(i % 3 == 0) for i in range(23))  # 8 portraits, 15 landscapes


def plan(**changes):
    order = dict(batch_size=4, accumulate=2, flip=True, seed=7)
    order = {key: changes.pop(key, value) for key, value in order.items()}
    options = dict(portrait=PORTRAIT, scales=(1, 2, 3), order=Order(**order))
    return TrainPlan(**{**options, **changes})


def epoch(train_plan, number):
    count = train_plan.batches_per_epoch
    return [train_plan[m] for m in range(number * count, (number + 1) * count)]


def test_groups_by_hand():
    order = np.array([0, 1, 2, 3, 4, 5, 6])
    portrait = np.array([True, False, False, True, False, True, False])
    assert group_by_orientation(order, portrait, 2) == [(1, 2), (0, 3), (4, 6), (5, FILLER)]


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_every_image_once_per_epoch_and_one_orientation_per_batch(batch_size):
    train_plan = plan(batch_size=batch_size)
    orders = []
    for number in (0, 1, 5):
        batches = epoch(train_plan, number)
        rows = [row for batch in batches for row in batch.rows if row != FILLER]
        assert sorted(rows) == list(range(23))
        orders.append(rows)
        for batch in batches:
            assert len(batch.rows) == len(batch.flipped) == batch_size
            assert {PORTRAIT[row] for row in batch.rows if row != FILLER} == {batch.portrait}
            assert not any(
                f for row, f in zip(batch.rows, batch.flipped, strict=True) if row == FILLER
            )
    assert orders[0] != orders[1] != orders[2]


def test_number_of_batches():
    assert plan().batches_per_epoch == 2 + 4
    assert plan(portrait=(False,) * 5, batch_size=8).batches_per_epoch == 1


def test_random_access_in_any_order_and_from_a_fresh_plan():
    numbers = list(range(40))
    forward = {m: plan()[m] for m in numbers}
    shared = plan()
    assert {m: shared[m] for m in reversed(numbers)} == forward


def test_seed_changes_everything_else_changes_its_own():
    base = epoch(plan(), 0)
    assert [b.rows for b in epoch(plan(seed=8), 0)] != [b.rows for b in base]
    unflipped = epoch(plan(flip=False), 0)
    assert [b.rows for b in unflipped] == [b.rows for b in base]
    assert not any(any(b.flipped) for b in unflipped)
    assert [b.scale for b in unflipped] == [b.scale for b in base]
    by_image = {r: f for b in base for r, f in zip(b.rows, b.flipped, strict=True) if r != FILLER}
    other = {
        r: f for b in epoch(plan(batch_size=1), 0) for r, f in zip(b.rows, b.flipped, strict=True)
    }
    assert other == by_image  # mirroring belongs to (seed, epoch, image), whatever the batch


def test_windows_belong_to_seed_epoch_and_image():
    def by_image(batches):
        return {
            row: crop
            for batch in batches
            for row, crop in zip(batch.rows, batch.crops, strict=True)
            if row != FILLER
        }

    base = epoch(plan(crop=True), 0)
    assert {plan()[m].crops for m in range(6)} == {None}
    windows = by_image(base)
    assert len(set(windows.values())) == 23 == len({y for y, _ in windows.values()})
    assert all(0 <= part < 1 for window in windows.values() for part in window)
    assert by_image(epoch(plan(crop=True, batch_size=1, accumulate=1), 0)) == windows
    assert by_image(epoch(plan(crop=True, flip=False, scales=(5,)), 0)) == windows
    for other in (epoch(plan(crop=True), 1), epoch(plan(crop=True, seed=8), 0)):
        assert not set(by_image(other).values()) & set(windows.values())
    # A draw of its own: the rest stays as it is without windows.
    for cropped, whole in zip(base, epoch(plan(), 0), strict=True):
        assert (cropped.rows, cropped.flipped, cropped.scale) == (
            whole.rows,
            whole.flipped,
            whole.scale,
        )


@pytest.mark.parametrize("crop", [False, True])
def test_processes_share_a_micro_batch_in_order(crop):
    for batch in epoch(plan(crop=crop, batch_size=6), 0):
        parts = [batch.part(index, 3) for index in range(3)]
        for name in ("rows", "flipped", *(("crops",) if crop else ())):
            assert all(len(getattr(part, name)) == 2 for part in parts)
            assert sum((getattr(part, name) for part in parts), ()) == getattr(batch, name)
        for part in parts:
            assert (part.scale, part.portrait) == (batch.scale, batch.portrait)
            assert (part.crops is None) == (not crop)
        assert batch.part(0, 1) == batch


def test_scales_and_flips_are_drawn_evenly():
    batches = [plan(batch_size=1)[m] for m in range(600)]
    counts = np.bincount([b.scale for b in batches], minlength=4)[1:]
    assert counts.min() > 150  # of 200
    assert 240 < sum(b.flipped[0] for b in batches) < 360


def test_wrong_plans():
    for wrong in (
        {"batch_size": 0},
        {"accumulate": 0},
        {"seed": -1},
    ):
        with pytest.raises(ConfigError):
            plan(**wrong)
    with pytest.raises(DataError):
        plan(portrait=())


def test_views_are_image_major():
    views = ViewPlan((False, True, False, False), 2, (8, 16), (False, True))
    batches = [views[i] for i in range(len(views))]
    assert views.views_per_image == 4 and len(views) == 12
    assert [b.rows for b in batches[::4]] == [(0, 2), (3, FILLER), (1, FILLER)]
    for start in (0, 4, 8):
        group = batches[start : start + 4]
        assert len({b.rows for b in group}) == 1
        assert [(b.scale, b.flipped[0]) for b in group] == [
            (8, False), (8, True), (16, False), (16, True)
        ]  # fmt: skip
    assert batches[5].flipped == (True, False)


def test_wrong_views():
    for wrong in ((), (True, True)):
        with pytest.raises(ConfigError):
            ViewPlan((False,), 1, (8,), wrong)
    with pytest.raises(ConfigError):
        ViewPlan((False,), 0, (8,), (False,))
    assert len(ViewPlan((), 1, (8,), (False,))) == 0
