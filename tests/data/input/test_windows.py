"""Random windows of images with their proposals, and jitter: what a batch then holds, against literal loops."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.data.input.test_pipeline import (
    CANVASES,
    SIZES,
    THREADS,
    WARPED,
    assert_same,
    joined,
    make_proposals,
    take,
    train,
    tree,
    truncate,
)
from wsod_jax.data.input.feature_cache import FeatureCache
from wsod_jax.data.input.pipeline import view_batches
from wsod_jax.data.input.stored_batches import play_batches, save_batches
from wsod_jax.data.input.transforms import Canvases
from wsod_jax.data.readers.voc import Voc
from wsod_jax.errors import ConfigError
from wsod_jax.ops.views import to_original

MANY = Canvases(tuple(range(32, 64, 4)), multiple=8)


@pytest.fixture
def images(tmp_path):
    return Voc(root=tree(tmp_path)).images("trainval")


def batches(images, proposals, count, **options):
    stream = train(images, proposals, **options)
    return list(itertools.chain.from_iterable(take(stream, count))), stream.counts


def first_alike(boxes, shown):
    """For each box the first shown one whose edges round to the same cells of 8 pixels; itself if it is not shown."""
    first, found = {}, list(range(len(boxes)))
    for row, box in enumerate(boxes.tolist()):
        if shown[row]:
            found[row] = first.setdefault(tuple(int(x / 8 + 0.5) for x in box), row)
    return found


@pytest.mark.parametrize("canvases", [CANVASES, MANY, Canvases((48, 64), "warp"), WARPED])
def test_rows_are_the_same_proposals_in_every_window(images, canvases):
    """Against loops, over several epochs: rows, masks, duplicates, and counts."""
    proposals = make_proposals(images, scores=True)
    crop = None if canvases.crop_margin else (0.3, 0.7)
    taken, counts = batches(
        images, proposals, 21, canvases=canvases, crop=crop, max_proposals=18, batch_size=2
    )
    totals = dict.fromkeys(("proposals", "merged", "hidden_proposals"), 0)
    masks = {}
    for batch in taken:
        for i in np.flatnonzero(batch.image_index >= 0):
            record = images.records[batch.image_index[i]]
            height, width = batch.image_size[i]
            (sx, sy), (left, top) = batch.views.scale[i], batch.views.offset[i]
            expected = []
            for x1, y1, x2, y2 in proposals.get(record.image_id):
                xs = [min(max(x * sx - left, 0), width) for x in (x1, x2)]
                ys = [min(max(y * sy - top, 0), height) for y in (y1, y2)]
                if batch.views.flipped[i]:
                    xs = [width - xs[1], width - xs[0]]
                expected.append((xs[0], ys[0], xs[1], ys[1]))
            count, boxes = len(expected), batch.proposals[i]
            np.testing.assert_allclose(boxes[:count], expected, atol=1e-4)
            shown = [x2 > x1 and y2 > y1 for x1, y1, x2, y2 in expected]
            alike = first_alike(boxes[:count], shown)
            mask = [shown[row] and alike[row] == row for row in range(count)]
            assert batch.proposal_mask[i].tolist() == mask + [False] * (18 - count)
            assert batch.representative[i].tolist() == alike + list(range(count, 18))
            np.testing.assert_array_equal(
                batch.proposal_scores[i, :count], np.float32(proposals.get_scores(record.image_id))
            )
            assert batch.image_mask[i] == any(mask)
            assert tuple(batch.labels[i]) == record.labels
            totals["proposals"] += sum(mask)
            totals["merged"] += sum(shown) - sum(mask)
            totals["hidden_proposals"] += count - sum(shown)
            masks.setdefault(record.image_id, set()).add(tuple(mask))
    assert {name: counts[name] for name in totals} == totals and min(totals.values()) > 0
    assert len(masks) == 7 and max(map(len, masks.values())) > 2  # other windows in other epochs


def test_boxes_inside_a_window_go_back_to_the_image(images):
    proposals = make_proposals(images)
    options = dict(canvases=MANY, crop=(0.6, 0.9), dedup_stride=None, max_proposals=18)
    checked = 0
    for batch in batches(images, proposals, 8, **options)[0]:
        width = batch.image_size[:, 1].astype(np.float32)
        back = np.asarray(to_original(batch.proposals, batch.views, width))
        for i in np.flatnonzero(batch.image_index >= 0):
            file = proposals.get(images.image_ids[batch.image_index[i]])
            low = batch.views.offset[i] / batch.views.scale[i]
            high = low + batch.image_size[i, ::-1] / batch.views.scale[i]
            inside = (file[:, :2] >= low).all(axis=1) & (file[:, 2:] <= high).all(axis=1)
            np.testing.assert_allclose(back[i, : len(file)][inside], file[inside], atol=1e-3)
            clipped = np.clip(file, np.tile(low, 2), np.tile(high, 2))
            np.testing.assert_allclose(back[i, : len(file)], clipped, atol=1e-3)
            checked += inside.sum()
    assert checked > 50


def test_exactly_nine_tenths_of_every_image(images):
    """The window has the size on the canvas that the whole image had, and shows 0.9 of each side."""
    offsets = set()
    for batch in batches(images, None, 20, canvases=MANY, crop=(0.9, 0.9))[0]:
        for i in np.flatnonzero(batch.image_mask):
            record = images.records[batch.image_index[i]]
            original = np.array([record.width, record.height])
            resized = batch.views.scale[i] * original
            assert np.abs(batch.image_size[i, ::-1] - 0.9 * resized).max() < 0.96
            room = np.rint(resized) - batch.image_size[i, ::-1]
            assert (0 <= batch.views.offset[i]).all() and (batch.views.offset[i] <= room).all()
            offsets.add(tuple(batch.views.offset[i].tolist()))
    assert len(offsets) > 20


def test_every_scale_comes_on_the_canvases_of_today(images):
    shapes, seen = MANY.shapes(), set()
    fitting = [i for i, size in enumerate(SIZES) if max(size) <= 1.3 * min(size)]
    for batch in batches(images, None, 120, canvases=MANY, crop=(0.9, 0.9), batch_size=1)[0]:
        assert batch.image.shape[1:3] in shapes
        if batch.image_index[0] in fitting:
            seen.add(int(min(batch.image_size[0])))
    assert seen == set(MANY.scales)


def test_an_image_that_shows_no_proposal_is_masked_and_counted(images):
    """Its one proposal lies in a corner, which a window of a quarter mostly misses."""
    corner = {"im2": np.float32([[0, 0, 12, 12]])}
    proposals = make_proposals(images, boxes=corner)
    options = dict(canvases=CANVASES, crop=(0.5, 0.5), batch_size=1, accumulate=1)
    taken, counts = batches(images, proposals, 7 * 20, **options)
    shown = [batch for batch in taken if batch.image_index[0] == 2]
    masked = [batch for batch in shown if not batch.image_mask[0]]
    assert len(shown) == 20 and 5 < len(masked) < 20
    assert counts["without_proposals"] == len(masked) and counts["images"] == 7 * 20
    for batch in shown:
        assert batch.proposal_mask.any() == batch.image_mask[0]
        assert batch.labels[0].tolist() == list(images.records[2].labels)
    hidden = counts["hidden_proposals"]
    assert hidden >= len(masked)


def test_more_rows_and_fillers_change_nothing(images):
    proposals = make_proposals(images)
    options = dict(canvases=CANVASES, crop=(0.3, 0.7), batch_size=2)
    few, _ = batches(images, proposals, 8, max_proposals=18, **options)
    more, _ = batches(images, proposals, 8, max_proposals=25, **options)
    for a, b in zip(few, more, strict=True):
        for name in ("proposals", "proposal_mask", "representative"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[:, :18])
        assert not b.proposal_mask[:, 18:].any() and not b.proposals[:, 18:].any()
        filler = a.image_index == -1
        assert not a.proposal_mask[filler].any() and not a.image_mask[filler].any()


BOTH = dict(crop=(0.5, 0.9), jitter="hsv", batch_size=3, accumulate=1)


@pytest.mark.parametrize("loader", ["threads", "tf"])
def test_the_same_after_a_restart_and_from_both_loaders(images, loader):
    if loader == "tf":
        pytest.importorskip("tensorflow")
    proposals = make_proposals(images)
    whole = take(train(images, proposals, **BOTH), 11)
    for start in (0, 4, 10):
        part = take(train(images, proposals, start_step=start, loader=loader, **BOTH), 11 - start)
        assert_same(part, whole[start:])


def test_rows_of_all_processes_are_those_of_one(images):
    truncate(images, 2)
    options = dict(BOTH, batch_size=4)
    expected, _ = batches(images, make_proposals(images), 6, **options)
    parts = [
        batches(images, make_proposals(images), 6, process_index=i, process_count=2, **options)[0]
        for i in range(2)
    ]
    assert_same([joined(rows) for rows in zip(*parts, strict=True)], expected)


@pytest.mark.parametrize("jitter", ["hsv", "rgb"])
def test_factors_travel_with_the_rows_of_their_images(images, jitter):
    options = dict(batch_size=2, accumulate=2)
    stream = train(images, None, jitter=jitter, **options)
    updates = take(stream, 10)
    plain = take(train(images, None, **options), 10)
    seen = {}
    for number, update in enumerate(updates):
        for i, batch in enumerate(update):
            planned = stream.plan[2 * number + i]
            assert batch.views.photometric.space == jitter
            factors = batch.views.photometric.factors
            assert factors.shape == (2, 2) and factors.dtype == np.float32
            np.testing.assert_array_equal(factors, np.float32(planned.factors))
            assert (factors[batch.image_index == -1] == 1).all()
            for index, pair in zip(batch.image_index.tolist(), factors.tolist(), strict=True):
                seen.setdefault(index, set()).add(tuple(pair))
            # The pixels are jittered by the step: here all is as without.
            bare = plain[number][i]
            assert bare.views.photometric is None
            assert_same(batch.replace(views=batch.views.replace(photometric=None)), bare)
    assert all(len(pairs) > 1 for index, pairs in seen.items() if index >= 0)


def test_unreadable_images_have_neutral_factors(images):
    truncate(images, 2)
    for batch in batches(images, None, 7, jitter="rgb", batch_size=1, accumulate=1)[0]:
        neutral = (batch.views.photometric.factors == 1).all()
        assert neutral == (batch.image_index[0] == 2) == (not batch.image_mask[0])


def test_views_are_whole_and_without_jitter(images):
    for batch in view_batches(images, None, canvases=CANVASES, batch_size=2, loading=THREADS):
        assert batch.views.photometric is None and not batch.views.offset.any()


def test_stored_batches_come_back_with_their_jitter(images, tmp_path):
    expected, _ = batches(images, make_proposals(images), 4, **BOTH)
    save_batches(expected, tmp_path / "b.npz")
    assert_same(list(play_batches(tmp_path / "b.npz")), expected)


def test_an_image_is_shown_through_one_window(images):
    with pytest.raises(ConfigError, match=r"crop=\(0.5, 0.9\) and crop_margin=12.*crop_margin=0"):
        train(images, None, canvases=WARPED, crop=(0.5, 0.9))


@pytest.mark.parametrize(
    "options",
    [dict(crop=(0.9, 0.9)), dict(jitter="rgb"), dict(canvases=WARPED)],
)
def test_images_that_differ_in_every_epoch_are_not_cached(images, options):
    name = next(iter(options)).replace("canvases", "crop_margin")
    cache = FeatureCache(lambda batch: pytest.fail("computed"))
    with pytest.raises(ConfigError, match=f"^{name}=.*set {name}=.*cache"):
        train(images, None, cache=cache, **options)
    if "jitter" in options:
        [[batch, _]] = take(train(images, None, **options), 1)
        with pytest.raises(ConfigError, match="jitter"):
            cache(batch)


def test_windows_do_not_depend_on_the_batch_size(images):
    def shown(**options):
        found = {}
        for batch in batches(images, None, 12, **{**BOTH, **options})[0]:
            for i in np.flatnonzero(batch.image_mask):
                size = batch.image_size[i] / batch.views.scale[i, ::-1]
                found.setdefault(int(batch.image_index[i]), []).append(np.round(size).tolist())
        return {index: sizes[0] for index, sizes in found.items()}

    one = dataclasses.replace(CANVASES, scales=(48,))
    assert shown(canvases=one) == shown(canvases=one, batch_size=1)
