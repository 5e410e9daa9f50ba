"""Resampling between cells and pixels, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsod_jax.ops.resize import average_cells, upsample


def slow_upsample(cells, valid, stride, shape):
    """Sample at every pixel's center, between the centers of valid cells."""
    result = np.zeros(shape)
    if min(valid) == 0:
        return result
    for y in range(shape[0]):
        for x in range(shape[1]):
            v = np.clip((y + 0.5) / stride - 0.5, 0, valid[0] - 1)
            u = np.clip((x + 0.5) / stride - 0.5, 0, valid[1] - 1)
            i, j = int(v), int(u)
            below, right = min(i + 1, valid[0] - 1), min(j + 1, valid[1] - 1)
            a, b = v - i, u - j
            top = (1 - b) * cells[i, j] + b * cells[i, right]
            bottom = (1 - b) * cells[below, j] + b * cells[below, right]
            result[y, x] = (1 - a) * top + a * bottom
    return result


@pytest.mark.parametrize("valid", [(3, 4), (2, 3), (1, 1), (0, 0)])
def test_upsampling(valid):
    cells = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for i, j in np.ndindex(3, 4):
        if i >= valid[0] or j >= valid[1]:
            cells[i, j] = 99.0  # the margin is not seen
    found = upsample(jnp.asarray(cells), jnp.asarray(valid), 4.0, (11, 18))
    np.testing.assert_allclose(found, slow_upsample(cells, valid, 4.0, (11, 18)), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (5, 6)])
def test_cells_average_their_valid_pixels(shape):
    image = np.random.default_rng(1).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    size = (10, 13)
    found = average_cells(jnp.asarray(image), jnp.asarray(size), 4, shape)
    for i, j in np.ndindex(*shape):
        pixels = image[4 * i : min(4 * i + 4, size[0]), 4 * j : min(4 * j + 4, size[1])]
        mean = pixels.reshape(-1, 3).mean(axis=0) if pixels.size else np.zeros(3)
        np.testing.assert_allclose(found[i, j], mean, rtol=1e-5)
