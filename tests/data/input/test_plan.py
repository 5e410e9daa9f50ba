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


def drawn(train_plan, name, number=0):
    """Return what an epoch draws for each image, by image."""
    return {
        row: value
        for batch in epoch(train_plan, number)
        for row, value in zip(batch.rows, getattr(batch, name), strict=True)
        if row != FILLER
    }


def by_hand(purpose, number, shape, seed=7):
    sequence = np.random.SeedSequence((seed, purpose, number))
    return np.random.Generator(np.random.Philox(sequence)).random(shape)


@pytest.mark.parametrize("number", [0, 3])
def test_windows_by_margin_are_drawn_as_ever(number):
    """With and without jitter, and where windows have shares: their position has the same draws."""
    expected = by_hand(4, number, (23, 2))
    for options in (dict(crop=True), dict(crop=True, jitter="rgb"), dict(shares=(0.5, 0.9))):
        found = drawn(share_plan(**options), "crops", number)
        assert {row: tuple(value) for row, value in enumerate(expected.tolist())} == found
    assert {batch.shares for batch in epoch(plan(crop=True), number)} == {None}


def share_plan(*, shares=None, jitter="none", crop=False, **changes):
    order = Order(**dict(batch_size=4, accumulate=2, seed=7) | changes, crop=shares, jitter=jitter)
    return TrainPlan(PORTRAIT, (1, 2, 3), order, crop)


def test_shares_and_factors_belong_to_seed_epoch_and_image():
    options = dict(shares=(0.5, 0.9), jitter="hsv")
    base = {name: drawn(share_plan(**options), name) for name in ("crops", "shares", "factors")}
    for name, values in base.items():
        assert sorted(values) == list(range(23)) and len(set(values.values())) == 23
        for change in (dict(batch_size=1), dict(accumulate=5), dict(flip=False)):
            assert drawn(share_plan(**options, **change), name) == values
        for other in (
            drawn(share_plan(**options), name, 1),
            drawn(share_plan(**options, seed=8), name),
        ):
            assert not set(other.values()) & set(values.values())
    # Draws of their own: the rest stays as it is without them.
    assert drawn(share_plan(shares=(0.5, 0.9)), "shares") == base["shares"]
    assert drawn(share_plan(jitter="hsv"), "factors") == base["factors"]
    plain = epoch(plan(), 0)
    for full, bare in zip(epoch(share_plan(**options), 0), plain, strict=True):
        for name in ("rows", "flipped", "scale", "portrait"):
            assert getattr(full, name) == getattr(bare, name)
    assert {(b.crops, b.shares, b.factors, b.jitter) for b in plain} == {(None, None, None, "none")}


def test_fillers_have_neutral_draws():
    seen = 0
    for batch in epoch(share_plan(shares=(0.5, 0.9), jitter="rgb", batch_size=5), 0):
        for i in np.flatnonzero(np.array(batch.rows) == FILLER):
            assert (batch.crops[i], batch.shares[i], batch.factors[i]) == (
                (0.0, 0.0),
                (1.0, 1.0),
                (1.0, 1.0),
            )
            seen += 1
    assert seen == 2


def test_processes_share_windows_and_jitter_in_order():
    for batch in epoch(share_plan(shares=(0.5, 0.9), jitter="rgb", batch_size=6), 0):
        parts = [batch.part(index, 3) for index in range(3)]
        for name in ("rows", "flipped", "crops", "shares", "factors"):
            assert all(len(getattr(part, name)) == 2 for part in parts)
            assert sum((getattr(part, name) for part in parts), ()) == getattr(batch, name)
        assert {part.jitter for part in parts} == {"rgb"} and batch.part(0, 1) == batch


def many(name, **options):
    order = Order(batch_size=4000, **options)
    [batch] = epoch(TrainPlan((False,) * 4000, (8,), order), 0)
    return np.array(getattr(batch, name))


@pytest.mark.parametrize("crop", [(0.9, 0.9), (0.9, 1.0), (0.2, 0.7)])
def test_shares_are_uniform(crop):
    shares = many("shares", crop=crop)
    assert shares.shape == (4000, 2) and crop[0] <= shares.min() <= shares.max() <= crop[1]
    if crop[0] == crop[1]:
        assert (shares == 0.9).all()
        return
    part = (shares - crop[0]) / (crop[1] - crop[0])
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(part, quantile, axis=0), quantile, atol=0.03)
    draws = np.concatenate(
        [part, many("crops", crop=crop)], axis=1
    )  # size and place, of both sides
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("jitter", ["hsv", "rgb"])
def test_factors_have_their_distribution(jitter):
    factors = many("factors", jitter=jitter)
    assert factors.shape == (4000, 2) and 1 / 1.5 <= factors.min() and factors.max() <= 1.5
    assert abs(np.corrcoef(np.log(factors.T))[0, 1]) < 0.05
    if jitter == "rgb":
        part = (factors - 1 / 1.5) / (1.5 - 1 / 1.5)
    else:
        assert np.abs((factors > 1).mean(axis=0) - 0.5).max() < 0.03
        for column in factors.T:  # multiplied and divided by the same distribution
            halves = column[column > 1], 1 / column[column <= 1]
            for half in halves:
                assert abs(np.median(half) - 1.25) < 0.02
        part = 2 * (np.maximum(factors, 1 / factors) - 1)
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(part, quantile, axis=0), quantile, atol=0.03)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("crop", (0.9, 0.8)),
        ("crop", (0.0, 0.5)),
        ("crop", (0.5, 1.1)),
        ("crop", (0.9,)),
        ("jitter", "HSV"),
    ],
)
def test_wrong_windows_and_jitter(option, value):
    with pytest.raises(ConfigError, match=option) as error:
        Order(**{option: value})
    assert repr(value) in str(error.value) and "allowed are" in str(error.value)
