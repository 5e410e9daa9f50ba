"""Geometry of the input, in NumPy: canvases, where an image lies on one, and what becomes of its proposals.

An image is described by a `View`: resized, a window cut out of it if it is cropped, mirrored if `flipped`, laid into
the top-left corner of a `canvas`. `place_image` and `place_boxes` apply a view to pixels and to boxes; nothing else
moves either.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from wsod_jax.errors import ConfigError
from wsod_jax.ops.boxes import clip_boxes, flip_boxes, scale_boxes

Resize = Literal["short", "long", "warp"]

_MAX_SCALES = 32
_MAX_CANVASES = 6  # per orientation: every canvas is one more compilation of every step


@dataclass(frozen=True)
class View:
    """Where one image goes.

    Attributes:
      canvas: (H, W) in pixels.
      size: (height, width) in pixels of what is shown, at most the canvas.
      flipped: mirrored left-right, after cropping.
      shrunk: smaller than the scale asks for, to fit the canvas or the longest side allowed.
      resized: (height, width) in pixels of the whole image after resizing; `size` by default.
      offset: (y, x) in pixels, where the window of `size` lies in the resized image.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    flipped: bool
    shrunk: bool = False
    resized: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self):
        if self.resized is None:
            object.__setattr__(self, "resized", self.size)

    @property
    def cropped(self) -> bool:
        """Whether only a window of the image is shown."""
        return self.resized != self.size


@dataclass(frozen=True)
class Canvases:
    """The static image shapes of a run: one canvas per scale and orientation, or per group of scales.

    Up to 6 scales have a canvas each. More share 6: each lies on the smallest of them that holds it, and the 6 are
    the own canvases of those scales that leave the least padding over all scales. The size of a view depends on its
    scale alone, and padding is inert, so neither changes what a scale sees.

    Attributes:
      scales: the side lengths in pixels, at most 32.
      resize: "short" makes the shorter side equal the scale (as OICR trains), "long" the longer one, both
        keep the aspect. "warp" makes both sides equal the scale (as SPN trains): a scale's canvas is exactly
        (scale, scale), whatever the orientation; the next three attributes then have no say.
      max_long: no longer side exceeds this, in pixels.
      aspect: a scale's canvas is so many times as long as the scale. With "short", images up to this long/short
        ratio fit; longer ones shrink to fit. With "long" everything fits: views of both kinds share
        canvases, so that evaluating both ways compiles nothing more.
      multiple: canvas sides are rounded up to a multiple of this.
      crop_margin: of a cropped view, the whole image is resized by (scale + crop_margin) / scale as
        much, and the window cut out of it has the size that the whole would have without a margin: with
        "warp", scale x scale pixels of (scale + crop_margin) x (scale + crop_margin). Views that are not
        cropped do not have a margin.
    """

    scales: tuple[int, ...]
    resize: Resize = "short"
    max_long: int = 2000
    aspect: float = 1.5
    multiple: int = 32
    crop_margin: int = 0

    def __post_init__(self):
        object.__setattr__(self, "scales", tuple(self.scales))
        if not 1 <= len(self.scales) <= _MAX_SCALES or len(set(self.scales)) < len(self.scales):
            raise ConfigError(
                f"scales={self.scales}; allowed are 1 to {_MAX_SCALES} distinct side lengths."
            )
        if min(self.scales) < 1:
            raise ConfigError(f"scales={self.scales}; every side length must be at least 1 pixel.")
        for name in ("max_long", "aspect", "multiple"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1.")
        if self.crop_margin < 0:
            raise ConfigError(f"crop_margin={self.crop_margin}; allowed are 0, for off, and more.")
        if self.resize not in typing.get_args(Resize):
            raise ConfigError(f'resize={self.resize!r}; allowed are "short", "long" and "warp".')

    def is_portrait(self, height: int, width: int) -> bool:
        """Return whether an image of this size goes on an upright canvas; a square or warped one does not."""
        return self.resize != "warp" and height > width

    def shape(self, scale: int, portrait: bool) -> tuple[int, int]:
        """Return the canvas (H, W) that a scale lies on in an orientation."""
        return self._own_shape(self._holders[scale], portrait)

    @functools.cached_property
    def _holders(self) -> dict[int, int]:
        """Scale -> the scale whose canvas it lies on, itself where there are enough canvases.

        The least sum of areas over all scales, by dynamic programming over the sorted scales; of equal sums that
        with the smaller canvases.
        """
        scales = sorted(self.scales)
        areas = [math.prod(self._own_shape(scale, portrait=False)) for scale in scales]
        best = {0: (0, ())}  # how many of the smallest scales are held -> sum of areas, holders
        for _ in range(min(_MAX_CANVASES, len(scales))):
            best = {
                end: min(
                    (area + (end - start) * areas[end - 1], (*holders, scales[end - 1]))
                    for start, (area, holders) in best.items()
                    if start < end
                )
                for end in range(min(best) + 1, len(scales) + 1)
            }
        _, holders = best[len(scales)]
        return {scale: min(h for h in holders if h >= scale) for scale in scales}

    def _own_shape(self, scale: int, portrait: bool) -> tuple[int, int]:
        """Return the canvas (H, W) that a scale needs, which limits its views."""
        if self.resize == "warp":
            return (scale, scale)
        sides = (min(scale * factor, self.max_long) for factor in (1.0, self.aspect))
        short, long = (math.ceil(side / self.multiple) * self.multiple for side in sides)
        return (long, short) if portrait else (short, long)

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return the distinct canvases; training and prediction compile at most 2 steps for each."""
        both = [self.shape(scale, portrait) for scale in self.scales for portrait in (False, True)]
        return tuple(dict.fromkeys(both))

    def view(
        self,
        height: int,
        width: int,
        scale: int,
        flipped: bool = False,
        crop: tuple[float, float] | None = None,
    ) -> View:
        """Return where an image of this size goes at this scale.

        The resize factor is scale / side, the side being the shorter or the longer one as `resize` says,
        or less where the longer side would exceed `max_long` or the scale's own canvas. New sides are rounded
        half up, and at least 1 pixel. "warp" has a factor per side.

        Args:
          height: of the original image, in pixels.
          width: likewise.
          scale: one of `scales`.
          flipped: mirrored left-right.
          crop: (y, x) in [0, 1), which of the possible windows is shown, from the first to the last
            offset in equal parts; `None` shows the whole image, without a margin.
        """
        whole = self._whole(height, width, scale, flipped)
        if crop is None or self.crop_margin == 0:
            return whole
        larger = (scale + self.crop_margin) / scale
        resized = tuple(math.floor(side * larger + 0.5) for side in whole.size)
        rooms = (large - small + 1 for large, small in zip(resized, whole.size, strict=True))
        offset = tuple(math.floor(part * room) for part, room in zip(crop, rooms, strict=True))
        return dataclasses.replace(whole, resized=resized, offset=offset)

    def _whole(self, height: int, width: int, scale: int, flipped: bool) -> View:
        portrait = self.is_portrait(height, width)
        canvas, room = self.shape(scale, portrait), self._own_shape(scale, portrait)
        if self.resize == "warp":
            return View(canvas, room, flipped)
        side = max(height, width) if self.resize == "long" else min(height, width)
        wanted = scale / side
        limits = (self.max_long / max(height, width), room[0] / height, room[1] / width)
        factor = min(wanted, *limits)
        new_height, new_width = (max(1, math.floor(s * factor + 0.5)) for s in (height, width))
        size = (min(new_height, room[0]), min(new_width, room[1]))
        return View(canvas, size, flipped, shrunk=factor < wanted)


def place_image(image: np.ndarray, view: View) -> np.ndarray:
    """Resize bilinearly, cut out the window, mirror, and pad with zeros at the bottom and right.

    Mirroring comes last, so a flipped view holds exactly the mirrored pixels of its twin.

    Args:
      image: [h, w, 3] uint8.
      view: where it goes.

    Returns:
      [H, W, 3] uint8, zero outside `view.size`.
    """
    height, width = view.size
    canvas = np.zeros((*view.canvas, 3), np.uint8)
    shown = canvas[:height, :width]
    if view.resized == view.size != image.shape[:2]:
        cv2.resize(image, (width, height), shown, interpolation=cv2.INTER_LINEAR)
    else:
        if image.shape[:2] != view.resized:
            image = cv2.resize(image, view.resized[::-1], interpolation=cv2.INTER_LINEAR)
        top, left = view.offset
        shown[:] = image[top : top + height, left : left + width]
    if view.flipped:
        cv2.flip(shown, 1, shown)
    return canvas


def view_factors(image_size: tuple[int, int], view: View) -> tuple[np.float32, np.float32]:
    """Return network pixels per pixel of the original image along (x, y): new side / old side."""
    return (
        np.float32(view.resized[1] / image_size[1]),
        np.float32(view.resized[0] / image_size[0]),
    )


def place_boxes(boxes: np.ndarray, image_size: tuple[int, int], view: View) -> np.ndarray:
    """Move boxes of the original image onto a view of it.

    Args:
      boxes: [n, 4] float32 xyxy in pixels of the original image.
      image_size: its (height, width).
      view: where it went.

    Returns:
      [n, 4] float32 xyxy in pixels of the canvas, within `view.size`; a box outside a cropped view's window
      is left without area.
    """
    height, width = view.size
    scaled = scale_boxes(boxes, *view_factors(image_size, view))
    top, left = view.offset
    placed = clip_boxes(scaled - np.float32([left, top, left, top]), height, width)
    return flip_boxes(placed, width) if view.flipped else placed
