"""Pooling of regions of interest: exact RoI max pooling, and RoIAlign as matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from wsod_jax.ops.window_max import Cover, Longest, cover_intervals, max_over_rectangles

LIMIT_CELLS = 2**20  # box edges are clipped to this, so that integers stay small
SHORT_CELLS = 4  # cells by which a map may fall short of its image (convolutions without padding)
ALIGN_BYTES = 256 * 2**20  # limit of the half-pooled maps of one block of proposals


def roi_max_pool(
    features: Float[Array, "b h w d"],
    boxes: Float[Array, "b r 4"],
    mask: Bool[Array, "b r"],
    map_size: Int[Array, "b 2"],
    *,
    output_size: int,
    spatial_scale: float,
    inside: bool = False,
) -> Float[Array, "b r {output_size} {output_size} d"]:
    """Pool each box's part of the feature map onto a fixed grid by maxima over quantized bins.

    With x1, x2 = round(spatial_scale * edges) (half away from zero) and n = max(x2 - x1 + 1, 1), bin i
    covers the map's cells from x1 + floor(i n / p) to x1 + ceil((i + 1) n / p), end excluded;
    neighboring bins may share a cell. The same holds along y.

    Args:
      features: [b, h, w, d] finite, float32 or bfloat16.
      boxes: [b, r, 4] xyxy in pixels; may be empty and, unless `inside`, extend outside the image.
      mask: [b, r] True = real proposal.
      map_size: [b, 2] valid (rows, columns) of the map; cells beyond are never read.
      output_size: p, bins per side.
      spatial_scale: map cells per pixel, 1 / stride.
      inside: True promises that all real boxes are inside their image, as proposals clipped at reading are. Results
        are the same, and only the program for such boxes is compiled. A box that extends outside nevertheless is
        clipped `SHORT_CELLS` beyond the map.

    Returns:
      [b, r, p, p, d] in the features' type; 0 in bins without a cell and where masked.

    Ties: the gradient of a bin goes to its first maximum, rows before columns.   Gradient: to
    `features` only.   Cost: O(b h w d log(h / p) log(w / p) + b r p^2 d) operations; blocks of channels
    limit working memory to about `TABLE_BYTES` plus a few times the output.
    Source: Girshick 2015, section 2.1; bins as in Caffe's RoI pooling layer, which every released
    OICR-family model uses. Differs in that bin edges are exact integers: in float32 they are one cell off
    at some sizes, such as 57, 114 and 121 cells.
    """
    edges = spatial_scale * jax.lax.stop_gradient(boxes).astype(jnp.float32)
    edges = _round_half_away(jnp.clip(edges, -LIMIT_CELLS, LIMIT_CELLS))  # [b, r, 4] int32
    if inside:
        limit = jnp.tile(map_size[:, None, ::-1] + SHORT_CELLS, 2)  # [b, 1, 4]
        edges = jnp.clip(edges, 0, limit)
    rows = _bins(edges[..., 1], edges[..., 3], map_size[:, 0], output_size)
    columns = _bins(edges[..., 0], edges[..., 2], map_size[:, 1], output_size)
    rows = rows._replace(filled=rows.filled & mask[..., None])
    longest = (-(-(n + SHORT_CELLS + 1) // output_size) + 1 for n in features.shape[1:3])
    return max_over_rectangles(features, rows, columns, Longest(*longest, bounded=inside))


def _round_half_away(x: Array) -> Array:
    whole = jnp.floor(jnp.abs(x))  # adding 0.5 first would round 0.49999997 up
    whole = whole + (jnp.abs(x) - whole >= 0.5)
    return (jnp.sign(x) * whole).astype(jnp.int32)


def _bins(low: Array, high: Array, size: Array, num_bins: int) -> Cover:
    """Cut intervals of cells [b, r] into bins, inside maps of `size` [b] cells."""
    length = jnp.maximum(high - low + 1, 1)[..., None]
    i = jnp.arange(num_bins)[None, None]
    start = low[..., None] + i * length // num_bins  # [b, r, p]
    end = low[..., None] - (-(i + 1) * length // num_bins)
    size = size[:, None, None]
    return cover_intervals(jnp.clip(start, 0, size), jnp.clip(end, 0, size))


def roi_align(
    features: Float[Array, "b h w d"],
    boxes: Float[Array, "b r 4"],
    mask: Bool[Array, "b r"],
    map_size: Int[Array, "b 2"],
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "b r {output_size} {output_size} d"]:
    """Pool each box's part of the feature map onto a fixed grid by averages of bilinear samples.

    Sample positions form a grid, and bilinear interpolation is a product of a vertical and a horizontal
    weight, so out[i, j] = sum_yx V[i, y] H[j, x] features[y, x]: two matrix products, no gathers.

    Args:
      features: [b, h, w, d] finite, float32 or bfloat16.
      boxes: [b, r, 4] xyxy in pixels.
      mask: [b, r] True = real proposal.
      map_size: [b, 2] valid (rows, columns) of the map; cells beyond have no weight.
      output_size: p, bins per side.
      spatial_scale: map cells per pixel, 1 / stride.
      sampling_ratio: samples per bin and side, at least 1.
      aligned: cell n's center is at n + 0.5; if False it is at n, and boxes are at least a cell wide, as
        in the first release of RoIAlign.

    Returns:
      [b, r, p, p, d] in the features' type; 0 where masked. Samples more than a cell outside the map
      count as 0, those nearer take the border's value.

    Gradient: to `features` only.   Cost: O(b r p h w d) operations; blocks of proposals limit the
    intermediate to about `ALIGN_BYTES`.
    Source: He et al. 2017, section 3; `aligned` as in Detectron2. Samples follow torchvision's operator.
    """
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32) * spatial_scale
    weights = [
        _align_weights(
            boxes[..., axis],
            boxes[..., axis + 2],
            map_size[:, 1 - axis],
            (output_size, sampling_ratio, features.shape[2 - axis]),
            aligned,
        )
        for axis in (1, 0)
    ]
    # [b, r, p, h], [b, r, p, w]
    vertical, horizontal = (
        jnp.where(mask[..., None, None], w, 0).astype(features.dtype) for w in weights
    )

    def pool(weights: tuple[Array, Array]) -> Array:
        vertical, horizontal = weights
        exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
        strips = jnp.einsum("brqx,byxd->brqyd", horizontal, features, **exact)
        strips = strips.astype(features.dtype)
        return jnp.einsum("brpy,brqyd->brpqd", vertical, strips, **exact).astype(features.dtype)

    return _by_proposal_blocks(pool, vertical, horizontal, features.shape)


def _align_weights(
    low: Array, high: Array, size: Array, shape: tuple[int, int, int], aligned: bool
) -> Array:
    """Return each bin's weights on the cells of one axis, [b, r, p, length]."""
    num_bins, num_samples, length = shape
    start = low - 0.5 if aligned else low
    extent = high - low if aligned else jnp.maximum(high - low, 1)
    step = (jnp.arange(num_bins * num_samples) + 0.5) / (num_bins * num_samples)
    position = start[..., None] + extent[..., None] * step[None, None]  # [b, r, samples]
    limit = size[:, None, None].astype(jnp.float32)
    inside = (position >= -1) & (position <= limit)
    position = jnp.clip(position, 0, limit - 1)
    cell = jnp.arange(length, dtype=jnp.float32)[None, None, None]
    hat = jnp.maximum(1 - jnp.abs(position[..., None] - cell), 0)
    hat = jnp.where(inside[..., None], hat, 0)  # [b, r, samples, length]
    return jnp.mean(hat.reshape(*low.shape, num_bins, num_samples, length), axis=3)


def _by_proposal_blocks(pool, vertical: Array, horizontal: Array, shape: tuple[int, ...]) -> Array:
    """Apply `pool` to blocks of as many proposals as `ALIGN_BYTES` allows."""
    batch, height, _, channels = shape
    num_rois, num_bins = vertical.shape[1:3]
    roi_bytes = 4 * batch * num_bins * height * channels
    num_blocks = min(max(-(-num_rois * roi_bytes // ALIGN_BYTES), 1), max(num_rois, 1))
    if num_blocks == 1:
        return pool((vertical, horizontal))
    size = -(-num_rois // num_blocks)

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, num_blocks * size - num_rois), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(batch, num_blocks, size, *x.shape[2:]), 1, 0)

    pooled = jax.lax.map(pool, (split(vertical), split(horizontal)))  # [blocks, b, size, p, p, d]
    pooled = jnp.moveaxis(pooled, 0, 1).reshape(batch, -1, *pooled.shape[3:])
    return pooled[:, :num_rois]
