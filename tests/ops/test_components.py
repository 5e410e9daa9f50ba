"""Components named inside jit equal flooding, on masks made to wind, to touch and to end at borders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import localization as oracle
from wsod_jax.ops import components
from wsod_jax.ops.components import component_boxes, connected_components

label = jax.jit(connected_components, static_argnames="connectivity")
boxes_of = jax.jit(component_boxes, static_argnames="max_components")


def spiral(side):
    """Return a one-cell path that winds to the middle, with a one-cell gap between its turns."""
    mask = np.zeros((side, side), bool)
    y = x = heading = turned = 0
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    mask[0, 0] = True
    while turned < 2:
        dy, dx = steps[heading]
        ahead, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
        inside = all(0 <= v < side for v in ahead)
        free = not (all(0 <= v < side for v in beyond) and mask[beyond])
        if inside and free and not mask[ahead]:
            (y, x), turned = ahead, 0
            mask[y, x] = True
        else:
            heading, turned = (heading + 1) % 4, turned + 1
    return mask


def serpentine(side):
    """Return rows joined at alternating ends."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def check(mask, connectivity):
    found = label(mask, connectivity=connectivity)
    assert found.dtype == jnp.int32
    expected = oracle.components(mask.tolist(), connectivity)
    np.testing.assert_array_equal(found, np.reshape(expected, mask.shape))
    return found


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([4, 8]))
def test_random_masks(seed, share, connectivity):
    mask = np.random.default_rng(seed).random((9, 11)) < share
    labels = check(mask, connectivity)
    boxes, found, overflow = boxes_of(labels, max_components=60)
    expected = oracle.component_boxes(mask.tolist(), mask.tolist(), connectivity)
    assert np.asarray(boxes)[found].tolist() == [box for box, _ in expected]
    assert int(overflow) == 0 and not np.asarray(boxes)[~np.asarray(found)].any()
    assert boxes.dtype == jnp.float32


PATTERNS = {
    "spiral": spiral(31),
    "spiral inside out": ~spiral(31),
    "mirrored spiral": spiral(31)[::-1, ::-1],
    "serpentine": serpentine(32),
    "standing serpentine": serpentine(32).T.copy(),
    "checkerboard": np.indices((7, 10)).sum(axis=0) % 2 == 0,
    "border": np.pad(np.zeros((5, 6), bool), 1, constant_values=True),
    "combs": np.tile([[True, False], [True, True]], (4, 4)),
    "all": np.ones((6, 5), bool),
    "none": np.zeros((6, 5), bool),
    "one cell": np.ones((1, 1), bool),
    "no cell": np.zeros((1, 1), bool),
    "row": np.array([[True, True, False, True]]),
    "column": np.array([[True], [True], [False], [True]]),
}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name, connectivity):
    check(PATTERNS[name], connectivity)


def test_patterns_are_what_they_are_called():
    for name in ("spiral", "mirrored spiral", "serpentine", "standing serpentine"):
        mask = PATTERNS[name]
        assert len(np.unique(label(mask))) == 2  # one component and what lies between its turns
        assert 400 < mask.sum() < 600
    assert len(np.unique(label(PATTERNS["checkerboard"]))) == 35 + 1
    assert len(np.unique(label(PATTERNS["checkerboard"], connectivity=8))) == 1 + 1


@pytest.mark.parametrize("make", [spiral, serpentine, lambda side: serpentine(side).T])
@pytest.mark.parametrize("turned", [0, 1, 2, 3])
def test_winding_paths_settle_in_a_handful_of_rounds(make, turned):
    mask = jnp.asarray(np.rot90(make(127), turned))
    sweep = jax.jit(components._round, static_argnames="connectivity")
    targets, rounds, settled = components._run_starts(mask), 0, None
    while settled is None or (settled != targets).any():
        targets = targets if settled is None else settled
        settled = sweep(targets, mask, connectivity=4)
        rounds += 1
    assert rounds <= 14  # log2 of the path's 8000 cells, and one to see that nothing changes


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_masks_without_cells(shape):
    labels = label(np.zeros(shape, bool))
    assert labels.shape == shape and labels.dtype == jnp.int32
    boxes, found, overflow = boxes_of(labels, max_components=3)
    assert boxes.shape == (3, 4) and not found.any() and int(overflow) == 0


def test_components_beyond_the_slots_are_counted():
    labels = label(PATTERNS["checkerboard"])
    every, _, _ = boxes_of(labels, max_components=35)
    for slots, overflow in ((0, 35), (1, 34), (34, 1), (35, 0), (40, 0)):
        boxes, found, missing = boxes_of(labels, max_components=slots)
        assert boxes.shape == (slots, 4) and int(missing) == overflow
        assert int(found.sum()) == min(slots, 35)
        np.testing.assert_array_equal(boxes[:35], every[: min(slots, 35)])
    assert every[:2].tolist() == [[0, 0, 1, 1], [2, 0, 3, 1]]


def test_a_wider_margin_changes_no_box():
    mask = np.random.default_rng(0).random((9, 11)) < 0.5
    boxes, found, _ = boxes_of(label(mask), max_components=40)
    wide = boxes_of(label(np.pad(mask, ((0, 4), (0, 7)))), max_components=40)
    np.testing.assert_array_equal(boxes, wide[0])
    np.testing.assert_array_equal(found, wide[1])


def test_a_batch_equals_its_masks():
    masks = np.stack([spiral(31), np.zeros((31, 31), bool), ~spiral(31), np.ones((31, 31), bool)])
    batched = jax.jit(jax.vmap(functools.partial(connected_components, connectivity=8)))(masks)
    boxes, found, _ = jax.vmap(functools.partial(component_boxes, max_components=2))(batched)
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(batched[i], label(mask, connectivity=8))
        single = boxes_of(batched[i], max_components=2)
        np.testing.assert_array_equal(boxes[i], single[0])
        np.testing.assert_array_equal(found[i], single[1])


def test_unknown_connectivity_is_refused():
    with pytest.raises(ValueError, match="4, 8"):
        connected_components(jnp.ones((2, 2), bool), 6)
