"""The dense CRF equals one computed pair by pair; what holds of every q; how far coarser grids are from exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import crf as oracle
from wsod_jax.errors import ConfigError
from wsod_jax.ops.crf import CrfOptions, dense_crf, dense_crf_upsampled

exact = jax.jit(dense_crf, static_argnames="options")
upsampled = jax.jit(dense_crf_upsampled, static_argnames="options")
BOTH = pytest.mark.parametrize("solve", [exact, upsampled], ids=["cells", "pixels"])


def draw(seed, height, width, num_labels=3):
    """Return probabilities that sum to 1, and an image of a few colors with noise."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((height, width, num_labels))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    image = 60.0 * rng.integers(0, 3, (height, width, 1)) + 10 * rng.random((height, width, 3))
    return p.astype(np.float32), image.astype(np.float32)


def scene(height, width, num_labels=4):
    """Return probabilities of discs, spoiled by noise, and an image of the discs with texture."""
    rng = np.random.default_rng(num_labels)
    y, x = np.mgrid[:height, :width] / max(height, width)
    labels = np.zeros((height, width), int)
    for label in range(1, num_labels):
        cy, cx = rng.uniform(0.15, 0.85, 2) * [height, width] / max(height, width)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(0.12, 0.22) ** 2] = label
    palette = rng.uniform(30, 225, (num_labels, 3))
    image = palette[labels] + 6 * np.sin(40 * y + 25 * x)[..., None]
    image = image + rng.normal(0, 5, (height, width, 3))
    cells = rng.normal(0, 0.7, (9, 9, num_labels))
    rows, columns = (np.arange(n) * 9 // n for n in (height, width))
    logits = 2.0 * np.eye(num_labels)[labels] + cells[rows][:, columns]
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return p.astype(np.float32), np.clip(image, 0, 255).astype(np.uint8)


def of_one(solve, p, image, **options):
    """Return q [h, w, k] of one image that fills its canvas."""
    size = jnp.array([p.shape[:2]], jnp.int32)
    return np.asarray(
        solve(jnp.asarray(p)[None], jnp.asarray(image)[None], size, options=CrfOptions(**options))
    )[0]


VARIANTS = [
    {},
    {"include_self": False},
    {"normalization": "rows"},
    {"normalization": "rows", "include_self": False},
    {"normalization": "none", "gaussian_weight": 0.3, "bilateral_weight": 0.2},
    {"normalization": "none", "include_self": False, "bilateral_weight": 0.1},
    {"gaussian_weight": 0.0},
    {"bilateral_weight": 0.0, "gaussian_xy": 150.0},
    {"gaussian_xy": 100.0, "bilateral_xy": 200.0, "bilateral_rgb": 40.0},
    {"num_iterations": 0},
    {"num_iterations": 1},
    {"floor": 0.05},
]


@pytest.mark.parametrize(
    ("solve", "options"),
    [pytest.param(exact, options, id=f"exact-{options}") for options in VARIANTS]
    + [
        pytest.param(upsampled, VARIANTS[i], id=f"upsampled-{VARIANTS[i]}")
        for i in (0, 1, 3, 5, 8, 9, 11)
    ],
)
def test_equals_the_oracle(solve, options):
    p, image = draw(0, 6, 7)
    found = of_one(solve, p, image, **options)
    np.testing.assert_allclose(found, oracle.dense_crf(p, image, **options), atol=2e-5)


@BOTH
@pytest.mark.parametrize("shape", [(8, 9, 4), (1, 1, 3), (1, 7, 2), (5, 4, 1)], ids=str)
def test_of_any_shape(solve, shape):
    p, image = draw(1, *shape)
    found = of_one(solve, p, image, include_self=False)
    expected = oracle.dense_crf(p, image, include_self=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_options_change_the_result():
    p, image = draw(0, 6, 7)
    results = [of_one(exact, p, image, **options) for options in VARIANTS]
    for i, one in enumerate(results):
        for other in results[:i]:
            assert np.abs(one - other).max() > 1e-3


@BOTH
@pytest.mark.parametrize("max_side", [64, 4])
def test_a_constant_image_with_equal_probabilities_stays_as_it_is(solve, max_side):
    p, image = np.full((7, 10, 5), 0.2, np.float32), np.full((7, 10, 3), 255, np.uint8)
    np.testing.assert_allclose(of_one(solve, p, image, max_side=max_side), p, rtol=1e-5)


@BOTH
def test_neighbors_of_the_same_color_outvote_a_pixel(solve):
    p = np.full((6, 8, 2), [0.8, 0.2], np.float32)
    p[:, 4:] = [0.2, 0.8]
    p[3, 1], p[3, 6] = [0.3, 0.7], [0.7, 0.3]
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 200
    found = of_one(solve, p, image)
    assert (found.argmax(axis=-1) == (np.arange(8) >= 4)).all()
    image[3, 1] = 90  # of a color of its own, the pixel keeps its label
    assert of_one(solve, p, image)[3, 1].argmax() == 1


@BOTH
@pytest.mark.parametrize("max_side", [64, 5])
@pytest.mark.parametrize("margin", [(0, 3), (4, 5)])
def test_the_margin_is_inert(solve, margin, max_side):
    p, image = draw(3, 6, 7)
    options = CrfOptions(max_side=max_side, floor=1e-4)
    alone = of_one(solve, p, image, max_side=max_side, floor=1e-4)
    pad = ((0, margin[0]), (0, margin[1]), (0, 0))
    for garbage in (1e6, np.nan):
        wide = [np.pad(x, pad, constant_values=garbage)[None] for x in (p, image)]
        size = jnp.array([[6, 7]])
        found = np.asarray(solve(*(jnp.asarray(x) for x in wide), size, options=options))[0]
        np.testing.assert_allclose(found[:6, :7], alone, atol=1e-5)
        assert not found[6:].any() and not found[:, 7:].any()


@BOTH
def test_no_cells_get_nothing(solve):
    p, image = draw(4, 6, 7)
    for size in ((0, 0), (0, 4), (4, 0)):
        found = solve(p[None], image[None], jnp.array([size]), options=CrfOptions())
        np.testing.assert_array_equal(found, np.zeros((1, 6, 7, 3)))


@BOTH
@pytest.mark.parametrize(
    ("normalization", "max_side"), [("symmetric", 64), ("symmetric", 4), ("rows", 4), ("none", 64)]
)
def test_certain_probabilities_give_finite_distributions(solve, normalization, max_side):
    p = np.eye(3, dtype=np.float32)[np.random.default_rng(5).integers(0, 3, (6, 8))]
    p[2, 2] = 0.0  # no label at all
    for image in (draw(5, 6, 8)[1], np.zeros((6, 8, 3), np.uint8)):
        found = of_one(solve, p, image, normalization=normalization, max_side=max_side)
        assert np.isfinite(found).all() and (found >= 0).all()
        np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)


@BOTH
def test_no_probability_falls_below_the_floor(solve):
    p, image, floor = *scene(12, 10), 1e-4
    raised = np.maximum(of_one(solve, p, image), floor)
    found = of_one(solve, p, image, floor=floor)
    np.testing.assert_allclose(found, raised / raised.sum(axis=-1, keepdims=True), atol=1e-6)
    assert found.min() >= floor / (1 + 4 * floor) and (raised == floor).any()


@BOTH
def test_a_masked_label_is_as_if_it_were_not_there(solve):
    p, image = draw(6, 7, 6, num_labels=5)
    kept, options = [0, 3, 4], CrfOptions(max_side=5, floor=1e-3)
    mask = np.isin(np.arange(5), kept)[None]
    size = jnp.array([[7, 6]])
    found = solve(p[None], image[None], size, options=options, label_mask=jnp.asarray(mask))
    alone = solve(p[None][..., kept], image[None], size, options=options)
    np.testing.assert_allclose(found[..., kept], alone, atol=1e-6)
    assert not np.asarray(found)[..., [1, 2]].any()


@BOTH
def test_a_batch_equals_its_images(solve):
    drawn = [draw(seed, 6, 8) for seed in range(4)]
    p, image = (jnp.asarray(np.stack(x)) for x in zip(*drawn, strict=True))
    size, options = jnp.array([[6, 8], [3, 7], [4, 2], [0, 0]]), CrfOptions(max_side=4)
    together = solve(p, image, size, options=options)
    for i in range(4):
        alone = solve(p[i : i + 1], image[i : i + 1], size[i : i + 1], options=options)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)
    one = jax.vmap(lambda *x: solve(*(a[None] for a in x), options=options)[0])
    np.testing.assert_allclose(one(p, image, size), together, atol=1e-5)


def test_bytes_and_floats_of_any_precision():
    p, image = scene(6, 7, num_labels=3)
    low = jnp.asarray(p, jnp.bfloat16)
    found = of_one(exact, low, image)
    assert found.dtype == np.float32
    expected = of_one(exact, np.asarray(low, np.float32), image.astype(np.float32))
    np.testing.assert_array_equal(found, expected)


@BOTH
def test_turned_images_give_turned_results(solve):
    p, image = draw(7, 9, 12)
    straight = of_one(solve, p, image, max_side=7)
    for turn in (np.flipud, np.fliplr, lambda x: np.swapaxes(x, 0, 1)):
        turned = of_one(solve, turn(p).copy(), turn(image).copy(), max_side=7)
        np.testing.assert_allclose(turned, turn(straight), atol=2e-5)


@BOTH
def test_the_result_is_a_constant_to_gradients(solve):
    p, image = (jnp.asarray(x)[None] for x in draw(8, 5, 6))

    def loss(p, image):
        q = solve(p, image, jnp.array([[5, 6]]), options=CrfOptions())
        return jnp.sum(q**2)

    for gradient in jax.grad(loss, argnums=(0, 1))(p, image):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


# ---------------------------------------------------------------------------------------------------
# Coarser grids


def blocks(seed, height, width, side):
    """Return an image whose squares of `side` pixels are all of one color, with probabilities that are."""
    return tuple(x.repeat(side, 0).repeat(side, 1) for x in draw(seed, height, width))


@pytest.mark.parametrize("options", [{}, {"normalization": "rows"}, {"include_self": False}])
def test_cells_count_as_often_as_they_have_pixels(options):
    """Where colors alone count, cells of one color stand for their pixels exactly.

    A pixel's message to itself is that of q interpolated, which is exact at the centers of cells.
    """
    p, image = blocks(9, 4, 6, 3)
    options = {"gaussian_weight": 0.0, "bilateral_xy": 1e6, **options}
    want = of_one(exact, p, image, **options)
    for solve in (exact, upsampled):
        found = of_one(solve, p, image, max_side=6, **options)
        np.testing.assert_allclose(found[1::3, 1::3], want[1::3, 1::3], atol=2e-5)
    if "include_self" not in options:
        np.testing.assert_allclose(found, want, atol=2e-5)


def test_gaussian_messages_of_cells_are_those_of_their_pixels():
    """One iteration: the energies at cells are averages over pixels of equal p."""
    p, _ = blocks(10, 4, 6, 3)
    options = {"bilateral_weight": 0.0, "gaussian_xy": 60.0, "num_iterations": 1}
    image = np.zeros((12, 18, 3), np.uint8)
    energy = np.log(of_one(exact, p, image, **options)) - np.log(p)
    energy -= energy[..., :1]
    q = p * np.exp(energy.reshape(4, 3, 6, 3, 3).mean(axis=(1, 3)).repeat(3, 0).repeat(3, 1))
    found = of_one(exact, p, image, max_side=6, **options)
    middle = found[1::3, 1::3]  # interpolation is exact at centers
    np.testing.assert_allclose(middle, (q / q.sum(axis=-1, keepdims=True))[1::3, 1::3], atol=2e-5)


@pytest.mark.parametrize(("shape", "max_side"), [((30, 40), 32), ((17, 40), 16)])
def test_coarser_grids_come_close_to_the_exact_form(shape, max_side):
    p, image = scene(*shape)
    want = of_one(exact, p, image)
    for solve, difference, share in ((exact, 0.08, 0.93), (upsampled, 0.04, 0.97)):
        found = of_one(solve, p, image, max_side=max_side)
        np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)
        assert np.abs(found - want).mean() < difference
        assert (found.argmax(axis=-1) == want.argmax(axis=-1)).mean() > share
    assert (p.argmax(axis=-1) == want.argmax(axis=-1)).mean() < 0.97  # there was something to do


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization": "columns"}, "normalization(.|\n)*columns"),
        ({"gaussian_xy": 0.0}, r"gaussian_xy.* 0.0"),
        ({"bilateral_rgb": -1.0}, r"bilateral_rgb.* -1.0"),
        ({"bilateral_weight": -1.0}, r"bilateral_weight.* -1.0"),
        ({"max_side": 0}, r"max_side.* 0"),
        ({"floor": 1.0}, r"floor.* 1.0"),
        ({"num_iterations": -1}, r"num_iterations.* -1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        CrfOptions(**options)
    with pytest.raises(ConfigError):
        dataclasses.replace(CrfOptions(), floor=-0.5)
