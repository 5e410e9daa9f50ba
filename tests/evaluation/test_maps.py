"""Maps of a whole set: points and boxes equal a literal loop; views, claims, and images that never came."""

import numpy as np
import pytest

from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import MergedImage, ViewMaps, infer
from wsod_jax.evaluation.maps import MapReading, claims_above, claims_best, locate
from wsod_jax.types import Batch, Predictions, ResponseMaps, Views

CLASSES = 3
SIZE_PX = (48, 64)  # of views; reading maps does not look at it
SIZES = np.array([[7, 9], [6, 4], [1, 1], [5, 8]])


def view(seed, cells=(3, 4)):
    rng = np.random.default_rng(seed)
    proposal_map = rng.random(cells).astype(np.float32)
    responses = rng.normal(size=(*cells, CLASSES)).astype(np.float32)
    return ViewMaps(responses, proposal_map / max(proposal_map.sum(), 1), SIZE_PX)


def merged(index, views, scores):
    return MergedImage(index, None, None, None, np.asarray(scores, np.float32), tuple(views))


IMAGES = [  # in another order than the set's; image 3 never comes
    merged(1, [view(10), view(11, (5, 2))], [0.9, 0.6, 0.1]),
    merged(2, [view(20), view(21)], [0.1, 0.2, 0.5]),
    merged(0, [view(0), view(1, (2, 6))], [0.4, 0.5, 0.7]),
]
WANTED = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]], bool)


def read(images=IMAGES, **options):
    given = dict(num_classes=CLASSES, wanted=WANTED, claims=claims_above(0.5), reading=MapReading())
    given["keep_responses"] = len(SIZES)
    return locate(iter(images), SIZES, **(given | options))


def rows(table):
    return list(
        zip(table.image_index, table.classes, table.boxes.tolist(), table.scores, strict=True)
    )


@pytest.mark.parametrize("how", ["align_corners", "half_pixel"])
@pytest.mark.parametrize("separate", [False, True])
def test_points_and_boxes_equal_the_loop(how, separate):
    found = read(reading=MapReading(how), separate_views=separate)
    tightest, components = [], []
    for image in sorted(IMAGES, key=lambda image: image.image_index):
        i = image.image_index
        for c in range(CLASSES):
            claimed = image.image_scores[c] > 0.5
            assert found.claimed[i, c] == claimed
            assert found.examined[i, c] == (claimed or WANTED[i, c])
            if not found.examined[i, c]:
                assert np.isnan(found.points[i, c]).all()
                continue
            views = [v.responses[..., c].tolist() for v in image.maps]
            point, box, parts = oracle.located(views, SIZES[i], how)
            assert tuple(found.points[i, c]) == point
            tightest.append((i, c, *box))
            if separate:
                parts = sum((oracle.located([v], SIZES[i], how)[2] for v in views), [])
            components += [(i, c, *part) for part in parts]
    assert len(components) > len(tightest) > 3
    for table, expected in ((found.tightest, tightest), (found.components, components)):
        listed = rows(table)
        assert [(i, c, box) for i, c, box, _ in listed] == [
            (i, c, box) for i, c, box, _ in expected
        ]
        scores = [score for *_, score in expected]
        np.testing.assert_allclose([row[3] for row in listed], scores, rtol=1e-5, atol=1e-6)
        assert (table.num_images, table.num_classes) == (4, CLASSES)


def test_images_that_never_came_have_nothing():
    found = read()
    assert found.predicted.tolist() == [True, True, True, False]
    assert np.isnan(found.image_scores[3]).all() and not found.examined[3].any()
    assert found.maps[3] == () and found.maps[0] == IMAGES[2].maps
    assert 3 not in found.tightest.image_index and 3 not in found.components.image_index
    nothing = read([])
    assert not nothing.predicted.any() and len(nothing.tightest) == len(nothing.components) == 0
    assert nothing.tightest.boxes.shape == (0, 4)


def test_nothing_claimed_and_nothing_wanted():
    found = read(wanted=None, claims=claims_above(1.0))
    assert found.predicted.sum() == 3 and not found.examined.any()
    assert len(found.tightest) == len(found.components) == 0 and np.isnan(found.points).all()
    wanted = read(claims=claims_above(1.0))
    assert wanted.examined[:3].sum() == WANTED[:3].sum() == len(wanted.tightest)
    assert len(wanted.of_claimed(wanted.tightest)) == 0
    assert len(read(wanted=None).tightest) == read().claimed.sum() == 3


def test_of_claimed_leaves_out_what_was_only_wanted():
    found = read()
    kept = found.of_claimed(found.components)
    assert 0 < len(kept) < len(found.components)
    assert found.claimed[kept.image_index, kept.classes].all()
    assert set(zip(kept.image_index, kept.classes, strict=True)) == {(0, 2), (1, 0), (1, 1)}


def test_claims():
    assert claims_above(0.5)(np.array([0.5, 0.51, 0.2])).tolist() == [False, True, False]
    assert claims_best(np.array([0.2, 0.3, 0.3])).tolist() == [False, True, False]
    assert claims_best(np.array([1.0])).tolist() == [True]
    found = read(claims=claims_best, wanted=None)
    assert found.claimed.sum(axis=1).tolist() == [1, 1, 1, 0]
    assert found.claimed.argmax(axis=1)[:3].tolist() == [2, 0, 2]


def test_maps_that_say_nothing():
    """A constant map, and one without cells: the centre, the whole image."""
    even = ViewMaps(
        np.full((2, 3, CLASSES), 0.1, np.float32), np.full((2, 3), 1 / 6, np.float32), SIZE_PX
    )
    empty = ViewMaps(np.zeros((0, 0, CLASSES), np.float32), np.zeros((0, 0), np.float32), SIZE_PX)
    images = [merged(0, [even], [1, 0, 0]), merged(1, [empty], [1, 0, 0])]
    found = read(images, wanted=np.eye(4, CLASSES, dtype=bool)[[0, 0, 3, 3]])
    assert found.points[0, 0].tolist() == [4.5, 3.5] and found.points[1, 0].tolist() == [2, 3]
    for table in (found.tightest, found.components):
        assert table.boxes.tolist() == [[0, 0, 9, 7], [0, 0, 4, 6]]
        np.testing.assert_allclose(table.scores, [0.1, 0], rtol=1e-6)
    reading = MapReading()
    assert not reading.objectness((empty,), (6, 4)).any()
    np.testing.assert_allclose(reading.objectness((even,), (7, 9)), 1 / 6, rtol=1e-6)


def test_maps_that_are_not_finite_are_an_error():
    broken = ViewMaps(
        np.full((2, 2, CLASSES), np.nan, np.float32), np.ones((2, 2), np.float32), SIZE_PX
    )
    with pytest.raises(DataError, match="diverged"):
        read([merged(0, [broken], [1, 0, 0])])
    with pytest.raises(DataError, match="not finite"):
        read([merged(0, [view(0)], [np.nan, 0, 0])], wanted=None)


def test_one_view_needs_no_mean():
    alone = [merged(i, [view(i)], [1, 1, 1]) for i in range(4)]
    twice = [merged(i, [view(i), view(i)], [1, 1, 1]) for i in range(4)]
    once, mean = read(alone), read(twice)
    np.testing.assert_array_equal(once.points, mean.points)
    assert rows(once.tightest) == rows(mean.tightest)
    assert rows(once.components) == rows(mean.components)
    apart = read(twice, separate_views=True)
    assert len(apart.components) == 2 * len(once.components)
    np.testing.assert_array_equal(apart.points, once.points)


def whole(flipped) -> Views:
    """The view of one image in its own pixels."""
    return Views(
        scale=np.ones((1, 2), np.float32),
        offset=np.zeros((1, 2), np.int32),
        flipped=np.array([flipped]),
        original_size=np.array([[30, 40]], np.int32),
    )


def in_a_batch(index, maps, *, flipped, size=(3, 4), canvas=(5, 6)):
    """One view as a batch and its prediction, the maps in the corner of a larger canvas."""
    turn = slice(None, None, -1 if flipped else 1)
    responses = np.full((1, *canvas, CLASSES), 99.0, np.float32)
    proposal_map = np.full((1, *canvas), 99.0, np.float32)
    responses[0, : size[0], : size[1]] = maps.responses[:, turn]
    proposal_map[0, : size[0], : size[1]] = maps.proposal_map[:, turn]
    batch = Batch(
        image=None,
        image_size=np.array([[30, 40]], np.int32),
        image_mask=np.array([True]),
        image_index=np.array([index], np.int32),
        views=whole(flipped),
    )
    cells = np.array([size], np.int32)
    scores = np.array([[0.9, 0.1, 0.8]], np.float32)
    maps = ResponseMaps(responses, cells, proposal_map, cells)
    return batch, Predictions(None, None, None, scores, maps)


def test_mirrored_views_turn_back():
    """A view and its mirror image say the same; so does either alone."""
    turns, found = ((False,), (True,), (False, True)), []
    for flips in turns:
        pairs = [in_a_batch(0, view(5), flipped=flip) for flip in flips]
        outputs = iter([output for _, output in pairs])
        images = infer(lambda _, o=outputs: next(o), [b for b, _ in pairs], num_views=len(flips))
        found.append(read(images, wanted=None))
        for maps in found[-1].maps[0]:
            cells = view(5).proposal_map.size
            np.testing.assert_allclose(maps.responses, cells * view(5).responses, rtol=1e-6)
            np.testing.assert_allclose(maps.proposal_map, cells * view(5).proposal_map, rtol=1e-6)
            assert maps.size_px == (30, 40)
        assert tuple(maps.mirrored for maps in found[-1].maps[0]) == flips
    for other in found[1:]:
        np.testing.assert_array_equal(other.points, found[0].points)
        assert rows(other.tightest) == rows(found[0].tightest)
        assert rows(other.components) == rows(found[0].components)
    assert found[0].claimed[0].tolist() == [True, False, True]


def test_responses_are_kept_of_the_first_images_only():
    some, all_of_them = read(keep_responses=1), read()
    assert [[view.responses.size > 0 for view in views] for views in some.maps[:3]] == [
        [True, True],
        [False, False],
        [False, False],
    ]
    for kept, whole in zip(some.maps, all_of_them.maps, strict=True):
        for a, b in zip(kept, whole, strict=True):
            np.testing.assert_array_equal(a.proposal_map, b.proposal_map)
    np.testing.assert_array_equal(some.points, all_of_them.points)


def test_image_smaller_than_a_cell_claims_no_class():
    empty = ViewMaps(np.zeros((0, 4, CLASSES), np.float32), np.zeros((0, 4), np.float32), SIZE_PX)
    located = read([merged(0, [empty], [0.9, 0.9, 0.1]), merged(1, [view(1)], [0.9, 0.1, 0.1])])
    assert located.too_small.tolist() == [True, False, False, False]
    assert not located.claimed[0].any() and located.claimed[1].tolist() == [True, False, False]
    assert located.examined[0].tolist() == WANTED[0].tolist()


def test_views_of_different_sizes_weigh_the_same():
    """Maps as the network gives them: M sums to 1 over however many cells, and R goes with it."""

    def batch_and_output(cells, top):
        proposal_map = np.zeros((1, cells, cells), np.float32)
        half = np.s_[: cells // 2] if top else np.s_[cells // 2 :]
        proposal_map[0, half] = 1
        proposal_map /= proposal_map.sum()
        size = np.array([[cells, cells]], np.int32)
        batch = Batch(
            image=None,
            image_size=np.array([[112, 112]], np.int32),
            image_mask=np.ones(1, bool),
            image_index=np.zeros(1, np.int32),
            views=whole(False),
        )
        maps = ResponseMaps(3 * proposal_map[..., None], size, proposal_map, size)
        return batch, Predictions(None, None, None, np.ones((1, 1), np.float32), maps)

    pairs = [batch_and_output(8, True), batch_and_output(32, False)]
    outputs = iter([output for _, output in pairs])
    images = infer(lambda batch: next(outputs), [batch for batch, _ in pairs], num_views=2)
    found = next(iter(images))
    reading = MapReading("half_pixel")
    objectness = reading.objectness(found.maps, (64, 64))
    response = reading.response(found.maps, (64, 64), [0])[..., 0]
    for values, mean in ((objectness, 1), (response, 3)):
        assert abs(values.mean() - mean) < 1e-5
        share = (
            values[:32].sum() / values.sum()
        )  # a little more than half: coarse cells blur further down
        assert 0.45 < share < 0.55  # by sums to 1 it would be 0.94
