"""From class activation maps to points and boxes, for methods that localize without proposals.

A class activation map scores a class in every cell of the feature map. It is resized to the pixels of the original
image; points and boxes are read from the resized map. A constant map gives the image's center and the whole image, and
so does a map without cells (an image smaller than a cell), with score 0.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.ops.masks import tight_box
from wsod_jax.types import Mask

Resizing = Literal["align_corners", "half_pixel"]
BoxMode = Literal["tightest", "components"]
EVEN_TOLERANCE = 1e-9  # of the map's largest magnitude: differences below are rounding


def _positions(cells: int, pixels: int, how: Resizing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per pixel the cells before and after it, [pixels] int, and the interpolation weight of the latter."""
    pixel = np.arange(pixels)
    if how == "align_corners":
        numerator, denominator = pixel * (cells - 1), max(pixels - 1, 1)
    elif how == "half_pixel":
        numerator, denominator = (2 * pixel + 1) * cells - pixels, 2 * pixels
    else:
        raise ValueError(f"unknown resizing {how!r}; allowed: 'align_corners', 'half_pixel'")
    numerator = np.clip(numerator, 0, (cells - 1) * denominator)
    low = numerator // denominator
    return low, np.minimum(low + 1, cells - 1), (numerator % denominator) / denominator


def _interpolate(values: np.ndarray, pixels: int, how: Resizing) -> np.ndarray:
    """Return `values` with axis 0 resized to `pixels`."""
    low, high, share = _positions(values.shape[0], pixels, how)
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return values[low] + share * (values[high] - values[low])


def resize_map(
    values: np.ndarray, height: int, width: int, how: Resizing = "align_corners"
) -> np.ndarray:
    """Resize a map to an image by bilinear interpolation.

    `align_corners`: the centers of the corner cells coincide with the centers of the corner pixels, so pixel i of n is
    at cell i (m - 1) / (n - 1) of m. `half_pixel`: cells tile the image, so pixel i is at (i + 1/2) m / n - 1/2, and
    the map is constant beyond the centers of the border cells.

    Args:
      values: [h, w] or [h, w, c] finite.
      height, width: of the image in pixels, at least 1.
      how: see above; `align_corners` is what the released code's PyTorch 0.2 did.
    Returns:
      [height, width] or [height, width, c] float64, between the map's minimum and maximum. A map of one cell gives
      a constant, equal cells give exactly equal pixels, a map without cells gives zeros.
    Raises:
      DataError: the map is not of that shape or not finite, or the image has no pixel.
      ValueError: unknown `how`.
    Cost: O(height * width * c).

    Source: Zhu et al. 2017 (SPN), section 3.3 and its released code.
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (2, 3) or height < 1 or width < 1:
        raise DataError(
            f"cannot resize a map of shape {values.shape} to {height} x {width} pixels; "
            "needed: [h, w] or [h, w, c], and an image of at least one pixel"
        )
    _check_finite(values)
    if 0 in values.shape[:2]:
        return np.zeros((height, width, *values.shape[2:]))
    rows = _interpolate(values, height, how)
    return np.swapaxes(_interpolate(np.swapaxes(rows, 0, 1), width, how), 0, 1)


def _check_finite(values: np.ndarray) -> None:
    """Raise `DataError` for NaN or infinity."""
    if not np.isfinite(values).all():
        raise DataError(
            "a class activation map has values that are not finite; training may have diverged: look at its loss, or "
            "evaluate an earlier step"
        )


def _image_cam(cam: np.ndarray) -> np.ndarray:
    """Return a class activation map at image size as float64 [H, W]; raise `DataError` for anything else."""
    cam = np.asarray(cam, np.float64)
    if cam.ndim != 2 or cam.size == 0:
        raise DataError(
            f"activation has shape {cam.shape}, needed [H, W] of at least one pixel: the map of one "
            "class, resized to the image with `resize_map`"
        )
    _check_finite(cam)
    return cam


def cam_point(cam: np.ndarray) -> tuple[float, float]:
    """Return the center (x, y) of the pixel of the highest activation.

    Args:
      cam: [H, W] finite, at the size of the image.
    Returns:
      (column + 1/2, row + 1/2) in pixels. A constant map, whose values all agree to within `EVEN_TOLERANCE` of the
      largest magnitude, gives (W / 2, H / 2), the center of the image.
    Raises:
      DataError: not an [H, W] map, or not finite.
    Ties: the first pixel in row order.
    """
    cam = _image_cam(cam)
    height, width = cam.shape
    if np.ptp(cam) <= EVEN_TOLERANCE * np.abs(cam).max():
        return width / 2, height / 2
    row, column = divmod(int(np.argmax(cam)), width)
    return column + 0.5, row + 0.5


def foreground(cam: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Return the pixels whose activation is at least `factor` times the map's mean.

    R >= min(factor * mean(R), max(R)) - `EVEN_TOLERANCE` * max|R|. Rounding can put the mean of equal values above
    them, hence the tolerance: a constant map is all foreground. The highest pixels are always foreground, so there is
    always some. If the mean is negative, a larger factor gives more foreground.

    Args:
      cam: [H, W] finite, at the size of the image, of any sign.
      factor: of the mean; 1 is the published rule.
    Returns:
      [H, W] bool with at least one True.
    Raises:
      DataError: not an [H, W] map, or not finite.

    Source: Zhu et al. 2017 (SPN), section 4.3. The text thresholds the map and then resizes; the released code resizes
    first, as is done here.
    """
    cam = _image_cam(cam)
    thr = min(factor * cam.mean(), cam.max())
    return cam >= thr - EVEN_TOLERANCE * np.abs(cam).max()


def component_boxes(
    mask: np.ndarray, cam: np.ndarray, connectivity: Literal[4, 8] = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tightest box of every connected component and the mean activation inside the component.

    Args:
      mask: [H, W] bool.
      cam: [H, W] finite.
      connectivity: 4: pixels connect along their sides, 8: along corners too.
    Returns:
      boxes: [n, 4] float32 `xyxy`, continuous edges, ordered by the components' first pixels in row order.
      scores: [n] float32, the mean over the component's pixels, not over its box.
    Raises:
      DataError: not an [H, W] map, not finite, or of another shape than `mask`.
      ValueError: another connectivity.
    """
    cam, mask = _image_cam(cam), np.asarray(mask, bool)
    if mask.shape != cam.shape:
        raise DataError(f"mask has shape {mask.shape}, activation {cam.shape}; they must agree")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity!r}; allowed: 4, 8")
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    rows, columns = np.nonzero(mask)
    labels = labels[rows, columns]
    first = np.zeros(count, np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]  # the first pixel is written last
    order = np.argsort(first[1:]) + 1  # label 0 is the background
    total = np.bincount(labels, weights=cam[rows, columns], minlength=count)
    boxes = stats[order][:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP] * 2]
    boxes[:, 2:] += stats[order][:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    scores = total[order] / stats[order, cv2.CC_STAT_AREA]
    return boxes.astype(np.float32), scores.astype(np.float32)


def map_boxes(
    cam: np.ndarray,
    mode: BoxMode = "tightest",
    *,
    factor: float = 1.0,
    connectivity: Literal[4, 8] = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of one class's activation map, with scores.

    Args:
      cam: [H, W] finite, at the size of the image.
      mode: `tightest`: one box around all foreground, as in the paper and in the released code for ImageNet.
        `components`: one per connected component, as in the released code for VOC.
      factor: see `foreground`.
      connectivity: see `component_boxes`; `components` only.
    Returns:
      boxes: [n, 4] float32 `xyxy` in pixels, continuous edges; n >= 1.
      scores: [n] float32, the mean activation over the box's foreground pixels; of any sign.
    Raises:
      DataError: not an [H, W] map, or not finite.
      ValueError: unknown mode or connectivity.

    Source: Zhu et al. 2017 (SPN), section 4.3 and its released code.
    """
    mask = foreground(cam, factor)
    if mode == "components":
        return component_boxes(mask, cam, connectivity)
    if mode != "tightest":
        raise ValueError(f"unknown mode {mode!r}; allowed: 'tightest', 'components'")
    score = np.asarray(cam, np.float64)[mask].mean()
    return tight_box(Mask(0, 0, mask))[None], np.array([score], np.float32)
