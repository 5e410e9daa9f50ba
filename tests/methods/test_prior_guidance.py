"""Prior guidance of WS-JDS, against counting pixel by pixel and the released kernels' results."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import cases
from wsod_jax.methods.prior_guidance import evidence_scores, prior_weights


def half_up(value):
    return int(np.floor(value + 0.5))


def slow_scores(evidence, boxes, size, region, area):
    """Count every pixel of every region."""
    found = []
    for box in boxes:
        x1 = min(max(half_up(box[0]), 0), size[1] - 1)
        y1 = min(max(half_up(box[1]), 0), size[0] - 1)
        x2 = min(max(half_up(box[2]) - 1, x1), size[1] - 1)
        y2 = min(max(half_up(box[3]) - 1, y1), size[0] - 1)

        def pixels(factor, x1=x1, y1=y1, x2=x2, y2=y2):
            center, half = ((x1 + x2) / 2, (y1 + y2) / 2), ((x2 - x1) / 2, (y2 - y1) / 2)
            low = [half_up(c - h * factor) for c, h in zip(center, half, strict=True)]
            high = [half_up(c + h * factor) for c, h in zip(center, half, strict=True)]
            return {
                (y, x)
                for y in range(size[0])
                for x in range(size[1])
                if low[0] <= x <= high[0] and low[1] <= y <= high[1]
            }

        box_pixels, context = pixels(1.0), pixels(1.8) - pixels(1.0)
        inside = box_pixels - pixels(1 / 1.8) if region == "frame" else box_pixels

        def share(region):
            count = sum(bool(evidence[p]) for p in region)
            return count / max(len(region), 1) ** (0.5 if area == "root" else 1.0)

        found.append(share(inside) - share(context))
    return np.array(found)


@pytest.mark.parametrize("region", ["frame", "box"])
@pytest.mark.parametrize("area", ["root", "plain"])
def test_scores_equal_counting(region, area):
    rng = np.random.default_rng(3)
    size = (14, 18)
    evidence = rng.random((16, 20)) < 0.4
    evidence[size[0] :], evidence[:, size[1] :] = False, False
    low = rng.uniform(0, 12, (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 8, (30, 2))], axis=1)
    boxes = np.clip(boxes, 0, [size[1], size[0]] * 2)
    boxes[:3] = [[0, 0, 18, 14], [0, 0, 1, 1], [17, 13, 18, 14]]  # the image, and two corners
    found = evidence_scores(
        jnp.asarray(evidence),
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(size),
        region=region,
        area=area,
    )
    np.testing.assert_allclose(
        found, slow_scores(evidence, boxes, size, region, area), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("area", "key"), [("root", "sqrt"), ("plain", "area")])
@pytest.mark.parametrize(("name", "case"), [*cases("methods/wsjds_prior.npz")])
def test_the_released_kernels_give_the_same(name, case, area, key):
    maps, boxes = case["maps"], case["boxes"]
    proper = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)  # one box is inside out
    ends_excluded = boxes + np.float32([0, 0, 1, 1])
    for c in np.flatnonzero(case["t"]):
        found = evidence_scores(
            jnp.asarray(maps[c] >= 0.1),
            jnp.asarray(ends_excluded),
            jnp.asarray(maps.shape[1:]),
            area=area,
        )
        raw = case[f"raw_P_{key}"][c]  # the port clamps boxes, as we clip them
        np.testing.assert_allclose(found[proper], raw[proper], atol=1e-6, err_msg=name)
        weights = prior_weights(found, jnp.asarray(proper), case["y"][c])
        if proper.all():
            np.testing.assert_allclose(weights, case[f"W_P_{key}"][:, c], atol=1e-6)


NORMALIZED = {
    "both signs": ([2.0, 1.0, -4.0, 0.0], [1.0, 0.5, -1.0, 0.0]),
    "positive alone": ([2.0, 1.0, 0.5, 0.0], [1.0, 0.5, 0.25, 0.0]),
    "no positive": ([-2.0, -1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]),
    "all zero": ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("case", list(NORMALIZED))
def test_normalization_and_blending(case):
    scores, weights = map(np.float32, NORMALIZED[case])
    real = jnp.asarray([True, True, True, True, False])
    padded = jnp.asarray([*scores, 99.0])  # a masked proposal counts for nothing
    for phi in (1.0, 0.8, 0.0):
        found = prior_weights(padded, real, phi)
        expected = phi * weights + (1 - phi)
        if case in ("no positive", "all zero"):
            expected = np.ones(4)
        np.testing.assert_allclose(found, [*expected, 1.0], atol=1e-6)


def test_no_real_proposal():
    found = prior_weights(jnp.asarray([1.0, -1.0]), jnp.zeros(2, bool), 0.9)
    np.testing.assert_array_equal(found, 1.0)
