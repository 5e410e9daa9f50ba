"""Jitter of colors against Python's colorsys and literal blends, pixel by pixel."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.cases import make_batch
from wsod_jax.ops.color import apply_photometric, jitter_hsv, jitter_rgb
from wsod_jax.types import FeatureMap, Photometric

JITTERS = {"hsv": jitter_hsv, "rgb": jitter_rgb}
SPACES = pytest.mark.parametrize("space", JITTERS)
FACTORS = np.float32([[1.5, 1 / 1.5], [1 / 1.5, 1.5], [1.2, 1.4], [0.7, 0.8]])


def hsv_by_loops(pixel, saturation_factor, value_factor):
    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in pixel))
    saturation, value = min(saturation * saturation_factor, 1), min(value * value_factor, 1)
    return [255 * x for x in colorsys.hsv_to_rgb(hue, saturation, value)]


def rgb_by_loops(pixel, brightness, saturation):
    pixel = [min(brightness * x + (1 - brightness) * 0, 255) for x in pixel]
    gray = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    return [min(max(saturation * x + (1 - saturation) * gray, 0), 255) for x in pixel]


ORACLES = {"hsv": hsv_by_loops, "rgb": rgb_by_loops}


def images(seed=0):
    """Four images [4, 6, 7, 3] uint8: random pixels, then primaries, grays, and black."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (4, 6, 7, 3))
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    image[:, 0, :] = corners[1:]
    image[:, 1, :] = np.array([0, 1, 64, 128, 200, 254, 255])[:, None]
    image[:, 2, :2] = [[200, 1, 0], [255, 254, 254]]
    return image.astype(np.uint8)


@SPACES
def test_pixels_equal_the_loop(space):
    found = np.asarray(jax.jit(JITTERS[space])(images(), FACTORS))
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 255
    for i, factors in enumerate(FACTORS.astype(float)):
        expected = [[ORACLES[space](p, *factors) for p in row] for row in images()[i].astype(float)]
        np.testing.assert_allclose(found[i], expected, atol=1e-3)


@SPACES
def test_neutral_factors_change_nothing(space):
    for seed in range(3):
        found = JITTERS[space](images(seed), np.ones((4, 2), np.float32))
        np.testing.assert_allclose(found, images(seed), atol=1e-4)


@SPACES
def test_black_stays_black_and_gray_stays_gray(space):
    found = np.asarray(JITTERS[space](images(), FACTORS))
    assert not found[:, 1, 0].any()
    np.testing.assert_allclose(found[:, 1], found[:, 1, :, :1] * np.ones(3), atol=1e-4)
    factor = FACTORS[:, {"hsv": 1, "rgb": 0}[space]][:, None]  # of value, of brightness
    expected = np.minimum(factor * images()[:, 1, :, 0], 255)
    np.testing.assert_allclose(found[:, 1, :, 0], expected, atol=1e-4)


def test_hue_stays_and_saturation_ends_at_1():
    image = np.uint8([[[[200, 40, 20], [10, 90, 100], [0, 7, 0]]]])
    found = np.asarray(jitter_hsv(image, np.float32([[1.5, 0.9]])))[0, 0]
    for before, after in zip(image[0, 0] / 255, found / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = (hue, min(1.5 * saturation, 1), 0.9 * value)
        np.testing.assert_allclose(colorsys.rgb_to_hsv(*after), expected, atol=1e-5)
    assert found[:, 0][2] == 0 == found[:, 2][2]


@SPACES
def test_an_image_does_not_depend_on_its_batch_or_type(space):
    together = JITTERS[space](images(), FACTORS)
    for i in range(4):
        alone = JITTERS[space](images()[i : i + 1].astype(np.float32), FACTORS[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])
    assert not np.allclose(together[0], JITTERS[space](images(), FACTORS[::-1])[0])


@SPACES
def test_gradients_are_finite(space):
    gradient = jax.grad(lambda x: jnp.sum(JITTERS[space](x, FACTORS) ** 2))
    assert np.isfinite(gradient(images().astype(np.float32))).all()


@SPACES
def test_factors_of_a_batch_are_applied_once(space):
    batch = make_batch(0)
    photometric = Photometric(FACTORS[:2], space)
    jittered = apply_photometric(batch.replace(views=batch.views.replace(photometric=photometric)))
    assert jittered.views.photometric is None and jittered.image.dtype == jnp.float32
    np.testing.assert_array_equal(jittered.image, JITTERS[space](batch.image, FACTORS[:2]))
    assert (jittered.image != batch.image).any()
    height, width = batch.image_size[1]  # smaller than the canvas
    assert not jittered.image[1, height:].any() and not jittered.image[1, :, width:].any()
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a is b, jittered.replace(image=None), batch.replace(image=None))
    )
    assert apply_photometric(jittered) is jittered


def test_batches_without_pixels_lose_the_factors_alone():
    batch = make_batch(0)
    maps = {"c5": FeatureMap(jnp.ones((2, 4, 4, 3)), jnp.full((2, 2), 4), 8.0)}
    bare = batch.replace(image=None, features=maps)
    photometric = Photometric(FACTORS[:2], "hsv")
    found = apply_photometric(bare.replace(views=bare.views.replace(photometric=photometric)))
    assert jax.tree.structure(found) == jax.tree.structure(bare)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, found, bare))
