"""RoI pooling against literal loops: values exactly, gradients to the very cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.oracles import roi as oracle
from wsod_jax.ops import roi, window_max
from wsod_jax.ops.roi import roi_align, roi_max_pool

HEIGHT, WIDTH, DEPTH, BINS, SCALE = 19, 26, 3, 7, 1 / 8
SIZES = np.array([[HEIGHT, WIDTH], [HEIGHT - 4, WIDTH - 3]], np.int32)  # valid part of two maps
pool = jax.jit(functools.partial(roi_max_pool, output_size=BINS, spatial_scale=SCALE))


def pool_and_pull(features, boxes, mask, map_size, grad):
    """Return the pooled maps and the gradient that `grad` sends to the features."""

    def run(features):
        return roi_max_pool(features, boxes, mask, map_size, output_size=BINS, spatial_scale=SCALE)

    pooled, pull = jax.vjp(run, features)
    return pooled, pull(grad)[0]


jitted_pool_and_pull = jax.jit(pool_and_pull)


def border_boxes(height, width):
    """List boxes that touch, cross or miss the border of an image, and the smallest ones."""
    return [
        [0, 0, width, height],
        [-40, -40, width + 40, height + 40],
        [-900, -900, 900, 900],
        [-1e9, -1e9, 1e9, 1e9],
        [0, 0, 1, 1],
        [width - 1, height - 1, width, height],
        [width, height, width + 9, height + 9],
        [-90, -90, -50, -50],
        [3, 3, 3, 3],
        [60, 60, 20, 20],
        [0, 0, width, 1],
        [0, 0, 1, height],
        [4, 12, 20, 28],  # every edge at half a cell
        [-4, -12, 20, 28],
        [0, height - 3, width, height + 300],
    ]


def make_case(seed, values="ties", num_boxes=40):
    rng = np.random.default_rng(seed)
    shape = (2, HEIGHT, WIDTH, DEPTH)
    features = rng.integers(0, 3, shape) if values == "ties" else rng.permutation(np.prod(shape))
    features = features.reshape(shape).astype(np.float32)
    height, width = 8 * HEIGHT, 8 * WIDTH
    low = rng.uniform(0, 1, (2, num_boxes, 2)) * [width, height]
    high = np.minimum(low + rng.exponential(60, (2, num_boxes, 2)), [width, height])
    boxes = np.concatenate([low, high], axis=-1)
    special = border_boxes(height, width)
    boxes[:, : len(special)] = special
    grad = rng.integers(-4, 5, (2, num_boxes, BINS, BINS, DEPTH))
    mask = rng.random((2, num_boxes)) < 0.9
    return features, boxes.astype(np.float32), mask, SIZES, grad.astype(np.float32)


def expect_oracle(case, pooled, gradient):
    features, boxes, mask, sizes, grad = case
    for i in range(2):
        value, source = oracle.roi_max_pool(features[i], boxes[i], mask[i], sizes[i], BINS, SCALE)
        np.testing.assert_array_equal(pooled[i], value)
        expected = oracle.roi_max_pool_grad(source, grad[i], features[i].shape)
        np.testing.assert_array_equal(gradient[i], expected)


@pytest.mark.parametrize("values", ["ties", "distinct"])
def test_max_pool_equals_the_literal_loops(values):
    case = make_case(0, values)
    pooled, gradient = jitted_pool_and_pull(*case)
    expect_oracle(case, pooled, gradient)
    np.testing.assert_array_equal(pool(*case[:4]), pooled)  # not differentiated: another path


def test_max_pool_equals_the_literal_loops_when_every_box_is_inside():
    case = make_case(1)
    boxes = np.clip(case[1], 0, [8 * WIDTH, 8 * HEIGHT, 8 * WIDTH, 8 * HEIGHT])
    case = (case[0], boxes.astype(np.float32), *case[2:])
    expect_oracle(case, *jitted_pool_and_pull(*case))


pool_inside = jax.jit(
    functools.partial(roi_max_pool, output_size=BINS, spatial_scale=SCALE, inside=True)
)


def inside_case(seed, room_px=0):
    """A case whose boxes reach no further than `room_px` beyond the valid part of their map."""
    features, boxes, mask, sizes, grad = make_case(seed)
    limits = np.tile(8 * sizes[:, ::-1] + room_px, 2)[:, None]
    return features, np.clip(boxes, 0, limits).astype(np.float32), mask, sizes, grad


@pytest.mark.parametrize("room_px", [0, 8 * roi.SHORT_CELLS])
def test_max_pool_of_boxes_known_to_be_inside_equals_the_literal_loops(room_px):
    features, boxes, mask, sizes, grad = case = inside_case(1, room_px)
    pooled, pull = jax.vjp(lambda f: pool_inside(f, boxes, mask, sizes), features)
    expect_oracle(case, pooled, pull(grad)[0])
    np.testing.assert_array_equal(pool_inside(features, boxes, mask, sizes), pooled)


def test_max_pool_cuts_boxes_that_are_said_to_be_inside_and_are_not():
    features, boxes, mask, sizes, _ = make_case(1)
    _, cut, *_ = inside_case(1, 8 * roi.SHORT_CELLS)
    assert (cut != boxes).any()
    np.testing.assert_array_equal(
        pool_inside(features, boxes, mask, sizes), pool_inside(features, cut, mask, sizes)
    )


def test_max_pool_of_boxes_known_to_be_inside_compiles_one_program():
    *arguments, _ = make_case(0)

    def num_branches(operation):
        step = jax.jit(jax.grad(lambda f, *a: operation(f, *a).sum()))
        return step.lower(*arguments).as_text().count("stablehlo.case")

    assert num_branches(pool) == 2  # forward and backward
    assert num_branches(pool_inside) == 0


def test_max_pool_sends_the_gradient_of_a_constant_map_to_first_cells():
    case = make_case(2)
    case = (np.zeros_like(case[0]), *case[1:])
    expect_oracle(case, *jitted_pool_and_pull(*case))


def test_max_pool_in_blocks_of_channels_equals_all_at_once(monkeypatch):
    case = make_case(0)
    monkeypatch.setattr(window_max, "TABLE_BYTES", 1)
    pooled, gradient = jax.jit(lambda *a: pool_and_pull(*a))(*case)  # a function traced anew
    expect_oracle(case, pooled, gradient)


def test_max_pool_bins_are_exact_at_sizes_where_float32_edges_are_not():
    width, sizes = 130, (57, 114, 121)
    features = np.random.default_rng(0).permutation(2 * width).reshape(1, 2, width, 1)
    x1 = np.tile([0, 1, 5], len(sizes)) * 8
    x2 = x1 + (np.repeat(sizes, 3) - 1) * 8
    boxes = np.stack([x1, 0 * x1, x2, 0 * x1 + 8], axis=1).astype(np.float32)[None]
    mask, size = np.ones(boxes.shape[:2], bool), np.array([[2, width]], np.int32)
    features = features.astype(np.float32)
    pooled = pool(features, boxes, mask, size)
    expected, _ = oracle.roi_max_pool(features[0], boxes[0], mask[0], size[0], BINS, SCALE)
    np.testing.assert_array_equal(pooled[0], expected)


def test_max_pool_in_bfloat16_picks_the_same_cells():
    features, boxes, mask, sizes, grad = make_case(0)
    half = jnp.asarray(features, jnp.bfloat16), boxes, mask, sizes, jnp.asarray(grad, jnp.bfloat16)
    pooled, gradient = jitted_pool_and_pull(*half)
    assert pooled.dtype == gradient.dtype == jnp.bfloat16
    expected, expected_gradient = jitted_pool_and_pull(features, boxes, mask, sizes, grad)
    np.testing.assert_array_equal(pooled.astype(jnp.float32), expected)
    np.testing.assert_array_equal(
        gradient,
        jnp.asarray(expected_gradient, jnp.bfloat16),  # summed in float32, rounded once
    )


OPERATIONS = {
    "max": pool,
    "max_inside": pool_inside,
    "align": jax.jit(functools.partial(roi_align, output_size=BINS, spatial_scale=SCALE)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_padding_of_maps_and_proposals_is_inert(name):
    features, boxes, mask, sizes, grad = make_case(4)

    def run(features, boxes, mask, grad):
        pooled, pull = jax.vjp(lambda f: OPERATIONS[name](f, boxes, mask, sizes), features)
        return pooled, pull(grad)[0]

    pooled, gradient = run(features, boxes, mask, grad)
    wide = np.pad(features, ((0, 0), (0, 3), (0, 5), (0, 0)), constant_values=1e3)
    for i, (height, width) in enumerate(sizes):
        wide[i, height:] = wide[i, :, width:] = 1e3
    more = ((0, 0), (0, 9), (0, 0))
    wide_pooled, wide_gradient = run(
        wide,
        np.pad(boxes, more, mode="reflect"),
        np.pad(mask, more[:2]),
        np.pad(grad, (*more, (0, 0), (0, 0)), constant_values=7),
    )
    num = boxes.shape[1]
    np.testing.assert_allclose(wide_pooled[:, :num], pooled, atol=1e-5)
    np.testing.assert_array_equal(wide_pooled[:, num:], 0)
    np.testing.assert_array_equal(wide_pooled[:, :num][~mask], 0)
    np.testing.assert_allclose(wide_gradient[:, :HEIGHT, :WIDTH], gradient, atol=1e-4)
    for i, (height, width) in enumerate(sizes):
        assert not wide_gradient[i, height:].any() and not wide_gradient[i, :, width:].any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_equals_its_images_also_under_vmap(name):
    operation, arguments = OPERATIONS[name], make_case(5)[:4]
    pooled = operation(*arguments)
    mapped = jax.vmap(operation)(*(a[:, None] for a in arguments))[:, 0]
    for i in range(2):
        single = operation(*(a[i : i + 1] for a in arguments))
        np.testing.assert_allclose(pooled[i], single[0], rtol=1e-6)
        np.testing.assert_allclose(mapped[i], single[0], rtol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_without_proposals_gives_zeros_and_no_gradient(name):
    features, boxes, mask, sizes, _ = make_case(5)
    empty = OPERATIONS[name](features, boxes[:, :0], mask[:, :0], sizes)
    assert empty.shape == (2, 0, BINS, BINS, DEPTH)
    boxes = np.full_like(boxes, np.nan)
    operation = OPERATIONS[name]
    gradient = jax.grad(lambda f: operation(f, boxes, mask & False, sizes).sum())(features)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(operation(features, boxes, mask & False, sizes), 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_device_pools_its_own_images(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    case = make_case(0)
    arguments = jax.device_put(case[:4], NamedSharding(mesh, PartitionSpec("data")))
    operation = OPERATIONS[name]

    def run(features, *rest):
        pooled, pull = jax.vjp(lambda f: operation(f, *rest), features)
        return pooled, pull(pooled)[0]

    compiled = jax.jit(run).lower(*arguments).compile()
    assert "all-gather" not in compiled.as_text()
    for value, expected in zip(compiled(*arguments), run(*case[:4]), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_align_equals_the_literal_loops(aligned, num_samples):
    features, boxes, mask, sizes, _ = make_case(6, "distinct")
    boxes[:, 3] = 30  # one finite box in place of the one of 10**9 pixels
    pooled = roi_align(
        *map(jnp.asarray, (features, boxes, mask, sizes)),
        output_size=3,
        spatial_scale=SCALE,
        sampling_ratio=num_samples,
        aligned=aligned,
    )
    for i in range(2):
        case = features[i], boxes[i], mask[i], sizes[i], 3, SCALE, num_samples, aligned
        np.testing.assert_allclose(pooled[i], oracle.roi_align(*case), rtol=1e-4, atol=0.05)


def test_align_in_blocks_of_proposals_equals_all_at_once(monkeypatch):
    arguments = tuple(jnp.asarray(x) for x in make_case(7)[:4])
    whole = roi_align(*arguments, output_size=3, spatial_scale=SCALE)
    one = 4 * 2 * 3 * HEIGHT * DEPTH
    monkeypatch.setattr(roi, "ALIGN_BYTES", 7 * one)  # 40 proposals: 6 blocks of 7, padded
    blocks = roi_align(*arguments, output_size=3, spatial_scale=SCALE)
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_lowers_for_accelerators(name):
    case = make_case(0)
    step = jax.jit(jax.grad(lambda f, *a: OPERATIONS[name](f, *a).sum()))
    exported = jax.export.export(step, platforms=["tpu", "cuda"])(*case[:4])
    assert exported.platforms == ("tpu", "cuda")
