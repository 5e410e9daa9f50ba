"""Geometry of the input, in NumPy: canvases, views of images on them, and their proposals.

A `View` of an image is resized, cropped to a window if it shows one, mirrored if `flipped`, and placed in the
top-left corner of a `canvas`. Only `place_image` and `place_boxes` apply views, to pixels and to boxes.
"""

from __future__ import annotations

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
_MAX_CANVASES = 6  # per orientation: every step is compiled once per canvas


@dataclass(frozen=True)
class View:
    """The transform of one image to the network's input.

    Attributes:
      canvas: (H, W) in pixels.
      size: (height, width) in pixels of the image or window on the canvas.
      flipped: mirrored left-right, after cropping.
      shrunk: smaller than the scale, to fit the canvas or the longest side allowed.
      resized: (height, width) in pixels of the whole image after resizing; `size` by default.
      offset: (y, x) in pixels, position of the window of `size` in the resized image.
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

    Up to 6 scales have a canvas each. More share the 6 canvases that minimize padding over all scales, each on the
    smallest one that fits. The size of a view depends only on its scale, and padding is inert, so shared canvases do
    not change results.

    Attributes:
      scales: the side lengths in pixels, at most 32.
      resize: "short" makes the shorter side equal the scale (as in OICR), "long" the longer one; both keep the
        aspect. "warp" makes both sides equal the scale (as in SPN): the canvas is (scale, scale) in either
        orientation; `max_long`, `aspect` and `multiple` are then ignored.
      max_long: maximum of the longer side, in pixels.
      aspect: ratio of the sides of a scale's canvas. With "short", images up to this aspect fit; longer ones are
        shrunk. With "long" all fit: views of both kinds share canvases, so evaluating both compiles nothing more.
      multiple: canvas sides are rounded up to a multiple of this.
      crop_margin: for a cropped view, the image is resized larger by (scale + crop_margin) / scale, and the window
        has the size of the image without a margin: with "warp", scale x scale pixels of (scale + crop_margin) x
        (scale + crop_margin). Other views have no margin.
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
            raise ConfigError(f"crop_margin={self.crop_margin}; it must be at least 0 (0: off).")
        if self.resize not in typing.get_args(Resize):
            raise ConfigError(f'resize={self.resize!r}; allowed are "short", "long" and "warp".')

    def is_portrait(self, height: int, width: int) -> bool:
        """Return whether the canvas of an image of this size is upright; never for square or warped ones."""
        return self.resize != "warp" and height > width

    def shape(self, scale: int, portrait: bool) -> tuple[int, int]:
        """Return the canvas (H, W) of a scale in an orientation."""
        return self._own_shape(self._holders[scale], portrait)

    @functools.cached_property
    def _holders(self) -> dict[int, int]:
        """Scale -> the scale whose canvas it uses, itself if there are enough canvases.

        Minimizes the sum of areas over all scales, by dynamic programming over the sorted scales; of equal sums the
        one with the smaller canvases.
        """
        scales = sorted(self.scales)
        areas = [math.prod(self._own_shape(scale, portrait=False)) for scale in scales]
        best = {0: (0, ())}  # number of smallest scales with a canvas -> sum of areas, holders
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
        """Return the canvas (H, W) that a scale needs, the limit of its views."""
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
        share: tuple[float, float] | None = None,
    ) -> View:
        """Return the view of an image of this size at this scale.

        The resize factor is scale / side, where `resize` selects the shorter or the longer side, or less if the
        longer side would exceed `max_long` or the scale's canvas. New sides are rounded half up, and at least 1
        pixel. "warp" has a factor per side.

        A window by `share` is a part of the original image: it is resized as an image of its size would be, and what
        is outside it by the same factors. The orientation of the canvas is the image's. A window that is too long for
        it, perhaps because its own orientation is another one, is shrunk to fit.

        Args:
          height: of the original image, in pixels.
          width: likewise.
          scale: one of `scales`.
          flipped: mirrored left-right.
          crop: (y, x) in [0, 1), position of the window, from the first to the last offset in equal parts;
            `None`: the whole image, without a margin.
          share: (height, width) in (0, 1], sides of the window by those of the image; `None`: a window by
            `crop_margin`.
        """
        portrait = self.is_portrait(height, width)
        shown = (1.0, 1.0) if crop is None or share is None else share
        sides = (height * shown[0], width * shown[1])
        size, factors, shrunk = self._fitted(*sides, scale, portrait)
        resized, offset = size, (0, 0)
        if crop is not None and share is not None:
            whole = (side * f for side, f in zip((height, width), factors, strict=True))
            resized = tuple(max(n, math.floor(w + 0.5)) for n, w in zip(size, whole, strict=True))
        elif crop is not None and self.crop_margin:
            larger = (scale + self.crop_margin) / scale
            resized = tuple(math.floor(side * larger + 0.5) for side in size)
        if crop is not None:
            rooms = (large - small + 1 for large, small in zip(resized, size, strict=True))
            offset = tuple(math.floor(part * room) for part, room in zip(crop, rooms, strict=True))
        return View(self.shape(scale, portrait), size, flipped, shrunk, resized, offset)

    def _fitted(
        self, height: float, width: float, scale: int, portrait: bool
    ) -> tuple[tuple[int, int], tuple[float, float], bool]:
        """Return the size on the canvas of what has these sides, the factors (y, x), and whether it is shrunk."""
        room = self._own_shape(scale, portrait)
        if self.resize == "warp":
            return room, (scale / height, scale / width), False
        side = max(height, width) if self.resize == "long" else min(height, width)
        limits = (self.max_long / max(height, width), room[0] / height, room[1] / width)
        factor = min(scale / side, *limits)
        new_height, new_width = (max(1, math.floor(s * factor + 0.5)) for s in (height, width))
        size = (min(new_height, room[0]), min(new_width, room[1]))
        return size, (factor, factor), factor < scale / side


def place_image(image: np.ndarray, view: View) -> np.ndarray:
    """Resize bilinearly, crop, mirror, and pad with zeros at the bottom and right.

    Mirroring comes last, so a flipped view has exactly the mirrored pixels of the other.

    Args:
      image: [h, w, 3] uint8.
      view: of the image.

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
    """Map boxes of the original image to a view of it.

    Args:
      boxes: [n, 4] float32 xyxy in pixels of the original image.
      image_size: its (height, width).
      view: of the image.

    Returns:
      [n, 4] float32 xyxy in pixels of the canvas, clipped to `view.size`; a box outside a cropped view's window
      has no area.
    """
    height, width = view.size
    scaled = scale_boxes(boxes, *view_factors(image_size, view))
    top, left = view.offset
    placed = clip_boxes(scaled - np.float32([left, top, left, top]), height, width)
    return flip_boxes(placed, width) if view.flipped else placed
