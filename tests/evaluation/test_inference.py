"""Views become results as literal loops over rows, views and pixels have them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import detect as detect_oracle
from tests.oracles import evals as score_oracle
from tests.oracles import inference as oracle
from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.errors import DataError
from wsod_jax.evaluation import inference
from wsod_jax.evaluation.decoding import Decoding, score_thresholds
from wsod_jax.evaluation.inference import Model, candidates, detect_candidates, infer
from wsod_jax.ops.detect import detect
from wsod_jax.ops.masks import paste_masks
from wsod_jax.runs.predictor import Predictor
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.types import (
    ActivationMaps,
    Batch,
    Detections,
    FeatureMap,
    ImageResult,
    Mask,
    Predictions,
    Views,
)

IMAGES, ROWS, CLASSES = 4, 7, 3
BOXES, ALL = frozenset({"boxes"}), frozenset({"boxes", "masks", "maps", "semantic", "image_scores"})
DECODING = Decoding(top_k=5, nms_thr=0.3)


def random_view(rng, index, *, size=(90, 120), scale=None, flipped=None, windowed=True):
    """Return a batch of one view of the images `index`, the last of which only fills it."""
    count = len(index)
    scale = rng.uniform(0.5, 2, (count, 2)) if scale is None else np.full((count, 2), scale)
    flipped = rng.random(count) < 0.5 if flipped is None else np.full(count, flipped)
    representative = np.tile(np.arange(ROWS), (count, 1))
    proposal_mask = rng.random((count, ROWS)) < 0.8
    proposal_mask[:, 0] = True
    representative[:, -2:], proposal_mask[:, -2:] = [0, 2], False  # two merged rows
    return Batch(
        image=None,
        image_size=np.round(size * scale[:, ::-1]).astype(np.int32),
        image_mask=np.arange(count) < count - 1,
        image_index=np.asarray(index, np.int32),
        proposal_mask=proposal_mask,
        representative=representative.astype(np.int32),
        views=Views(
            scale=scale.astype(np.float32),
            offset=rng.integers(0, 20 if windowed else 1, (count, 2)).astype(np.int32),
            flipped=flipped,
            original_size=np.tile(np.array(size, np.int32), (count, 1)),
        ),
    )


def random_predictions(rng, batch, per_class=False):
    """Return predictions of a view whose masked rows hold anything."""
    shape = (*batch.proposal_mask.shape, CLASSES) if per_class else batch.proposal_mask.shape
    low = rng.uniform(0, 60, (*shape, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (*shape, 2))], axis=-1)
    scores = rng.random((*batch.proposal_mask.shape, CLASSES))
    boxes[~batch.proposal_mask], scores[~batch.proposal_mask] = np.nan, np.inf
    return Predictions(boxes.astype(np.float32), scores.astype(np.float32), batch.proposal_mask)


def random_pairs(seed, num_views=3, per_class=False, index=(5, 2, 9, 0)):
    rng = np.random.default_rng(seed)
    batches = [random_view(rng, index) for _ in range(num_views)]
    return [(batch, random_predictions(rng, batch, per_class)) for batch in batches]


def model_of(outputs, *, aligned_rows=True, predict_masks=None, **options):
    """Return a model that predicts what it is given, view after view."""
    outputs = iter(outputs)
    method = types.SimpleNamespace(aligned_rows=aligned_rows)
    predict = lambda params, extras, batch, want: next(outputs)  # noqa: E731
    return Model(method, None, None, predict, predict_masks, **options)


def results_of(pairs, decoding=DECODING, wants=None, query=None, **options):
    batches, outputs = zip(*pairs, strict=True)
    wants = [BOXES] * len(batches) if wants is None else wants
    return list(infer(model_of(outputs, **options), batches, wants, decoding, query))


def expect(result, expected):
    """Compare a result with (score, row, class, box, view), the best first."""
    assert result.rows.tolist() == [row for _, row, *_ in expected]
    assert result.classes.tolist() == [c for _, _, c, *_ in expected]
    assert result.views.tolist() == [view for *_, view in expected]
    np.testing.assert_allclose(result.scores, [score for score, *_ in expected], rtol=1e-5)
    boxes = np.reshape([box for *_, box, _ in expected], (-1, 4))
    np.testing.assert_allclose(result.boxes, boxes, rtol=1e-4, atol=1e-3)


def arguments(decoding):
    return dict(
        score_thr=decoding.score_thr,
        iou_thr=decoding.nms_thr,
        top_k=decoding.num_slots(CLASSES),
        class_top_k=decoding.top_k,
    )


# Merging


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("merge", ["mean", "sum", "union"])
@pytest.mark.parametrize("options", [{}, {"max_per_image": 4, "score_thr": 0.4}, {"nms_thr": 0.0}])
def test_results_equal_the_loops(merge, per_class, options):
    for seed in range(3):
        pairs = random_pairs(seed, per_class=per_class)
        decoding = dataclasses.replace(DECODING, merge=merge, **options)
        results = results_of(pairs, decoding, aligned_rows=merge != "union")
        assert [result.image_index for result in results] == [5, 2, 9]
        for b, result in enumerate(results):
            by_view = dict(enumerate(pairs))
            expect(result, oracle.detections(by_view, b, merge, **arguments(decoding)))
            assert result.size == (90, 120)
            assert result.masks is result.maps is result.semantic is result.image_scores is None


def test_merged_rows_take_scores_and_boxes_of_their_representative():
    [(batch, found)] = random_pairs(0, num_views=1)
    [first, *_] = candidates(model_of([found]), [batch], [BOXES], DECODING)
    for merged, kept in ((ROWS - 2, 0), (ROWS - 1, 2)):
        assert first.mask[merged] == batch.proposal_mask[0, kept]
        np.testing.assert_array_equal(first.boxes[merged], first.boxes[kept])
        np.testing.assert_array_equal(first.scores[merged], first.scores[kept])


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("per_class", [False, True])
def test_candidates_are_the_merged_rows_before_any_selection(merge, per_class):
    pairs = random_pairs(4, per_class=per_class)
    batches, outputs = zip(*pairs, strict=True)
    decoding = dataclasses.replace(DECODING, merge=merge)
    found = list(candidates(model_of(outputs), batches, [BOXES] * 3, decoding))
    assert [one.image_index for one in found] == [5, 2, 9]
    for b, (one, result) in enumerate(zip(found, results_of(pairs, decoding), strict=True)):
        boxes, scores, mask = oracle.merged(pairs, b, merge)
        np.testing.assert_array_equal(one.mask, mask)
        np.testing.assert_allclose(one.boxes, boxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(one.scores, scores, rtol=1e-5)
        again = detect_candidates(one, decoding)
        count = int(again.mask.sum())
        np.testing.assert_array_equal(again.row[:count], result.rows)
        np.testing.assert_array_equal(again.boxes[:count], result.boxes)


def test_groups_follow_each_other_and_images_without_a_real_row_have_no_detection():
    first, second = random_pairs(0, index=(3, 1, 0)), random_pairs(1, index=(7, 4, 0))
    for batch, found in second:
        batch.proposal_mask[0] = found.mask[0] = False
    results = results_of([*first, *second], wants=[BOXES] * 3)
    assert [result.image_index for result in results] == [3, 1, 7, 4]
    assert len(results[2].boxes) == 0 and results[2].boxes.shape == (0, 4)
    for alone, result in zip(results_of(first), results[:2], strict=True):
        np.testing.assert_array_equal(alone.boxes, result.boxes)


def test_the_next_group_is_dispatched_before_one_is_handed_out():
    called = []
    pairs = [random_pairs(i, num_views=1)[0] for i in range(3)]
    outputs = (called.append(i) or found for i, (_, found) in enumerate(pairs))
    results = infer(model_of(outputs), [batch for batch, _ in pairs], [BOXES], DECODING)
    assert called == []
    next(results)
    assert called == [0, 1]
    assert len(list(results)) == 8 and called == [0, 1, 2]


def test_groups_of_one_shape_compile_once():
    programs = (inference._first_view, inference._add_view, inference._merged, detect)
    results_of(random_pairs(0))
    before = [program._cache_size() for program in programs]
    results_of([*random_pairs(1), *random_pairs(2, index=(4, 1, 6, 0))], wants=[BOXES] * 3)
    assert [program._cache_size() for program in programs] == before and min(before) > 0


@pytest.mark.parametrize("name", ["boxes", "scores"])
@pytest.mark.parametrize("merge", ["mean", "union"])
def test_what_is_not_finite_names_its_image(name, merge):
    pairs = random_pairs(0)
    getattr(pairs[1][1], name)[1, 0] = np.nan  # row 0 is real
    decoding = dataclasses.replace(DECODING, merge=merge)
    with pytest.raises(DataError, match="image 2 .*finite"):
        results_of(pairs, decoding)
    pairs = random_pairs(0)
    getattr(pairs[1][1], name)[3, 0] = np.nan  # of a row that only fills the batch
    assert len(results_of(pairs, decoding)) == 3


def test_image_scores_are_averaged_over_the_views_that_have_them():
    rng = np.random.default_rng(0)
    batches = [random_view(rng, range(IMAGES)) for _ in range(3)]
    scores = [rng.random((IMAGES, CLASSES)).astype(np.float32) for _ in range(2)]
    outputs = [Predictions(), *(Predictions(image_scores=s) for s in scores)]
    results = results_of(list(zip(batches, outputs, strict=True)))
    for b, result in enumerate(results):
        np.testing.assert_allclose(result.image_scores, (scores[0][b] + scores[1][b]) / 2)
        assert result.boxes is result.scores is result.rows is None
    scores[1][2, 1] = np.inf
    with pytest.raises(DataError, match="image 2 .*finite"):
        results_of(list(zip(batches, outputs, strict=True)))


def test_views_that_are_missing_or_of_other_images_are_an_error():
    pairs = random_pairs(0)
    with pytest.raises(DataError, match=r"2 of 3 .*\[5, 2, 9, 0\]"):
        results_of(pairs[:2], wants=[BOXES] * 3)
    others = random_pairs(1, index=(1, 2, 9, 0))
    with pytest.raises(DataError, match="2 of 3 "):
        results_of([pairs[0], others[1], pairs[2]])
    assert list(infer(model_of([]), [], [BOXES] * 2, DECODING)) == []
    for wants in ([BOXES] * 3, [frozenset(), BOXES, BOXES]):
        with pytest.raises(ValueError, match="'union'"):
            results_of(pairs, wants=wants, aligned_rows=False)


@pytest.mark.parametrize("merge", ["mean", "union"])
def test_every_view_is_asked_for_what_is_wanted_of_it(merge):
    """Views without boxes neither count in the mean nor shift the numbers of views."""
    pairs = random_pairs(0)
    asked = []

    def predict(params, extras, batch, want):
        asked.append(want)
        return pairs[len(asked) - 1][1] if "boxes" in want else Predictions()

    wants = [frozenset({"semantic"}), BOXES, BOXES]
    model = dataclasses.replace(model_of([], aligned_rows=merge == "mean"), predict=predict)
    decoding = dataclasses.replace(DECODING, merge=merge)
    results = list(infer(model, [batch for batch, _ in pairs], wants, decoding))
    assert asked == wants
    for b, result in enumerate(results):
        by_view = {1: pairs[1], 2: pairs[2]}
        expect(result, oracle.detections(by_view, b, merge, **arguments(decoding)))
        assert merge == "mean" or {1, 2} == set(result.views.tolist())


@jax.jit
def box_sizes(params, extras, batch):
    """Score every row by the sides of its box in the view."""
    size = batch.proposals[..., 2:] - batch.proposals[..., :2]
    scores = jnp.stack([size[..., 0], size[..., 1], size.sum(-1)], -1)
    return Predictions(batch.proposals, scores, batch.proposal_mask, scores.mean(1))


def test_four_devices_find_what_one_finds():
    pairs = [
        (batch.replace(proposals=np.nan_to_num(found.boxes)), found)
        for batch, found in random_pairs(0)
    ]
    found = []
    for devices in (1, 4):
        model = dataclasses.replace(
            model_of([], put=functools.partial(put, mesh=make_mesh(devices))),
            predict=lambda params, extras, batch, want: box_sizes(params, extras, batch),
        )
        found.append(list(infer(model, [batch for batch, _ in pairs], [BOXES] * 3, DECODING)))
    for one, other in zip(*found, strict=True):
        for name in ("boxes", "scores", "rows", "classes", "image_scores"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5)


# Thresholds of a data set


@pytest.mark.parametrize("average", [1, 2, 40])
def test_thresholds_after_nms_equal_the_released_loop_before_it(average):
    decoding = dataclasses.replace(DECODING, with_candidates=True)
    pairs, results = [], []
    for seed in range(3):
        group = random_pairs(seed, index=(3 * seed, 3 * seed + 1, 3 * seed + 2, 0))
        for _, found in group:
            found.scores[:] = np.round(found.scores * 8) / 8  # ties
        pairs.append(group)
        results += results_of(group, decoding)
    thrs = score_thresholds(results, average * 9)
    merged = [oracle.merged(group, b, "mean") for group in pairs for b in range(3)]
    for c in range(CLASSES):
        scores = [np.float32(scores[mask, c]).tolist() for _, scores, mask in merged]
        expected = score_oracle.running_heap_threshold(scores, average * 9, decoding.top_k)
        np.testing.assert_allclose(thrs[c], expected, rtol=1e-6)
        above = sum(int((s[mask, c] > thrs[c] + 1e-6).sum()) for _, s, mask in merged)
        assert above < average * 9 or thrs[c] == -np.inf
    assert (thrs > -np.inf).all() == (average < 5)
    for result, (boxes, scores, mask) in zip(results, merged, strict=True):
        kept = result.above(thrs)
        scores = np.where(scores > thrs + 1e-6, scores, -1.0)
        options = arguments(decoding) | {"score_thr": -0.5}
        expected = detect_oracle.detect(boxes, np.float32(scores), mask, **options)
        assert kept.classes.tolist() == [c for _, _, c, _ in expected]
        np.testing.assert_allclose(kept.scores, [score for score, *_ in expected], rtol=1e-6)


def test_thresholds_by_hand():
    scores = np.array([[0.1, 0.4, 0.3, -np.inf], [0.5, 0.5, 0.5, 0.5]], np.float32)
    result = ImageResult(0, (9, 9), candidate_scores=scores)
    assert score_thresholds([result], 3).tolist() == [-np.inf, 0.5]  # ties with it fall
    assert score_thresholds([result], 2)[0] == np.float32(0.3)
    assert score_thresholds([result, result], 2)[0] == np.float32(0.4)
    assert score_thresholds([result], 4).tolist() == [-np.inf, -np.inf]
    assert score_thresholds([], 2) is None


def test_the_limit_of_an_image_comes_after_the_thresholds():
    """A detection below its class's threshold takes no place of one above."""
    settings = EvalOptions(top_k=5, max_per_image=2, average_per_image=1)
    decoding = settings.decoding(is_single_label=False)
    pairs = random_pairs(0)
    for _, found in pairs:
        found.scores[..., 0] += 1.0  # the best of every image are of class 0
    results = results_of(pairs, decoding)
    thrs = score_thresholds(results, 3)
    kept = list(Predictor.selected(types.SimpleNamespace(settings=settings), results, 3))
    for result, found in zip(results, kept, strict=True):
        above = [i for i, c in enumerate(result.classes) if result.scores[i] > thrs[c]][:2]
        assert found.rows.tolist() == result.rows[above].tolist()
    best = [set(result.rows[:2].tolist()) for result in results]
    assert any(set(found.rows.tolist()) - rows for rows, found in zip(best, kept, strict=True))
    no_average = dataclasses.replace(settings, average_per_image=None)
    capped = results_of(pairs, no_average.decoding(is_single_label=False))
    assert [len(result.rows) for result in capped] == [2, 2, 2]
    assert list(Predictor.selected(types.SimpleNamespace(settings=no_average), capped, 3)) == capped


def test_detections_above_a_threshold_keep_all_that_belongs_to_them():
    masks = tuple(Mask(i, 0, np.ones((1, i), bool)) for i in range(3))
    result = ImageResult(
        4,
        (9, 9),
        boxes=np.arange(12.0).reshape(3, 4),
        scores=np.array([0.9, 0.5, 0.3]),
        classes=np.array([0, 1, 0]),
        rows=np.array([7, 8, 9]),
        views=np.array([0, 1, 2]),
        masks=masks,
        image_scores=np.ones(2),
    )
    kept = result.above(np.array([0.1, 0.5]))  # exclusive
    assert kept.rows.tolist() == [7, 9] and kept.views.tolist() == [0, 2]
    assert kept.boxes[:, 0].tolist() == [0, 8] and kept.classes.tolist() == [0, 0]
    assert kept.masks == (masks[0], masks[2]) and kept.image_scores is result.image_scores
    assert result.above(np.zeros(2), 2).rows.tolist() == [7, 8]
    bare = dataclasses.replace(result, masks=None, rows=None, views=None).above(np.full(2, 1.0))
    assert len(bare.boxes) == 0 and bare.masks is bare.rows is bare.views is None


# Masks


def test_masks_are_averaged_in_the_frame_of_their_box():
    """Mirrored views see mirrored masks; each view is asked for the boxes as it shows them."""
    pairs = random_pairs(0)
    rng = np.random.default_rng(1)
    slots = DECODING.num_slots(CLASSES)
    masks = rng.random((3, IMAGES, slots, 5, 5)).astype(np.float32)
    asked = []

    def predict_masks(params, extras, batch, memo, found: Detections):
        asked.append((memo, jax.device_get(found)))
        flipped = np.asarray(batch.views.flipped)[:, None, None, None]
        seen = masks[memo]
        return jnp.asarray(np.where(flipped, seen[..., ::-1], seen))

    pairs = [(batch, found.replace(memo=v)) for v, (batch, found) in enumerate(pairs)]
    wants = [ALL, BOXES, ALL]
    results = results_of(pairs, wants=wants, predict_masks=predict_masks)
    assert [memo for memo, _ in asked] == [0, 2]
    for b, result in enumerate(results):
        count = len(result.scores)
        mean = (masks[0, b, :count] + masks[2, b, :count]) / 2
        expected = paste_masks(mean, result.boxes, result.size)
        for mask, other in zip(result.masks, expected, strict=True):
            assert (mask.top, mask.left) == (other.top, other.left)
            np.testing.assert_array_equal(mask.pixels, other.pixels)
        for memo, found in asked:
            np.testing.assert_array_equal(found.row[b][:count], result.rows)
            back = [oracle.original_box(box, pairs[memo][0], b) for box in found.boxes[b][:count]]
            np.testing.assert_allclose(back, result.boxes, atol=1e-3)
    assert sum(len(result.masks) for result in results) > 6


# Class activation maps


def test_maps_are_cut_to_valid_cells_turned_back_and_read_for_some_classes():
    rng = np.random.default_rng(0)
    batches = [random_view(rng, [1, 0, 2], flipped=flip) for flip in (False, True)]
    truth = rng.normal(size=(3, 4, 5, CLASSES)).astype(np.float32)  # upright
    objectness = rng.random((3, 2, 3)).astype(np.float32)
    sizes = np.array([[4, 5], [3, 2], [1, 1]], np.int32)
    scores = np.array([[0.9, 0.1, 0.2], [0.1, 0.6, 0.8], [1, 1, 1]], np.float32)
    outputs = []
    for batch in batches:
        cams = np.full((3, 6, 7, CLASSES), 99.0, np.float32)
        for b, (h, w) in enumerate(sizes):
            turn = -1 if batch.views.flipped[b] else 1
            cams[b, :h, :w] = truth[b, :h, :w][:, ::turn]
        turn = -1 if batch.views.flipped[0] else 1
        maps = ActivationMaps(
            cams, sizes, objectness[:, :, ::turn], np.tile(np.int32([2, 3]), (3, 1))
        )
        outputs.append(Predictions(image_scores=scores, maps=maps))
    query = np.zeros((3, CLASSES), bool)
    query[1, 2] = True
    first, second = results_of(list(zip(batches, outputs, strict=True)), query=query)
    for b, (result, classes) in enumerate(((first, [0, 2]), (second, [1, 2]))):
        assert result.maps.classes.tolist() == classes
        assert result.maps.predicted.tolist() == (scores[b] > 0.5).tolist()
        height, width = sizes[b]
        for view, batch in zip(result.maps.views, batches, strict=True):
            expected = truth[b, :height, :width][..., classes]
            np.testing.assert_array_equal(view.cams, expected)
            np.testing.assert_array_equal(view.proposal_map, objectness[b])
            assert view.size_px == tuple(batch.image_size[b])
            assert view.mirrored == batch.views.flipped[b]
        boxes, box_scores, found = result.maps.detections()
        np.testing.assert_array_equal(result.boxes, boxes)
        np.testing.assert_array_equal(result.scores, box_scores)
        np.testing.assert_array_equal(result.classes, found)
    assert first.classes.tolist() == [0] and sorted(second.classes) == [1, 2]


def test_an_image_smaller_than_a_cell_predicts_no_class_and_the_best_are_read():
    batch = random_view(np.random.default_rng(0), [0, 1, 2])
    cells = np.array([[0, 4], [2, 4], [1, 1]], np.int32)
    maps = ActivationMaps(
        np.zeros((3, 2, 4, CLASSES), np.float32), cells, np.ones((3, 2, 4)), cells
    )
    scores = np.tile(np.float32([0.9, 0.2, 0.4]), (3, 1))
    reading = dataclasses.replace(DECODING.reading, num_best=2)
    decoding = dataclasses.replace(DECODING, reading=reading)
    small, other = results_of([(batch, Predictions(image_scores=scores, maps=maps))], decoding)
    assert small.maps.is_too_small and not small.maps.predicted.any() and len(small.boxes) == 0
    assert other.maps.predicted.tolist() == [True, False, False]
    assert small.maps.classes.tolist() == other.maps.classes.tolist() == [0, 2]


# Label maps


def whole_view(size, *, flipped=False):
    return random_view(
        np.random.default_rng(0), [0, 1], size=size, scale=1.0, flipped=flipped, windowed=False
    )


def test_label_maps_come_in_the_size_of_their_image():
    views = [whole_view((8, 300)), whole_view((8, 300), flipped=True)]
    values = np.zeros((2, 1, 38, CLASSES), np.float32)
    values[:, :, :19, 2] = 1.0
    sizes = np.array([[1, 38], [1, 38]], np.int32)
    maps = [FeatureMap(v, sizes, 8.0) for v in (values, values[:, :, ::-1])]
    wants = [frozenset({"semantic"})] * 2
    pairs = [(view, Predictions(semantic=one)) for view, one in zip(views, maps, strict=True)]
    [result] = results_of(pairs, wants=wants)
    expected = oracle.label_map(maps, views, 0, (8, 300), 0.5)
    np.testing.assert_array_equal(result.semantic, expected)
    assert result.semantic.dtype == np.uint8 and set(np.unique(result.semantic)) == {0, 3}
