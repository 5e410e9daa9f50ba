"""Soft proposals: their generation against NumPy, large maps in bounded memory, and their share of a forward pass."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.published import Size, random_batch
from wsod_jax.commands.benchmarks.timing import Measure, compiled, seconds, working_mib
from wsod_jax.nn.spn_network import SoftProposal
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.ops.soft_proposal import soft_proposals
from wsod_jax.types import Batch, FeatureMap, Params

EPSILON_FACTOR = 0.15
NUM_STEPS, TOLERANCE = 20, 1e-4


def draw_maps(batch: int, side: int, channels: int) -> jax.Array:
    """Draw features [b, h, w, d] as a ReLU leaves them: about half are 0."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((batch, side, side, channels), np.float32)
    return jnp.asarray(np.maximum(values, 0))


def full_size(features: jax.Array) -> jax.Array:
    """Return sizes [b, 2] that make every cell valid."""
    return jnp.full((len(features), 2), features.shape[1], jnp.int32)


# ---------------------------------------------------------------------------------------------------
# NumPy


def pairwise_distances(nodes: np.ndarray) -> np.ndarray:
    """Return the distances [n, n] of nodes [n, d] by one matrix product."""
    squares = (nodes**2).sum(axis=1)
    squared = squares[:, None] + squares[None] - 2 * nodes @ nodes.T
    np.fill_diagonal(squared, 0)
    return np.sqrt(np.maximum(squared, 0))


def numpy_walk(features: np.ndarray) -> np.ndarray:
    """Return M [h, w] of one map [h, w, d] as the paper states it: D' as a matrix, and products with it."""
    height, width, channels = features.shape
    cells = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
    apart = ((cells[:, None] - cells[None]) ** 2).sum(axis=2)
    reach = EPSILON_FACTOR * np.sqrt(height * width)
    near = np.exp(-apart / (2 * reach**2)).astype(features.dtype)
    weights = pairwise_distances(features.reshape(-1, channels)) * near
    transfer = weights / weights.sum(axis=0)
    mass = np.full(height * width, 1 / (height * width), features.dtype)
    for _ in range(NUM_STEPS):
        change = transfer @ mass - mass
        if np.linalg.norm(change) < TOLERANCE:
            break
        mass = mass + change
        mass = mass / mass.sum()
    return mass.reshape(height, width)


def generation(batch: int, side: int, channels: int, num_slow: int, repeats: int) -> list[Measure]:
    """Time the proposal maps of a batch against NumPy's, whose images take equally long."""
    features = draw_maps(batch, side, channels)
    size = full_size(features)
    program = compiled(soft_proposals, features, size)
    fast = seconds(program, features, size, repeats=repeats)
    found = np.asarray(program(features, size))[:num_slow]
    subject = f"batch of {batch} at {side}x{side}x{channels}"
    rows = [
        Measure(f"walk, {subject}", 1e3 * fast, "ms", f"{1e6 * fast / batch:,.0f} us per image"),
        Measure("  working memory", working_mib(program), "MiB"),
    ]
    slow = np.asarray(features[:num_slow])
    started = time.perf_counter()
    expected = np.stack([numpy_walk(image) for image in slow])
    elapsed = (time.perf_counter() - started) * batch / num_slow
    difference = np.abs(expected - found).max() / expected.max()
    note = f"timed on {num_slow} images; maps differ by {difference:.1e} of their maximum"
    rows += [
        Measure("  walk in NumPy, distances by one matrix product", 1e3 * elapsed, "ms", note),
        Measure("    the walk is faster by", elapsed / fast, "x"),
    ]
    return rows


# ---------------------------------------------------------------------------------------------------
# Large maps


def large_map(side: int, channels: int, block_nodes: int) -> list[Measure]:
    """Measure one map whose D' is made in blocks: memory, and both solvers' times."""
    features = draw_maps(1, side, channels)
    size = full_size(features)

    def program(**options) -> jax.stages.Compiled:
        return compiled(functools.partial(soft_proposals, **options), features, size)

    held = working_mib(program())  # compiled, never run
    rows = [Measure(f"D' held, one map of {side}x{side}x{channels}: working memory", held, "MiB")]
    times = {}
    for name, options in (
        ("stationary", {"solver": "stationary"}),
        ("walk, default tolerance", {}),
        ("walk, tolerance 0", {"tolerance": 0.0}),
    ):
        streamed = program(block_nodes=block_nodes, **options)
        times[name] = seconds(streamed, features, size, repeats=1)
        rows += [
            Measure(f"in blocks of {block_nodes}: {name}", 1e3 * times[name], "ms"),
            Measure("  working memory", working_mib(streamed), "MiB"),
        ]
    for name in list(times)[1:]:
        ratio = times[name] / times["stationary"]
        rows.append(Measure(f"  stationary is faster than the {name}, by", ratio, "x"))
    return rows


# ---------------------------------------------------------------------------------------------------
# The module in its network


def share_of_forward_pass(batch: int, pixels: int, channels: int, repeats: int) -> list[Measure]:
    """Time the module, coupling included, and VGG16's forward pass."""
    size = Size(batch, (pixels, pixels), (pixels, pixels))
    backbone, images = Vgg16(dilated=False), jax.tree.map(jnp.asarray, random_batch(size))
    one = jax.tree.map(lambda x: x[:1], images)
    params = jax.jit(backbone.init)(jax.random.key(0), one)

    def forward(params: Params, images: Batch) -> jax.Array:
        return backbone.apply(params, images)["c5"].features

    arguments = params, images
    whole = seconds(compiled(forward, *arguments), *arguments, repeats=repeats)
    features = draw_maps(batch, pixels // backbone.stride, channels)
    maps = FeatureMap(features, full_size(features), 16.0)

    def module(maps: FeatureMap) -> tuple[jax.Array, jax.Array]:
        coupled = SoftProposal().apply({}, maps)
        return coupled.maps.features, coupled.proposal_map

    part = seconds(compiled(module, maps), maps, repeats=repeats)
    subject = f"batch of {batch} at {pixels}x{pixels} px"
    return [
        Measure("VGG16 forward, stride 16", 1e3 * whole, "ms", subject),
        Measure(
            "soft proposal module, coupling included", 1e3 * part, "ms", f"{channels} channels"
        ),
        Measure("  share of the forward pass", 100 * part / whole, "%"),
    ]


def soft_proposal(*, small: bool, repeats: int) -> list[Measure]:
    """Time soft proposals of batches and of one large map, and the module's share of a forward pass."""
    if small:
        return [
            *generation(3, 5, 8, num_slow=2, repeats=repeats),
            *large_map(12, 4, block_nodes=32),
            *share_of_forward_pass(1, 32, 8, repeats),
        ]
    return [
        *generation(16, 14, 1024, num_slow=16, repeats=repeats),
        *generation(16, 35, 1024, num_slow=2, repeats=repeats),
        *large_map(128, 64, block_nodes=512),
        *share_of_forward_pass(16, 224, 1024, repeats=min(repeats, 3)),
    ]
