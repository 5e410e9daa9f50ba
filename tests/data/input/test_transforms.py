"""Canvases, placing images and boxes, and the fate of proposals, against literal loops."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from tests.data.readers.voc_tree import pixels
from wsod_jax.data.input.proposal_rows import (
    ProposalRules,
    clean_proposals,
    merge_duplicates,
    place_proposals,
)
from wsod_jax.data.input.transforms import Canvases, View, place_boxes, place_image, view_factors
from wsod_jax.errors import ConfigError
from wsod_jax.ops.views import to_original
from wsod_jax.types import Views


def random_boxes(seed, count, height, width):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, [width, height], (count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


# Canvases


def test_canvas_shapes_short():
    canvases = Canvases((480, 1200), aspect=1.5, max_long=2000, multiple=32)
    assert canvases.shape(480, portrait=False) == (480, 736)  # 720 rounded up
    assert canvases.shape(480, portrait=True) == (736, 480)
    assert canvases.shape(1200, portrait=False) == (1216, 1824)
    assert len(canvases.shapes()) == 4
    assert Canvases((1200,), max_long=1000, multiple=1).shape(1200, False) == (1000, 1000)


def test_views_of_the_long_side_share_the_canvases_of_the_short_side():
    scales = (480, 640, 1200)
    assert Canvases(scales, "long").shapes() == Canvases(scales, "short").shapes()
    many = tuple(range(480, 1120, 20))
    assert Canvases(many, "long").shapes() == Canvases(many, "short").shapes()
    assert Canvases((480, 640), "long", aspect=1.0).shapes() == ((480, 480), (640, 640))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (400, 400), (333, 500)])
def test_short_side_equals_the_scale(height, width):
    view = Canvases((480,)).view(height, width, 480)
    assert min(view.size) == 480
    assert max(view.size) == math.floor(max(height, width) * 480 / min(height, width) + 0.5)
    assert not view.shrunk


def test_long_side_equals_the_scale():
    view = Canvases((640,), resize="long").view(300, 400, 640)
    assert view.size == (480, 640) and view.canvas == (640, 960) and not view.shrunk


@pytest.mark.parametrize("size", [(10, 5000), (5000, 10), (333, 500), (500, 500), (500, 499)])
def test_no_view_of_the_long_side_is_shrunk(size):
    for scale in (480, 1200):
        view = Canvases((480, 1200), resize="long").view(*size, scale)
        assert max(view.size) == scale and not view.shrunk


def test_longer_images_shrink_to_fit():
    view = Canvases((480,)).view(100, 400, 480)
    assert view.shrunk and view.size == (184, 736)
    view = Canvases((480,), aspect=5, max_long=600).view(100, 400, 480)
    assert view.shrunk and view.size == (150, 600)


def test_exactly_fitting_image_is_not_shrunk():
    assert not Canvases((64,), aspect=2, multiple=1).view(32, 64, 64).shrunk
    assert Canvases((64,), aspect=2, multiple=1).view(32, 65, 64).shrunk


@pytest.mark.parametrize("resize", ["short", "long"])
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (7, 3000), (2000, 1999)])
def test_any_image_fits_its_canvas(resize, size):
    canvases = Canvases((32, 100), resize=resize, max_long=120)
    for scale in canvases.scales:
        view = canvases.view(*size, scale)
        assert view.canvas in canvases.shapes()
        assert 1 <= view.size[0] <= view.canvas[0] and 1 <= view.size[1] <= view.canvas[1]
        assert max(view.size) <= 120


def test_warped_views_fill_one_square_canvas_per_scale():
    canvases = Canvases((112, 225), "warp", max_long=100)
    assert canvases.shapes() == ((112, 112), (225, 225))
    for height, width in ((375, 500), (500, 375), (40, 40), (1, 3000)):
        for scale in canvases.scales:
            view = canvases.view(height, width, scale, True)
            assert view == View((scale, scale), (scale, scale), flipped=True)
        assert not canvases.is_portrait(height, width)
    assert Canvases((8,)).is_portrait(5, 4) and not Canvases((8,)).is_portrait(4, 4)


def own_canvas(canvases, scale, portrait):
    """The canvas of a scale that has one to itself."""
    return dataclasses.replace(canvases, scales=(scale,)).shape(scale, portrait)


@pytest.mark.parametrize("resize", ["short", "long", "warp"])
@pytest.mark.parametrize("scales", [(480,), (1200, 480, 688), (480, 576, 688, 864, 1000, 1200)])
def test_up_to_six_scales_have_a_canvas_each(resize, scales):
    canvases = Canvases(scales, resize)
    for scale in scales:
        for portrait in (False, True):
            assert canvases.shape(scale, portrait) == own_canvas(canvases, scale, portrait)
    assert canvases.shapes()[0] == own_canvas(canvases, scales[0], False)  # in the order given


@pytest.mark.parametrize(
    "scales",
    [
        (480, 512, 576, 640, 704, 800, 960, 1200),
        tuple(range(1200, 560, -20)),
        (*range(100, 108), 900),
    ],
)
@pytest.mark.parametrize("resize", ["short", "long", "warp"])
def test_more_scales_share_six_canvases(resize, scales):
    canvases = Canvases(scales, resize, multiple=1)
    shapes = canvases.shapes()
    assert len(shapes) == 6 if resize == "warp" else len(shapes) == 12
    lying = sorted({canvases.shape(scale, False) for scale in scales})
    for scale in scales:
        own = own_canvas(canvases, scale, False)
        expected = next(shape for shape in lying if shape[0] >= own[0] and shape[1] >= own[1])
        assert canvases.shape(scale, False) == expected
        assert canvases.shape(scale, True) == expected[::-1]


def test_shared_canvases_waste_the_least():
    """Against every choice of six of nine scales."""
    scales = (100, 130, 131, 170, 200, 260, 270, 400, 410)
    canvases = Canvases(scales, multiple=1)
    areas = {scale: math.prod(own_canvas(canvases, scale, False)) for scale in scales}

    def total(chosen):
        held = [min(c for c in chosen if c >= scale) for scale in scales]
        return sum(areas[scale] for scale in held)

    best = min(
        total(chosen) for chosen in itertools.combinations(scales, 6) if max(chosen) == max(scales)
    )
    assert sum(math.prod(canvases.shape(scale, False)) for scale in scales) == best


@pytest.mark.parametrize("resize", ["short", "long", "warp"])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (100, 400), (9000, 1)])
def test_a_view_does_not_depend_on_the_other_scales(resize, size):
    scales = tuple(range(64, 192, 4))
    canvases = Canvases(scales, resize, multiple=8, max_long=200, crop_margin=9)
    for scale in scales:
        for crop in (None, (0.4, 0.9)):
            alone = dataclasses.replace(canvases, scales=(scale,)).view(*size, scale, crop=crop)
            view = canvases.view(*size, scale, crop=crop)
            assert (
                view.canvas in canvases.shapes()
                and np.greater_equal(view.canvas, alone.canvas).all()
            )
            assert dataclasses.replace(view, canvas=alone.canvas) == alone


def test_wrong_canvases():
    for wrong in (
        {"scales": ()},
        {"scales": tuple(range(1, 34))},
        {"scales": (8, 8)},
        {"scales": (0,)},
        {"scales": (8,), "aspect": 0.9},
        {"scales": (8,), "max_long": -1},
        {"scales": (8,), "resize": "wide"},
        {"scales": (8,), "multiple": 0},
        {"scales": (8,), "crop_margin": -1},
    ):
        name, value = list(wrong.items())[-1]
        with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}")):
            Canvases(**wrong)


# Windows


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 300)])
def test_warped_windows_lie_in_the_enlarged_square(size):
    canvases = Canvases((224,), "warp", crop_margin=30)
    for crop, offset in (
        ((0.0, 0.0), (0, 0)),
        ((0.999999, 0.5), (30, 15)),
        ((1 / 31, 0.0), (1, 0)),
    ):
        view = canvases.view(*size, 224, crop=crop)
        assert (view.canvas, view.size, view.resized) == ((224, 224), (224, 224), (254, 254))
        assert view.offset == offset and view.cropped
    assert canvases.view(*size, 224) == Canvases((224,), "warp").view(*size, 224)


def test_every_offset_is_as_likely():
    canvases = Canvases((8,), "warp", crop_margin=3)
    offsets = [canvases.view(5, 5, 8, crop=(0.0, part / 100)).offset[1] for part in range(100)]
    np.testing.assert_array_equal(np.bincount(offsets), [25, 25, 25, 25])


@pytest.mark.parametrize("resize", ["short", "long", "warp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1), (333, 500), (500, 333), (60, 60)])
@pytest.mark.parametrize("margin", [1, 13, 200])
def test_a_window_has_the_size_of_the_whole_without_margin(resize, size, margin):
    canvases = Canvases((64,), resize, max_long=90, crop_margin=margin)
    whole = Canvases((64,), resize, max_long=90).view(*size, 64)
    last = np.nextafter(1.0, 0.0)
    for crop in ((0.0, 0.0), (0.3, 0.8), (last, last)):
        view = canvases.view(*size, 64, crop=crop)
        assert (view.canvas, view.size, view.shrunk) == (whole.canvas, whole.size, whole.shrunk)
        for i in range(2):
            expected = whole.size[i] * (64 + margin) / 64
            assert abs(view.resized[i] - expected) <= 0.5
            assert 0 <= view.offset[i] <= view.resized[i] - view.size[i]
        if crop == (last, last):
            assert view.offset == tuple(view.resized[i] - view.size[i] for i in range(2))
    assert canvases.view(*size, 64, crop=(0.0, 0.0)).offset == (0, 0)


# Placing


def bilinear(image, height, width):
    """Resize by sampling at pixel centers, edges repeated: two loops, float64."""
    out = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * image.shape[0] / height - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * image.shape[1] / width - 0.5, 0), image.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            a, b = y - top, x - left
            row0 = (1 - b) * image[top, left] + b * image[top, right]
            row1 = (1 - b) * image[bottom, left] + b * image[bottom, right]
            out[i, j] = (1 - a) * row0 + a * row1
    return out


@pytest.mark.parametrize("size", [(12, 18), (5, 7), (40, 33)])
def test_image_is_resized_bilinearly_and_padded_with_zeros(size):
    image = pixels(0, 20, 15) | 1  # no zeros inside
    placed = place_image(image, View((48, 48), size, flipped=False))
    assert placed.shape == (48, 48, 3) and placed.dtype == np.uint8
    np.testing.assert_allclose(placed[: size[0], : size[1]], bilinear(image, *size), atol=1.5)
    assert not placed[size[0] :].any() and not placed[:, size[1] :].any()


def test_flipped_view_holds_exactly_the_mirrored_pixels():
    image = pixels(1, 20, 15)
    plain = place_image(image, View((32, 32), (30, 23), flipped=False))
    mirrored = place_image(image, View((32, 32), (30, 23), flipped=True))
    np.testing.assert_array_equal(mirrored[:30, :23], plain[:30, :23][:, ::-1])
    assert (mirrored != plain).any()


def test_same_size_is_copied():
    image = pixels(2, 9, 9)
    np.testing.assert_array_equal(place_image(image, View((9, 9), (9, 9), False)), image)


def test_boxes_follow_their_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    box = np.array([[30, 10, 50, 20]], np.float32)
    for flipped in (False, True):
        view = View((96, 128), (80, 120), flipped)
        [[x1, y1, x2, y2]] = place_boxes(box, (40, 60), view)
        assert (x1, y1, x2, y2) == ((20, 20, 60, 40) if flipped else (60, 20, 100, 40))
        ys, xs = np.nonzero(place_image(image, view)[..., 0] > 127)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x1, y1, x2, y2)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_window_holds_the_pixels_of_the_whole(flipped):
    image = pixels(3, 20, 31)
    whole = place_image(image, View((50, 40), (50, 40), False))
    view = View((32, 48), (30, 25), flipped, resized=(50, 40), offset=(20, 7))
    window = whole[20:50, 7:32]
    placed = place_image(image, view)
    np.testing.assert_array_equal(placed[:30, :25], window[:, ::-1] if flipped else window)
    assert not placed[30:].any() and not placed[:, 25:].any()


@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_follow_their_pixels_through_warp_and_window(flipped):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    boxes = np.array([[30, 10, 50, 20], [0, 0, 60, 40], [0, 0, 4, 4]], np.float32)
    # The whole becomes 120 x 120: factors (2, 3); the window begins at x = 16, y = 24.
    view = Canvases((96,), "warp", crop_margin=24).view(40, 60, 96, flipped, crop=(0.98, 0.65))
    assert view.resized == (120, 120) and view.offset == (24, 16)
    placed = place_boxes(boxes, (40, 60), view)
    assert tuple(placed[0]) == ((12, 6, 52, 36) if flipped else (44, 6, 84, 36))
    assert tuple(placed[1]) == (0, 0, 96, 96)
    assert placed[2, 0] == placed[2, 2]  # outside the window: no area
    ys, xs = np.nonzero(place_image(image, view)[..., 0] > 127)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == tuple(placed[0])
    assert view_factors((40, 60), view) == (np.float32(2), np.float32(3))


def test_boxes_of_warped_views_map_back():
    boxes = random_boxes(9, 50, 333, 500)
    for flipped in (False, True):
        view = Canvases((224,), "warp").view(333, 500, 224, flipped)
        placed = place_boxes(boxes, (333, 500), view)
        scale = np.array([view_factors((333, 500), view)])
        views = Views(scale, np.zeros((1, 2), int), np.array([flipped]), np.array([[333, 500]]))
        back = to_original(placed[None], views, np.array([224.0]))
        np.testing.assert_allclose(back[0], boxes, atol=1e-3)


def test_factors_are_exact_per_axis():
    view = View((32, 64), (31, 47), False)
    assert view_factors((333, 500), view) == (np.float32(47 / 500), np.float32(31 / 333))


def test_placed_boxes_stay_inside_and_flip_back():
    boxes = random_boxes(0, 200, 333, 500)
    boxes[0] = [0, 0, 500, 333]
    view = View((512, 736), (479, 719), False)
    placed = place_boxes(boxes, (333, 500), view)
    assert placed.dtype == np.float32
    assert placed.min() >= 0 and placed[:, 2].max() <= 719 and placed[:, 3].max() <= 479
    mirrored = place_boxes(boxes, (333, 500), View((512, 736), (479, 719), True))
    np.testing.assert_allclose(719 - mirrored[:, 2], placed[:, 0], atol=1e-3)
    np.testing.assert_array_equal(mirrored[:, [1, 3]], placed[:, [1, 3]])


# Cleaning


def test_unusable_boxes_are_dropped_and_others_clipped():
    boxes = np.array(
        [
            [1, 2, 5, 8],
            [-3, -3, 4, 4],  # clipped
            [20, 2, 30, 8],  # outside
            [3, 3, 3, 8],  # no width
            [6, 2, 5, 8],  # inverted
            [0, 0, 10, 12],  # the whole image
            [9.5, 11, 10.5, 13],  # clipped to half a pixel wide
        ],
        np.float32,
    )
    clean = clean_proposals(boxes, None, (12, 10), ProposalRules(20))
    np.testing.assert_array_equal(
        clean.boxes, [[1, 2, 5, 8], [0, 0, 4, 4], [0, 0, 10, 12], [9.5, 11, 10, 12]]
    )
    assert (clean.clipped, clean.dropped, clean.capped) == (2, 3, 0)
    assert clean.scores is None


def test_minimum_side_is_inclusive():
    boxes = np.array([[0, 0, 5, 9], [0, 0, 4.9, 9], [0, 0, 9, 5], [0, 0, 9, 4.9]], np.float32)
    for rules in (ProposalRules(9, min_side_px=5), ProposalRules(9, min_side=0.25)):
        clean = clean_proposals(boxes, None, (20, 40), rules)  # 0.25 of the shorter side = 5
        np.testing.assert_array_equal(clean.boxes, boxes[[0, 2]])
        assert clean.dropped == 2


def test_cap_takes_the_first_without_scores():
    boxes = random_boxes(1, 10, 50, 50)
    clean = clean_proposals(boxes, None, (50, 50), ProposalRules(4))
    np.testing.assert_array_equal(clean.boxes, boxes[:4])
    assert clean.capped == 6
    assert clean_proposals(boxes, None, (50, 50), ProposalRules(10)).capped == 0


def test_cap_takes_the_best_scored_in_file_order():
    boxes = random_boxes(2, 6, 50, 50)
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.7, 0.5])
    clean = clean_proposals(boxes, scores, (50, 50), ProposalRules(3))
    np.testing.assert_array_equal(clean.boxes, boxes[[1, 2, 4]])  # of the equal ones the first
    np.testing.assert_array_equal(clean.scores, np.float32([0.9, 0.5, 0.7]))


def test_no_boxes():
    clean = clean_proposals(np.zeros((0, 4)), np.zeros(0), (5, 5), ProposalRules(3))
    assert clean.boxes.shape == (0, 4) and clean.scores.shape == (0,)
    placed = place_proposals(clean, (5, 5), View((8, 8), (8, 8), False), ProposalRules(3))
    assert not placed.mask.any() and not placed.boxes.any()
    np.testing.assert_array_equal(placed.representative, [0, 1, 2])


def test_wrong_rules():
    for wrong in (
        {"max_proposals": 0},
        {"max_proposals": 1, "dedup_stride": 0},
        {"max_proposals": 1, "min_side_px": -1},
        {"max_proposals": 1, "min_side": 1},
    ):
        name, value = list(wrong.items())[-1]
        with pytest.raises(ConfigError, match=f"{name}={value}; "):
            ProposalRules(**wrong)


# Merging


def merge_by_loops(boxes, stride):
    first, out = {}, []
    for index, box in enumerate(boxes.tolist()):
        key = tuple(math.floor(edge / stride + 0.5) for edge in box)
        out.append(first.setdefault(key, index))
    return out


@pytest.mark.parametrize("stride", [1, 8, 16])
def test_duplicates_against_loops(stride):
    boxes = random_boxes(4, 300, 40, 40)
    boxes[100:150] = boxes[:50] + 0.25
    merged = merge_duplicates(boxes, stride)
    assert merged.dtype == np.int32
    np.testing.assert_array_equal(merged, merge_by_loops(boxes, stride))


def test_huge_coordinates_merge_alike():
    boxes = random_boxes(5, 50, 40, 40) * 5000
    boxes[20:30] = boxes[:10]
    np.testing.assert_array_equal(merge_duplicates(boxes, 1), merge_by_loops(boxes, 1))


def test_half_rounds_away_from_zero():
    boxes = np.array(
        [[4, 0, 80, 80], [8, 0, 80, 80], [3.999, 0, 80, 80], [0, 0, 80, 80], [12, 0, 80, 80]]
    )
    # x1 / 8 = 0.5 -> 1, 1 -> 1, 0.499 -> 0, 0 -> 0, 1.5 -> 2
    np.testing.assert_array_equal(merge_duplicates(boxes, 8), [0, 0, 2, 2, 4])


def test_merged_proposals_keep_row_and_box_but_not_mask():
    boxes = np.array([[0, 0, 40, 40], [1, 1, 41, 41], [0, 0, 20, 40]], np.float32)
    view = View((64, 64), (48, 48), False)
    clean = clean_proposals(boxes, np.array([3.0, 2, 1]), (48, 48), ProposalRules(5))
    placed = place_proposals(clean, (48, 48), view, ProposalRules(5))
    np.testing.assert_array_equal(placed.boxes[:3], boxes)
    np.testing.assert_array_equal(placed.mask, [True, False, True, False, False])
    np.testing.assert_array_equal(placed.representative, [0, 0, 2, 3, 4])
    np.testing.assert_array_equal(placed.scores, [3, 2, 1, 0, 0])
    unmerged = place_proposals(clean, (48, 48), view, ProposalRules(5, dedup_stride=None))
    np.testing.assert_array_equal(unmerged.mask, [True, True, True, False, False])
    np.testing.assert_array_equal(unmerged.representative, np.arange(5))


def test_more_rows_change_nothing():
    boxes = random_boxes(6, 40, 48, 48)
    view = View((64, 64), (60, 60), True)
    clean = clean_proposals(boxes, None, (48, 48), ProposalRules(40))
    few = place_proposals(clean, (48, 48), view, ProposalRules(40))
    many = place_proposals(clean, (48, 48), view, ProposalRules(64))
    for name in ("boxes", "mask", "representative"):
        np.testing.assert_array_equal(getattr(many, name)[:40], getattr(few, name))
    assert not many.mask[40:].any()


# Windows by share


SHARED = pytest.mark.parametrize("resize", ["short", "long", "warp"])
LAST = np.nextafter(1.0, 0.0)


@SHARED
@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (300, 300), (100, 400), (1, 1), (9000, 1)]
)
def test_a_window_of_nine_tenths(resize, size):
    """Of any aspect: it is resized as an image of its size is, and the rest of the image with it."""
    canvases = Canvases((480, 600), resize)
    for scale, crop in itertools.product((480, 600), ((0.0, 0.0), (0.4, 0.7), (LAST, LAST))):
        view = canvases.view(*size, scale, crop=crop, share=(0.9, 0.9))
        whole = canvases.view(*size, scale)
        assert (view.canvas, view.size) == (whole.canvas, whole.size)  # of the same aspect
        for i in range(2):
            assert abs(view.size[i] - 0.9 * view.resized[i]) <= 0.96  # both are rounded
            room = view.resized[i] - view.size[i]
            assert view.offset[i] == math.floor(crop[i] * (room + 1)) <= room
        assert view.shrunk == whole.shrunk


@SHARED
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (60, 60), (1, 70)])
def test_the_whole_image_is_a_window_too(resize, size):
    canvases = Canvases((64, 96), resize, multiple=8)
    for scale in (64, 96):
        assert canvases.view(*size, scale, crop=(0.3, 0.9), share=(1.0, 1.0)) == canvases.view(
            *size, scale
        )


@pytest.mark.parametrize("share", [(0.9, 1.0), (1.0, 0.9), (0.93, 0.97), (0.5, 0.55)])
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (400, 400), (333, 500)])
def test_the_shorter_side_of_the_window_is_the_scale(size, share):
    canvases = Canvases((480,), aspect=2.0)
    view = canvases.view(*size, 480, crop=(0.5, 0.5), share=share)
    sides = [side * part for side, part in zip(size, share, strict=True)]
    lies_as_the_image = (sides[0] > sides[1]) == (size[0] > size[1])
    factor = 480 / (min(sides) if lies_as_the_image else max(sides))
    assert view.shrunk == (not lies_as_the_image)
    for i in range(2):
        assert view.size[i] == math.floor(sides[i] * factor + 0.5)
        assert view.resized[i] == math.floor(size[i] * factor + 0.5)
    assert view.canvas == canvases.view(*size, 480).canvas


def test_a_window_longer_than_the_canvas_is_shrunk():
    """3:2 fits; a window of it that is less high does not."""
    canvases = Canvases((480,), multiple=1)
    assert not canvases.view(320, 480, 480).shrunk
    view = canvases.view(320, 480, 480, crop=(0.0, 0.0), share=(0.9, 1.0))
    assert view.shrunk and view.canvas == (480, 720) and view.size == (432, 720)
    assert view.resized == (480, 720)


@SHARED
def test_every_window_fits_an_existing_canvas(resize):
    canvases = Canvases(tuple(range(64, 192, 4)), resize, multiple=8, max_long=250)
    shapes, rng = canvases.shapes(), np.random.default_rng(0)
    assert len(shapes) <= 12
    for scale in canvases.scales:
        for size in ((375, 500), (500, 333), (60, 60), (30, 400)):
            share = rng.uniform(0.3, 1.0, 2)
            view = canvases.view(*size, scale, crop=rng.random(2), share=share)
            assert view.canvas in shapes and np.less_equal(view.size, view.canvas).all()
            assert max(view.size) <= 250
            assert all(0 <= view.offset[i] <= view.resized[i] - view.size[i] for i in range(2))


@SHARED
@pytest.mark.parametrize("flipped", [False, True])
def test_boxes_follow_their_pixels_through_a_window(resize, flipped):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = 255
    canvases = Canvases((80,), resize, multiple=8)
    view = canvases.view(40, 60, 80, flipped, crop=(0.5, 0.9), share=(0.8, 0.7))
    assert view.cropped
    [[x1, y1, x2, y2]] = place_boxes(np.float32([[30, 10, 50, 20]]), (40, 60), view)
    ys, xs = np.nonzero(place_image(image, view)[..., 0] > 127)
    found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    np.testing.assert_allclose((x1, y1, x2, y2), found, atol=1.01)
    # And back, through the geometry that a batch carries.
    scale, offset = np.array([view_factors((40, 60), view)]), np.array([view.offset[::-1]])
    views = Views(scale, offset, np.array([flipped]), np.array([[40, 60]]))
    back = to_original(np.float32([[[x1, y1, x2, y2]]]), views, np.float32([view.size[1]]))
    np.testing.assert_allclose(back[0, 0], [30, 10, 50, 20], atol=1e-3)


def test_proposals_are_merged_as_the_window_shows_them():
    """Rows: inside; outside; as the first inside, but longer outside; without area at the edge; a sliver there."""
    boxes = np.float32(
        [[20, 20, 60, 60], [0, 0, 9, 90], [20, 20, 60, 60.5], [0, 30, 10, 50], [0, 30, 11, 50]]
    )
    view = View((96, 96), (90, 80), False, resized=(90, 90), offset=(0, 10))
    rules = ProposalRules(7)
    clean = clean_proposals(boxes, None, (90, 90), rules)
    placed = place_proposals(clean, (90, 90), view, rules)
    np.testing.assert_array_equal(placed.boxes[0], [10, 20, 50, 60])
    np.testing.assert_array_equal(placed.mask, [True, False, False, False, True, False, False])
    # The sliver falls together with the box outside, which cannot stand for it.
    np.testing.assert_array_equal(placed.representative, [0, 1, 0, 3, 4, 5, 6])
    assert placed.hidden == 2
    unmerged = place_proposals(clean, (90, 90), view, ProposalRules(7, dedup_stride=None))
    np.testing.assert_array_equal(unmerged.mask, [True, False, True, False, True, False, False])
    np.testing.assert_array_equal(unmerged.boxes[:5], placed.boxes[:5])
    wide = np.float32([[0, 20, 60, 60], [8, 20, 60, 60]])  # they differ outside the window alone
    clean = clean_proposals(wide, None, (90, 90), rules)
    assert place_proposals(clean, (90, 90), view, rules).representative[1] == 0
    whole = View((96, 96), (90, 90), False)
    assert place_proposals(clean, (90, 90), whole, rules).mask[:2].all()
